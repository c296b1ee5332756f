"""Reader of recorded attention (`kv-access`): small arrays with the instance worked out by hand, and broken ones."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner, Result

from headroom.cli_import import add_import_command
from headroom.instances.base import load_document
from headroom.instances.errors import InputError
from headroom.instances.importers import IMPORTERS
from headroom.instances.kv_tiering import KvTiering
from headroom.instances.kv_tiering_import import import_kv_access

TIER = ("fast:0.000001:8:4", "slow:-:1:0.5")
# Two decode steps, two layers, three tokens each; 4 tokens of prompt, so that step 0 makes token 4 and step 1 token 5.
TOPK = np.array([[[0, 3, 4], [4, 1, -1]], [[5, 0, 2], [3, 3, 5]]])


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def read(path: Path, **options: Any) -> tuple[KvTiering, list[str]]:
    return import_kv_access(path, **({"tier": TIER, "kv_entry_bytes": 10.0} | options))


def rows(instance: KvTiering) -> list[list[int]]:
    indptr, block = instance.reads.indptr, instance.reads.block
    return [block[indptr[t] : indptr[t + 1]].tolist() for t in range(instance.steps)]


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- By hand --------------------------------------------------------------------------------------------------------------------------


def test_topk_by_hand(tmp_path: Path) -> None:
    instance, notices = read(write_npz(tmp_path / "a.npz", topk=TOPK), prompt_tokens=4, fixed_read_bytes=7.0)
    # 6 tokens in the end, in 2 layers: blocks 0 to 5 and 6 to 11. Steps: (token 0, layer 0), (0, 1), (1, 0), (1, 1).
    assert (instance.blocks, instance.steps) == (12, 4)
    assert rows(instance) == [[0, 3, 4], [7, 10], [0, 2, 5], [9, 11]]
    # Token 4 is made in decode step 0 (steps 0 and 1 of its layers), token 5 in decode step 1 (steps 2 and 3).
    assert instance.birth.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 3]
    assert notices == ["topk names 1 tokens again in the same step and layer: each is read once"]
    assert set(instance.size) == {10.0}
    assert instance.reads.bytes is None
    assert instance.fixed.tolist() == [7.0] * 4
    assert [tier.name for tier in instance.tiers] == ["fast", "slow"]
    assert instance.capacity.tolist() == [1000.0, np.inf]
    assert (1 / instance.read_s).tolist() == pytest.approx([8e9, 1e9])
    assert (1 / instance.write_s).tolist() == pytest.approx([4e9, 5e8])
    assert instance.name == "a"
    assert instance.provenance["options"]["prompt_tokens"] == 4
    assert instance.provenance["sources"][0]["file"] == "a.npz"
    assert instance.provenance["notices"] == notices
    json.dumps(instance.document())


def test_pages_by_hand(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", topk=TOPK.astype(np.int16))
    instance, _ = read(path, prompt_tokens=4, page_tokens=2, partial_reads=True, inclusive=True)
    # Pages 0 (tokens 0, 1), 1 (2, 3) and 2 (4, 5) of layer 0; 3, 4, 5 of layer 1. Page 2 is born with token 4.
    assert rows(instance) == [[0, 1, 2], [3, 5], [0, 1, 2], [4, 5]]
    assert instance.birth.tolist() == [0, 0, 0, 0, 0, 1]
    assert set(instance.size) == {20.0}
    assert instance.reads.bytes is not None
    assert instance.reads.bytes.tolist() == [10.0] * 10  # step 2 reads tokens 0, 2 and 5: one of each page; step 3 token 3 once
    assert instance.inclusive
    both, _ = read(write_npz(tmp_path / "b.npz", topk=[[[0, 1, 2]]]), prompt_tokens=4, page_tokens=2, partial_reads=True)
    assert both.reads.bytes is not None
    assert both.reads.bytes.tolist() == [20.0, 10.0]
    whole, _ = read(path, prompt_tokens=4, page_tokens=2)
    assert whole.reads.bytes is None
    # 6 tokens in pages of 4: the second page, 4 to 7, is half filled at the end but whole from its birth on.
    assert read(path, prompt_tokens=4, page_tokens=4)[0].blocks == 4


def test_without_prompt_tokens_all_exist_from_the_start(tmp_path: Path) -> None:
    instance, notices = read(write_npz(tmp_path / "a.npz", topk=TOPK.astype(np.uint8).clip(0, 5)))
    assert instance.birth.max() == 0
    assert instance.blocks == 12
    assert notices[0].startswith("prompt_tokens: all 6 tokens exist from the start on")


def test_scores_by_hand(tmp_path: Path) -> None:
    # One layer, 2 tokens of prompt; in step 0 tokens 0 to 2 exist, in step 1 tokens 0 to 3. What stands beyond them does not count.
    scores = np.array([[[0.1, 0.5, 0.4, 9.0]], [[0.3, 0.1, 0.2, 0.3]]], dtype=np.float32)
    path = write_npz(tmp_path / "s.npz", scores=scores)
    instance, _ = read(path, prompt_tokens=2, top_k=2)
    assert rows(instance) == [[1, 2], [0, 3]]
    assert instance.birth.tolist() == [0, 0, 0, 1]
    # Half of 3 rounds to 2 (1.5, to the even number), half of 4 is 2; three quarters left out: 1 each (0.75 and 1).
    assert rows(read(path, prompt_tokens=2, sparsity=0.5)[0]) == [[1, 2], [0, 3]]
    assert rows(read(path, prompt_tokens=2, sparsity=0.75)[0]) == [[1], [0]]  # the first of equal scores
    assert rows(read(path, top_k=9)[0]) == [[0, 1, 2, 3]] * 2
    masked = write_npz(tmp_path / "m.npz", scores=np.where(scores < 0.15, -np.inf, scores).astype(np.float16))
    assert rows(read(masked, top_k=9)[0]) == [[1, 2, 3], [0, 2, 3]]
    assert rows(read(path, top_k=1)[0]) == [[3], [0]]
    hidden = np.where(np.arange(4) > np.array([2, 3])[:, None, None], np.nan, scores)
    assert read(write_npz(tmp_path / "n.npz", scores=hidden), prompt_tokens=2, top_k=2)[0] == instance
    both, notices = read(write_npz(tmp_path / "b.npz", scores=scores, topk=[[[1]], [[0]]]), prompt_tokens=2)
    assert rows(both) == [[1], [0]]
    assert notices == ["scores are not used: topk says what is read"]


def test_hardware(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", topk=TOPK)
    instance, notices = read(path, tier=None, hardware="gh200", fixed_read_bytes=1e8, prompt_tokens=4)
    # 0.9 · 144 GB less two layers of 0.1 GB.
    assert instance.capacity.tolist() == [pytest.approx(129.4e9), np.inf]
    assert (1 / instance.read_s).tolist() == pytest.approx([4.9e12, 4.5e11])
    assert any(notice.startswith("gh200-hbm: 129.4 GB for the KV cache") for notice in notices)
    pcie, _ = read(path, tier=None, hardware=["h100-pcie"], kv_capacity_gb=0.5, prompt_tokens=4)
    assert pcie.capacity.tolist() == [5e8, np.inf]
    assert (1 / pcie.write_s).tolist() == pytest.approx([3.35e12, 6.4e10])


# ---- Broken input -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        ({"topk": TOPK.astype(float)}, {}, "topk must be whole numbers [step][layer][k], got 3 dimensions of float64"),
        ({"topk": TOPK[0]}, {}, "topk must be whole numbers [step][layer][k], got 2 dimensions of int64"),
        ({"topk": TOPK[:, :, :0]}, {}, "topk must have at least one step, layer and token, got 2 x 2 x 0"),
        ({"topk": TOPK - 1}, {}, "topk[0][1][2] must be a token, or -1 for none, got -2"),
        ({"topk": TOPK}, {"prompt_tokens": 3}, "topk[0][0][2] must be a token from 0 to 3, which exist in step 0, got 4"),
        ({"topk": np.full((1, 1, 2), -1)}, {}, "no step reads any token"),
        ({"topk": np.array([[[10**9]]])}, {}, "topk must name tokens below 100000000, got 1000000000"),
        ({"topk": np.array([[[2**64 - 1]]], dtype=np.uint64)}, {}, "topk must name tokens below 100000000, got 18446744073709551615"),
        ({"topk": TOPK}, {"prompt_tokens": 10**8}, "makes 2 x 100000002 blocks, one for each layer and page; expected at most 100000000"),
        ({"topk": TOPK}, {"top_k": 2}, "--top-k is for scores"),
        ({"scores": np.ones((1, 1, 3))}, {}, "has scores: expected --top-k or --sparsity"),
        ({"scores": np.ones((1, 1, 3), int)}, {"top_k": 1}, "scores must be floating-point numbers [step][layer][token], got 3 dimensions of int64"),
        ({"scores": np.array([[[1.0, np.nan]]])}, {"top_k": 1}, "scores[0][0][1] must be a number, got nan"),
        ({"scores": np.ones((2, 1, 3))}, {"top_k": 1, "prompt_tokens": 2}, "scores must have 4 tokens, --prompt-tokens and one for each step, got 3"),
        ({"scores": np.ones((1, 1, 3))}, {"sparsity": 1.0}, "no step reads any token"),
        ({"other": TOPK}, {}, "has neither topk nor scores"),
        ({"topk": np.array([[["a"]]])}, {}, "topk must be whole numbers [step][layer][k], got 3 dimensions of <U1"),
        ({"topk": np.array([[[None]]], dtype=object)}, {}, "not a readable .npz file: it holds Python objects (a pickle)"),
    ],
)  # fmt: skip
def test_broken_arrays(tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], expected: str) -> None:
    path = write_npz(tmp_path / "x.npz", **arrays)
    assert error_of(path, **options).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kv_entry_bytes": None}, "--kv-entry-bytes: is missing"),
        ({"kv_entry_bytes": 0.5}, "kv_entry_bytes must be a number from 1 to"),
        ({"page_tokens": 0}, "page_tokens must be a whole number from 1 to"),
        ({"page_tokens": 1.5}, "page_tokens must be a whole number from 1 to"),
        ({"prompt_tokens": 0}, "prompt_tokens must be a whole number from 1 to"),
        ({"fixed_read_bytes": float("nan")}, "fixed_read_bytes must be a number from 0 to"),
        ({"sparsity": 2.0}, "sparsity must be a number from 0 to 1"),
        ({"top_k": 1, "sparsity": 0.5}, "--top-k: cannot be given with --sparsity"),
        ({"tier": None}, "--tier: is missing; expected name:capacity_gb:read_gb_per_s:write_gb_per_s"),
        ({"tier": ["fast:1:8"]}, "--tier: must be name:capacity_gb:read_gb_per_s:write_gb_per_s (capacity - for the last), got 'fast:1:8'"),
        ({"tier": ["fast:x:8:8"]}, "--tier: must be name:capacity_gb"),
        ({"tier": ["fast:1:0:8", "slow:-:1:1"]}, "--tier: must be name:capacity_gb"),
        ({"tier": ["fast:nan:8:8", "slow:-:1:1"]}, "--tier: must be name:capacity_gb"),
        ({"tier": [":1:8:8", "slow:-:1:1"]}, "--tier: must be name:capacity_gb"),
        ({"tier": ["fast:1:8:8", "slow:5:1:1"]}, "tiers[1].capacity_bytes must be null because the last tier is unbounded"),
        ({"tier": ["a:1:8:8", "a:-:1:1"]}, "tiers[1].name must differ"),
        ({"hardware": "gh200"}, "--tier: cannot be given with --hardware"),
        ({"tier": None, "hardware": "b200"}, "--hardware: must be one of gh200, h100-pcie, got 'b200'"),
        ({"tier": None, "hardware": ["gh200", "h100-pcie"]}, "--hardware: must be one of gh200, h100-pcie, got 'gh200,h100-pcie'"),
        ({"tier": None, "hardware": "gh200", "fixed_read_bytes": 1e11}, "--fixed-read-bytes: must be at most 6.48e+10 for 2 layers on gh200-hbm"),
        ({"kv_capacity_gb": 3.0}, "--kv-capacity-gb: is for --hardware"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    assert error_of(write_npz(tmp_path / "a.npz", topk=TOPK), **options).startswith(expected)


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    assert "No such file" in error_of(path)
    path.write_bytes(b"")
    assert "is empty" in error_of(path)
    path.write_text("topk\n1,2\n")
    assert "not an .npz file" in error_of(path)
    whole = write_npz(path, topk=np.tile(TOPK, (50, 1, 1))).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable .npz file" in error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    assert "torch" in error_of(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    topk=hnp.arrays(np.int32, st.tuples(*[st.integers(1, 4)] * 3), elements=st.integers(-1, 9)),
    prompt=st.none() | st.integers(7, 12),
    page=st.integers(1, 5),
)
def test_every_table_of_tokens_is_read_or_refused(tmp_path: Path, topk: Any, prompt: int | None, page: int) -> None:
    path = write_npz(tmp_path / "h.npz", topk=topk)
    steps, layers, _ = topk.shape
    exists = True if prompt is None else bool((topk <= prompt + np.arange(steps)[:, None, None]).all())
    if not exists or topk.max() < 0:
        assert error_of(path, prompt_tokens=prompt, page_tokens=page).startswith(str(path))
        return
    instance, _ = read(path, prompt_tokens=prompt, page_tokens=page)
    pages = instance.blocks // layers
    for t, found in enumerate(rows(instance)):
        named = topk[t // layers, t % layers]
        assert found == sorted({t % layers * pages + int(token) // page for token in named if token >= 0})


# ---- Command line -----------------------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> Result:
    app = typer.Typer()
    add_import_command(app)
    return CliRunner().invoke(app, list(arguments))


def test_command_line(tmp_path: Path) -> None:
    path, out = write_npz(tmp_path / "a.npz", topk=TOPK), tmp_path / "x.npz"
    options = ["--tier", TIER[0], "--tier", TIER[1], "--kv-entry-bytes", "10", "--prompt-tokens", "4", "--fixed-read-bytes", "7"]
    flags = ["--page-tokens", "2", "--partial-reads", "--inclusive"]
    result = command("kv-access", str(path), "-o", str(out), *options, *flags)
    assert result.exit_code == 0, result.output
    assert f"{out}: kv_tiering instance, 6 blocks x 4 steps, 10 reads, 2 tiers (fast, slow)" in result.output
    made = KvTiering.from_document(load_document(out))
    again, _ = read(path, prompt_tokens=4, fixed_read_bytes=7.0, page_tokens=2, partial_reads=True, inclusive=True)
    assert made == again
    summary = command("kv-access", str(path), "-o", str(out), *options, "--json")
    document = json.loads(summary.stdout)
    assert {key: document[key] for key in ("format", "makes", "blocks", "steps", "reads", "tiers")} == {
        "format": "kv-access", "makes": "kv_tiering", "blocks": 12, "steps": 4, "reads": 10, "tiers": ["fast", "slow"],
    }  # fmt: skip
    scores = write_npz(tmp_path / "s.npz", scores=np.arange(24.0).reshape(2, 2, 6))
    options = ["--hardware", "h100-pcie", "--kv-capacity-gb", "1", "--kv-entry-bytes", "10", "--top-k", "2"]
    taken = command("kv-access", str(scores), "-o", str(out), *options)
    assert taken.exit_code == 0, taken.output
    assert KvTiering.from_document(load_document(out)).capacity[0] == 1e9


def test_options_belong_to_their_format(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", topk=TOPK)
    wrong = command("kv-access", str(path), "-o", str(tmp_path / "x.json"), "--devices", "2")
    assert "--devices" in str(wrong.exception)
    assert "is not an option of kv-access; expected --tier" in str(wrong.exception)
    assert set(IMPORTERS["kv-access"].options) >= {"tier", "hardware", "kv_entry_bytes", "page_tokens", "prompt_tokens"}
