"""The families and what belongs to each, as dotted names: listing them imports nothing heavy.

To add a method, a bound, a preset or an exporter, write the function and add one line to the family's table, `registry_<family>.py`; the
command line, `compare`, the contract tests and the report pick it up from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from headroom.registry_expert_placement import EXPERT_PLACEMENT
from headroom.registry_gpu_selection import GPU_SELECTION
from headroom.registry_kv_tiering import KV_TIERING
from headroom.registry_request_packing import REQUEST_PACKING
from headroom.registry_types import BoundMethod, Entry, Family, Kind, Method, Proof, load

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (GPU_SELECTION, EXPERT_PLACEMENT, KV_TIERING, REQUEST_PACKING)})

PLUGIN_GROUP = "headroom.heuristics"
"""Entry points by which installed packages add methods, see `own_methods`."""

__all__ = [
    "EXPERT_PLACEMENT",
    "FAMILIES",
    "GPU_SELECTION",
    "KV_TIERING",
    "PLUGIN_GROUP",
    "REQUEST_PACKING",
    "BoundMethod",
    "Entry",
    "Family",
    "Kind",
    "Method",
    "Proof",
    "load",
]
