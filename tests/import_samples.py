"""Small inputs for the importers whose results can be worked out on paper, and where the real files are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

HEADER = "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,e2e_time,tensor_parallel"

# (prompt, batch, output): (prompt time, token time) in ms, one factor at a time around (100, 1, 10).
TOY_TIMES_MS: dict[tuple[int, int, int], tuple[float, float]] = {
    (50, 1, 10): (60, 19),
    (100, 1, 10): (100, 20),
    (200, 1, 10): (220, 22),
    (100, 2, 10): (180, 24),
    (100, 4, 10): (340, 32),
    (100, 8, 10): (700, 40),
    (100, 1, 20): (101, 21),
    (100, 1, 40): (99, 25),
}


def table_text(times_ms: dict[tuple[int, int, int], tuple[float, float]], model: str = "toy-model", hardware: str = "toy-gpu", tp: int = 1) -> str:
    """Rows (without the header) of a performance table, three repeats each, whose median is the time given."""
    rows = []
    for (prompt, batch, output), (prompt_ms, token_ms) in times_ms.items():
        for jitter in (-0.5, 0.0, 30.0):
            rows.append(f"{model},{hardware},{prompt},{batch},{output},1,0.5,{prompt_ms + jitter},{token_ms + jitter},1000,{tp}")
    return "\n".join(rows) + "\n"


def write_table(path: Path, *bodies: str) -> Path:
    """A table file made of `table_text` bodies; the toy table if there are none."""
    path.write_text(HEADER + "\n" + "".join(bodies or (table_text(TOY_TIMES_MS),)))
    return path


def write_catalogue(path: Path) -> Path:
    """toy-model: 0.5 GB of weights, 400,000 B of KV a token. toy-gpu: 1 GB, 2 USD/h. So 0.9·1e9 − 0.5e9 = 0.4e9 B hold 1,000 tokens."""
    gpu = {"name": "Toy-GPU", "memory_gb": 1, "prices": [{"usd_per_h": 2, "date": "2026", "source": "test"}]}
    model = {"name": "toy-model", "weights_bytes": 0.5e9, "kv_bytes_per_token": 400_000}
    path.write_text(json.dumps({"gpus": [gpu], "models": [model]}))
    return path


def write_trace(path: Path, rows: list[tuple[str, int, int]]) -> Path:
    """An Azure CSV as published: CRLF, no line end after the last row."""
    path.write_bytes("\r\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{t},{p},{o}" for t, p, o in rows)]).encode())
    return path


def real_file(name: str) -> Path:
    """A file of the folder that HEADROOM_DATA names; the test is skipped where it is unset."""
    folder = os.environ.get("HEADROOM_DATA")
    if not folder:
        pytest.skip("HEADROOM_DATA does not name the folder of real data")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


AZURE_CHAT = "azure_llm_2023/AzureLLMInferenceTrace_conv.csv"
MOONCAKE = "mooncake_fast25/synthetic_trace.jsonl"
SPLITWISE = "splitwise_perf_model/perf_model.csv"
