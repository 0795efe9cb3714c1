"""What each op of a directly run program becomes: kernels of oneDNN, a view of memory, or a step in NumPy.

Attributes and their meaning are those of Paddle's oneDNN kernels (paddle/phi/kernels/onednn and fusion/onednn).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import UnsupportedError
from quant.ir.constants import beside, shape_of
from quant.ir.graph import Op
from quant.ir.ops.activations import KNOWN, Eltwise, conv_activation
from quant.runtime.direct import primitives
from quant.runtime.direct.emit_sequences import EMIT_SEQUENCES
from quant.runtime.direct.memory import LAST, Workspace, lies_in, order_of
from quant.runtime.direct.onednn import Memory, any_layout, flat
from quant.runtime.direct.primitives import Activation, Add, Attributes, PostOp, Sum

__all__ = ["ADDITIONS", "EMIT"]

Array = NDArray[Any]
ADDITIONS = ("elementwise_add", "fused_elementwise_add")
_SPATIAL = ("fused_conv2d", "conv2d", "depthwise_conv2d", "pool2d", "split", "concat")  # want their channels last


def _quantize(work: Workspace, op: Op) -> None:
    x, out, shift = work.value(op.input("Input")), op.output("Output"), op.attr("Shift", 0.0)
    if op.attr("bfloat16", False) or x.dtype != np.float32:
        raise UnsupportedError("quantize to bfloat16")
    spatial = x.ndim == 4 and any(reader.type in _SPATIAL for reader in work.readers.get(out, []))
    dtype = "int8" if op.attr("is_negative_input", False) else "uint8"
    order = order_of(x)
    target = work.new(out, x.shape, dtype, LAST if spatial else order)
    # Rounding and turning an image of few channels in one kernel takes 1.7 times as long as one after the other.
    rounded = target if lies_in(target, order) else work.scratch(x.shape, dtype, order)
    source, goal = work.memory(x), work.memory(rounded)
    extra = {"zero_points_dst": flat([shift], "int32")} if shift else {}
    attributes = Attributes({"src": 0}, ("dst",) if shift else ())
    made = primitives.reorder(source.layout, goal.layout, attributes)
    work.kernel(made, src=source, dst=goal, scales_src=flat([op.attr("Scale")]), **extra)
    if rounded is not target:
        work.copy(rounded, target)


def _dequantize(work: Workspace, op: Op) -> None:
    x, out, shift = work.value(op.input("Input")), op.output("Output"), op.attr("Shift", 0.0)
    target = work.new(out, x.shape, "float32", order_of(x))
    source, goal = work.memory(x), work.memory(target)
    extra = {"zero_points_src": flat([shift], "int32")} if shift else {}
    made = primitives.reorder(source.layout, goal.layout, Attributes({"dst": 0}, ("src",) if shift else ()))
    work.kernel(made, src=source, dst=goal, scales_dst=flat([op.attr("Scale")]), **extra)


def _pads(op: Op, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and behind, per spatial dimension (paddle/phi/kernels/funcs/pooling.h, UpdatePadding)."""
    given, rank = list(op.attr("paddings", [0] * len(sizes))), len(sizes)
    algorithm = op.attr("padding_algorithm", "EXPLICIT")
    if algorithm == "VALID":
        return [0] * rank, [0] * rank
    if algorithm == "SAME":
        total = [
            max((-(-size // step) - 1) * step + taps - size, 0)
            for size, taps, step in zip(sizes, kernel, strides, strict=True)
        ]
        return [pad // 2 for pad in total], [pad - pad // 2 for pad in total]
    return (given, given) if len(given) == rank else (given[::2], given[1::2])


def _activation(op: Op) -> list[PostOp]:
    """The post-op of `fuse_activation` (paddle/phi/backends/onednn/onednn_helper.h)."""
    name = op.attr("fuse_activation", "")
    return [_kernels_words(Eltwise(name, op.attr("fuse_alpha", 0.0), op.attr("fuse_beta", 0.0)))] if name else []


def _conv(work: Workspace, op: Op) -> None:
    x, name, out = work.value(op.input("Input")), op.input("Filter"), op.output("Output")
    filters = work.constants.shape(name)
    if x.ndim != 4 or op.attr("data_format", "NCHW") != "NCHW":
        raise UnsupportedError("a convolution that isn't two-dimensional, channels first")
    int8 = op.attr("mkldnn_data_type") == "int8"
    strides, dilations, groups = op.attr("strides"), op.attr("dilations", [1, 1]), op.attr("groups", 1)
    spread = [1 + (taps - 1) * step for taps, step in zip(filters[2:], dilations, strict=True)]
    before, behind = _pads(op, x.shape[2:], spread, strides)
    sizes = zip(x.shape[2:], before, behind, spread, strides, strict=True)
    spatial = [(size + left + right - taps) // step + 1 for size, left, right, taps, step in sizes]
    shape = (x.shape[0], filters[0], *spatial)
    x = work.reordered(x, LAST)
    bias = op.input("Bias")
    residual = op.input("ResidualData") if op.attr("fuse_residual_connection", False) else ""
    post: list[PostOp] = []
    dtype = "float32"
    unsigned = int8 and op.attr("fuse_activation", "") in ("relu", "relu6")
    if int8 and not op.attr("force_fp32_output", False):
        dtype = "uint8" if unsigned else "int8"
    if residual:
        other = work.value(residual)
        dtype = other.dtype.name  # a sum is stored in its residual's type
        post.append(Sum(1.0 / op.attr("Scale_in_eltwise", 1.0) if int8 else 1.0, dtype))
        in_place = work.dies(residual) and other.shape == shape and lies_in(other, LAST)
        if in_place and work.blocks[residual] is not work.blocks.get(op.input("Input")):
            work.view(out, residual, other)
            target = other
        else:
            target = work.copy(other, work.new(out, shape, dtype, LAST))
    else:
        target = work.new(out, shape, dtype, LAST)
    post += _activation(op)
    grouped = (groups, filters[0] // groups, *filters[1:]) if groups > 1 else filters
    scales: dict[str, int] = {}
    if int8:
        per_channel = _by_channel(op, filters[0])
        scales = {"src": 0, "weights": (3 if groups > 1 else 1) if per_channel else 0}
        if dtype != "float32":
            scales["dst"] = 0
    source, goal = work.memory(x), work.memory(target)
    made = primitives.convolution(
        source.layout,
        any_layout(grouped, "int8" if int8 else "float32"),
        any_layout((filters[0],), "float32") if bias else None,
        goal.layout,
        strides=strides,
        dilations=[step - 1 for step in dilations],
        before=before,
        behind=behind,
        attributes=Attributes(scales, post=post),
    )

    def values() -> Array:
        made = work.constants.integers(name, op.attr("Scale_weights"), 0) if int8 else work.constants.value(name)
        return made.reshape(grouped)

    operands = {"src": source, "dst": goal, "weights": work.constants.weights(f"{name} {out}", made.weights, values)}
    if bias:
        operands["bias"] = _vector(work, bias, filters[0])
    work.kernel(made, **operands, **_scale_memories(op, scales, "Scale_in", "Scale_weights"))
    if unsigned and dtype == "int8":  # not negative, and read as uint8 from here on
        work.values[out] = target.view(np.uint8)


def _vector(work: Workspace, name: str, size: int) -> Memory:
    """A constant of so many values: a kernel reads that many, whether they are there or not."""
    value = work.constants.value(name)
    if value.size != size:
        raise UnsupportedError(f"{name!r} holds {value.size} values, not {size}")
    return flat(value)


def _by_channel(op: Op, channels: int) -> bool:
    """Whether an op's weights have a scale a channel, or one for all."""
    count = len(op.attr("Scale_weights"))
    if count not in (1, channels):
        raise UnsupportedError(f"{op.type} with {count} scales for {channels} channels")
    return count > 1


def _scale_memories(op: Op, scales: Mapping[str, int], source: str, weights: str) -> dict[str, Memory]:
    """Paddle's scales are factors from real values to stored integers, oneDNN's the other way round."""
    given = {"src": op.attr(source), "weights": op.attr(weights), "dst": op.attr("Scale_out", 1.0)}
    return {f"scales_{name}": flat(np.float32(1.0) / np.asarray(given[name], np.float32)) for name in scales}


def _fc(work: Workspace, op: Op) -> None:
    x, name, out = work.value(op.input("Input")), op.input("W"), op.output("Out")
    columns, bias = work.constants.shape(name)[1], op.input("Bias")
    int8 = op.attr("mkldnn_data_type") == "int8"
    if op.attr("activation_type", "") or op.input("ResidualData"):
        raise UnsupportedError("fc with activation_type or a residual")
    rows = op.attr("in_num_col_dims", 1)
    shape = (*x.shape[:rows], columns)
    flat_x = work.reordered(x, range(x.ndim)).reshape(int(np.prod(x.shape[:rows])), -1)
    whole = not int8 or op.attr("force_fp32_output", False)
    target = work.new(out, shape, "float32" if whole else "int8")
    follower = work.followers.get(op)
    post = _activation(op)
    operands: dict[str, Memory] = {}
    if follower is not None:
        other = work.value(next(read for read in follower.reads if read != out))
        other = work.reordered(other, range(other.ndim))
        operands["post_op"] = work.memory(_rows_of(other, shape, flat_x.shape[0]))
        post = [Add(operands["post_op"].layout)]
        work.view(follower.output("Out"), out, target)
    scales = {"src": 0, "weights": 1 if _by_channel(op, columns) else 0} if int8 else {}
    if not whole:
        scales["dst"] = 0
    source, goal = work.memory(flat_x), work.memory(target.reshape(flat_x.shape[0], -1))
    made = primitives.inner_product(
        source.layout,
        any_layout(work.constants.shape(name)[::-1], "int8" if int8 else "float32"),
        any_layout((columns,), "float32") if bias else None,
        goal.layout,
        attributes=Attributes(scales, post=post),
    )

    def values() -> Array:
        made = work.constants.integers(name, op.attr("Scale_weights"), 1) if int8 else work.constants.value(name)
        return made.T

    operands |= {"src": source, "dst": goal, "weights": work.constants.weights(f"{name} {out}", made.weights, values)}
    if bias:
        operands["bias"] = _vector(work, bias, columns)
    work.kernel(made, **operands, **_scale_memories(op, scales, "Scale_in", "Scale_weights"))


def _rows_of(array: Array, shape: Sequence[int], rows: int) -> Array:
    """What is added to a product's output, in the two dimensions that its kernel sees."""
    if array.size == int(np.prod(shape)):
        return array.reshape(rows, -1)
    if array.size == shape[-1]:
        return array.reshape(1, -1)
    raise UnsupportedError("an addition behind fc that is neither of its shape nor of its columns")


def _matmul(work: Workspace, op: Op) -> None:
    x, y, out = work.value(op.input("X")), work.value(op.input("Y")), op.output("Out")
    int8 = op.attr("mkldnn_data_type") == "int8"
    if any(op.attr(name, False) for name in ("trans_x", "transpose_X")):
        x = x.swapaxes(-1, -2)
    if any(op.attr(name, False) for name in ("trans_y", "transpose_Y")):
        y = y.swapaxes(-1, -2)
    alpha = op.attr("matmul_alpha", 1.0) * op.attr("alpha", 1.0)
    if x.ndim != y.ndim or x.ndim < 2 or (not int8 and (alpha != 1.0 or x.dtype != np.float32)):
        raise UnsupportedError("a product of operands of unlike rank")
    shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    whole = not int8 or op.attr("force_fp32_output", False)
    reader = work.only_reader(out)
    # Where a transpose follows, write in the order that makes its output dense.
    order = reader.attr("axis") if reader is not None and reader.type in ("transpose2", "fused_transpose") else None
    target = work.new(out, shape, "float32" if whole else "int8", order)
    post: list[PostOp] = []
    operands: dict[str, Memory] = {}
    follower = work.followers.get(op)
    if follower is not None:
        other = work.value(next(read for read in follower.reads if read != out))
        operands["post_op"] = work.memory(beside(other, len(shape), -1))
        post = [Add(operands["post_op"].layout)]
        work.view(follower.output("Out"), out, target)
    scales = {"src": 0, "weights": 0, **({} if whole else {"dst": 0})} if int8 else {}
    memories = _scale_memories(op, scales, "Scale_x", "Scale_y") if int8 else {}
    if int8 and alpha != 1.0:
        memories["scales_src"] = flat([alpha / op.attr("Scale_x")])
    left, right, goal = work.memory(x), work.memory(y), work.memory(target)
    made = primitives.matmul(left.layout, right.layout, goal.layout, attributes=Attributes(scales, post=post))
    work.kernel(made, src=left, weights=right, dst=goal, **operands, **memories)


def _pool(work: Workspace, op: Op) -> None:
    x, out = work.value(op.input("X")), op.output("Out")
    if x.ndim != 4 or op.attr("data_format", "NCHW") != "NCHW":
        raise UnsupportedError("a pooling that isn't two-dimensional, channels first")
    kernel, strides, sizes = list(op.attr("ksize")), list(op.attr("strides", [1, 1])), x.shape[2:]
    kind = op.attr("pooling_type")
    if op.attr("global_pooling", False) or (op.attr("adaptive", False) and kernel == [1, 1]):
        kernel, before, behind = list(sizes), [0, 0], [0, 0]
        strides = list(sizes)
    elif op.attr("adaptive", False):
        raise UnsupportedError("adaptive pooling to more than one value")
    else:
        before, behind = _pads(op, sizes, kernel, strides)
    if op.attr("ceil_mode", False):  # as if there were more padding behind
        behind = [
            right + (-(size + left + right - taps) % step)
            for size, left, right, taps, step in zip(sizes, before, behind, kernel, strides, strict=True)
        ]
    dims = zip(sizes, before, behind, kernel, strides, strict=True)
    shape = (*x.shape[:2], *((size + left + right - taps) // step + 1 for size, left, right, taps, step in dims))
    x = work.reordered(x, LAST)
    target = work.new(out, shape, x.dtype.name, LAST)
    algorithm = "max" if kind == "max" else "avg exclusive" if op.attr("exclusive", True) else "avg"
    source, goal = work.memory(x), work.memory(target)
    made = primitives.pooling(
        algorithm, source.layout, goal.layout, strides=strides, kernel=kernel, before=before, behind=behind
    )
    work.kernel(made, src=source, dst=goal)


def _concat(work: Workspace, op: Op) -> None:
    arrays, out = [work.value(name) for name in op.inputs["X"]], op.output("Out")
    axis = op.attr("axis") % arrays[0].ndim
    if op.input("AxisTensor"):
        raise UnsupportedError("concat along a computed axis")
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    order = order_of(arrays[0])
    target = work.new(out, shape, arrays[0].dtype.name, order)
    sources = [work.memory(work.reordered(array, order)) for array in arrays]
    goal = work.memory(target)
    made = primitives.concat([source.layout for source in sources], goal.layout, axis)
    operands = {f"several_{place}": source for place, source in enumerate(sources)}
    work.kernel(made, dst=goal, **operands)


def _binary(work: Workspace, op: Op) -> None:
    kind = "elementwise_add" if op.type in ADDITIONS else op.type
    x, y, out = work.value(op.input("X")), work.value(op.input("Y")), op.output("Out")
    if x.ndim < y.ndim or x.dtype != np.float32 or y.dtype != np.float32:
        raise UnsupportedError(f"{op.type} of {x.dtype.name} [{x.ndim} dimensions] and {y.dtype.name} [{y.ndim}]")
    y = beside(y, x.ndim, op.attr("axis", -1))
    if np.broadcast_shapes(x.shape, y.shape) != x.shape:
        if kind == "elementwise_sub" or np.broadcast_shapes(x.shape, y.shape) != y.shape:
            raise UnsupportedError(f"{op.type} of {list(x.shape)} and {list(y.shape)}")
        x, y = y, x
    order = order_of(x)
    if y.shape == x.shape:
        y = work.reordered(y, order)
    target = work.new(out, x.shape, "float32", order)
    left, right, goal = work.memory(x), work.memory(y), work.memory(target)
    made = primitives.binary(kind, left.layout, right.layout, goal.layout)
    work.kernel(made, src=left, src1=right, dst=goal)


def _softmax(work: Workspace, op: Op) -> None:
    x, out = work.value(op.input("X")), op.output("Out")
    follower = work.followers.get(op)
    scales, memories, dtype = {}, {}, "float32"
    if follower is not None:
        out, scales = follower.output("Output"), {"dst": 0}
        dtype = "int8" if follower.attr("is_negative_input", False) else "uint8"
        memories["scales_dst"] = flat([1.0 / follower.attr("Scale")])
    target = work.new(out, x.shape, dtype, order_of(x))
    source, goal = work.memory(x), work.memory(target)
    axis = op.attr("axis", -1) % x.ndim
    made = primitives.softmax(source.layout, goal.layout, axis, attributes=Attributes(scales))
    work.kernel(made, src=source, dst=goal, **memories)


def _layer_norm(work: Workspace, op: Op) -> None:
    x, out = work.value(op.input("X")), op.output("Y")
    columns = int(np.prod(x.shape[op.attr("begin_norm_axis", 1) :]))
    if not op.input("Scale") or not op.input("Bias"):
        raise UnsupportedError("layer_norm without scale or bias")
    x = work.reordered(x, range(x.ndim))
    target = work.new(out, x.shape, "float32")
    source, goal = work.memory(x.reshape(-1, columns)), work.memory(target.reshape(-1, columns))
    made = primitives.layer_normalization(source.layout, goal.layout, op.attr("epsilon", 1e-5))
    constants = {slot: _vector(work, op.input(name), columns) for slot, name in _SCALE_AND_SHIFT.items()}
    work.kernel(made, src=source, dst=goal, **constants)


_SCALE_AND_SHIFT = {"scale": "Scale", "shift": "Bias"}


def _kernels_words(eltwise: Eltwise) -> Activation:
    """Paddle's names of activations -> oneDNN's."""
    name = {"relu6": "clip", "leaky_relu": "relu", "gelu": "gelu_erf"}.get(eltwise.name, eltwise.name)
    return Activation(name, eltwise.alpha, eltwise.beta)


def _scale(op: Op) -> Eltwise:
    factor, bias = op.attr("scale", 1.0), op.attr("bias", 0.0)
    return Eltwise("linear", factor, bias if op.attr("bias_after_scale", True) else factor * bias)


def _eltwise(work: Workspace, op: Op) -> None:
    x, out = work.value(op.input("X")), op.output("Out")
    if x.dtype != np.float32 or op.input("ScaleTensor"):
        raise UnsupportedError(f"{op.type} of {x.dtype.name}")
    target = work.new(out, x.shape, "float32", order_of(x))
    source, goal = work.memory(x), work.memory(target)
    eltwise = _scale(op) if op.type == "scale" else conv_activation(op)
    if eltwise is None:
        raise UnsupportedError(f"{op.type} with these attributes")
    work.kernel(primitives.eltwise(_kernels_words(eltwise), source.layout, goal.layout), src=source, dst=goal)


def _lookup(work: Workspace, op: Op) -> None:
    table, ids = work.constants.table(op.input("W")), work.value(op.input("Ids"))
    if not ids.flags.c_contiguous or not work.from_input(op.input("Ids")):
        raise UnsupportedError("a lookup of computed ids")
    shape = ids.shape[:-1] if op.type == "lookup_table" else ids.shape
    target = work.new(op.output("Out"), (*shape, table.shape[1]), "float32")
    rows, found = ids.reshape(-1), target.reshape(-1, table.shape[1])
    work.numpy(_take, table, rows, op.attr("padding_idx", -1), found)


def _take(table: Array, ids: Array, padding: int, out: Array) -> None:
    """Rows of a table; zeros for the id `padding` (-1: none)."""
    if ids.min() < 0:
        raise IndexError(f"{ids.min()}")
    np.take(table, ids, axis=0, out=out)
    if padding >= 0:
        out[ids == padding] = 0.0


def _move(work: Workspace, op: Op) -> None:
    """Ops that only look at an array in another way, or copy it densely where that can't be."""
    name, out = op.input("X"), op.output("Out")
    if any(op.inputs.get(slot) for slot in ("Shape", "ShapeTensor", "AxesTensor", "StartsTensor", "EndsTensor")):
        raise UnsupportedError(f"{op.type} to a computed shape")
    x = work.value(name)
    if op.type in ("transpose2", "fused_transpose"):
        work.view(out, name, x.transpose(op.attr("axis")))
        return
    shape = shape_of(op, x.shape)
    if not _viewable(x, shape):
        x = work.copy(x, work.new(out, x.shape, x.dtype.name, _order_for(x, shape)))
        work.values[out] = x.reshape(shape)
        return
    work.view(out, name, x.reshape(shape))


def _order_for(array: Array, shape: Sequence[int]) -> list[int]:
    """In which order to copy an array that is then looked at in another shape.

    Where only channels are regrouped, as in a channel shuffle, they stay the last in memory.
    """
    dims = list(range(array.ndim))
    regrouped = array.ndim > 3 and len(shape) == 4 and tuple(shape[2:]) == array.shape[-2:]
    if regrouped and array.strides[-1] > min(array.strides[1:-2]):
        return [0, *dims[-2:], *dims[1:-2]]
    return dims


def _viewable(array: Array, shape: Sequence[int]) -> bool:
    """Whether an array can be looked at in another shape without a copy.

    Asked of the array itself: a copy never lies between its ends. It may lie between those of a smaller array that
    only claims these strides.
    """
    return np.may_share_memory(array, array.reshape(shape))


def _slice(work: Workspace, op: Op) -> None:
    name, out = op.input("Input"), op.output("Out")
    x = work.value(name)
    if any(op.inputs.get(slot) for slot in ("StartsTensor", "EndsTensor", "StartsTensorList", "EndsTensorList")):
        raise UnsupportedError("a slice with computed bounds")
    cut = [slice(None)] * x.ndim
    for axis, start, end in zip(op.attr("axes"), op.attr("starts"), op.attr("ends"), strict=True):
        cut[axis] = slice(start, end)
    view = x[tuple(cut)]
    dropped = op.attr("decrease_axis", [])
    work.view(out, name, view.reshape([size for axis, size in enumerate(view.shape) if axis not in dropped]))


def _split(work: Workspace, op: Op) -> None:
    name, outs = op.input("X"), op.outputs["Out"]
    x = work.value(name)
    if op.inputs.get("AxisTensor") or op.inputs.get("SectionsTensorList"):
        raise UnsupportedError("a split with computed bounds")
    axis, sections = op.attr("axis", 0) % x.ndim, list(op.attr("sections", []))
    if not sections:
        sections = [x.shape[axis] // len(outs)] * len(outs)
    if -1 in sections:
        sections[sections.index(-1)] = x.shape[axis] - sum(size for size in sections if size > 0)
    for out, part in zip(outs, np.split(x, np.cumsum(sections)[:-1], axis), strict=True):
        work.view(out, name, part)


def _assign(work: Workspace, op: Op) -> None:
    name = op.input("X")
    work.view(op.output("Out"), name, work.value(name))


def _dropout(work: Workspace, op: Op) -> None:
    if op.attr("dropout_implementation", "downgrade_in_infer") == "upscale_in_train":
        _assign(work, op)
    else:
        kept = 1.0 - op.attr("dropout_prob", 0.5)
        _eltwise(work, Op.make("scale", {"X": op.input("X")}, {"Out": op.output("Out")}, scale=kept))


def _batch_norm(work: Workspace, op: Op) -> None:
    x, follower = work.value(op.input("X")), work.followers.get(op)
    if x.ndim != 4 or x.dtype != np.float32 or op.attr("data_layout", "NCHW") != "NCHW":
        raise UnsupportedError("a batch normalisation that isn't of images, channels first")
    if not op.attr("is_test", False):
        raise UnsupportedError("a batch normalisation by the statistics of each batch")
    out = follower.output("Out") if follower else op.output("Y")
    x = work.reordered(x, LAST)
    target = work.new(out, x.shape, "float32", LAST)
    source, goal = work.memory(x), work.memory(target)
    epsilon, relu = op.attr("epsilon", 1e-5), follower is not None
    made = primitives.batch_normalization(source.layout, goal.layout, epsilon, relu=relu)
    slots = {**_SCALE_AND_SHIFT, "mean": "Mean", "variance": "Variance"}
    constants = {slot: _vector(work, op.input(name), x.shape[1]) for slot, name in slots.items()}
    work.kernel(made, src=source, dst=goal, **constants)


def _nearest(work: Workspace, op: Op) -> None:
    """Enlarging by whole factors; at others oneDNN rounds positions otherwise than Paddle does."""
    x, scale = work.value(op.input("X")), op.attr("scale", 0.0)
    factors = list(scale) if isinstance(scale, list) else [scale, scale]
    whole = len(factors) == 2 and all(factor >= 1 and float(factor).is_integer() for factor in factors)
    by_tensor = any(op.inputs.get(slot) for slot in ("OutSize", "SizeTensor", "Scale"))
    if x.ndim != 4 or not whole or by_tensor or op.attr("align_corners", True):
        raise UnsupportedError("an interpolation that isn't by whole factors")
    shape = (*x.shape[:2], *(size * int(factor) for size, factor in zip(x.shape[2:], factors, strict=True)))
    x = work.reordered(x, LAST)
    target = work.new(op.output("Out"), shape, x.dtype.name, LAST)
    source, goal = work.memory(x), work.memory(target)
    work.kernel(primitives.resampling(source.layout, goal.layout), src=source, dst=goal)


_MOVES = ("reshape2", "squeeze2", "unsqueeze2", "flatten2", "flatten_contiguous_range", "transpose2", "fused_transpose")
_BINARY = ("elementwise_add", "fused_elementwise_add", "elementwise_mul", "elementwise_sub")

EMIT: dict[str, Callable[[Workspace, Op], None]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "fused_conv2d": _conv,
    "conv2d": _conv,
    "depthwise_conv2d": _conv,
    "fc": _fc,
    "fused_matmul": _matmul,
    "matmul_v2": _matmul,
    "pool2d": _pool,
    "concat": _concat,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "lookup_table": _lookup,
    "lookup_table_v2": _lookup,
    "slice": _slice,
    "split": _split,
    "batch_norm": _batch_norm,
    "nearest_interp": _nearest,
    "nearest_interp_v2": _nearest,
    "assign": _assign,
    "dropout": _dropout,
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(("scale", *KNOWN), _eltwise),
    **EMIT_SEQUENCES,
}
