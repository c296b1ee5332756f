"""Prefix trees flattened to one level: by hand, every assignment on tiny trees, the recursion over pairs of nodes on larger ones, real prompts."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom.instances.request_packing_prefixes import FlatGroups, PrefixTree, flatten, openable
from tests.import_samples import MOONCAKE, real_file


def tree_of(*requests: tuple[list[int], int], block_tokens: int = 10) -> PrefixTree:
    tree = PrefixTree()
    for blocks, tokens in requests:
        tree.add(blocks, tokens, block_tokens)
    return tree


def path_of(tree: PrefixTree, node: int) -> list[int]:
    """The nodes from `node` up to the root, the root left out."""
    found = []
    while node:
        found.append(node)
        node = tree.parent[node]
    return found


def saved_by(tree: PrefixTree, chosen: tuple[int, ...]) -> int:
    """Tokens saved if request j is in the group of node chosen[j], 0 for none: d(v) (n_v − 1) for each node chosen."""
    return sum(tree.depth_tokens[node] * (chosen.count(node) - 1) for node in set(chosen) if node)


def check(tree: PrefixTree, flat: FlatGroups, allowed: list[bool] | None = None) -> None:
    """The groups are groups: a node on the path of each member, at least two members, and what they save is what is said."""
    for g, overhead in enumerate(flat.overhead_tokens.tolist()):
        members = np.flatnonzero(flat.group == g).tolist()
        assert len(members) >= 2
        common = set.intersection(*(set(path_of(tree, tree.end[j])) for j in members))
        (node,) = [node for node in common if tree.depth_tokens[node] == overhead]  # one node of each depth on a path
        assert allowed is None or allowed[node]
    members_of = np.bincount(flat.group[flat.group >= 0], minlength=len(flat.overhead_tokens))
    assert flat.saved_tokens == int((flat.overhead_tokens * (members_of - 1)).sum())
    firsts = [flat.group.tolist().index(g) for g in range(len(flat.overhead_tokens))]
    assert firsts == sorted(firsts)
    assert flat.saved_tokens <= flat.tree_saved_tokens


def by_enumeration(tree: PrefixTree, allowed: list[bool] | None = None) -> int:
    ways = [[0, *(v for v in path_of(tree, end) if allowed is None or allowed[v])] for end in tree.end]
    return max(saved_by(tree, chosen) for chosen in itertools.product(*ways))


def by_tables(tree: PrefixTree) -> int:
    """The recursion over pairs (node, deepest open node above) without convexity: for each node a table over the depths above it."""
    ends = np.bincount(np.array(tree.end), minlength=len(tree.parent)).tolist()
    sums: dict[int, npt.NDArray[np.int64]] = {}
    total = 0
    for node in range(len(tree.parent) - 1, 0, -1):
        depths = np.array([0, *(tree.depth_tokens[v] for v in reversed(path_of(tree, node)))], np.int64)
        below = sums.pop(node, np.zeros(len(depths), np.int64)) + ends[node] * depths  # the last entry: the node itself is open
        best = np.maximum(below[:-1], below[-1] - depths[-1])
        above = tree.parent[node]
        if above:
            sums[above] = sums.get(above, 0) + best
        else:
            total += int(best[0])
    return total


def conversation(turns: int) -> PrefixTree:
    """Prompts of one conversation, each a block of 512 tokens longer than the last."""
    nodes = range(1, turns + 1)
    return PrefixTree(parent=[-1, *(k - 1 for k in nodes)], depth_tokens=[0, *(512 * k for k in nodes)], end=list(nodes))


# ---- By hand --------------------------------------------------------------------------------------------------------------------------


def test_one_shared_prefix() -> None:
    # Three prompts begin with blocks 1, 2 (20 tokens), the fourth with block 1 alone.
    tree = tree_of(([1, 2, 3], 30), ([1, 2, 4], 27), ([1, 2], 20), ([1, 5], 20))
    flat = flatten(tree)
    # A group of 20 tokens and three requests saves 40; with the fourth it could only be the 10 tokens of block 1: 3 · 10.
    assert flat.group.tolist() == [0, 0, 0, -1]
    assert (flat.overhead_tokens.tolist(), flat.saved_tokens) == ([20], 40)
    # The tree: block 1 for four (saves 30), block 2 for three (saves 20).
    assert flat.tree_saved_tokens == 50
    assert tree.nodes == 5
    assert tree.requests_through().tolist() == [4, 4, 3, 1, 1, 1]
    check(tree, flat)


def test_a_deep_group_inside_a_shallow_one() -> None:
    # Five prompts share 10 tokens; two of them share 40. Apart: 10 · 2 for three, 40 for two: 60. All five in one group: 40.
    tree = tree_of(*(([1, 10 + k], 20) for k in range(3)), *(([1, 2, 3, 4], 40) for _ in range(2)))
    flat = flatten(tree)
    assert (flat.group.tolist(), flat.overhead_tokens.tolist(), flat.saved_tokens) == ([0, 0, 0, 1, 1], [10, 40], 60)
    assert flat.tree_saved_tokens == 4 * 10 + 30
    check(tree, flat)


def test_nothing_shared_and_no_blocks() -> None:
    for tree in (tree_of(([1], 10), ([2], 10), ([], 5)), tree_of(([], 3)), tree_of()):
        flat = flatten(tree)
        assert set(flat.group.tolist()) <= {-1}
        assert (len(flat.overhead_tokens), flat.saved_tokens, flat.tree_saved_tokens) == (0, 0, 0)


def test_the_same_hash_elsewhere_or_of_other_length_is_another_block() -> None:
    assert flatten(tree_of(([1, 7], 20), ([2, 7], 20))).tree_saved_tokens == 0
    assert flatten(tree_of(([7], 10), ([7], 6))).tree_saved_tokens == 0
    assert flatten(tree_of(([7], 6), ([7], 6))).overhead_tokens.tolist() == [6]
    with pytest.raises(ValueError, match="a prompt of 10 tokens must have at most 1 blocks of 10 tokens"):
        tree_of(([1, 2], 10))


def test_a_prefix_longer_than_a_bin_is_no_group() -> None:
    tree = tree_of(([1, 2, 3], 30), ([1, 2, 3], 30), ([1, 2, 4], 30))
    size = np.array([31, 31, 31])
    assert flatten(tree, openable(tree, size, 31)).saved_tokens == 40  # 20 tokens for three, or 30 for two: 40 is more
    assert flatten(tree, openable(tree, size, 19)).overhead_tokens.tolist() == [10]
    assert flatten(tree, openable(tree, size, 9)).saved_tokens == 0


def test_padding_must_leave_every_request_packable() -> None:
    # Sizes 32, padded to multiples of 16: 32 alone. With the first 10 tokens apart 10 + pad(22) = 42; the first 20: 20 + pad(12) = 36.
    tree = tree_of(([1, 2, 3], 30), ([1, 2, 3], 30))
    size = np.array([32, 32])
    assert openable(tree, size, 42, 16).tolist() == [True, True, True, False]  # 30 + pad(2) = 46
    assert openable(tree, size, 36, 16).tolist() == [True, False, True, False]
    assert openable(tree, size, 46, 16).all()
    assert flatten(tree, openable(tree, size, 36, 16)).overhead_tokens.tolist() == [20]
    assert openable(tree, size, 31, 16).all()  # alone they do not fit either: nothing to lose


def test_networkx_graph() -> None:
    import networkx as nx

    tree = tree_of(([1, 2, 3], 30), ([1, 2, 4], 27), ([9], 4))
    graph = tree.to_networkx()
    assert nx.is_arborescence(graph)
    assert graph.nodes[2] == {"depth_tokens": 20, "requests": 2}
    saved = sum((graph.nodes[v]["depth_tokens"] - graph.nodes[u]["depth_tokens"]) * (graph.nodes[v]["requests"] - 1) for u, v in graph.edges)
    assert saved == tree.tree_saved_tokens() == 20


# ---- Against other methods ------------------------------------------------------------------------------------------------------------

PROMPTS = st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=4), st.integers(1, 10)), min_size=1, max_size=6)


def random_tree(rng: np.random.Generator, requests: int, depth: int, width: int, block_tokens: int) -> PrefixTree:
    tree = PrefixTree()
    for _ in range(requests):
        blocks = rng.integers(0, width, rng.integers(0, depth + 1)).tolist()
        own = int(rng.integers(0, block_tokens)) if blocks else 0
        tree.add(blocks, len(blocks) * block_tokens - own, block_tokens)
    return tree


@settings(max_examples=150, deadline=None)
@given(PROMPTS, st.integers(0, 2**32))
def test_no_assignment_saves_more(prompts: list[tuple[list[int], int]], seed: int) -> None:
    tree = tree_of(*((blocks, max(1, 10 * len(blocks) - tokens + 1) if blocks else 0) for blocks, tokens in prompts))
    flat = flatten(tree)
    check(tree, flat)
    assert flat.saved_tokens == by_enumeration(tree)
    allowed = (np.random.default_rng(seed).random(len(tree.parent)) < 0.6).tolist()
    restricted = flatten(tree, allowed)
    check(tree, restricted, allowed)
    assert restricted.saved_tokens == by_enumeration(tree, allowed)


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_the_recursion_over_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, int(rng.integers(2, 300)), int(rng.integers(2, 12)), int(rng.integers(1, 4)), int(rng.integers(1, 40)))
    flat = flatten(tree)
    check(tree, flat)
    assert flat.saved_tokens == by_tables(tree)


@pytest.mark.parametrize("seed", range(30))
def test_agrees_on_deep_trees_with_many_branches(seed: int) -> None:
    # Each node hangs on one of the newest, blocks have any length: the functions that meet at a branch have many breakpoints each.
    rng = np.random.default_rng(seed)
    count, parent, depth = 600, [-1], [0]
    for node in range(1, count + 1):
        parent.append(max(0, node - 1 - int(rng.geometric(0.2 if seed % 2 else 0.6))))
        depth.append(depth[parent[node]] + int(rng.integers(1, 100)))
    tree = PrefixTree(parent=parent, depth_tokens=depth, end=rng.integers(0, count + 1, int(rng.integers(2, 2000))).tolist())
    flat = flatten(tree)
    check(tree, flat)
    assert flat.saved_tokens == by_tables(tree)


def test_conversations() -> None:
    # Prompts 1, 2, 3 and 4 of one conversation: {3, 4} saves 3 blocks, {2, 3, 4} saves 4, {1, 2, 3, 4} 3, {1, 2} and {3, 4} 1 + 3 = 4.
    assert flatten(conversation(4)).saved_tokens == 4 * 512
    for turns in (1, 2, 3, 17, 300):
        check(conversation(turns), flatten(conversation(turns)))
        assert flatten(conversation(turns)).saved_tokens == by_tables(conversation(turns))


def test_deep_conversations_take_no_quadratic_time() -> None:
    # 20,000 turns: there are 2 · 10^8 pairs (node, open node above).
    tree, started = conversation(20_000), time.perf_counter()
    flat = flatten(tree)
    assert time.perf_counter() - started < 5
    assert flat.saved_tokens >= 512 * max(a * (20_000 - a) for a in range(20_000))  # the best single group: prompts from a on
    assert flat.tree_saved_tokens == 512 * sum(range(20_000))
    members = np.bincount(flat.group[flat.group >= 0])
    assert flat.saved_tokens == int((flat.overhead_tokens * (members - 1)).sum())


def test_mooncake_takes_seconds() -> None:
    lines = [json.loads(line) for line in real_file(MOONCAKE).read_text().splitlines()]
    started = time.perf_counter()
    tree = tree_of(*((line["hash_ids"], line["input_length"]) for line in lines), block_tokens=512)
    flat = flatten(tree)
    assert time.perf_counter() - started < 10
    # Counted apart from the tree: tokens of all blocks less those of the blocks that differ.
    tokens = {block: min(512, line["input_length"] - 512 * k) for line in lines for k, block in enumerate(line["hash_ids"])}
    assert flat.tree_saved_tokens == sum(line["input_length"] for line in lines) - sum(tokens.values())
    assert 0.9 * flat.tree_saved_tokens < flat.saved_tokens <= flat.tree_saved_tokens
    members = np.bincount(flat.group[flat.group >= 0])
    assert members.min() >= 2
    assert flat.saved_tokens == int((flat.overhead_tokens * (members - 1)).sum())
    assert flat.saved_tokens == by_tables(tree)
