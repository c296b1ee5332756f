"""Simulated annealing of chains of jobs on parallel slots (see `slot_chains`): moves the jobs, their ends and the stages' times.

The energy is the steps that all jobs lack and `token_weight` times the tokens over the caps; at 0 the jobs fit. Moves, each O(1) or the jobs of one
stage:

    trade   two jobs of about the same length change places
    cross   two slots change all that follows two of their places
    hand    the hand-over from a place to its successor goes to a nearby stage
    shift   a stage moves in time between its neighbours
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled
from headroom.solvers.slot_chains import Chains

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
FOCUS = 0.3
"""Share of the trades and crosses that begin with a place that lacks steps."""


def anneal(chains: Chains, moves: int, hot: float, cold: float, token_weight: float, reach: int, seed: int, scale: float = 1.0) -> float:
    """So many moves at falling temperatures, in place. Returns the energy. `reach`: how far apart in rank or begin partners are looked for."""
    jobs, places = len(chains.length), len(chains.start)
    head, nxt, prv = np.full(len(chains.time), -1), np.full(places, -1), np.full(places, -1)
    place_of, at_rank = np.zeros(jobs, np.int64), np.zeros(jobs, np.int64)
    place_of[chains.job[:jobs]] = np.arange(jobs)
    at_rank[chains.rank] = np.arange(jobs)
    state = np.random.default_rng(seed).integers(1, 2**63, 1).astype(np.uint64)
    return float(
        _anneal(
            chains.length, chains.tokens, chains.start, chains.end, chains.after, chains.before, chains.job, chains.time, chains.cap, chains.load,
            chains.rank, at_rank, place_of, head, nxt, prv,
            np.zeros(places + 2, np.int64), np.zeros(places, np.int64), moves, hot, cold, token_weight, reach, state, FOCUS, 0.1 / scale,
            max(3, round(3 * scale)),
        )
    )  # fmt: skip


@compiled
def _draw(state: npt.NDArray[np.uint64]) -> float:
    """Uniform in [0, 1): xorshift (doi:10.18637/jss.v008.i14)."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return float(x >> np.uint64(11)) / 9007199254740992.0


@compiled
def _below(state: npt.NDArray[np.uint64], most: int) -> int:
    return int(_draw(state) * most)


@compiled
def _price(lack: int, curve: float) -> float:
    return lack * (1.0 + curve * lack) if lack > 0 else 0.0


@compiled
def _excess(load: int, cap: int) -> float:
    """Tokens over the cap; the first one counts as nine, as any of them calls for another prefill."""
    return load - cap + 8.0 if load > cap else 0.0


@compiled
def _lack(place: int, begin: int, finish: int, job: IntArray, length: IntArray, time: IntArray, curve: float) -> float:
    if job[place] < 0:
        return 0.0
    return _price(length[job[place]] - (time[finish] - time[begin]), curve)


@compiled
def _note(place: int, start: IntArray, end: IntArray, job: IntArray, length: IntArray, time: IntArray, lacking: IntArray, spot: IntArray) -> None:
    """Keep the list of places that lack steps: `lacking[0]` of them from `lacking[1]` on, `spot` of each place (0: not in it)."""
    lacks = job[place] >= 0 and length[job[place]] > time[end[place]] - time[start[place]]
    if lacks and spot[place] == 0:
        lacking[0] += 1
        spot[place] = lacking[0]
        lacking[lacking[0]] = place
    elif not lacks and spot[place] > 0:
        moved = lacking[lacking[0]]
        lacking[spot[place]] = moved
        spot[moved] = spot[place]
        spot[place] = 0
        lacking[0] -= 1


@compiled
def _around(
    k: int, now: int, length: IntArray, start: IntArray, end: IntArray, before: IntArray, job: IntArray, time: IntArray,
    head: IntArray, nxt: IntArray, curve: float,
) -> float:  # fmt: skip
    """Steps that the places beginning or ending at stage k lack if it stands at `now`."""
    total = 0.0
    at = head[k]
    while at >= 0:
        total += _price(length[job[at]] - (time[end[at]] - now), curve)
        q = before[at]
        if job[q] >= 0:
            total += _price(length[job[q]] - (now - time[start[q]]), curve)
        at = nxt[at]
    return total


@compiled
def _anneal(
    length: IntArray, tokens: IntArray, start: IntArray, end: IntArray, after: IntArray, before: IntArray, job: IntArray, time: IntArray,
    cap: IntArray, load: IntArray, rank: IntArray, at_rank: IntArray, place_of: IntArray, head: IntArray, nxt: IntArray, prv: IntArray,
    lacking: IntArray, spot: IntArray, moves: int, hot: float, cold: float, token_weight: float, reach: int,
    state: npt.NDArray[np.uint64], focus: float, curve: float, widest: int,
) -> float:  # fmt: skip
    jobs, places, last = len(length), len(start), len(time) - 1
    for x in range(jobs):
        k = start[x]
        nxt[x] = head[k]
        if head[k] >= 0:
            prv[head[k]] = x
        head[k] = x
    energy = 0.0
    for x in range(places):
        energy += _lack(x, start[x], end[x], job, length, time, curve)
        _note(x, start, end, job, length, time, lacking, spot)
    for k in range(1, last):
        energy += token_weight * _excess(load[k], cap[k])
    cooling = (cold / hot) ** (1.0 / max(1, moves))
    heat = hot
    for _ in range(moves):
        heat *= cooling
        if energy < 1e-6:
            break
        kind = _draw(state)
        # What is worsened by more than this is refused.
        limit = -heat * np.log(1.0 - _draw(state))
        if kind < 0.45:
            a = _below(state, jobs)
            if lacking[0] > 0 and _draw(state) < focus:
                a = job[lacking[1 + _below(state, lacking[0])]]
            r = at_rank[a] + _below(state, 2 * reach + 1) - reach
            if r < 0 or r >= jobs or r == at_rank[a]:
                continue
            b = rank[r]
            x, y = place_of[a], place_of[b]
            i, j = start[x], start[y]
            dx, dy = time[end[x]] - time[i], time[end[y]] - time[j]
            delta = (
                _price(length[b] - dx, curve) + _price(length[a] - dy, curve) - _price(length[a] - dx, curve) - _price(length[b] - dy, curve)
            )  # fmt: skip
            more = tokens[b] - tokens[a]
            if i != j and more != 0:
                over = _excess(load[i] + more, cap[i]) - _excess(load[i], cap[i]) + _excess(load[j] - more, cap[j]) - _excess(load[j], cap[j])
                delta += token_weight * over
            if delta <= limit:
                energy += delta
                job[x], job[y] = b, a
                place_of[a], place_of[b] = y, x
                _note(x, start, end, job, length, time, lacking, spot)
                _note(y, start, end, job, length, time, lacking, spot)
                if i != j:
                    load[i] += more
                    load[j] -= more
        elif kind < 0.85:
            x = _below(state, places)
            if lacking[0] > 0 and _draw(state) < focus:
                x = lacking[1 + _below(state, lacking[0])]
            y = _below(state, places) if x >= jobs or _draw(state) < 0.1 else x + _below(state, 2 * reach + 1) - reach
            if y < 0 or y >= places or y == x:
                continue
            i, j = end[x], end[y]
            if i == j or start[x] >= j or start[y] >= i:
                continue
            delta = float(
                _lack(x, start[x], j, job, length, time, curve) + _lack(y, start[y], i, job, length, time, curve)
                - _lack(x, start[x], i, job, length, time, curve) - _lack(y, start[y], j, job, length, time, curve)
            )  # fmt: skip
            if delta <= limit:
                energy += delta
                end[x], end[y] = j, i
                _note(x, start, end, job, length, time, lacking, spot)
                _note(y, start, end, job, length, time, lacking, spot)
                after[x], after[y] = after[y], after[x]
                if after[x] >= 0:
                    before[after[x]] = x
                if after[y] >= 0:
                    before[after[y]] = y
        elif kind < 0.97:
            x = _below(state, jobs)
            q = before[x]
            i = start[x]
            k = i + (1 + _below(state, 3)) * (1 if _draw(state) < 0.5 else -1)
            if k <= start[q] or k >= end[x]:
                continue
            delta = float(
                _lack(q, start[q], k, job, length, time, curve) + _lack(x, k, end[x], job, length, time, curve)
                - _lack(q, start[q], i, job, length, time, curve) - _lack(x, i, end[x], job, length, time, curve)
            )  # fmt: skip
            more = tokens[job[x]]
            over = _excess(load[k] + more, cap[k]) - _excess(load[k], cap[k]) + _excess(load[i] - more, cap[i]) - _excess(load[i], cap[i])
            delta += token_weight * over
            if delta <= limit:
                energy += delta
                load[i] -= more
                load[k] += more
                start[x], end[q] = k, k
                _note(x, start, end, job, length, time, lacking, spot)
                _note(q, start, end, job, length, time, lacking, spot)
                if prv[x] >= 0:
                    nxt[prv[x]] = nxt[x]
                else:
                    head[i] = nxt[x]
                if nxt[x] >= 0:
                    prv[nxt[x]] = prv[x]
                nxt[x], prv[x] = head[k], -1
                if head[k] >= 0:
                    prv[head[k]] = x
                head[k] = x
        else:
            k = 1 + _below(state, last - 1)
            low, high = time[k - 1], time[k + 1]
            now = min(high, max(low, time[k] + (1 + _below(state, widest)) * (1 if _draw(state) < 0.5 else -1)))
            if now == time[k]:
                continue
            delta = float(
                _around(k, now, length, start, end, before, job, time, head, nxt, curve)
                - _around(k, time[k], length, start, end, before, job, time, head, nxt, curve)
            )  # fmt: skip
            if delta <= limit:
                energy += delta
                time[k] = now
                at = head[k]
                while at >= 0:
                    _note(at, start, end, job, length, time, lacking, spot)
                    _note(before[at], start, end, job, length, time, lacking, spot)
                    at = nxt[at]
    return energy


__all__ = ["anneal"]
