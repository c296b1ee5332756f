"""Compiled code of `tiered_replanning`: its docstring says what is computed. Everything stands in one file because numba needs it so."""

from __future__ import annotations

import numpy as np

from headroom.solvers.compiled import compiled, inlined


@compiled
def moves_kernel(first, step, born, before, after, when, at, item, to):  # type: ignore[no-untyped-def]
    """Write every move where there is room for it; returns how many there are."""
    n = 0
    for i in range(len(born)):
        here = born[i]
        for entry in range(first[i] + i, first[i + 1] + i + 1):
            if before[entry] != here:
                if n < len(at):
                    at[n], item[n], to[n] = when[entry], i, before[entry]
                n += 1
                here = before[entry]
            if entry < first[i + 1] + i and after[entry] != here:
                if n < len(at):
                    at[n], item[n], to[n] = step[entry - i], i, after[entry]
                n += 1
                here = after[entry]
    return n


@compiled
def along_kernel(first, step, end, born, first_move, moved_at, to, before, after, when):  # type: ignore[no-untyped-def]
    """Paths from moves sorted by item and step: the inverse of `moves_kernel`."""
    for i in range(len(born)):
        here, m, stop = born[i], first_move[i], first_move[i + 1]
        for e in range(first[i], first[i + 1] + 1):
            t = step[e] if e < first[i + 1] else end[i]
            start, at = here, -1
            while m < stop and moved_at[m] < t:
                if at < 0:
                    at = moved_at[m]
                here = to[m]
                m += 1
            before[e + i], when[e + i] = here, at if here != start else -1
            if e < first[i + 1]:
                if m < stop and moved_at[m] == t:
                    here = to[m]
                    m += 1
                after[e + i] = here


@inlined
def _weigh_tiers(kind, t, time_s, share, stiffness, weights):  # type: ignore[no-untyped-def]
    """The proximal maximum's weights of step t: the point of the simplex nearest to share + stiffness * time."""
    tiers = len(kind)
    if tiers == 1:
        weights[t, 0] = 1.0
        return
    if tiers == 2:
        w = 0.5 * (1.0 + share[t, 0] - share[t, 1] + stiffness * (time_s[t, 0] - time_s[t, 1]))
        w = min(max(w, 0.0), 1.0)
        weights[t, 0], weights[t, 1] = w, 1.0 - w
        return
    for k in range(tiers):
        weights[t, k] = share[t, k] + stiffness * time_s[t, k]
    kept = (1 << tiers) - 1
    while True:
        total, count = 0.0, 0
        for k in range(tiers):
            if kept >> k & 1:
                total += weights[t, k]
                count += 1
        above = (total - 1.0) / count
        dropped = False
        for k in range(tiers):
            if kept >> k & 1 and weights[t, k] < above:
                kept &= ~(1 << k)
                dropped = True
        if not dropped:
            break
    for k in range(tiers):
        weights[t, k] = weights[t, k] - above if kept >> k & 1 else 0.0


@inlined
def _work(t, k, seconds, time_s, soft, kind, share, stiffness, weights):  # type: ignore[no-untyped-def]
    time_s[t, k] += seconds
    if soft:
        _weigh_tiers(kind, t, time_s, share, stiffness, weights)


@compiled
def _put(  # type: ignore[no-untyped-def]
    kind, i, sign, first, step, amount, weigh, size, start, end, inclusive, born, before, after, when, time_s, held, read_s, write_s, soft, share,
    stiffness, weights,
):  # fmt: skip
    """Add (sign 1) or take away (-1) the load of item i's path; where `soft`, weights follow."""
    tiers = len(kind)
    last = tiers - 1
    s = sign * size[i]
    here, since = born[i], start[i]
    e, stop = first[i], first[i + 1]
    if since > 0:
        _work(since, here, s * write_s[here], time_s, soft, kind, share, stiffness, weights)
        if inclusive and here != last:
            _work(since, last, s * write_s[last], time_s, soft, kind, share, stiffness, weights)
    while True:
        t = step[e] if e < stop else end[i]
        to = before[e + i]
        if to != here:
            move = when[e + i]
            for k in range(since, move):
                held[k, here] += s
            if not (inclusive and to == last):
                time_s[move, here] += s * read_s[here]
                _work(move, to, s * write_s[to], time_s, soft, kind, share, stiffness, weights)
            since, here = move, to
        if e >= stop:
            for k in range(since, t):
                held[k, here] += s
            return
        to = after[e + i]
        part = sign * amount[e] if weigh else s
        if to == here:
            _work(t, to, part * read_s[to], time_s, soft, kind, share, stiffness, weights)
        else:
            for k in range(since, t):
                held[k, here] += s
            if inclusive and to == last:
                _work(t, last, part * read_s[last], time_s, soft, kind, share, stiffness, weights)
            else:
                time_s[t, here] += s * read_s[here]
                _work(t, to, s * write_s[to], time_s, soft, kind, share, stiffness, weights)
            since, here = t, to
        e += 1


@compiled
def load_kernel(  # type: ignore[no-untyped-def]
    kind, first, step, amount, weigh, size, start, end, inclusive, born, before, after, when, time_s, held, read_s, write_s
):  # fmt: skip
    nothing = np.zeros((1, 1))
    for i in range(len(size)):
        _put(
            kind, i, 1.0, first, step, amount, weigh, size, start, end, inclusive, born, before, after, when, time_s, held, read_s, write_s,
            False, nothing, 0.0, nothing,
        )  # fmt: skip


@inlined
def _most(kind, t, soft, time_s):  # type: ignore[no-untyped-def]
    """What step t takes without the item; soft sweeps don't ask."""
    most = time_s[t, 0]
    if not soft:
        for k in range(1, len(kind)):
            most = max(most, time_s[t, k])
    return most


@inlined
def _cost(most, t, a, on_a, b, on_b, soft, time_s, weights, stiffness, share, weight):  # type: ignore[no-untyped-def]
    """What `on_a` seconds on tier a and `on_b` on b cost in step t, which takes `most` without them."""
    if soft:
        apart = on_a - on_b if a != b else on_a + on_b
        return weights[t, a] * on_a + weights[t, b] * on_b + 0.25 * stiffness * apart * apart
    new = time_s[t, a] + on_a + on_b if a == b else max(time_s[t, a] + on_a, time_s[t, b] + on_b)
    new = max(most, new)
    return (1.0 - weight) * (new - most) + weight * (share[t, a] * on_a + share[t, b] * on_b)


@inlined
def _hold(t, k, s, soft, held, limit, price, hold_stiffness, last, weight):  # type: ignore[no-untyped-def]
    if k == last:
        return 0.0
    if soft:
        return s * (max(price[t, k] + hold_stiffness[k] * (held[t, k] - limit[t, k]), 0.0) + 0.5 * hold_stiffness[k] * s)
    return weight * price[t, k] * s if held[t, k] + s <= limit[t, k] else np.inf


@inlined
def _stretch_of_two(  # type: ignore[no-untyped-def]
    begin, end, s, soft, inclusive, time_s, held, read_s, write_s, limit, share, price, stiffness, hold_stiffness, weight, weights
):  # fmt: skip
    """A stretch without events where there are two tiers: staying in tier 0, the best single move down and up, and their steps.

    What `sweep_kernel` does step by step for any number of tiers, written out: most of its time goes here.
    """
    stay, down, up = 0.0, np.inf, np.inf
    down_at, up_at = -1, -1
    down_0, down_1, up_0, up_1 = s * read_s[0], s * write_s[1], s * write_s[0], s * read_s[1]
    hold_slope = hold_stiffness[0]
    if soft:
        down_bend, up_bend = 0.25 * stiffness * (down_0 - down_1) ** 2, 0.25 * stiffness * (up_0 - up_1) ** 2
        own = 0.5 * hold_slope * s
        for t in range(begin, end):
            hold = s * (max(price[t, 0] + hold_slope * (held[t, 0] - limit[t, 0]), 0.0) + own)
            cost = stay if inclusive else stay + weights[t, 0] * down_0 + weights[t, 1] * down_1 + down_bend
            if cost < down:
                down, down_at = cost, t
            cost = weights[t, 0] * up_0 + weights[t, 1] * up_1 + up_bend
            if cost < up:
                up, up_at = cost, t
            up += hold
            stay += hold
        return stay, down, up, down_at, up_at
    for t in range(begin, end):
        hold = weight * price[t, 0] * s if held[t, 0] + s <= limit[t, 0] else np.inf
        most = max(time_s[t, 0], time_s[t, 1])
        cost = stay
        if not inclusive:
            longer = max(max(time_s[t, 0] + down_0, time_s[t, 1] + down_1) - most, 0.0)
            cost += (1.0 - weight) * longer + weight * (share[t, 0] * down_0 + share[t, 1] * down_1)
        if cost < down:
            down, down_at = cost, t
        longer = max(max(time_s[t, 0] + up_0, time_s[t, 1] + up_1) - most, 0.0)
        cost = (1.0 - weight) * longer + weight * (share[t, 0] * up_0 + share[t, 1] * up_1)
        if cost < up:
            up, up_at = cost, t
        up += hold
        stay += hold
    return stay, down, up, down_at, up_at


@compiled
def sweep_kernel(  # type: ignore[no-untyped-def]
    kind, order, soft, first, step, amount, weigh, size, start, end, most, inclusive, born, before, after, when, time_s, held,
    read_s, write_s, limit, share, price, stiffness, hold_stiffness, weight,
):  # fmt: skip
    tiers, steps = len(kind), len(time_s)
    last = tiers - 1
    weights = np.zeros((steps, tiers))
    if soft:
        for t in range(steps):
            _weigh_tiers(kind, t, time_s, share, stiffness, weights)
    value, then = np.empty(tiers), np.empty(tiers)
    stay, way, moved_at = np.empty(tiers), np.empty((tiers, tiers)), np.zeros((tiers, tiers), np.int32)
    hold = np.empty(tiers)
    source = np.empty((most + 1, tiers), np.int8)
    origin, at = np.empty((most + 1, tiers), np.int8), np.empty((most + 1, tiers), np.int32)
    for i in order:
        s, birth, death, stop = size[i], start[i], end[i], first[i + 1]
        _put(
            kind, i, -1.0, first, step, amount, weigh, size, start, end, inclusive, born, before, after, when, time_s, held, read_s, write_s,
            soft, share, stiffness, weights,
        )  # fmt: skip
        e = first[i]
        # A read in the step of birth finds the block where it was born: an event without a stretch before it and without a move. It is charged
        # together with the write of the birth, because a step's maximum is not the sum of what each would add alone.
        wanted = 0.0
        if e < stop and step[e] == birth:
            wanted = amount[e] if weigh else s
        most_s = _most(kind, birth, soft, time_s)
        for k in range(tiers):
            value[k] = _hold(birth, k, s, soft, held, limit, price, hold_stiffness, last, weight)
            work, copy = wanted * read_s[k], 0.0
            if birth > 0:
                work += s * write_s[k]
                copy = s * write_s[last] if inclusive and k != last else 0.0
            value[k] += _cost(most_s, birth, k, work, last, copy, soft, time_s, weights, stiffness, share, weight)
        n, position = 0, birth
        while True:
            t = step[e] if e < stop else death
            at_birth = e < stop and t == birth
            for a in range(tiers):
                stay[a] = 0.0
                for c in range(tiers):
                    way[a, c] = np.inf
            if tiers == 2:
                stay[0], way[0, 1], way[1, 0], moved_at[0, 1], moved_at[1, 0] = _stretch_of_two(
                    position + 1, t, s, soft, inclusive, time_s, held, read_s, write_s, limit, share, price, stiffness, hold_stiffness, weight,
                    weights,
                )  # fmt: skip
            else:
                for between in range(position + 1, t):
                    most_s = _most(kind, between, soft, time_s)
                    for k in range(tiers):
                        hold[k] = _hold(between, k, s, soft, held, limit, price, hold_stiffness, last, weight)
                    for a in range(tiers):
                        for c in range(tiers):
                            if a != c:
                                cost = stay[a]
                                if not (inclusive and c == last):
                                    cost += _cost(
                                        most_s, between, a, s * read_s[a], c, s * write_s[c], soft, time_s, weights, stiffness, share, weight
                                    )
                                if cost < way[a, c]:
                                    way[a, c], moved_at[a, c] = cost, between
                                way[a, c] += hold[c]
                    for k in range(tiers):
                        stay[k] += hold[k]
            for c in range(tiers):
                best, best_a = value[c] + stay[c], c
                for a in range(tiers):
                    if a != c and value[a] + way[a, c] < best:
                        best, best_a = value[a] + way[a, c], a
                then[c], origin[n, c], at[n, c] = best, best_a, (moved_at[best_a, c] if best_a != c else -1)
            if e >= stop:
                break
            part = amount[e] if weigh else s
            most_s = _most(kind, t, soft, time_s)
            for c in range(tiers):
                best, best_a = then[c], c
                if not at_birth:
                    here = _cost(most_s, t, c, part * read_s[c], c, 0.0, soft, time_s, weights, stiffness, share, weight)
                    best += here
                    for a in range(tiers):
                        if a != c:
                            cost = then[a]
                            if inclusive and c == last:
                                cost += here
                            else:
                                cost += _cost(most_s, t, a, s * read_s[a], c, s * write_s[c], soft, time_s, weights, stiffness, share, weight)
                            if cost < best:
                                best, best_a = cost, a
                    best += _hold(t, c, s, soft, held, limit, price, hold_stiffness, last, weight)
                value[c], source[n, c] = best, best_a
            n += 1
            position = t
            e += 1
        c = 0
        for k in range(1, tiers):
            if then[k] < then[c]:
                c = k
        for j in range(n, -1, -1):
            entry = first[i] + j + i
            before[entry], when[entry] = c, at[j, c]
            c = origin[j, c]
            if j > 0:
                after[entry - 1] = c
                c = source[j - 1, c]
        born[i] = c
        _put(
            kind, i, 1.0, first, step, amount, weigh, size, start, end, inclusive, born, before, after, when, time_s, held, read_s, write_s,
            soft, share, stiffness, weights,
        )  # fmt: skip
