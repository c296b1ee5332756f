"""The bound of the program over patterns: its duals as weights of sizes, a certificate that `request_packing_bins` rechecks in whole numbers."""

from __future__ import annotations

import numpy as np

from headroom.bounds.certificates import CertificateError
from headroom.bounds.request_packing_bins import too_large, volume, weights_certificate, weights_value
from headroom.bounds.request_packing_reduction import counted, reduced
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.request_packing import RequestPacking


def patterns(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """Gilmore and Gomory's relaxation by column generation, rounded up. Anytime; for groups that share something, of the requests' own tokens.

    Source: doi 10.1287/opre.9.6.849; the bound at any duals is Farley's, doi 10.1287/opre.38.5.922.
    """
    from headroom.solvers.bin_columns import Items, Relaxation, greedy

    if too_large(instance) is not None:
        return volume(instance, params, progress)
    small = reduced(counted(instance))
    rest = small.rest
    if not len(rest.size):
        certificate = weights_certificate(rest, np.zeros(0, np.int64))
        return Bound(weights_value(instance, certificate), "patterns", "certificate", certificate)
    items = Items(rest.size, rest.demand, rest.capacity)
    relaxation = Relaxation(items, lambda: progress.should_stop() is not None)
    relaxation.add(greedy(items, items.demand))
    relaxation.generate(on_bound=lambda: progress.raise_bound(float(small.bins + relaxation.bound)))
    certificate = weights_certificate(rest, relaxation.weights)
    try:
        return Bound(weights_value(instance, certificate), "patterns", "certificate", certificate)
    except CertificateError:  # bins of many tokens and many loads: nobody could recheck it
        return Bound(float(small.bins + relaxation.bound), "patterns", "solver")
