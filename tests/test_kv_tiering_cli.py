"""The command line for KV tiering, as its users walk through it: every verb, and what it says of broken input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import headroom, one_document, only_error

# Two blocks of 4 bytes, room for one above (10 bytes/s; below 2): read in both steps each, one below: 2 s a step.
TOY: dict[str, Any] = {
    "schema": "headroom/instance/1",
    "family": "kv_tiering",
    "name": "pair",
    "data": {
        "tiers": [
            {"name": "hbm", "capacity_bytes": 4, "read_bytes_per_s": 10, "write_bytes_per_s": 10},
            {"name": "dram", "capacity_bytes": None, "read_bytes_per_s": 2, "write_bytes_per_s": 2},
        ],
        "block_bytes": [4, 4],
        "reads": {"indptr": [0, 2, 4], "block": [0, 1, 0, 1]},
    },
}
OPTIMUM_S = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the instance and a plan of it."""
    path = tmp_path_factory.mktemp("elsewhere")
    (path / "x.json").write_text(json.dumps(TOY))
    done = headroom("solve", "x.json", "--method", "highs", "-o", "plan.json", cwd=path)
    assert done.returncode == 0, done.stderr
    assert "objective" in done.stdout
    assert "4 s" in done.stdout
    assert "waiting for dram 100%" in done.stdout
    return path


def edited(folder: Path, name: str, **changes: Any) -> str:
    """A copy of the plan with another name and changed fields of its `plan`."""
    document = json.loads((folder / "plan.json").read_text())
    document["plan"] |= changes
    (folder / name).write_text(json.dumps(document))
    return name


def test_plan_document(folder: Path) -> None:
    document = json.loads((folder / "plan.json").read_text())
    assert document["evaluation"]["objective"] == pytest.approx(OPTIMUM_S)
    details = document["details"]["tiering"]
    assert details["tiers"] == ["hbm", "dram"]
    assert details["read_bytes"] == [8, 8]
    assert details["moves"] == [[0, 0], [0, 0]]


def test_auto_solves_it(folder: Path) -> None:
    found = one_document(headroom("solve", "x.json", "--json", cwd=folder).stdout)
    assert found["result"]["objective"] == pytest.approx(OPTIMUM_S)
    assert found["result"]["certified_bound"] > 0.5 * OPTIMUM_S


def test_bounds_and_verify(folder: Path) -> None:
    done = headroom("bound", "x.json", "--method", "all", "--json", cwd=folder)
    values = {item["method"]: item["value"] for item in one_document(done.stdout)["bounds"]}
    assert set(values) == {"bandwidth", "hit_volume", "lagrangian", "lp"}
    # 16 bytes at 12 bytes a second are 4/3 s; the relaxation must leave one block below and finds the optimum.
    assert values["bandwidth"] == pytest.approx(4 / 3, rel=1e-6)
    assert values["lp"] == pytest.approx(OPTIMUM_S, rel=1e-4)
    assert all(value <= OPTIMUM_S * (1 + 1e-9) for value in values.values())
    checked = headroom("verify", "x.json", "plan.json", cwd=folder)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.rstrip().endswith("verified")


def test_exports(folder: Path) -> None:
    for target, name in (("schedule", "s.json"), ("residency", "r.jsonl")):
        done = headroom("export", "x.json", "plan.json", "--to", target, "-o", name, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
    initial = json.loads((folder / "s.json").read_text())["initial"]
    first = json.loads((folder / "r.jsonl").read_text().splitlines()[1])
    assert first["enter"] == initial
    assert sorted(map(len, initial.values())) == [1, 1]
    assert only_error(headroom("export", "x.json", "plan.json", "--to", "csv", "-o", "f", cwd=folder)) == (
        "--to: must be one of schedule, residency for kv_tiering, got 'csv'"
    )


def test_broken_plans(folder: Path) -> None:
    beyond = edited(folder, "beyond.json", initial_tier=[0, 7])
    message = "beyond.json: plan: initial_tier[1] must be a tier from 0 to 1, got 7"
    assert only_error(headroom("export", "x.json", beyond, "--to", "schedule", "-o", "f", cwd=folder)) == message
    assert only_error(headroom("verify", "x.json", beyond, cwd=folder)) == message
    full = edited(folder, "full.json", initial_tier=[0, 0], moves={"step": [], "block": [], "to_tier": []})
    done = headroom("export", "x.json", full, "--to", "residency", "-o", "f", cwd=folder)
    assert done.returncode == 1
    assert "capacity[tier hbm, step 0] exceeded by 4 (limit 4)" in done.stderr
    assert headroom("export", "x.json", full, "--to", "residency", "-o", "f", "--force", cwd=folder).returncode == 0
    verified = headroom("verify", "x.json", full, cwd=folder)
    assert verified.returncode == 1
    assert "hbm 200.0% full" in verified.stdout


def test_broken_instance(folder: Path) -> None:
    broken = json.loads(json.dumps(TOY))
    broken["data"]["reads"]["block"][1] = 2
    (folder / "broken.json").write_text(json.dumps(broken))
    assert only_error(headroom("solve", "broken.json", cwd=folder)) == "broken.json: data: reads.block[1] must be a block from 0 to 1, got 2"


def test_sweep(folder: Path) -> None:
    done = headroom("sweep", "x.json", "--method", "highs", "--vary", "capacity:hbm=0,4,8", "-o", "s.csv", "--plot", "s.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    for said in ("capacity of hbm in pair (kv_tiering), objective in s", "now 4 bytes", "saves [s/byte]", "waiting for"):
        assert said in done.stdout
    assert (folder / "s.png").read_bytes()[:4] == b"\x89PNG"
    document = one_document(headroom("sweep", "x.json", "--method", "highs", "--vary", "capacity:hbm=0:8B:3", "--json", cwd=folder).stdout)
    # Both blocks below 8 s; one 4 s; both above 0.8 s a step.
    assert {point["at"]["capacity"]: point["objective"] for point in document["points"]} == pytest.approx({0: 8.0, 4: 4.0, 8: 1.6})
    assert document["sweep"]["axes"] == {"capacity": "bytes"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vary", "capacity:dram=1"), "capacity: must name a tier with a capacity, one of ['hbm'], got 'dram'"),
        (("--vary", "capacity:hbm=2XB"), "capacity of hbm: must be a list such as 1GiB,2GiB or lo:hi:n such as 1GiB:4GiB:7, got '2XB'"),
        (("--vary", "capacity:hbm=-1,2"), "capacity of hbm: must be finite and at least 0, got -1"),
        (("--price", "hbm=1,2"), "sweep: 'price' cannot be swept in kv_tiering; expected one of capacity, shadow"),
    ],
)
def test_wrong_sweeps(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    assert only_error(headroom("sweep", "x.json", *arguments, cwd=folder)) == message


def test_shadow(folder: Path) -> None:
    document = one_document(headroom("sweep", "x.json", "--method", "highs", "--shadow", "--json", cwd=folder).stdout)
    (price,) = document["shadow_prices"]
    assert (price["constraint"], price["index"], price["step"]) == ("capacity", "hbm", 4.0)
    assert (price["relaxed"]["value"], price["tightened"]["value"]) == pytest.approx((2.4, 4.0))


def test_sensitivity_points_at_the_sweep(folder: Path) -> None:
    done = headroom("solve", "x.json", "--method", "belady", "--sensitivity", cwd=folder)
    assert "belady reports none; headroom sweep X --shadow finds what each limit is worth" in done.stdout


def test_compare(folder: Path) -> None:
    arguments = ("--methods", "static,lru,belady", "--bounds", "bandwidth,lp", "--json")
    rows = one_document(headroom("compare", "x.json", *arguments, cwd=folder).stdout)["rows"]
    assert {row["method"] for row in rows} == {"static", "lru", "belady", "bandwidth", "lp"}
    assert min(row["objective"] for row in rows if row["objective"] is not None) == pytest.approx(OPTIMUM_S)


def test_generate_with_settings(folder: Path) -> None:
    arguments = ("generate", "kv_tiering", "--preset", "drift-0.1", "--seed", "1")
    done = headroom(*arguments, "--set", "blocks=40", "--set", "steps=5", "-o", "d.npz", cwd=folder)
    assert done.returncode == 0, done.stderr
    solved = headroom("solve", "d.npz", "--method", "lru", "-o", "d-plan.npz", cwd=folder)
    assert solved.returncode == 0, solved.stderr
    assert headroom("verify", "d.npz", "d-plan.npz", cwd=folder).returncode == 0
    assert only_error(headroom(*arguments, "--set", "bloks=40", cwd=folder)).startswith("field 'bloks' is unknown; expected one of blocks, steps")


def test_import(folder: Path) -> None:
    np.savez(folder / "reads.npz", topk=np.array([[[0, 1]], [[2, 3]], [[0, 3]]]))
    tiers = ("--tier", "hbm:0.00000002:8:8", "--tier", "dram:-:1:1")
    done = headroom("import", "kv-access", "reads.npz", "-o", "i.json", "--kv-entry-bytes", "10", *tiers, cwd=folder)
    assert done.returncode == 0, done.stderr
    solved = one_document(headroom("solve", "i.json", "--method", "highs", "--json", cwd=folder).stdout)
    assert solved["result"]["status"] == "optimal"
    assert headroom("export-model", "i.json", "-o", "i.lp", cwd=folder).returncode == 0
    wrong = headroom("import", "kv-access", "x.json", "-o", "j.json", "--kv-entry-bytes", "10", *tiers, cwd=folder)
    assert only_error(wrong).startswith("x.json: ")


def test_schemas(folder: Path) -> None:
    for what, fields in (("instance", {"tiers", "reads", "block_bytes"}), ("plan", {"initial_tier", "moves"})):
        schema = one_document(headroom("schema", "kv_tiering", what, cwd=folder).stdout)
        part = schema["properties"]["data"] if what == "instance" else schema["properties"]["plan"]["anyOf"][0]
        assert fields <= set(part["properties"])
