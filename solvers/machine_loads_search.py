"""Whether jobs fit into k machines of a given load, by depth-first search; and re-splitting of a few machines of a larger assignment.

The search fills one machine after the other. Each begins with the longest job left and tries every set of further jobs that could be part of an
answer (bin completion: Korf 2002; Fukunaga and Korf 2007, doi 10.1613/jair.2106). Left out are

- sets that waste more than is left to waste: k T minus all jobs;
- sets to which a job that is left could be added, and sets where a job could be exchanged for a longer one that is left: in the answer whose
  first machine is fullest, then whose second is, and so on, there are none;
- what is left after a set, when the same was left before and did not fit.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

IntArray = npt.NDArray[np.int64]
MOST_REMEMBERED: Final = 128
"""Up to so many jobs the sets that failed are remembered, as two words of 64 bits."""
MEMORY: Final = 1 << 20
"""Sets remembered at a time; 24 MiB."""
MOST_SPLIT: Final = 90
"""Jobs of a few machines that are split anew; a search among more seldom ends."""


def split(length: IntArray, machines: int, most: int, nodes: int = 2**62, stop: IntArray | None = None) -> tuple[bool | None, IntArray]:
    """Whether jobs [n] fit into `machines` of load `most`, and the machine of each job if so; None when `nodes` ran out or stop[0] became 1.

    Exponential; O(n) memory a machine.
    """
    order = np.argsort(-length, kind="stable")
    out = np.zeros(len(length), np.int64)
    memory = MEMORY if len(length) <= MOST_REMEMBERED and nodes > MEMORY else 0
    keys = np.zeros((memory, 2), np.uint64)
    levels = np.full(memory, -1, np.int64)
    flag = np.zeros(1, np.int64) if stop is None else stop
    answer, _ = _split(length[order].astype(np.int64), machines, most, nodes, keys, levels, flag, out)
    found = np.zeros(len(length), np.int64)
    found[order] = out
    return (None if answer < 0 else answer > 0), found


@compiled
def _key(items: IntArray, remember: int) -> tuple[np.uint64, np.uint64, int]:
    """A set of jobs as two words, and where in the memory it goes."""
    low, high = np.uint64(0), np.uint64(0)
    for item in items:
        if item < 64:
            low |= np.uint64(1) << np.uint64(item)
        else:
            high |= np.uint64(1) << np.uint64(item - 64)
    mixed = low * np.uint64(0x9E3779B97F4A7C15) ^ high * np.uint64(0xC2B2AE3D27D4EB4F)
    return low, high, int((mixed >> np.uint64(20)) % np.uint64(remember))


@compiled
def _split(
    p: IntArray,
    machines: int,
    most: int,
    budget: int,
    keys: npt.NDArray[np.uint64],
    levels: IntArray,
    stop: IntArray,
    out: IntArray,
) -> tuple[int, int]:
    """(1: fits, 0: does not, -1: not known; nodes). p falls; `out` receives the machines."""
    n = len(p)
    if n == 0:
        return 1, 0
    slack0 = machines * most - p.sum()
    if slack0 < 0 or p[0] > most:
        return 0, 0
    if n <= machines:
        for i in range(n):
            out[i] = i
        return 1, 0
    if machines == 1:
        out[:] = 0
        return 1, 0
    remember = len(keys)
    left = np.empty((machines, n), np.int64)
    length = np.empty((machines, n), np.int64)
    count = np.zeros(machines, np.int64)
    suffix = np.zeros((machines, n + 1), np.int64)
    taken = np.zeros((machines, n), np.bool_)
    start = np.zeros(machines, np.int64)
    rooms = np.zeros(machines, np.int64)
    slack = np.zeros(machines, np.int64)
    place = np.empty(n, np.int64)
    slack[0] = slack0
    for i in range(n):
        left[0, i] = i
        length[0, i] = p[i]
    count[0] = n
    for i in range(n - 1, -1, -1):
        suffix[0, i] = suffix[0, i + 1] + p[i]
    b, depth, q, visited = 0, 1, 1, 0
    place[0] = 0
    taken[0, 0] = True
    room = most - p[0]
    while True:
        visited += 1
        if visited > budget or (visited & 1023 == 0 and stop[0] != 0):
            return -1, visited
        # The next job that can be added to machine b.
        c = count[b]
        need = room - slack[b]
        smallest = length[b, c - 1]
        found = False
        while q < c:
            v = length[b, q]
            if v > room:
                if v > 2 * room or c - q > 64:  # far away: bisect
                    low, high = q, c
                    while low < high:
                        middle = (low + high) // 2
                        if length[b, middle] > room:
                            low = middle + 1
                        else:
                            high = middle
                    q = low
                else:
                    q += 1
                continue
            if not taken[b, q - 1] and length[b, q - 1] == v:
                q += 1
                continue
            if need > 0 and (suffix[b, q] < need or (v < need and (room // smallest) * v < need)):
                q = c
                break
            found = True
            break
        if found:
            place[depth] = q
            depth += 1
            taken[b, q] = True
            room -= length[b, q]
            q += 1
            continue
        deeper = False
        if need <= 0:
            deeper = True
            for i in range(c - 1, 0, -1):
                if not taken[b, i]:
                    deeper = length[b, i] > room
                    break
            if deeper:
                for d in range(start[b] + 1, depth):
                    q0 = place[d]
                    i = q0 - 1
                    while i > 0 and (taken[b, i] or length[b, i] == length[b, q0]):
                        i -= 1
                    if i > 0 and length[b, i] - length[b, q0] <= room:
                        deeper = False
                        break
            if deeper:
                after = b + 1
                rest = 0
                for i in range(c):
                    if not taken[b, i]:
                        left[after, rest] = left[b, i]
                        length[after, rest] = length[b, i]
                        rest += 1
                if rest <= machines - after or after == machines - 1:
                    for i in range(rest):
                        out[left[after, i]] = after + (i if rest <= machines - after else 0)
                    for level in range(after):
                        for i in range(count[level]):
                            if taken[level, i]:
                                out[left[level, i]] = level
                    return 1, visited
                if remember:
                    low_key, high_key, slot = _key(left[after, :rest], remember)
                    if levels[slot] == after and keys[slot, 0] == low_key and keys[slot, 1] == high_key:
                        deeper = False
                if deeper:
                    rooms[b] = room
                    slack[after] = slack[b] - room
                    count[after] = rest
                    suffix[after, rest] = 0
                    for i in range(rest - 1, -1, -1):
                        suffix[after, i] = suffix[after, i + 1] + length[after, i]
                        taken[after, i] = False
                    b = after
                    start[b] = depth
                    place[depth] = 0
                    depth += 1
                    taken[b, 0] = True
                    room = most - length[b, 0]
                    q = 1
        if deeper:
            continue
        # Back to the last job that was added to a machine by choice.
        while depth - 1 == start[b]:
            if b == 0:
                return 0, visited
            if remember:
                low_key, high_key, slot = _key(left[b, : count[b]], remember)
                levels[slot] = b
                keys[slot, 0] = low_key
                keys[slot, 1] = high_key
            depth -= 1
            b -= 1
            room = rooms[b]
        depth -= 1
        q = place[depth]
        taken[b, q] = False
        room += length[b, q]
        q += 1


def improve(
    length: IntArray, machine: IntArray, machines: int, target: int, seed: int, rounds: int, stop: IntArray, nodes: int = 4000
) -> tuple[IntArray, int]:
    """Jobs' machines [n] after up to `rounds` of local search towards loads of at most `target`, and the sum of what loads exceed it by, 0 at best.

    A round exchanges jobs between an overloaded machine and another, or splits it and a few others anew (`_split`, `nodes` each). Deterministic
    for a seed. stop[0] = 1 ends it. O(jobs) a round, besides the splits.
    """
    found = machine.astype(np.int64).copy()
    over = _improve(length.astype(np.int64), found, machines, target, np.random.default_rng(seed), rounds, nodes, stop)
    return found, int(over)


@compiled
def _improve(p: IntArray, machine: IntArray, machines: int, target: int, rng: np.random.Generator, rounds: int, nodes: int, stop: IntArray) -> int:
    n = len(p)
    loads = np.zeros(machines, np.int64)
    for j in range(n):
        loads[machine[j]] += p[j]
    order = np.argsort(-p, kind="mergesort")
    no_keys = np.zeros((0, 2), np.uint64)
    nothing = np.zeros(0, np.int64)
    spread = max(1.0, n / machines)
    widest = int(min(machines, max(2.0, min(10.0, 36.0 / spread))))
    chosen = np.zeros(machines, np.bool_)
    pool = np.empty(n, np.int64)
    mine = np.empty(n, np.int64)
    scanned_all = n <= 20000
    passing = 0.5 if n <= 5 * machines else 0.8
    exhausted, over = 0, 0
    for b in range(machines):
        over += max(0, loads[b] - target)
    for _ in range(rounds):
        if over == 0 or stop[0] != 0:
            break
        # An overloaded machine: the fullest, or any.
        a = int(np.argmax(loads))
        if rng.random() < 0.3:
            for _try in range(20):
                other = int(rng.random() * machines)
                if loads[other] > target:
                    a = other
                    break
        held = 0
        for j in range(n):
            if machine[j] == a:
                mine[held] = j
                held += 1
        excess = loads[a] - target
        if exhausted == 0:
            gain, give, take = 0, -1, -1
            tries = n if scanned_all else 4000
            first = int(rng.random() * n)
            for t in range(-1, tries):
                # t = -1: give a job to the lightest machine and take none.
                j = (first + t) % n
                b = int(machine[j])
                if t < 0:
                    b = int(np.argmin(loads))
                    j = -1
                if b == a or loads[b] >= target:
                    continue
                space = target - loads[b]
                for h in range(held):
                    d = p[mine[h]] - (p[j] if j >= 0 else 0)
                    if d <= 0:
                        continue
                    better = min(excess, d) - max(0, d - space)
                    if better > gain:
                        gain, give, take = better, int(mine[h]), j
                if gain == excess:
                    break
            if gain > 0:
                b = int(machine[take]) if take >= 0 else int(np.argmin(loads))
                d = p[give] - (p[take] if take >= 0 else 0)
                machine[give] = b
                if take >= 0:
                    machine[take] = a
                loads[a] -= d
                loads[b] += d
                over -= gain
                continue
            exhausted = 25
        exhausted -= 1
        if rng.random() < passing:
            # Pass the excess on: exchange for a job that is a little shorter, wherever it is.
            first, h = int(rng.random() * n), int(mine[int(rng.random() * held)])
            for t in range(min(n, 20000)):
                j = (first + t) % n
                b = int(machine[j])
                d = p[h] - p[j]
                if b != a and 0 < d <= excess:
                    before = excess + max(0, loads[b] - target)
                    machine[h], machine[j] = b, a
                    loads[a] -= d
                    loads[b] += d
                    over += max(0, loads[a] - target) + max(0, loads[b] - target) - before
                    exhausted = min(exhausted, 2)
                    break
            continue
        # Split the machine and some others anew.
        k = 2 + int(rng.random() * (widest - 1)) if widest > 2 else 2
        if machines < 2:
            break
        chosen[:] = False
        chosen[a] = True
        size, total = 1, loads[a]
        while size < k:
            b = int(rng.random() * machines)
            if not chosen[b]:
                chosen[b] = True
                size += 1
                total += loads[b]
        if total > k * target:
            for _try in range(30):  # too full together: take the emptiest of the others
                b = int(rng.random() * machines)
                if chosen[b]:
                    continue
                fullest = -1
                for other in range(machines):
                    if chosen[other] and other != a and (fullest < 0 or loads[other] > loads[fullest]):
                        fullest = other
                if loads[b] < loads[fullest]:
                    chosen[b], chosen[fullest] = True, False
                    total += loads[b] - loads[fullest]
                if total <= k * target:
                    break
        if total > k * target:
            continue
        held = 0
        for i in range(n):
            if chosen[machine[order[i]]]:
                pool[held] = order[i]
                held += 1
        if held > MOST_SPLIT:
            continue
        lengths = np.empty(held, np.int64)
        for i in range(held):
            lengths[i] = p[pool[i]]
        result = np.zeros(held, np.int64)
        answer, _visited = _split(lengths, k, target, nodes, no_keys, nothing, stop, result)
        if answer == 1:
            names = np.flatnonzero(chosen)
            for name in names:
                over -= max(0, loads[name] - target)
                loads[name] = 0
            for i in range(held):
                name = names[result[i]]
                machine[pool[i]] = name
                loads[name] += lengths[i]
            exhausted = 0
    return over


__all__ = ["improve", "split"]
