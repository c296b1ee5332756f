"""Bounds on the makespan that need no prefill time: every plan's decode steps are at least those of P||Cmax with the outputs as processing times.

| method             | what                                                                                   | proof       |
|--------------------|----------------------------------------------------------------------------------------|-------------|
| `mean_load`        | all output tokens over all slots                                                       | closed form |
| `longest_output`   | the longest output                                                                     | closed form |
| `pigeonhole`       | of the l longest requests some slots hold more than the mean number, for every l       | closed form |
| `dual_feasible`    | a dual feasible function shows that T - 1 steps a slot need more slots than there are  | certificate |
| `dual_bin_packing` | prices of the outputs and the dearest load of T - 1 steps show the same                | certificate |

+inf where a prompt is above the last prefill level. All are whole steps; a slot's load is a sum of outputs, so each is lifted to the next such sum.
Seconds are decode steps times `decode_step_s`, one product as in `evaluate`, and prefill only adds to it. The bounds hold for every makespan
instance, also where prefill takes time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, integers
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.errors import InputError
from headroom.instances.request_packing import RequestPacking

IntArray = npt.NDArray[np.int64]
MOST_BITS: Final = 10**11
"""Sums of outputs are only listed where requests x steps are no more (half a second)."""
MOST_BITS_AT_ONCE: Final = 2**30
"""Of one list of sums: an eighth of a GiB."""
MOST_CELLS: Final = 3 * 10**9
"""Of the table that prices a load: about ten seconds."""
SAFE: Final = 2**61
"""Whole numbers of 64 bits are kept below."""
MOST_ROUNDED: Final = 100
"""Greatest k of the function "rounded": its values, and sums of them, stay below SAFE."""
PARAMETERS: Final = 1500
"""Of a dual feasible function that are tried."""
METHODS: Final = ("mean_load", "longest_output", "pigeonhole")


def mean_load(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """ceil(sum of outputs / slots) steps, in seconds. O(N) and the sums (`lifted`). Closed form."""
    return _closed(instance, "mean_load")


def longest_output(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """The longest output, in seconds. O(N). Closed form."""
    return _closed(instance, "longest_output")


def pigeonhole(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """At least mean and longest, in seconds. O(N log N) and the sums (`lifted`). Closed form: see `pigeonhole_steps`."""
    return _closed(instance, "pigeonhole")


def _closed(instance: RequestPacking, method: str) -> Bound:
    return Bound(_closed_s(instance, method), method, "closed_form")


def _closed_s(instance: RequestPacking, method: str) -> float:
    steps = closed_steps(instance, method)
    return math.inf if prompts_too_long(instance) else seconds(instance, steps)


def prompts_too_long(instance: RequestPacking) -> bool:
    """Whether some prompt is above the last prefill level: then there is no plan."""
    return bool(len(instance.level_tokens)) and int(instance.requests.prompt_tokens.max()) > int(instance.level_tokens[-1])


def closed_steps(instance: RequestPacking, method: str) -> int:
    """Steps that a closed form proves. Raises `InputError` for the other objective."""
    slots = slots_of(instance)
    output = instance.requests.output_tokens
    if method == "longest_output":
        return int(output.max())
    found = -(-_sum(output) // slots) if method == "mean_load" else pigeonhole_steps(output, slots)
    return lifted(output, found)


def slots_of(instance: RequestPacking) -> int:
    """J. Raises `InputError` when the objective is another."""
    if instance.objective != "makespan" or instance.slots is None:
        raise InputError(f"objective must be 'makespan' for a bound on the time of a run, got {instance.objective!r}")
    return instance.slots


def seconds(instance: RequestPacking, steps: int) -> float:
    """What `evaluate` makes of so many decode steps without prefill."""
    return 0.0 + steps * (instance.decode_step_s or 0.0)


def _sum(values: IntArray) -> int:
    return int(values.sum())


def pigeonhole_steps(output: IntArray, slots: int) -> int:
    """The greatest of these over l = 1 .. N, with a = floor(l / J) and r = l mod J, of the l longest outputs: their sum over J; and, where r > 0,
    the sum of the r (a + 1) shortest of them over r, since in any plan the r slots that hold most of them hold at least that many.

    k J + 1 longest, k + 1 on one slot, is the case r = 1. For k slots in general the numbers held are k a + min(k, r); the quotient is greatest
    at k = r or k = J, for sums of the shortest are convex in their number. O(N log N).

    Source: Haouari, Gharbi, Jemmali (2006), Tight bounds for the identical parallel machine scheduling problem, Int. Trans. Oper. Res. 13.
    """
    falling = -np.sort(-output)
    before = np.concatenate([[0], np.cumsum(falling)])
    number = np.arange(1, len(falling) + 1)
    best = int((-(-before[number] // slots)).max())
    rest = number % slots
    number, rest = number[rest > 0], rest[rest > 0]
    if len(number):
        held = rest * (number // slots + 1)
        best = max(best, int((-(-(before[number] - before[number - held]) // rest)).max()))
    return best


def lifted(output: IntArray, steps: int) -> int:
    """The least sum of some outputs that is at least `steps`: a slot's load is one. `steps` itself where there are too many sums to list."""
    longest = int(output.max())
    bits = steps + longest + 1
    if steps <= 0 or bits > MOST_BITS_AT_ONCE or len(output) * bits > MOST_BITS or steps >= _sum(output):
        return steps
    mask = (1 << (steps + longest + 1)) - 1
    sums = 1
    for length in np.sort(output).tolist():
        sums = (sums | sums << length) & mask
        if sums >> steps & 1:
            return steps
    above = sums >> steps
    return steps + (above & -above).bit_length() - 1 if above else steps


def dual_feasible(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """The least load T that no dual feasible function refutes, in seconds; at least `pigeonhole`. O(parameters N log T). Certificate: the function.

    f is dual feasible for capacity C if no set of outputs of sum at most C has a sum of f above f(C): more than J f(C) in all refutes C.
    """
    slots, output = slots_of(instance), instance.requests.output_tokens
    length, copies = np.unique(output, return_counts=True)
    least = closed_steps(instance, "pigeonhole")
    proof: dict[str, Any] = {"kind": "dual_feasible", "steps": least - 1, "function": "none", "parameter": 0}
    refuted, step = least - 1, 1
    above: int | None = None
    while above is None or above - refuted > 1:
        steps = refuted + step if above is None else (refuted + above) // 2
        found = None if progress.should_stop() else _refuting(length, copies, slots, steps)
        if found is None:
            above = steps
        else:
            refuted, step = steps, 2 * step
            proof = {"kind": "dual_feasible", "steps": steps, "function": found[0], "parameter": found[1]}
            progress.raise_bound(seconds(instance, steps + 1))
    return Bound(certified(instance, proof), "dual_feasible", "certificate", proof)


def function_values(name: str, parameter: int, length: IntArray, capacity: int) -> tuple[IntArray, int]:
    """f of lengths up to `capacity`, and f(capacity), scaled to whole numbers. Raises `CertificateError` for a name or parameter there is not.

    "threshold" (Martello and Toth's L2): below e nothing, above C - e all. "rounded", k: the multiples of C / (k + 1) below, unless x is one.
    "complement", k: multiples of k below, for more than half of C what the rest leaves. Source: Fekete and Schepers (2001), doi
    10.1007/s101070100243; Carlier, Clautiaux, Moukrim (2007), doi 10.1016/j.cor.2005.08.012.
    """
    if parameter < 1:
        raise CertificateError("certificate.parameter must be at least 1")
    if name == "threshold" and 2 * parameter <= capacity:
        return np.where(length > capacity - parameter, capacity, np.where(length >= parameter, length, 0)), capacity
    if name == "rounded" and parameter <= MOST_ROUNDED:
        times = (parameter + 1) * length
        return np.where(times % capacity == 0, parameter * length, times // capacity * capacity), parameter * capacity
    if name == "complement" and 2 * parameter <= capacity:
        whole = capacity // parameter
        low, high = 2 * (length // parameter), 2 * (whole - (capacity - length) // parameter)
        return np.where(2 * length > capacity, high, np.where(2 * length == capacity, whole, low)), 2 * whole
    raise CertificateError("certificate.function must be 'threshold', 'rounded' or 'complement' with a parameter that fits the steps")


def _parameters(length: IntArray, capacity: int) -> Iterator[tuple[str, int]]:
    near = np.unique(np.concatenate([length, capacity - length, capacity - length + 1]))
    half = near[(near >= 1) & (2 * near <= capacity)]
    yield from (("threshold", int(k)) for k in _few(half))
    yield from (("rounded", k) for k in range(1, MOST_ROUNDED + 1))
    parts = [-(-near // q) for q in range(1, 6)] + [capacity // np.arange(2, 200)]
    steps = np.arange(1, capacity // 2 + 1) if capacity <= 2 * PARAMETERS else np.unique(np.concatenate(parts))
    yield from (("complement", int(k)) for k in _few(steps[(steps >= 1) & (2 * steps <= capacity)]))


def _few(values: IntArray) -> IntArray:
    return values if len(values) <= PARAMETERS else values[np.linspace(0, len(values) - 1, PARAMETERS).astype(np.int64)]


def _refuting(length: IntArray, copies: IntArray, slots: int, capacity: int) -> tuple[str, int] | None:
    """A function and its parameter that show that loads of `capacity` are not enough."""
    if capacity * 2 * MOST_ROUNDED * max(int(copies.sum()), slots) >= SAFE or len(length) > 10**5:
        return None
    for name, parameter in _parameters(length, capacity):
        values, all_of_it = function_values(name, parameter, length, capacity)
        if int(values @ copies) > slots * all_of_it:
            return name, parameter
    return None


def dual_bin_packing(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """The least load T at which the Gilmore-Gomory relaxation needs no more than J slots, in seconds; at least `dual_feasible`. Column generation.

    Certificate: whole prices of the lengths, whose sum is above J times the dearest load of T - 1 steps, a knapsack that the recheck solves.
    Source: Dell'Amico, Martello (1995), doi 10.1287/ijoc.7.2.191, for the dual problem; Gilmore, Gomory (1961), doi 10.1287/opre.9.6.849.
    """
    from headroom.solvers.machine_loads_columns import refuting_prices

    start = dual_feasible(instance, params, progress)
    assert start.certificate is not None
    slots, output = slots_of(instance), instance.requests.output_tokens
    length, copies = np.unique(output, return_counts=True)
    refuted, step, above = int(start.certificate["steps"]), 1, -1
    best = Bound(start.value, "dual_bin_packing", "certificate", start.certificate)
    while above < 0 or above - refuted > 1:
        steps = refuted + step if above < 0 else (refuted + above) // 2
        prices = refuting_prices(length, copies, slots, steps, progress) if priceable(length, copies, steps) else None
        proof = None if prices is None else price_proof(length, copies, slots, steps, prices)
        if proof is None:
            above = steps
        else:
            refuted, step = steps, 2 * step
            best = Bound(certified(instance, proof), "dual_bin_packing", "certificate", proof)
            progress.raise_bound(best.value)
    return best


def priceable(length: IntArray, copies: IntArray, capacity: int) -> bool:
    """Whether the recheck's table is small enough."""
    return _parts(length, copies, capacity)[1] * (capacity + 1) <= MOST_CELLS // 10


def price_proof(length: IntArray, copies: IntArray, slots: int, steps: int, prices: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    """The certificate that these prices make, rounded down to whole numbers, or None when they prove nothing."""
    top = float(prices.max(initial=0.0))
    if not top > 0:
        return None
    whole = np.floor(np.clip(prices, 0.0, None) / top * 2**24).astype(np.int64)
    if int(whole @ copies) <= slots * dearest(length, copies, whole, steps):
        return None
    return {"kind": "prices", "steps": steps, "length": length.tolist(), "price": whole.tolist()}


def _parts(length: IntArray, copies: IntArray, capacity: int) -> tuple[list[tuple[int, int]], int]:
    """(kind, multiple) such that any number of copies that fits is a sum of multiples; and how many there are."""
    parts = []
    for i, (one, number) in enumerate(zip(length.tolist(), copies.tolist(), strict=True)):
        left, part = min(number, capacity // one), 1
        while left > 0:
            parts.append((i, min(part, left)))
            left -= part
            part *= 2
    return parts, len(parts)


def dearest(length: IntArray, copies: IntArray, price: IntArray, capacity: int) -> int:
    """The highest price of a set of outputs whose sum is at most `capacity`: the 0/1 knapsack's recurrence in whole numbers. O(parts capacity)."""
    value = np.zeros(capacity + 1, np.int64)
    for i, number in _parts(length, copies, capacity)[0]:
        size, gain = number * int(length[i]), number * int(price[i])
        if gain > 0:
            value[size:] = np.maximum(value[size:], value[: capacity + 1 - size] + gain)
    return int(value[-1])


def certified(instance: RequestPacking, certificate: Mapping[str, Any]) -> float:
    """Seconds that a certificate proves: T for a refuted T - 1. Raises `CertificateError`. Whole numbers throughout."""
    slots, output = slots_of(instance), instance.requests.output_tokens
    length, copies = np.unique(output, return_counts=True)
    kind = certificate.get("kind")
    steps = int(integers(certificate, "steps", ()))
    least = closed_steps(instance, "pigeonhole")
    if prompts_too_long(instance):
        return math.inf
    if kind == "dual_feasible" and certificate.get("function") == "none":
        return seconds(instance, least)
    if steps < least:
        return seconds(instance, least)
    if kind == "dual_feasible":
        if steps * 2 * MOST_ROUNDED * max(instance.count, slots) >= SAFE:
            raise CertificateError("certificate.steps is too large for whole numbers of 64 bits")
        name, parameter = certificate.get("function"), int(integers(certificate, "parameter", ()))
        if not 0 <= parameter <= max(steps, MOST_ROUNDED):
            raise CertificateError("certificate.parameter must be from 1 to the steps")
        values, all_of_it = function_values(str(name), parameter, length, steps)
        if int(values @ copies) <= slots * all_of_it:
            raise CertificateError(f"the function proves no more than {slots} slots at {steps} steps")
    elif kind == "prices":
        _check_prices(certificate, length, copies, slots, steps)
    else:
        raise CertificateError("certificate.kind must be 'dual_feasible' or 'prices'")
    return seconds(instance, lifted(output, steps + 1))


def _check_prices(certificate: Mapping[str, Any], length: IntArray, copies: IntArray, slots: int, steps: int) -> None:
    named, price = integers(certificate, "length", (None,)), integers(certificate, "price", (len(length),))
    if len(named) != len(length) or (named != length).any():
        raise CertificateError("certificate.length must be the outputs' lengths, rising")
    if (price < 0).any() or (price > 2**30).any():
        raise CertificateError("certificate.price must be from 0 to 2^30")
    if steps >= int(length @ copies):
        raise CertificateError("certificate.steps must be below the sum of all outputs, which one slot can hold")
    if not priceable(length, copies, steps):
        raise CertificateError("certificate.steps is too large for the table of loads")
    if int(price @ copies) <= slots * dearest(length, copies, price, steps):
        raise CertificateError(f"the prices prove no more than {slots} slots at {steps} steps")


def recheck_makespan(instance: RequestPacking, bound: Bound) -> float:
    """Recompute any of these bounds with numpy alone. Raises `CertificateError`."""
    if bound.proof == "closed_form":
        if bound.method not in METHODS:
            raise CertificateError(f"no closed form is called {bound.method!r}; expected {', '.join(METHODS)}")
        return _closed_s(instance, bound.method)
    if bound.certificate is None:
        raise CertificateError("certificate must be given")
    return certified(instance, bound.certificate)


__all__ = ["dual_bin_packing", "dual_feasible", "longest_output", "mean_load", "pigeonhole", "recheck_makespan"]
