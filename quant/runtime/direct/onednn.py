"""oneDNN's C API, as far as inference needs it: the very library that Paddle ships and runs its INT8 ops on.

Names, numbers and meaning are those of oneDNN 3.6 (include/oneapi/dnnl/dnnl.h, dnnl_types.h); its C interface is
stable within a major version. Activations are NumPy arrays, whose strides are their layout; only packed weights have a
layout of oneDNN's own.
"""

import ctypes
import importlib.util
from collections.abc import Sequence
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
    "Layout",
    "Memory",
    "Owned",
    "RefusedError",
    "any_layout",
    "call",
    "engine",
    "flat",
    "layout_of",
    "library",
    "made",
    "memory_of",
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
_FORMAT_ANY = 1


class RefusedError(Exception):
    """oneDNN has no kernel for what was asked."""


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
def engine() -> ctypes.c_void_p:
    """The CPU."""
    return made("dnnl_engine_create", ctypes.c_int(1), ctypes.c_size_t(0))


@cache
def stream() -> ctypes.c_void_p:
    """The one stream that everything runs on, in order."""
    return made("dnnl_stream_create", engine(), ctypes.c_uint(1))


@cache
def _openmp() -> ctypes.CDLL:
    path = next(Path(library()._name).parent.glob("libiomp5.so*"), None)
    if path is None:
        raise ModelError("Paddle's OpenMP (libiomp5.so) is not where Paddle keeps its libraries")
    return ctypes.CDLL(str(path))


def set_threads(count: int) -> None:
    """How many threads kernels use that this thread makes and runs from here on."""
    _openmp().omp_set_num_threads(count)


def call(name: str, *arguments: Any) -> None:
    """Call a function of oneDNN's that gives a status. Raises RefusedError unless it is success."""
    status = getattr(library(), name)(*arguments)
    if status:
        raise RefusedError(f"{name.removeprefix('dnnl_')}: status {status}")


def made(name: str, *arguments: Any) -> ctypes.c_void_p:
    """The handle that a function of oneDNN's makes; `arguments` are those behind it. Raises RefusedError."""
    handle = ctypes.c_void_p()
    call(name, ctypes.byref(handle), *arguments)
    return handle


# --- layouts and memory


class Owned:
    """A handle of oneDNN's that goes with its Python object; one that couldn't be made has none."""

    handle: ctypes.c_void_p | None = None

    def __init__(self, handle: ctypes.c_void_p, destroy: str) -> None:
        self._destroy = getattr(library(), destroy)
        self.handle = handle

    def __del__(self) -> None:
        if self.handle is not None:
            self._destroy(self.handle)


class Layout(Owned):
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
        made(
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
    return Layout(made("dnnl_memory_desc_create_with_tag", ctypes.c_int(len(shape)), _Dims(*shape), kind, tag))


class Memory(Owned):
    """A place in memory with its layout. It keeps `holder`, whose bytes these are, alive."""

    def __init__(self, layout: Layout, holder: Array) -> None:
        self.layout, self.holder = layout, holder
        pointer = ctypes.c_void_p(holder.ctypes.data)
        super().__init__(made("dnnl_memory_create", layout.handle, engine(), pointer), "dnnl_memory_destroy")

    def move(self, holder: Array, offset: int = 0) -> None:
        """Look at other bytes in the same layout, from `offset` bytes behind the array's first."""
        self.holder = holder
        call("dnnl_memory_set_data_handle", self.handle, ctypes.c_void_p(holder.ctypes.data + offset))


def memory_of(array: Array) -> Memory:
    return Memory(layout_of(array), array)


def flat(values: Sequence[float] | Array, dtype: str = "float32") -> Memory:
    """A vector of constants."""
    return memory_of(np.ascontiguousarray(values, dtype).reshape(-1))
