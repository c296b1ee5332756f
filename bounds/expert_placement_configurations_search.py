"""Weights for the bound of `expert_placement_configurations`.

Whether weights exist that prove z is a linear program: every content of a device that carries less than z must stay below the mean weight by some
eps > 0, with weights between -1 and 1. Contents are found by asking for those of the highest weight (`solvers.choices`), and z by bisection between
what is proved and what is not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.bounds.expert_placement_configurations import Items, content_bound, items_of, needed
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
TOLERANCE = 5e-4
"""Of the bisection, relative."""
MOST_ROUNDS = 300
LEAST_EPS = 1e-7
AT_ONCE = 30
"""Contents added in a round."""


def layer_weights(
    w: FloatArray, instance: ExpertPlacement, proved: float, limit: float, stop: Callable[[], bool]
) -> FloatArray:
    """Weights [E] of a layer with loads w [E][S], of which `proved` is known and `limit` can be reached."""
    from headroom.solvers.choices import best_paid, least_loaded
    from headroom.solvers.linear_program import LinearProgram

    experts, k = len(w), instance.slots_per_device
    best: FloatArray = w.sum(axis=1)
    value = max(proved, content_bound(w, instance, best, limit))
    unproved = limit
    box = np.append(np.ones(experts), 1.0)
    program = LinearProgram(
        np.append(np.zeros(experts), -1.0), sp.csc_matrix((0, experts + 1)), np.zeros(0), np.zeros(0), np.append(-np.ones(experts), 0.0), box
    )
    carries: list[float] = []
    found = np.zeros((AT_ONCE, k), dtype=np.int64)
    columns = np.arange(experts + 1, dtype=np.int32)

    def sorted_items(sigma: FloatArray) -> Items:
        return items_of(w, sigma, instance.min_holders, instance.most_replicas, limit)

    for _ in range(MOST_ROUNDS):
        if unproved - value <= TOLERANCE * value or stop():
            break
        z = 0.5 * (value + unproved)
        active = np.where(np.array(carries, dtype=np.float64) < z, 0.0, -np.inf)
        answer = program.solve(None, None, active, np.full(len(carries), np.inf))
        if answer.x is None:
            break
        sigma = answer.x[:experts]
        if answer.x[experts] <= LEAST_EPS:
            unproved = z
            continue
        items = sorted_items(sigma)
        need = needed(sigma, instance.devices)
        number = best_paid(items.owner, items.load, items.weight, k, z, need, found)
        if number == 0:
            # Nothing below z reaches the mean weight: these weights prove z, and perhaps more.
            reached = least_loaded(items.owner, items.load, items.weight, k, need, limit)
            if reached > value:
                best, value = sigma, reached
            else:
                unproved = z
            continue
        for content in found[:number]:
            row = np.full(experts + 1, 1.0 / instance.devices)
            row[experts] = -1.0
            row[items.owner[content]] -= items.share[content]
            program.add_row(columns, row, 0.0, np.inf)
            carries.append(float(items.load[content].sum(axis=0).max()))
    return best
