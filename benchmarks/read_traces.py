"""Time and memory of counting a long trace into a workload: `python benchmarks/read_traces.py [ROWS]` (10⁷ by default).

Writes a synthetic Azure CSV and a synthetic Mooncake file of ROWS requests each into a temporary folder (about 0.4 and 1 GB at 10⁷), reads
each in a fresh process, and prints seconds and peak memory of that process. Protocol: one run a file; the file has just been written, so it
comes from the page cache; the time includes importing pyarrow and hashing the file. Sizes are lognormal with the medians of the Azure 2023
chat trace (Splitwise, ISCA 2024).
"""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SEED = 7
BLOCK_ROWS = 100_000
TARGET_S, TARGET_MIB = 60.0, 2048.0


def blocks(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of (arrival in ms, prompt tokens, output tokens)."""
    generator = np.random.default_rng(SEED)
    now_ms = 0.0
    for start in range(0, rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows - start)
        arrival_ms = now_ms + np.cumsum(generator.exponential(180.0, count))
        now_ms = float(arrival_ms[-1])
        prompt = np.clip(np.rint(generator.lognormal(np.log(1020), 0.9, count)), 1, 100_000)
        output = np.clip(np.rint(generator.lognormal(np.log(129), 0.9, count)), 1, 4_000)
        yield arrival_ms, prompt.astype(np.int64), output.astype(np.int64)


def write_azure(path: Path, rows: int) -> None:
    origin = np.datetime64("2024-05-10T00:00:00", "ns")
    with open(path, "w", encoding="ascii") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\r\n")
        for arrival_ms, prompt, output in blocks(rows):
            times = np.datetime_as_string(origin + (arrival_ms * 1e6).astype("timedelta64[ns]"), unit="ns")
            file.writelines(f"{t[:10]} {t[11:27]},{p},{o}\r\n" for t, p, o in zip(times.tolist(), prompt.tolist(), output.tolist(), strict=True))


def write_mooncake(path: Path, rows: int) -> None:
    with open(path, "w", encoding="ascii") as file:
        for arrival_ms, prompt, output in blocks(rows):
            file.writelines(
                f'{{"timestamp": {int(t)}, "input_length": {p}, "output_length": {o}, "hash_ids": [{int(t)}, {p}]}}\n'
                for t, p, o in zip(arrival_ms.tolist(), prompt.tolist(), output.tolist(), strict=True)
            )


def read(kind: str, path: str) -> None:
    """Read one file and print figures: what the child process does."""
    start = time.perf_counter()
    from headroom.instances.request_traces import read_trace

    workload, _ = read_trace(path, kind)
    seconds = time.perf_counter() - start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    verdict = "within" if seconds <= TARGET_S and peak_mib <= TARGET_MIB else "MISSES"
    size_mb = Path(path).stat().st_size / 1e6
    print(
        f"{kind:10} {workload.requests:>11,} rows {size_mb:8.0f} MB  {seconds:6.1f} s  peak {peak_mib:6.0f} MiB  "
        f"{len(workload.buckets)} buckets  {verdict} the target of {TARGET_S:.0f} s, {TARGET_MIB:.0f} MiB"
    )


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        read(sys.argv[2], sys.argv[3])
        return
    rows = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000
    import pyarrow

    print(
        f"Python {platform.python_version()}, pyarrow {pyarrow.__version__}, numpy {np.__version__}, {platform.machine()}, {rows:,} rows, seed {SEED}"
    )
    for kind, write in (("azure-llm", write_azure), ("mooncake", write_mooncake)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"trace.{'csv' if kind == 'azure-llm' else 'jsonl'}"
            write(path, rows)
            subprocess.run([sys.executable, __file__, "--read", kind, str(path)], check=True)


if __name__ == "__main__":
    main()
