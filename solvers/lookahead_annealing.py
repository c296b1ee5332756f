"""A look-ahead rule that moves items between stores of different speed, replayed exactly; simulated annealing tunes it.

An item stands in one of K stores, fastest first, the last unbounded. Each step reads some items; stores work in parallel and a step takes as long as
its busiest. Times count as in the caller's problem: a move reads the item from the old store, which serves its read of the step, and writes it to the
new one; births after step 0 are written; with `inclusive` the last store always has a copy: moves into it are free, and births write it as well.

The rule knows the whole future of an item as one number, its score: bytes that later steps read of it by size, discounted by exp(-steps/horizon), and
0 where its next read is more than a window away. Between two reads all scores shrink by the same factor, so they are compared by what they are worth
at step 0 (in logarithms) and change only when an item is read. Its parameters, all in [0, 1] for the annealer (`decoded` says what they mean):

    0 horizon, 1 window                 steps, up to the number of steps
    2 promote threshold                 score below which an item is not moved to a faster store
    3 margin                            by how much its score must exceed its victims'
    4 balance                           a faster store takes items only while its time is at most so many times the slower one's
    5 prefetch                          items of the next step are fetched while that leaves the slower store's time at most so many times the longest
    6 fill                              share of a store's capacity that births fill
    7 hot share                         share of all scores that births at one step may give to the fastest store
    8 shed                              while a faster store's time is more than so many times a slower one's, items it just read go there
    9 payment                           a move may prolong the step by so many times the seconds that its reads to come save

Deterministic. A step takes O(N) to look for victims in a full store and O(log N) for each victim and each read.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PARAMETERS = 10
NEVER = -1e300
"""Logarithm of a score of 0."""
STARTS = np.array([(h, 1.0, promote, 0.0, balance, 0.0, 1.0, 1.0, shed, pay) for h in (0.2, 0.4, 0.6, 0.8) for promote, balance, shed, pay in (
    (0.3, 1.0, 1.0, 1.0), (0.3, 1.0, 1.0, 0.2), (0.3, 0.55, 0.6, 1.0), (0.1, 0.55, 0.6, 0.1))])  # fmt: skip
"""From short to long horizons: what promotes all that pays, and what keeps the stores' times in balance."""
START_TEMPERATURE = 0.03
END_TEMPERATURE = 0.0003
"""Relative to the best objective."""


class Trace(NamedTuple):
    """Arrays of a problem: items [N], reads [reads] by step (`indptr`), stores [K]; `*_order` and `*_first` list items by birth and death step."""

    size: FloatArray
    birth_order: IntArray
    birth_first: IntArray
    death_order: IntArray
    death_first: IntArray
    indptr: IntArray
    item: IntArray
    amount: FloatArray
    next_read: IntArray
    step_of: IntArray
    first_read: IntArray
    fixed: FloatArray
    capacity: FloatArray
    read_s: FloatArray
    write_s: FloatArray
    inclusive: bool


def trace_of(
    size: FloatArray, birth: IntArray, death: IntArray, indptr: IntArray, item: IntArray | npt.NDArray[np.int32], amount: FloatArray,
    fixed: FloatArray, capacity: FloatArray, read_s: FloatArray, write_s: FloatArray, inclusive: bool,
) -> Trace:  # fmt: skip
    """The arrays of a problem, with each read's next read of the same item (-1: none). O(reads log reads + N log N)."""
    steps, reads = len(indptr) - 1, len(item)
    item = np.array(item, np.int64)
    step_of = np.repeat(np.arange(steps), np.diff(indptr))
    order = np.argsort(item, kind="stable")
    next_read, first_read = np.full(reads, -1), np.full(len(size), -1)
    same = item[order[1:]] == item[order[:-1]]
    next_read[order[:-1][same]] = order[1:][same]
    begins = np.ones(reads, bool)
    begins[1:] = ~same
    first_read[item[order[begins]]] = order[begins]
    births, deaths = np.argsort(birth, kind="stable"), np.argsort(death, kind="stable")
    at = np.arange(steps + 1)
    # copies, all writable: compiled code is made anew for arrays that are not
    size, amount, fixed, capacity, read_s, write_s = (np.array(values, np.float64) for values in (size, amount, fixed, capacity, read_s, write_s))
    return Trace(
        size, births, np.searchsorted(birth[births], at), deaths, np.searchsorted(death[deaths], at), np.array(indptr, np.int64), item, amount,
        next_read, step_of, first_read, fixed, capacity, read_s, write_s, inclusive,
    )  # fmt: skip


@compiled
def decoded(x: FloatArray, steps: int) -> FloatArray:
    """The rule's parameters from the annealer's."""
    p = np.empty(PARAMETERS)
    p[0] = math.exp(x[0] * math.log(max(2.0, float(steps))))
    p[1] = math.exp(x[1] * math.log(max(2.0, float(steps))))
    p[2] = 8.0 * x[2] * x[2]
    p[3] = 8.0 * x[3] * x[3]
    p[4] = math.exp(4.0 * (x[4] - 0.5)) if x[4] < 1.0 else np.inf
    p[5] = 1.25 * x[5]
    p[6] = x[6]
    p[7] = x[7]
    p[8] = math.exp(4.0 * (x[8] - 0.5)) if x[8] < 1.0 else np.inf
    p[9] = 4.0 * x[9] if x[9] < 1.0 else np.inf
    return p


@compiled
def log_scores(trace: Trace, horizon: float, out: FloatArray) -> None:
    """For each read the logarithm of what it and all later reads of the item are worth, by size and seen from step 0."""
    amount, size, item, step_of, next_read = trace.amount, trace.size, trace.item, trace.step_of, trace.next_read
    for r in range(len(out) - 1, -1, -1):
        part = amount[r] / size[item[r]]
        own = math.log(part) - step_of[r] / horizon if part > 0 else NEVER
        after = next_read[r]
        if after < 0 or out[after] <= NEVER:
            out[r] = own
        else:
            high, low = max(own, out[after]), min(own, out[after])
            out[r] = high + math.log1p(math.exp(low - high))


@compiled
def score(step_of: IntArray, logs: FloatArray, coming: int, t: int, p: FloatArray) -> float:
    """The score in step t of an item whose next read after t is `coming`."""
    if coming < 0 or step_of[coming] - t > p[1] or logs[coming] <= NEVER:
        return 0.0
    return math.exp(min(logs[coming] + t / p[0], 700.0))


@compiled
def log_score(step_of: IntArray, logs: FloatArray, coming: int, t: int, p: FloatArray) -> float:
    """What orders scores of one step, without an exponential."""
    return NEVER if coming < 0 or step_of[coming] - t > p[1] else logs[coming]


@compiled
def sift_down(key: FloatArray, item: IntArray, at: int, count: int) -> None:
    """Restore the heap of least keys below position `at`."""
    while True:
        child = 2 * at + 1
        if child >= count:
            return
        if child + 1 < count and key[child + 1] < key[child]:
            child += 1
        if key[at] <= key[child]:
            return
        key[at], key[child] = key[child], key[at]
        item[at], item[child] = item[child], item[at]
        at = child


@compiled
def move_times(time_s: FloatArray, read_s: FloatArray, write_s: FloatArray, copied: bool, size: float, served: float, old: int, new: int) -> None:
    """Count the move of an item of which `served` bytes were counted as read from its old store in this step; `copied`: the last store has it."""
    if copied and new == len(time_s) - 1:
        time_s[old] -= served * read_s[old]
        time_s[new] += served * read_s[new]
    else:
        time_s[old] += (size - served) * read_s[old]
        time_s[new] += size * write_s[new]


@compiled
def place_births(
    trace: Trace, logs: FloatArray, p: FloatArray, t: int, coming: IntArray, store: IntArray, room: FloatArray, time_s: FloatArray
) -> None:
    """Births by score, each into the fastest store that has room for it and may take its score; the fastest only while the hot share lasts."""
    size, write_s, step_of = trace.size, trace.write_s, trace.step_of
    first, end, last = trace.birth_first[t], trace.birth_first[t + 1], len(room) - 1
    born = trace.birth_order[first:end]
    worth = np.empty(len(born))
    for b in range(len(born)):
        i = born[b]
        coming[i] = trace.first_read[i]
        # a read in the birth step itself counts in full
        worth[b] = score(step_of, logs, coming[i], t, p)
    total, given = (worth * size[born]).sum(), 0.0
    for b in np.argsort(-worth, kind="mergesort"):
        i = born[b]
        into = last
        for k in range(last):
            if room[k] - (1.0 - p[6]) * trace.capacity[k] < size[i]:
                continue
            if k == 0 and given + worth[b] * size[i] > p[7] * total:
                continue
            into = k
            break
        if into == 0:
            given += worth[b] * size[i]
        store[i] = into
        room[into] -= size[i]
        if t > 0:
            time_s[into] += size[i] * write_s[into]
            if trace.inclusive and into != last:
                time_s[last] += size[i] * write_s[last]


@compiled
def shed(
    trace: Trace, logs: FloatArray, p: FloatArray, t: int, k: int, coming: IntArray, store: IntArray, moved: IntArray, served: FloatArray,
    room: FloatArray, time_s: FloatArray, gone: IntArray, count: FloatArray, to: IntArray,
) -> None:  # fmt: skip
    """Items that store k reads in this step go to slower stores that have time, the highest scores first: those that are read there longest.

    `gone`, `to`: what went where; `count[0]`: how many.
    """
    size, read_s, write_s, item = trace.size, trace.read_s, trace.write_s, trace.item
    begin, end, done = trace.indptr[t], trace.indptr[t + 1], 0
    hot, worth = np.empty(end - begin, np.int64), np.empty(end - begin)
    found, later = 0, time_s[k]
    if later > p[8] * time_s[k + 1 :].min():
        for r in range(begin, end):
            i = item[r]
            if store[i] == k and moved[i] != t:
                hot[found], worth[found] = i, score(trace.step_of, logs, coming[i], t, p)
                found += 1
    for h in np.argsort(-worth[:found], kind="mergesort"):
        i = hot[h]
        into = -1
        for j in range(k + 1, len(room)):
            if room[j] >= size[i] and (into < 0 or time_s[j] < time_s[into]):
                into = j
        after = time_s[into] + max(size[i] * write_s[into], size[i] * read_s[into])
        if worth[h] <= 0.0 or later <= p[8] * after:
            break
        later -= served[i] * read_s[k]
        move_times(time_s, read_s, write_s, trace.inclusive, size[i], served[i], k, into)
        store[i], moved[i] = into, t
        room[k] += size[i]
        room[into] -= size[i]
        gone[done], to[done] = i, into
        done += 1
    count[0] = done


@compiled
def replay(
    trace: Trace, x: FloatArray, cutoff: float, initial: IntArray, move_step: IntArray, move_item: IntArray, move_to: IntArray
) -> tuple[float, int]:
    """Seconds of all steps under the rule with parameters x, and how many moves it made (written as far as there is room for them).

    Gives up with infinity once the seconds exceed `cutoff`. `initial` [N]: the store that each item is born in.
    """
    size, read_s, write_s, step_of = trace.size, trace.read_s, trace.write_s, trace.step_of
    items_read, amount, next_read = trace.item, trace.amount, trace.next_read
    items, steps, last = len(size), len(trace.indptr) - 1, len(trace.capacity) - 1
    p = decoded(x, steps)
    logs = np.empty(len(trace.item))
    log_scores(trace, p[0], logs)
    store, coming = np.full(items, -1), np.full(items, -1)
    served, stamp, moved = np.zeros(items), np.full(items, -1), np.full(items, -1)
    room, time_s = trace.capacity.copy(), np.zeros(last + 1)
    inside, queue, victims = np.empty(items, np.int64), np.empty(items, np.int64), np.empty(items, np.int64)
    keys, least = np.empty(items), np.empty(items)
    seconds, moves = 0.0, 0
    for t in range(steps):
        for d in range(trace.death_first[t], trace.death_first[t + 1]):
            i = trace.death_order[d]
            room[store[i]] += size[i]
            store[i] = -1
        time_s[:] = 0.0
        time_s[0] = trace.fixed[t] * read_s[0]
        place_births(trace, logs, p, t, coming, store, room, time_s)
        for b in range(trace.birth_first[t], trace.birth_first[t + 1]):
            i = trace.birth_order[b]
            initial[i], moved[i] = store[i], t
        begin, end = trace.indptr[t], trace.indptr[t + 1]
        for r in range(begin, end):
            i = items_read[r]
            time_s[store[i]] += amount[r] * read_s[store[i]]
            served[i], stamp[i], coming[i] = amount[r], t, next_read[r]
        ahead = trace.indptr[t + 2] if t + 2 <= steps and p[5] > 0 else end
        for k in range(last):
            # candidates: what this step reads, then what the next one reads, from slower stores
            count = 0
            for r in range(begin, ahead):
                i = items_read[r]
                if store[i] > k and moved[i] != t and (r < end or stamp[i] != t):
                    inside[count] = i
                    count += 1
            if count == 0 and p[8] == np.inf:
                continue
            candidates = inside[:count].copy()
            worth = np.empty(count)
            for c in range(count):
                i = candidates[c]
                worth[c] = score(step_of, logs, coming[i], t, p) - (0.0 if stamp[i] == t else 1e6)
            queued, taken, at = -1, 0, 0
            for c in np.argsort(-worth, kind="mergesort"):
                i, now = candidates[c], stamp[candidates[c]] == t
                gain = worth[c] if now else worth[c] + 1e6
                if gain <= 0.0 or gain < p[2]:
                    if now:
                        continue
                    break
                j = store[i]
                if time_s[k] + size[i] * write_s[k] > p[4] * time_s[j]:
                    continue
                worth_s = p[9] * gain * size[i] * (read_s[j] - read_s[k]) if p[9] < np.inf else np.inf
                if time_s[k] + size[i] * write_s[k] - time_s.max() > worth_s:
                    continue
                if not now and time_s[j] + size[i] * read_s[j] > p[5] * time_s.max():
                    continue
                if room[k] < size[i]:
                    if queued < 0:  # a heap of those that may leave, made when the store is first found to be full
                        queued = 0
                        for v in range(items):
                            if store[v] == k and moved[v] != t:
                                keys[queued], queue[queued] = log_score(step_of, logs, coming[v], t, p), v
                                queued += 1
                        for v in range(queued // 2 - 1, -1, -1):
                            sift_down(keys, queue, v, queued)
                    free, lost, until, extra_s = room[k], 0.0, at, 0.0 if now else size[i] * read_s[j]
                    while free < size[i]:
                        if until == taken:
                            if queued == 0:
                                break
                            victims[taken] = queue[0]
                            least[taken] = score(step_of, logs, coming[queue[0]], t, p)
                            taken += 1
                            queued -= 1
                            keys[0], queue[0] = keys[queued], queue[queued]
                            sift_down(keys, queue, 0, queued)
                        free += size[victims[until]]
                        lost += least[until] * size[victims[until]]
                        extra_s += size[victims[until]] * write_s[j]
                        until += 1
                    if free < size[i] or gain * size[i] < lost + p[3] * size[i]:
                        continue
                    if time_s[j] + extra_s - time_s.max() > worth_s and not (trace.inclusive and j == last):
                        continue
                    room[j] += size[i]  # its own place is free for a victim
                    for v in range(at, until):
                        victim = victims[v]
                        down = k + 1
                        while room[down] < size[victim]:
                            down += 1
                        move_times(time_s, read_s, write_s, trace.inclusive, size[victim], served[victim] if stamp[victim] == t else 0.0, k, down)
                        store[victim], moved[victim] = down, t
                        room[k] += size[victim]
                        room[down] -= size[victim]
                        if moves < len(move_step):
                            move_step[moves], move_item[moves], move_to[moves] = t, victim, down
                        moves += 1
                    room[j] -= size[i]
                    at = until
                move_times(time_s, read_s, write_s, trace.inclusive, size[i], served[i] if now else 0.0, j, k)
                store[i], moved[i] = k, t
                room[j] += size[i]
                room[k] -= size[i]
                if moves < len(move_step):
                    move_step[moves], move_item[moves], move_to[moves] = t, i, k
                moves += 1
            if p[8] < np.inf:
                shed(trace, logs, p, t, k, coming, store, moved, served, room, time_s, inside, keys, queue)
                for q in range(int(keys[0])):
                    if moves + q < len(move_step):
                        move_step[moves + q], move_item[moves + q], move_to[moves + q] = t, inside[q], queue[q]
                moves += int(keys[0])
        seconds += time_s.max()
        if seconds > cutoff:
            return np.inf, moves
    return seconds, moves


@compiled
def anneal(trace: Trace, starts: FloatArray, steps: int, rng: np.random.Generator, best: FloatArray) -> float:
    """The best objective; `best` [10] becomes its parameters. First the rows of `starts` [..][10], then `steps` steps of annealing from the best."""
    initial, none = np.empty(len(trace.size), np.int64), np.empty(0, np.int64)
    found = np.inf
    for s in range(len(starts)):
        value = replay(trace, starts[s], found, initial, none, none, none)[0]
        if value < found or s == 0:
            found = value
            best[:] = starts[s]
    now, at = found, best.copy()
    trial = np.empty(PARAMETERS)
    for step in range(steps):
        left = 1.0 - step / steps
        temperature = found * END_TEMPERATURE * (START_TEMPERATURE / END_TEMPERATURE) ** left
        trial[:] = at
        changed = 0
        while changed == 0:
            for q in range(PARAMETERS):
                if rng.random() < 0.25:
                    trial[q] = min(1.0, max(0.0, at[q] + rng.normal() * (0.03 + 0.2 * left)))
                    changed += 1
        limit = now - temperature * math.log(1.0 - rng.random())  # accepted exactly when the value is at most this
        value = replay(trace, trial, limit, initial, none, none, none)[0]
        if value <= limit:
            now = value
            at[:] = trial
            if value < found:
                found = value
                best[:] = trial
    return found
