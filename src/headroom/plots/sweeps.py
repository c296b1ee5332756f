"""Plots of sweeps. Each draws on the axes given and returns nothing; raises `InputError` for a sweep of another kind or without a plan."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from headroom.instances.errors import InputError
from headroom.plots.style import FAINT, INK, NOTHING, PALETTE, fills, fleet_label, legend_below, spoken, tidy
from headroom.sweep_types import Change, Point, ShadowPrice, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def price_sweep(ax: Axes, sweep: Sweep) -> None:
    """Cost against one price: a concave line, a dot where the best mix changes, the mixes in order below."""
    if not sweep.pieces:
        raise InputError("has no pieces to draw; expected a price sweep over an interval with a plan", sweep.label)
    (axis,) = sweep.axes
    handles, labels = [], []
    for k, piece in enumerate(sweep.pieces):
        ends = [piece.start, piece.end]
        colour = PALETTE[k % len(PALETTE)]
        style = ("-", "--", ":", "-.")[(k // len(PALETTE)) % 4]
        (line,) = ax.plot(ends, [piece.cost(v) for v in ends], color=colour, linewidth=3.5, linestyle=style, solid_capstyle="butt")
        handles.append(line)
        labels.append(f"{spoken(piece.start)} to {spoken(piece.end)}:  {fleet_label(piece.fleet)}")
    breaks = sweep.breakpoints
    ax.plot(breaks, [piece.cost(piece.start) for piece in sweep.pieces[1:]], "o", color="white", markeredgecolor=INK, markersize=5, zorder=3)
    if sweep.current is not None and sweep.pieces[0].start <= sweep.current <= sweep.pieces[-1].end:
        _mark(ax, sweep.current, "now")
    ax.set_xlabel(f"{sweep.label} [{sweep.axes[axis]}]")
    ax.set_ylabel(f"least cost [{sweep.objective_unit}]")
    many = f"{len(sweep.pieces)} best mixes as the {sweep.label} changes"
    ax.set_title(f"{many if breaks else 'one best mix at every price'}: {sweep.instance_name}", loc="left", fontsize=11)
    tidy(ax)
    legend_below(ax, handles, labels)


def cost_mix(ax: Axes, sweep: Sweep) -> None:
    """Cost by part (GPU type), stacked, against the rate; by the hour it is divided by the requests served, so that scales can be compared.

    Each rate that was solved has a column of its own: between two of them nothing was asked.
    """
    found = [point for point in sweep.points if point.plan is not None]
    if sweep.kind != "rate" or not found or found[0].at["rate"] <= 0:
        raise InputError("has nothing to draw; expected a rate sweep with a plan", sweep.label)
    # The points with most types first: their order is the instance's, and with it the colours are those of the other plots.
    names = list(dict.fromkeys(name for point in sorted(found, key=lambda point: -len(point.parts)) for name in point.parts))
    rates = [point.at["rate"] for point in found]
    hourly = sweep.objective_unit == "USD/h"
    scale = [1e6 / (3600 * rate) if hourly else 1.0 for rate in rates]
    edges = _edges(rates)
    look = fills(names)
    base = [0.0] * len(rates)
    handles = []
    for name in names:
        top = [low + point.parts.get(name, 0.0) * k for low, point, k in zip(base, found, scale, strict=True)]
        handles.append(ax.stairs(top, edges, baseline=base, fill=True, label=name, **(look[name] | {"linewidth": 0.0})))
        base = top
    ax.plot(rates, base, "o", color=INK, markersize=3)
    ax.set_xscale("log")
    _plain_ticks(ax, rates)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("rate [requests/s]")
    ax.set_ylabel("least cost [USD per million requests]" if hourly else f"least cost [{sweep.objective_unit}]")
    ax.set_title(f"what each GPU type costs: {sweep.instance_name}", loc="left", fontsize=11)
    tidy(ax)
    legend_below(ax, handles, names, columns=min(4, max(1, len(names))))


def limit_sweep(ax: Axes, sweep: Sweep) -> None:
    """Cost against a cap or a floor, with the values at which no plan is left."""
    found = [point for point in sweep.points if point.plan is not None]
    if len(sweep.axes) != 1 or not found:
        raise InputError("has nothing to draw; expected a sweep of one quantity with a plan", sweep.label)
    (axis,) = sweep.axes
    values, costs = [point.at[axis] for point in found], [point.objective for point in found]
    whole = all(value == int(value) for value in values)
    # A cap of 2.9 is a cap of 2, a floor of 2.1 one of 3. Between values that lie apart nothing was asked, and a plain line says no more.
    each = whole and all(b - a == 1 for a, b in itertools.pairwise(values))
    steps = "default" if not each else "steps-post" if costs[0] >= costs[-1] else "steps-pre"
    ax.plot(values, costs, "o-", color=PALETTE[0], linewidth=2, markersize=6, label="least cost", drawstyle=steps)
    lost = [point.at[axis] for point in sweep.points if point.status == "infeasible"]
    if lost:
        ax.plot(lost, [max(costs)] * len(lost), "x", color=PALETTE[5], markersize=8, markeredgewidth=2, label="no plan")
    last = ""
    for value, cost in zip(values, costs, strict=True):
        text = spoken(cost)
        if len(found) <= 16 and text != last:
            ax.annotate(text, (value, cost), textcoords="offset points", xytext=(4, 5), fontsize=9, color=INK)
        last = text
    if sweep.current is not None and values[0] <= sweep.current <= values[-1]:
        _mark(ax, sweep.current, "now")
    ax.margins(x=0.08, y=0.12)
    if whole:
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"{sweep.label} [{sweep.axes[axis]}]")
    ax.set_ylabel(f"least cost [{sweep.objective_unit}]")
    ax.set_title(f"cost against {sweep.label}: {sweep.instance_name}", loc="left", fontsize=11)
    tidy(ax)
    if lost:
        ax.legend(frameon=False)


def moves_front(ax: Axes, sweep: Sweep) -> None:
    """What an expert placement costs with at most so many moves, above what is certified of it; how many experts move is said below."""
    found = [point for point in sweep.points if point.plan is not None]
    if sweep.kind != "moves" or not found:
        raise InputError("has nothing to draw; expected a sweep of moves with a plan", sweep.label)
    values, costs = [point.at["moves"] for point in found], [point.objective for point in found]
    bounds = [point.bound for point in found]
    _above_bounds(ax, values, costs, bounds)
    if sweep.current is not None and values[0] <= sweep.current <= values[-1]:
        _mark(ax, sweep.current, "now")
    ax.use_sticky_edges = False
    ax.margins(x=0.04, y=0.12)
    balance_alone = all(abs(point.objective - point.parts["balance"]) <= 1e-12 for point in found)
    ax.set_xlabel("experts that move, at most")
    ax.set_ylabel("imbalance: busiest over mean device" if balance_alone else "objective")
    ax.set_title(f"what moves bring: {sweep.instance_name}", loc="left", fontsize=11)
    tidy(ax)
    ax.legend(frameon=False)


def capacity_sweep(ax: Axes, sweep: Sweep) -> None:
    """What a KV tiering takes with so much room in one tier, above what is certified of it."""
    found = [point for point in sweep.points if point.plan is not None]
    if sweep.kind != "capacity" or not found:
        raise InputError("has nothing to draw; expected a sweep of a capacity with a plan", sweep.label)
    (axis,) = sweep.axes
    scale, unit = sweep.shown[0], sweep.shown[1] or sweep.axes[axis]
    values = [point.at[axis] / scale for point in found]
    _above_bounds(ax, values, [point.objective for point in found], [point.bound for point in found])
    if sweep.current is not None and values[0] <= sweep.current / scale <= values[-1]:
        _mark(ax, sweep.current / scale, "now")
    ax.use_sticky_edges = False
    ax.margins(x=0.04, y=0.12)
    ax.set_xlabel(f"{sweep.label} [{unit}]")
    ax.set_ylabel(f"time [{sweep.objective_unit}]")
    ax.set_title(f"what memory brings: {sweep.instance_name}", loc="left", fontsize=11)
    tidy(ax)
    ax.legend(frameon=False)


def _above_bounds(ax: Axes, values: list[float], costs: list[float], bounds: list[float]) -> None:
    """The cost of the best plans against a limit that is relaxed to the right, their lower bounds, and what lies between."""
    # Up to the next value asked for a plan stays within the cap; a bound holds for every tighter cap, back to the value before.
    bounded = all(math.isfinite(bound) for bound in bounds)
    if len(values) > 1 and bounded:
        ax.stairs(costs[:-1], values, baseline=bounds[1:], fill=True, color=PALETTE[0], alpha=0.12, linewidth=0, label="not decided")
    ax.plot(values, costs, "o-", color=PALETTE[0], linewidth=2, markersize=5, drawstyle="steps-post", label="best plan found")
    if bounded:
        ax.plot(values, bounds, color=INK, linewidth=1.2, linestyle="--", drawstyle="steps-pre", label="lower bound")
    last, said = -math.inf, ""
    for at, cost in zip(values, costs, strict=True) if len(values) <= 16 else ((values[0], costs[0]), (values[-1], costs[-1])):
        if at - last >= 0.06 * max(values) and spoken(cost) != said:
            ax.annotate(spoken(cost), (at, cost), textcoords="offset points", xytext=(5, 5), fontsize=9, color=INK)
            last, said = at, spoken(cost)


def slo_heat_map(ax: Axes, sweep: Sweep) -> None:
    """Cost over limits on TTFT (upwards) and TPOT (across); a cell without a plan is grey, one that is not proved optimal has a star."""
    costs = [point.objective for point in sweep.points if point.plan is not None]
    if sweep.kind != "slo" or not costs:
        raise InputError("has nothing to draw; expected a sweep of latency limits with a plan", sweep.label)
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Rectangle

    ttft, tpot = (sorted({point.at[name] for point in sweep.points}) for name in ("ttft_s", "tpot_s"))
    low, high = min(costs), max(costs)
    digits = min(max(3 - math.floor(math.log10(high)), 0), 4) if high > 0 else 0
    norm: Normalize = LogNorm(low, high) if 0 < low < high else Normalize(low - 1, high + 1)
    from matplotlib import colormaps

    shades = colormaps["cividis"]
    for point in sweep.points:
        at = tpot.index(point.at["tpot_s"]), ttft.index(point.at["ttft_s"])
        colour = shades(norm(point.objective)) if point.plan is not None else NOTHING
        ax.add_patch(Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        ax.text(*at, _cell_text(point, digits), ha="center", va="center", fontsize=10, color=_readable(colour))
    ax.set_xlim(-0.5, len(tpot) - 0.5)
    ax.set_ylim(-0.5, len(ttft) - 0.5)
    ax.set_xticks(range(len(tpot)), [f"{1000 * value:g}" for value in tpot])
    ax.set_yticks(range(len(ttft)), [f"{value:g}" for value in ttft])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("limit on time per output token [ms]")
    ax.set_ylabel("limit on time to first token [s]")
    ax.set_title(f"least cost [{sweep.objective_unit}]: {sweep.instance_name}", loc="left", fontsize=11)


def shadow_price_bars(ax: Axes, sweep: Sweep) -> None:
    """For each limit what one more saves and one less costs (with their certified intervals), beside the linear relaxation's price."""
    prices = sweep.shadow_prices
    if not prices:
        raise InputError("has no shadow prices to draw", sweep.label)
    by = "by one" if all(price.step == 1 for price in prices) else "by a step"
    kinds = ((f"relaxed {by}: saves", PALETTE[2]), (f"tightened {by}: costs", PALETTE[5]), ("LP dual: saves, by the relaxation", FAINT))
    rows = [(price.relaxed, price.tightened, _exact(price.lp_dual, price.step)) for price in prices]
    ends = [end for changes in rows for change in changes if change is not None for end in (change.value, change.most)]
    finite = [end for end in ends if math.isfinite(end)]
    longest, height = max(finite, default=0.0), 0.26
    for row, changes in enumerate(rows):
        for k, ((_, colour), change) in enumerate(zip(kinds, changes, strict=True)):
            y = row + (k - 1) * height
            if change is None:
                continue
            if not math.isfinite(change.value):
                ax.text(0, y, "  no plan left", va="center", fontsize=8, color=colour)
                continue
            ax.barh(y, change.value, height * 0.92, color=colour)
            if math.isfinite(change.most) and change.most - change.least > 1e-3 * longest:
                ax.plot([change.least, change.most], [y, y], color=INK, linewidth=1.2, marker="|")
            at = max(change.value, change.most) if math.isfinite(change.most) else change.value
            ax.text(at, y, f" {spoken(change.value)}", va="center", fontsize=8, color=INK)
    from matplotlib.patches import Patch

    ax.set_yticks(range(len(prices)), [_limit_name(price) for price in prices], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * longest or 1.0)
    ax.set_xlabel(f"change of the least cost [{sweep.objective_unit}]")
    each = "one unit" if by == "by one" else "a step"
    ax.set_title(f"what {each} of each limit is worth: {sweep.instance_name}", loc="left", fontsize=11)
    tidy(ax)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x", color="#E5E5E5", linewidth=0.7)
    legend_below(ax, [Patch(color=colour) for _, colour in kinds], [name for name, _ in kinds], columns=3)


def _exact(value: float | None, step: float) -> Change | None:
    return None if value is None else Change(value * step, value * step, value * step)


def _limit_name(price: ShadowPrice) -> str:
    """What is limited, to what, and by how much it was changed where that is not one."""
    scale, unit = price.shown
    step = f", step {spoken(price.step / scale)}{f' {unit}' * bool(unit)}" if price.step != 1 else ""
    return f"{price.constraint} of {price.index}\n(now {spoken(price.limit / scale)}{f' {unit}' * bool(unit)}{step})"


def _cell_text(point: Point, digits: int) -> str:
    if point.plan is None:
        return "no plan" if point.status == "infeasible" else "?"
    return f"{point.objective:,.{digits}f}" + ("" if point.status == "optimal" else "*")


def _readable(colour: Any) -> str:
    """Black or white ink, whichever stands out on a colour (relative luminance, WCAG 2)."""
    from matplotlib.colors import to_rgb

    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return INK if luminance > 0.213 else "white"


def _mark(ax: Axes, value: float, text: str) -> None:
    ax.axvline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.annotate(text, (value, 1.0), xycoords=("data", "axes fraction"), textcoords="offset points", xytext=(4, -10), fontsize=9, color=INK)


def _edges(rates: list[float]) -> list[float]:
    """Where one rate's column ends and the next begins: half way in ratio."""
    inner = [math.sqrt(a * b) for a, b in itertools.pairwise(rates)]
    first, last = (rates[0] ** 2 / inner[0], rates[-1] ** 2 / inner[-1]) if inner else (rates[0] / 2, rates[0] * 2)
    return [first, *inner, last]


def _plain_ticks(ax: Axes, rates: list[float]) -> None:
    """The rates themselves as ticks where there is room for them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    step = -(-len(rates) // 10)
    ax.xaxis.set_major_locator(FixedLocator(rates[::step]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value)))
    ax.xaxis.set_minor_locator(NullLocator())
