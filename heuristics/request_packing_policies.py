"""Online policies for bins, under the names the field uses. `request_packing_online` says what they see.

| name                | where a request goes                                                                                   |
|---------------------|--------------------------------------------------------------------------------------------------------|
| `NextFit`           | the last bin opened, else a new one                                                                    |
| `FirstFit`          | the first bin with room                                                                                |
| `BestFit`           | the bin that it leaves with the least room                                                             |
| `WorstFit`          | the bin that it leaves with the most room                                                              |
| `AffinityFit`       | best fit among the bins that hold its group, first fit among the others                                 |
| `Harmonic`          | next fit among the requests of its size class, (C/2, C], (C/3, C/2], ..., at most C/12                  |
| `FirstFitPredicted` | first fit by a quantile of the predicted length; a bin that refuses it passes it on to the next         |

Room is true room: a group's overhead counts once in a bin, and its tokens are padded together. A request costs a bin that holds its group less than
another one, and the policies know. Plain instances: O(log bins) a request. With groups, also O(bins that hold the request's group), vectorised.

The guarantees are those of plain bin packing, OPT being the fewest bins of the same requests in any order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from headroom.heuristics.request_packing_online import Arrival, BinDeployment

IntArray = npt.NDArray[np.int64]
CLASSES = 12
"""Of `Harmonic`; with 12 the asymptotic ratio is within 0.002 of its limit, 1.69103."""


class _Members:
    """The bins that hold a group, in the order in which it came to them, and its tokens in each."""

    def __init__(self) -> None:
        self._bin, self._tokens = np.empty(4, np.int64), np.empty(4, np.int64)
        self._at: dict[int, int] = {}

    def add(self, b: int, tokens: int) -> None:
        i = self._at.get(b)
        if i is None:
            i = self._at[b] = len(self._at)
            if i == len(self._bin):
                self._bin, self._tokens = (np.concatenate([x, np.empty_like(x)]) for x in (self._bin, self._tokens))
            self._bin[i], self._tokens[i] = b, 0
        self._tokens[i] += tokens

    def tokens(self, b: int) -> int | None:
        i = self._at.get(b)
        return None if i is None else int(self._tokens[i])

    @property
    def all(self) -> tuple[IntArray, IntArray]:
        """Bins and tokens."""
        n = len(self._at)
        return self._bin[:n], self._tokens[:n]


class Packing(ABC):
    """Keeps the policy's books: the true room of every bin, and where each group is."""

    sigma: ClassVar[float] = 0.0

    def __init__(self, deployment: BinDeployment) -> None:
        from headroom.solvers.greedy_packing import Rooms

        self.deployment = deployment
        self.rooms = Rooms()
        self.members: dict[int, _Members] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def bins(self) -> int:
        """Open bins; the number of a new one."""
        return self.rooms.bins

    def padded(self, tokens: int) -> int:
        multiple = self.deployment.padding_multiple
        return -(-tokens // multiple) * multiple

    def alone(self, arrival: Arrival) -> int:
        """Tokens that the request takes in a bin that does not hold its group."""
        return arrival.overhead_tokens + self.padded(arrival.tokens)

    def added(self, arrival: Arrival, b: int, tokens: int) -> int:
        """By how much `tokens` of the request's group raise the load of bin b."""
        before = None
        if arrival.group is not None and arrival.group in self.members:
            before = self.members[arrival.group].tokens(b)
        if before is None:
            return arrival.overhead_tokens + self.padded(tokens)
        return self.padded(before + tokens) - self.padded(before)

    def sharing(self, arrival: Arrival) -> tuple[IntArray, IntArray]:
        """The bins that hold the request's group and have room for it, and the room it leaves in each."""
        if arrival.group is None or arrival.group not in self.members:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        bins, before = self.members[arrival.group].all
        multiple = self.deployment.padding_multiple
        more = -(-(before + arrival.tokens) // multiple) + (-before // multiple)
        left = self.rooms.rooms()[bins] - more * multiple
        fits = left >= 0
        return bins[fits], left[fits]

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        """A bin that has room by all the policy knows; asked again after a refusal, a new one."""
        found = None if refused else self._find(arrival)
        return self.bins if found is None else found

    @abstractmethod
    def _find(self, arrival: Arrival) -> int | None:
        """An open bin that has room; None: a new one."""

    def placed(self, arrival: Arrival, b: int, tokens: int) -> None:
        room = self.rooms.room(b) if b < self.bins else self.deployment.capacity_tokens
        self._put(b, room, room - self.added(arrival, b, tokens))
        if arrival.group is not None:
            self.members.setdefault(arrival.group, _Members()).add(b, tokens)

    def _put(self, b: int, before: int, room: int) -> None:
        """Bin b has this room now and had `before`; overridden by policies with other books."""
        self.rooms.put(b, room)


class Harmonic(Packing):
    """Next fit in each size class, (C/(i+1), C/i] for i = 1 .. 11 and (0, C/12], by what a request takes alone.

    A class's bin is left when the next request does not fit, which for plain requests of class i is after i of them. At most 1.69103 OPT + O(1)
    as the number of classes grows (Lee and Lee 1985, doi 10.1145/3828.3833), on plain instances. O(1) a request.
    """

    classes: ClassVar[int] = CLASSES

    def __init__(self, deployment: BinDeployment) -> None:
        super().__init__(deployment)
        self._open: dict[int, int] = {}
        """The last bin of each class."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"classes": self.classes}

    def _class(self, arrival: Arrival) -> int:
        return min(self.classes, self.deployment.capacity_tokens // max(1, self.alone(arrival)))

    def _find(self, arrival: Arrival) -> int | None:
        b = self._open.get(self._class(arrival))
        if b is None or self.added(arrival, b, arrival.tokens) > self.rooms.room(b):
            return None
        return b

    def placed(self, arrival: Arrival, b: int, tokens: int) -> None:
        super().placed(arrival, b, tokens)
        self._open[self._class(arrival)] = b


class NextFit(Harmonic):
    """The last bin opened if the request fits, else a new one; what does not fit closes a bin for good.

    At most 2 OPT - 1 bins on plain instances: two bins in a row hold more than one bin's tokens (Johnson 1973). O(1) a request.
    """

    classes: ClassVar[int] = 1

    @property
    def settings(self) -> dict[str, Any]:
        return {}


class FirstFit(Packing):
    """The first bin, in order of opening, that has room. At most floor(1.7 OPT) bins on plain instances (Dósa and Sgall 2013)."""

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        found = self._first(arrival, self.alone(arrival), max(refused, default=-1) + 1)
        return self.bins if found is None else found

    def _find(self, arrival: Arrival) -> int | None:
        return self._first(arrival, self.alone(arrival), 0)

    def _first(self, arrival: Arrival, need: int, start: int) -> int | None:
        found = self.rooms.first(need, start)
        sharing, _ = self.sharing(arrival)
        sharing = sharing[sharing >= start]
        if len(sharing) and (found is None or sharing.min() < found):
            return int(sharing.min())
        return found


class BestFit(Packing):
    """The bin that the request leaves with the least room, of equals the first opened.

    At most floor(1.7 OPT) bins on plain instances (Dósa and Sgall 2014).
    """

    def __init__(self, deployment: BinDeployment) -> None:
        from headroom.solvers.greedy_packing import SortedRooms

        super().__init__(deployment)
        self._sorted = SortedRooms()

    def _put(self, b: int, before: int, room: int) -> None:
        if b < self.bins:
            self._sorted.remove(b, before)
        self._sorted.put(b, room)
        super()._put(b, before, room)

    def _find(self, arrival: Arrival) -> int | None:
        need = self.alone(arrival)
        at = self._sorted.tightest(need)
        if arrival.group is None:
            return None if at is None else at[1]
        # what a bin that holds the group is left with is reckoned below, and is more than here
        while at is not None and arrival.group in self.members and self.members[arrival.group].tokens(at[1]) is not None:
            at = self._sorted.tightest(at[0], above=at[1])
        bins, left = self.sharing(arrival)
        choices = list(zip(left.tolist(), bins.tolist(), strict=True)) + ([] if at is None else [(at[0] - need, at[1])])
        return min(choices)[1] if choices else None


class WorstFit(Packing):
    """The bin that the request leaves with the most room, of equals the first opened; a new one only if none has room.

    At most 2 OPT - 1 bins on plain instances (Johnson 1973): what opens a bin fits into no other, so any two bins hold more than one bin's tokens.
    """

    def _find(self, arrival: Arrival) -> int | None:
        bins, left = self.sharing(arrival)
        choices = list(zip((-left).tolist(), bins.tolist(), strict=True))
        b = self.rooms.most()
        # if this bin holds the group, `sharing` has it with more room left
        if b is not None and self.rooms.room(b) >= self.alone(arrival):
            choices.append((self.alone(arrival) - self.rooms.room(b), b))
        return min(choices)[1] if choices else None


class AffinityFit(FirstFit):
    """Cache-aware routing: of the bins that hold the request's group and have room, the fullest; if there is none, the first bin with room.

    Pays a group's overhead only when it must. On plain instances it is `FirstFit`.
    """

    def _find(self, arrival: Arrival) -> int | None:
        bins, left = self.sharing(arrival)
        return int(bins[np.lexsort((bins, left))[0]]) if len(bins) else super()._find(arrival)

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        found = None if refused else self._find(arrival)
        return super().decide(arrival, refused) if found is None else found


class FirstFitPredicted(FirstFit):
    """First fit when output lengths are only predicted: the first bin with room for the prompt and a `quantile` of the output's distribution.

    The quantile is that of the true length given its prediction when errors are lognormal with the deployment's sigma. A request is tried in the
    first bin that has room for it, and where it turns out too long, in the next such bin; an empty bin takes any request. True sizes are known of
    requests placed, so every plan is feasible; the price of a bad prediction is bins passed over, or refusals, which `replay` counts. No guarantee.
    """

    sigma: ClassVar[float] = 0.5
    quantile: ClassVar[float] = 0.7

    @property
    def settings(self) -> dict[str, Any]:
        return {"quantile": self.quantile}

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        s = self.deployment.sigma
        # predicted = true x exp(s Z - s^2/2), so the true length is the prediction times exp(s^2/2 - s Z)
        factor = math.exp(s * NormalDist().inv_cdf(self.quantile) + s**2 / 2)
        reserved = arrival._replace(predicted_output_tokens=math.ceil(arrival.predicted_output_tokens * factor))
        return super().decide(reserved, refused)


__all__ = ["AffinityFit", "BestFit", "FirstFit", "FirstFitPredicted", "Harmonic", "NextFit", "Packing", "WorstFit"]
