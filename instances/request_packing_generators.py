"""Random backlogs of requests, for request packing. Everything is drawn from the Generator it is given; the literature's classes of bin packing and
parallel machines are in `request_packing_classes`.

Token lengths of served traffic are known by their quantiles only (`LENGTHS`), so a length is drawn with those quantiles and nothing else assumed: a
standard normal z is mapped to log(tokens) by straight lines through the median (z = 0), the 90th (z = 1.2816) and the 99th percentile (z = 2.3263).
Below the median the first line goes on (a lognormal body), above the 99th percentile the second one. Where the three lie on one line this is the
lognormal distribution. Prompt and output are drawn apart from each other: their correlation is not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.presets import real, whole
from headroom.instances.request_packing import MOST_REQUESTS, PrefillLevel, RequestPacking, Requests

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Z90, Z99 = 1.2815515655446004, 2.3263478740408408
"""Quantiles of the standard normal distribution."""
MOST_LENGTH = 2**20
"""Tokens of a drawn length, if nothing less is asked for: a context window of a million tokens."""


@dataclass(frozen=True)
class Lengths:
    """Median, 90th and 99th percentile of prompt and output tokens."""

    prompt_tokens: tuple[float, float, float]
    output_tokens: tuple[float, float, float]


LENGTHS: Mapping[str, Lengths] = {
    "azure-code": Lengths((1469, 5188, 7436), (13, 55, 252)),
    "azure-chat": Lengths((1020, 2735, 4142), (129, 424, 601)),
    "mooncake": Lengths((6909, 27367, 85400), (350, 597, 1119)),
    "servegen-m-large": Lengths((654, 2357, 5342), (68, 458, 925)),
    "servegen-deepseek-r1": Lengths((266, 3300, 25772), (808, 4170, 13541)),
}
"""Azure: the public LLM inference traces of 2023 (published with Splitwise, arXiv 2311.18677). Mooncake: conversations (arXiv 2407.00079). ServeGen:
arXiv 2505.09999."""

GSM8K_REQUESTS, GSM8K_SLOTS, GSM8K_DECODE_STEP_S = 1_319, 200, 0.075
GSM8K_PROMPT, GSM8K_OUTPUT = (68.0, 25.0), (345.0, 188.0)
"""Mean and standard deviation of tokens: the backlog of Pang et al. (arXiv 2502.15763), the test questions of GSM8K (arXiv 2110.14168)."""
GSM8K_LEVELS = ((256, 0.060), (512, 0.065), (1024, 0.107), (2048, 0.213), (4096, 0.427), (8192, 0.853), (16384, 1.707))
"""(prompt tokens, seconds) of a prefill: chosen here, such that a run takes about as long as the paper's."""


# ---- Lengths ---------------------------------------------------------------------------------------------------------------------------------


def quantile_lengths(rng: np.random.Generator, count: int, quantiles: tuple[float, float, float], most: int = MOST_LENGTH) -> IntArray:
    """Whole lengths [count] from 1 to `most` with this median, 90th and 99th percentile: see the module. Raises `InputError`. O(count)."""
    median, p90, p99 = quantiles
    real("p50", median, 1, MOST_LENGTH)
    real("p90", p90, median, MOST_LENGTH)
    real("p99", p99, p90, MOST_LENGTH)
    z = rng.standard_normal(count)
    body, tail = np.log(p90 / median) / Z90, np.log(p99 / p90) / (Z99 - Z90)
    logarithm = np.log(median) + body * np.minimum(z, Z90) + tail * np.maximum(z - Z90, 0.0)
    found: IntArray = np.clip(np.rint(np.exp(logarithm)), 1, most).astype(np.int64)
    return found


def moment_lengths(rng: np.random.Generator, count: int, mean: float, deviation: float, most: int = MOST_LENGTH) -> IntArray:
    """Whole lengths [count] from 1 to `most`, lognormal with this mean and standard deviation before rounding. Raises `InputError`. O(count)."""
    real("mean", mean, 1, MOST_LENGTH)
    real("deviation", deviation, 0, MOST_LENGTH)
    variance = np.log1p((deviation / mean) ** 2)
    drawn = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    found: IntArray = np.clip(np.rint(drawn), 1, most).astype(np.int64)
    return found


def drawn_lengths(rng: np.random.Generator, count: int, lengths: str, most_tokens: int) -> tuple[IntArray, IntArray]:
    """Prompt and output tokens [count] of the traffic `lengths`. A request above `most_tokens` in all has its output cut first to half of that and
    then its prompt to what is left, as a context window does. Raises `InputError`."""
    if lengths not in LENGTHS:
        raise InputError(f"lengths must be one of {', '.join(LENGTHS)}, got {shown(lengths)}")
    whole("most_tokens", most_tokens, 2, 2**38)
    known = LENGTHS[lengths]
    prompt, output = quantile_lengths(rng, count, known.prompt_tokens), quantile_lengths(rng, count, known.output_tokens)
    long = prompt + output > most_tokens
    output[long] = np.minimum(output[long], most_tokens // 2)
    return np.where(long, np.minimum(prompt, most_tokens - output), prompt), output


# ---- Bins ------------------------------------------------------------------------------------------------------------------------------------


def backlog(rng: np.random.Generator, *, requests: int, lengths: str, capacity_tokens: int) -> RequestPacking:
    """Requests of served traffic (`LENGTHS`) into bins of `capacity_tokens`; longer ones are cut (`drawn_lengths`). Raises `InputError`. O(N)."""
    whole("requests", requests, 1, MOST_REQUESTS)
    prompt, output = drawn_lengths(rng, requests, lengths, capacity_tokens)
    return RequestPacking(requests=Requests(prompt_tokens=prompt, output_tokens=output), objective="bins", capacity_tokens=capacity_tokens)


def popular(rng: np.random.Generator, requests: int, groups: int, zipf: float) -> IntArray:
    """The group of each request [N]: group g with a probability like (g + 1)^−zipf, and each group at least once while there are requests enough."""
    whole("groups", groups, 1, MOST_REQUESTS)
    real("zipf", zipf, 0, 10)
    weight = np.arange(1.0, groups + 1.0) ** -zipf
    found = rng.choice(groups, requests, p=weight / weight.sum())
    first = min(groups, requests)
    found[:first] = np.arange(first)
    shuffled: IntArray = rng.permutation(found).astype(np.int64)
    return shuffled


def shared_prefixes(
    rng: np.random.Generator,
    *,
    requests: int,
    prefixes: int,
    zipf: float = 1.0,
    alone_share: float = 0.0,
    prefix_median_tokens: int = 2_000,
    prefix_p90_tokens: int = 8_000,
    lengths: str = "servegen-m-large",
    capacity_tokens: int = 65_536,
) -> RequestPacking:
    """Requests behind shared prefixes (system prompts, documents), which a bin holds once (BatchLLM, arXiv 2412.03594).

    Popularity as in `popular`; prefixes are lognormal, at most half of a bin, and so is what a request adds to its prefix (`lengths`); a share
    `alone_share` of the requests has no prefix. Raises `InputError`. O(N).
    """
    whole("requests", requests, 1, MOST_REQUESTS)
    whole("capacity_tokens", capacity_tokens, 4, 2**38)
    whole("prefix_median_tokens", prefix_median_tokens, 1, MOST_LENGTH)
    whole("prefix_p90_tokens", prefix_p90_tokens, prefix_median_tokens, MOST_LENGTH)
    real("alone_share", alone_share, 0, 1)
    group = popular(rng, requests, prefixes, zipf)
    group[rng.random(requests) < alone_share] = -1
    p99 = prefix_median_tokens * (prefix_p90_tokens / prefix_median_tokens) ** (Z99 / Z90)
    quantiles = (prefix_median_tokens, prefix_p90_tokens, min(p99, MOST_LENGTH))
    prompt, output = drawn_lengths(rng, requests, lengths, capacity_tokens // 2)
    return RequestPacking(
        requests=Requests(prompt_tokens=prompt, output_tokens=output, group=group),
        objective="bins",
        capacity_tokens=capacity_tokens,
        group_overhead_tokens=quantile_lengths(rng, prefixes, quantiles, capacity_tokens // 2),
    )


def adapter_batches(
    rng: np.random.Generator,
    *,
    requests: int,
    adapters: int,
    zipf: float = 1.0,
    padding_multiple: int = 64,
    lengths: str = "servegen-m-large",
    capacity_tokens: int = 8_192,
) -> RequestPacking:
    """Samples of several adapters in micro-batches: in each one an adapter's tokens are padded to a multiple (LoRAFusion, arXiv 2510.00206).

    Popularity as in `popular`, lengths as in `backlog`. Raises `InputError`. O(N).
    """
    whole("requests", requests, 1, MOST_REQUESTS)
    whole("padding_multiple", padding_multiple, 1, 2**20)
    whole("capacity_tokens", capacity_tokens, 2 * padding_multiple, 2**38)
    group = popular(rng, requests, adapters, zipf)
    prompt, output = drawn_lengths(rng, requests, lengths, capacity_tokens // padding_multiple * padding_multiple)
    return RequestPacking(
        requests=Requests(prompt_tokens=prompt, output_tokens=output, group=group),
        objective="bins",
        capacity_tokens=capacity_tokens,
        padding_multiple=padding_multiple,
    )


# ---- Slots -----------------------------------------------------------------------------------------------------------------------------------


def gsm8k_like(
    rng: np.random.Generator,
    *,
    requests: int = GSM8K_REQUESTS,
    slots: int = GSM8K_SLOTS,
    prompt_mean_tokens: float = GSM8K_PROMPT[0],
    prompt_sd_tokens: float = GSM8K_PROMPT[1],
    output_mean_tokens: float = GSM8K_OUTPUT[0],
    output_sd_tokens: float = GSM8K_OUTPUT[1],
    decode_step_s: float = GSM8K_DECODE_STEP_S,
    prefill: bool = True,
) -> RequestPacking:
    """Questions with short prompts and long answers, both lognormal, through slots; without `prefill` P||Cmax over the answers (prompts stay as they
    are). A prompt is at most what one prefill takes. Raises `InputError`. O(N)."""
    whole("requests", requests, 1, MOST_REQUESTS)
    if not isinstance(prefill, bool):
        raise InputError(f"prefill must be true or false, got {shown(prefill)}")
    prompt = moment_lengths(rng, requests, prompt_mean_tokens, prompt_sd_tokens, GSM8K_LEVELS[-1][0])
    output = moment_lengths(rng, requests, output_mean_tokens, output_sd_tokens)
    levels = tuple(PrefillLevel(max_tokens=tokens, time_s=time_s) for tokens, time_s in GSM8K_LEVELS)
    return RequestPacking(
        requests=Requests(prompt_tokens=prompt, output_tokens=output),
        objective="makespan",
        slots=slots,
        decode_step_s=decode_step_s,
        prefill_levels=levels if prefill else (),
    )


__all__ = [
    "LENGTHS", "Lengths", "adapter_batches", "backlog", "drawn_lengths", "gsm8k_like", "moment_lengths", "popular", "quantile_lengths",
    "shared_prefixes",
]  # fmt: skip
