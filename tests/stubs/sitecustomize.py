"""Python runs this at start-up when tests/stubs is on PYTHONPATH: `headroom` and its worker processes then know the stub methods."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from headroom import registry

STUBS = {
    "slow": "exact", "stubborn": "exact", "planless": "exact", "deaf": "exact", "failing": "exact", "infeasible": "exact", "sensitive": "exact",
    "liar": "exact", "unlucky": "exact", "logged": "heuristic", "dying": "heuristic", "raising": "heuristic", "noisy": "heuristic",
    "hungry": "heuristic",
}  # fmt: skip
_family = registry.GPU_SELECTION
_methods = {name: registry.Method(f"stub_methods:{name}", "stub", kind) for name, kind in STUBS.items()}  # type: ignore[arg-type]
_family = dataclasses.replace(_family, methods=MappingProxyType({**_family.methods, **_methods}))
registry.FAMILIES = MappingProxyType({**registry.FAMILIES, _family.name: _family})
