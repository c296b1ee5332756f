"""Bounds of the request-packing family and the recheck of their certificates.

| method | mode | what | proof |
|---|---|---|---|
| `volume`, `l2`, `dff` | bins | closed forms in `request_packing_bins` | closed form |
| `patterns` | bins | weights of sizes, the duals of the program over patterns | certificate: weights |
| `split_volume`, `grouped_patterns` | bins | groups in as many bins as they need; weights of groups and sizes | closed form; certificate: weights |
| `mean_load`, `longest_output`, `pigeonhole` | makespan | loads of slots, in `request_packing_makespan` | closed form |
| `dual_feasible`, `dual_bin_packing` | makespan | loads that bin packing refutes | certificate: function, prices |
| `stage_cover`, `stage_count` | makespan | cheapest prefills and decode steps, in `request_packing_staged` | closed form |
"""

from __future__ import annotations

from headroom.bounds.certificates import CertificateError
from headroom.bounds.request_packing_bins import CLOSED as BINS
from headroom.bounds.request_packing_bins import dff, l2, recheck_bins, volume
from headroom.bounds.request_packing_groups import CLOSED as GROUPED
from headroom.bounds.request_packing_groups import grouped_patterns, grouped_value, split_volume
from headroom.bounds.request_packing_makespan import (
    METHODS,
    dual_bin_packing,
    dual_feasible,
    longest_output,
    mean_load,
    pigeonhole,
    recheck_makespan,
)
from headroom.bounds.request_packing_patterns import patterns
from headroom.bounds.request_packing_staged import CLOSED as STAGED
from headroom.bounds.request_packing_staged import recheck_staged, stage_count, stage_cover
from headroom.formulations.types import Bound
from headroom.instances.request_packing import RequestPacking


def recheck(instance: RequestPacking, bound: Bound) -> float:
    """Recompute a bound without any solver, in whole numbers. Raises `CertificateError`."""
    bins = instance.objective == "bins"
    known = (*BINS, *GROUPED) if bins else (*METHODS, *STAGED)
    if bound.proof == "closed_form" and bound.method not in known:
        raise CertificateError(f"closed form must be one of {', '.join(known)} because the objective is {instance.objective!r}, got {bound.method!r}")
    if bins:
        if bound.proof == "closed_form" and bound.method in GROUPED:
            return GROUPED[bound.method](instance)
        if bound.certificate is not None and bound.certificate.get("kind") == "grouped_weights":
            return grouped_value(instance, bound.certificate)
        return recheck_bins(instance, bound)
    if bound.proof == "closed_form" and bound.method in STAGED:
        return recheck_staged(instance, bound.method)
    return recheck_makespan(instance, bound)


__all__ = [
    "dff", "dual_bin_packing", "dual_feasible", "grouped_patterns", "l2", "longest_output", "mean_load", "patterns", "pigeonhole", "recheck",
    "split_volume", "stage_count", "stage_cover", "volume",
]  # fmt: skip
