"""oneDNN's kernels, a function each: typed operands in, a `Primitive` out.

A function takes the layouts of its operands, and returns the kernel that oneDNN has for them; it raises RefusedError
where there is none. Names, order and meaning of arguments are those of oneDNN 3.6 (include/oneapi/dnnl/dnnl.h). All
kernels are for inference, and take scratch memory from their caller. Not thread-safe: one stream runs them in order.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.runtime.direct.onednn import (
    ARG,
    BINARY,
    DTYPES,
    ELTWISE,
    POOLING,
    Layout,
    Memory,
    Owned,
    RefusedError,
    call,
    engine,
    library,
    made,
    memory_of,
    stream,
)

__all__ = [
    "Activation",
    "Add",
    "Attributes",
    "PostOp",
    "Primitive",
    "Sum",
    "batch_normalization",
    "binary",
    "call_of",
    "concat",
    "convolution",
    "eltwise",
    "gru",
    "inner_product",
    "layer_normalization",
    "lstm",
    "matmul",
    "pack",
    "pooling",
    "reorder",
    "resampling",
    "softmax",
]

Array = NDArray[Any]
_Dims = ctypes.c_int64 * 12

_INFERENCE, _DIRECT, _SOFTMAX, _NEAREST = (ctypes.c_int(number) for number in (96, 1, 196608, 196592))
_GLOBAL_STATISTICS, _SCALE_AND_SHIFT, _RELU = 1, 2 | 4, 8
_QUERY_WEIGHTS, _QUERY_SCRATCHPAD = 131, 136
_LEFT_TO_RIGHT, _RIGHT_TO_LEFT = 1, 2
_BY_GATE_AND_CHANNEL = 1 << 3 | 1 << 4  # of weights [layer, direction, input, gate, output]
_USER_SCRATCHPAD = 1


# --- what a kernel does besides its own work


@dataclass(frozen=True)
class Sum:
    """Add what is in the destination, stored as `dtype`, times `scale`."""

    scale: float
    dtype: str


@dataclass(frozen=True)
class Add:
    """Add another tensor of this layout, broadcast where a dimension is 1."""

    layout: Layout


@dataclass(frozen=True)
class Activation:
    """An elementwise function of oneDNN's (a key of ELTWISE) with its two parameters."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


PostOp = Sum | Add | Activation


@dataclass
class Attributes:
    """Scales, zero points and post-ops of a kernel.

    `scales`: operand -> mask of the dimensions along which its scales differ. `zero_points`: operands whose 0 is stored
    as another integer. `post`: what happens to the result, in this order. `recurrent`: scale and shift of a recurrent
    layer's data, and the scales of its weights, one for each output of each gate.
    """

    scales: Mapping[str, int] = field(default_factory=dict)
    zero_points: Sequence[str] = ()
    post: Sequence[PostOp] = ()
    recurrent: tuple[float, float, Array] | None = None

    def build(self) -> Owned:
        built = Owned(made("dnnl_primitive_attr_create"), "dnnl_primitive_attr_destroy")
        call("dnnl_primitive_attr_set_scratchpad_mode", built.handle, ctypes.c_int(_USER_SCRATCHPAD))
        for operand, mask in self.scales.items():
            call("dnnl_primitive_attr_set_scales_mask", built.handle, ctypes.c_int(ARG[operand]), ctypes.c_int(mask))
        for operand in self.zero_points:
            call("dnnl_primitive_attr_set_zero_points_mask", built.handle, ctypes.c_int(ARG[operand]), ctypes.c_int(0))
        if self.recurrent:
            *data, of_weights = self.recurrent
            call("dnnl_primitive_attr_set_rnn_data_qparams", built.handle, *map(ctypes.c_float, data))
            given = (ctypes.c_float * of_weights.size)(*of_weights)
            along = ctypes.c_int64(of_weights.size), ctypes.c_int(_BY_GATE_AND_CHANNEL)
            call("dnnl_primitive_attr_set_rnn_weights_qparams", built.handle, *along, given)
        if self.post:
            chain = _post_ops(self.post)
            call("dnnl_primitive_attr_set_post_ops", built.handle, chain.handle)
        return built


def _post_ops(post: Sequence[PostOp]) -> Owned:
    chain = Owned(made("dnnl_post_ops_create"), "dnnl_post_ops_destroy")
    for one in post:
        match one:
            case Sum(scale, dtype):
                zero_point, stored = ctypes.c_int32(0), ctypes.c_int(DTYPES[dtype])
                call("dnnl_post_ops_append_sum", chain.handle, ctypes.c_float(scale), zero_point, stored)
            case Add(layout):
                algorithm = ctypes.c_int(BINARY["elementwise_add"])
                call("dnnl_post_ops_append_binary", chain.handle, algorithm, layout.handle)
            case Activation(name, alpha, beta):
                factors = ctypes.c_float(alpha), ctypes.c_float(beta)
                call("dnnl_post_ops_append_eltwise", chain.handle, ctypes.c_int(ELTWISE[name]), *factors)
    return chain


class Primitive(Owned):
    """A kernel, made for its operands' layouts. `weights` is the layout that it wants its weights in, `weights_iter`
    that of a recurrent layer's weights of its state."""

    def __init__(self, description: Owned) -> None:
        super().__init__(made("dnnl_primitive_create", description.handle), "dnnl_primitive_destroy")
        self._description = description

    def _asked(self, what: int, number: int = 0) -> Layout:
        found = library().dnnl_primitive_desc_query_md(self._description.handle, what, number)
        return Layout(made("dnnl_memory_desc_clone", ctypes.c_void_p(found)))

    @property
    def weights(self) -> Layout:
        return self._asked(_QUERY_WEIGHTS)

    @property
    def weights_iter(self) -> Layout:
        return self._asked(_QUERY_WEIGHTS, 1)

    @property
    def scratchpad(self) -> Layout:
        return self._asked(_QUERY_SCRATCHPAD)


def _created(kind: str, *arguments: Any) -> Primitive:
    """A kernel, by the arguments of dnnl_{kind}_primitive_desc_create; objects stand for their handles."""
    plain = (one.handle if isinstance(one, Owned) else one for one in arguments)
    described = made(f"dnnl_{kind}_primitive_desc_create", *plain)
    return Primitive(Owned(described, "dnnl_primitive_desc_destroy"))


# --- the kernels


def convolution(
    src: Layout,
    weights: Layout,
    bias: Layout | None,
    dst: Layout,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[int],
    behind: Sequence[int],
    attributes: Attributes,
) -> Primitive:
    """`weights` [out, in, ...], or [groups, out, in, ...] when grouped. `dilations`: 0 is a dense kernel. `before` and
    `behind`: padding of each spatial dimension."""
    layouts = (src, weights, bias, dst)
    sizes = (_Dims(*values) for values in (strides, dilations, before, behind))
    attr = attributes.build()
    return _created("convolution_forward", engine(), _INFERENCE, _DIRECT, *layouts, *sizes, attr)


def inner_product(
    src: Layout, weights: Layout, bias: Layout | None, dst: Layout, *, attributes: Attributes
) -> Primitive:
    """`src` [rows, in], `weights` [out, in], `bias` [out], `dst` [rows, out]."""
    layouts = (src, weights, bias, dst)
    return _created("inner_product_forward", engine(), _INFERENCE, *layouts, attributes.build())


def matmul(src: Layout, weights: Layout, dst: Layout, *, attributes: Attributes) -> Primitive:
    """`src` [..., rows, in], `weights` [..., in, out], `dst` [..., rows, out]."""
    return _created("matmul", engine(), src, weights, None, dst, attributes.build())


def pooling(
    algorithm: str,
    src: Layout,
    dst: Layout,
    *,
    strides: Sequence[int],
    kernel: Sequence[int],
    before: Sequence[int],
    behind: Sequence[int],
) -> Primitive:
    """`algorithm`: a key of POOLING."""
    sizes = [_Dims(*values) for values in (strides, kernel, [0] * len(kernel), before, behind)]
    layouts, attr = (src, dst), Attributes().build()
    return _created("pooling_forward", engine(), _INFERENCE, ctypes.c_int(POOLING[algorithm]), *layouts, *sizes, attr)


def eltwise(function: Activation, src: Layout, dst: Layout) -> Primitive:
    arguments = (ctypes.c_int(ELTWISE[function.name]), src, dst)
    factors = (ctypes.c_float(function.alpha), ctypes.c_float(function.beta))
    return _created("eltwise_forward", engine(), _INFERENCE, *arguments, *factors, Attributes().build())


def binary(op_type: str, src: Layout, src1: Layout, dst: Layout) -> Primitive:
    """`op_type`: a key of BINARY. Dimensions of 1 in `src1` are broadcast."""
    layouts = (src, src1, dst)
    return _created("binary", engine(), ctypes.c_int(BINARY[op_type]), *layouts, Attributes().build())


def softmax(src: Layout, dst: Layout, axis: int, *, attributes: Attributes) -> Primitive:
    arguments = (_INFERENCE, _SOFTMAX, src, dst, ctypes.c_int(axis))
    return _created("softmax_forward", engine(), *arguments, attributes.build())


def layer_normalization(src: Layout, dst: Layout, epsilon: float) -> Primitive:
    """Over the last dimension, with scale and shift."""
    arguments = (src, dst, None, ctypes.c_float(epsilon), ctypes.c_uint(_SCALE_AND_SHIFT))
    return _created("layer_normalization_forward", engine(), _INFERENCE, *arguments, Attributes().build())


def batch_normalization(src: Layout, dst: Layout, epsilon: float, *, relu: bool) -> Primitive:
    """By given mean and variance, with scale and shift; `relu`: whether one follows."""
    flags = ctypes.c_uint(_GLOBAL_STATISTICS | _SCALE_AND_SHIFT | (_RELU if relu else 0))
    arguments = (src, dst, ctypes.c_float(epsilon), flags)
    return _created("batch_normalization_forward", engine(), _INFERENCE, *arguments, Attributes().build())


def resampling(src: Layout, dst: Layout) -> Primitive:
    """To the nearest neighbor."""
    arguments = (_INFERENCE, _NEAREST, None, src, dst)
    return _created("resampling_forward", engine(), *arguments, Attributes().build())


def gru(
    src: Layout,
    state: Layout,
    weights: Layout,
    state_weights: Layout,
    bias: Layout,
    dst: Layout,
    *,
    reverse: bool,
    attributes: Attributes,
) -> Primitive:
    """One layer in one direction. `src` [steps, batch, in], `state` [1, 1, batch, hidden], `weights` and
    `state_weights` [1, 1, in or hidden, 3, hidden], `bias` [1, 1, 3, hidden], `dst` [steps, batch, hidden]."""
    layouts = (src, state, weights, state_weights, bias, dst, None)
    return _recurrent("gru_forward", layouts, reverse, attributes)


def lstm(
    src: Layout,
    state: Layout,
    cell: Layout,
    weights: Layout,
    state_weights: Layout,
    bias: Layout,
    dst: Layout,
    *,
    reverse: bool,
    attributes: Attributes,
) -> Primitive:
    """As `gru`, with four gates, and a `cell` of the state's shape; no peepholes, no projection."""
    given = (src, state, cell, weights, state_weights)
    return _recurrent("lstm_forward", (*given, None, None, bias, dst, None, None), reverse, attributes)


def _recurrent(kind: str, layouts: Sequence[Layout | None], reverse: bool, attributes: Attributes) -> Primitive:
    way = ctypes.c_int(_RIGHT_TO_LEFT if reverse else _LEFT_TO_RIGHT)
    return _created(kind, engine(), _INFERENCE, way, *layouts, ctypes.c_uint(0), attributes.build())


def concat(sources: Sequence[Layout], dst: Layout, axis: int) -> Primitive:
    several = (ctypes.c_void_p * len(sources))(*(source.handle for source in sources))
    count = ctypes.c_int(len(sources))
    return _created("concat", engine(), dst, count, ctypes.c_int(axis), several, Attributes().build())


def reorder(src: Layout, dst: Layout, attributes: Attributes | None = None) -> Primitive:
    """Copy into another layout or type; `attributes` say how to round."""
    attr = (attributes or Attributes()).build()
    return _created("reorder", src, engine(), dst, engine(), attr)


# --- running them


class _ExecArg(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_int), ("memory", ctypes.c_void_p)]


def call_of(kernel: Primitive, operands: Mapping[int, Memory]) -> tuple[Any, tuple[Any, ...]]:
    """A call that runs a kernel, as (function, arguments): the function gives 0 when it went well."""
    pairs = (_ExecArg * len(operands))(*(_ExecArg(arg, memory.handle) for arg, memory in operands.items()))
    return library().dnnl_primitive_execute, (kernel.handle, stream(), ctypes.c_int(len(operands)), pairs)


def pack(array: Array, wanted: Layout, attributes: Attributes | None = None) -> Memory:
    """An array in a layout of oneDNN's own."""
    holder = np.empty(wanted.bytes + 64, np.uint8)
    holder = holder[-holder.ctypes.data % 64 :][: wanted.bytes]
    source, packed = memory_of(array), Memory(wanted, holder)
    kernel = reorder(source.layout, wanted, attributes)
    scratch = kernel.scratchpad
    spare = Memory(scratch, np.empty(max(scratch.bytes, 1), np.uint8))
    function, arguments = call_of(kernel, {ARG["src"]: source, ARG["dst"]: packed, ARG["scratchpad"]: spare})
    if function(*arguments):
        raise RefusedError("reorder of weights")
    call("dnnl_stream_wait", stream())
    return packed
