"""One class over paddle.inference for every precision. Everything above it sees a callable, arrays -> arrays."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from quant.datasets.columns import Column, Ragged, values_of
from quant.errors import DataError, ModelError, UnsupportedError
from quant.ir.graph import files_of, is_pir, layouts_of, load_dir, op_types, run_passes, save_dir, sequences_of
from quant.ir.paddle_errors import reason
from quant.ir.passes import NORMALISE, fuse_kernels
from quant.runtime.direct.onednn import library, set_threads
from quant.runtime.direct.program import Plan, Program

os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's C++ log would drown ours

import paddle.inference as engine
from paddle import CPUPlace, assign
from paddle.base.core import DenseTensor

__all__ = [
    "BROKEN_ONEDNN",
    "EXECUTORS",
    "PRECISIONS",
    "Executor",
    "Precision",
    "Predictor",
    "Settings",
    "log_kernels",
    "nameless",
]

Arrays = Mapping[str, Column]
Seen = Callable[[str, str, NDArray[Any]], None]  # op type, variable, values
Precision = Literal["fp32", "quant", "int8", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "quant", "int8", "bf16")

# Op types whose oneDNN kernel is broken in the supported Paddle: kept off oneDNN at every precision. Each entry has
# a test that shows the fault (tests/unit/test_predictor.py), so that it can go when Paddle is mended.
_CHANNELS_LAST = {"NHWC", "NDHWC", "NLC"}
BROKEN_ONEDNN = {"pad": "corrupts the heap: abort or hang, at any batch, in float32 too"}


# Ops that run, or are fused into ops that run, on oneDNN's recurrent kernels. Paddle keys what it keeps of those by
# the longest sequence only. A batch of as many steps and another number of sequences then reads out of bounds: wrong
# results, or the end of the process (tests/unit/test_predictor.py shows it). So an engine is used for one number of
# sequences. And per total number of steps it prepares weights anew, unless it may keep everything (capacity 0): a
# sentence of a new length would take four times as long. So it keeps everything, and is replaced before that is much.
RECURRENT = {"gru", "lstm", "fusion_gru", "fusion_lstm", "multi_gru"}
_KEEP_ALL = 0
_ENGINES = 4  # numbers of sequences at a time
# From how many sequences on an LSTM gains by a second thread; a GRU never does. Threads wait for each other at each
# step, so it depends on how fast the cores hear of each other, which changes on shared machines. Measured on one of
# those, in a good hour and a bad one: LAC's GRU 1.02 and 0.91 at 50 sequences (1.05 at 400 in a good one), the
# handwriting LSTM 0.70 at 4, 1.38 and 0.79 at 16, 1.58 at 50.
_SHARED = {"lstm": 50, "fusion_lstm": 50}
_LENGTHS = 100  # longest sequences that one engine has met; a GRU of two layers keeps 1.7 MB for each


Executor = Literal["auto", "paddle", "direct"]
EXECUTORS: tuple[Executor, ...] = ("auto", "paddle", "direct")


@dataclass(frozen=True)
class Settings:
    """How to run a model.

    `precision` names what the model is and how it should run; an INT8 model needs no option beyond oneDNN.
    `cache_capacity` bounds what is kept per input shape (Paddle's default is 10); recurrent models keep oneDNN's
    primitives in another way (see RECURRENT).
    `onednn` and `optimise` (graph fusion) exist to look for the fastest FP32 baseline. A channels-last program isn't
    optimised: Paddle's passes make another one of it (tests/unit/test_channels_first.py shows it).
    `executor`: who calls the kernels. "paddle" is what any deployment of Paddle Inference does, "direct" is
    direct.program: the same kernels, the same outputs, less time between them. "auto" is "direct" for INT8 models all
    of
    whose ops that knows, else "paddle"; and "paddle" for batches of several sequences of unequal length.
    """

    precision: Precision = "fp32"
    threads: int = 1
    cache_capacity: int = 10
    onednn: bool = True
    optimise: bool = True
    executor: Executor = "auto"


class Predictor:
    """A loaded model: a callable from named inputs to outputs; also a context manager.

    An input or output of unequal sequences is a Ragged, any other an array. Inputs aren't copied: each array must
    stay alive and unchanged during the call. Outputs are new arrays. `executor` is the one in use.
    Raises ModelError when Paddle refuses the model, DataError when an input is missing, or has a wrong dtype.
    A damaged model can end the process: load what isn't yours in a child (`quant.process.isolate`).
    """

    def __init__(self, directory: Path, settings: Settings = Settings()) -> None:
        self.directory = directory
        self.settings = settings
        self._direct = self._directly()
        self._paddle: _Paddle | None = None
        self._engine: _Direct | _Paddle = self._direct or self._by_paddle()
        self.inputs: tuple[str, ...] = self._engine.inputs
        self.outputs: tuple[str, ...] = self._engine.outputs
        program = files_of(directory).program
        self._sequences = sequences_of(program).intersection(self.inputs) if op_types(program) & RECURRENT else set()

    def _directly(self) -> "_Direct | None":
        settings = self.settings
        plain = settings.onednn and settings.optimise and settings.precision == "int8"
        if settings.executor == "paddle" or (settings.executor == "auto" and not plain):
            return None
        try:
            return _Direct(self.directory, settings)
        except UnsupportedError as reason:
            self._must_not_insist(reason)
            return None

    def _by_paddle(self) -> "_Paddle":
        if self._paddle is None:
            self._paddle = _Paddle(self.directory, self.settings)
        return self._paddle

    def _must_not_insist(self, reason: UnsupportedError) -> None:
        if self.settings.executor == "direct":
            raise UnsupportedError(f"{self.directory}: can't be run directly: {reason}") from reason

    @property
    def executor(self) -> Executor:
        return "direct" if isinstance(self._engine, _Direct) else "paddle"

    @property
    def threads(self) -> int:
        """How many threads the next run takes: those of the settings, or 1 where recurrent layers gain by no more.

        That depends on the number of sequences that were fed last.
        """
        return self._engine.threads

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        self.feed(arrays)
        self.run()
        return self.read()

    def feed(self, arrays: Arrays) -> None:
        """Point the inputs at `arrays`, without a copy. Raises DataError when one is missing, or no sequence."""
        if missing := [name for name in self.inputs if name not in arrays]:
            raise DataError(f"{self.directory}: no data for model input {missing[0]!r}, only for {sorted(arrays)}")
        for name in self._sequences:  # Paddle's recurrent kernels end the process on these
            column = arrays[name]
            if not isinstance(column, Ragged):
                raise DataError(f"{self.directory}: model input {name!r} takes sequences (Ragged), not an array")
            if not len(column.values):
                raise DataError(f"{self.directory}: no sequence of model input {name!r} has a step")
        self._engine = self._fed_directly(arrays) or self._by_paddle()
        if self._engine is self._paddle:
            self._engine.feed(arrays)

    def _fed_directly(self, arrays: Arrays) -> "_Direct | None":
        try:
            if self._direct is not None:
                self._direct.feed(arrays)
        except UnsupportedError as reason:
            self._must_not_insist(reason)
            if not isinstance(reason, _SeveralError):
                self._direct = None
            return None
        return self._direct

    def run(self) -> None:
        """Run on what `feed` set: the part that is timed."""
        self._engine.run()

    def watch(self, seen: Callable[[str, str], None]) -> None:
        """Have `seen(op type, variable)` called for each output of each op of later runs, when that op is done.

        Later runs are those on what was fed last. A call costs microseconds, and watching can't be ended.
        """
        self._engine.watch(seen)

    def trace(self, seen: Seen) -> None:
        """Run on what `feed` set, with `seen(op type, variable, values)` called when an op has written a variable.

        The values are a copy, whatever their layout in memory. Not on a predictor that is watched.
        """
        self._engine.trace(seen)

    def read(self) -> dict[str, Any]:
        """The outputs of the last run, copied: arrays, or Ragged for sequences."""
        return self._engine.read()

    def close(self) -> None:
        """Give the model's memory back; the predictor can't be used afterwards."""
        for one in (self._direct, self._paddle):
            if one is not None:
                one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SeveralError(UnsupportedError):
    """Several sequences at once, which are not run directly: one after the other wastes what a kernel could do."""


class _Direct:
    """A model run by direct.program. Raises UnsupportedError where that can't; _SeveralError where it can't this
    time."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        if settings.precision not in ("fp32", "int8"):
            raise UnsupportedError(f"precision {settings.precision}")
        recurrent = bool(op_types(files_of(directory).program) & RECURRENT)
        self.directory = directory
        self.threads = 1 if recurrent else settings.threads  # see _SHARED
        # Converting normalised an INT8 model, but didn't fuse its FP32 ops: Paddle's executor does that on loading.
        passes = (*NORMALISE, fuse_kernels) if settings.precision == "fp32" else (fuse_kernels,)
        capacity = max(settings.cache_capacity, _LENGTHS) if recurrent else settings.cache_capacity
        self.program = Program(run_passes(load_dir(directory), passes), capacity)
        self.inputs, self.outputs = self.program.graph.feeds, self.program.graph.fetches
        self.plan: Plan | None = None
        self.held: dict[str, Any] = {}

    def feed(self, arrays: Arrays) -> None:
        variables = self.program.graph.vars
        sequences = [name for name in self.inputs if isinstance(arrays[name], Ragged)]
        if any(len(arrays[name]) != 1 for name in sequences):
            raise _SeveralError("several sequences at a time")
        held = {name: np.ascontiguousarray(values_of(arrays[name])) for name in self.inputs}
        for name, array in held.items():
            if array.dtype != variables[name].dtype:
                raise UnsupportedError(f"input {name!r} is {array.dtype}, not {variables[name].dtype}")
            if (name in sequences) != bool(variables[name].lod_level) or not array.size:
                raise UnsupportedError(f"input {name!r} is no sequence of steps, or should be none")
        set_threads(self.threads)  # oneDNN makes kernels for as many as there are
        self.plan = self.program.plan(held, sequences)
        self.plan.feed(held)
        self.held = held

    def run(self) -> None:
        assert self.plan is not None
        set_threads(self.threads)
        try:
            self.plan.run()
        except (DataError, ModelError) as error:
            raise type(error)(f"{self.directory}: {error}") from error

    def watch(self, seen: Callable[[str, str], None]) -> None:
        assert self.plan is not None
        self.plan.watch(seen)

    def trace(self, seen: Seen) -> None:
        assert self.plan is not None
        set_threads(self.threads)
        try:
            self.plan.trace(seen)
        except (DataError, ModelError) as error:
            raise type(error)(f"{self.directory}: {error}") from error

    def read(self) -> dict[str, Any]:
        assert self.plan is not None
        return dict(self.plan.read())

    def close(self) -> None:
        self.plan, self.held = None, {}
        self.program.close()


class _Paddle:
    """A model run by Paddle's own predictor: for recurrent models, by one for each number of sequences."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        types = op_types(files_of(directory).program)
        self.directory, self.settings = directory, settings
        self._recurrent = bool(types & RECURRENT) and settings.onednn
        self._shared = max((_SHARED.get(type, math.inf) for type in types & RECURRENT), default=1)
        self._alone = replace(settings, threads=1)
        # A thread that is never used would slow a small model down (quant.process.isolate.Child), so it isn't started
        # yet.
        self._engine: Any = _Engine(directory, self._alone if self._recurrent else settings)
        self._engines = {0: self._engine}  # number of sequences -> its engine; 0: any, the first one to be used
        self.inputs: tuple[str, ...] = self._engine.inputs
        self.outputs: tuple[str, ...] = self._engine.outputs
        self._held: list[DenseTensor] = []

    @property
    def threads(self) -> int:
        return int(self._engine.threads)

    def feed(self, arrays: Arrays) -> None:
        if self._recurrent:
            columns = [arrays[name] for name in self.inputs]
            ragged = [column for column in columns if isinstance(column, Ragged)]
            longest = int(ragged[0].lengths.max()) if ragged else 0
            self._engine = self._engine_for(len((ragged or columns)[0]), longest)
        self._held = []
        for name, handle in self._engine.feeds.items():
            column = arrays[name]
            tensor, values = DenseTensor(), np.ascontiguousarray(values_of(column))
            try:
                tensor.set(values, CPUPlace(), True)
                handle.share_external_data(tensor)
            except Exception as error:  # Paddle's own error types are plain Exceptions
                why = f"{values.dtype} can't be fed to input {name!r} ({reason(error)})"
                raise DataError(f"{self.directory}: {why}") from error
            if isinstance(column, Ragged):
                handle.set_lod([column.offsets.tolist()])
            self._held.append(tensor)

    def _engine_for(self, sequences: int, longest: int) -> "_Engine":
        """The engine for a number of sequences; those used least recently, and those that keep much, are dropped."""
        settings = self.settings if sequences >= self._shared else self._alone
        found = self._engines.pop(sequences, None) or (self._engines.pop(0, None) if settings == self._alone else None)
        if found is not None and len(found.lengths | {longest}) > _LENGTHS:
            found = None
        while len(self._engines) >= _ENGINES:
            self._engines.pop(next(iter(self._engines)))
        found = found or _Engine(self.directory, settings)
        found.lengths.add(longest)
        self._engines[sequences] = found  # the last is the one used most recently
        return found

    def run(self) -> None:
        try:
            self._engine.native.run()
        except Exception as error:
            raise ModelError(f"{self.directory}: Paddle can't run this model ({reason(error)})") from error

    def watch(self, seen: Callable[[str, str], None]) -> None:
        self._engine.native.register_output_hook(lambda op, variable, tensor: seen(op, variable))

    def trace(self, seen: Seen) -> None:
        if not self._engine.hooked:  # for good: a hook can't be taken off again
            self._engine.native.register_output_hook(self._engine.told)
            self._engine.hooked = True
        self._engine.seen = seen
        try:
            self.run()
        finally:
            self._engine.seen = None

    def read(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, handle in self._engine.fetches.items():
            try:
                values, lod = handle.copy_to_cpu(), handle.lod()
            except Exception as error:  # nothing was written to it
                raise ModelError(f"{self.directory}: no output {name!r} ({reason(error)})") from error
            result[name] = Ragged(values, np.array(lod[-1], np.int64)) if lod else values
        return result

    def close(self) -> None:
        self._engine, self._engines, self._held = None, {}, []


@contextmanager
def _legacy(directory: Path) -> Iterator[Path]:
    """A model's directory in Paddle's legacy format, which a predictor reads once, when it is made."""
    if not is_pir(files_of(directory).program):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="quant-pir-") as scratch:
        save_dir(load_dir(directory), Path(scratch))
        yield Path(scratch)


def _config(directory: Path, settings: Settings) -> Any:
    files = files_of(directory)
    types = op_types(files.program)
    if files.params is None:
        config = engine.Config(str(directory))
    else:
        config = engine.Config(str(files.program), str(files.params))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(settings.threads)
    # Paddle's fusion passes take channels last for channels first: it refuses the model, or puts out something else.
    optimise = settings.optimise and layouts_of(files.program).isdisjoint(_CHANNELS_LAST)
    config.switch_ir_optim(optimise)
    if optimise:
        config.enable_memory_optim()  # fewer pages touched: MobileNetV1 FP32 5%, INT8 9% faster, same outputs
    if settings.onednn:
        config.enable_onednn()
        config.set_onednn_cache_capacity(_KEEP_ALL if types & RECURRENT else settings.cache_capacity)
        if types & BROKEN_ONEDNN.keys():
            config.set_onednn_op(types - BROKEN_ONEDNN.keys())
        if settings.precision == "bf16":
            config.enable_onednn_bfloat16()
    else:
        config.disable_onednn()
    return config


class _Engine:
    """Paddle's predictor with its handles. `lengths`: the longest sequences of the batches that it has run."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        try:
            # A configuration of Paddle's serves one predictor only.
            with _legacy(directory) as place:
                self.native: Any = engine.create_predictor(_config(place, settings))
        except Exception as error:  # Paddle's own error types are plain Exceptions
            raise ModelError(f"{directory}: Paddle can't load this model ({reason(error)})") from error
        self.inputs: tuple[str, ...] = tuple(self.native.get_input_names())
        self.outputs: tuple[str, ...] = tuple(self.native.get_output_names())
        self.feeds = {name: self.native.get_input_handle(name) for name in self.inputs}
        self.fetches = {name: self.native.get_output_handle(name) for name in self.outputs}
        self.threads = settings.threads
        self.lengths: set[int] = set()
        self.hooked = False
        self.seen: Seen | None = None  # who is told of variables in this run

    def told(self, op: str, variable: str, tensor: Any) -> None:
        """Paddle's hook. What lies in a layout of oneDNN's, `assign` copies to a plain one."""
        if self.seen is None or not tensor._is_initialized():
            return
        try:
            values = assign(tensor).numpy()
        except RuntimeError:  # scratch memory of recurrent kernels, which has less memory than its shape says
            return
        self.seen(op, variable, values)


def log_kernels(on: bool) -> None:
    """Have oneDNN print each kernel it runs, with its time, to stdout (or stop that)."""
    library().dnnl_set_verbose(1 if on else 0)


@contextmanager
def nameless(scratch: Path) -> Iterator[None]:
    """What a predictor says of a model in a scratch directory, without that directory's name, which nobody knows."""
    try:
        yield
    except (ModelError, DataError) as error:
        raise type(error)(str(error).removeprefix(f"{scratch}: ")) from error
