"""Sweeps of capacities and what memory is worth: against instances solved by hand, and against bounds at other capacities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headroom import plots
from headroom.bounds.kv_tiering import lagrangian_bound
from headroom.bounds.kv_tiering_search import ROUNDS, Dual, search
from headroom.cli_sweep import values_of
from headroom.cli_sweep_text import as_text
from headroom.formulations.kv_tiering import evaluate, make_plan
from headroom.instances.errors import InputError
from headroom.instances.kv_tiering import KvTiering
from headroom.instances.kv_tiering_presets import make
from headroom.solvers.kv_tiering_sweeps import (
    GIB,
    bounds_over,
    capacity,
    climb_from,
    limits,
    memory_value,
    most_alive_bytes,
    sensitivity,
    with_capacity,
)
from headroom.sweep import sweep
from headroom.sweep_solver import Solver
from headroom.sweep_types import Point
from tests.kv_tiering_cases import reads, tiny, two_tiers

NOTHING = np.zeros(0, np.int64)


def hand(room: float = 8.0, **changes: Any) -> KvTiering:
    """Three blocks of 4 bytes, all read in both steps: m of them below cost max(4 (3 - m) / 10, 4 m / 2) seconds a step.

    With room for 0, 1, 2, 3 blocks above the best a step is 6, 4, 2 and 1.2 s (moving gains nothing: it reads and writes besides).
    """
    return KvTiering(name="by hand", **(two_tiers(room, block_bytes=[4.0] * 3, reads=reads([0, 1, 2], [0, 1, 2])) | changes))


BEST_S = {0.0: 12.0, 4.0: 8.0, 8.0: 4.0, 12.0: 2.4}


def random_rows(seed: int) -> KvTiering:
    return make("small-drift", np.random.default_rng(seed), {"blocks": 60, "steps": 20})


# ---- The quantity ---------------------------------------------------------------------------------------------------------------------------


def test_capacity_of_a_tier() -> None:
    quantity = capacity(hand(), "fast")
    assert (quantity.unit, quantity.effect, quantity.current, quantity.unlimited) == ("bytes", "relaxes", 8.0, 12.0)
    variant = quantity.checked(5.0)
    assert isinstance(variant, KvTiering)
    assert variant.capacity.tolist() == [5.0, math.inf]
    assert variant == hand(5.0)
    plan = make_plan(np.array([0, 1, 1]), np.array([1]), np.array([1]), np.array([0]))
    assert quantity.used is not None
    assert quantity.used(plan) == 8.0
    assert quantity.fleet(plan) == {"moves": 1.0, "used_bytes": 8.0}
    # Exactly at what it uses a plan is feasible, and below it is not: "relaxes".
    assert evaluate(quantity.checked(8.0), plan).feasible
    assert not evaluate(quantity.checked(7.9), plan).feasible
    # The only bounded tier needs no name.
    assert capacity(hand(), "").index == "fast"


@pytest.mark.parametrize("name", ["slow", "gpu", "FAST"])
def test_only_bounded_tiers_have_a_capacity(name: str) -> None:
    with pytest.raises(InputError, match=r"^capacity: must name a tier with a capacity, one of \['fast'\], got"):
        capacity(hand(), name)


def test_of_several_tiers_one_must_be_named() -> None:
    three = make("toy-three-tier", np.random.default_rng(0), {})
    with pytest.raises(InputError, match="one of"):
        capacity(three, "")
    assert [quantity.index for quantity in limits(three)] == ["hbm", "dram"]
    one = KvTiering(name="one", tiers=[two_tiers(0)["tiers"][1]], block_bytes=[1.0], reads=reads([0]))
    assert limits(one) == ()
    with pytest.raises(InputError, match="the instance sets no limit"):
        sweep(one, "shadow")


def test_most_alive_bytes() -> None:
    # Steps 0 to 3 hold {0}, {0, 1}, {1, 2}, {2}: 1, 3, 6 and 4 bytes.
    data = two_tiers(1.0, block_bytes=[1.0, 2.0, 4.0], birth_step=[0, 1, 2], death_step=[2, 3, 4], reads=reads([0], [1], [2], [2]))
    assert most_alive_bytes(KvTiering(name="lives", **data)) == 6.0


@pytest.mark.parametrize("room", [6e9, 3 * 2.0**20, 5.0])
def test_numbers_are_shown_in_a_unit_that_can_be_read(room: float) -> None:
    quantity = capacity(hand(room), "fast")
    assert quantity.shown == {6e9: (GIB, "GiB"), 3 * 2.0**20: (2.0**20, "MiB"), 5.0: (1.0, "bytes")}[room]
    assert quantity.step == max(quantity.shown[0], 4.0)  # never less than a block


# ---- Sweeps ---------------------------------------------------------------------------------------------------------------------------------


def test_sweep_by_hand() -> None:
    found = sweep(hand(), "capacity", "fast", list(BEST_S), method="highs")
    assert {point.at["capacity"]: point.objective for point in found.points} == pytest.approx(BEST_S)
    # Without values: from nothing to all that is used, in whole blocks.
    default = sweep(hand(), "capacity", method="highs")
    assert {point.at["capacity"]: point.objective for point in default.points} == pytest.approx(BEST_S)
    assert (default.kind, default.current, default.objective_unit) == ("capacity", 8.0, "s")


def test_text_gives_seconds_by_the_shown_unit() -> None:
    big = hand(8.0 * GIB, block_bytes=[4.0 * GIB] * 3)
    text = as_text(sweep(big, "capacity", "fast", [value * GIB for value in BEST_S], method="highs"))
    assert "now 8 GiB" in text
    assert "saves [s/GiB]" in text
    rows = [line.split() for line in text.splitlines() if "highs" in line and "s/GiB" not in line][:4]
    assert [row[0] for row in rows] == ["0", "4", "8", "12"]
    # As by hand, all times 2^30: a block of 4 GiB above saves 4 x 2^30 s.
    assert float(rows[0][6].replace(",", "")) == pytest.approx(GIB, rel=1e-5)
    assert float(rows[2][6]) == pytest.approx(0.4 * GIB, rel=1e-5)


def test_shadow_prices_by_hand() -> None:
    found = sweep(hand(), "shadow", method="highs")
    (price,) = found.shadow_prices
    assert (price.constraint, price.index, price.limit, price.used, price.step) == ("capacity", "fast", 8.0, 8.0, 4.0)
    assert price.relaxed is not None
    assert price.tightened is not None
    assert (price.relaxed.value, price.tightened.value) == pytest.approx((1.6, 4.0))
    text = as_text(found)
    assert "more saves" in text
    assert "4 bytes" in text
    assert price.record()["step"] == 4.0


def test_heuristics_can_be_swept() -> None:
    found = sweep(random_rows(0), "capacity", values=[10, 20, 30], method="belady")
    assert all(point.plan is not None and point.lp_dual is not None and point.lp_dual >= 0 for point in found.points)
    _, ax = plots.figure()
    plots.capacity_sweep(ax, found)  # no bound: nothing is drawn for it
    assert [line.get_label() for line in ax.lines if not str(line.get_label()).startswith("_")] == ["best plan found"]


def test_plot_of_a_sweep() -> None:
    found = sweep(hand(), "capacity", "fast", list(BEST_S), method="highs")
    _, ax = plots.figure()
    plots.capacity_sweep(ax, found)
    (drawn,) = [line for line in ax.lines if line.get_label() == "best plan found"]
    assert np.asarray(drawn.get_xydata()).tolist() == [pytest.approx(item) for item in BEST_S.items()]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("capacity of fast [bytes]", "time [s]")
    _, ax = plots.figure()
    plots.shadow_price_bars(ax, sweep(hand(), "shadow", method="highs"))
    assert ax.get_yticklabels()[0].get_text() == "capacity of fast\n(now 8 bytes, step 4 bytes)"


def test_sizes_on_the_command_line() -> None:
    assert values_of("1KiB,2e3,5", "capacity", sizes=True) == [5, 1024, 2000]
    assert values_of("0:4GiB:3", "capacity", sizes=True) == [0, 2 * GIB, 4 * GIB]
    for wrong in ("1XB", "1GiB:2GiB", "1GiB:2GiB:2GiB", "", "nan", "inf"):
        with pytest.raises(InputError, match=r"^capacity: must be a list such as 1GiB,2GiB"):
            values_of(wrong, "capacity", sizes=True)
    with pytest.raises(InputError):
        values_of("1KiB", "price")  # sizes are for bytes alone


# ---- What memory is worth -------------------------------------------------------------------------------------------------------------------


def test_memory_value_by_hand() -> None:
    """Room for two of three blocks, a linear relaxation without cuts: x bytes below take max((12 - x) / 10, x / 2) a step, x >= 4, and x = 4 is above
    the crossing (x = 2), so that a byte more saves 1/2 s in each of the two steps."""
    instance = hand()
    with Dual(instance, cuts=False) as dual:
        value, at = search(dual)
    assert value == pytest.approx(4.0, rel=1e-3)
    each, total = memory_value(instance, at)
    assert each.shape == (2, 1)
    assert total[0] == pytest.approx(1.0 * GIB, rel=0.02)
    assert each[:, 0].sum() == pytest.approx(total[0])
    (record,) = sensitivity(instance, at)
    assert (record["constraint"], record["index"], record["unit"]) == ("capacity", "fast", "s/byte")  # the tier has a few bytes
    assert record["per_byte_s"] == pytest.approx(record["shadow_price"]) == pytest.approx(total[0] / GIB)
    dual_s = capacity(instance, "fast").dual
    assert dual_s is not None
    # With the cuts the bound has a kink here: a block less costs 1 s a byte, a block more saves 0.4 s a byte. Any price between is right.
    found = dual_s(instance)
    assert found is not None
    assert 0.39 <= found <= 1.01


def test_a_tier_without_room_has_no_price() -> None:
    empty = hand(3.0)  # no block fits
    with Dual(empty) as dual:
        at = dual.start()
    assert np.isnan(memory_value(empty, at)[1]).all()
    assert sensitivity(empty, at) == []
    dual_s = capacity(empty, "fast").dual
    assert dual_s is not None
    assert dual_s(empty) is None


def test_long_traces_are_not_searched_for_multipliers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headroom.solvers.kv_tiering_sweeps.MOST_WORK", 10)
    dual_s = capacity(hand(), "fast").dual
    assert dual_s is not None
    assert dual_s(hand()) is None


@pytest.mark.parametrize("seed", range(3))
def test_multipliers_bound_every_capacity(seed: int) -> None:
    """The value at one capacity and the price there are a line below the bound at every other: no bound falls below 0."""
    instance = random_rows(seed)
    found = bounds_over(instance, "", [6.0, 12.0, 18.0, 24.0])
    assert [item[0] for item in found] == [6.0, 12.0, 18.0, 24.0]
    for room, value, at in found:
        variant = with_capacity(instance, 0, room)
        assert lagrangian_bound(variant, at).value == value
        price = memory_value(variant, at)[1][0] / GIB
        for other, _, _ in found:
            there = lagrangian_bound(with_capacity(instance, 0, other), at).value
            assert there == pytest.approx(max(value - price * (other - room), 0.0), rel=1e-6, abs=1e-6)
    values = [item[1] for item in found]
    assert values == sorted(values, reverse=True)


def test_bounds_over_are_no_worse_than_cold_ones() -> None:
    instance = random_rows(7)
    for room, value, _ in bounds_over(instance, "fast", [18.0, 0.0, 12.0]):
        with Dual(with_capacity(instance, 0, room)) as dual:
            cold, _ = search(dual, rounds=ROUNDS[:2])
        assert value >= cold * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_climbing_never_loses(seed: int) -> None:
    instance = KvTiering(name="tiny", **tiny(seed))
    with Dual(instance) as dual:
        begun, at = search(dual, rounds=ROUNDS[:1])
        value, climbed = climb_from(dual, at, 1)
        assert value >= begun
        assert dual.at(climbed)[0] == pytest.approx(value, rel=1e-12)


def test_bounds_over_refuses() -> None:
    with pytest.raises(InputError, match="must name a tier"):
        bounds_over(hand(), "slow", [1.0])
    with pytest.raises(InputError, match="capacity of fast: must be finite and at least 0, got -1"):
        bounds_over(hand(), "fast", [-1.0])


def test_a_plan_for_less_room_serves_where_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solves cut short by a limit must not make the answer worse with capacity: here only the least room is solved at all."""
    instance = hand()
    tier = instance.tiers[0].name
    real = Solver._solved

    def cut_short(self: Solver, at: Any, variant: Any, start: Any, floor: Any, fleet: Any) -> Point:
        if at["capacity"] == 4.0:
            return real(self, at, variant, None, floor, fleet)
        everything_slow = make_plan(np.full(variant.blocks, 1), NOTHING, NOTHING, NOTHING)
        objective = evaluate(variant, everything_slow).objective
        return Point(at, objective, floor.bound, floor.certified, "solved", "none", "time_limit", everything_slow)

    monkeypatch.setattr(Solver, "_solved", cut_short)
    found = sweep(instance, "capacity", tier, [4.0, 8.0, 12.0])
    assert [point.objective for point in found.points] == pytest.approx([8.0] * 3)  # one block above: 4 s a step, where all below take 6 s
