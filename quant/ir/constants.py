"""What ops on parameters alone compute, in NumPy, value for value as Paddle's kernels do.

Kernels: paddle/phi/kernels/cpu/{cast,scale,concat,slice,transpose,elementwise_*}_kernel.cc. Nothing here keeps state:
any thread may call it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.ir.graph import DTYPE_NUMBERS, Op

__all__ = ["COMPUTABLE", "beside", "computed", "shape_of"]

Array = NDArray[Any]
_DTYPES = {number: name for name, number in DTYPE_NUMBERS.items()}
_INTEGERS = "iub"  # kinds of NumPy types
_RESHAPES = ("reshape2", "squeeze2", "unsqueeze2", "flatten2", "flatten_contiguous_range")
_BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "elementwise_add": np.add,
    "elementwise_sub": np.subtract,
    "elementwise_mul": np.multiply,
    "elementwise_div": np.divide,
}
_BY_TENSOR = (  # slots of what may come from a tensor instead of an attribute
    *("Shape", "ShapeTensor", "AxesTensor", "AxesTensorList", "AxisTensor", "ScaleTensor"),
    *("StartsTensor", "EndsTensor", "StartsTensorList", "EndsTensorList"),
)

COMPUTABLE = (*_RESHAPES, *_BINARY, "transpose2", "cast", "scale", "assign", "concat", "slice", "fill_constant")


def computed(op: Op, value: Callable[[str], Array]) -> Array | None:
    """What an op writes to Out when `value` gives its inputs.

    None: an op that isn't known here, or not for these types of values and attributes. Sizes that don't fit together
    raise ValueError or IndexError.
    """
    if op.type not in COMPUTABLE or any(op.inputs.get(slot) for slot in _BY_TENSOR):
        return None
    if op.type == "fill_constant":
        return _filled(op)
    if op.type == "concat":
        return np.concatenate([value(name) for name in op.inputs["X"]], op.attr("axis", 0))
    x = value(op.input("Input" if op.type == "slice" else "X"))
    if x.dtype == np.uint16:  # the bits of a bfloat16
        return None
    if op.type in _RESHAPES:
        return x.reshape(shape_of(op, x.shape))
    if op.type in _BINARY:
        return _combined(op, x, value(op.input("Y")))
    match op.type:
        case "transpose2":
            return np.ascontiguousarray(x.transpose(op.attr("axis")))
        case "cast":
            wanted = _DTYPES.get(op.attr("out_dtype"), "uint16")
            return None if wanted == "uint16" else x.astype(wanted)
        case "scale":
            return _scaled(op, x)
        case "slice":
            return _sliced(op, x)
    return x


def _filled(op: Op) -> Array | None:
    dtype, shape = _DTYPES.get(op.attr("dtype"), "uint16"), op.attr("shape", [])
    if dtype == "uint16" or op.reads or any(size < 0 for size in shape):
        return None
    text = op.attr("str_value", "")  # takes precedence (fill_constant_op.cc): no digit of an int64 is lost
    return np.full(shape, float(text) if text else op.attr("value", 0.0)).astype(dtype)


def _combined(op: Op, x: Array, y: Array) -> Array | None:
    whole = x.dtype.kind in _INTEGERS
    if x.dtype != y.dtype or x.ndim < y.ndim or (whole and op.type == "elementwise_div"):
        return None
    return _BINARY[op.type](x, beside(y, x.ndim, op.attr("axis", -1)))


def _scaled(op: Op, x: Array) -> Array | None:
    if x.dtype not in (np.float32, np.float64):
        return None
    factor, bias = (x.dtype.type(op.attr(name, default)) for name, default in (("scale", 1.0), ("bias", 0.0)))
    return np.asarray(x * factor + bias if op.attr("bias_after_scale", True) else (x + bias) * factor)


def _sliced(op: Op, x: Array) -> Array:
    cut = [slice(None)] * x.ndim
    for axis, start, end in zip(op.attr("axes"), op.attr("starts"), op.attr("ends"), strict=True):
        cut[axis] = slice(start, end)
    view, dropped = x[tuple(cut)], op.attr("decrease_axis", [])
    return np.ascontiguousarray(view.reshape([size for axis, size in enumerate(view.shape) if axis not in dropped]))


def beside(array: Array, ndim: int, axis: int) -> Array:
    """The second operand of an elementwise op, with the dimensions that Paddle's `axis` leaves out."""
    trailing = 0 if axis < 0 else ndim - axis - array.ndim
    shape = (*array.shape, *([1] * trailing))
    return array.reshape(*([1] * (ndim - len(shape))), *shape)


def shape_of(op: Op, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that reshape2, squeeze2, unsqueeze2 or a flattening gives."""
    rank = len(shape)
    if op.type == "reshape2":
        wanted = [shape[place] if size == 0 else size for place, size in enumerate(op.attr("shape"))]
        known = int(np.prod([size for size in wanted if size > 0]))
        return tuple(int(np.prod(shape)) // known if size < 0 else size for size in wanted)
    if op.type == "squeeze2":
        axes = [axis % rank for axis in op.attr("axes")] or list(range(rank))
        return tuple(size for place, size in enumerate(shape) if size != 1 or place not in axes)
    if op.type == "unsqueeze2":
        result = list(shape)
        for axis in op.attr("axes"):
            result.insert(axis if axis >= 0 else len(result) + 1 + axis, 1)
        return tuple(result)
    if op.type == "flatten2":
        axis = op.attr("axis", 1)
        return int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    first, last = op.attr("start_axis", 1) % rank, op.attr("stop_axis", -1) % rank
    return (*shape[:first], int(np.prod(shape[first : last + 1])), *shape[last + 1 :])
