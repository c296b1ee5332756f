"""The command line: every verb beside `solve`, through the installed command."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from headroom.registry import FAMILIES
from tests.command import TOY_OPTIMUM, headroom, one_document, write_toy


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy(tmp_path)


def test_families(tmp_path: Path) -> None:
    text = headroom("families", cwd=tmp_path).stdout
    document = one_document(headroom("families", "--json", cwd=tmp_path).stdout)
    assert [family["name"] for family in document["families"]] == list(FAMILIES)
    for family in FAMILIES.values():
        assert all(name in text for name in (family.name, *family.methods, *family.bounds, *family.presets, *family.exporters))


def test_demo(tmp_path: Path) -> None:
    began = time.monotonic()
    done = headroom("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert done.stdout.count("verified without a solver") == len(FAMILIES)
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(("family", "preset"), [(family.name, preset) for family in FAMILIES.values() for preset in family.presets])
def test_generate_is_reproducible(family: str, preset: str, tmp_path: Path) -> None:
    arguments = ("generate", family, "--preset", preset, "--seed", "7")
    printed = headroom(*arguments, cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert headroom(*arguments, "-o", "x.json", cwd=tmp_path).stdout == ""
    assert (tmp_path / "x.json").read_text("utf-8") == printed.stdout


def test_generate_with_overrides(tmp_path: Path) -> None:
    arguments = ("generate", "gpu_selection", "--preset", "toy", "--seed", "7", "--set", "slices=4", "--set", "max_utilisation=0.9")
    document = one_document(headroom(*arguments, cwd=tmp_path).stdout)
    assert (document["data"]["slices"], document["data"]["max_utilisation"]) == (4, 0.9)


def test_bound(toy: Path, tmp_path: Path) -> None:
    document = one_document(headroom("bound", toy, "--json", cwd=tmp_path).stdout)
    assert {item["method"] for item in document["bounds"]} == {"closed_form", "lp"}
    assert document["result"]["certified_bound"] == pytest.approx(4.12875)
    (only,) = one_document(headroom("bound", toy, "--method", "closed_form", "--json", cwd=tmp_path).stdout)["bounds"]
    assert only["proof"] == "closed_form"
    infeasible = write_toy(tmp_path, "i.json", throughput_per_s=[[2, 1, None, 2], [20, 20, None, 20]])
    done = headroom("bound", infeasible, cwd=tmp_path)
    assert done.returncode == 1
    assert "no plan exists" in done.stdout


def test_verify_says_how_far_a_plan_made_elsewhere_is(toy: Path, tmp_path: Path) -> None:
    plan = {"count": {"A100-80GB": 2}, "share": [[0, 0, 0, 0], [1, 1, 1, 1]]}
    text = json.dumps({"schema": "headroom/plan/1", "family": "gpu_selection", "plan": plan})
    done = headroom("verify", toy, "-", "--json", cwd=tmp_path, stdin=text)
    report = one_document(done.stdout)
    assert (done.returncode, report["verified"]) == (0, True)
    assert report["result"]["objective"] == pytest.approx(7.34)
    assert report["result"]["certified_gap"] == pytest.approx(1 - 4.12875 / 7.34)
    other = write_toy(tmp_path, "other.json", max_utilisation=0.9)
    headroom("solve", other, "-o", "plan.json", cwd=tmp_path)
    foreign = headroom("verify", toy, "plan.json", cwd=tmp_path)
    assert foreign.returncode == 1
    assert "made for another instance" in foreign.stdout


@pytest.mark.parametrize(("suffix", "word"), [(".lp", "min"), (".mps", "ROWS")])
def test_export_model_is_read_by_a_solver(suffix: str, word: str, toy: Path, tmp_path: Path) -> None:
    import highspy

    path = tmp_path / f"model{suffix}"
    assert headroom("export-model", toy, "-o", path.name, cwd=tmp_path).returncode == 0
    assert word in path.read_text("utf-8")
    solver = highspy.Highs()
    solver.silent()
    assert solver.readModel(str(path)) == highspy.HighsStatus.kOk
    solver.run()
    assert solver.getInfo().objective_function_value == pytest.approx(TOY_OPTIMUM)


@pytest.mark.parametrize("family", FAMILIES)
def test_schemas_accept_what_headroom_writes(family: str, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    preset = FAMILIES[family].demo_preset
    headroom("generate", family, "--preset", preset, "--seed", "1", "-o", "x.json", cwd=tmp_path)
    headroom("solve", "x.json", "--time-limit", "20", "-o", "plan.json", cwd=tmp_path)
    for what, name in (("instance", "x.json"), ("plan", "plan.json")):
        schema = one_document(headroom("schema", family, what, cwd=tmp_path).stdout)
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        document = json.loads((tmp_path / name).read_text("utf-8"))
        assert validator.is_valid(document), next(validator.iter_errors(document)).message
        assert not validator.is_valid(document | {"schema": "other"})
        assert not validator.is_valid({key: value for key, value in document.items() if key != "family"})
