"""Scales, rounding, clipping: decided here once, in NumPy.

Symmetric linear quantisation without zero point: q = clip(rint(x * levels / threshold)), x' = q * threshold / levels.
`threshold` is the largest magnitude that is kept; `levels` is how many steps lie between zero and it.

A tensor that can't be negative is stored as uint8, and then all 255 steps lie above zero. Paddle's simulation ops
know a bit length, not a signedness; 2 ** (bits - 1) - 1 gives 127 levels for 8 bits and 255 for 9, and for a
tensor without negative values the latter is exactly uint8.

Rounding is to nearest, ties to even, as in oneDNN (rounding mode of its reorders and quantised stores).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "REDUCED",
    "SHIFT",
    "SIGNED",
    "STATE_THRESHOLD",
    "TABLE",
    "UNSIGNED",
    "bits_of",
    "channel_thresholds",
    "dequantise",
    "levels_of",
    "quantise",
    "usable",
]

SIGNED = 127
UNSIGNED = 255
REDUCED = 63  # 7-bit weights: 255 * 63 * 2 < 2 ** 15, so pairwise 16-bit sums (CPUs without VNNI) can't saturate
TABLE = 32767  # embedding tables are stored in 16 bits: nothing multiplies them as integers

# Recurrent kernels store signed values as uint8 whose zero lies here, and their state, which tanh bounds by 1, too.
SHIFT = 128
STATE_THRESHOLD = 1.0

# A threshold below this can't be told from "this channel is always zero"; any scale serves, 1 is harmless.
_TINY = 1e-12


def bits_of(levels: int) -> int:
    """Paddle's `bit_length` for a number of levels: 127 -> 8, 255 -> 9, 63 -> 7."""
    return (levels + 1).bit_length()


def levels_of(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


def usable(threshold: NDArray[Any] | float) -> NDArray[np.float64]:
    """Thresholds with those of dead channels replaced by 1. Raises ValueError for negative or non-finite ones."""
    values = np.atleast_1d(np.asarray(threshold, np.float64))
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"a quantisation threshold is negative or not finite: {values.min()}")
    return np.where(values < _TINY, 1.0, values)


def channel_thresholds(weight: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """abs-max of each slice of `weight` along `axis`: shape [weight.shape[axis]]."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    return usable(np.abs(weight).max(others))


def _along(values: Sequence[float] | NDArray[Any], ndim: int, axis: int) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    return array.reshape([-1 if other == axis else 1 for other in range(ndim)]) if array.size > 1 else array.reshape(())


def quantise(x: NDArray[Any], threshold: NDArray[Any] | float, levels: int, axis: int = 0) -> NDArray[np.float32]:
    """Round to integers in -levels-1..levels (float32 values), per tensor or per slice along `axis`.

    The lower bound is one step wider than the upper one, as in two's complement and Paddle's quantize_linear.
    """
    scaled = x.astype(np.float64) * (levels / _along(usable(threshold), x.ndim, axis))
    return np.clip(np.rint(scaled), -levels - 1, levels).astype(np.float32)


def dequantise(q: NDArray[Any], threshold: NDArray[Any] | float, levels: int, axis: int = 0) -> NDArray[np.float32]:
    """Integers -> the float32 values they stand for."""
    return (q.astype(np.float64) * (_along(usable(threshold), q.ndim, axis) / levels)).astype(np.float32)
