"""Reading certificates: they come from files that anyone may have written, so every number is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


SMALLEST, LARGEST = 1e-100, 1e100
"""Numbers nearer to zero are taken as zero, larger ones refused: products of two then stay clear of underflow, where rounding is no longer relative,
and of overflow. Rechecks recompute what the numbers prove, so it is safe to read others than were written."""

NOTHING = 1e-200
"""What a proof that there is no plan must exceed: zero, allowing for numbers taken as zero."""


class CertificateError(ValueError):
    """A certificate that is malformed, or that does not prove what it is recorded to prove."""


def floats(certificate: Mapping[str, Any], key: str, shape: tuple[int | None, ...]) -> FloatArray:
    """The finite numbers under `key` as an array of the given shape (None: any length). Raises `CertificateError`."""
    if key not in certificate:
        raise CertificateError(f"certificate has no {key!r}")
    value = certificate[key]
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" and array.size:
            raise ValueError
        array = array.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        raise CertificateError(f"certificate.{key} must be numbers") from None
    empty = [0 if length is None else length for length in shape]
    if array.size == 0 and 0 in empty:
        array = array.reshape(empty)  # JSON cannot tell [] from [[]]
    if array.ndim != len(shape) or any(want is not None and want != have for want, have in zip(shape, array.shape, strict=True)):
        raise CertificateError(f"certificate.{key} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise CertificateError(f"certificate.{key} must be finite")
    if (np.abs(array) > LARGEST).any():
        raise CertificateError(f"certificate.{key} must be at most {LARGEST:g} in size")
    return np.where(np.abs(array) < SMALLEST, 0.0, array)


def integers(certificate: Mapping[str, Any], key: str, shape: tuple[int | None, ...]) -> npt.NDArray[np.int64]:
    """As `floats`, for whole numbers."""
    array = floats(certificate, key, shape)
    if (array != np.round(array)).any() or (np.abs(array) > 2**53).any():
        raise CertificateError(f"certificate.{key} must be whole numbers")
    return array.astype(np.int64)


def number(certificate: Mapping[str, Any], key: str) -> float:
    """One finite number."""
    return float(floats(certificate, key, ()))
