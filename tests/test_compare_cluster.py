"""`compare` on a Dask cluster: the same table as at home, with limits, and with a worker killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from headroom.compare import compare
from headroom.instances.errors import InputError
from headroom.study import preset_cases
from tests.command import headroom, only_error, write_toy

distributed = pytest.importorskip("distributed")
TIMES = ("runtime_s", "started_s", "peak_memory_bytes", "trace")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as started:
        yield started


def same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    names = [name for name in first.columns if name not in TIMES]
    order = ["digest", "method", "kind", "seed"]
    pd.testing.assert_frame_equal(*(frame[names].sort_values(order).reset_index(drop=True) for frame in (first, second)))


def test_the_cluster_gives_the_table_of_one_machine(cluster: Any, tmp_path: Path) -> None:
    # A preset is made by the workers, a file is sent to them: they need not see the folder.
    cases = [*preset_cases("triplet-60", range(3)), *preset_cases("kv_tiering/toy", [0])]
    asked: dict[str, Any] = {"methods": ["ffd", "first_fit_predicted", "lru", "greedy"], "bounds": ["volume", "hit_volume"]}
    toy = write_toy(tmp_path)
    here = compare([*cases, toy], **asked, jobs=1)
    there = compare([*cases, toy], **asked, scheduler=cluster.scheduler_address, output=tmp_path / "r.parquet")
    assert len(here) == 3 * 3 + 2 + 1
    assert not there["error"].notna().any()
    same(here, there)
    asked |= {"scheduler": cluster.scheduler_address, "output": tmp_path / "r.parquet"}
    again = compare([*cases, toy], **asked, on_row=lambda *_: pytest.fail("run again"))
    same(here, again)


def test_a_killed_worker_changes_nothing(cluster: Any) -> None:
    cases = preset_cases("triplet-60", range(40))
    methods = ["ffd", "best_fit", "minimum_bin_slack"]
    here = compare(cases, methods, [], jobs=2)
    rows = 0
    killed = threading.Event()

    def count(*_: object) -> None:
        nonlocal rows
        rows += 1
        if rows == 20 and not killed.is_set():
            killed.set()
            pid = next(iter(cluster.workers.values())).pid  # the nanny starts another
            os.kill(pid, signal.SIGKILL)

    there = compare(cases, methods, [], scheduler=cluster.scheduler_address, on_row=count)
    assert killed.is_set()
    assert rows == len(there) == 120
    same(here, there)


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    with pytest.raises(InputError, match="--scheduler: no scheduler answers at"):
        compare([toy], ["greedy"], [], scheduler="tcp://127.0.0.1:9")
    begun = time.monotonic()
    for address in ("nonsense://x", "tcp://127.0.0.1:9", "tcp://127.0.0.1:99999", "127.0.0.1:8786"):
        assert "--scheduler" in only_error(headroom("compare", toy, "--scheduler", address, cwd=tmp_path))
    assert time.monotonic() - begun < 30
