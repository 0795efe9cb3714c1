"""oneDNN's C API, as far as inference needs it: the very library that Paddle ships and runs its INT8 ops on.

Names, numbers and meaning are those of oneDNN 3.6 (include/oneapi/dnnl/dnnl.h, dnnl_types.h); its C interface is
stable within a major version. Activations are NumPy arrays, whose strides are their layout; only packed weights have a
layout of oneDNN's own.
"""

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import ModelError

__all__ = [
    "ARG",
    "BINARY",
    "DTYPES",
    "ELTWISE",
    "POOLING",
    "Attributes",
    "Layout",
    "Memory",
    "Primitive",
    "RefusedError",
    "any_layout",
    "call_of",
    "flat",
    "layout_of",
    "library",
    "memory_of",
    "pack",
    "primitive",
    "set_threads",
    "stream",
]

Array = NDArray[Any]
_Dims = ctypes.c_int64 * 12
_MAJOR = 3

DTYPES = {"float32": 3, "int32": 4, "int8": 5, "uint8": 6}
POOLING = {"max": 511, "avg": 767, "avg exclusive": 1023}
BINARY = {"elementwise_add": 131056, "elementwise_mul": 131057, "elementwise_sub": 131061}
# What Paddle calls an activation -> oneDNN's algorithm.
ELTWISE = {
    "relu": 32,
    "tanh": 33,
    "elu": 34,
    "abs": 36,
    "sqrt": 37,
    "linear": 38,
    "hard_sigmoid": 40,
    "sigmoid": 41,
    "gelu_tanh": 43,
    "swish": 44,
    "clip": 46,
    "gelu_erf": 49,
    "mish": 51,
    "hard_swish": 52,
}
ARG = {
    "src": 1,
    "src1": 2,
    "src_iter": 2,
    "src_iter_c": 3,
    "dst": 17,
    "weights": 33,
    "weights_iter": 34,
    "bias": 41,
    "mean": 49,
    "variance": 50,
    "scale": 51,
    "shift": 52,
    "scratchpad": 80,
    "several": 1024,
    "scales": 4096,
    "zero_points": 8192,
    "post_op": 32768,  # times (its place + 1)
}
_INFERENCE, _DIRECT, _SOFTMAX, _NEAREST = 96, 1, 196608, 196592
_GLOBAL_STATISTICS, _SCALE_AND_SHIFT, _RELU = 1, 2 | 4, 8
_QUERY_WEIGHTS, _QUERY_SCRATCHPAD = 131, 136
_LEFT_TO_RIGHT, _RIGHT_TO_LEFT = 1, 2
_BY_GATE_AND_CHANNEL = 1 << 3 | 1 << 4  # of weights [layer, direction, input, gate, output]
_USER_SCRATCHPAD = 1
_FORMAT_ANY = 1


class RefusedError(Exception):
    """oneDNN has no kernel for what was asked."""


class _ExecArg(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_int), ("memory", ctypes.c_void_p)]


@cache
def library() -> ctypes.CDLL:
    """Paddle's oneDNN. Raises ModelError when it isn't there or is of another major version."""
    found = importlib.util.find_spec("paddle")
    places = [Path(place) / "libs" for place in (found.submodule_search_locations or [])] if found else []
    path = next((file for place in places for file in sorted(place.glob("libdnnl.so*"))), None)
    if path is None:
        raise ModelError("Paddle's oneDNN (libdnnl.so) is not where Paddle keeps its libraries")
    loaded = ctypes.CDLL(str(path))
    loaded.dnnl_version.restype = ctypes.POINTER(ctypes.c_int)
    if loaded.dnnl_version()[0] != _MAJOR:
        raise ModelError(f"{path}: oneDNN {loaded.dnnl_version()[0]}, but {_MAJOR} is needed")
    loaded.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    loaded.dnnl_memory_desc_get_size.argtypes = [ctypes.c_void_p]
    loaded.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
    loaded.dnnl_primitive_desc_query_md.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    return loaded


@cache
def _engine() -> ctypes.c_void_p:
    return _made("dnnl_engine_create", ctypes.c_int(1), ctypes.c_size_t(0))


@cache
def stream() -> ctypes.c_void_p:
    """The one stream that everything runs on, in order."""
    return _made("dnnl_stream_create", _engine(), ctypes.c_uint(1))


@cache
def _openmp() -> ctypes.CDLL:
    path = next(Path(library()._name).parent.glob("libiomp5.so*"), None)
    if path is None:
        raise ModelError("Paddle's OpenMP (libiomp5.so) is not where Paddle keeps its libraries")
    return ctypes.CDLL(str(path))


def set_threads(count: int) -> None:
    """How many threads kernels use that this thread makes and runs from here on."""
    _openmp().omp_set_num_threads(count)


def _call(name: str, *arguments: Any) -> None:
    status = getattr(library(), name)(*arguments)
    if status:
        raise RefusedError(f"{name.removeprefix('dnnl_')}: status {status}")


def _made(name: str, *arguments: Any) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(name, ctypes.byref(made), *arguments)
    return made


# --- layouts and memory


class _Owned:
    """A handle of oneDNN's that goes with its Python object."""

    def __init__(self, handle: ctypes.c_void_p, destroy: str) -> None:
        self.handle, self._destroy = handle, getattr(library(), destroy)

    def __del__(self) -> None:
        self._destroy(self.handle)


class Layout(_Owned):
    def __init__(self, handle: ctypes.c_void_p) -> None:
        super().__init__(handle, "dnnl_memory_desc_destroy")

    @property
    def bytes(self) -> int:
        return int(library().dnnl_memory_desc_get_size(self.handle))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and bool(library().dnnl_memory_desc_equal(self.handle, other.handle))

    __hash__ = None  # type: ignore[assignment]


def layout_of(array: Array) -> Layout:
    """An array's own layout: its shape and strides."""
    strides = [stride // array.itemsize for stride in array.strides]
    return Layout(
        _made(
            "dnnl_memory_desc_create_with_strides",
            ctypes.c_int(array.ndim),
            _Dims(*array.shape),
            ctypes.c_int(DTYPES[array.dtype.name]),
            _Dims(*strides),
        )
    )


def any_layout(shape: Sequence[int], dtype: str) -> Layout:
    """A layout that the kernel may choose."""
    kind, tag = ctypes.c_int(DTYPES[dtype]), ctypes.c_int(_FORMAT_ANY)
    return Layout(_made("dnnl_memory_desc_create_with_tag", ctypes.c_int(len(shape)), _Dims(*shape), kind, tag))


class Memory(_Owned):
    """A place in memory with its layout. It keeps `holder`, whose bytes these are, alive."""

    def __init__(self, layout: Layout, holder: Array) -> None:
        self.layout, self.holder = layout, holder
        pointer = ctypes.c_void_p(holder.ctypes.data)
        super().__init__(_made("dnnl_memory_create", layout.handle, _engine(), pointer), "dnnl_memory_destroy")

    def move(self, holder: Array, offset: int = 0) -> None:
        """Look at other bytes in the same layout, from `offset` bytes behind the array's first."""
        self.holder = holder
        _call("dnnl_memory_set_data_handle", self.handle, ctypes.c_void_p(holder.ctypes.data + offset))


def memory_of(array: Array) -> Memory:
    return Memory(layout_of(array), array)


def flat(values: Sequence[float] | Array, dtype: str = "float32") -> Memory:
    """A vector of constants."""
    return memory_of(np.ascontiguousarray(values, dtype).reshape(-1))


# --- primitives


@dataclass
class Attributes:
    """What a kernel does besides its own work.

    `scales`: operand -> mask of the dimensions along which its scales differ. `zero_points`: operands whose 0 is stored
    as another integer. `post`: what happens to the result, in this order: ("sum", scale, dtype) adds what is in the
    destination, (activation, alpha, beta) and ("add", layout) speak for themselves. `recurrent`: scale and shift of a
    recurrent layer's data, and the scales of its weights, one for each output of each gate.
    """

    scales: Mapping[str, int] = field(default_factory=dict)
    zero_points: Sequence[str] = ()
    post: Sequence[tuple[Any, ...]] = ()
    recurrent: tuple[float, float, Array] | None = None

    def build(self) -> _Owned:
        made = _Owned(_made("dnnl_primitive_attr_create"), "dnnl_primitive_attr_destroy")
        _call("dnnl_primitive_attr_set_scratchpad_mode", made.handle, ctypes.c_int(_USER_SCRATCHPAD))
        for operand, mask in self.scales.items():
            _call("dnnl_primitive_attr_set_scales_mask", made.handle, ctypes.c_int(ARG[operand]), ctypes.c_int(mask))
        for operand in self.zero_points:
            _call("dnnl_primitive_attr_set_zero_points_mask", made.handle, ctypes.c_int(ARG[operand]), ctypes.c_int(0))
        if self.recurrent:
            *data, of_weights = self.recurrent
            _call("dnnl_primitive_attr_set_rnn_data_qparams", made.handle, *map(ctypes.c_float, data))
            given = (ctypes.c_float * of_weights.size)(*of_weights)
            along = ctypes.c_int64(of_weights.size), ctypes.c_int(_BY_GATE_AND_CHANNEL)
            _call("dnnl_primitive_attr_set_rnn_weights_qparams", made.handle, *along, given)
        if not self.post:
            return made
        chain = _Owned(_made("dnnl_post_ops_create"), "dnnl_post_ops_destroy")
        for kind, *rest in self.post:
            if kind == "sum":
                scale, dtype = rest
                offset, stored = ctypes.c_int32(0), ctypes.c_int(DTYPES[dtype])
                _call("dnnl_post_ops_append_sum", chain.handle, ctypes.c_float(scale), offset, stored)
            elif kind == "add":
                number = ctypes.c_int(BINARY["elementwise_add"])
                _call("dnnl_post_ops_append_binary", chain.handle, number, rest[0].handle)
            else:
                alpha, beta = map(ctypes.c_float, rest)
                _call("dnnl_post_ops_append_eltwise", chain.handle, ctypes.c_int(ELTWISE[kind]), alpha, beta)
        _call("dnnl_primitive_attr_set_post_ops", made.handle, chain.handle)
        return made


class Primitive(_Owned):
    """A kernel, made for its operands' layouts. `weights` is the layout that it wants its weights in, `weights_iter`
    that of a recurrent layer's weights of its state."""

    def __init__(self, description: _Owned) -> None:
        super().__init__(_made("dnnl_primitive_create", description.handle), "dnnl_primitive_destroy")
        self._description = description

    def _asked(self, what: int, number: int = 0) -> Layout:
        found = library().dnnl_primitive_desc_query_md(self._description.handle, what, number)
        return Layout(_made("dnnl_memory_desc_clone", ctypes.c_void_p(found)))

    @property
    def weights(self) -> Layout:
        return self._asked(_QUERY_WEIGHTS)

    @property
    def weights_iter(self) -> Layout:
        return self._asked(_QUERY_WEIGHTS, 1)

    @property
    def scratchpad(self) -> Layout:
        return self._asked(_QUERY_SCRATCHPAD)


def _handle(layout: Layout | None) -> ctypes.c_void_p | None:
    return layout.handle if layout else None


def primitive(kind: str, attributes: Attributes, *operands: Any) -> Primitive:
    """Create a kernel; `operands` as in the branches below. Raises RefusedError when oneDNN has none."""
    attr = attributes.build()
    inference, engine = ctypes.c_int(_INFERENCE), _engine()
    arguments: tuple[Any, ...]
    if kind == "convolution":  # src, weights, bias, dst, strides, dilations, pads before, pads behind
        handles = [_handle(layout) for layout in operands[:4]]
        arguments = (inference, ctypes.c_int(_DIRECT), *handles, *(_Dims(*values) for values in operands[4:]))
    elif kind == "inner_product":  # src, weights, bias, dst
        arguments = (inference, *(_handle(layout) for layout in operands))
    elif kind == "matmul":  # src, weights, bias, dst
        arguments = tuple(_handle(layout) for layout in operands)
    elif kind == "pooling":  # algorithm, src, dst, strides, kernel, dilations, pads before, pads behind
        algorithm, src, dst, *sizes = operands
        windows = [_Dims(*values) for values in sizes]
        arguments = (inference, ctypes.c_int(POOLING[algorithm]), src.handle, dst.handle, *windows)
    elif kind == "eltwise":  # activation, src, dst, alpha, beta
        name, src, dst, alpha, beta = operands
        factors = (ctypes.c_float(alpha), ctypes.c_float(beta))
        arguments = (inference, ctypes.c_int(ELTWISE[name]), src.handle, dst.handle, *factors)
    elif kind == "binary":  # op type, src, src1, dst
        name, *layouts = operands
        arguments = (ctypes.c_int(BINARY[name]), *(layout.handle for layout in layouts))
    elif kind == "softmax":  # src, dst, axis
        src, dst, axis = operands
        arguments = (inference, ctypes.c_int(_SOFTMAX), src.handle, dst.handle, ctypes.c_int(axis))
    elif kind == "layer_normalization":  # src, dst, epsilon
        src, dst, epsilon = operands
        flags = ctypes.c_uint(_SCALE_AND_SHIFT)
        arguments = (inference, src.handle, dst.handle, None, ctypes.c_float(epsilon), flags)
    elif kind == "batch_normalization":  # src, dst, epsilon, whether a ReLU follows
        src, dst, epsilon, relu = operands
        flags = ctypes.c_uint(_GLOBAL_STATISTICS | _SCALE_AND_SHIFT | (_RELU if relu else 0))
        arguments = (inference, src.handle, dst.handle, ctypes.c_float(epsilon), flags)
    elif kind == "resampling":  # src, dst: to the nearest neighbour
        src, dst = operands
        arguments = (inference, ctypes.c_int(_NEAREST), None, src.handle, dst.handle)
    elif kind in ("gru", "lstm"):  # from right to left, src, state (and cell), weights, weights of the state, bias, dst
        reverse, *layouts = operands
        src, *states, weights, of_state, bias, dst = (layout.handle for layout in layouts)
        extra = [None, None] if kind == "lstm" else []  # peephole, projection
        way, last = ctypes.c_int(_RIGHT_TO_LEFT if reverse else _LEFT_TO_RIGHT), [None] * len(states)
        places = (src, *states, weights, of_state, *extra, bias, dst, *last)
        arguments = (inference, way, *places, ctypes.c_uint(0))
    elif kind == "concat":  # sources, dst, axis
        sources, dst, axis = operands
        several = (ctypes.c_void_p * len(sources))(*(source.handle for source in sources))
        made = _made(
            "dnnl_concat_primitive_desc_create",
            engine,
            dst.handle,
            ctypes.c_int(len(sources)),
            ctypes.c_int(axis),
            several,
            attr.handle,
        )
        return Primitive(_Owned(made, "dnnl_primitive_desc_destroy"))
    elif kind == "reorder":  # src, dst
        src, dst = operands
        made = _made("dnnl_reorder_primitive_desc_create", src.handle, engine, dst.handle, engine, attr.handle)
        return Primitive(_Owned(made, "dnnl_primitive_desc_destroy"))
    else:
        raise AssertionError(f"unreachable: {kind}")
    name = kind if kind in ("matmul", "binary") else f"{kind}_forward"
    made = _made(f"dnnl_{name}_primitive_desc_create", engine, *arguments, attr.handle)
    return Primitive(_Owned(made, "dnnl_primitive_desc_destroy"))


def call_of(kernel: Primitive, operands: Mapping[int, Memory]) -> tuple[Any, tuple[Any, ...]]:
    """A call that runs a kernel, as (function, arguments): the function gives 0 when it went well."""
    pairs = (_ExecArg * len(operands))(*(_ExecArg(arg, memory.handle) for arg, memory in operands.items()))
    return library().dnnl_primitive_execute, (kernel.handle, stream(), ctypes.c_int(len(operands)), pairs)


def pack(array: Array, wanted: Layout, attributes: Attributes | None = None) -> Memory:
    """An array in a layout of oneDNN's own."""
    holder = np.empty(wanted.bytes + 64, np.uint8)
    holder = holder[-holder.ctypes.data % 64 :][: wanted.bytes]
    source, packed = memory_of(array), Memory(wanted, holder)
    kernel = primitive("reorder", attributes or Attributes(), source.layout, wanted)
    scratch = kernel.scratchpad
    spare = Memory(scratch, np.empty(max(scratch.bytes, 1), np.uint8))
    function, arguments = call_of(kernel, {ARG["src"]: source, ARG["dst"]: packed, ARG["scratchpad"]: spare})
    if function(*arguments):
        raise RefusedError("reorder of weights")
    _call("dnnl_stream_wait", stream())
    return packed
