"""Weights that a model rounds when it runs, or stores as integers: what Paddle's ops make of them, at load.

Quantizers that are left in a trained program compute a weight's scale as its abs-max, and round (paddle/phi/kernels/
funcs/fake_quantize_functor.cc, in float32: round(levels * (1 / scale) * x); round_type 0 is to nearest, ties to even,
1, the default, ties away from zero). The very integers are computed here, because a weight beside a rounding boundary
would else be another one. `WeightQuantization` of paddle.static.quantization stores integers in a weight itself, and
its scales in attributes of the op that reads it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import ConversionError
from quant.ir.constants import shape_of
from quant.ir.graph import Graph, Op
from quant.ir.numerics import SIGNED, dequantise, levels_of, usable

__all__ = ["ABS_MAX", "WEIGHT_SLOT", "Rounded", "attrs_for", "axis_behind", "rounded_by_abs_max", "rounded_to",
           "stored_in_attributes", "weight_of"]  # fmt: skip

# Ops with a constant weight that can be quantised: type -> (weight's slot, axis of the output channels).
WEIGHT_SLOT = {
    "conv2d": ("Filter", 0),
    "depthwise_conv2d": ("Filter", 0),
    "mul": ("Y", 1),
    "matmul": ("Y", 1),
    "matmul_v2": ("Y", 1),
    "fc": ("W", 1),
}
ABS_MAX = (
    *("fake_quantize_abs_max", "fake_quantize_dequantize_abs_max"),
    *("fake_channel_wise_quantize_abs_max", "fake_channel_wise_quantize_dequantize_abs_max"),
)
_TINY = 1e-12  # a scale below: quant.ir.numerics takes the channel for one that is always zero
_MOVES = ("reshape2", "squeeze2", "unsqueeze2", "flatten2", "flatten_contiguous_range")


@dataclass(frozen=True)
class Rounded:
    """A weight on a grid: whole numbers, a threshold for all or for each slice along `axis`, and levels."""

    integers: NDArray[Any]
    thresholds: NDArray[np.float64]
    levels: int
    axis: int

    @property
    def values(self) -> NDArray[np.float32]:
        return dequantise(self.integers, self.thresholds, self.levels, self.axis)


def weight_of(op: Op) -> str:
    """The variable of the slot that may hold an op's weight, or ""."""
    return op.input(WEIGHT_SLOT[op.type][0]) if op.type in WEIGHT_SLOT else ""


def rounded_by_abs_max(op: Op, weight: NDArray[Any]) -> Rounded:
    """What an op of ABS_MAX makes of a weight. Raises ConversionError for one that it can't round."""
    axis = int(op.attr("quant_axis", 0)) if "channel_wise" in op.type else 0
    if weight.dtype != np.float32 or not weight.size or not np.isfinite(weight).all() or not 0 <= axis < weight.ndim:
        raise ConversionError(
            f"op {op.type!r} (output {op.output('Out')!r}): its weight {op.input('X')!r} is "
            f"{weight.dtype}{list(weight.shape)}, or holds NaN or Inf: it can't be rounded along axis {axis}"
        )
    others = tuple(other for other in range(weight.ndim) if other != axis)
    peaks = np.abs(weight).max(others) if "channel_wise" in op.type else np.abs(weight).max().reshape(1)
    return rounded_to(op, weight, peaks, levels_of(op.attr("bit_length", 8)), axis, op.attr("round_type", 1))


def rounded_to(op: Op, weight: NDArray[Any], scales: NDArray[Any], levels: int, axis: int, round_type: int) -> Rounded:
    """A float32 weight rounded to given scales, one or one a slice along `axis`. Raises ConversionError."""
    scales = scales.astype(np.float32).reshape(-1)
    if levels < 1 or (scales.size != 1 and scales.size != weight.shape[axis]):
        raise ConversionError(
            f"op {op.type!r} (output {op.writes[0]!r}): weight {op.input('X')!r} of shape {list(weight.shape)} has "
            f"{scales.size} scales along axis {axis}, {levels} levels"
        )
    alive = scales >= _TINY
    inverse = np.where(alive, np.float32(1) / np.where(alive, scales, np.float32(1)), np.float32(0))
    along = [-1 if place == axis and scales.size > 1 else 1 for place in range(weight.ndim)]
    scaled = (np.float32(levels) * inverse).reshape(along) * weight
    if round_type == 0:
        whole = np.rint(scaled)
        low = -levels - 1
    else:
        whole = np.trunc(np.abs(scaled) + np.float32(0.5)) * np.sign(scaled)
        low = -levels
    return Rounded(np.clip(whole, low, levels), scales.astype(np.float64), levels, axis)


def stored_in_attributes(graph: Graph, op: Op) -> Rounded | None:
    """The weight that `WeightQuantization` left as integers, with its scales in the attributes of `op`; or None."""
    name = weight_of(op)
    scales = op.attr(f"{name}_quant_scale") if name in graph.params else None
    if scales is None or graph.params[name].dtype.kind != "i":
        return None
    levels = levels_of(op.attr("quantize_weight_bits", 8))
    steps = np.atleast_1d(np.asarray(scales, np.float64))
    return Rounded(graph.params[name], steps * levels, levels, WEIGHT_SLOT[op.type][1])


def axis_behind(op: Op, shape: tuple[int, ...], axis: int) -> int | None:
    """Where a dimension of a parameter lies behind an op that only rearranges; None when it doesn't, or is lost."""
    if op.type == "assign":
        return axis
    if op.type == "transpose2":
        return list(op.attr("axis")).index(axis)
    if op.type not in _MOVES or any(op.inputs.get(slot) for slot in ("Shape", "ShapeTensor", "AxesTensor")):
        return None
    after, before = shape_of(op, shape), math.prod(shape[:axis])
    same = (place for place, size in enumerate(after) if size == shape[axis] and math.prod(after[:place]) == before)
    return next(same, None)


def attrs_for(op: Op, weight: Rounded) -> dict[str, Any]:
    """Attributes of a weighted op: its weight's grid, or (`weight_fault`) why no INT8 kernel has such a grid."""
    flipped = op.attr("trans_y", False) or op.attr("transpose_Y", False)
    wanted = 0 if flipped else WEIGHT_SLOT[op.type][1]
    if weight.levels > SIGNED:
        return {"weight_fault": f"its weight is rounded to {weight.levels} levels, more than int8 has"}
    if weight.thresholds.size > 1 and weight.axis != wanted:
        fault = f"its weight has scales along dimension {weight.axis}, and its output channels are dimension {wanted}"
        return {"weight_fault": fault}
    return {"weight_thresholds": usable(weight.thresholds).tolist(), "weight_levels": weight.levels}
