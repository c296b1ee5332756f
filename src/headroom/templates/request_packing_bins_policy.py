"""An online policy for request packing into bins (fewest bins). Replace `decide` with your own rule, then

    headroom compare x.json --methods ./my_policy.py:MyPolicy,first_fit,best_fit,ffd

Requests come one by one, in the instance's order; what a policy may see is said in headroom.heuristics.request_packing_online.
"""

from headroom.heuristics.request_packing_online import Arrival, BinDeployment


class MyPolicy:
    """Best fit, and a bin that already holds the request's group first: its overhead is paid there."""

    family, modes = "request_packing", ("bins",)
    seeded = False  # it draws nothing: one seed is enough

    def __init__(self, deployment: BinDeployment) -> None:
        self.deployment = deployment  # capacity_tokens, padding_multiple; nothing of the requests that will come
        self.room: list[int] = []  # tokens left in each bin
        self.held: dict[tuple[int, int], int] = {}  # (bin, group) -> tokens of the group in the bin

    def added(self, arrival: Arrival, b: int, tokens: int) -> int:
        """By how much so many tokens of the request raise the load of bin b: padding and overhead count once a group."""
        multiple = self.deployment.padding_multiple
        before = None if arrival.group is None else self.held.get((b, arrival.group))
        if before is None:
            return arrival.overhead_tokens - (-tokens // multiple) * multiple
        return (-before // multiple) * multiple - (-(before + tokens) // multiple) * multiple

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        """The bin to try, len(self.room) for a new one; `refused`: bins that were tried for this request and had no room."""
        best, found = (True, self.deployment.capacity_tokens + 1), len(self.room)
        for b, room in enumerate(self.room):
            left = room - self.added(arrival, b, arrival.tokens)
            stranger = arrival.group is not None and (b, arrival.group) not in self.held
            if left >= 0 and b not in refused and (stranger, left) < best:
                best, found = (stranger, left), b
        return found

    def placed(self, arrival: Arrival, b: int, tokens: int) -> None:
        """Bin b took the request: so many tokens in truth."""
        if b == len(self.room):
            self.room.append(self.deployment.capacity_tokens)
        self.room[b] -= self.added(arrival, b, tokens)
        if arrival.group is not None:
            self.held[b, arrival.group] = self.held.get((b, arrival.group), 0) + tokens
