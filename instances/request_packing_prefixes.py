r"""Prefix sharing: the tree of the prompts' blocks, and the one level of groups that saves the most tokens.

A prompt is a sequence of blocks, named by hashes; requests whose sequences begin alike can keep that beginning once. The prefix tree has a node for
every beginning that occurs (so the same hash after another beginning is another node); d(v) > 0 are the tokens from the root to node v, and request j
ends at node e(j), its whole sequence.

Two figures, both for all requests in one bin:

- **tree**: every node is kept once. Tokens saved: sum_j d(e(j)) − sum_v (d(v) − d(parent of v)). No sharing of prefixes saves more.
- **flat**, what a `RequestPacking` can say: request j has at most one group, a node a(j) on its own path, and n_v >= 1 requests of node v keep its
  d(v) tokens once. Tokens saved: sum over the nodes chosen of d(v) (n_v − 1). `flatten` finds the most.

**The optimal rule.** Let S be a set of open nodes. Tokens saved are at most sum_j d(a(j)) − sum_{v in S} d(v), with equality where each open node
has a request; for a given S the sum is largest when each request takes its deepest open ancestor, and an open node without requests only costs. So
the flat optimum is the maximum of that expression over S. The choices below v see those above it through one number alone, the depth x of the
deepest open node above v (0: none). With k_v the requests that end at v, define for 0 <= x <= d(v)

    g_v(x) = k_v x + sum over children c of f_c(x)            v stays closed
    A_v    = g_v(d(v)) − d(v)                                 v is opened: below it x becomes d(v)
    f_v(x) = max(A_v, g_v(x)),  f_v = g_v where v may not be opened;       the optimum is sum over the root's children of f_c(0)

and v is opened if A_v > g_v(x). By induction this is the maximum over the open sets of v's subtree: requests below v take a node of the subtree or
the one at depth x, and the subtrees of v's children do not see each other.

**Its representation.** By induction f_v is convex and does not fall: sums of such functions and their maximum with a constant are. On whole numbers
it is therefore a value at 0, a slope, and breakpoints at which the slope rises. The maximum with A_v cuts off all breakpoints below the point where
g_v reaches A_v and adds at most two; going up to a parent cuts off those beyond the parent's depth. Each breakpoint is made once and cut off once,
and children are merged small into large: O(n log^2 n) steps for n nodes that two requests share (others never open: their n_v − 1 is 0), whatever
the depth of the tree, where the recursion over pairs (node, open ancestor) takes O(n · depth). All numbers are whole, so the optimum is exact.

What sharing saves in a packing also depends on how often a group is repeated in different bins, which no choice made beforehand can know.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import networkx as nx

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass
class PrefixTree:
    """The tree, grown request by request. Node 0 is the root; a node's parent has a smaller number.

    `parent` and `depth_tokens` [node], `end` [request]: the node at which each request's blocks end (0: it has none).
    """

    parent: list[int] = field(default_factory=lambda: [-1])
    depth_tokens: list[int] = field(default_factory=lambda: [0])
    end: list[int] = field(default_factory=list)
    _child: dict[tuple[int, int, int], int] = field(default_factory=dict, repr=False)

    def add(self, blocks: Iterable[int], tokens: int, block_tokens: int) -> None:
        """One more request: its blocks' hashes, its prompt's tokens, the tokens of a block (the last block holds what is left of the prompt).

        Blocks of different length are different blocks, whatever their hash. Raises `ValueError` for more blocks than the prompt fills.
        """
        node, left = 0, tokens
        for block in blocks:
            held = min(block_tokens, left)
            if held < 1:
                raise ValueError(f"a prompt of {tokens} tokens must have at most {-(-tokens // block_tokens)} blocks of {block_tokens} tokens")
            left -= held
            key = (node, block, held)
            found = self._child.get(key)
            if found is None:
                found = self._child[key] = len(self.parent)
                self.parent.append(node)
                self.depth_tokens.append(tokens - left)
            node = found
        self.end.append(node)

    @property
    def nodes(self) -> int:
        """Nodes, the root not counted."""
        return len(self.parent) - 1

    def requests_through(self) -> IntArray:
        """Requests whose path holds each node [node]. O(nodes)."""
        through = np.bincount(np.array(self.end, np.int64), minlength=len(self.parent)).tolist()
        for node in range(len(self.parent) - 1, 0, -1):
            through[self.parent[node]] += through[node]
        return np.array(through, np.int64)

    def tree_saved_tokens(self) -> int:
        """Tokens saved if each node that a request needs is kept once: no sharing of prefixes in one bin saves more. Exact, O(nodes)."""
        through, depth = self.requests_through().tolist(), self.depth_tokens
        held = ((depth[node] - depth[self.parent[node]], through[node]) for node in range(1, len(depth)))
        return sum(tokens * max(requests - 1, 0) for tokens, requests in held)

    def to_networkx(self) -> nx.DiGraph[int]:
        """The tree as a directed graph from the root, for pictures: nodes have `depth_tokens` and `requests` (through them)."""
        import networkx as nx

        graph: nx.DiGraph[int] = nx.DiGraph()
        through = self.requests_through().tolist()
        graph.add_nodes_from((node, {"depth_tokens": self.depth_tokens[node], "requests": through[node]}) for node in range(len(through)))
        graph.add_edges_from((self.parent[node], node) for node in range(1, len(through)))
        return graph


@dataclass(frozen=True)
class FlatGroups:
    """One level of groups: `group` [request], −1 for none, numbered by their first requests; `overhead_tokens` [group]: the shared prefix.

    `saved_tokens` by these groups, `tree_saved_tokens` by the whole tree, both if all requests are in one bin.
    """

    group: IntArray
    overhead_tokens: IntArray
    saved_tokens: int
    tree_saved_tokens: int


def openable(tree: PrefixTree, size_tokens: IntArray, capacity_tokens: int, padding_multiple: int = 1) -> BoolArray:
    """The nodes [node] whose groups keep every request packable: a request through the node that fits a bin alone fits it with the prefix apart.

    `size_tokens` [request]: prompt and output. Without padding prefix and rest are what the request is alone, so that only a prefix longer than a
    bin is refused; a rest that is padded on its own may need more than the whole. O(nodes), with padding the sum of the paths' lengths.
    """
    allowed = np.array(tree.depth_tokens, np.int64) <= capacity_tokens
    if padding_multiple == 1:
        return allowed
    for end, size in zip(tree.end, size_tokens.tolist(), strict=True):
        if -(-size // padding_multiple) * padding_multiple > capacity_tokens:
            continue
        node = end
        while node:
            depth = tree.depth_tokens[node]
            if depth - (depth - size) // padding_multiple * padding_multiple > capacity_tokens:
                allowed[node] = False
            node = tree.parent[node]
    return allowed


@dataclass
class _Convex:
    """A convex function on 0 ... end of whole numbers that does not fall: from `low` with slope `low_slope`, which rises at each (x, rise).

    `high` is the value at `end`, `high_slope` the slope beyond the last breakpoint: both ends are at hand, so both can be cut off.
    """

    low: int
    low_slope: int
    high: int
    high_slope: int
    end: int
    rises: list[tuple[int, int]]

    def cut_to(self, end: int) -> None:
        """Forget what lies beyond `end`."""
        rises = self.rises
        while rises and rises[-1][0] >= end:
            x, rise = rises.pop()
            self.high -= self.high_slope * (self.end - x)
            self.high_slope -= rise
            self.end = x
        self.high -= self.high_slope * (self.end - end)
        self.end = end

    def add(self, other: _Convex) -> None:
        """Add a function on the same numbers; the other is used up."""
        self.low, self.high = self.low + other.low, self.high + other.high
        self.low_slope, self.high_slope = self.low_slope + other.low_slope, self.high_slope + other.high_slope
        few, many = sorted((self.rises, other.rises), key=len)
        if 8 * len(few) < len(many):
            for entry in few:
                insort(many, entry)
        else:
            many += few
            many.sort()  # two runs that are sorted: merged in linear time
        self.rises = many

    def raise_to(self, floor: int) -> int:
        """Make it the maximum with `floor`, which lies above `low` and not above `high`. Returns the first number where it was at least `floor`."""
        value, slope, here, passed = self.low, self.low_slope, 0, 0
        for x, rise in self.rises:
            if value + slope * (x - here) >= floor:
                break
            value, slope, here, passed = value + slope * (x - here), slope + rise, x, passed + 1
        steps = -((value - floor) // slope)
        first = here + steps
        jump = value + slope * steps - floor  # between whole numbers the function goes straight
        self.rises[:passed] = [(first - 1, jump), (first, slope - jump)] if jump else [(first, slope)]
        self.low, self.low_slope = floor, 0
        return first


def flatten(tree: PrefixTree, allowed: Sequence[bool] | BoolArray | None = None) -> FlatGroups:
    """The flat groups that save the most tokens, by the rule of the module: exact. `allowed` [node]: nodes that may be groups (None: all).

    A node is opened only where that saves more than leaving it closed, so each group has two requests or more (with one, closing it loses nothing).
    O(n log^2 n) steps for n shared nodes, and O(nodes).
    """
    through = tree.requests_through().tolist()
    may_open = [True] * len(through) if allowed is None else np.asarray(allowed, bool).tolist()
    opened_below = _thresholds(tree, through, may_open)
    group_node = [0] * len(through)
    depth = tree.depth_tokens
    for node in range(1, len(through)):
        above = group_node[tree.parent[node]]
        group_node[node] = node if depth[above] < opened_below[node] else above
    number: dict[int, int] = {}
    group = np.array([number.setdefault(group_node[end], len(number)) if group_node[end] else -1 for end in tree.end], np.int64)
    overhead = np.array([depth[node] for node in number], np.int64)
    members = np.bincount(group[group >= 0], minlength=len(overhead))
    saved = sum(tokens * (count - 1) for tokens, count in zip(overhead.tolist(), members.tolist(), strict=True))
    return FlatGroups(group, overhead, saved, tree.tree_saved_tokens())


def _thresholds(tree: PrefixTree, through: list[int], may_open: list[bool]) -> list[int]:
    """For each node: it is opened if the deepest open node above it is less deep than this (0: never)."""
    parent, depth = tree.parent, tree.depth_tokens
    threshold = [0] * len(parent)
    best: dict[int, _Convex] = {}
    # Requests that end at a node, or go on through a node that they share with nobody.
    own = through.copy()
    for node in range(1, len(parent)):
        if through[node] > 1:
            own[parent[node]] -= through[node]
    for node in range(len(parent) - 1, 0, -1):
        if through[node] < 2:
            continue
        count, deep = own[node], depth[node]
        value = best.pop(node, None)
        if value is None:
            value = _Convex(0, count, count * deep, count, deep, [])
        else:  # the children's sum
            value.low_slope, value.high_slope, value.high = value.low_slope + count, value.high_slope + count, value.high + count * deep
        opened = value.high - deep
        if may_open[node] and opened > value.low:
            threshold[node] = value.raise_to(opened)
        above = parent[node]
        if above:
            value.cut_to(depth[above])
            if above in best:
                best[above].add(value)
            else:
                best[above] = value
    return threshold


__all__ = ["FlatGroups", "PrefixTree", "flatten", "openable"]
