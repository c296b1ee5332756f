"""GPU-selection presets whose rates change over time: a day, a week by the hour, a week by the minute.

A pooled preset (`base`) gives work items, replica types and mean rates. Its total rate then follows

    rate_t  =  mean rate · w(day of t) · exp(k cos(2 pi (hour of t − peak_hour) / 24)) / (mean of that) · noise_t

- **Shape.** A bell over the day; w = 1 from Monday to Friday and `weekend` on the last two days of a week (day 0 is a Monday). k is chosen by
  bisection so that the profile without noise has exactly `peak_to_mean` as the quotient of its largest and its mean epoch. Production services
  lie between 1.4 and 3.2 (figures of published traces, collected for calibration); the default 2.2 is in the middle.
- **Noise.** noise_t is lognormal with mean 1 and coefficient of variation `noise_cv`, its logarithm a first-order autoregression with correlation
  time `noise_correlation_s`; each bucket has independent gamma noise of mean 1 and coefficient of variation `bucket_noise_cv` on top. Both values
  are assumptions.
- **Mix.** `mix_drift` d tilts the mix over the day: weights are multiplied by exp(d · cos(2 pi hour / 24) · s_i), s_i the standardised logarithm of
  the bucket's output tokens, and normalised: around midnight answers are longer (offline jobs), around noon shorter. An assumption; 0 turns it off.
- Work items of the same token ranges (prefill and decode of a bucket) share their noise. At the end all rates are scaled so that the mean over the
  epochs is the base's total rate; `work[].rate_per_s` is each item's mean.

**What a start costs** is a stated assumption, not a measurement. A replica needs `start_delay_epochs` before it serves, and rent runs meanwhile. On
top, a start costs `start_cost_h` hours of its type's rent: where a delay of whole epochs would be far too long (hours), the minutes it takes to
boot, load the weights and warm up; by the minute, what its end costs, since a replica that stops first finishes the requests it holds, which the
model calls free. Default 0.05 h = 3 minutes. Weights alone load in seconds (16 GB at 7 GB/s of NVMe: 2.3 s).

**Sizes.** At the mean rate of the 4gpu presets, 64 requests/s, the cheapest pooled fleet is 5 replicas (H100); at total_rate_per_s 560 it is 49.

**A longer horizon** from a short trace: there is no stretching of a trace. Import it for its mix and performance, then give that mix a profile of
any length: `daily_rates` takes the rates of any instance, and `days`, `epoch_s` set the horizon of a preset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection_epochs import MOST_NUMBERS
from headroom.instances.gpu_selection_presets_pooled import PRESETS as POOLED
from headroom.instances.gpu_selection_presets_pooled import Builder, number, whole

FloatArray = npt.NDArray[np.float64]
DAY_S = 86_400.0
STEEPEST = 200.0
"""The profile's exponent k goes no further: the peak is then a few minutes of the day."""


@dataclass(frozen=True)
class Profile:
    """How rates move over time; the module says what each figure means."""

    days: int
    epoch_s: float
    peak_to_mean: float = 2.2
    peak_hour: float = 15.0
    weekend: float = 0.7
    noise_cv: float = 0.1
    noise_correlation_s: float = 1800.0
    bucket_noise_cv: float = 0.1
    mix_drift: float = 0.2

    def __post_init__(self) -> None:
        whole("days", self.days, 1, 3660)
        number("epoch_s", self.epoch_s, 1.0, DAY_S)
        epochs = self.days * DAY_S / self.epoch_s
        if abs(epochs - round(epochs)) > 1e-9 * epochs:
            raise InputError(f"epoch_s must divide the {self.days * DAY_S:g} s of {self.days} days, got {self.epoch_s:g}")
        number("peak_hour", self.peak_hour, 0.0, 24.0)
        number("weekend", self.weekend, 0.0, 10.0)
        number("noise_cv", self.noise_cv, 0.0, 10.0)
        number("noise_correlation_s", self.noise_correlation_s, 0.0, 1e9)
        number("bucket_noise_cv", self.bucket_noise_cv, 0.0, 10.0)
        number("mix_drift", self.mix_drift, 0.0, 5.0)
        number("peak_to_mean", self.peak_to_mean, 1.0, 1e6)

    @property
    def epochs(self) -> int:
        """How many epochs there are."""
        return round(self.days * DAY_S / self.epoch_s)

    @property
    def hours(self) -> FloatArray:
        """The middle of each epoch [T] in hours since the first midnight."""
        return (np.arange(self.epochs, dtype=np.float64) + 0.5) * (self.epoch_s / 3600)

    def shape(self) -> FloatArray:
        """Total rate of each epoch [T] without noise, in multiples of the mean. Raises `InputError` for a peak that cannot be reached."""
        hours = self.hours
        week = np.where((hours // 24) % 7 >= 5, self.weekend, 1.0)
        wave = np.cos((hours - self.peak_hour) * (2 * math.pi / 24))

        def profile(k: float) -> FloatArray:
            level = week * np.exp(k * (wave - 1))
            shape: FloatArray = level / level.mean()
            return shape

        least, most = float(profile(0.0).max()), float(profile(STEEPEST).max())
        if not least <= self.peak_to_mean <= most:
            raise InputError(f"peak_to_mean must be from {least:.4g} to {most:.4g} for this horizon, got {self.peak_to_mean:g}")
        low, high = 0.0, STEEPEST
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if profile(middle).max() < self.peak_to_mean else (low, middle)
        return profile((low + high) / 2)


def daily_rates(
    rate_per_s: FloatArray, profile: Profile, rng: np.random.Generator, output_tokens: FloatArray | None = None, bucket: Sequence[int] | None = None
) -> FloatArray:
    """Rates [T][I] that follow the profile, with the total of `rate_per_s` [I] as the mean over the epochs of their sum.

    `output_tokens` [I] typical output of each item, needed where `mix_drift` is not 0; `bucket` [I] numbers the items that share their noise
    (default: none do). Raises `InputError`. O(T I) time and memory.
    """
    sharing = np.arange(len(rate_per_s)) if bucket is None else np.array(bucket, dtype=np.int64)
    if profile.epochs * len(rate_per_s) > MOST_NUMBERS:
        sizes = f"{profile.epochs} epochs of {len(rate_per_s)} work items"
        raise InputError(f"days and epoch_s give {sizes}; expected at most {MOST_NUMBERS} rates in all")
    shape = profile.shape()
    total = float(rate_per_s.sum())
    rates = np.outer(shape, rate_per_s)
    if profile.mix_drift:
        if output_tokens is None:
            raise InputError("mix_drift must be 0 for work items without token ranges")
        rates *= _tilt(rate_per_s, profile, output_tokens)
    rates *= _common_noise(len(shape), profile, rng)[:, None]
    if profile.bucket_noise_cv:
        variance = profile.bucket_noise_cv**2
        noise = rng.gamma(1 / variance, variance, (len(shape), int(sharing.max()) + 1))
        rates *= noise[:, sharing]
    mean = float(rates.sum(axis=1).mean())
    if not mean > 0:
        raise InputError("noise_cv and bucket_noise_cv are so large that no request arrives; expected smaller ones")
    rates *= total / mean
    return rates


def _tilt(rate_per_s: FloatArray, profile: Profile, output_tokens: FloatArray) -> FloatArray:
    """Factors [T][I] that shift the mix over the day and leave the total of each epoch as it is."""
    weight = rate_per_s / rate_per_s.sum()
    score = np.log(output_tokens)
    score = score - weight @ score
    spread = math.sqrt(float(weight @ score**2))
    score = score / spread if spread > 0 else score
    tilt = np.exp(profile.mix_drift * np.outer(np.cos(profile.hours * (2 * math.pi / 24)), score))
    factors: FloatArray = tilt / (tilt @ weight)[:, None]
    return factors


def _common_noise(epochs: int, profile: Profile, rng: np.random.Generator) -> FloatArray:
    """The noise [T] that all buckets share."""
    sigma = math.sqrt(math.log1p(profile.noise_cv**2))
    keep = math.exp(-profile.epoch_s / profile.noise_correlation_s) if profile.noise_correlation_s > 0 else 0.0
    level = np.empty(epochs)
    value = 0.0
    for t, draw in enumerate(rng.standard_normal(epochs).tolist()):
        value = draw if t == 0 else keep * value + math.sqrt(1 - keep * keep) * draw
        level[t] = value
    noise: FloatArray = np.exp(sigma * level - sigma * sigma / 2)
    return noise


def over_time(default_base: str, default_days: int, default_epoch_s: float, default_delay: int = 0, default_drift: float = 0.2) -> Builder:
    """A builder of a pooled preset over time; everything can be changed by a setting."""

    def build(
        rng: np.random.Generator,
        *,
        base: str = default_base,
        days: int = default_days,
        epoch_s: float = default_epoch_s,
        peak_to_mean: float = 2.2,
        peak_hour: float = 15.0,
        weekend: float = 0.7,
        noise_cv: float = 0.1,
        noise_correlation_s: float = 1800.0,
        bucket_noise_cv: float = 0.1,
        mix_drift: float = default_drift,
        start_cost_h: float = 0.05,
        start_delay_epochs: int = default_delay,
        initial_count: list[int] | None = None,
    ) -> dict[str, Any]:
        if not isinstance(base, str) or base not in POOLED:
            raise InputError(f"base must be one of {', '.join(POOLED)}, got {shown(base)}")
        profile = Profile(days, epoch_s, peak_to_mean, peak_hour, weekend, noise_cv, noise_correlation_s, bucket_noise_cv, mix_drift)
        number("start_cost_h", start_cost_h, 0.0, 1e6)
        data = POOLED[base](rng) | {"slices": None}  # over time shares are continuous: what slices add is not certified there
        work = data["work"]
        rates = daily_rates(np.array([item["rate_per_s"] for item in work]), profile, rng, _output_tokens(work), _shared(work))
        epochs = {
            "epoch_s": float(epoch_s),
            "rate_per_s": rates,
            "initial_count": initial_count,
            "start_cost_usd": [float(start_cost_h) * gpu["price_usd_per_h"] for gpu in data["gpus"]],
            "start_delay_epochs": start_delay_epochs,
        }
        totals = rates.sum(axis=1)
        facts = {
            "base": base,
            "profile": {name: getattr(profile, name) for name in profile.__dataclass_fields__},
            "peak_to_mean_with_noise": float(totals.max() / totals.mean()),
            "start_cost_h": float(start_cost_h),
            "start_cost": "an assumption: hours of the type's rent for each start, see headroom.instances.gpu_selection_presets_epochs",
        }
        work = [item | {"rate_per_s": float(mean)} for item, mean in zip(work, rates.mean(axis=0), strict=True)]
        return data | {"work": work, "epochs": epochs, "provenance": data.get("provenance", {}) | facts}

    return build


def _output_tokens(work: Sequence[dict[str, Any]]) -> FloatArray | None:
    """A typical output of each item [I]: the geometric middle of its range; None where an item has none."""
    ranges = [item.get("output_tokens") for item in work]
    return np.array([math.sqrt(max(pair[0], 1) * pair[1]) for pair in ranges if pair]) if all(ranges) else None


def _shared(work: Sequence[dict[str, Any]]) -> list[int]:
    """The number of each item's bucket [I]: items of the same token ranges are phases of one bucket."""
    number_of: dict[Any, int] = {}
    keys = [(tuple(item["prompt_tokens"]), tuple(item["output_tokens"])) if item.get("output_tokens") else k for k, item in enumerate(work)]
    return [number_of.setdefault(key, len(number_of)) for key in keys]


PRESETS: dict[str, Builder] = {
    "day-toy": over_time("toy", 1, 3600.0, 0, 0.0),
    "day-toy-slow-start": over_time("toy", 1, 3600.0, 1, 0.0),
    "day-4gpu-6x6": over_time("azure-chat-2024", 1, 3600.0),
    "week-4gpu-6x6": over_time("azure-chat-2024", 7, 3600.0),
    "week-minutes-4gpu-6x6": over_time("azure-chat-2024", 7, 60.0, 3),
}
