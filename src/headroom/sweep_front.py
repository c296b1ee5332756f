"""The front of a limit against the objective: from the tightest value to where the limit no longer binds, monotone by construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headroom.formulations.quantities import Quantity
from headroom.formulations.types import Plan, Stop
from headroom.instances.base import Instance
from headroom.registry import load
from headroom.run import family_of, resolve_method
from headroom.sweep_kinds import DEFAULT_POINTS, Sweeper
from headroom.sweep_solver import NO_FLOOR, Floor, Solver
from headroom.sweep_types import Point, Sweep


class FrontSweep(Sweeper):
    """Points at the values asked for and at both ends: nothing allowed, and as much as the unlimited optimum uses.

    The unlimited instance is solved first: its bound holds for every value. One search of the family then offers plans for all values; where it
    is all that the method could do they are the answer, and elsewhere each value is solved from them and from the plan of the tighter value
    before. A value takes over the plan of a tighter one when it has none that is better.
    """

    def __init__(self, instance: Instance, quantity: Quantity, values: Sequence[float] | None, solver: Solver, parameters: Mapping[str, Any]) -> None:
        super().__init__(instance, solver, parameters)
        assert quantity.front is not None
        self.quantity, self.front, self.values = quantity, quantity.front, values
        self.found: dict[float, Point] = {}

    def work(self) -> None:
        loose = self._unlimited()
        values = self._values(loose)
        if not values:
            return
        known = [] if loose.plan is None or self.solver.cold else [loose.plan]
        plans = self.solver.search(lambda params, progress: self.front.plans(values, known, params, progress))
        again = self.solver.cold or not self.front.alone or resolve_method(self.instance, self.solver.method)[0] != self.front.method
        before: Point | None = None
        for value in values:
            if before is not None and (self.solver.stopped and again):
                return
            before = self._answer(value, plans.get(value), before, loose, again)
            self.found[value] = before

    def _unlimited(self) -> Point:
        return self.solver.answer({}, self.quantity.checked(self.quantity.unlimited), (), NO_FLOOR, self.quantity.fleet)

    def _values(self, loose: Point) -> list[float]:
        """The values asked for (by default DEFAULT_POINTS whole ones, closer together where the limit is tight) and both ends, the tightest first."""
        least = self.quantity.least
        most = least if loose.plan is None or self.quantity.used is None else max(self.quantity.used(loose.plan), least)
        if self.values is not None:
            return sorted({least, most, *self.values})
        if most - least < DEFAULT_POINTS:
            return [least + k for k in range(int(most - least) + 1)]
        return sorted({float(round(least + (most - least) * (k / (DEFAULT_POINTS - 1)) ** 2)) for k in range(DEFAULT_POINTS)})

    def _answer(self, value: float, plan: Plan | None, before: Point | None, loose: Point, again: bool) -> Point:
        variant = self.quantity.checked(value)
        at = {self.quantity.name: value}
        tighter = [] if before is None or before.plan is None else [before.plan]
        plans = [item for item in (plan, *tighter, loose.plan) if item is not None]
        floor = Floor(loose.bound, loose.certified_bound, "monotonicity")
        own = self.quantity.bound(value)
        if own is not None and own[0] > floor.bound:
            floor = Floor(own[0], floor.certified, own[1])
        if again and not self.solver.stopped:
            return self._no_worse(self.solver.answer(at, variant, plans, floor, self.quantity.fleet), variant, tighter)
        by = loose.by if floor.by == "monotonicity" else floor.by
        empty = Point(at, float("inf"), floor.bound, floor.certified, "solved", by, self.solver.stop)
        return self._no_worse(empty, variant, plans)

    def _no_worse(self, point: Point, variant: Instance, plans: Sequence[Plan]) -> Point:
        """The point with the best of its own plan and these."""
        evaluate = load(family_of(self.instance).evaluate)
        for plan in plans:
            evaluation = evaluate(variant, plan)
            if evaluation.feasible and evaluation.objective < point.objective:
                fleet = self.quantity.fleet(plan)
                point = replace(point, objective=evaluation.objective, plan=plan, parts=evaluation.parts, fleet=fleet)
        return point

    def so_far(self, stop: Stop | None = None) -> Sweep:
        points = tuple(self.found[value] for value in sorted(self.found))
        axes = {self.quantity.name: self.quantity.unit}
        return self._sweep(self.quantity.name, self.quantity.label, axes, stop, points=points, current=self.quantity.current)
