"""Which replica types an instance offers: measured (hardware, tensor parallelism) pairs with a price, a memory and a stock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headroom.instances.catalogue import Catalogue, GpuSpec, ModelSpec, folded
from headroom.instances.errors import InputError, shown
from headroom.instances.performance_table import Replica, kv_capacity_tokens, model_with_most_measurements


@dataclass(frozen=True)
class RentedReplica:
    """A measured replica with what renting it means; `facts` says where the price and the KV capacity come from."""

    name: str
    measured: Replica
    kv_tokens: int
    price_usd_per_h: float
    pool: str | None
    facts: dict[str, Any]

    def gpu_type(self, phase: str | None = None) -> dict[str, Any]:
        """The fields of a `GpuType`, for one phase or for both."""
        fields = {"name": self.name if phase is None else f"{self.name}-{phase}", "price_usd_per_h": self.price_usd_per_h}
        return fields | {"pool": self.pool, "gpus_per_replica": self.measured.tensor_parallel}


@dataclass(frozen=True)
class ChosenReplicas:
    """The replica types of an instance, its pools, the model with the figures that were used, and notices."""

    model: str
    facts: dict[str, Any]
    replicas: tuple[RentedReplica, ...]
    pools: tuple[dict[str, Any], ...]
    notices: tuple[str, ...]


def choose_replicas(
    measured: Sequence[Replica],
    catalogue: Catalogue,
    *,
    model: str | None,
    hardware: Sequence[str] | None,
    tp: Sequence[int] | None,
    price: Mapping[str, float],
    stock: Mapping[str, int],
    usable_memory_share: float,
    source: str,
) -> ChosenReplicas:
    """The replica types to offer (see `import_splitwise_perf` for the options).

    What is left out by default (no price, weights that do not fit, hardware unknown to the catalogue) is a notice; the same thing asked for by
    name is an `InputError`, and so are names the table does not have. `source` names the table in messages.
    """
    if not 0 < usable_memory_share <= 1:
        raise InputError(f"usable_memory_share must be in (0, 1], got {usable_memory_share}")
    try:
        notices: list[str] = []
        of_model = _of_model(measured, catalogue, model, notices)
        spec = _model_spec(of_model[0].model, catalogue)
        selected = _selected(of_model, hardware, tp, catalogue)
        prices = _by_hardware("price", price, selected, catalogue)
        stocks = _by_hardware("stock", stock, selected, catalogue)
        _check_values(price, stock)
        replicas = []
        for replica in selected:
            rented = _rented(replica, spec, catalogue, prices, stocks, usable_memory_share)
            if isinstance(rented, RentedReplica):
                replicas.append(rented)
            elif _asked_for(hardware, tp, rented):
                raise InputError(rented)
            elif rented not in notices:
                notices.append(rented)
        if not replicas:
            raise InputError(f"no replica type is left: {'; '.join(notices)}")
    except InputError as error:
        raise error.within(source) from None
    notices += _about_measurements([replica.measured for replica in replicas])
    pools = [{"name": gpu, "max_gpus": stocks[gpu]} for gpu in dict.fromkeys(replica.pool for replica in replicas if replica.pool is not None)]
    unused = [name for name in stocks if name not in {pool["name"] for pool in pools}]
    if unused:
        raise InputError(f"stock names {unused[0]}, which no replica type of the instance uses", source)
    facts = {"name": spec.name, "weights_bytes": spec.weights_bytes, "kv_bytes_per_token": spec.kv_bytes_per_token, "source": spec.source}
    return ChosenReplicas(of_model[0].model, facts, tuple(replicas), tuple(pools), tuple(notices))


def _of_model(measured: Sequence[Replica], catalogue: Catalogue, model: str | None, notices: list[str]) -> list[Replica]:
    names = list(dict.fromkeys(replica.model for replica in measured))
    if model is None:
        chosen = {model_with_most_measurements(measured)}
        if len(names) > 1:
            notices.append(f"model {next(iter(chosen))}: the one with most measured configurations of {', '.join(names)} (--model chooses another)")
    else:
        known = catalogue.model(model)
        wanted = {folded(model), *(map(folded, (known.name, *known.aliases)) if known else ())}
        chosen = {name for name in names if folded(name) in wanted}
        if len(chosen) != 1:
            raise InputError(f"model must be one of {', '.join(names)}, got {shown(model)}")
    return [replica for replica in measured if replica.model in chosen]


def _model_spec(name: str, catalogue: Catalogue) -> ModelSpec:
    spec = catalogue.model(name)
    if spec is None:
        raise InputError(f"model {shown(name)} is not in the catalogue; expected its weights_bytes and kv_bytes_per_token (--catalogue FILE)")
    return spec


def _model_bytes(spec: ModelSpec) -> tuple[float, float]:
    """Bytes of the weights and of a token's KV cache."""
    if spec.weights_bytes is None or spec.kv_bytes_per_token is None:
        missing = "weights_bytes" if spec.weights_bytes is None else "kv_bytes_per_token"
        raise InputError(f"model {shown(spec.name)} has no {missing} in the catalogue; expected one (--catalogue FILE)")
    return spec.weights_bytes, spec.kv_bytes_per_token


def _gpu_name(name: str, catalogue: Catalogue) -> str:
    """The catalogue's name for a GPU, or the name itself."""
    spec = catalogue.gpu(name)
    return spec.name if spec else name


def _selected(measured: Sequence[Replica], hardware: Sequence[str] | None, tp: Sequence[int] | None, catalogue: Catalogue) -> list[Replica]:
    have = {folded(_gpu_name(replica.hardware, catalogue)): replica.hardware for replica in measured}
    for name in hardware or ():
        if folded(_gpu_name(name, catalogue)) not in have:
            raise InputError(f"hardware must be among {', '.join(have.values())}, got {shown(name)}")
    wanted = {folded(_gpu_name(name, catalogue)) for name in hardware} if hardware else set(have)
    selected = [replica for replica in measured if folded(_gpu_name(replica.hardware, catalogue)) in wanted]
    sizes = sorted({replica.tensor_parallel for replica in selected})
    for size in tp or ():
        if size not in sizes:
            raise InputError(f"tp must be among the measured {', '.join(map(str, sizes))}, got {shown(size)}")
    return [replica for replica in selected if not tp or replica.tensor_parallel in tp]


def _by_hardware(option: str, values: Mapping[str, Any], measured: Sequence[Replica], catalogue: Catalogue) -> dict[str, Any]:
    """The option's values under the names of the replica types' GPUs. Raises `InputError` for a name that is not there or there twice."""
    names = {folded(_gpu_name(replica.hardware, catalogue)): _gpu_name(replica.hardware, catalogue) for replica in measured}
    result: dict[str, Any] = {}
    for given, value in values.items():
        name = names.get(folded(_gpu_name(given, catalogue)))
        if name is None:
            raise InputError(f"{option} must name one of {', '.join(names.values())}, got {shown(given)}")
        if name in result:
            raise InputError(f"{option} names {name} twice; expected it once")
        result[name] = value
    return result


def _check_values(price: Mapping[str, float], stock: Mapping[str, int]) -> None:
    for name, usd_per_h in price.items():
        if not (math.isfinite(usd_per_h) and 0 <= usd_per_h <= 1e9):
            raise InputError(f"price of {name} must be a number of USD an hour of at least 0, got {usd_per_h}")
    for name, gpus in stock.items():
        if isinstance(gpus, bool) or not isinstance(gpus, int) or not 0 <= gpus <= 10**9:
            raise InputError(f"stock of {name} must be a whole number of GPUs of at least 0, got {shown(gpus)}")


def _rented(
    replica: Replica, model: ModelSpec, catalogue: Catalogue, prices: Mapping[str, float], stocks: Mapping[str, int], usable_memory_share: float
) -> RentedReplica | str:
    """The replica with its price and KV capacity, or why it cannot be offered."""
    gpu: GpuSpec | None = catalogue.gpu(replica.hardware)
    if gpu is None:
        return f"{replica.hardware} is left out: not in the catalogue, so its memory is unknown (--catalogue FILE)"
    price, price_source = prices.get(gpu.name), "given"
    if price is None:
        default = gpu.default_price
        if default is None or default.usd_per_h is None:
            return f"{gpu.name} is left out: it has no price (--price {replica.hardware}=USD_PER_GPU_HOUR)"
        price, price_source = default.usd_per_h, f"{default.source}, {default.date}"
    kv_tokens = kv_capacity_tokens(gpu.memory_bytes, replica.tensor_parallel, *_model_bytes(model), usable_memory_share)
    name = f"{gpu.name}-TP{replica.tensor_parallel}"
    if kv_tokens < 1:
        return f"{name} is left out: its memory does not hold the weights of {replica.model}"
    facts = {
        "hardware": replica.hardware,
        "tensor_parallel": replica.tensor_parallel,
        "price_usd_per_gpu_h": price,
        "price_source": price_source,
        "kv_tokens": kv_tokens,
        "trusted_batches": list(replica.batches),
        "distrusted": list(replica.distrusted),
    }
    return RentedReplica(name, replica, kv_tokens, price * replica.tensor_parallel, gpu.name if gpu.name in stocks else None, facts)


def _asked_for(hardware: Sequence[str] | None, tp: Sequence[int] | None, reason: str) -> bool:
    """Whether the user named what cannot be offered: the hardware, or the TP if that is what fails."""
    return bool(tp) if "hold the weights" in reason else bool(hardware)


def _about_measurements(measured: Sequence[Replica]) -> list[str]:
    notices = [f"not trusted: {replica.label}: {'; '.join(replica.distrusted)}" for replica in measured if replica.distrusted]
    dips = sum(replica.dips for replica in measured)
    if dips:
        share, where = max(replica.largest_dip for replica in measured if replica.largest_dip is not None)
        raised = f"{dips} measured times lie below that of a smaller size and were raised to it (never optimistic)"
        notices.append(f"{raised}; the largest dip is {share:.1%}, {where}")
    off_axis = sum(replica.off_axis for replica in measured)
    if off_axis:
        notices.append(f"{off_axis} measured configurations vary more than one factor from the base point and are not used")
    return notices
