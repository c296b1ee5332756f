"""Bounds of the KV-tiering family and the recheck of their certificates.

| method       | what                                                                                  | proof                    |
|--------------|---------------------------------------------------------------------------------------|--------------------------|
| `bandwidth`  | all bytes of a step over all tiers' bandwidth (`_closed`)                             | closed form              |
| `hit_volume` | what capacity x steps can hold of the read intervals, fractionally (`_closed`)        | closed form              |
| `lagrangian` | prices of capacity and of the tiers' times; each block a shortest path (`_lagrangian`) | certificate: multipliers |
| `lp`         | the path formulation's linear relaxation by HiGHS; its duals are such multipliers (`_lp`) | certificate: multipliers |
"""

from __future__ import annotations

from headroom.bounds.certificates import CertificateError
from headroom.bounds.kv_tiering_closed import CLOSED, bandwidth, hit_volume, recheck_closed
from headroom.bounds.kv_tiering_lagrangian import Multipliers, certified_value
from headroom.bounds.kv_tiering_lp import lp
from headroom.bounds.kv_tiering_search import Dual, search
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.kv_tiering import KvTiering


def lagrangian(instance: KvTiering, params: SolveParams, progress: Progress) -> Bound:
    """The Lagrangian bound after the whole search (`_search`). Anytime; O(reads K^2 + T log T K^3) a round. Deterministic unless a limit cuts it off.

    Source: the problem is Fang et al.'s (arXiv 2508.13231); relaxing capacity and each step's maximum over the time-expanded graph is ours.
    """
    with Dual(instance, params.threads) as dual:
        _, at = search(dual, lambda: progress.should_stop() is not None, lambda value, at: progress.raise_bound(dual.cautious(value, at)))
    return lagrangian_bound(instance, at)


def lagrangian_bound(instance: KvTiering, at: Multipliers) -> Bound:
    """What these multipliers prove."""
    certificate = at.certificate()
    return Bound(certified_value(instance, certificate), "lagrangian", "certificate", certificate)


def recheck(instance: KvTiering, bound: Bound) -> float:
    """Recompute a bound without any solver. O(reads + T log T K^3). Raises `CertificateError`."""
    if bound.proof == "closed_form":
        if bound.method not in CLOSED:
            raise CertificateError(f"no closed form is called {bound.method!r}; expected {', '.join(CLOSED)}")
        return recheck_closed(instance, bound.method)
    certificate = bound.certificate
    if certificate is None or certificate.get("kind") != "lagrangian":
        raise CertificateError("certificate.kind must be 'lagrangian'")
    return certified_value(instance, certificate)


__all__ = ["bandwidth", "hit_volume", "lagrangian", "lagrangian_bound", "lp", "recheck"]
