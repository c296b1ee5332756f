"""The Pyomo model of expert placement; sets, parameters and names as in `expert_placement`. For small instances: O(L E D (D + E D)) variables.

Two products are linearised. x / c: binaries n_lec ("e has c replicas in layer l") and z_ledc = x_led where n_lec = 1, else 0, so that
the share is sum_c z_ledc / c. Nearest replica: tokens from e on d to f are sent to replicas of f by `flow`, which the minimum sends to the nearest.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from headroom.formulations.expert_placement import device_counts
from headroom.instances.expert_placement import ExpertPlacement

if TYPE_CHECKING:
    import pyomo.environ as pyo


def build_model(instance: ExpertPlacement) -> pyo.ConcreteModel:
    """The model with variables `x` (slots), `held`, `imbalance`, and those that the instance's options need."""
    import pyomo.environ as pyo

    m = pyo.ConcreteModel(name=instance.name)
    m.S, m.L = pyo.RangeSet(0, instance.scenarios - 1), pyo.RangeSet(0, instance.layers - 1)
    m.E, m.D = pyo.RangeSet(0, instance.experts - 1), pyo.RangeSet(0, instance.devices - 1)
    k, most = instance.slots_per_device, instance.most_replicas
    m.x = pyo.Var(m.L, m.E, m.D, domain=pyo.NonNegativeIntegers, bounds=(0, 1 if instance.distinct else min(k, most)))
    m.held = pyo.Constraint(m.L, m.E, rule=lambda m, l, e: sum(m.x[l, e, d] for d in m.D) >= 1)
    m.slots = pyo.Constraint(m.L, m.D, rule=lambda m, l, d: sum(m.x[l, e, d] for e in m.E) == k)
    if instance.min_holders > 1:
        _holds(m, instance)
        m.holders = pyo.Constraint(m.L, m.E, rule=lambda m, l, e: sum(m.holds[l, e, d] for d in m.D) >= instance.min_holders)
    parts = [instance.weights.balance * _balance(m, instance)]
    if instance.weights.traffic > 0 and instance.layers > 1:
        parts.append(instance.weights.traffic * _traffic(m, instance))
    if instance.current_slot_expert is not None and (instance.weights.moves > 0 or instance.max_moves is not None):
        moved = _moves(m, instance)
        parts.append(instance.weights.moves * moved / (instance.layers * instance.slots))
        if instance.max_moves is not None:
            m.max_moves = pyo.Constraint(expr=moved <= instance.max_moves)
    if instance.group_limited:
        _groups(m, instance)
    m.objective = pyo.Objective(expr=sum(parts))
    return m


def _equal_share(m: pyo.ConcreteModel, instance: ExpertPlacement) -> None:
    """x_led / c_le as the expression `share[l, e, d]`."""
    import pyomo.environ as pyo

    if hasattr(m, "share"):
        return
    m.C = pyo.RangeSet(1, instance.most_replicas)
    m.has = pyo.Var(m.L, m.E, m.C, domain=pyo.Binary)
    m.z = pyo.Var(m.L, m.E, m.D, m.C, domain=pyo.NonNegativeReals)
    m.one_number = pyo.Constraint(m.L, m.E, rule=lambda m, l, e: sum(m.has[l, e, c] for c in m.C) == 1)
    m.number = pyo.Constraint(m.L, m.E, m.C, rule=lambda m, l, e, c: sum(m.z[l, e, d, c] for d in m.D) == c * m.has[l, e, c])
    m.sum_z = pyo.Constraint(m.L, m.E, m.D, rule=lambda m, l, e, d: sum(m.z[l, e, d, c] for c in m.C) == m.x[l, e, d])
    m.z_bound = pyo.Constraint(m.L, m.E, m.D, m.C, rule=lambda m, l, e, d, c: m.z[l, e, d, c] <= m.x[l, e, d].ub * m.has[l, e, c])
    m.share = pyo.Expression(m.L, m.E, m.D, rule=lambda m, l, e, d: sum(m.z[l, e, d, c] / c for c in m.C))


def _balance(m: pyo.ConcreteModel, instance: ExpertPlacement) -> Any:
    import pyomo.environ as pyo

    loaded = [(s, l) for s, l in itertools.product(m.S, m.L) if instance.total_load[s, l] > 0]
    m.loaded = pyo.Set(initialize=loaded, dimen=2)
    if instance.split == "equal":
        _equal_share(m, instance)
        carries = {(s, l, e, d): m.share[l, e, d] for s, l in loaded for e in m.E for d in m.D}
    else:
        m.carried = pyo.Var(m.loaded, m.E, m.D, bounds=(0, 1))
        m.split = pyo.Constraint(m.loaded, m.E, rule=lambda m, s, l, e: sum(m.carried[s, l, e, d] for d in m.D) == 1)
        m.carried_here = pyo.Constraint(m.loaded, m.E, m.D, rule=lambda m, s, l, e, d: m.carried[s, l, e, d] <= m.x[l, e, d])
        carries = {(s, l, e, d): m.carried[s, l, e, d] for s, l in loaded for e in m.E for d in m.D}
    m.imbalance = pyo.Var(m.S, m.L, bounds=(1, None))

    def busiest(m: pyo.ConcreteModel, s: int, l: int, d: int) -> object:
        mean = float(instance.total_load[s, l]) / instance.devices
        load = sum(float(instance.load[s, l, e]) / mean * carries[s, l, e, d] for e in m.E if instance.load[s, l, e] > 0)
        return m.imbalance[s, l] >= load

    m.busiest = pyo.Constraint(m.loaded, m.D, rule=busiest)
    if instance.robust == "mean":
        return sum(m.imbalance[s, l] for s in m.S for l in m.L) / (instance.layers * instance.scenarios)
    m.worst = pyo.Var(m.L, bounds=(1, None))
    m.worst_scenario = pyo.Constraint(m.S, m.L, rule=lambda m, s, l: m.worst[l] >= m.imbalance[s, l])
    return sum(m.worst[l] for l in m.L) / instance.layers


def _traffic(m: pyo.ConcreteModel, instance: ExpertPlacement) -> Any:
    import pyomo.environ as pyo

    assert instance.transition is not None
    _equal_share(m, instance)
    _holds(m, instance)
    hop = instance.hop()
    pairs = [(b, e, f) for b in range(instance.layers - 1) for e in m.E for f in m.E if instance.transition[b, e, f] > 0]
    m.pairs = pyo.Set(initialize=pairs, dimen=3)
    m.flow = pyo.Var(m.pairs, m.D, m.D, domain=pyo.NonNegativeReals)
    m.sent = pyo.Constraint(m.pairs, m.D, rule=lambda m, b, e, f, d: sum(m.flow[b, e, f, d, to] for to in m.D) == m.share[b, e, d])
    m.received = pyo.Constraint(m.pairs, m.D, m.D, rule=lambda m, b, e, f, d, to: m.flow[b, e, f, d, to] <= m.holds[b + 1, f, to])
    total = sum(
        float(instance.transition[b, e, f]) * float(hop[d, to]) * m.flow[b, e, f, d, to]
        for b, e, f in pairs for d in m.D for to in m.D if hop[d, to] > 0
    )  # fmt: skip
    return total / (instance.layers - 1)


def _holds(m: pyo.ConcreteModel, instance: ExpertPlacement) -> None:
    """`holds[l, e, d]` is 1 when x_led >= 1, else 0."""
    import pyomo.environ as pyo

    if hasattr(m, "holds"):
        return
    if instance.distinct:
        m.holds = pyo.Expression(m.L, m.E, m.D, rule=lambda m, l, e, d: m.x[l, e, d])
        return
    m.holds = pyo.Var(m.L, m.E, m.D, domain=pyo.Binary)
    m.holds_some = pyo.Constraint(m.L, m.E, m.D, rule=lambda m, l, e, d: m.x[l, e, d] <= m.x[l, e, d].ub * m.holds[l, e, d])
    m.holds_none = pyo.Constraint(m.L, m.E, m.D, rule=lambda m, l, e, d: m.holds[l, e, d] <= m.x[l, e, d])


def _moves(m: pyo.ConcreteModel, instance: ExpertPlacement) -> Any:
    import pyomo.environ as pyo

    _holds(m, instance)
    assert instance.current_slot_expert is not None
    before = device_counts(instance, instance.current_slot_expert) > 0
    new = [m.holds[l, e, d] for l in m.L for e in m.E for d in m.D if not before[l, e, d]]
    m.moved = pyo.Expression(expr=sum(new) if new else 0.0)
    return m.moved


def _groups(m: pyo.ConcreteModel, instance: ExpertPlacement) -> None:
    import pyomo.environ as pyo

    groups = int(instance.group_of[-1]) + 1
    m.G, m.N = pyo.RangeSet(0, groups - 1), pyo.RangeSet(0, instance.nodes - 1)
    m.at = pyo.Var(m.L, m.G, m.N, domain=pyo.Binary)
    m.one_node = pyo.Constraint(m.L, m.G, rule=lambda m, l, g: sum(m.at[l, g, n] for n in m.N) == 1)

    def together(m: pyo.ConcreteModel, l: int, e: int, d: int) -> object:
        return m.x[l, e, d] <= m.x[l, e, d].ub * m.at[l, int(instance.group_of[e]), int(instance.node_of[d])]

    m.group_limited = pyo.Constraint(m.L, m.E, m.D, rule=together)
