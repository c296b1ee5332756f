"""A sweep in few rows: what each method makes of each group of instances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headroom.formulations.tolerances import OPTIMALITY_GAP

if TYPE_CHECKING:
    import pandas as pd

FEW_INSTANCES: Final = 6
"""Up to so many each is worth a table of its own."""
STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.179, 2.145, 2.131, 2.12, 2.11, 2.101, 2.093)
"""97.5 % points of Student's t for 1 to 10, 12 and 14 to 19 degrees of freedom."""
DEGREES: Final = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 17, 18, 19)


def group_of(row: dict[str, Any]) -> str:
    """The preset with its settings, or the instance's name."""
    if not isinstance(row.get("preset"), str):
        return str(row["instance"])
    settings = row.get("settings")
    return row["preset"] if not isinstance(settings, str) or settings == "{}" else f"{row['preset']} {settings}"


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each family, group of instances (a preset with its settings, or an instance) and method, best mean gap first.

    Columns: family, group, method, kind, instances, runs, without_plan, errors, gap_mean, gap_confidence (half of the 95 % interval of the mean over
    instances, by Student's t; runs on one instance count as their mean), gap_median, gap_worst, certified_gap_mean, optimal_share (of the runs),
    runtime_median_s. Gaps are those of runs with a plan, to the best bound that any run on the instance has found. O(rows log rows).
    """
    import pandas as pd

    plans = frame[frame["kind"] != "bound"]
    rows: list[dict[str, Any]] = []
    groups = pd.Series([group_of(row) for row in plans.to_dict("records")], index=plans.index, dtype="string")  # type: ignore[arg-type]
    for key, runs in plans.groupby([plans["family"], groups, plans["method"], plans["kind"]], sort=False, dropna=False):
        family, group, method, kind = key if isinstance(key, tuple) else (key,) * 4
        have = runs[np.isfinite(runs["objective"].to_numpy(np.float64, na_value=math.nan))]
        gaps = have.groupby("digest", sort=False)["gap"].mean().to_numpy(np.float64)
        count = len(gaps)
        rows.append(
            {
                "family": family, "group": group, "method": method, "kind": kind, "instances": runs["digest"].nunique(), "runs": len(runs),
                "without_plan": len(runs) - len(have) - int(runs["error"].notna().sum()), "errors": int(runs["error"].notna().sum()),
                "gap_mean": float(gaps.mean()) if count else math.nan,
                "gap_confidence": student(count - 1) * float(gaps.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan,
                "gap_median": float(have["gap"].median()) if count else math.nan, "gap_worst": float(have["gap"].max()) if count else math.nan,
                "certified_gap_mean": float(have["certified_gap"].mean()) if count else math.nan,
                "optimal_share": float((have["gap"] <= OPTIMALITY_GAP).sum()) / len(runs), "runtime_median_s": float(runs["runtime_s"].median()),
            }
        )  # fmt: skip
    rows.sort(key=lambda row: (row["family"], row["group"], math.isnan(row["gap_mean"]), row["gap_mean"], row["method"]))
    return pd.DataFrame(rows)


def student(degrees: int) -> float:
    """97.5 % point of Student's t, within 0.1 %."""
    if degrees < 20:
        return float(np.interp(1 / degrees, [1 / d for d in reversed(DEGREES)], list(reversed(STUDENT))))
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


__all__ = ["FEW_INSTANCES", "group_of", "student", "summarise"]
