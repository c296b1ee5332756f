"""Where a table comes from: the sittings (command, date, machine, versions) that made it, kept in its `attrs` and in the parquet file's metadata."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


def sitting(command: Sequence[str], began: datetime | None = None) -> dict[str, Any]:
    """What made a table, or continued it: JSON types, to be appended to `frame.attrs["headroom"]` (a list). `command` is the argument vector."""
    from headroom.run import versions

    return {
        "command": shlex.join(command),
        "date": (began or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, system; None where the system does not say."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
    }


def _cpu_model() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for text in file:
                name, _, value = text.partition(":")
                if name.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
