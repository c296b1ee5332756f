"""Bounds of the GPU-selection family and the recheck of all its certificates.

| method        | what                                                             | proof                                          |
|---------------|------------------------------------------------------------------|------------------------------------------------|
| `closed_form` | sum_i min_g p_g r_i / (u q_gi)                                   | closed form                                    |
| `lp`          | linear relaxation with caps, pools and situations                | certificate: prices, rechecked in rationals    |
| branch tree   | made by `solvers.gpu_selection:branching`                        | certificate: a tree of prices (`_tree`)        |
| over epochs    | `epoch_prices` in `_epoch_prices`, `fleet_blocks` of `decomposition` | certificate: prices, blocks (`_epochs`, `_blocks`) |
| whole replicas | `column_generation` in `_patterns`, and the tree of that method | certificate: slice prices (`_per_replica`)     |

`recheck` needs numpy alone. Source of the closed form: divisible replicas turn the model into one independent choice an item.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, floats
from headroom.bounds.gpu_selection_boxes import Data, data_of
from headroom.bounds.gpu_selection_epochs import recheck_epochs
from headroom.bounds.gpu_selection_lagrangian import exact_dual_value, round_down
from headroom.bounds.gpu_selection_per_replica import KIND as PATTERN_KIND
from headroom.bounds.gpu_selection_per_replica import recheck_pattern_tree
from headroom.bounds.gpu_selection_stages import closed_form_value
from headroom.bounds.gpu_selection_tree import recheck_tree
from headroom.formulations.gpu_selection_per_replica import slice_sizes
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import CERTIFICATE_SLACK, FEASIBILITY
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]


def closed_form(instance: GpuSelection, params: SolveParams, progress: Progress) -> Bound:
    """Every item on its cheapest type, replicas divisible, caps ignored: sum_i min_g p_g r_i / (u q_gi), in rationals; +inf if an item has no type.

    In exact arithmetic never above the LP bound (which comes from HiGHS' prices and may miss digits). O(G I).
    """
    return Bound(_closed_form_value(instance), "closed_form", "closed_form")


def _closed_form_value(instance: GpuSelection) -> float:
    if instance.mode == "epochs":
        return closed_form_value(instance)
    able = instance.can_serve
    if instance.mode == "per_replica":  # divisible replicas still hold no slice that fits no replica
        able = able & (slice_sizes(instance) <= instance.max_utilisation * (1.0 + FEASIBILITY))
    if not able[:, instance.loaded_items].any(axis=0).all():
        return math.inf
    total = Fraction(0)
    price = [Fraction(float(p)) for p in instance.price_usd_per_h]
    for i in instance.loaded_items:
        cheapest = min(price[g] / Fraction(float(instance.throughput_per_s[g, i])) for g in np.flatnonzero(able[:, i]))
        total += Fraction(float(instance.rate_per_s[i])) * cheapest
    return round_down(total / Fraction(instance.max_utilisation) / (1 + Fraction(CERTIFICATE_SLACK)))


def lp(instance: GpuSelection, params: SolveParams, progress: Progress) -> Bound:
    """The linear relaxation's bound: HiGHS finds prices, the value is recomputed from them alone in rational arithmetic.

    When the relaxation is infeasible the prices prove that (value +inf). Falls back to the closed form's prices if HiGHS gives none in time.
    """
    from headroom.bounds.gpu_selection_relaxation import best_prices

    if not instance.can_serve[:, instance.loaded_items].any(axis=0).all():
        return Bound(math.inf, "lp", "closed_form")
    w, pi, infeasible = best_prices(instance, progress)
    certificate = {"kind": "prices", "capacity_price": w, "pool_price": pi, "with_cost": not infeasible}
    return Bound(_recheck_prices(instance, certificate), "lp", "certificate", certificate)


def recheck(instance: GpuSelection, bound: Bound) -> float:
    """The value that the bound's certificate (or closed form) proves, recomputed without any solver; +inf: no plan exists.

    Raises `CertificateError` for a certificate that is malformed or of a kind this family does not know.
    """
    if bound.proof == "closed_form":
        if bound.certificate:
            raise CertificateError("a closed form carries no certificate")
        return _closed_form_value(instance)
    if bound.proof != "certificate" or bound.certificate is None:
        raise CertificateError(f"bound {bound.method!r} carries no certificate")
    kind = bound.certificate.get("kind")
    if instance.mode == "epochs":
        return recheck_epochs(instance, bound.certificate)
    unserved = not instance.can_serve[:, instance.loaded_items].any(axis=0).all()
    if unserved:
        return math.inf
    if instance.mode == "per_replica":
        if kind == PATTERN_KIND:
            return recheck_pattern_tree(instance, bound.certificate)
        raise CertificateError(f"certificate.kind must be {PATTERN_KIND!r}, got {kind!r}")
    if kind == "prices":
        return _recheck_prices(instance, bound.certificate)
    if kind == "branch_tree":
        return recheck_tree(instance, bound.certificate)
    raise CertificateError(f"certificate.kind must be 'prices' or 'branch_tree', got {kind!r}")


def _recheck_prices(instance: GpuSelection, certificate: Any) -> float:
    data: Data = data_of(instance)
    w = floats(certificate, "capacity_price", (data.situations, len(data.price)))
    pi = floats(certificate, "pool_price", (len(data.pool_limit),))
    with_cost = certificate.get("with_cost", True)
    value = exact_dual_value(data, w, pi, bool(with_cost))
    if with_cost:
        return round_down(value)
    return math.inf if value > 0 else -math.inf
