"""Sweeps: breakpoints by hand, concavity and monotonicity against enumeration, warm answers equal cold ones, the verb, its errors and its ends."""

from __future__ import annotations

import itertools
import json
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headroom as package
from headroom.cli import run_command
from headroom.cli_sweep_text import as_text
from headroom.formulations.gpu_selection import EpochPlan, ReplicaPlan, evaluate
from headroom.formulations.types import SolveParams
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.run import ContradictionError, resolve_method, run
from headroom.solvers.concave_envelope import Envelope, Line
from headroom.solvers.gpu_selection_sweeps import dominates, price, rate
from headroom.sweep import Sweep, sweep, sweep_slo
from headroom.sweep_solver import Floor, Solver
from headroom.sweep_types import Point
from tests.command import headroom, one_document, start
from tests.gpu_selection_cases import tiny
from tests.import_samples import write_catalogue, write_table, write_trace
from tests.oracles.gpu_selection import Oracle

HAND: dict[str, Any] = {
    "work": [{"name": "w", "rate_per_s": 10.0}],
    "gpus": [{"name": "A", "price_usd_per_h": 1.5}, {"name": "B", "price_usd_per_h": 4.0}],
    "throughput_per_s": [[1.0], [4.0]],
}
"""a replicas of A (1 request/s) and b of B (4 requests/s, 4 USD/h) serve 10 requests/s when a + 4b >= 10: the fleets worth a look are (10, 0),
(6, 1), (2, 2), (0, 3). At price p of A they cost 10p, 6p + 4, 2p + 8, 12. The first three meet at p = 1, the third meets the last at p = 2:
10 A up to 1, 2 A + 2 B from 1 to 2, 3 B from there; (6, 1) is never alone the best."""

MIXED: dict[str, Any] = {
    "work": [{"name": f"w{i}", "rate_per_s": r} for i, r in enumerate((6.0, 3.0, 15.0, 6.0))],
    "gpus": [
        {"name": "L4-TP1", "price_usd_per_h": 0.8, "pool": "L4", "max_count": 8},
        {"name": "H100-TP1", "price_usd_per_h": 3.0, "pool": "H100", "min_count": 1},
        {"name": "H100-TP2", "price_usd_per_h": 6.0, "pool": "H100", "gpus_per_replica": 2},
    ],
    "pools": [{"name": "L4", "max_gpus": 7}, {"name": "H100", "max_gpus": 6}],
    "throughput_per_s": [[1.5, None, 3.0, 1.1], [7.0, 2.0, 11.0, 6.0], [13.0, 6.0, 24.0, 13.0]],
    "max_utilisation": 0.9,
}


@pytest.fixture(scope="module")
def hand() -> GpuSelection:
    return GpuSelection(name="by hand", **HAND)


@pytest.fixture(scope="module")
def mixed() -> GpuSelection:
    return GpuSelection(name="mixed", **MIXED)


# --- the envelope ---------------------------------------------------------------------------------------------------------------


def least_lines(lines: list[Line], start: float, end: float) -> list[tuple[float, float, Line]]:
    """The lower envelope by brute force: every crossing cuts the interval; the line that is least in the middle of a part is least on it."""
    cuts = {start, end}
    for one, other in itertools.combinations(lines, 2):
        if one.slope != other.slope:
            at = (other.intercept - one.intercept) / (one.slope - other.slope)
            if start < at < end:
                cuts.add(at)
    parts: list[tuple[float, float, Line]] = []
    for low, high in itertools.pairwise(sorted(cuts)):
        least = min(lines, key=lambda line, low=low, high=high: line.at(0.5 * (low + high)))  # type: ignore[misc]
        if parts and parts[-1][2] is least:
            parts[-1] = (parts[-1][0], high, least)
        else:
            parts.append((low, high, least))
    return parts


@pytest.mark.parametrize("seed", range(40))
def test_envelope_finds_every_piece_with_few_questions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = [Line(float(a), float(b), k) for k, (a, b) in enumerate(zip(rng.integers(0, 400, 30), rng.integers(0, 40, 30), strict=True))]
    envelope, questions = Envelope(0.5, 20.0), 0
    while (at := envelope.question()) is not None:
        best = min(lines, key=lambda line: line.at(at))
        envelope.add(at, best.at(at), best)
        questions += 1
        assert questions < 100
    expected = [part for part in least_lines(lines, 0.5, 20.0) if part[1] - part[0] > 1e-9]
    pieces = envelope.pieces()
    assert [(piece.line.intercept, piece.line.slope) for piece in pieces] == [(line.intercept, line.slope) for _, _, line in expected]
    assert [piece.start for piece in pieces] == pytest.approx([low for low, _, _ in expected])
    assert max(piece.gap for piece in pieces) <= 1e-6
    assert questions <= 2 * len(expected) + 1


@pytest.mark.parametrize("seed", range(10))
def test_envelope_with_loose_bounds_keeps_the_gap_honest(seed: int) -> None:
    # Bounds 10 % below the optimum: nothing can be closed, but what is claimed must hold everywhere.
    rng = np.random.default_rng(seed)
    lines = [Line(float(a), float(b)) for a, b in rng.uniform(1, 100, (12, 2))]
    envelope = Envelope(0.0, 5.0)
    while (at := envelope.question()) is not None:
        best = min(lines, key=lambda line: line.at(at))
        envelope.add(at, 0.9 * best.at(at), best)
    for v in np.linspace(0, 5, 101):
        optimum = min(line.at(v) for line in lines)
        assert envelope.lower(v) <= optimum * (1 + 1e-12)
        assert envelope.upper(v) >= optimum * (1 - 1e-12)
    for piece in envelope.pieces():
        for v in np.linspace(piece.start, piece.end, 7):
            assert piece.line.at(v) * (1 - piece.gap) <= envelope.lower(v) * (1 + 1e-9)


def test_envelope_of_nothing() -> None:
    envelope = Envelope(1.0, 2.0)
    envelope.add(1.0, math.inf, None)
    envelope.add(2.0, math.inf, None)
    assert envelope.question() is None
    assert envelope.pieces() == []


# --- prices ---------------------------------------------------------------------------------------------------------------------


def test_breakpoints_by_hand(hand: GpuSelection) -> None:
    found = sweep(hand, "price", "A", [0.0, 0.5, 1.5, 3.0])
    assert found.breakpoints == pytest.approx((1.0, 2.0))
    assert [dict(piece.fleet) for piece in found.pieces] == [{"A": 10.0}, {"A": 2.0, "B": 2.0}, {"B": 3.0}]
    assert [(piece.intercept, piece.slope) for piece in found.pieces] == [(0.0, 10.0), (8.0, 2.0), (12.0, 0.0)]
    assert max(piece.certified_gap for piece in found.pieces) <= 1e-6
    assert found.solves <= 7  # 2k + 1 for three pieces
    at = {point.at["price"]: point for point in found.points}
    assert {value: point.objective for value, point in at.items()} == pytest.approx({0.0: 0, 0.5: 5, 1.0: 10, 1.5: 11, 2.0: 12, 3.0: 12})
    assert {value: point.role for value, point in at.items() if value in (1.0, 1.5, 2.0)} == {1.0: "breakpoint", 1.5: "value", 2.0: "breakpoint"}
    # Neither 0.5 nor 1.5 was solved: the pieces answer them.
    assert [at[value].how for value in (0.5, 1.5)] == ["reused", "reused"]
    assert at[0.5].by == "concavity"
    assert found.current == 1.5
    assert found.objective_unit == "USD/h"


def test_one_price_alone(hand: GpuSelection) -> None:
    found = sweep(hand, "price", "A", [1.5])
    assert found.solves == 1
    assert [point.objective for point in found.points] == pytest.approx([11.0])
    assert found.breakpoints == ()


def test_price_of_a_gpu_moves_all_its_types(mixed: GpuSelection) -> None:
    for instance in (mixed, without_pools(mixed)):  # by the pool's name, and by the types' names
        quantity = price(instance, "H100")
        assert quantity.unit == "USD/h per GPU"
        assert quantity.current == 3.0
        assert list(quantity.vary(5.0).price_usd_per_h) == [0.8, 5.0, 10.0]
    assert price(mixed, "H100-TP2").unit == "USD/h per replica"
    assert list(price(mixed, "H100-TP2").vary(5.0).price_usd_per_h) == [0.8, 3.0, 5.0]


def without_pools(instance: GpuSelection) -> GpuSelection:
    return instance.replace(pools=[], gpus=[gpu.model_dump() | {"pool": None} for gpu in instance.gpus])


@pytest.mark.parametrize("seed", range(60))
def test_price_curve_against_enumeration(seed: int) -> None:
    data = tiny(seed)
    instance = GpuSelection(**data)
    name = data["gpus"][0]["name"]
    found = sweep(instance, "price", name, [0.0, 6.0])

    def cheapest(value: float) -> float:
        gpus = [gpu | ({"price_usd_per_h": value} if gpu["name"] == name else {}) for gpu in data["gpus"]]
        return float(Oracle(data | {"gpus": gpus}).cheapest())

    if not found.pieces:
        assert cheapest(1.0) == math.inf
        assert {point.status for point in found.points} == {"infeasible"}
        return
    slopes = [piece.slope for piece in found.pieces]
    assert slopes == sorted(slopes, reverse=True), "concave: slopes fall"
    for piece in found.pieces:
        for value in (piece.start, 0.5 * (piece.start + piece.end), piece.end):
            assert piece.cost(value) == pytest.approx(cheapest(value), rel=2e-6, abs=1e-9)


def test_prices_do_not_change_what_is_feasible(hand: GpuSelection) -> None:
    broken = hand.replace(throughput_per_s=[[None], [None]])
    found = sweep(broken, "price", "A", [1.0, 2.0])
    assert found.solves == 1
    assert found.pieces == ()
    assert [(point.status, point.by) for point in found.points] == [("infeasible", "closed_form"), ("infeasible", "feasibility")]


def test_a_time_limit_leaves_gaps_that_hold(mixed: GpuSelection) -> None:
    # Methods without bounds of their own: the answers must still be bracketed, and a plan found at one price is used at every other.
    found = sweep(mixed, "price", "H100", [1.0, 2.0, 3.0, 4.0, 9.0], method="greedy", params=SolveParams(time_limit_s=5))
    exact = sweep(mixed, "price", "H100", [1.0, 2.0, 3.0, 4.0, 9.0])
    assert {point.status for point in found.points} == {"feasible"}
    for heuristic, optimal in zip(values_only(found), values_only(exact), strict=True):
        assert heuristic.objective >= optimal.objective * (1 - 1e-6)
        assert heuristic.bound == -math.inf
    costs = [point.objective for point in values_only(found)]
    for point in values_only(found):  # no plan that the sweep knows is better anywhere than what it reports there
        line = price(mixed, "H100").line
        assert line is not None
        assert point.plan is not None
        intercept, slope = line(point.plan)
        assert all(cost <= intercept + slope * value + 1e-9 for cost, value in zip(costs, (1.0, 2.0, 3.0, 4.0, 9.0), strict=True))


def values_only(found: Sweep) -> list[Point]:
    return [point for point in found.points if point.role == "value"]


def test_lines_of_the_other_modes(hand: GpuSelection) -> None:
    # Per replica: 2 A with 4 slices each beside 1 B with 2 cost 2p + 4. Epochs: 2 h of 5 A and 1 h of 2 A beside 1 B in each cost 12p + 12, and
    # 3 A started anew cost 3 · 0.5; prices leave starts alone.
    packed = hand.replace(slices=10, packing="per_replica", throughput_per_s=[[4.0], [10.0]])
    groups = [{"gpu": "A", "slices": {"w": 4}, "replicas": 2}, {"gpu": "B", "slices": {"w": 2}, "replicas": 1}]
    plan = ReplicaPlan(assignment=groups)
    quantity = price(packed, "A")
    assert quantity.line is not None
    assert quantity.line(plan) == pytest.approx((4.0, 2.0))
    assert evaluate(packed.replace(), plan).objective == pytest.approx(4.0 + 2.0 * 1.5)
    timed = hand.replace(epochs={"epoch_s": 7200.0, "rate_per_s": [[9.0], [6.0], [9.0]], "start_cost_usd": [0.5, 0.0]})
    fleets = [{"A": 5, "B": 1}, {"A": 2, "B": 1}, {"A": 5, "B": 1}]
    shares = [[[5 / 9], [4 / 9]], [[2 / 6], [4 / 6]], [[5 / 9], [4 / 9]]]
    over = EpochPlan(count=fleets, share=shares)
    quantity = price(timed, "A")
    assert quantity.line is not None
    intercept, slope = quantity.line(over)
    assert (intercept, slope) == pytest.approx((2 * 4.0 * 3 + 1.5, 2 * 12.0))
    assert evaluate(timed, over).objective == pytest.approx(intercept + 1.5 * slope)
    assert dict(quantity.fleet(over)) == pytest.approx({"A": 4.0, "B": 1.0})
    scaled = rate(timed, "").vary(16.0)
    assert scaled.epochs is not None
    assert scaled.epochs.rate_per_s.ravel().tolist() == pytest.approx([18.0, 12.0, 18.0])  # the mean was 8


MODES: dict[str, tuple[dict[str, Any], list[float], list[tuple[float, float]]]] = {
    # One slice is 1 request/s, of which A holds one and B four: as in the pooled case.
    "per_replica": ({"slices": 10, "packing": "per_replica"}, [1.0, 2.0], [(0.0, 10.0), (8.0, 2.0), (12.0, 0.0)]),
    # Starts are free, so each hour stands alone. 10/s as above; 2/s: 2 A or 1 B, 2p or 4; 7/s: 7 A, 3 A + 1 B or 2 B, 7p, 3p + 4 or 8.
    "epochs": (
        {"epochs": {"epoch_s": 3600.0, "rate_per_s": [[10.0], [2.0], [7.0]], "start_cost_usd": [0.0, 0.0]}},
        [1.0, 4 / 3, 2.0],
        [(0.0, 19.0), (12.0, 7.0), (16.0, 4.0), (24.0, 0.0)],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_prices_of_the_other_modes(mode: str, hand: GpuSelection) -> None:
    changes, breakpoints, lines = MODES[mode]
    instance = hand.replace(**changes)
    try:
        resolve_method(instance, "auto")
    except InputError as error:
        pytest.skip(str(error))
    found = sweep(instance, "price", "A", [0.1, 3.0], params=SolveParams(time_limit_s=60))
    assert found.breakpoints == pytest.approx(breakpoints)
    assert [(piece.intercept, piece.slope) for piece in found.pieces] == [pytest.approx(line) for line in lines]
    assert max(piece.gap for piece in found.pieces) <= 1e-6
    by_rate = sweep(instance, "rate", values=[5.0, 7.0], params=SolveParams(time_limit_s=60))
    assert [point.status for point in by_rate.points] == ["optimal", "optimal"]
    assert by_rate.points[0].objective <= by_rate.points[1].objective


def test_text_says_what_a_fleet_is_and_what_is_proved(hand: GpuSelection) -> None:
    proved = as_text(sweep(hand, "price", "A", [0.1, 3.0]))
    assert re.search(r"certified gap +status +best fleet$", proved, re.MULTILINE)
    assert re.search(r"optimal +10 x A$", proved, re.MULTILINE)
    assert "mean" not in proved + "unproved"
    # A heuristic proves nothing; its pieces are the best fleets found.
    guessed = as_text(sweep(hand, "price", "A", [0.1, 3.0], method="single_type"))
    assert re.search(r"unproved +10 x A$", guessed, re.MULTILINE)
    over_time = hand.replace(**MODES["epochs"][0])
    averaged = as_text(sweep(over_time, "price", "A", [0.1, 3.0], params=SolveParams(time_limit_s=60)))
    assert re.search(r"status +best fleet \(mean over epochs\)$", averaged, re.MULTILINE)
    assert re.search(r"optimal +6.33333 x A$", averaged, re.MULTILINE)
    assert len(re.findall(r"fleet \(mean over epochs\)$", averaged, re.MULTILINE)) == 2
    capped = over_time.replace(gpus=[gpu | {"max_count": 20} for gpu in HAND["gpus"]])
    assert ", mean fleet " in as_text(sweep(capped, "shadow", params=SolveParams(time_limit_s=60)))


# --- limits and rates -----------------------------------------------------------------------------------------------------------


def test_cap_by_hand(hand: GpuSelection) -> None:
    # Without B: 10 A at 1.5 cost 15; one B saves 4 A: 13; two: 11; a third would cost 12. So the default range ends at 2.
    found = sweep(hand, "cap", "B")
    assert {point.at["cap"]: point.objective for point in found.points} == pytest.approx({0.0: 15, 1.0: 13, 2.0: 11})
    # The LP moves 4 requests/s to a B: 4 · 1.5 - 4 = 2 USD/h a replica, also where the last one would stand half idle.
    assert found.points[0].lp_dual == pytest.approx(2.0)
    further = sweep(hand, "cap", "B", [0, 1, 2, 3, 4, 5])
    assert [point.objective for point in further.points] == pytest.approx([15, 13, 11, 11, 11, 11])
    assert {point.at["cap"]: point.how for point in further.points if point.at["cap"] > 2} == {3.0: "reused", 4.0: "reused", 5.0: "solved"}


def test_shadow_prices_by_hand(hand: GpuSelection) -> None:
    gpus = [hand.gpus[0].model_dump() | {"max_count": 6}, hand.gpus[1].model_dump() | {"max_count": 1}]
    found = sweep(hand.replace(gpus=gpus), "shadow")
    # 6 A + 1 B cost 13. A seventh A is not needed; with five A no plan is left (5 + 4 < 10). A second B: 2 A + 2 B cost 11. Without B none is left.
    by_name = {item.index: item for item in found.shadow_prices}
    assert found.points[0].objective == pytest.approx(13.0)
    a, b = by_name["A"], by_name["B"]
    assert a.relaxed is not None
    assert b.relaxed is not None
    assert a.tightened is not None
    assert b.tightened is not None
    assert (a.relaxed.value, b.relaxed.value) == pytest.approx((0.0, 2.0))
    assert a.tightened.least == b.tightened.least == math.inf
    assert b.relaxed.least <= 2.0 <= b.relaxed.most
    assert b.relaxed.most - b.relaxed.least <= 3e-5
    assert (a.limit, a.used, b.limit, b.used) == (6.0, 6.0, 1.0, 1.0)


def test_shadow_prices_of_pools_and_floors(mixed: GpuSelection) -> None:
    found = sweep(mixed, "shadow")
    assert [(item.constraint, item.index) for item in found.shadow_prices] == [
        ("max_count", "L4-TP1"),
        ("pool", "L4"),
        ("pool", "H100"),
        ("min_count", "H100-TP1"),
    ]
    base = run(mixed).objective
    for item in found.shadow_prices:
        for change, step, sign in ((item.relaxed, 1, -1.0), (item.tightened, -1, 1.0)):
            limit = int(item.limit) + (step if item.constraint != "min_count" else -step)
            result = run(limited(mixed, item.constraint, item.index, limit))
            assert change is not None
            assert change.value == pytest.approx(sign * (result.objective - base), abs=1e-6) or result.objective == change.value == math.inf
            assert change.least - 1e-9 <= change.value <= change.most + 1e-9 or change.value == math.inf


def limited(instance: GpuSelection, constraint: str, name: str, limit: int) -> GpuSelection:
    """The instance with one limit at another value."""
    if constraint == "pool":
        return instance.replace(pools=[pool.model_dump() | ({"max_gpus": limit} if pool.name == name else {}) for pool in instance.pools])
    return instance.replace(gpus=[gpu.model_dump() | ({constraint: limit} if gpu.name == name else {}) for gpu in instance.gpus])


@pytest.mark.parametrize("what", [("rate", "", [0.5, 3, 9, 10, 27]), ("cap", "g0", [0, 1, 2, 3, 5]), ("floor", "g0", [0, 1, 2])])
@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_warm_equals_cold_and_is_monotone(seed: int, what: tuple[str, str, list[float]]) -> None:
    data = tiny(seed + 1)
    for gpu in data["gpus"]:
        gpu.pop("min_count", None)
        gpu.pop("max_count", None)
    instance = GpuSelection(**data)
    name, index, values = what
    warm, cold = sweep(instance, name, index, values), sweep(instance, name, index, values, cold=True)
    assert {point.how for point in cold.points} == {"solved"}
    assert cold.solves == len(values)
    assert warm.solves <= cold.solves
    assert [point.at for point in warm.points] == [point.at for point in cold.points]
    for one, other in zip(warm.points, cold.points, strict=True):
        assert one.status == other.status
        assert one.objective == other.objective or one.objective == pytest.approx(other.objective, rel=2e-6)
        assert one.bound <= other.objective * (1 + 1e-8) or one.bound == math.inf
    costs = [point.objective for point in warm.points]
    rising = costs if name != "cap" else costs[::-1]
    assert all(a <= b * (1 + 2e-6) for a, b in itertools.pairwise(rising))


def test_every_certified_bound_was_rechecked(mixed: GpuSelection) -> None:
    # A bound that is a solver's word alone is none of the certified ones.
    found = sweep(mixed, "rate", values=[10, 30], method="highs")
    for point in found.points:
        assert point.by == "highs"
        assert point.gap <= 1e-6
        assert point.certified_gap > 1e-3
        assert point.certified_bound < point.bound


def test_a_refused_certificate_counts_for_nothing(mixed: GpuSelection, monkeypatch: pytest.MonkeyPatch) -> None:
    from headroom.bounds import gpu_selection
    from headroom.bounds.certificates import CertificateError

    def refuse(instance: Any, bound: Any) -> float:
        raise CertificateError("tampered")

    monkeypatch.setattr(gpu_selection, "recheck", refuse)
    (point,) = sweep(mixed, "rate", values=[10]).points
    assert point.certified_bound == -math.inf
    assert any("tampered" in text for text in point.notes)


def test_a_cost_below_a_proven_bound_raises(hand: GpuSelection) -> None:
    plan = run(hand).plan
    assert plan is not None
    with pytest.raises(ContradictionError, match="below the bound 12"):
        Solver().answer({"rate": 10.0}, hand, (plan,), Floor(12.0, 12.0, "monotonicity"))


def test_total_time_limit_leaves_what_there_is(mixed: GpuSelection) -> None:
    found = sweep(mixed, "rate", values=[float(v) for v in range(1, 200)], total_time_limit_s=0.05)
    assert found.stop == "time_limit"
    assert 1 <= len(found.points) < 199


# --- documents ------------------------------------------------------------------------------------------------------------------


def test_document_and_tables(hand: GpuSelection, tmp_path: Path) -> None:
    found = sweep(hand, "price", "A", [0.5, 3.0], params=SolveParams(time_limit_s=30))
    found.save(tmp_path / "s.json")
    document = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert document["schema"] == "headroom/sweep/1"
    assert set(document) == {"schema", "family", "instance", "sweep", "points", "pieces", "shadow_prices", "result", "notes", "provenance"}
    assert document["instance"] == {"name": "by hand", "sha256": hand.digest()}
    assert document["sweep"]["axes"] == {"price": "USD/h per replica"}
    assert [piece["fleet"] for piece in document["pieces"]] == [{"A": 10.0}, {"A": 2.0, "B": 2.0}, {"B": 3.0}]
    assert document["provenance"]["method"] == "branching"
    assert document["provenance"]["parameters"]["time_limit_s"] == 30
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        found.save(tmp_path / f"s{suffix}")
        frame = read(tmp_path / f"s{suffix}")  # type: ignore[operator]
        assert frame["price"].to_list() == pytest.approx([0.5, 1.0, 2.0, 3.0])
        assert frame["objective"].to_list() == pytest.approx([5.0, 10.0, 12.0, 12.0])
        assert frame["role"].to_list() == ["value", "breakpoint", "breakpoint", "value"]
        assert frame["count_A"].to_list()[0] == 10.0
        assert frame["part_B"].to_list()[-1] == pytest.approx(12.0)
    with pytest.raises(InputError, match=r"must end in \.parquet, \.csv or \.json"):
        found.save(tmp_path / "s.xlsx")


def test_no_plan_is_null_in_documents(hand: GpuSelection, tmp_path: Path) -> None:
    capped = hand.replace(gpus=[hand.gpus[0].model_dump() | {"max_count": 2}, hand.gpus[1].model_dump()])
    found = sweep(capped, "cap", "B", [0, 1, 2, 3])
    assert [point.status for point in found.points] == ["infeasible", "infeasible", "optimal", "optimal"]
    found.save(tmp_path / "s.json")
    first = json.loads((tmp_path / "s.json").read_text("utf-8"))["points"][0]
    assert first["objective"] is None
    assert first["bound"] is None
    assert first["status"] == "infeasible"
    assert found.frame()["count_A"].isna().to_list() == [True, True, False, False]


def test_the_package_exports_it(hand: GpuSelection) -> None:
    assert package.sweep(hand, "rate", values=[5.0]).points[0].objective == pytest.approx(5.5)  # 1 B + 1 A
    assert package.Sweep is Sweep


# --- latency limits -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The toy table, a trace of 40 requests in 39 s, and the catalogue with the toy's memory and price."""
    rows = [(f"2024-05-10 00:00:{second:02d}.0", 50 + 3 * second, 5 + second % 30) for second in range(40)]
    return write_table(tmp_path / "perf.csv"), write_trace(tmp_path / "trace.csv", rows), write_catalogue(tmp_path / "catalogue.json")


def test_slo_grid_is_the_import_of_each_cell(measured: tuple[Path, Path, Path]) -> None:
    from headroom.instances.gpu_selection_import import import_splitwise_perf

    table, trace, catalogue = measured
    options: dict[str, Any] = {"catalogue": catalogue, "total_rate_per_s": 30.0}
    found = sweep_slo(table, trace, [0.2, 0.4, 1.0], [0.02, 0.03, 0.04, 0.05], **options)
    assert len(found.points) == 12
    assert {"optimal", "infeasible"} == {point.status for point in found.points}
    for point in found.points:
        instance, _ = import_splitwise_perf(table, trace, ttft_s=point.at["ttft_s"], tpot_s=point.at["tpot_s"], **options)
        assert run(instance).objective == pytest.approx(point.objective, rel=2e-6) or point.objective == math.inf
    assert found.solves < 12
    cold = sweep_slo(table, trace, [0.2, 0.4, 1.0], [0.02, 0.03, 0.04, 0.05], cold=True, **options)
    assert cold.solves == 12
    assert [point.objective for point in cold.points] == pytest.approx([point.objective for point in found.points])


def test_domination_is_checked_not_assumed(hand: GpuSelection) -> None:
    faster = hand.replace(throughput_per_s=[[1.0], [5.0]])
    assert dominates(faster, hand)
    assert not dominates(hand, faster)
    assert not dominates(hand.replace(throughput_per_s=[[None], [5.0]]), hand)
    assert not dominates(faster, hand.replace(work=[{"name": "w", "rate_per_s": 9.0}]))


def test_a_looser_limit_that_takes_throughput_is_reported(tmp_path: Path) -> None:
    from tests.import_samples import TOY_TIMES_MS, table_text

    # Batch 8 takes 400 ms a step, ten times as long as batch 4 for twice the requests: allowing it makes the importer choose it.
    times = dict(TOY_TIMES_MS) | {(100, 8, 10): (1000, 400)}
    table = write_table(tmp_path / "perf.csv", table_text(times))
    trace = write_trace(tmp_path / "trace.csv", [(f"2024-05-10 00:00:{second:02d}.0", 60, 20) for second in range(30)])
    catalogue = write_catalogue(tmp_path / "catalogue.json")
    found = sweep_slo(table, trace, [2.0], [0.1, 1.0], catalogue=catalogue, total_rate_per_s=50.0)
    tight, loose = (point.objective for point in found.points)
    assert loose > tight
    assert any("loses up to" in text and "the cost rises" in text for text in found.notes)


# --- the verb -------------------------------------------------------------------------------------------------------------------


def write_hand(folder: Path, **data: Any) -> Path:
    path = folder / "hand.json"
    GpuSelection(name="by hand", **(HAND | data)).save(path)
    return path


def test_verb_price(tmp_path: Path) -> None:
    done = headroom("sweep", write_hand(tmp_path), "--price", "A=0.5:3:6", "-o", "s.parquet", "--plot", "s.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "price of A [USD/h per replica]: 3 mixes, now 1.5" in done.stdout
    assert "2 x A + 2 x B" in done.stdout
    frame = pd.read_parquet(tmp_path / "s.parquet")
    assert frame["price"].to_list() == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "kind", "costs"),
    [
        (("--rate", "5:20:3"), "rate", [5.5, 11.0, 20.0]),  # 1 A + 1 B; 2 A + 2 B; 5 B
        (("--cap", "B=0:2"), "cap", [15.0, 13.0, 11.0]),
        (("--vary", "cap:A=0,2"), "cap", [12.0, 11.0]),
        (("--vary", "floor:A=2,3"), "floor", [11.0, 12.5]),
    ],
)
def test_verb_json(arguments: tuple[str, ...], kind: str, costs: list[float], tmp_path: Path) -> None:
    done = headroom("sweep", write_hand(tmp_path), *arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = one_document(done.stdout)
    assert document["sweep"]["kind"] == kind
    assert [point["objective"] for point in document["points"]] == pytest.approx(costs)
    assert document["result"]["stop"] == "completed"


def test_verb_shadow(tmp_path: Path) -> None:
    gpus = [HAND["gpus"][0] | {"max_count": 6}, HAND["gpus"][1] | {"max_count": 1}]
    done = headroom("sweep", write_hand(tmp_path, gpus=gpus), "--shadow", "-o", "s.csv", "--plot", "s.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no plan left" in done.stdout
    frame = pd.read_csv(tmp_path / "s.csv")
    assert frame["relaxed_value"].to_list() == pytest.approx([0.0, 2.0])
    assert frame["tightened_value"].to_list() == [math.inf, math.inf]
    assert "relaxed by one" not in (tmp_path / "s.svg").read_text("utf-8")[:200]


def test_verb_spare(tmp_path: Path) -> None:
    done = headroom("sweep", write_hand(tmp_path), "--price", "A=1.5", "--spare", "1", "--json", cwd=tmp_path)
    document = one_document(done.stdout)
    # The loss of any one replica must be survived: 4 B lose one and have 12 (16 USD/h); 6 A + 2 B lose a B and have 10 (17); 10 A + 1 B (19);
    # 3 B + 2 A lose a B and have 10 (15).
    assert [point["objective"] for point in document["points"]] == pytest.approx([15.0])
    assert document["provenance"]["parameters"]["spare_replicas"] == 1
    assert document["instance"]["sha256"] == GpuSelection(**HAND).digest()


def test_verb_slo(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    table, trace, catalogue = measured
    arguments = ("sweep", table, "--slo", "--trace", trace, "--ttft-s", "0.4,1", "--tpot-s", "0.03:0.05:2")
    settings = ("--set", f"catalogue={catalogue}", "--set", "total_rate_per_s=30", "--set", "tp=1", "--set", "hardware=toy-gpu")
    done = headroom(*arguments, *settings, "--json", "--plot", "s.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = one_document(done.stdout)
    assert [point["at"] for point in document["points"]] == [{"ttft_s": t, "tpot_s": o} for t in (0.4, 1.0) for o in (0.03, 0.05)]
    assert "<svg" in (tmp_path / "s.html").read_text("utf-8")


def test_nothing_anywhere_exits_1(tmp_path: Path) -> None:
    done = headroom("sweep", write_hand(tmp_path, throughput_per_s=[[None], [None]]), "--price", "A=1,2", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert [point["status"] for point in one_document(done.stdout)["points"]] == ["infeasible", "infeasible"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "expected one of --price, --cap, --rate, --moves, --vary, --shadow, --slo, got 0"),
        (("--shadow", "--rate", "1,2"), "--slo, got 2"),
        (("--price", "C=1,2"), "price: must name a replica type, a pool or a GPU"),
        (("--price", "A"), "price of A: needs values"),
        (("--price", "A=1:x:3"), "price of A: must be a list such as 1,2,4"),
        (("--price", "A=3:1:3"), "price of A: must have lo < hi in lo:hi:n such as 1:4:7, got '3:1:3': 3 is not below 1"),
        (("--rate", "10:1:5"), "rate: must have lo < hi in lo:hi:n such as 1:4:7, got '10:1:5': 10 is not below 1"),
        (("--cap", "B=2:2"), "cap of B: must have lo < hi in lo:hi:n such as 1:4:7 or lo:hi, got '2:2': 2 is not below 2"),
        (("--rate", "1:nan:3"), "rate: must be a list"),
        (("--price", "A=-1,2"), "price of A: must be finite and at least 0, got -1"),
        (("--price", "A=nan"), "price of A: must be a list"),
        (("--cap", "B=0.5"), "cap of B: must be a whole number, got 0.5"),
        (("--cap", "C"), "cap: must name a replica type or a pool"),
        (("--rate", "0:4:3"), "rate: must have lo > 0 in lo:hi:n such as 1:4:7, since values are spaced evenly in ratio, got '0:4:3'"),
        (("--vary", "colour=1,2"), "sweep: 'colour' cannot be swept in gpu_selection; expected one of price, cap, floor, rate, shadow"),
        (("--shadow",), "shadow: the instance sets no limit"),
        (("--rate", "1,2", "--method", "simplex"), "method 'simplex' is unknown"),
        (("--rate", "1,2", "--tpot-s", "1"), "--tpot-s: is an option of --slo"),
        (("--rate", "1,2", "-o", "s.txt"), "s.txt: must end in .parquet, .csv or .json"),
        (("--rate", "1,2", "--plot", "s.gif"), "s.gif: must end in .png, .svg or .html"),
        (("--rate", "1,2", "--total-time-limit", "-1"), "--total-time-limit: must be a positive number"),
        (("--slo",), "--trace: is missing"),
        (("--slo", "--trace", "hand.json", "--set", "colour=1"), "--set: 'colour' is not an option of --slo"),
        (("--slo", "--trace", "hand.json", "--set", "total_rate_per_s=fast"), "--set: total_rate_per_s must be number, got 'fast'"),
        (("--slo", "--trace", "hand.json"), "hand.json: line 1: columns must include model"),
    ],
)
def test_wrong_use(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hand(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_command(["sweep", "hand.json", *arguments], debug=False) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("headroom: error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hand.json"]


def test_help_and_families_name_it(tmp_path: Path) -> None:
    assert "sweep" in headroom("--help", cwd=tmp_path).stdout
    record = one_document(headroom("families", "--json", cwd=tmp_path).stdout)["families"][0]
    assert [item["name"] for item in record["sweeps"]] == ["price", "cap", "floor", "rate"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("method", ["slow", "stubborn"])
def test_interrupted_sweep_writes_what_it_has(method: str, number: int, code: int, tmp_path: Path) -> None:
    # The stub finds a plan at once and then searches without end; `stubborn` does not even hear that it should stop, so its point is lost.
    ready = tmp_path / "ready"
    arguments = ("sweep", write_hand(tmp_path), "--rate", "5,10", "--method", method, "-o", "s.csv", "--time-limit", "60")
    process = start(*arguments, cwd=tmp_path, stubs=True, STUB_READY=str(ready))
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in out + err
    if method == "slow":
        assert "what is known so far was written to s.csv" in err
        frame = pd.read_csv(tmp_path / "s.csv")
        assert frame["rate"].to_list() == [5.0]
        assert frame["stop"].to_list() == ["interrupted"]
        assert frame["objective"].to_list() == pytest.approx([5 * 1.5])
        assert "stopped: interrupted" in out
    else:
        assert "interrupted before there was anything to keep" in err
        assert not (tmp_path / "s.csv").exists()


def test_time_limits_of_the_verb(tmp_path: Path) -> None:
    arguments = ("sweep", write_hand(tmp_path), "--rate", "5,10,20", "--method", "slow", "--time-limit", "0.2", "--json")
    document = one_document(headroom(*arguments, cwd=tmp_path, stubs=True).stdout)
    assert [point["stop"] for point in document["points"]] == ["time_limit"] * 3
    assert [point["status"] for point in document["points"]] == ["feasible"] * 3
    done = headroom(*arguments[:-2], "30", "--total-time-limit", "0.3", "--json", cwd=tmp_path, stubs=True)
    assert done.returncode == 0
    document = one_document(done.stdout)
    assert document["result"]["stop"] == "time_limit"
    assert len(document["points"]) == 1
