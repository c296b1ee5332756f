"""Exports, descriptions and plots of packings: a script that reads the lines runs what the plan says, in the seconds that it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PatchCollection, PolyCollection

from headroom import plots
from headroom.api import solve
from headroom.describe import describe, facts, misfit, unit
from headroom.documents import PlanDocument, read_document, result_document
from headroom.export import InfeasiblePlanError, export
from headroom.export.request_packing import batches, queues, stages
from headroom.formulations.request_packing import BinPlan, StagedPlan, bin_plan, evaluate, staged_plan
from headroom.instances.errors import InputError
from headroom.instances.request_packing import RequestPacking, Requests
from headroom.instances.request_packing_presets import make
from headroom.run import Result
from headroom.sweep import sweep
from headroom.verify import verify
from tests.request_packing_cases import staged, tiny_bins, tiny_staged


def document(plan: BinPlan | StagedPlan) -> PlanDocument:
    return PlanDocument(family="request_packing", plan=plan, source="plan.json")


def by_hand(preset: str) -> RequestPacking:
    return make(preset, np.random.default_rng(0), {})


# The presets' docstrings solve them by hand. Bins 0, 1, 2 of the groups hold 400 + 600, 200 + 800 and 500 + 500 tokens, all of 1,000.
GROUPED = bin_plan([0, 1, 2, 0, 1, 2])
# The long request 2 in slot 0 and request 0 in slot 1, prefilled in 1.5 s; two steps; request 1 after request 0, prefilled in 1 s; two steps.
STAGED = staged_plan([([(2, 0), (0, 1)], 2), ([(1, 1)], 2)])


# ---- Readers that know the documented formats only ------------------------------------------------------------------------------------------


def read(text: str, schema: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert text.endswith("\n")
    header, *lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert header["schema"] == f"headroom/{schema}/1"
    return header, lines


def run_queues(header: dict[str, Any], lines: list[dict[str, Any]]) -> StagedPlan:
    """The plan from the queues: stages by their starts, with as many decode steps between two of them as the seconds hold."""
    starts = dict[int, float]()
    admit = dict[int, list[tuple[int, int]]]()
    for line in lines:
        assert len(line["requests"]) == len(line["stage"]) == len(line["start_s"]) == len(line["finish_s"])
        assert line["start_s"] == sorted(line["start_s"])
        for request, k, start in zip(line["requests"], line["stage"], line["start_s"], strict=True):
            assert starts.setdefault(k, start) == start
            admit.setdefault(k, []).append((request, line["slot"]))
    order = sorted(starts)
    ends = [*(starts[k] for k in order[1:]), header["total_s"]]
    return staged_plan(
        (admit[k], round((end - starts[k] - header["prefill"](admit[k])) / header["decode_step_s"])) for k, end in zip(order, ends, strict=True)
    )


# ---- Exports --------------------------------------------------------------------------------------------------------------------------------


def test_batches_by_hand() -> None:
    header, lines = read(batches(by_hand("toy-groups"), document(GROUPED)), "batches")
    assert (header["bins"], header["capacity_tokens"], header["padding_multiple"], header["requests"]) == (3, 1000, 100, 6)
    assert header["instance"]["sha256"] == by_hand("toy-groups").digest()
    assert lines == [
        # 250 + 310 tokens padded to 600, behind a prefix of 400.
        {"bin": 0, "requests": [0, 3], "tokens": 1000, "groups": [{"group": 0, "requests": 2, "tokens": 1000}]},
        # 390 + 380 padded to 800, behind a prefix of 200.
        {"bin": 1, "requests": [1, 4], "tokens": 1000, "groups": [{"group": 1, "requests": 2, "tokens": 1000}]},
        {"bin": 2, "requests": [2, 5], "tokens": 1000, "groups": []},
    ]


def test_requests_of_a_group_stand_side_by_side() -> None:
    instance = by_hand("toy-groups").replace(capacity_tokens=5000)
    _, (line,) = read(batches(instance, document(bin_plan([0] * 6))), "batches")
    assert line["requests"] == [0, 3, 1, 4, 2, 5]
    assert [(part["group"], part["requests"]) for part in line["groups"]] == [(0, 2), (1, 2)]
    _, (line,) = read(batches(by_hand("toy").replace(capacity_tokens=5000), document(bin_plan([0] * 6))), "batches")
    assert line == {"bin": 0, "requests": [0, 1, 2, 3, 4, 5], "tokens": 2000}


def test_stages_and_queues_by_hand() -> None:
    header, lines = read(stages(by_hand("toy-makespan"), document(STAGED)), "stages")
    assert (header["total_s"], header["slots"], header["stages"]) == (6.5, 2, 2)
    assert lines == [
        {"stage": 0, "start_s": 0.0, "admissions": [[2, 0], [0, 1]], "prompt_tokens": 8, "prefill_s": 1.5, "decode_steps": 2},
        {"stage": 1, "start_s": 3.5, "admissions": [[1, 1]], "prompt_tokens": 4, "prefill_s": 1.0, "decode_steps": 2},
    ]
    header, lines = read(queues(by_hand("toy-makespan"), document(STAGED)), "slot-queues")
    assert header["total_s"] == 6.5
    assert lines == [
        # Its fourth token comes after the second prefill, with the last decode step.
        {"slot": 0, "requests": [2], "stage": [0], "start_s": [0.0], "finish_s": [6.5]},
        {"slot": 1, "requests": [0, 1], "stage": [0, 1], "start_s": [0.0, 3.5], "finish_s": [3.5, 6.5]},
    ]


def test_requests_are_also_named_by_their_record() -> None:
    def named(preset: str, record: list[int]) -> RequestPacking:
        instance = by_hand(preset)
        fields = {name: getattr(instance.requests, name) for name in ("prompt_tokens", "output_tokens", "group")}
        return instance.replace(requests=Requests(**fields, record=record))

    instance = named("toy", [7, 9, 11, 20, 21, 22])
    _, lines = read(batches(instance, document(bin_plan([0, 1, 0, 1, 2, 2]))), "batches")
    assert [(line["requests"], line["records"]) for line in lines] == [([0, 2], [7, 11]), ([1, 3], [9, 20]), ([4, 5], [21, 22])]
    instance = named("toy-makespan", [30, 31, 42])
    assert read(stages(instance, document(STAGED)), "stages")[1][0]["records"] == [42, 30]
    assert [line["records"] for line in read(queues(instance, document(STAGED)), "slot-queues")[1]] == [[42], [30, 31]]


@pytest.mark.parametrize("seed", range(60))
def test_reading_batches_gives_the_plan(seed: int) -> None:
    instance = RequestPacking(name="tiny", **tiny_bins(seed))
    rng = np.random.default_rng([11, seed])
    plan = BinPlan(bin=rng.integers(0, 2 * instance.count, instance.count))  # with unused numbers, and too full at times
    header, lines = read(batches(instance, document(plan)), "batches")
    found = np.full(instance.count, -1)
    for line in lines:
        assert (found[line["requests"]] == -1).all()
        found[line["requests"]] = line["bin"]
        grouped = [j for j in line["requests"] if instance.requests.group is not None and instance.requests.group[j] >= 0]
        assert line["requests"][: len(grouped)] == grouped
        at = 0
        for part in line.get("groups", []):
            assert {int(instance.group_of[j]) for j in grouped[at : at + part["requests"]]} == {part["group"]}
            at += part["requests"]
        assert at == len(grouped) or "groups" not in line
        alone = sum(int(instance.padded[j]) for j in line["requests"][len(grouped) :])
        assert line["tokens"] == alone + sum(part["tokens"] for part in line.get("groups", [])) or "groups" not in line
    assert found.tolist() == plan.bin.tolist()
    assert header["bins"] == len(lines) == evaluate(instance, plan).objective
    over = {f"bin {line['bin']}": line["tokens"] - header["capacity_tokens"] for line in lines if line["tokens"] > header["capacity_tokens"]}
    assert {item.index: item.amount for item in evaluate(instance, plan).violations} == over


@pytest.mark.parametrize("seed", range(60))
def test_reading_stages_and_queues_gives_the_plan(seed: int) -> None:
    instance = RequestPacking(name="tiny", **tiny_staged(seed))
    result = solve(instance, ("fcfs_slots", "waves", "sorted_preemptive")[seed % 3])
    assert isinstance(result.plan, StagedPlan)
    header, lines = read(stages(instance, document(result.plan)), "stages")
    again = staged_plan((line["admissions"], line["decode_steps"]) for line in lines)
    assert again == result.plan
    assert header["total_s"] == result.objective
    header, queue = read(queues(instance, document(result.plan)), "slot-queues")
    assert [line["slot"] for line in queue] == list(range(instance.slots or 0))
    prompt = instance.requests.prompt_tokens

    def prefill(admitted: list[tuple[int, int]]) -> float:
        return float(instance.prefill_s(prompt[[request for request, _ in admitted]].sum()))

    rebuilt = run_queues(header | {"prefill": prefill}, queue)
    evaluation = evaluate(instance, rebuilt)
    assert evaluation.feasible
    assert evaluation.objective == pytest.approx(result.objective, rel=1e-12)
    # Straight from the lines of the stages: a request is done when its stage's prefill and its steps are, and all prefills in between.
    finish = {request: end for line in queue for request, end in zip(line["requests"], line["finish_s"], strict=True)}
    for k, line in enumerate(lines):
        for request, _ in line["admissions"]:
            left, now = int(instance.requests.output_tokens[request]), line["start_s"]
            for later in lines[k:]:
                steps = min(left, later["decode_steps"])
                left -= steps
                now += later["prefill_s"] + steps * header["decode_step_s"]
                if not left:
                    break
            assert finish[request] == pytest.approx(now, rel=1e-9)


def test_a_run_that_does_not_end_well_is_still_json() -> None:
    """Forced: request 1 is above the last prefill level, request 0 gets two of its five steps, request 2 is never admitted."""
    instance = RequestPacking(name="cut", **staged([4, 9, 1], [5, 1, 1], 2, [(4, 1.0), (8, 2.0)]))
    plan = staged_plan([([(0, 0)], 1), ([(1, 1)], 1)])
    _, lines = read(stages(instance, document(plan)), "stages")
    assert [line["prefill_s"] for line in lines] == [1.0, None]
    _, (first, second) = read(queues(instance, document(plan)), "slot-queues")
    assert (first["requests"], first["start_s"], first["finish_s"]) == ([0], [0.0], [None])
    assert (second["requests"], second["start_s"], second["finish_s"]) == ([1], [2.0], [None])
    known = facts(instance, plan)["packing"]
    assert (known["prefill_s"], known["decode_steps"]) == (1.0, 2)
    # Request 0 makes two tokens, request 1 one, in 2 x 2 slot-steps.
    assert (known["slot_utilisation"], known["idle_slot_steps"]) == (0.75, 1)


def test_plans_that_break_constraints_are_exported_only_by_force() -> None:
    instance = by_hand("toy")
    full = read_document(result_document(solve(instance, "ffd")))
    full = PlanDocument(family="request_packing", plan=bin_plan([0] * 6), source=full.source)
    with pytest.raises(InfeasiblePlanError, match="violates 1 constraint"):
        export(instance, full, "batches")
    assert read(export(instance, full, "batches", force=True), "batches")[1][0]["tokens"] == 2000
    with pytest.raises(InputError, match="--to"):
        export(instance, full, "queues")  # of the other objective


@pytest.mark.parametrize(
    ("target", "preset", "plan", "message"),
    [
        (batches, "toy", bin_plan([0, 1]), r"^plan\.json: plan: bin must have 6 entries, one for each request, got 2$"),
        (queues, "toy-makespan", staged_plan([([(9, 0)], 1)]), r"^plan\.json: plan: stages\[0\]\.admit must name a request from 0 to 2, got 9$"),
        (stages, "toy-makespan", staged_plan([([(0, 7)], 1)]), r"^plan\.json: plan: stages\[0\]\.admit must name a slot from 0 to 1, got 7$"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(target: Callable[..., str], preset: str, plan: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        target(by_hand(preset), document(plan))


def test_many_requests_are_written_once_each() -> None:
    instance = make("backlog-million", np.random.default_rng(0), {"requests": 100_000})
    plan = BinPlan(bin=np.cumsum(instance.size) // (instance.capacity_tokens or 1))
    _, lines = read(batches(instance, document(plan)), "batches")
    assert [j for line in lines for j in line["requests"]] == list(range(100_000))
    assert sum(line["tokens"] for line in lines) == instance.size.sum()


# ---- Descriptions ---------------------------------------------------------------------------------------------------------------------------


def test_descriptions_by_hand() -> None:
    grouped, makespan = by_hand("toy-groups"), by_hand("toy-makespan")
    assert (unit(grouped), unit(makespan)) == (" bins", " s")
    assert describe(grouped, GROUPED) == [
        ("fill", "100% in the mean of 3 bins (fullest 100%, emptiest 100%)"),
        ("groups", "0 of 2 split over bins, 2 parts in all"),
        # 250 + 310, 390 + 380, 450 and 480 are 2,260 tokens.
        ("tokens", "3,000 in bins, with 600 of overhead, 140 of padding"),
    ]
    split = facts(grouped, bin_plan([0, 1, 2, 3, 1, 2]))["packing"]
    assert (split["groups_split"], split["group_parts"], split["overhead_tokens"]) == (1, 3, 1000)
    # 400 + 300 (250 padded) alone in bin 0, 400 + 400 (310 padded) alone in bin 3.
    assert (split["fill_least"], split["fill_most"], split["unused_tokens"]) == (0.7, 1.0, 500)
    # 2 + 2 + 4 tokens in two slots and four steps.
    assert describe(makespan, STAGED) == [
        ("time", "decode 4 s (4 decode steps), prefill 2.5 s (2 prefills)"),
        ("slots", "100% busy while decoding, 0 slot-steps idle"),
        ("stages", "2"),
    ]
    apart = staged_plan([([(0, 0), (1, 1)], 2), ([], 0), ([(2, 0)], 4)])
    known = facts(makespan, apart)["packing"]
    assert (known["stages"], known["prefills"], known["slot_utilisation"], known["idle_slot_steps"]) == (3, 2, 8 / 12, 4)
    assert sum(evaluate(makespan, apart).parts.values()) == known["prefill_s"] + known["decode_s"]


def test_overfull_bins_and_empty_runs_are_described() -> None:
    assert dict(describe(by_hand("toy"), bin_plan([0] * 6)))["fill"] == "200.0% in the mean of 1 bin (fullest 200.0%, emptiest 200.0%)"
    assert dict(describe(by_hand("toy-makespan"), staged_plan([]))) == {
        "time": "decode 0 s (0 decode steps), prefill 0 s (0 prefills)",
        "stages": "0",
    }


def test_plans_of_the_other_objective_are_named() -> None:
    assert misfit(by_hand("toy"), bin_plan([0] * 6)) is None
    assert misfit(by_hand("toy"), STAGED) == "plan must have bin because the objective is 'bins', got a plan of stages"
    assert misfit(by_hand("toy-makespan"), GROUPED) == "plan must have stages because the objective is 'makespan', got a plan of bins"


@pytest.mark.parametrize(("preset", "plan", "bound"), [("toy", bin_plan([0, 1, 0, 0, 1, 1]), 2.0), ("toy-makespan", STAGED, 6.5)])
def test_plans_without_bounds_are_judged_by_those_of_their_objective(preset: str, plan: Any, bound: float) -> None:
    report = verify(by_hand(preset), plan)
    assert report.verified
    assert report.objective == bound  # both plans are optimal
    assert {check.state for check in report.bounds} == {"computed"}
    assert max(check.recomputed for check in report.bounds) <= bound


def test_no_quantity_is_swept() -> None:
    with pytest.raises(InputError, match=r"'slots' cannot be swept in request_packing; nothing can$"):
        sweep(by_hand("toy-makespan"), "slots", [1.0, 2.0])


# ---- Plots ----------------------------------------------------------------------------------------------------------------------------------


def drawn(ax: Any, kind: str) -> np.ndarray[Any, Any]:
    """Left, lower, right and upper end of each rectangle of a collection of the Gantt chart."""
    (found,) = [each for each in ax.collections if each.get_label() == kind]
    assert isinstance(found, (PatchCollection, PolyCollection))
    return np.array([path.get_extents().extents for path in found.get_paths()])


def test_gantt_is_drawn_as_it_is() -> None:
    _, ax = plots.figure()
    plots.slot_gantt(ax, by_hand("toy-makespan"), STAGED)
    bars = drawn(ax, "decode")
    # Request 0: slot 1, from the end of its prefill to its second step; request 1 after the second prefill; request 2 waits for that one.
    np.testing.assert_allclose(bars[:, [0, 2]], [[1.5, 3.5], [4.5, 6.5], [1.5, 6.5]])
    np.testing.assert_allclose(bars[:, [1, 3]].mean(axis=1), [1, 1, 0])
    (decode,) = [each for each in ax.collections if each.get_label() == "decode"]
    # Request 1 follows request 0 in its slot and has the other shade; an idle slot is neither, and prefills are darker than all.
    first, second, third = map(tuple, decode.get_facecolor())
    assert first == third != second
    (idle,), (prefill,) = ([tuple(each.get_facecolor()[0]) for each in ax.collections if each.get_label() == kind] for kind in ("idle", "prefill"))
    assert idle not in (first, second)
    assert max(prefill[:3]) < min(first[:3] + second[:3]) < max(idle[:3])
    np.testing.assert_allclose(drawn(ax, "prefill")[:, [0, 2]], [[0, 1.5], [3.5, 4.5]])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xlim()) == ("time [s]", "slot", (0, 6.5))
    assert ax.get_title(loc="left") == "6.5 s, 2 stages: toy-makespan"


def test_gantt_of_many_slots_draws_some_of_them() -> None:
    instance = RequestPacking(name="wide", **staged([1] * 1000, [2] * 1000, 1000, []))
    _, ax = plots.figure()
    plots.slot_gantt(ax, instance, staged_plan([([(j, j) for j in range(1000)], 2)]))
    assert len(drawn(ax, "decode")) == len(drawn(ax, "idle")) == 400
    assert all(each.get_linewidth()[0] == 0 for each in ax.collections)  # edges would be wider than the bars
    assert ax.get_ylabel() == "slot (400 of 1,000)"
    assert next(text.get_text() for text in ax.get_yticklabels()) == "0"
    assert not [each for each in ax.collections if each.get_label() == "prefill"]


def test_gantts_of_two_runs_share_their_colours() -> None:
    instance = RequestPacking(name="two", **staged([1] * 6, [2] * 6, 2, []))
    short = staged_plan([([(0, 0), (1, 1)], 2), ([(2, 0), (3, 1)], 2), ([(4, 0), (5, 1)], 2)])
    long = staged_plan([([(k, 0)], 2) for k in range(6)])
    shades = []
    for plan in (short, long):
        figure, ax = plots.figure()
        plots.slot_gantt(ax, instance, plan)
        assert len(figure.axes) == 1  # no scale of its own
        shades.append({tuple(colour) for each in ax.collections if each.get_label() == "decode" for colour in each.get_facecolor()})
    assert shades[0] == shades[1]
    assert len(shades[0]) == 2


def test_fill_is_drawn_as_it_is() -> None:
    _, ax = plots.figure()
    # Bins of 700, 1000, 1000 and 800 tokens, the last with 400 of overhead, 310 of a request and 90 of padding.
    plots.bin_fill(ax, by_hand("toy-groups"), bin_plan([0, 1, 2, 3, 1, 2]))
    requests, overhead, padding = (patch.get_data() for patch in ax.patches)
    assert requests.values.tolist() == [770, 930, 310, 250]
    assert (overhead.values - overhead.baseline).tolist() == [200, 0, 400, 400]
    assert (padding.values - padding.baseline).tolist() == [30, 70, 90, 50]
    assert padding.values.tolist() == [1000, 1000, 800, 700]
    assert ax.lines[0].get_ydata() == [1000, 1000]
    assert ax.get_title(loc="left") == "4 bins, 87.5 % full: toy-groups"


@pytest.fixture(scope="module")
def toy_results() -> list[Result]:
    """The optimum has 2 bins, first fit decreasing 3; see the preset."""
    return [solve(by_hand("toy"), method) for method in ("ffd", "bins", "next_fit")]


def test_gaps_are_drawn_as_they_are(toy_results: list[Result]) -> None:
    _, ax = plots.figure()
    plots.gap_bars(ax, toy_results)
    assert next(text.get_text() for text in ax.get_yticklabels()) == "bins"
    widths = dict(zip((text.get_text() for text in ax.get_yticklabels()), (patch.get_width() for patch in ax.patches), strict=True))
    assert widths["bins"] == 0
    assert widths["ffd"] == 50
    assert {text.get_text() for text in ax.texts} >= {"optimal  (2 bins)", "50 %  (3 bins)"}
    assert ax.get_title(loc="left") == "over the bound of 2 bins: toy"


def test_utilisation_is_drawn_as_it_is() -> None:
    base = by_hand("toy-makespan")
    results = [solve(base.replace(slots=slots), method) for slots in (4, 1, 2) for method in ("waves", "sorted_preemptive")]
    _, ax = plots.figure()
    plots.slot_utilisation(ax, results)
    waves, preemptive = ax.lines
    assert waves.get_label() == "waves"
    # Where both are the same, as with four slots, both are seen: the later line is thinner, of another style, its markers smaller.
    assert waves.get_linestyle() != preemptive.get_linestyle()
    assert waves.get_linewidth() > preemptive.get_linewidth()
    assert waves.get_markersize() > preemptive.get_markersize()
    # One slot is always busy. Two in waves: 2 and 4 steps with 8 of 12 slot-steps used. Four: all three at once, 8 of 16.
    np.testing.assert_allclose(np.asarray(waves.get_xydata()), [[1, 100], [2, 100 * 8 / 12], [4, 50]])
    np.testing.assert_allclose(np.asarray(preemptive.get_xydata()), [[1, 100], [2, 100], [4, 50]])


def test_what_cannot_be_drawn_is_refused(toy_results: list[Result]) -> None:
    _, ax = plots.figure()
    with pytest.raises(InputError, match="expected request_packing"):
        plots.bin_fill(ax, type("Other", (), {"family": "gpu_selection"})(), GROUPED)
    with pytest.raises(InputError, match="expected 'makespan'"):
        plots.slot_gantt(ax, by_hand("toy"), STAGED)
    with pytest.raises(InputError, match="must have bin"):
        plots.bin_fill(ax, by_hand("toy"), STAGED)
    with pytest.raises(InputError, match="of one instance"):
        plots.gap_bars(ax, [*toy_results, solve(by_hand("toy-groups"), "ffd")])
    with pytest.raises(InputError, match="must hold a plan"):
        plots.gap_bars(ax, [])
    with pytest.raises(InputError, match="must hold a plan"):
        plots.slot_utilisation(ax, [])
    instance = RequestPacking(name="cut", **staged([9], [1], 1, [(4, 1.0)]))
    with pytest.raises(InputError, match="above the last prefill level"):
        plots.slot_gantt(ax, instance, staged_plan([([(0, 0)], 1)]))
