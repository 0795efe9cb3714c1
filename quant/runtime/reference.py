"""FP32 models and simulations, run where they are right: what everything else is measured against.

Two ways are independent of each other. "plain": Paddle's own kernels, op by op, without graph fusion. "onednn":
oneDNN's kernels behind Paddle's fusion passes, two to five times as fast, and wrong for some programs
(docs/paddle-faults.md). Both run the first samples; where they agree, the fast way does the rest, else the plain one,
and `note` says so.

Agreeing is 60 dB between float32 outputs: sums in another order reach that, and in a simulation the few values that
fall to the other side of a rounding boundary. Or, where a network amplifies rounding, no more than 6 dB less than what
the plain way itself makes of inputs (of embedding tables, where inputs are ids) that are 1e-5 off.

A crash of one way ends the process. `isolate.call` hears which way was being run, and runs the job again with
QUANT_KERNELS naming the other one.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from quant.datasets.columns import Column, Ragged, values_of
from quant.errors import ModelError
from quant.ir.fusion import LOOKUPS
from quant.ir.graph import Graph, load_dir, save_dir
from quant.ir.passes.quantizers import WEIGHT_SLOT
from quant.metrics.scores import sqnr
from quant.process.isolate import KERNELS, report_kernels
from quant.runtime.predictor import Arrays, Predictor, Settings

__all__ = ["AGREE_DB", "Reference", "agreement_db", "native", "plain"]

AGREE_DB = 60.0
_MARGIN_DB = 6.0
_JITTER = 1e-5
_CHECKED = 8  # samples that both ways run
_CRASHED = "Paddle crashed on {} kernels: run on {} ones"
_NAMES = {"plain": "its own plain", "onednn": "oneDNN's"}

Way = Literal["plain", "onednn"]


def plain(settings: Settings) -> Settings:
    """The same on Paddle's own kernels, op by op."""
    return replace(settings, onednn=False, optimise=False, executor="paddle")


def native(graph: Graph) -> Graph:
    """Without the marks that put single ops on oneDNN unasked; the same object where there are none."""
    ops = tuple(op.with_attrs(use_mkldnn=False) if op.attr("use_mkldnn", False) else op for op in graph.ops)
    return graph if ops == graph.ops else replace(graph, ops=ops)


def agreement_db(one: Mapping[str, Column], other: Mapping[str, Column]) -> list[float]:
    """SQNR in dB of outputs to outputs, by their order; -inf where shapes or integers differ."""
    return [_agreement_db(due, found) for due, found in zip(one.values(), other.values(), strict=True)]


def _agreement_db(one: Column, other: Column) -> float:
    due, found = values_of(one), values_of(other)
    if due.shape != found.shape or due.dtype != found.dtype:
        return -np.inf
    if due.dtype.kind != "f":
        return np.inf if np.array_equal(due, found) else -np.inf
    if np.array_equal(due, found, equal_nan=True):
        return np.inf
    return float(sqnr(due, found)) if np.isfinite(due).all() and np.isfinite(found).all() else -np.inf


class Reference:
    """A `Predictor` of an FP32 model or a simulation that is right: fed, run and read in the same way.

    `way` and `note` are settled by the first batch; `note` is one line where the fast way isn't used, else "".
    `unfused`: the fast way is oneDNN's kernels op by op, for programs whose inner tensors are read.
    Not to be used from several threads at a time. Raises what `Predictor` raises.
    """

    def __init__(self, directory: Path, settings: Settings, *, unfused: bool = False) -> None:
        self.directory, self.settings = directory, replace(settings, executor="paddle")
        self.graph, self.unfused = load_dir(directory), unfused
        self.scratch = tempfile.TemporaryDirectory(prefix="quant-reference-")
        self.note = ""
        self.way: Way | None = None
        self._forced = os.environ.get(KERNELS, "")
        self._used = self._loaded("onednn" if self._forced == "onednn" else "plain")
        self.inputs, self.outputs = self._used.inputs, self._used.outputs
        self.executor = self._used.executor

    def _loaded(self, way: Way) -> Predictor:
        report_kernels(way)
        if way == "plain":
            off = native(self.graph)
            place = self.directory if off is self.graph else self._saved("plain", off)
            return Predictor(place, plain(self.settings))
        if not self.unfused:
            return Predictor(self.directory, self.settings)
        ops = (op.with_attrs(use_mkldnn=True) if op.type in (*WEIGHT_SLOT, "relu") else op for op in self.graph.ops)
        marked = self._saved("onednn", replace(self.graph, ops=tuple(ops)))
        return Predictor(marked, replace(self.settings, optimise=False))

    def _saved(self, name: str, graph: Graph) -> Path:
        place = Path(self.scratch.name) / name
        place.mkdir()
        save_dir(graph, place)
        return place

    @property
    def threads(self) -> int:
        """As `Predictor.threads`."""
        return self._used.threads

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        self.feed(arrays)
        self.run()
        return self.read()

    def feed(self, arrays: Arrays) -> None:
        if self.way is None:
            self._settle(arrays)
        self._used.feed(arrays)

    def run(self) -> None:
        self._used.run()

    def read(self) -> dict[str, Any]:
        return self._used.read()

    def close(self) -> None:
        self._used.close()
        self.scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self, arrays: Arrays) -> None:
        if self._forced in _NAMES:
            other = "plain" if self._forced == "onednn" else "onednn"
            self.note = _CRASHED.format(_NAMES[other], _NAMES[self._forced])
            self.way = "onednn" if self._forced == "onednn" else "plain"
            return
        sample = _first(arrays, self._used.inputs)
        due = _tried(lambda: self._used(sample))
        fast = _tried(lambda: self._loaded("onednn"))
        found = fast if isinstance(fast, ModelError) else _tried(lambda: fast(sample))
        if isinstance(due, ModelError):
            if isinstance(found, ModelError) or isinstance(fast, ModelError):
                raise due
            self._take("onednn", fast)
            self.note = "Paddle's own plain kernels refuse this model: run on oneDNN's, unchecked"
            return
        if isinstance(found, ModelError) or isinstance(fast, ModelError):
            self.note = "oneDNN's kernels refuse this model: run on Paddle's own plain ones"
        else:
            apart = agreement_db(due, found)
            if min(apart, default=np.inf) >= AGREE_DB or self._explained(apart, sample, due):
                self._take("onednn", fast)
                return
            least = min(apart)
            told = "other integers or shapes" if least == -np.inf else f"outputs {least:.0f} dB apart"
            self.note = f"oneDNN's fused kernels gave {told}: run on Paddle's own plain ones, which are right"
        if isinstance(fast, Predictor):
            fast.close()
        self.way = "plain"
        report_kernels("plain")

    def _take(self, way: Way, predictor: Predictor) -> None:
        self._used.close()
        self._used, self.way = predictor, way

    def _explained(self, apart: Sequence[float], sample: Arrays, due: Mapping[str, Column]) -> bool:
        """Whether each output is apart by no more than the network makes of a rounding error."""
        report_kernels("plain")
        jittered = self._jittered(sample)
        moved = agreement_db(due, jittered) if jittered is not None else []
        return bool(moved) and all(
            found >= AGREE_DB or -np.inf < limit <= found + _MARGIN_DB
            for found, limit in zip(apart, moved, strict=True)
        )

    def _jittered(self, sample: Arrays) -> dict[str, Any] | None:
        """What the plain way makes of inputs, or embedding tables, that are a little off; None where there are none."""
        moved = {name: _moved(column) for name, column in sample.items()}
        if any(values_of(column).dtype.kind == "f" for column in moved.values()):
            return self._used(moved)
        graph = native(self.graph)
        tables = {op.input("W") for op in graph.ops if op.type in LOOKUPS} & graph.params.keys()
        if not tables:
            return None
        params = {name: _off(value) if name in tables else value for name, value in graph.params.items()}
        with Predictor(self._saved("jittered", replace(graph, params=params)), plain(self.settings)) as predictor:
            return predictor(sample)


def _tried(work: Callable[[], Any]) -> Any:
    """What `work` gives, or the ModelError that it raises."""
    try:
        return work()
    except ModelError as error:
        return error


def _first(arrays: Arrays, inputs: tuple[str, ...]) -> Arrays:
    """The first samples, where all inputs have as many."""
    used = {name: arrays[name] for name in inputs if name in arrays}
    sizes = {len(column) for column in used.values()}
    if len(sizes) != 1 or sizes.pop() <= _CHECKED:
        return arrays
    return {name: column[:_CHECKED] for name, column in used.items()}


def _off(values: Any) -> Any:
    random = np.random.default_rng(0)
    return (values * (1 + _JITTER * random.standard_normal(values.shape))).astype(values.dtype)


def _moved(column: Column) -> Column:
    if values_of(column).dtype.kind != "f":
        return column
    return Ragged(_off(column.values), column.offsets) if isinstance(column, Ragged) else _off(column)
