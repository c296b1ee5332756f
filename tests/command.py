"""Running the installed `headroom` command as its users do: a process with its own standard streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("headroom")
STUBS = ROOT / "tests" / "stubs"

TOY: dict[str, Any] = {
    "schema": "headroom/instance/1",
    "family": "gpu_selection",
    "name": "toy",
    "data": {
        "work": [{"name": name, "rate_per_s": rate} for name, rate in (("a", 6.0), ("b", 3.0), ("c", 15.0), ("d", 6.0))],
        "gpus": [{"name": "A10G", "price_usd_per_h": 1.01}, {"name": "A100-80GB", "price_usd_per_h": 3.67}],
        "throughput_per_s": [[2, 1, 5, 2], [20, 20, 40, 20]],
        "slices": 1,
    },
}
"""Two types, four buckets, 30 requests/s. With whole buckets (slices 1) three A10G serve c exactly (15/5) and one A100 the other three
(6/20 + 3/20 + 6/20 = 0.75): 3 · 1.01 + 3.67 = 6.70 USD/h, the optimum."""
TOY_OPTIMUM = 6.70


def environment(stubs: bool = False, **extra: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("STUB_")}
    if stubs:
        known["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STUBS), known.get("PYTHONPATH"))))
    return known | extra


def headroom(
    *arguments: str | Path, cwd: Path, stdin: str | bytes = b"", stubs: bool = False, timeout: float = 120, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end. Output is text; what is not UTF-8 fails the test."""
    done = subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        cwd=cwd,
        env=environment(stubs, **extra),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


def start(*arguments: str | Path, cwd: Path, stubs: bool = False, **extra: str) -> subprocess.Popen[str]:
    """Start the command and return at once."""
    return subprocess.Popen(
        [str(COMMAND), *map(str, arguments)],
        cwd=cwd,
        env=environment(stubs, **extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_toy(folder: Path, name: str = "toy.json", **data: Any) -> Path:
    """The toy instance with some data fields changed."""
    path = folder / name
    path.write_text(json.dumps(TOY | {"data": TOY["data"] | data}), "utf-8")
    return path


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that refused its input."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("headroom: error: "), line
    return line.removeprefix("headroom: error: ")


def one_document(text: str) -> Any:
    """stdout under --json: strict JSON, once, and nothing else."""
    return json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
