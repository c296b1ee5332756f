"""Methods for KV tiering: those with bounds.

| method       | how                                                                              | bound                        |
|--------------|----------------------------------------------------------------------------------|------------------------------|
| `lagrangian` | multipliers; plans guided by their prices, block by block; HiGHS where it is tiny | certificate: multipliers     |
| `highs`      | the Pyomo model by HiGHS: small instances                                        | HiGHS' word; closed forms    |
"""

from __future__ import annotations

from headroom.bounds.kv_tiering import bandwidth, hit_volume, lagrangian_bound
from headroom.bounds.kv_tiering_search import Dual, search
from headroom.formulations.progress import Progress
from headroom.formulations.types import Outcome, SolveParams
from headroom.instances.kv_tiering import KvTiering


def auto(instance: KvTiering) -> str:
    """The Lagrangian method at every size: it asks HiGHS itself where the model is tiny."""
    return "lagrangian"


def lagrangian(instance: KvTiering, params: SolveParams, progress: Progress) -> Outcome:
    """Plans and certified bounds at any size. Anytime; deterministic for a seed unless a limit cuts it off."""
    bounds = [bandwidth(instance, params, progress), hit_volume(instance, params, progress)]
    for bound in bounds:
        progress.keep(bound)
    with Dual(instance, params.threads) as dual:
        _, at = search(dual, lambda: progress.should_stop() is not None)
    bounds.append(lagrangian_bound(instance, at))
    progress.keep(bounds[-1])
    return Outcome(progress.plan, tuple(bounds), progress.should_stop() or "completed")
