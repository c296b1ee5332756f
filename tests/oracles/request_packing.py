"""Request packing by enumeration, from the definition alone.

Bins: the best partition of the requests, by dynamic programming over their subsets (every subset that fits may be a bin). Makespan: every run of
stages, but for those that `Oracle.stages` proves to be no better than others; without prefill levels also every assignment of requests to slots.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations
from typing import Any


class Oracle:
    """Answers for one instance given as its JSON data (a dict), so that no code of the project is involved. For up to nine requests in bins (or on
    slots without prefill), six in stages."""

    def __init__(self, data: dict[str, Any]) -> None:
        requests = data["requests"]
        self.prompt, self.output = list(requests["prompt_tokens"]), list(requests["output_tokens"])
        self.count = len(self.prompt)
        self.group = list(requests.get("group") or [-1] * self.count)
        self.objective = data["objective"]
        self.capacity = data.get("capacity_tokens")
        self.overhead = data.get("group_overhead_tokens", 0)
        self.multiple = data.get("padding_multiple", 1)
        self.slots = data.get("slots")
        self.delta = data.get("decode_step_s")
        self.levels = [(level["max_tokens"], level["time_s"]) for level in data.get("prefill_levels", [])]

    def best(self) -> float:
        """Least objective; +inf when there is no feasible plan."""
        return self.bins() if self.objective == "bins" else self.stages()

    # Bins.

    def load(self, chosen: list[int]) -> int:
        """Tokens that these requests take in one bin."""
        total = 0
        for g in {self.group[j] for j in chosen if self.group[j] >= 0}:
            sizes = sum(self.prompt[j] + self.output[j] for j in chosen if self.group[j] == g)
            total += self.overhead[g] if isinstance(self.overhead, list) else self.overhead
            total += math.ceil(sizes / self.multiple) * self.multiple
        for j in chosen:
            if self.group[j] < 0:
                total += math.ceil((self.prompt[j] + self.output[j]) / self.multiple) * self.multiple
        return total

    def bins(self) -> float:
        """Fewest bins. Some bin holds the lowest request of a subset: every subset of the others may go with it."""
        fits = [self.load([j for j in range(self.count) if subset >> j & 1]) <= self.capacity for subset in range(1 << self.count)]
        fewest: list[float] = [0.0]
        for subset in range(1, 1 << self.count):
            lowest = subset & -subset
            others = subset ^ lowest
            found, part = math.inf, others
            while True:
                if fits[part | lowest]:
                    found = min(found, 1 + fewest[others ^ part])
                if not part:
                    break
                part = (part - 1) & others
            fewest.append(found)
        return fewest[-1]

    # Makespan.

    def prefill_s(self, chosen: tuple[int, ...]) -> float:
        """Seconds of prefilling these requests, at least one, together."""
        if not self.levels:
            return 0.0
        tokens = sum(self.prompt[j] for j in chosen)
        return next((seconds for most, seconds in self.levels if most is None or tokens <= most), math.inf)

    def stages(self, every_step: bool = False) -> float:
        """Least seconds, over all runs that admit any subset of the waiting requests into free slots (slots are alike: only their number matters) and
        then decode to the next completion, or not at all before the next admission. `every_step`: or any number of steps.

        Stopping at completions is enough. Count time in decode steps and take an optimal run whose starts T_k of stages have the least sum.
        Were some T_k > 0 neither an end of a request nor the start of another stage before it, then start stage k at the latest such moment T < T_k
        instead (or at 0). No slot became free or taken in between, so the same slots are free at T; the requests of stage k end earlier and disturb
        no later stage; prefill times are the same and there are no more steps: as good a run, with a smaller sum.
        """

        @cache
        def rest(waiting: tuple[int, ...], running: tuple[int, ...]) -> float:
            """Seconds still needed, from the requests that wait and the sorted steps that the admitted ones still need."""
            if not waiting:
                return self.delta * max(running, default=0)
            found = math.inf
            for size in range(1, min(self.slots - len(running), len(waiting)) + 1):
                for chosen in combinations(waiting, size):
                    seconds = self.prefill_s(chosen)
                    if seconds < math.inf:
                        left = tuple(j for j in waiting if j not in chosen)
                        found = min(found, seconds + rest(left, tuple(sorted((*running, *(self.output[j] for j in chosen))))))
            if running:
                steps = 1 if every_step else running[0]
                found = min(found, self.delta * steps + rest(waiting, tuple(left - steps for left in running if left > steps)))
            return found

        return rest(tuple(range(self.count)), ())

    def cmax(self) -> float:
        """P||Cmax over the outputs: seconds of the best assignment to slots, each request to a slot in use or to the next one."""
        assert not self.levels
        best = sum(self.output)

        def assign(j: int, loads: list[int]) -> None:
            nonlocal best
            if max(loads, default=0) >= best and j:
                return
            if j == self.count:
                best = min(best, max(loads))
                return
            for slot in range(len(loads)):
                assign(j + 1, [load + self.output[j] * (other == slot) for other, load in enumerate(loads)])
            if len(loads) < self.slots:
                assign(j + 1, [*loads, self.output[j]])

        assign(0, [])
        return float(self.delta * best)
