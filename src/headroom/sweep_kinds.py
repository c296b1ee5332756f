"""How each kind of sweep asks its questions: along a price (concave), along a limit or the rate (monotone), and one unit of every limit.

Each keeps what it has found so far, so that an interrupted sweep still has an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from headroom.describe import fleets_are_means, unit
from headroom.formulations.quantities import Quantity
from headroom.formulations.tolerances import relative_gap
from headroom.formulations.types import Stop
from headroom.instances.base import Instance
from headroom.instances.errors import InputError
from headroom.registry import load
from headroom.run import family_of, versions
from headroom.solvers.concave_envelope import Envelope, Line, Piece
from headroom.sweep_solver import NO_FLOOR, Floor, Solver
from headroom.sweep_types import Change, Point, PricePiece, ShadowPrice, Sweep

DEFAULT_POINTS = 13
"""Values at which a limit is swept when none are given, at most."""
SAME_COST = 1e-12
"""Costs nearer than this are one cost, added up in another order."""


@dataclass
class Sweeper:
    """One sweep in progress: `work` fills it, `so_far` is what it has (also while `work` runs in another thread, or after it was cut off)."""

    instance: Instance
    solver: Solver
    parameters: Mapping[str, Any]
    given: Instance | None = field(default=None, init=False)
    """The instance as it was given, where `parameters` say what was overridden in it."""

    def work(self) -> None:
        """Ask every question, or until the solver is stopped."""
        raise NotImplementedError

    def so_far(self, stop: Stop | None = None) -> Sweep:
        raise NotImplementedError

    def run(self) -> Sweep:
        self.work()
        return self.so_far()

    def _sweep(self, kind: str, label: str, axes: Mapping[str, str], stop: Stop | None, **found: Any) -> Sweep:
        units, given = unit(self.instance).strip(), self.given or self.instance
        return Sweep(
            kind=kind,
            label=label,
            axes=axes,
            objective_unit=units,
            family=self.instance.family,
            instance_name=given.name,
            instance_sha256=given.digest(),
            method=self.solver.used_method,
            parameters=self.parameters,
            solves=self.solver.solves,
            nodes=self.solver.nodes,
            runtime_s=self.solver.elapsed_s,
            stop=stop or self.solver.stop,
            versions=versions(),
            mean_fleets=fleets_are_means(self.instance),
            **found,
        )


class PriceSweep(Sweeper):
    """Along a price: breakpoints by parametric search; every value asked for is then answered by concavity (see `solvers.concave_envelope`)."""

    def __init__(self, instance: Instance, quantity: Quantity, values: Sequence[float], solver: Solver, parameters: Mapping[str, Any]) -> None:
        super().__init__(instance, solver, parameters)
        self.quantity, self.values = quantity, sorted(set(values))
        self.solved: dict[float, Point] = {}
        self.envelope = Envelope(self.values[0], self.values[-1], solver.tolerance)
        self.certified = Envelope(self.values[0], self.values[-1])

    def work(self) -> None:
        while not self.solver.stopped and (value := self.envelope.question()) is not None:
            if self._ask(value).objective == math.inf:
                return  # prices make no plan impossible: where one value has none, all have none
        for value in self.values:
            if self.solver.stopped:
                return
            if self.solver.cold or self.envelope.gap(value) > self.solver.tolerance:
                self._ask(value)

    def _ask(self, value: float) -> Point:
        if value in self.solved:
            return self.solved[value]
        best = self.envelope.best(value)
        plans = () if best is None else (best.key,)
        floor = Floor(self.envelope.lower(value), self.certified.lower(value), "concavity")
        point = self.solver.answer(self._at(value), self.quantity.checked(value), plans, floor, self.quantity.fleet)
        assert self.quantity.line is not None
        line = None if point.plan is None else Line(*self.quantity.line(point.plan), key=point.plan)
        self.solved[value] = point
        self.envelope.add(value, point.bound, line)
        self.certified.add(value, point.certified_bound, None)
        return point

    def _point(self, value: float) -> Point | None:
        """The answer at a value from everything known: the least line, the highest chord. None where nothing is known yet."""
        solved, best = self.solved.get(value), self.envelope.best(value)
        if solved is not None and (self.solver.cold or best is None):
            return solved
        if none := [point for point in list(self.solved.values()) if point.bound == math.inf]:  # prices leave the set of plans as it is
            return replace(none[0], at=self._at(value), how="reused", by="feasibility", nodes=0, runtime_s=0.0)
        bound, certified = self.envelope.lower(value), self.certified.lower(value)
        if best is None or self.solver.cold or (solved is None and bound == -math.inf):
            return None
        if solved is not None and solved.objective <= best.at(value) * (1 + SAME_COST) and bound <= solved.bound:
            return solved
        # Another value's plan, found later, may be better here than what a time limit left.
        evaluation = load(family_of(self.instance).evaluate)(self.quantity.checked(value), best.key)
        found = solved or Point(self._at(value), math.inf, bound, certified, "reused", "concavity", "completed")
        return replace(
            found,
            objective=evaluation.objective,
            bound=max(bound, found.bound),
            certified_bound=max(certified, found.certified_bound),
            plan=best.key,
            fleet=self.quantity.fleet(best.key),
            parts=evaluation.parts,
        )

    def _at(self, value: float) -> dict[str, float]:
        return {self.quantity.name: value}

    def _priced(self, piece: Piece) -> PricePiece:
        """A piece with its fleet, and its gap by bounds that were rechecked."""
        line = piece.line
        inside = (piece.start, *(v for v in list(self.solved) if piece.start < v < piece.end), piece.end)
        certified = max(relative_gap(line.at(v), self.certified.lower(v)) for v in inside)
        return PricePiece(piece.start, piece.end, line.intercept, line.slope, piece.gap, certified, self.quantity.fleet(line.key), line.key)

    def so_far(self, stop: Stop | None = None) -> Sweep:
        known = len(self.solved) > 1 or self.envelope.least == self.envelope.most
        pieces = [self._priced(piece) for piece in self.envelope.pieces()] if known else []
        points = {value: self._point(value) for value in self.values}
        found = {value: point for value, point in points.items() if point is not None}
        for piece in pieces[1:]:
            nearest = min(list(self.solved), key=lambda v: abs(v - piece.start))
            if abs(nearest - piece.start) <= 1e-9 * max(abs(piece.start), 1e-12):
                found.setdefault(nearest, self.solved[nearest])
                found[nearest] = replace(found[nearest], role="breakpoint") if nearest not in self.values else found[nearest]
        return self._sweep(
            "price",
            self.quantity.label,
            {self.quantity.name: self.quantity.unit},
            stop,
            points=tuple(found[value] for value in sorted(found)),
            pieces=tuple(pieces),
            current=self.quantity.current,
        )


class MonotoneSweep(Sweeper):
    """Along a limit or the rate: the ends first, then always the middle of two answers that differ.

    With L the bound at a looser value and U the cost at a tighter one, every value between costs at least L and at most U; where these meet,
    the tighter plan is optimal there and nothing is solved.
    """

    def __init__(self, instance: Instance, quantity: Quantity, values: Sequence[float] | None, solver: Solver, parameters: Mapping[str, Any]) -> None:
        super().__init__(instance, solver, parameters)
        self.quantity, self.values = quantity, values
        self.found: dict[float, Point] = {}

    def work(self) -> None:
        values = self.values if self.values is not None else self._default_values()
        order = sorted(set(values), reverse=self.quantity.effect == "relaxes")  # loosest first
        if not order:
            return
        self._answer(order[0], None, None)
        if len(order) > 1 and not self.solver.stopped:
            self._answer(order[-1], order[0], None)
        waiting = [(0, len(order) - 1)]
        while waiting and not self.solver.stopped:
            i, j = waiting.pop(0)
            if j - i < 2:
                continue
            middle = (i + j) // 2
            self._answer(order[middle], order[i], order[j])
            waiting += [(i, middle), (middle, j)]
        if not self.solver.cold:
            self._hand_on(order)

    def _hand_on(self, order: Sequence[float]) -> None:
        """A plan at a tighter value is one at every looser value: where a limit cut a solve short it may be the better."""
        evaluate = load(family_of(self.instance).evaluate)
        for tighter, looser in pairwise(reversed(order)):
            given, point = self.found.get(tighter), self.found.get(looser)
            if given is None or point is None or given.plan is None or not given.objective < point.objective:
                continue
            found = evaluate(self.quantity.checked(looser), given.plan)
            if found.feasible and found.objective < point.objective:
                fleet = self.quantity.fleet(given.plan)
                self.found[looser] = replace(point, plan=given.plan, objective=found.objective, parts=found.parts, fleet=fleet)

    def _answer(self, value: float, looser: float | None, tighter: float | None) -> Point:
        if value in self.found:
            return self.found[value]
        variant = self.quantity.checked(value)
        above = None if looser is None else self.found[looser]
        floor = NO_FLOOR if above is None else Floor(above.bound, above.certified_bound, "monotonicity")
        plans = []
        if tighter is not None and (plan := self.found[tighter].plan) is not None:
            plans.append(plan)
        if above is not None and above.plan is not None:
            plans += [above.plan, *self.quantity.carry(variant, above.plan)]
        if tighter is not None and (plan := self.found[tighter].plan) is not None:
            plans += self.quantity.carry(variant, plan)
        point = self.solver.answer({self.quantity.name: value}, variant, plans, floor, self.quantity.fleet)
        if self.quantity.dual is not None and point.plan is not None:
            point = replace(point, lp_dual=self.quantity.dual(variant))
        self.found[value] = point
        return point

    def _default_values(self) -> list[float]:
        """From nothing to what the optimum uses when the limit is out of the way, in whole steps, DEFAULT_POINTS at most."""
        used, least = self.quantity.used, self.quantity.least
        if used is None or self.quantity.effect != "relaxes":
            raise InputError("needs values, such as 1,2,4 or 1:64:7", self.quantity.label)
        unlimited = self.quantity.checked(self.quantity.unlimited)
        loose = self.solver.answer({self.quantity.name: self.quantity.unlimited}, unlimited, (), NO_FLOOR, self.quantity.fleet)
        if loose.plan is None:
            return [max(least, self.quantity.current or 0.0)]
        grain = self.quantity.grain
        most = max(math.ceil(used(loose.plan) / grain - 1e-9) * grain, least)
        # At what it uses, the plan is feasible, and no bound falls when the limit is tightened.
        dual = None if self.quantity.dual is None else self.quantity.dual(self.quantity.checked(most))
        self.found[float(most)] = replace(loose, at={self.quantity.name: float(most)}, lp_dual=dual)
        steps = min(int((most - least) / grain), DEFAULT_POINTS - 1)
        return sorted({float(least + round(k * (most - least) / steps / grain) * grain) for k in range(steps + 1)} if steps else {float(most)})

    def so_far(self, stop: Stop | None = None) -> Sweep:
        points = tuple(self.found[value] for value in sorted(self.found))
        axes = {self.quantity.name: self.quantity.unit}
        now = self.quantity.current
        return self._sweep(self.quantity.name, self.quantity.label, axes, stop, points=points, current=now, shown=self.quantity.shown)


class ShadowSweep(Sweeper):
    """What one unit of every limit is worth: two re-solves a limit, each from the optimum as it is."""

    def __init__(self, instance: Instance, limits: Sequence[Quantity], solver: Solver, parameters: Mapping[str, Any]) -> None:
        super().__init__(instance, solver, parameters)
        self.limits = limits
        self.base: Point | None = None
        self.prices: list[ShadowPrice] = []

    def work(self) -> None:
        fleet = self.limits[0].fleet if self.limits else lambda plan: {}
        self.base = self.solver.answer({}, self.instance, fleet=fleet)
        for quantity in self.limits:
            if self.solver.stopped or self.base.plan is None:
                return
            price = self._price(quantity, self.base)
            if not self.solver.stopped:
                self.prices.append(price)

    def _price(self, quantity: Quantity, base: Point) -> ShadowPrice:
        assert quantity.current is not None
        step = quantity.step if quantity.effect == "relaxes" else -quantity.step
        looser = self._neighbour(quantity, quantity.current + step, base, NO_FLOOR)
        tighter = self._neighbour(quantity, quantity.current - step, base, Floor(base.bound, base.certified_bound, "monotonicity"))
        return ShadowPrice(
            constraint=quantity.constraint,
            index=quantity.index,
            unit=quantity.unit,
            limit=quantity.current,
            used=None if quantity.used is None or base.plan is None else quantity.used(base.plan),
            lp_dual=None if quantity.dual is None or base.plan is None else quantity.dual(self.instance),
            relaxed=None if looser is None else _difference(base, looser),
            tightened=None if tighter is None else _difference(tighter, base),
            step=quantity.step,
            shown=quantity.shown,
        )

    def _neighbour(self, quantity: Quantity, value: float, base: Point, floor: Floor) -> Point | None:
        """The optimum with the limit at another value; None where the limit cannot be that."""
        try:
            variant = quantity.checked(value)
        except InputError:
            return None
        return self.solver.answer({quantity.name: value}, variant, () if base.plan is None else (base.plan,), floor, quantity.fleet)

    def so_far(self, stop: Stop | None = None) -> Sweep:
        points = () if self.base is None else (self.base,)
        return self._sweep("shadow", "shadow prices", {}, stop, points=points, shadow_prices=tuple(self.prices))


def _difference(dearer: Point, cheaper: Point) -> Change | None:
    """By how much the optimum of `dearer` exceeds that of `cheaper`, which has a plan; monotonicity says that it is never negative."""
    if dearer.bound == math.inf:
        return Change(math.inf, math.inf, math.inf)
    if cheaper.plan is None:
        return None  # a limit of time found nothing
    # Bounds end a tolerance below the optimum, so that the interval has a width even where both answers are optimal.
    least, most = (max(0.0, value) for value in (dearer.certified_bound - cheaper.objective, dearer.objective - cheaper.certified_bound))
    return Change(max(0.0, dearer.objective - cheaper.objective), least, most)
