"""Expert-placement instances from routed experts of tokens and from tables of expert loads.

Both importers take one file or several, each a scenario, and return the instance and notices: one-line strings about what was chosen or left out,
which the command line prints on stderr and `provenance` keeps. What the files cannot say (devices, slots, weights) are options, see
`PlacementOptions`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_import_placements import Placement, read_placement
from headroom.instances.expert_placement_import_tables import MOST_NUMBERS, read_head, read_load_table, read_npz_members
from headroom.instances.request_traces import sha256_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Files = Path | str | Sequence[Path | str]
PAIRS_AT_ONCE = 2**21
"""Pairs of experts counted in one go: bounds the memory, whatever the number of tokens."""


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """What no file says. None: the default of `ExpertPlacement`, or what is told from the files (with a notice).

    `slots_per_device` defaults to the fewest that hold every expert once (`min_holders` times), `experts` to what the files show. `current` is a
    file that `read_placement` reads. `moe_layer_ids` are the model layers that have experts, rising, or `first_moe_layer` is the first of them and
    the rest follow; a table with a row for every layer of the model is cut down to them. `model_layers` counts all layers of the model, dense ones
    included.
    """

    devices: int | None = None
    devices_per_node: int | None = None
    slots_per_device: int | None = None
    experts: int | None = None
    n_groups: int | None = None
    group_limited: bool | None = None
    allow_repeats: bool | None = None
    min_holders: int | None = None
    split: str | None = None
    robust: str | None = None
    balance_weight: float | None = None
    traffic_weight: float | None = None
    moves_weight: float | None = None
    same_node_hop: float | None = None
    other_node_hop: float | None = None
    current: Path | str | None = None
    max_moves: int | None = None
    model_layers: int | None = None
    moe_layer_ids: Sequence[int] | None = None
    first_moe_layer: int | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, for the provenance."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value is not None}
        return plain | ({} if self.moe_layer_ids is None else {"moe_layer_ids": list(self.moe_layer_ids)})

    def instance_fields(self) -> dict[str, Any]:
        """Fields of the instance that options set one by one."""
        plain = ("devices_per_node", "n_groups", "group_limited", "split", "robust", "max_moves", "min_holders")
        found = {name: value for name in plain if (value := getattr(self, name)) is not None}
        weights = {"balance": self.balance_weight, "traffic": self.traffic_weight, "moves": self.moves_weight}
        hops = {"same_node": self.same_node_hop, "other_node": self.other_node_hop}
        for name, parts in (("weights", weights), ("hop_cost", hops)):
            if any(value is not None for value in parts.values()):
                found[name] = {part: value for part, value in parts.items() if value is not None}
        return found | ({"distinct": False} if self.allow_repeats else {})


@dataclass(frozen=True)
class Layers:
    """Rows of a table that are MoE layers, their numbers in the model (None: unknown) and the number of the model's layers (None: unknown)."""

    rows: list[int]
    ids: tuple[int, ...] | None
    model_layers: int | None


def import_expert_routing(files: Files, *, no_transitions: bool = False, **options: Any) -> tuple[ExpertPlacement, list[str]]:
    """Read which experts every token was routed to: .npz files with `topk` [token][layer][k], whole numbers, as ESFT records them.

    `load` counts the tokens of every expert, a scenario for each file. `transition` counts, for every token and neighbouring layers, each of its
    k × k pairs of experts as 1/(tokens · k²), so that a boundary adds up to 1; several files weigh the same, however many tokens they have, as
    scenarios do in the objective. `no_transitions` leaves the transitions out (E² numbers a boundary). Options: `PlacementOptions`.
    Raises `InputError` naming file, element and value. Time O(tokens · layers · k²).
    """
    asked = PlacementOptions(**options)
    paths = _paths(files)
    notices: list[str] = []
    tables = [_topk(path) for path in paths]
    first = tables[0][0].shape[1]
    for path, (topk, _) in zip(paths, tables, strict=True):
        if topk.shape[1] != first:
            raise InputError(f"topk must have {first} layers as the first file has, got {topk.shape[1]}", str(path))
    layers = choose_layers(np.ones(first, dtype=np.bool_), None, asked, notices)
    experts = _experts(paths, tables, asked.experts, notices)
    with_pairs = not no_transitions and len(layers.rows) > 1
    if with_pairs and len(layers.rows) * experts**2 > MOST_NUMBERS:
        raise InputError(f"{experts} experts make more than {MOST_NUMBERS} transitions; expected fewer, or --no-transitions", str(paths[0]))
    load = np.empty((len(paths), len(layers.rows), experts))
    pairs = np.zeros((len(layers.rows) - 1 if with_pairs else 0, experts, experts))
    for s, (path, (topk, count)) in enumerate(zip(paths, tables, strict=True)):
        load[s], share = _counted(path, topk, layers.rows, experts, with_pairs)
        pairs += share / len(paths)
        if count is not None and not np.array_equal(count[layers.rows], load[s]):
            notices.append(f"{path.name}: its own count is not that of topk, which is used")
    if len(paths) > 1 and with_pairs:
        notices.append(f"transitions: the mean of the {len(paths)} files, each with the same weight")
    found = {"load": load, "transition": pairs if with_pairs else None}
    tokens = {"tokens": [len(topk) for topk, _ in tables], "top_k": [topk.shape[2] for topk, _ in tables]}
    extra = tokens | ({"no_transitions": True} if no_transitions else {})
    return _instance("expert-routing", "routed experts", paths, found, layers, asked, notices, extra), notices


def import_expert_load(files: Files, **options: Any) -> tuple[ExpertPlacement, list[str]]:
    """Read tables of expert loads, [layer][expert] or [step][layer][expert] (`read_load_table` says which files), a scenario for each file.

    Steps without any load are left out (SGLang's recorder fills its buffer with them). `load` is the sum over the steps; with a single file they
    also become `load_trace`. Options: `PlacementOptions`. Raises `InputError` naming file, element and value.
    """
    asked = PlacementOptions(**options)
    paths = _paths(files)
    notices: list[str] = []
    tables = [read_load_table(path, asked.experts) for path in paths]
    shape, ids = tables[0].tokens.shape[1:], tables[0].layers
    for path, table in zip(paths, tables, strict=True):
        if table.tokens.shape[1:] != shape or table.layers != ids:
            same = table.tokens.shape[1:] == shape
            got = f"layers {list(table.layers or ())}" if same else " x ".join(map(str, table.tokens.shape[1:]))
            wanted = f"layers {list(ids or ())}" if same else f"{shape[0]} layers x {shape[1]} experts"
            raise InputError(f"must have {wanted} as the first file has, got {got}", str(path))
        notices += [f"{path.name}: {notice}" for notice in table.notices]
    load = np.array([table.tokens.sum(axis=0) for table in tables])
    for path, total in zip(paths, load, strict=True):
        if not total.any():
            raise InputError("holds no load at all; expected tokens for at least one expert", str(path))
    if load.max() > 1e15:
        raise InputError("the sum over the steps must be at most 1e15 for every expert", str(paths[int(load.max(axis=(1, 2)).argmax())]))
    layers = choose_layers(np.asarray(load.any(axis=(0, 2))), ids, asked, notices)
    found: dict[str, Any] = {"load": load[:, layers.rows]}
    if any(table.stepped for table in tables):
        if len(tables) == 1:
            trace = tables[0].tokens[:, layers.rows]
            empty = ~np.asarray(trace.any(axis=(1, 2)))
            if empty.any() and not empty.all():
                notices.append(f"left out: {int(empty.sum())} of {len(empty)} steps, which have no load at all")
                trace = trace[~empty]
            found["load_trace"] = trace
            notices.append(f"load: the sum over {len(trace)} steps, which also stand in load_trace")
        else:
            notices.append("load: the sum over the steps of each file; load_trace is read from a single file only")
    return _instance("expert-load", "expert loads", paths, found, layers, asked, notices, {}), notices


def choose_layers(loaded: npt.NDArray[np.bool_], ids: tuple[int, ...] | None, options: PlacementOptions, notices: list[str]) -> Layers:
    """The rows of a table that are MoE layers. `loaded` [row]: whether it has any load; `ids`: the model layer of each row, if the file says so."""
    rows = len(loaded)
    wanted = None if options.moe_layer_ids is None else tuple(options.moe_layer_ids)
    first = options.first_moe_layer
    if wanted is not None and (not wanted or any(a >= b for a, b in itertools.pairwise(wanted)) or wanted[0] < 0):
        raise InputError(f"moe_layer_ids must be rising numbers of layers, got {shown(list(wanted))}")
    if first is not None:
        if wanted is not None:
            raise InputError("first_moe_layer and moe_layer_ids cannot both be given: each says which layers have experts")
        if first < 0:
            raise InputError(f"first_moe_layer must be at least 0, got {first}")
        if ids is not None:
            wanted = tuple(id for id in ids if id >= first)
        else:
            # Rows without any load where the dense layers would be: the table has a row for every layer of the model.
            dense = first < rows and not loaded[:first].any()
            wanted = tuple(range(first, rows if dense else first + rows))
    if wanted is None:
        idle = np.flatnonzero(~loaded).tolist()
        if idle and len(idle) < rows:
            numbers = ", ".join(str(ids[row] if ids else row) for row in idle[:10]) + (", …" if len(idle) > 10 else "")
            notices.append(f"without any load: layer {numbers}; --first-moe-layer or --moe-layer-ids leave out what is dense")
        return Layers(list(range(rows)), None if ids == tuple(range(rows)) else ids, options.model_layers)
    numbered = ids or tuple(range(rows))
    if ids is None and len(wanted) == rows:
        return Layers(list(range(rows)), wanted, options.model_layers)
    if not wanted or not set(wanted) <= set(numbered):
        missing = next((id for id in wanted if id not in numbered), None)
        where = f"which has no layer {missing}" if missing is not None else "of which none is left"
        raise InputError(f"moe_layer_ids must be {rows} layers, or layers of the {rows} in the table, {where}; got {shown(list(wanted))}")
    if len(wanted) < rows:
        notices.append(f"{len(wanted)} of the {rows} layers in the table are used: {_range(wanted)}")
    every = rows if ids is None and options.model_layers is None else options.model_layers
    return Layers([numbered.index(id) for id in wanted], wanted, every)


def _range(ids: Sequence[int]) -> str:
    return f"{ids[0]} to {ids[-1]}" if len(ids) == ids[-1] - ids[0] + 1 else ", ".join(map(str, ids))


def _instance(
    importer: str,
    role: str,
    paths: list[Path],
    found: dict[str, Any],
    layers: Layers,
    options: PlacementOptions,
    notices: list[str],
    extra: dict[str, Any],
) -> ExpertPlacement:
    """The instance of what the files say and of the options."""
    experts, model_layers = found["load"].shape[2], layers.model_layers
    sources = [_source(role, path) for path in paths]
    devices, slots_per_device = options.devices, options.slots_per_device
    if options.current is not None:
        path = Path(options.current)
        placement = read_placement(path)
        try:
            devices = _devices(placement, devices)
            slots = placement.slot_expert.shape[1]
            if slots % devices or (slots_per_device is not None and slots != devices * slots_per_device):
                each = "a multiple of the devices" if slots_per_device is None else f"{devices * slots_per_device}, devices x slots_per_device"
                raise InputError(f"must have {each} as its number of slots ({devices} devices), got {slots}")
            slots_per_device = slots // devices
            found["current_slot_expert"] = current = _current_rows(placement, layers)
            if int(current.max()) >= experts:
                row, slot = (int(i) for i in np.argwhere(current >= experts)[0])
                raise InputError(f"MoE layer {row}, slot {slot} must be an expert from 0 to {experts - 1}, got {int(current[row, slot])}")
        except InputError as error:
            raise error.within(str(path)) from None
        if placement.all_layers and len(placement.slot_expert) > len(layers.rows) and model_layers is None:
            model_layers = len(placement.slot_expert)
        sources.append(_source(f"current placement ({placement.format})", path))
    if devices is None:
        raise InputError("devices is missing; expected --devices N, the number of devices that share the experts")
    if devices < 1:
        raise InputError(f"devices must be at least 1, got {devices}")
    if slots_per_device is None:
        holders = max(options.min_holders or 1, 1)
        slots_per_device = -(-experts * holders // devices)
        spare = devices * slots_per_device - experts * holders
        times = f" {holders} times" if holders > 1 else ""
        kept = f"{spare} in a layer for replicas" if spare else "none for replicas"
        notices.append(f"slots_per_device: {slots_per_device}, the fewest that hold {experts} experts{times} on {devices} devices, {kept}")
    provenance = {"importer": importer, "sources": sources, "options": options.given(), **extra, "notices": notices}
    return ExpertPlacement(
        name="+".join(path.stem for path in paths)[:200], provenance=provenance, devices=devices, slots_per_device=slots_per_device,
        model_layers=model_layers, moe_layer_ids=layers.ids, **found, **options.instance_fields(),
    )  # fmt: skip


def _devices(placement: Placement, devices: int | None) -> int:
    if devices is None:
        devices = placement.devices
    if devices is None:
        raise InputError("devices is missing; expected --devices N: the slots of an SGLang map are not told apart by device")
    if devices < 1 or placement.devices not in (None, devices):
        raise InputError(f"devices must be {placement.devices or 'at least 1'}, got {devices}")
    return devices


def _current_rows(placement: Placement, layers: Layers) -> IntArray:
    """The rows of the MoE layers: SGLang's map has the dense layers as well."""
    rows, wanted = len(placement.slot_expert), len(layers.rows)
    if rows == wanted:
        return placement.slot_expert
    if placement.all_layers and layers.ids is not None and layers.ids[-1] < rows:
        return placement.slot_expert[list(layers.ids)]
    why = "; --moe-layer-ids or --first-moe-layer say which of the model's layers they are" if placement.all_layers and rows > wanted else ""
    raise InputError(f"must have {wanted} layers as the load has, got {rows}{why}")


def _source(role: str, path: Path) -> dict[str, str]:
    return {"role": role, "file": path.name, "sha256": sha256_of(path)}


def _paths(files: Files) -> list[Path]:
    paths = [Path(files)] if isinstance(files, (str, Path)) else [Path(path) for path in files]
    if not paths:
        raise InputError("no file is given; expected at least one", "FILE")
    return paths


# ---- Routed experts ------------------------------------------------------------------------------------------------------------------


def _topk(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """`topk` [token][layer][k], and the file's own `count` [layer][expert] if it has one that fits."""
    if not read_head(path).startswith(b"PK"):
        raise InputError("not an .npz file; expected one with the array topk [token][layer][k]", str(path))
    members = read_npz_members(path, ("topk", "count"))
    if "topk" not in members:
        raise InputError("has no member topk; expected whole numbers [token][layer][k]", str(path))
    topk, count = members["topk"], members.get("count")
    if topk.ndim != 3 or topk.dtype.kind not in "iu":
        raise InputError(f"topk must be whole numbers [token][layer][k], got {topk.ndim} dimensions of {topk.dtype}", str(path))
    if not topk.size:
        raise InputError(f"topk must have at least one token, layer and expert, got {' x '.join(map(str, topk.shape))}", str(path))
    _within(path, topk, 10**6)
    fits = count is not None and count.ndim == 2 and len(count) == topk.shape[1] and count.shape[1] > int(topk.max())
    return topk, count if fits else None


def _within(path: Path, topk: npt.NDArray[Any], experts: int) -> None:
    """Raise `InputError` for the first id that is no expert."""
    if int(topk.min()) < 0 or int(topk.max()) >= experts:
        token, layer, k = (int(i) for i in np.argwhere((topk < 0) | (topk >= experts))[0])
        got = int(topk[token, layer, k])
        raise InputError(f"topk[{token}][{layer}][{k}] must be an expert from 0 to {experts - 1}, got {got}", str(path))


def _experts(paths: list[Path], tables: list[tuple[npt.NDArray[Any], npt.NDArray[Any] | None]], given: int | None, notices: list[str]) -> int:
    """How many experts there are: as given, as the files' own counts have columns, or one more than the largest id."""
    if given is not None:
        if not 1 <= given <= 10**6:
            raise InputError(f"experts must be from 1 to 1000000, got {given}")
        for path, (topk, _) in zip(paths, tables, strict=True):
            _within(path, topk, given)
        return given
    largest = max(int(topk.max()) for topk, _ in tables) + 1
    columns = max((count.shape[1] for _, count in tables if count is not None), default=0)
    if columns >= largest:
        return columns
    notices.append(f"experts: {largest}, one more than the largest id (--experts N where there are more)")
    return largest


def _counted(path: Path, topk: npt.NDArray[Any], rows: list[int], experts: int, with_pairs: bool) -> tuple[FloatArray, FloatArray]:
    """Tokens [layer][expert] in these rows, and the share of each pair [boundary][expert][expert] (no boundary unless `with_pairs`)."""
    tokens, _, k = topk.shape
    load = np.array([np.bincount(topk[:, row].ravel(), minlength=experts) for row in rows], dtype=np.float64)
    pairs = np.zeros((len(rows) - 1 if with_pairs else 0, experts, experts))
    step = max(PAIRS_AT_ONCE // max(k * k, len(rows) * k), 1)
    for begin in range(0, tokens, step):
        part = topk[begin : begin + step, rows].astype(np.int64)
        ordered = np.sort(part, axis=2)
        twice = np.argwhere(ordered[:, :, 1:] == ordered[:, :, :-1])
        if len(twice):
            token, layer, at = (int(i) for i in twice[0])
            expert = int(ordered[token, layer, at])
            raise InputError(f"topk[{begin + token}][{rows[layer]}] names expert {expert} twice; expected {k} distinct experts", str(path))
        for b in range(len(pairs)):
            flat = part[:, b, :, None] * experts + part[:, b + 1, None, :]
            pairs[b] += np.bincount(flat.ravel(), minlength=experts * experts).reshape(experts, experts)
    return load, pairs / (tokens * k * k)
