"""Chains of jobs on slots: list schedules, longest paths, and what annealing must keep whole."""

from __future__ import annotations

import numpy as np
import pytest

from headroom.solvers.slot_annealing import anneal
from headroom.solvers.slot_chains import Chains, chains_of, earliest, listed, stretched


def consistent(chains: Chains) -> None:
    """Every job once, places linked both ways, nodes forwards, loads as the places say."""
    jobs, last = len(chains.length), chains.stages + 1
    assert sorted(chains.job[:jobs].tolist()) == list(range(jobs))
    assert (chains.job[jobs:] == -1).all()
    assert (chains.start < chains.end).all()
    assert (chains.start[jobs:] == 0).all()
    follows = chains.after >= 0
    assert (chains.before[chains.after[follows]] == np.flatnonzero(follows)).all()
    assert (chains.start[chains.after[follows]] == chains.end[follows]).all()
    assert (chains.end[~follows] == last).all()
    assert len(np.unique(chains.after[follows])) == jobs
    load = np.zeros(last + 1, np.int64)
    np.add.at(load, chains.start[:jobs], chains.tokens[chains.job[:jobs]])
    assert load.tolist() == chains.load.tolist()
    assert (np.diff(chains.time) >= 0).all()


def lacking(chains: Chains) -> int:
    steps = np.where(chains.job >= 0, chains.length[chains.job], 0)
    return int(np.maximum(0, steps - (chains.time[chains.end] - chains.time[chains.start])).sum())


def made(seed: int, jobs: int, slots: int, stages: int) -> Chains:
    rng = np.random.default_rng(seed)
    length, tokens = rng.integers(1, 60, jobs), rng.integers(0, 50, jobs)
    caps = np.full(stages, -(-int(tokens.sum()) // stages) + 3)
    return chains_of(length, tokens, slots, np.argsort(-length, kind="stable"), caps)


def test_a_list_schedule_by_hand() -> None:
    # Two slots: 5 and 4 start at 0; 3 starts at 4 in the second slot, 1 at 5 in the first.
    start, before, slot = listed(np.array([5, 4, 3, 1]), 2, np.arange(4))
    assert start.tolist() == [0, 0, 4, 5]
    assert before.tolist() == [-1, -1, 1, 0]
    assert slot[2] == slot[1] != slot[0] == slot[3]


def test_earliest_times_by_hand() -> None:
    # One stage a job and slot: jobs of 5 and 4 steps at stages 1 and 2 (both at 0), 3 after the second and 1 after the first.
    chains = chains_of(np.array([5, 4, 3, 1]), np.array([1, 1, 1, 1]), 2, np.arange(4), np.full(4, 1))
    assert chains.start_of().tolist() == [1, 2, 3, 4]
    # Stage 3 waits for 4, stage 4 for 5; the run ends at max(4 + 3, 5 + 1).
    assert earliest(chains).tolist() == [0, 0, 0, 4, 5, 7]


@pytest.mark.parametrize("seed", range(20))
def test_annealing_keeps_chains_whole_and_lacks_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chains = made(seed, int(rng.integers(1, 60)), int(rng.integers(1, 9)), int(rng.integers(1, 20)))
    consistent(chains)
    times = earliest(chains)
    total = -(-int(chains.length.sum()) // (len(chains.start) - len(chains.length)))
    squeezed = stretched(chains, times, max(1, (total + int(times[-1])) // 2))
    kept = chains.job.copy(), chains.end.copy(), chains.time.copy()
    before = lacking(squeezed)
    energy = anneal(squeezed, 20_000, 5.0, 0.05, 0.3, 10, seed)
    consistent(squeezed)
    assert lacking(squeezed) <= before + 3  # annealing may end a little above where it began
    assert energy >= lacking(squeezed) - 1e-6
    # What was stretched was a copy.
    assert all((now == then).all() for now, then in zip((chains.job, chains.end, chains.time), kept, strict=True))
    # At their earliest times all jobs fit, and no later than the lacking steps say.
    after = earliest(squeezed)
    assert int(after[-1]) <= int(squeezed.time[-1]) + lacking(squeezed)
    steps = np.where(squeezed.job >= 0, squeezed.length[squeezed.job], 0)
    assert (after[squeezed.end] - after[squeezed.start] >= steps).all()


def test_energy_is_what_the_places_say() -> None:
    chains = made(3, 40, 5, 6)
    energy = anneal(chains, 0, 1.0, 0.1, 0.5, 5, 0)
    steps = np.where(chains.job >= 0, chains.length[chains.job], 0)
    lack = np.maximum(0, steps - (chains.time[chains.end] - chains.time[chains.start]))
    over = chains.load[1:-1] - chains.cap[1:-1]
    expected = float((lack + 0.1 * lack**2).sum()) + 0.5 * float((over[over > 0] + 8).sum())
    assert energy == pytest.approx(expected)
    after = anneal(chains, 5000, 1.0, 0.1, 0.5, 5, 0)
    again = anneal(chains, 0, 1.0, 0.1, 0.5, 5, 0)
    # The sum of all changes is the difference of the energies.
    assert after == pytest.approx(again)


def test_jobs_that_fit_exactly_are_found() -> None:
    # Slots of 100 steps, each cut at three of nine stages: lengths that fit without a step to spare, shuffled.
    rng = np.random.default_rng(0)
    times = np.array([0, 13, 22, 37, 41, 58, 66, 79, 90])
    length = np.concatenate([np.diff([0, *np.sort(rng.choice(times[1:], 3, replace=False)), 100]) for _ in range(30)])
    length = rng.permutation(length)
    chains = chains_of(length, np.ones(len(length), np.int64), 30, np.argsort(-length, kind="stable"), np.full(12, 60))
    best = int(earliest(chains)[-1])
    first = best
    for k in range(6):
        chains = stretched(chains, earliest(chains), 100)
        anneal(chains, 300_000, 10.0, 0.1, 0.1, 20, k, 0.1)
        best = min(best, int(earliest(chains)[-1]))
    assert first > 110
    assert best <= 104
