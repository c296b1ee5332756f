"""The integer model of some layers of expert placement, for `expert_placement_cpsat`.

    x_led            slots of device d that hold e; holds_led = [x_led >= 1], the same variable when `distinct`
    n_lec            e has c replicas: exactly one c
    z_ledc           x_led where n_lec, else 0:  sum_c z_ledc = x_led,  sum_d z_ledc = c n_lec,  z_ledc <= k n_lec.   A replica's share is z_ledc / c
    balance_l        at least every device's load: sum_ec (w_sle / c) z_ledc. With a split that the plan chooses: for every set N of devices,
                     |N| balance_l >= sum of w_sle over the experts that no device outside N holds (max-flow = min-cut), or, where those sets are
                     too many, flows f_sled <= w_sle holds_led that add up to w_sle
    pays             z_ledc and not holds_l+1,fd: tokens of e leave device d for f; likewise for nodes, priced by what a node costs on top

Every coefficient is scaled by one power of two and rounded down: whatever a plan costs, the integer model says no more of it, so its bound is
valid. Rounded flows of a free split may need one unit more for each balance variable (transport with integer supplies is integral), which the bound
grants. Devices that nothing distinguishes are sorted by what they hold. The models are ours.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_balance import normalised_load
from headroom.formulations.expert_placement import device_counts
from headroom.formulations.tolerances import FEASIBILITY
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.cpsat import scale_down, scale_for, scale_up

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_SUBSETS = 30
"""Sets of devices that a free split states one by one (up to 4 devices); beyond, flows."""


def copies(instance: ExpertPlacement) -> range:
    """The numbers of replicas that an expert can have."""
    most = instance.most_replicas
    if instance.group_limited:
        most = min(most, instance.node_devices * (1 if instance.distinct else instance.slots_per_device))
    return range(instance.min_holders, most + 1)


def free_split(instance: ExpertPlacement) -> bool:
    return instance.split == "optimal" and instance.weights.balance > 0


def by_subsets(instance: ExpertPlacement) -> bool:
    return instance.devices < 20 and 2**instance.devices - 2 <= MOST_SUBSETS


def joined(instance: ExpertPlacement) -> bool:
    return instance.weights.traffic > 0 and instance.transition is not None and instance.layers > 1


def hop_steps(instance: ExpertPlacement) -> list[tuple[str, float]]:
    """What a hop costs, as prices that add up: of leaving the "device", on top of leaving the "node", or of staying "inside" the node."""
    near, far = instance.hop_cost.same_node, instance.hop_cost.other_node
    near = far if instance.node_devices == 1 else near
    far = near if instance.nodes == 1 else far
    found = [("device", min(near, far)), ("node", far - near), ("inside", near - far)]
    return [(kind, price) for kind, price in found if price > 0]


class Block:
    """The model of some layers. `least` is what they cost by closed forms, in the objective's unit."""

    def __init__(self, instance: ExpertPlacement, layers: range, floor: FloatArray) -> None:
        from ortools.sat.python import cp_model

        self.instance, self.layers = instance, layers
        self.model: Any = cp_model.CpModel()
        self.copies = copies(instance)
        weights = instance.weights
        self.balance = weights.balance / instance.layers
        self.traffic = weights.traffic / max(instance.layers - 1, 1) if joined(instance) else 0.0
        self.move = weights.moves / (instance.layers * instance.slots)
        self.least = self.balance * math.fsum(floor[layers.start : layers.stop].tolist())
        self.scale = scale_for(self._largest_row())
        self.granted, self.rounded = 0, 0
        self.x: dict[tuple[int, int, int], Any] = {}
        self.holds: dict[tuple[int, int, int], Any] = {}
        self.z: dict[tuple[int, int, int, int], Any] = {}
        self.cost: list[Any] = []
        for layer in layers:
            self._slots(layer)
        if self.balance > 0:
            for layer in layers:
                self._balance(layer, float(floor[layer]))
        if self.traffic > 0:
            for boundary in layers[:-1]:
                self._traffic(boundary)
        self._moves()
        self._sort()
        self.model.minimize(sum(self.cost))
        self.variables = list(self.x.values())

    def bound(self, value: float) -> float:
        """CP-SAT's integer bound in the objective's unit; -inf stays -inf, infeasible +inf."""
        return (value - self.granted) / self.scale if math.isfinite(value) else value

    @property
    def loss(self) -> float:
        return (self.rounded + self.granted) / self.scale

    def slots_of(self, values: IntArray) -> IntArray:
        """The block's slots [layers][R] from the values of `variables`."""
        instance = self.instance
        filled: list[list[list[int]]] = [[[] for _ in range(instance.devices)] for _ in self.layers]
        for (layer, e, d), value in zip(self.x, values.tolist(), strict=True):
            filled[layer - self.layers.start][d] += [e] * value
        return np.array([list(itertools.chain(*devices)) for devices in filled], dtype=np.int64)

    def hint(self, slots: IntArray) -> None:
        """Start from a placement [L][R]; layers that begin with -1 have none."""
        self.model.clear_hints()
        if (slots[self.layers.start : self.layers.stop] < 0).any():
            return
        counts = device_counts(self.instance, slots)
        for (layer, e, d), variable in self.x.items():
            self.model.add_hint(variable, int(counts[layer, e, d]))

    def _largest_row(self) -> float:
        """No row's terms add up to more, before scaling."""
        instance, layers = self.instance, len(self.layers)
        shares = sum(min(instance.slots_per_device, c) / c for c in self.copies)
        row = self.balance * instance.devices * (shares + 2 * instance.devices)
        price = sum(price for _, price in hop_steps(instance))
        held = instance.experts * instance.devices
        cost = self.balance * instance.devices + self.traffic * price * instance.devices * shares + self.move * held
        return max(row, 2 * layers * cost)

    def _scaled(self, value: float) -> int:
        self.rounded += 1
        return int(scale_down(np.array([value]), self.scale)[0])

    def _slots(self, layer: int) -> None:
        """x, holds, replicas, groups of one layer."""
        instance, model = self.instance, self.model
        devices, k, most = range(instance.devices), instance.slots_per_device, self.copies[-1]
        cap = 1 if instance.distinct else min(k, most)
        for e in range(instance.experts):
            for d in devices:
                x = model.new_bool_var("") if cap == 1 else model.new_int_var(0, cap, "")
                self.x[layer, e, d] = self.holds[layer, e, d] = x
                if cap > 1:
                    holds = self.holds[layer, e, d] = model.new_bool_var("")
                    model.add(x <= cap * holds)
                    model.add(x >= holds)
            self._replicas(layer, e, cap)
        for d in devices:
            model.add(sum(self.x[layer, e, d] for e in range(instance.experts)) == k)
        if instance.group_limited:
            groups = int(instance.group_of[-1]) + 1
            at = [[model.new_bool_var("") for _ in range(instance.nodes)] for _ in range(groups)]
            for nodes in at:
                model.add_exactly_one(nodes)
            for e, d in itertools.product(range(instance.experts), devices):
                model.add_implication(self.holds[layer, e, d], at[int(instance.group_of[e])][int(instance.node_of[d])])

    def _replicas(self, layer: int, e: int, cap: int) -> None:
        """At least `min_holders` devices; z where shares count."""
        instance, model = self.instance, self.model
        if not instance.distinct and instance.min_holders > 1:
            model.add(sum(self.holds[layer, e, d] for d in range(instance.devices)) >= instance.min_holders)
        total = sum(self.x[layer, e, d] for d in range(instance.devices))
        if len(self.copies) == 1:
            model.add(total == self.copies[0])
            self.z.update({(layer, e, d, self.copies[0]): self.x[layer, e, d] for d in range(instance.devices)})
            return
        if not (self.traffic > 0 or (self.balance > 0 and instance.split == "equal")):
            model.add_linear_constraint(total, self.copies[0], self.copies[-1])
            return
        number = {c: model.new_bool_var("") for c in self.copies}
        model.add_exactly_one(number.values())
        for c in self.copies:
            for d in range(instance.devices):
                most = min(cap, c)
                z = self.z[layer, e, d, c] = model.new_bool_var("") if most == 1 else model.new_int_var(0, most, "")
                model.add(z <= most * number[c])
            model.add(sum(self.z[layer, e, d, c] for d in range(instance.devices)) == c * number[c])
        for d in range(instance.devices):
            model.add(sum(self.z[layer, e, d, c] for c in self.copies) == self.x[layer, e, d])

    def _balance(self, layer: int, floor: float) -> None:
        instance, model = self.instance, self.model
        load = normalised_load(instance)[:, layer]
        loaded = [s for s in range(instance.scenarios) if load[s].any()]
        unit = self.balance / (instance.scenarios if instance.robust == "mean" else 1)
        idle = (instance.scenarios - len(loaded)) if instance.robust == "mean" else int(not loaded)
        most = int(scale_up(np.array([unit * instance.devices]), self.scale)[0]) + 1
        least = self._scaled(unit * (floor if instance.robust == "worst" else 1 - 3 * FEASIBILITY))
        busiest = [model.new_int_var(least, most, "") for _ in (loaded if instance.robust == "mean" else loaded[:1])]
        together = [busiest[i if instance.robust == "mean" else 0] for i in range(len(loaded))]
        if idle:
            self.cost.append(self._scaled(unit * idle))
        if instance.robust == "mean" and busiest:
            model.add(sum(busiest) >= self._scaled(self.balance * floor) - self._scaled(unit * idle) - instance.scenarios - 1)
        self.cost += busiest
        if instance.split == "equal":
            for s, most_loaded in zip(loaded, together, strict=True):
                each = {(e, c): self._scaled(unit * load[s, e] / c) for e in range(instance.experts) for c in self.copies}
                for d in range(instance.devices):
                    model.add(sum(w * self.z[layer, e, d, c] for (e, c), w in each.items() if w) <= most_loaded)
            return
        self.granted += len(busiest)
        scaled = scale_down(unit * load * (1 - 3 * FEASIBILITY), self.scale)
        rows = [(scaled[s], busy) for s, busy in zip(loaded, together, strict=True)]
        (self._subsets if by_subsets(instance) else self._flows)(layer, rows)

    def _subsets(self, layer: int, rows: list[tuple[IntArray, Any]]) -> None:
        """Every set of devices carries what no other device can."""
        instance, model = self.instance, self.model
        for size in range(1, instance.devices):
            for inside in itertools.combinations(range(instance.devices), size):
                outside = [d for d in range(instance.devices) if d not in inside]
                only = [model.new_bool_var("") for _ in range(instance.experts)]
                for e, here in enumerate(only):
                    model.add_bool_or([here, *(self.holds[layer, e, d] for d in outside)])
                for load, busy in rows:
                    model.add(sum(int(w) * here for w, here in zip(load, only, strict=True) if w) <= size * busy)

    def _flows(self, layer: int, rows: list[tuple[IntArray, Any]]) -> None:
        """What each device carries of each expert."""
        instance, model = self.instance, self.model
        for load, busy in rows:
            some = [e for e in range(instance.experts) if load[e]]
            carried = {(e, d): model.new_int_var(0, int(load[e]), "") for e in some for d in range(instance.devices)}
            for e in some:
                model.add(sum(carried[e, d] for d in range(instance.devices)) == int(load[e]))
                for d in range(instance.devices):
                    model.add(carried[e, d] <= int(load[e]) * self.holds[layer, e, d])
            for d in range(instance.devices):
                model.add(sum(carried[e, d] for e in some) <= busy)

    def _traffic(self, boundary: int) -> None:
        """Every share of a token that finds its next expert not here pays."""
        instance = self.instance
        assert instance.transition is not None
        for kind, price in hop_steps(instance):
            near = self._near(boundary + 1, kind)
            room = instance.slots_per_device * (1 if kind == "device" else instance.node_devices)
            came: dict[int, list[Any]] = {f: [] for f in range(instance.experts)}
            for e, c in itertools.product(range(instance.experts), self.copies):
                each = [self._scaled(self.traffic * price * float(p) / c) for p in instance.transition[boundary, e]]
                for d in range(instance.devices):
                    sends = self.z[boundary, e, d, c]
                    pays = {f: self._pays(sends, c, near[f, d]) for f, price in enumerate(each) if price}
                    self.cost += [each[f] * paid for f, paid in pays.items()]
                    for f, paid in pays.items():
                        came[f].append(paid)
                    if kind != "inside" and len(pays) > room:
                        # Implied: no more experts are near than there is room for. It puts the b-matching bound into the linear relaxation.
                        self.model.add(sum(pays.values()) >= (len(pays) - room) * sends)
            if kind != "inside" and self.copies == range(1, 2):
                for arriving in came.values():
                    if len(arriving) > room * instance.devices:
                        self.model.add(sum(arriving) >= len(arriving) // instance.devices - room)

    def _pays(self, sends: Any, c: int, near: Any) -> Any:
        """`sends` unless `near`."""
        most = 1 if self.instance.distinct else min(self.instance.slots_per_device, c)
        if most == 1:
            pays = self.model.new_bool_var("")
            self.model.add_bool_or([sends.negated(), near, pays])
        else:
            pays = self.model.new_int_var(0, most, "")
            self.model.add(pays >= sends - most * near)
        return pays

    def _near(self, layer: int, kind: str) -> dict[tuple[int, int], Any]:
        """For expert f and device d a literal that may be true where f is near: on the device, in the node; for "inside", here or in another node."""
        instance, model = self.instance, self.model
        if kind == "device":
            return {(f, d): self.holds[layer, f, d] for f in range(instance.experts) for d in range(instance.devices)}
        found = {}
        for f, n in itertools.product(range(instance.experts), range(instance.nodes)):
            own = [d for d in range(instance.devices) if instance.node_of[d] == n]
            reached = own if kind == "node" else [d for d in range(instance.devices) if d not in own]
            near = model.new_bool_var("")
            model.add_bool_or([near.negated(), *(self.holds[layer, f, d] for d in reached)])
            for d in own:
                found[f, d] = near
                if kind == "inside":  # on the device itself nothing is paid either
                    found[f, d] = model.new_bool_var("")
                    model.add_bool_or([found[f, d].negated(), near, self.holds[layer, f, d]])
        return found

    def _moves(self) -> None:
        instance = self.instance
        if instance.current_slot_expert is None or not (self.move > 0 or instance.max_moves is not None):
            return
        before = device_counts(instance, instance.current_slot_expert) > 0
        new = [holds for key, holds in self.holds.items() if not before[key]]
        if instance.max_moves is not None:
            self.model.add(sum(new) <= min(instance.max_moves, len(new)))
        price = self._scaled(self.move)
        if price:
            self.cost.append(price * sum(new))

    def _sort(self) -> None:
        """Devices that nothing distinguishes are sorted by their first expert: in every layer, or with traffic in one layer, since it names them."""
        instance = self.instance
        if instance.current_slot_expert is not None and (self.move > 0 or instance.max_moves is not None):
            return
        kinds = {kind for kind, _ in hop_steps(instance)} if self.traffic > 0 else set()
        width = instance.node_devices if instance.group_limited or kinds & {"node", "inside"} else instance.devices
        pairs = [(d, d + 1) for d in range(instance.devices - 1) if (d + 1) % width]
        pairs += [(d, d + width) for d in range(0, instance.devices - width, width)]
        for layer in self.layers[:1] if self.traffic > 0 else self.layers:
            for d, following in pairs:
                self._falling(layer, d, following)

    def _falling(self, layer: int, d: int, following: int) -> None:
        """d's first expert is not after the first of the device that follows. (The whole order, as numbers in base 2, made CP-SAT slower.)"""
        for e in range(self.instance.experts):
            not_before = [self.holds[layer, other, d] for other in range(e + 1)]
            self.model.add_bool_or([self.holds[layer, e, following].negated(), *not_before])
