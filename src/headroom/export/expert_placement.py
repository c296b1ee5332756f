"""Expert placements in the files that serving systems start from: SGLang, vllm-ascend, TensorRT-LLM.

Slot r of a layer is slot r mod k of device r // k in all of them. What none of them can say is how replicas share their expert's load: each
system spreads tokens over replicas by itself, so a plan of an instance with `split: "optimal"` loses its `share`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan, device_counts, replicas
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement

if TYPE_CHECKING:
    from headroom.documents import PlanDocument

IntArray = npt.NDArray[np.int64]


def sglang(instance: ExpertPlacement, document: PlanDocument) -> str:
    """For `--init-expert-location FILE.json`: {"physical_to_logical_map": [layer][slot]} and no other key, since SGLang passes the keys on.

    A row for each of the model's layers (`model_layers`; by default the MoE layers are all there are), slot r of a dense one holding r mod E, as
    SGLang itself starts. Raises `InputError` for a plan that does not fit or leaves an expert out.
    """
    slots, ids = _placement(instance, document, "SGLang"), _layer_ids(instance)
    model_layers = ids[-1] + 1 if instance.model_layers is None else instance.model_layers
    rows = np.tile(np.arange(instance.slots) % instance.experts, (model_layers, 1))
    rows[list(ids)] = slots
    return _one_row_a_line('{"physical_to_logical_map": [', rows.tolist(), "]}")


def vllm_ascend(instance: ExpertPlacement, document: PlanDocument) -> str:
    """For `expert_map_path`: a list of MoE layers, numbered from 0, each with its devices and their experts, which must be distinct.

    Raises `InputError` for a plan that does not fit, leaves an expert out, or holds one twice on a device (vllm-ascend maps an expert to one slot).
    """
    slots = _placement(instance, document, "vllm-ascend")
    twice = np.argwhere(device_counts(instance, slots) > 1)
    if len(twice):
        layer, expert, device = (int(i) for i in twice[0])
        found = f"layer {layer} holds expert {expert} twice on device {device}"
        raise InputError(f"{found}; vllm-ascend needs distinct experts on every device (distinct: true asks for it)", document.source)
    held = slots.reshape(instance.layers, instance.devices, instance.slots_per_device)
    layers = [
        {
            "layer_id": l,
            "device_count": instance.devices,
            "device_list": [{"device_id": d, "device_expert": held[l, d].tolist()} for d in range(instance.devices)],
        }
        for l in range(instance.layers)
    ]
    return _one_row_a_line(f'{{"moe_layer_count": {instance.layers}, "layer_list": [', layers, "]}")


def tensorrt_llm(instance: ExpertPlacement, document: PlanDocument) -> str:
    """For `moe_config.load_balancer`: YAML with num_slots, initial_global_assignments by model layer, and no updates while serving.

    Layers are numbered as in the model (`moe_layer_ids`; by default all layers have experts). Raises `InputError` for a plan that does not fit or
    leaves an expert out.
    """
    slots = _placement(instance, document, "TensorRT-LLM")
    lines = [f"num_slots: {instance.slots}", "initial_global_assignments:"]
    # Whole numbers and lists of them are the same in YAML and JSON.
    lines += [f"  {layer}: {json.dumps(row)}" for layer, row in zip(_layer_ids(instance), slots.tolist(), strict=True)]
    return "\n".join([*lines, "layer_updates_per_iter: 0"]) + "\n"


def _placement(instance: ExpertPlacement, document: PlanDocument, target: str) -> IntArray:
    """Experts by slot [layer][slot], checked: a target that read a plan with holes would fail at its start, or serve without an expert."""
    assert isinstance(document.plan, ExpertPlan)
    slots: IntArray = document.plan.slot_expert
    wanted = (instance.layers, instance.slots)
    if slots.shape != wanted:
        found = " x ".join(map(str, slots.shape))
        raise InputError(f"plan: slot_expert must have {wanted[0]} layers x {wanted[1]} slots, got {found}", document.source)
    if int(slots.max()) >= instance.experts:
        layer, slot = (int(i) for i in np.argwhere(slots >= instance.experts)[0])
        where, got = f"slot_expert[{layer}][{slot}]", int(slots[layer, slot])
        raise InputError(f"plan: {where} must be an expert from 0 to {instance.experts - 1}, got {got}", document.source)
    missing = np.argwhere(replicas(instance, slots) == 0)
    if len(missing):
        layer, expert = (int(i) for i in missing[0])
        raise InputError(f"layer {layer} holds expert {expert} nowhere; {target} needs every expert in every layer", document.source)
    return slots


def _layer_ids(instance: ExpertPlacement) -> tuple[int, ...]:
    """The number in the model of each MoE layer."""
    return tuple(range(instance.layers)) if instance.moe_layer_ids is None else instance.moe_layer_ids


def _one_row_a_line(begin: str, rows: list[Any], end: str) -> str:
    """JSON with a line for each layer: short enough to read and to compare."""
    return begin + "\n" + ",\n".join(json.dumps(row) for row in rows) + "\n" + end + "\n"


__all__ = ["sglang", "tensorrt_llm", "vllm_ascend"]
