"""What GPUs and models are: memory, bandwidth, prices, sizes. Figures live in `data/gpus.json` and `data/models.json`, each with its source.

The figures are defaults that a user overrides: `load_catalogue(extra)` lays a JSON file of the same shape over them, entry by entry and
field by field. A figure that is not known is absent (`None`), never 0. 1 GB = 10⁹ bytes, 1 TB/s = 10¹² bytes/s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from headroom.instances.base import Record, first_message, rule
from headroom.instances.errors import InputError, shown
from headroom.instances.files import parse_json, read_json

Text = Annotated[str, Field(min_length=1, max_length=200)]
Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Aliases = Annotated[tuple[Text, ...], Field(strict=False)]


class Price(Record):
    """What one GPU costs an hour, when, and who says so; a range where the source gives no single figure."""

    usd_per_h: Positive | None = None
    usd_per_h_range: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None
    date: Text
    source: Text

    @model_validator(mode="after")
    def _one_of_them(self) -> Price:
        if (self.usd_per_h is None) == (self.usd_per_h_range is None):
            raise rule("prices: an entry must have either usd_per_h or usd_per_h_range")
        return self


class Spec(Record):
    """What every entry has: a name, and others it goes by."""

    name: Text
    aliases: Aliases = ()


class GpuSpec(Spec):
    """One kind of GPU. `host_…` describe memory that the GPU reaches over a coherent link (GH200)."""

    memory_gb: Positive
    memory_tb_per_s: Positive | None = None
    prices: Annotated[tuple[Price, ...], Field(strict=False)] = ()
    host_memory_gb: Positive | None = None
    host_memory_tb_per_s: Positive | None = None
    host_link_tb_per_s: Positive | None = None
    source: Text | None = None

    @property
    def memory_bytes(self) -> float:
        """Memory of one GPU in bytes."""
        return self.memory_gb * 1e9

    @property
    def default_price(self) -> Price | None:
        """The first entry with a single figure; None where there is none."""
        return next((price for price in self.prices if price.usd_per_h is not None), None)


class MoeShape(Record):
    """Mixture-of-experts shape: layers that have experts, routed experts in each, experts a token visits."""

    layers: PositiveInt
    experts: PositiveInt
    top_k: PositiveInt


class ModelSpec(Spec):
    """One model. `kv_bytes_per_token` is the KV cache of one token over all layers and all GPUs of a replica."""

    parameters: Positive | None = None
    weights_bytes: Positive | None = None
    weights_dtype: Text | None = None
    kv_bytes_per_token: Positive | None = None
    kv_dtype: Text | None = None
    layers: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    head_size: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    moe: MoeShape | None = None
    source: Text | None = None


AnySpec = TypeVar("AnySpec", bound=Spec)


@dataclass(frozen=True)
class Catalogue:
    """GPUs and models by canonical name; `gpu` and `model` also know aliases, and care neither for case nor for `_` against `-`."""

    gpus: dict[str, GpuSpec]
    models: dict[str, ModelSpec]

    def gpu(self, name: str) -> GpuSpec | None:
        """The GPU of this name or alias, or None."""
        return _find(self.gpus.values(), name)

    def model(self, name: str) -> ModelSpec | None:
        """The model of this name or alias, or None."""
        return _find(self.models.values(), name)


def load_catalogue(extra: Path | str | None = None) -> Catalogue:
    """The bundled catalogue with the JSON file `extra` laid over it.

    `extra` is `{"gpus": [...], "models": [...]}` (either may be missing) with entries shaped like the bundled ones: an entry whose name or
    alias is known changes the fields it gives and keeps the rest, any other is added. Raises `InputError` naming the entry and the field.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    for section in ("gpus", "models"):
        file = resources.files("headroom.instances") / "data" / f"{section}.json"
        entries[section] = parse_json(file.read_bytes(), f"{section}.json")[section]
    if extra is not None:
        try:
            _lay_over(entries, read_json(extra))
            return _validated(entries)
        except InputError as error:
            raise error.within(str(extra)) from None
    return _validated(entries)


def folded(name: str) -> str:
    """The form in which names are compared."""
    return name.strip().casefold().replace("_", "-")


def _find(specs: Iterable[AnySpec], name: str) -> AnySpec | None:
    wanted = folded(name)
    return next((spec for spec in specs if wanted in (folded(spec.name), *map(folded, spec.aliases))), None)


def _lay_over(entries: dict[str, list[dict[str, Any]]], document: Any) -> None:
    if not isinstance(document, dict) or not document or set(document) - set(entries):
        raise InputError(f'expected an object with "gpus" and/or "models", got {shown(document)}')
    for section, changes in document.items():
        if not isinstance(changes, list):
            raise InputError(f"{section} must be a list of objects, got {shown(changes)}")
        for i, change in enumerate(changes):
            if not isinstance(change, dict) or not isinstance(change.get("name"), str):
                raise InputError(f"{section}[{i}] must be an object with a name, got {shown(change)}")
            for k, known in enumerate(entries[section]):
                if folded(change["name"]) in map(folded, [known["name"], *known.get("aliases", [])]):
                    entries[section][k] = {**known, **change, "name": known["name"]}
                    break
            else:
                entries[section].append(change)


def _validated(entries: dict[str, list[dict[str, Any]]]) -> Catalogue:
    gpus = [_record(GpuSpec, "gpus", entry) for entry in entries["gpus"]]
    models = [_record(ModelSpec, "models", entry) for entry in entries["models"]]
    _refuse_ambiguous("gpus", gpus)
    _refuse_ambiguous("models", models)
    return Catalogue({gpu.name: gpu for gpu in gpus}, {model.name: model for model in models})


def _record(kind: type[AnySpec], section: str, entry: dict[str, Any]) -> AnySpec:
    try:
        return kind(**entry)
    except ValidationError as error:
        raise InputError(f"{section} {shown(entry['name'])}: {first_message(error)}") from None


def _refuse_ambiguous(section: str, specs: Iterable[Spec]) -> None:
    owner: dict[str, str] = {}
    for spec in specs:
        for name in dict.fromkeys(map(folded, [spec.name, *spec.aliases])):
            if name in owner:
                raise InputError(f"{section}: {name!r} names both {owner[name]!r} and {spec.name!r}; expected a name or alias to mean one of them")
            owner[name] = spec.name
