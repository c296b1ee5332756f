"""Pictures of sweeps, plans and comparisons, drawn on matplotlib axes that the caller makes (or into a file by `save_sweep`).

| function                              | shows                                                                    |
|---------------------------------------|--------------------------------------------------------------------------|
| `price_sweep(ax, sweep)`              | cost against a price, every change of the best mix, the mixes by name    |
| `cost_mix(ax, sweep)`                 | cost by GPU type, stacked, against the rate                              |
| `limit_sweep(ax, sweep)`              | cost against a cap or a floor                                            |
| `moves_front(ax, sweep)`              | a placement's objective against the number of moves, above its bound     |
| `capacity_sweep(ax, sweep)`           | time against a memory tier's capacity, above its bound                   |
| `slo_heat_map(ax, sweep)`             | cost over latency limits                                                 |
| `shadow_price_bars(ax, sweep)`        | what one more and one less of each limit is worth, beside the LP's price |
| `fleet(ax, instance, plan)`           | what a plan rents and what each type costs                               |
| `epochs(ax, instance, plan)`          | the fleet over time, stacked, with the load                              |
| `tier_occupancy(ax, instance, plan)`  | what each memory tier holds over the steps, below its capacity           |
| `tier_times(ax, instance, plan)`      | how long each memory tier works in each step, and the step               |
| `slot_gantt(ax, instance, plan)`      | who is in which slot when, which slots are idle, and the prefills        |
| `bin_fill(ax, instance, plan)`        | tokens in each bin, the fullest first, below the capacity                |
| `device_load(ax, instance, plan)`     | load of each device in each layer, over the layer's mean                 |
| `gap_bars(ax, results)`               | how far each result is above the certified bound                         |
| `slot_utilisation(ax, results)`       | how busy slots are against how many there are, method by method          |
| `gap_distribution(ax, comparison)`    | gaps to the best bound, method by method                                 |

Nothing here needs a display: figures are made without pyplot. matplotlib is imported when a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headroom.plots.comparisons import gap_distribution
    from headroom.plots.files import figure, save, save_sweep
    from headroom.plots.packing import bin_fill, gap_bars, slot_gantt, slot_utilisation
    from headroom.plots.placement import device_load
    from headroom.plots.plans import epochs, fleet
    from headroom.plots.sweeps import capacity_sweep, cost_mix, limit_sweep, moves_front, price_sweep, shadow_price_bars, slo_heat_map
    from headroom.plots.tiers import tier_occupancy, tier_times

_HOME = {
    "cost_mix": "sweeps", "limit_sweep": "sweeps", "moves_front": "sweeps", "price_sweep": "sweeps", "shadow_price_bars": "sweeps",
    "slo_heat_map": "sweeps", "capacity_sweep": "sweeps", "tier_occupancy": "tiers", "tier_times": "tiers",
    "epochs": "plans", "fleet": "plans", "gap_distribution": "comparisons", "figure": "files", "save": "files", "save_sweep": "files",
    "bin_fill": "packing", "gap_bars": "packing", "slot_gantt": "packing", "slot_utilisation": "packing",
    "device_load": "placement",
}  # fmt: skip

__all__ = [
    "bin_fill",
    "capacity_sweep",
    "cost_mix",
    "device_load",
    "epochs",
    "figure",
    "fleet",
    "gap_bars",
    "gap_distribution",
    "limit_sweep",
    "moves_front",
    "price_sweep",
    "save",
    "save_sweep",
    "shadow_price_bars",
    "slo_heat_map",
    "slot_gantt",
    "slot_utilisation",
    "tier_occupancy",
    "tier_times",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"headroom.plots.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
