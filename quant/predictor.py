"""One class over paddle.inference for every precision. Everything above it sees a callable, arrays -> arrays."""

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from quant.errors import DataError, ModelError
from quant.graph import files_of, op_types

os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's C++ log would drown ours

import paddle
import paddle.inference as engine
from paddle import CPUPlace
from paddle.base.core import DenseTensor

__all__ = ["BROKEN_ONEDNN", "PRECISIONS", "Precision", "Predictor", "Settings", "log_kernels"]

Arrays = Mapping[str, NDArray[Any]]
Precision = Literal["fp32", "quant", "int8", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "quant", "int8", "bf16")

# Op types whose oneDNN kernel is broken in the supported Paddle: kept off oneDNN at every precision. Each entry has
# a test that shows the fault (tests/unit/test_predictor.py), so that it can go when Paddle is mended.
BROKEN_ONEDNN = {"pad": "corrupts the heap: abort or hang, at any batch, in float32 too"}


@dataclass(frozen=True)
class Settings:
    """How to run a model.

    `precision` names what the model is and how it should run; an INT8 model needs no option beyond oneDNN.
    `cache_capacity` bounds oneDNN's primitives kept per input shape (Paddle's default is 10).
    `onednn` and `optimise` (graph fusion) exist to look for the fastest FP32 baseline.
    """

    precision: Precision = "fp32"
    threads: int = 1
    cache_capacity: int = 10
    onednn: bool = True
    optimise: bool = True


class Predictor:
    """A loaded model: a callable from named inputs to outputs; also a context manager.

    Inputs aren't copied: each array must stay alive and unchanged during the call. Outputs are new arrays.
    Raises ModelError when Paddle refuses the model, DataError when an input is missing, or has a wrong dtype.
    A damaged model can end the process: load what isn't yours in a child (`quant.isolate`).
    """

    def __init__(self, directory: Path, settings: Settings = Settings()) -> None:
        files = files_of(directory)
        if files.params is None:
            config = engine.Config(str(directory))
        else:
            config = engine.Config(str(files.program), str(files.params))
        config.disable_gpu()
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(settings.threads)
        config.switch_ir_optim(settings.optimise)
        if settings.optimise:
            config.enable_memory_optim()  # fewer pages touched: MobileNetV1 FP32 5%, INT8 9% faster, same outputs
        if settings.onednn:
            config.enable_onednn()
            config.set_onednn_cache_capacity(settings.cache_capacity)
            types = op_types(files.program)
            if types & BROKEN_ONEDNN.keys():
                config.set_onednn_op(types - BROKEN_ONEDNN.keys())
            if settings.precision == "bf16":
                config.enable_onednn_bfloat16()
        else:
            config.disable_onednn()
        try:
            self._engine: Any = engine.create_predictor(config)
        except Exception as error:  # Paddle's own error types are plain Exceptions
            raise ModelError(f"{directory}: Paddle can't load this model ({_last_line(error)})") from error
        self.directory = directory
        self.settings = settings
        self.inputs: tuple[str, ...] = tuple(self._engine.get_input_names())
        self.outputs: tuple[str, ...] = tuple(self._engine.get_output_names())
        self._in = {name: self._engine.get_input_handle(name) for name in self.inputs}
        self._out = {name: self._engine.get_output_handle(name) for name in self.outputs}
        self._held: list[DenseTensor] = []

    def __call__(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        self.feed(arrays)
        self.run()
        return self.read()

    def feed(self, arrays: Arrays) -> None:
        """Point the inputs at `arrays`, without a copy. Raises DataError when one is missing."""
        if missing := [name for name in self.inputs if name not in arrays]:
            raise DataError(f"{self.directory}: no data for model input {missing[0]!r}, only for {sorted(arrays)}")
        self._held = []
        for name, handle in self._in.items():
            tensor = DenseTensor()
            tensor.set(np.ascontiguousarray(arrays[name]), CPUPlace(), True)
            handle.share_external_data(tensor)
            self._held.append(tensor)

    def run(self) -> None:
        """Run on what `feed` set: the part that is timed."""
        try:
            self._engine.run()
        except Exception as error:
            raise ModelError(f"{self.directory}: Paddle can't run this model ({_last_line(error)})") from error

    def read(self) -> dict[str, NDArray[Any]]:
        """The outputs of the last run, copied."""
        return {name: handle.copy_to_cpu() for name, handle in self._out.items()}

    def close(self) -> None:
        """Give the model's memory back; the predictor can't be used afterwards."""
        self._in, self._out, self._held, self._engine = {}, {}, [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def log_kernels(on: bool) -> None:
    """Have oneDNN print each kernel it runs, with its time, to stdout (or stop that)."""
    library = next((Path(paddle.__file__).parent / "libs").glob("libdnnl.so*"))
    ctypes.CDLL(str(library)).dnnl_set_verbose(1 if on else 0)


def _last_line(error: Exception) -> str:
    """The line of Paddle's many that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(\w+Error: )?\(\w+\) ", line)]
    return (told or lines or [type(error).__name__])[-1].replace("\x1b", "")[:300]
