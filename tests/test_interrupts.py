"""SIGINT and SIGTERM at every moment: exit code 130 or 143, the best plan so far or a clear word, never a traceback."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import COMMAND, environment, headroom, start, write_toy

SAID = "headroom: interrupted before there was anything to keep\n"
BOTH = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupted(method: str, folder: Path, number: int, *options: str) -> tuple[int, str, str, float]:
    """Solve with a stub method, signal it once it runs: exit code, stdout, stderr, seconds from the signal to the end."""
    toy, ready = write_toy(folder), folder / "ready"
    process = start("solve", toy, "--method", method, "-o", folder / "plan.json", *options, cwd=folder, stubs=True, STUB_READY=str(ready))
    wait_for(ready, process)
    process.send_signal(number)
    sent = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in out + err
    return process.returncode, out, err, time.monotonic() - sent


@BOTH
@pytest.mark.parametrize("method", ["slow", "stubborn"])
def test_best_plan_so_far_is_written_and_verifies(method: str, number: int, code: int, tmp_path: Path) -> None:
    returned, out, err, seconds = interrupted(method, tmp_path, number)
    assert returned == code
    assert "best plan so far was written to" in err
    assert "stopped: interrupted" in out
    assert seconds < (2 if method == "slow" else 8)
    document = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert document["result"]["stop"] == "interrupted"
    assert document["result"]["status"] == "feasible"
    # The live bound of a method that was cut off is its own word; it has no certificate.
    assert [bound["proof"] for bound in document["bounds"]] == ["solver"]
    verified = headroom("verify", tmp_path / "toy.json", tmp_path / "plan.json", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout
    assert "not rechecked" in verified.stdout


@BOTH
@pytest.mark.parametrize("method", ["planless", "deaf"])
def test_without_a_plan_it_says_so_and_keeps_the_old_file(method: str, number: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("the plan of yesterday", "utf-8")
    returned, _, err, _ = interrupted(method, tmp_path, number)
    assert returned == code
    assert "interrupted before any plan was found" in err
    assert (tmp_path / "plan.json").read_text("utf-8") == "the plan of yesterday"


def test_json_stays_one_document(tmp_path: Path) -> None:
    returned, out, _, _ = interrupted("stubborn", tmp_path, signal.SIGINT, "--json")
    assert returned == 130
    assert json.loads(out)["result"]["stop"] == "interrupted"


def test_second_signal_does_not_wait_for_the_grace_period(tmp_path: Path) -> None:
    toy, ready = write_toy(tmp_path), tmp_path / "ready"
    process = start("solve", toy, "--method", "stubborn", "-o", "plan.npz", cwd=tmp_path, stubs=True, STUB_READY=str(ready))
    wait_for(ready, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - sent < 1.9
    assert headroom("verify", toy, "plan.npz", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.3, 0.45, 0.7])
@BOTH
def test_at_any_moment_of_start_up(delay: float, number: int, code: int, tmp_path: Path) -> None:
    # Wherever it strikes — imports, reading, the method — the command ends quietly. Before Python itself has started (the first hundredths
    # of a second) the system's own answer is the only one there can be.
    toy = write_toy(tmp_path)
    process = start("solve", toy, "--method", "slow", cwd=tmp_path, stubs=True)
    time.sleep(delay)
    process.send_signal(number)
    early = delay <= 0.1
    try:
        out, err = process.communicate(timeout=10 if early else 30)
    except subprocess.TimeoutExpired:
        # While Python starts, on a busy machine, it can lose an interrupt; people press Ctrl-C again.
        process.send_signal(number if early else signal.SIGKILL)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code or (early and process.returncode in (-number, 1, 130)), err
    assert early or "Traceback" not in out + err


def test_an_interrupt_that_python_would_drop(tmp_path: Path) -> None:
    # Python reports an exception in a finaliser or a weakref callback and goes on; the import system has such callbacks.
    script = """
import os, signal, weakref
from headroom.interrupts import signals

class Thing: pass

signals.install()
thing = Thing()
reference = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGINT), len("x")))
del thing
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", SAID)


def test_while_reading_standard_input(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([str(COMMAND), "solve", "-"], cwd=tmp_path, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", SAID)


@pytest.mark.parametrize("verb", ["bound", "demo"])
def test_other_verbs(verb: str, tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    process = start(verb, *([toy] if verb == "bound" else []), cwd=tmp_path)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in out + err


def test_time_limit_with_a_plan_is_success(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    done = headroom("solve", toy, "--method", "slow", "--time-limit", "0.2", "-o", "plan.json", cwd=tmp_path, stubs=True)
    assert done.returncode == 0
    assert "stopped: time limit" in done.stdout


def test_time_limit_without_a_plan_is_not(tmp_path: Path) -> None:
    done = headroom("solve", write_toy(tmp_path), "--method", "planless", "--time-limit", "0.2", cwd=tmp_path, stubs=True)
    assert done.returncode == 1


def test_a_failing_method_keeps_its_best_plan(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    done = headroom("solve", toy, "--method", "failing", "-o", "plan.json", cwd=tmp_path, stubs=True)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("headroom: error: internal error, a bug in headroom: RuntimeError: a bug, on two lines")
    assert json.loads((tmp_path / "plan.json").read_text("utf-8"))["result"]["stop"] == "error"
    assert headroom("verify", toy, "plan.json", cwd=tmp_path).returncode == 0
    assert "Traceback" in headroom("solve", toy, "--method", "failing", "--debug", cwd=tmp_path, stubs=True).stderr


def test_live_line_on_a_terminal_only(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    arguments = [str(COMMAND), "solve", str(toy), "--method", "slow", "--time-limit", "1", "--json"]
    terminal, far_end = pty.openpty()
    done = subprocess.run(arguments, env=environment(stubs=True), stdout=subprocess.PIPE, stderr=far_end, text=True, timeout=60, check=False)
    os.close(far_end)
    painted = os.read(terminal, 100_000).decode()
    os.close(terminal)
    # Every bucket keeps three A10G busy: 12 · 1.01 USD/h, and the stub claims a bound of 1.
    assert "incumbent 12.12  bound 1  gap 91.7%" in painted
    assert math.isfinite(json.loads(done.stdout)["result"]["objective"])
    piped = headroom(*arguments[1:], cwd=tmp_path, stubs=True)
    assert piped.stderr == ""


@pytest.mark.parametrize("delay", [0.8, 2.0])
@pytest.mark.parametrize("method", ["branching", "highs", "cpsat"])
def test_real_methods_on_a_real_search(method: str, delay: float, tmp_path: Path) -> None:
    assert interrupted_search(tmp_path, method, delay, "capped-20x1000") == 130


@pytest.mark.parametrize(
    ("method", "preset", "rate_per_s"),
    [("column_generation", "replicas-10x6", 6000), ("decomposition", "week-minutes-4gpu-6x6", 64), ("highs", "week-4gpu-6x6", 64)],
)
def test_real_methods_of_the_other_modes(method: str, preset: str, rate_per_s: float, tmp_path: Path) -> None:
    assert interrupted_search(tmp_path, method, 4.0, preset, "--set", f"total_rate_per_s={rate_per_s}") == 130


def interrupted_search(folder: Path, method: str, delay_s: float, preset: str, *settings: str) -> int:
    """The exit code of an interrupted solve, which leaves soon, with its best plan if it has one."""
    made = headroom("generate", "gpu_selection", "--preset", preset, "--seed", "2", *settings, "-o", "big.npz", cwd=folder)
    assert made.returncode == 0, made.stderr
    process = start("solve", "big.npz", "--method", method, "-o", "plan.npz", cwd=folder)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in out + err
    assert time.monotonic() - sent < 8
    if (folder / "plan.npz").exists():
        verified = headroom("verify", "big.npz", "plan.npz", cwd=folder)
        assert verified.returncode == 0, verified.stdout
    else:
        assert "interrupted before " in err
    return int(process.returncode)
