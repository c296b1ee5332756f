"""Methods for request packing: those with bounds.

| method    | mode     | how                                                             | bound                                        |
|-----------|----------|-----------------------------------------------------------------|----------------------------------------------|
| `bins`    | bins     | reduction, greedy packings, program over patterns, dives, lists | closed forms; weights; HiGHS' word           |
| `cmax`    | makespan | without prefill time: local search, dive, exhaustive search     | closed forms; certificates: function, prices |
| `staged`  | makespan | a grid of stages, requests that fit its distances, local search | closed forms                                 |
| `highs`   | both     | the Pyomo model by HiGHS: small instances                       | HiGHS' word                                  |
"""

from __future__ import annotations

from headroom.instances.request_packing import RequestPacking
from headroom.solvers.request_packing_bins import bins
from headroom.solvers.request_packing_highs import highs
from headroom.solvers.request_packing_makespan import cmax
from headroom.solvers.request_packing_staged import staged


def auto(instance: RequestPacking) -> str:
    """The method by objective, and by whether prefill takes time."""
    if instance.objective == "bins":
        return "bins"
    return "staged" if instance.level_s.any() else "cmax"


__all__ = ["auto", "bins", "cmax", "highs", "staged"]
