"""Exports: what another system reads, in its own form, and nothing for a plan that does not hold."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from headroom.documents import PlanDocument, read_document, result_document
from headroom.export import InfeasiblePlanError, export
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.registry import FAMILIES
from headroom.run import run
from tests.command import TOY, headroom, only_error, write_toy


@pytest.fixture(scope="module")
def mixed() -> GpuSelection:
    """The toy with thirds, token ranges, a phase, an idle item, and a type that nobody needs."""
    data: dict[str, Any] = json.loads(json.dumps(TOY["data"]))
    data["slices"] = 3
    data["work"][0] |= {"prompt_tokens": [1, 128], "output_tokens": [0, 64], "phase": "prefill"}
    data["work"].append({"name": "idle, maybe", "rate_per_s": 0.0})
    data["gpus"].append({"name": "H100", "price_usd_per_h": 99.0, "gpus_per_replica": 8})
    data["throughput_per_s"] = [[2, 1, 5, 2, 1], [20, 20, 40, 20, None], [1, 1, 1, 1, None]]
    return GpuSelection.from_document(TOY | {"data": data})


@pytest.fixture(scope="module")
def plan(mixed: GpuSelection) -> PlanDocument:
    return read_document(result_document(run(mixed, "greedy")))


def test_every_target_of_every_family_writes_something() -> None:
    assert all(family.exporters for family in FAMILIES.values())


def test_melange(mixed: GpuSelection, plan: PlanDocument) -> None:
    written = json.loads(export(mixed, plan, "melange"))
    assert set(written) == {"A10G", "A100-80GB", "H100", "cost"}
    assert all(isinstance(written[name], int) for name in ("A10G", "A100-80GB", "H100"))
    assert written["cost"] == pytest.approx(written["A10G"] * 1.01 + written["A100-80GB"] * 3.67 + written["H100"] * 99.0)


def test_melange_has_no_place_for_a_gpu_named_cost() -> None:
    data = TOY["data"] | {"gpus": [{"name": "cost", "price_usd_per_h": 1.0}, TOY["data"]["gpus"][1]]}
    instance = GpuSelection.from_document(TOY | {"data": data})
    with pytest.raises(InputError, match="named 'cost'"):
        export(instance, read_document(result_document(run(instance, "greedy"))), "melange")


def test_csv(mixed: GpuSelection, plan: PlanDocument) -> None:
    rows = list(csv.DictReader(io.StringIO(export(mixed, plan, "csv"))))
    assert {row["work"] for row in rows} == {item.name for item in mixed.work}
    for item in mixed.work:
        served = [row for row in rows if row["work"] == item.name]
        assert sum(float(row["share"]) for row in served) == pytest.approx(1.0)
        assert sum(float(row["rate_served_per_s"]) for row in served) == pytest.approx(item.rate_per_s)
    for row in rows:
        assert float(row["load_replicas"]) == pytest.approx(float(row["rate_served_per_s"]) / float(row["throughput_per_s"]))
    (first, *_) = [row for row in rows if row["work"] == "a"]
    fields = [first[name] for name in ("phase", "prompt_tokens_min", "prompt_tokens_max", "output_tokens_min", "output_tokens_max")]
    assert fields == ["prefill", "1", "128", "0", "64"]


def test_deployment(mixed: GpuSelection, plan: PlanDocument) -> None:
    written = json.loads(export(mixed, plan, "deployment"))
    assert written["schema"] == "headroom/deployment/1"
    assert written["instance"]["sha256"] == mixed.digest()
    names = {item["gpu"] for item in written["replicas"]}
    assert [bucket["name"] for bucket in written["buckets"]] == [item.name for item in mixed.work]
    for bucket, item in zip(written["buckets"], mixed.work, strict=True):
        assert sum(bucket["routing"].values()) == pytest.approx(1.0, abs=1e-12)
        assert set(bucket["routing"]) <= names or item.rate_per_s == 0
    for item in written["replicas"]:
        assert item["replicas"] > 0
        assert 0 < item["utilisation"] <= 1 + 1e-9
    cost = sum(item["replicas"] * item["price_usd_per_h"] for item in written["replicas"])
    assert cost == pytest.approx(written["plan_objective_usd_per_h"])


def test_deployment_with_a_spare_says_where_to_send_after_a_loss(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    assert headroom("solve", toy, "--method", "greedy", "--spare", "1", "-o", "plan.json", cwd=tmp_path).returncode == 0
    done = headroom("export", toy, "plan.json", "--to", "deployment", cwd=tmp_path)
    written = json.loads(done.stdout)
    assert written["spare_replicas"] == 1
    assert set(written["routing_after_loss"]) == {item["gpu"] for item in written["replicas"]}
    for tables in written["routing_after_loss"].values():
        assert all(sum(shares.values()) == pytest.approx(1.0) for shares in tables.values())


def test_infeasible_plan_is_refused_with_its_violations(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    plan = {"count": {"A10G": 1, "A100-80GB": 1}, "share": [[0, 0, 1, 0], [1, 1, 0, 1]]}
    (tmp_path / "plan.json").write_text(json.dumps({"schema": "headroom/plan/1", "family": "gpu_selection", "plan": plan}), "utf-8")
    refused = headroom("export", toy, "plan.json", "--to", "melange", "-o", "out.json", cwd=tmp_path)
    assert refused.returncode == 1
    # c keeps 15/5 = 3 replicas busy and there is one.
    assert "capacity[A10G] exceeded by 2 (limit 1)" in refused.stderr
    assert not (tmp_path / "out.json").exists()
    forced = headroom("export", toy, "plan.json", "--to", "melange", "-o", "out.json", "--force", cwd=tmp_path)
    assert forced.returncode == 0
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["cost"] == pytest.approx(1.01 + 3.67)
    with pytest.raises(InfeasiblePlanError) as caught:
        export(GpuSelection.from_document(TOY), read_document(json.loads((tmp_path / "plan.json").read_text("utf-8"))), "csv")
    assert len(caught.value.violations) == 1


def test_wrong_use(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    headroom("solve", toy, "--method", "greedy", "-o", "plan.json", cwd=tmp_path)
    assert "--to: must be one of melange, csv, deployment" in only_error(headroom("export", toy, "plan.json", "--to", "excel", cwd=tmp_path))
    assert "--to: is missing" in only_error(headroom("export", toy, "plan.json", cwd=tmp_path))
    assert "PLAN: is missing" in only_error(headroom("export", toy, cwd=tmp_path))
    other = write_toy(tmp_path, "other.json", max_utilisation=0.9)
    assert "plan.json: was made for another instance" in only_error(headroom("export", other, "plan.json", "--to", "csv", cwd=tmp_path))
    empty = {"schema": "headroom/plan/1", "family": "gpu_selection", "plan": None}
    (tmp_path / "empty.json").write_text(json.dumps(empty), "utf-8")
    assert "empty.json: holds no plan" in only_error(headroom("export", toy, "empty.json", "--to", "csv", cwd=tmp_path))
    misfit = empty | {"plan": {"count": {"H100": 1}, "share": [[1]]}}
    (tmp_path / "misfit.json").write_text(json.dumps(misfit), "utf-8")
    assert "misfit.json: plan.count names 'H100'" in only_error(headroom("export", toy, "misfit.json", "--to", "csv", cwd=tmp_path))


def test_list(tmp_path: Path) -> None:
    listed = headroom("export", "--list", cwd=tmp_path)
    assert listed.returncode == 0
    assert all(target in listed.stdout for target in ("melange", "csv", "deployment"))
    document = json.loads(headroom("export", "--list", "--json", cwd=tmp_path).stdout)
    assert {"family": "gpu_selection", "target": "csv"}.items() <= document["targets"][1].items()


def test_schedule_says_what_runs_when() -> None:
    # One type, one request/s a replica; demand 2, 1, 2 by the hour; a start costs little: one replica is stopped for the middle hour.
    data: dict[str, Any] = {
        "work": [{"name": "w", "rate_per_s": 2.0}],
        "gpus": [{"name": "g", "price_usd_per_h": 1.0}],
        "throughput_per_s": [[1.0]],
        "epochs": {"epoch_s": 3600.0, "rate_per_s": [[2.0], [1.0], [2.0]], "start_cost_usd": [0.25]},
    }
    instance = GpuSelection(**data)
    document = read_document(result_document(run(instance, "decomposition")))
    rows = list(csv.DictReader(io.StringIO(export(instance, document, "schedule-csv"))))
    assert [(row["start_s"], row["replicas"], row["starts"], row["serving"]) for row in rows] == [
        ("0.0", "2", "0", "2"),
        ("3600.0", "1", "0", "1"),
        ("7200.0", "2", "1", "2"),
    ]
    written = json.loads(export(instance, document, "schedule"))
    assert written["plan_objective_usd"] == pytest.approx(5.25)
    assert [epoch["replicas"] for epoch in written["epochs"]] == [{"g": 2}, {"g": 1}, {"g": 2}]
    assert written["epochs"][0]["routing"] == {"w": {"g": pytest.approx(1.0)}}
    with pytest.raises(InputError, match="must be one of schedule, schedule-csv for gpu_selection in mode epochs"):
        export(instance, document, "melange")


def test_assignment_lists_every_replica() -> None:
    data = TOY["data"] | {"packing": "per_replica", "slices": [12, 6, 12, 12]}
    instance = GpuSelection.from_document(TOY | {"data": data})
    document = read_document(result_document(run(instance, "first_fit_decreasing")))
    written = json.loads(export(instance, document, "assignment"))
    total: dict[str, float] = {}
    for replica in written["replicas"]:
        assert 0 < replica["utilisation"] <= 1 + 1e-9
        for name, rate in replica["rate_per_s"].items():
            total[name] = total.get(name, 0.0) + rate
    assert total == {item.name: pytest.approx(item.rate_per_s) for item in instance.work}
