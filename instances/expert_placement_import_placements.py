"""Placements that serving systems write, as the placement that stands now: SGLang's expert locations and vllm-ascend's expert map.

SGLang (`--init-expert-location`): `{"physical_to_logical_map": [layer][slot]}`, a row for every layer of the model, dense ones included.
vllm-ascend (`expert_map_path`): `{"moe_layer_count", "layer_list": [{"layer_id", "device_count", "device_list": [{"device_id", "device_expert"}]}]}`,
an entry for every MoE layer. It reads lists in their order and ignores the ids; here ids out of order are refused, since then one of them is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.expert_placement_import_tables import TORCH, checked
from headroom.instances.files import read_json

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """Experts by slot [row][slot]; `devices` where the file says how many; a row for every layer of the model, or for every MoE layer only."""

    slot_expert: IntArray
    devices: int | None
    format: str
    all_layers: bool


def read_placement(path: Path) -> Placement:
    """Read either format, told by its keys. Raises `InputError` naming the file, the place and the value."""
    if path.suffix in (".pt", ".pth"):
        raise InputError(TORCH.split(";")[0] + "; expected JSON with physical_to_logical_map or layer_list", str(path))
    document = read_json(path)
    try:
        if isinstance(document, dict) and "physical_to_logical_map" in document:
            rows = checked("physical_to_logical_map", "[layer][slot]", document["physical_to_logical_map"], whole=True, most=1e6)
            if not rows.size:
                raise InputError(f"physical_to_logical_map must have at least one layer and slot, got {' x '.join(map(str, rows.shape))}")
            return Placement(rows, None, "sglang", True)
        if isinstance(document, dict) and "layer_list" in document:
            return _vllm_ascend(document)
    except InputError as error:
        raise error.within(str(path)) from None
    got = f"an object with {', '.join(sorted(document)) or 'nothing'}" if isinstance(document, dict) else shown(document)
    raise InputError(f"must be an object with physical_to_logical_map (SGLang) or layer_list (vllm-ascend), got {got}", str(path))


def _vllm_ascend(document: dict[str, Any]) -> Placement:
    layers = _list("layer_list", document["layer_list"])
    count = document.get("moe_layer_count")
    if count != len(layers) or isinstance(count, bool):
        raise InputError(f"moe_layer_count must be {len(layers)}, the length of layer_list, got {shown(count)}")
    slots: list[list[Any]] = []
    devices = length = None
    before = -1
    for l, layer in enumerate(layers):
        here = f"layer_list[{l}]"
        if not isinstance(layer, dict):
            raise InputError(f"{here} must be an object with layer_id, device_count, device_list, got {shown(layer)}")
        number = layer.get("layer_id")
        if not isinstance(number, int) or isinstance(number, bool) or number <= before:
            raise InputError(f"{here}.layer_id must be a whole number above that of the layer before, got {shown(number)}")
        before = number
        held = _list(f"{here}.device_list", layer.get("device_list"))
        devices = len(held) if devices is None else devices
        if len(held) != devices or layer.get("device_count") != devices:
            wrong = len(held) if len(held) != devices else layer.get("device_count")
            raise InputError(f"{here} must have {devices} devices, as device_count and as the first layer, got {shown(wrong)}")
        slots.append([])
        for d, device in enumerate(held):
            experts = _device(f"{here}.device_list[{d}]", device, d, length)
            length = len(experts)
            slots[-1] += experts
    return Placement(checked("layer_list", "[layer][slot]", slots, whole=True, most=1e6), devices, "vllm-ascend", False)


def _device(here: str, device: Any, number: int, length: int | None) -> list[Any]:
    if not isinstance(device, dict) or device.get("device_id", number) != number:
        raise InputError(f"{here} must be an object with device_id {number}, got {shown(device)}")
    experts = _list(f"{here}.device_expert", device.get("device_expert"))
    for k, expert in enumerate(experts):
        if not isinstance(expert, int) or isinstance(expert, bool) or not 0 <= expert <= 10**6:
            raise InputError(f"{here}.device_expert[{k}] must be a whole number from 0 to 1000000, got {shown(expert)}")
    if len(set(experts)) < len(experts):
        twice = next(expert for k, expert in enumerate(experts) if expert in experts[:k])
        raise InputError(f"{here}.device_expert names expert {twice} twice; expected distinct experts on a device")
    if length is not None and len(experts) != length:
        raise InputError(f"{here}.device_expert must have {length} experts as the first device has, got {len(experts)}")
    return experts


def _list(here: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{here} must be a list that is not empty, got {shown(value)}")
    return value
