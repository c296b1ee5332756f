"""Batches in lockstep: by hand, and no slot or batch is ever too full."""

from __future__ import annotations

import numpy as np
import pytest

from headroom.solvers.slot_chains import earliest, linked
from headroom.solvers.slot_lockstep import lockstep


def test_batches_by_hand() -> None:
    # Four slots in groups of two: 9 and 8 begin in the first, 7 and 6 in the second, which ends first, at 7: 5 and 4.
    start, before, slot, batch = lockstep(np.array([4, 5, 6, 7, 8, 9]), np.ones(6, np.int64), 4, 10, 2)
    assert batch.tolist() == [3, 3, 2, 2, 1, 1]
    assert start.tolist() == [7, 7, 0, 0, 0, 0]
    assert sorted(slot[4:].tolist()) == [0, 1]
    assert sorted(before[:2].tolist()) == [2, 3]
    # With room for 10 tokens a job of 8 and one of 3 do not begin together: the lighter one that frees enough waits, and 4 takes its turn with it.
    _, _, _, batch = lockstep(np.array([9, 8, 4]), np.array([8, 3, 2]), 2, 10, 2)
    assert batch.tolist() == [1, 2, 2]


@pytest.mark.parametrize("seed", range(10))
def test_batches_fit_and_slots_take_one_job_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs, slots, cap = int(rng.integers(1, 80)), int(rng.integers(1, 9)), 60
    length, tokens = rng.integers(1, 50, jobs), rng.integers(0, 61, jobs)
    start, before, slot, batch = lockstep(length, tokens, slots, cap, int(rng.integers(1, 5)))
    assert np.bincount(batch, tokens).max() <= cap
    assert sorted(set(batch.tolist())) == list(range(1, int(batch.max()) + 1))
    later = before >= 0
    assert (slot[before[later]] == slot[later]).all()
    assert (start[later] >= start[before[later]] + length[before[later]]).all()
    # As chains they need no more steps than the batches said.
    chains = linked(length, tokens, slots, start, before, slot, batch, np.full(int(batch.max()), cap))
    assert int(earliest(chains)[-1]) <= int((start + length).max())
