"""The job behind `quant analyze`: an INT8 model is run and watched, and what each op wrote is compared."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quant.datasets.columns import Column, Dataset, Ragged, values_of
from quant.datasets.readers import batches, head
from quant.diagnosis.pairing import (
    SCALES,
    WRITTEN,
    Form,
    Twin,
    apart,
    forms_of,
    grids_of,
    read_scales,
    stem,
    steps_to_a_unit,
    twins_of,
)
from quant.errors import ModelError
from quant.ir.comparable import sized_by_values
from quant.ir.fusion import numbered
from quant.ir.graph import Graph, load_dir, run_passes, save_dir
from quant.ir.int8_regions import int8_op
from quant.ir.numerics import REDUCED, dequantise, quantise
from quant.ir.passes import NORMALISE, PLACE, lower_quantizers
from quant.metrics.tensor_error import Errors, Gap, Range
from quant.process.isolate import report_kernels, report_progress
from quant.quantization.int8_attributes import Grid
from quant.runtime.inputs import opened
from quant.runtime.predictor import Predictor, Settings
from quant.runtime.reference import native, plain

__all__ = ["analyze_dataset", "analyze_model"]

Json = dict[str, Any]
Array = NDArray[Any]

_BATCH = 16
_VALUES = 30_000_000  # of all tensors of a batch: each is held up to five times
_EXPLAINED_DB = 60.0  # what lies above are single values beside a rounding boundary
_INTEGERS = ("int8", "uint8")
_UNSCALED = 1.0  # what Paddle's kernels take for a scale that isn't there


def analyze_model(
    model: str,
    fp32_model: str,
    quant_model: str | None,
    data: str,
    *,
    format: str | None = None,
    labels: str | None = None,
    samples: int = 64,
    threads: int = 1,
    executor: str = "auto",
    local: bool = True,
) -> Json:
    """Run an INT8 model on the first samples of a data file, and its simulation and FP32 model beside it.

    The result: `executor` and `threads` that were used; `samples`; `as_read_db`, SQNR of the outputs of the simulation
    as converting reads it to those of the simulation as given; `unseen`, the variables inside of kernels; `ops`, one
    for each variable that an op wrote, in the order of execution (see drift.OpError, whose fields these are).
    Without `local` only what the models make of the samples is compared, not what each op makes of its own inputs.
    Without a simulation nothing is compared with one.
    Raises ModelError when the models don't belong together.
    """
    dataset = opened(load_dir(Path(model)), data, format, labels)
    dataset = head(dataset, min(samples, len(dataset)))
    simulation = Path(quant_model) if quant_model else None
    return analyze_dataset(
        Path(model), Path(fp32_model), simulation, dataset, threads=threads, executor=executor, local=local
    )


def analyze_dataset(
    model: Path,
    fp32_model: Path,
    quant_model: Path | None,
    dataset: Dataset,
    *,
    threads: int = 1,
    executor: str = "auto",
    local: bool = True,
) -> Json:
    """`analyze_model` on all samples of a dataset."""
    converted, exported = load_dir(model), load_dir(fp32_model)
    given = load_dir(quant_model) if quant_model else None
    if not any(map(int8_op, converted.ops)):
        raise ModelError(f"{model}: holds no INT8 op: not a converted model")
    for path, other in ((fp32_model, exported), (quant_model, given)):
        if missing := [name for name in (other.feeds if other else ()) if name not in converted.feeds]:
            raise ModelError(f"{path}: reads the input {missing[0]!r}, which {model} doesn't: not of the same model")
    normal = run_passes(exported, NORMALISE)
    placed = run_passes(given, PLACE) if given else normal
    local = local and given is not None
    with ExitStack() as stack:
        settings = Settings("int8", threads, executor=executor)  # type: ignore[arg-type]
        predictor = stack.enter_context(Predictor(model, settings))
        first = next(iter(batches(dataset, 1)))
        seen = _traced(predictor, first)
        sized = sized_by_values(converted)  # a row of one model's is no row of another's
        seen = {name: values for name, values in seen.items() if name not in sized}
        twins = twins_of(converted, placed, normal, exported, seen)
        if not any(twin.name for twin in twins if int8_op(twin.op)):
            raise ModelError(f"{quant_model or fp32_model}: has no tensor of {model} by name: not what it was made of")
        size = int(np.clip(_VALUES // max(sum(array.size for array in seen.values()), 1), 1, _BATCH))
        if predictor.executor == "direct" and any(isinstance(column, Ragged) for column in first.values()):
            size = 1  # several sequences at once would run on the other executor, whose variables may be others
        reference = stack.enter_context(_Reference(normal, {twin.fp32 for twin in twins}, threads))
        simulation = as_read = None
        if given:
            wanted = {twin.name for twin in twins} | set(given.fetches)
            simulation = stack.enter_context(_Reference(lower_quantizers(placed), wanted, threads))
            as_read = _as_read(stack, given, simulation, first, threads) if local else None
        cut, feeds, fetches = apart(placed, twins) if local else (placed, {}, {})
        alone = stack.enter_context(_Reference(cut, set(fetches.values()), threads)) if fetches else None
        state = _State(converted, placed, twins, feeds, fetches)
        for number, batch in enumerate(batches(dataset, size)):
            report_progress("analyze", number * size, len(dataset))
            simulated = simulation(batch) if simulation else {}
            state.add(batch, _traced(predictor, batch), simulated, reference(batch), alone)
        used = {"executor": predictor.executor, "threads": predictor.threads}
    writers = converted.writers()
    read = {name for op in converted.ops for name in op.reads} - seen.keys()
    inside = [name for twin in twins for op in twin.ops[:-1] for name in op.writes if name in read]
    return {
        **used,
        "samples": len(dataset),
        "as_read_db": as_read,
        "unseen": [{"variable": name, "type": writers[name].type} for name in dict.fromkeys(inside)],
        "ops": [state.told(twin) for twin in twins if state.sums[twin.variable].dtype],
    }


def _traced(predictor: Predictor, batch: Mapping[str, Column]) -> dict[str, Array]:
    """Variable -> what its op wrote in this run, in the order of execution."""
    found: dict[str, Array] = {}
    predictor.feed(batch)
    predictor.trace(lambda type, variable, values: found.update({variable: values}))
    return found


class _Reference:
    """A graph run op by op, with tensors of it as outputs: a context manager. Called with a batch, it gives those."""

    def __init__(self, graph: Graph, names: set[str], threads: int) -> None:
        self.graph = graph
        self.wanted = tuple(name for name in sorted(names) if name and name not in graph.feeds)
        self.threads = threads

    def __enter__(self) -> Self:
        self.place = tempfile.TemporaryDirectory(prefix="quant-analyze-")
        save_dir(replace(native(self.graph), fetches=self.wanted), Path(self.place.name))
        report_kernels("plain")
        settings = plain(Settings(threads=self.threads))
        self.predictor = Predictor(Path(self.place.name), settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.predictor.close()
        self.place.cleanup()

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Array]:
        """Name -> values of the inputs and of what is wanted."""
        given = {name: values_of(batch[name]) for name in self.graph.feeds}
        found = self.predictor(batch).values()
        return given | {name: values_of(column) for name, column in zip(self.wanted, found, strict=True)}


def _as_read(
    stack: ExitStack, given: Graph, simulation: _Reference, first: Mapping[str, Column], threads: int
) -> float | None:
    """SQNR of the simulation as converting reads it, to the simulation as given, over their float32 outputs."""
    whole = stack.enter_context(_Reference(given, set(given.fetches), threads))
    gap = Gap()
    read, due = simulation(first), whole(first)
    for name in given.fetches:
        if name in read and due[name].dtype.kind == "f" and due[name].shape == read[name].shape:
            gap.add(due[name], read[name])
    return gap.db


def _comparable(values: Array, form: Form | None) -> bool:
    """Whether values are real numbers, stored in whatever way: ids and places are not."""
    return values.dtype == np.float32 or (values.dtype.name in _INTEGERS and form is not None)


def _on_grid(values: Array, grid: Grid) -> Array:
    return dequantise(quantise(values, *grid), *grid)


class _State:
    """What has been summed up so far."""

    def __init__(
        self,
        converted: Graph,
        placed: Graph,
        twins: tuple[Twin, ...],
        feeds: Mapping[str, str],
        fetches: Mapping[str, str],
    ) -> None:
        self.converted, self.placed, self.twins = converted, placed, twins
        self.ids = numbered(placed)
        self.feeds, self.fetches = feeds, fetches
        self.names, self.writers = set(placed.vars) - set(placed.params), placed.writers()
        self.grids = grids_of(placed)
        self.forms, self.read = forms_of(converted), read_scales(converted)
        self.sums = {twin.variable: _Sums(twin, self.channels(twin)) for twin in twins}

    def add(
        self,
        batch: Mapping[str, Column],
        written: Mapping[str, Array],
        simulated: Mapping[str, Array],
        fp32: Mapping[str, Array],
        alone: _Reference | None,
    ) -> None:
        fed = {name: values_of(batch[name]) for name in self.converted.feeds}
        real = fed | {name: self.real(name, values) for name, values in written.items()}
        due = self.run_apart(alone, batch, real, real) if alone else {}
        quiet = self.run_apart(alone, batch, self.as_rounded(fp32), real) if alone else {}
        for twin in self.twins:
            if twin.variable not in written or not _comparable(written[twin.variable], self.forms.get(twin.variable)):
                continue
            on_grid = written[twin.variable].dtype.name in _INTEGERS or twin.op.type == "dequantize"
            grid = self.grid_of(twin) if on_grid else None

            def rounded(values: Array, grid: Grid | None = grid) -> Array:
                return values if grid is None else _on_grid(values, grid)

            sums, name = self.sums[twin.variable], twin.variable
            sums.stored(written[name], self.form(name).shift)
            sums.of_fp32(fp32.get(twin.fp32), real[name])
            if twin.name in simulated:
                sums.of_quant(rounded(simulated[twin.name]), real[name])
            if alone and twin.inner == () and len(twin.inputs) == 1:
                due[name] = real[twin.inputs[0]]
            if name in due:
                sums.of_own(rounded(due[name]), real[name], self.bounds(twin, written[name]), real.get(twin.residual))
            if name in quiet and twin.fp32 in fp32:
                sums.of_rounding(fp32[twin.fp32], rounded(quiet[name]))

    def run_apart(
        self, alone: _Reference, batch: Mapping[str, Column], values: Mapping[str, Array], instead: Mapping[str, Array]
    ) -> dict[str, Array]:
        """What the simulation makes of each op's inputs, for those whose inputs are all there: variable -> values.

        What isn't there has to be fed all the same: `instead`, from which nothing follows.
        """
        offsets = next((column.offsets for column in batch.values() if isinstance(column, Ragged)), None)
        given: dict[str, Column] = {}
        for variable, name in self.feeds.items():
            described = self.placed.vars[stem(variable, self.names)]
            array = values[variable] if variable in values else instead[variable]
            if array.ndim != len(described.shape):
                array = array.reshape(-1, *described.shape[1:])
            array = np.ascontiguousarray(array, described.dtype)
            given[name] = Ragged(array, offsets) if described.lod_level and offsets is not None else array
        found = alone(given)
        there = {
            twin.variable for twin in self.twins if all(name in values for name in twin.inputs if name in self.feeds)
        }
        return {variable: found[name] for variable, name in self.fetches.items() if variable in there}

    def as_rounded(self, fp32: Mapping[str, Array]) -> dict[str, Array]:
        """The FP32 model's tensors as inputs of ops apart: rounded where the simulation's tensor is."""
        found: dict[str, Array] = {}
        for variable in self.feeds:
            source = name = stem(variable, self.names)
            while source in self.writers and self.writers[source].type == "fake_quant":
                source = self.writers[source].input("X")
            if source in fp32:
                values = fp32[source]
                found[variable] = values if source == name else _on_grid(values, self.grids[name])
        return found

    def channels(self, twin: Twin) -> int | None:
        return _channels(self.placed.vars[twin.name].shape) if twin.name else None

    def grid_of(self, twin: Twin) -> Grid | None:
        if twin.grid is not None or twin.op.type != "dequantize":
            return twin.grid
        return self.grids.get(stem(twin.inputs[0], self.names))

    def form(self, variable: str) -> Form:
        return self.forms.get(variable, Form(1.0))

    def steps(self, variable: str) -> float:
        """Integers to a unit."""
        grid = self.grids.get(stem(variable, self.names))
        return steps_to_a_unit(self.form(variable), grid, list(self.read.get(variable, {}).values()))

    def real(self, variable: str, values: Array) -> Array:
        if values.dtype.name not in _INTEGERS or variable not in self.forms:
            return values
        whole = values.astype(np.float32) - np.float32(self.form(variable).shift)
        return whole / np.float32(self.steps(variable))

    def bounds(self, twin: Twin, values: Array) -> tuple[float, float, float]:
        """The least and largest real value that an op can store, and its step."""
        if values.dtype.name not in _INTEGERS:
            return -np.inf, np.inf, 0.0
        ends, unit, shift = np.iinfo(values.dtype), self.steps(twin.variable), self.form(twin.variable).shift
        top = min(int(ends.max) - shift, twin.grid[1]) if twin.grid else int(ends.max) - shift
        return (int(ends.min) - shift) / unit, top / unit, 1 / unit

    def told(self, twin: Twin) -> Json:
        """The fields of quant.diagnosis.drift.OpError."""
        sums = self.sums[twin.variable]
        form = self.forms.get(twin.variable) if sums.dtype in _INTEGERS else None
        return {
            "output": twin.name or twin.variable,
            "variable": twin.variable,
            "types": [op.type for op in twin.ops],
            "int8": any(map(int8_op, twin.ops)),
            "sources": list(twin.sources),
            "op_ids": sorted(self.ids[op] for op in twin.inner or () if op in self.ids),
            "inputs": list(twin.inputs),
            "stored": sums.dtype,
            "shift": form.shift if form else 0,
            "scale": form.scale if form else None,
            "grid": list(twin.grid) if twin.grid else None,
            "scales": self.scales(twin),
            **sums.told(),
            "unmeasured": self.unmeasured(twin),
        }

    def scales(self, twin: Twin) -> list[Json]:
        """What an op goes by and what the simulation rounds to: attribute, value and due value, levels / threshold."""
        found = []
        for op in twin.ops:
            for slot, attribute in SCALES.get(op.type, {}).items():
                grid = self.grids.get(stem(op.input(slot), self.names)) if op.input(slot) in self.forms else None
                if grid:
                    found.append({"name": attribute, "value": op.attr(attribute, _UNSCALED), "due": grid[1] / grid[0]})
            joined = op.inputs.get("X", ()) if op.type not in SCALES else ()
            for name in joined if len(joined) > 1 and twin.variable in self.forms else ():  # concat: of one grid
                if name in self.forms:
                    due = self.steps(twin.variable)
                    found.append({"name": f"the scale of {name}", "value": self.steps(name), "due": due})
        if twin.grid and twin.variable in self.forms and twin.op.type in WRITTEN:
            name = WRITTEN[twin.op.type]
            found.append({"name": name, "value": twin.op.attr(name, _UNSCALED), "due": twin.grid[1] / twin.grid[0]})
        return [*found, *self.weight_scales(twin)]

    def weight_scales(self, twin: Twin) -> list[Json]:
        """The weight scale that is furthest from the simulation's. Below VNNI 7-bit weights may have twice theirs."""
        weighted = next((op for op in twin.inner or () if op.attr("weight_thresholds")), None)
        if weighted is None or twin.op.type not in ("fused_conv2d", "fc"):
            return []
        due = weighted.attr("weight_levels") / np.array(weighted.attr("weight_thresholds"), np.float64)
        found = np.array(twin.op.attr("Scale_weights", [_UNSCALED]), np.float64)
        if found.size != due.size:
            return []
        if weighted.attr("weight_levels") <= REDUCED and np.allclose(found, 2 * due, rtol=1e-3):
            due = 2 * due
        worst = int(np.abs(np.log(found / due)).argmax())
        return [{"name": f"Scale_weights[{worst}]", "value": float(found[worst]), "due": float(due[worst])}]

    def unmeasured(self, twin: Twin) -> str:
        """Why an op's own error isn't known; "" when it is."""
        sums = self.sums[twin.variable]
        if sums.own is not None:
            return ""
        if not self.fetches:
            return "not asked for, or without a simulation"
        if not twin.name:
            return "the simulation has no tensor of this name"
        if twin.inner is None:
            return "the simulation has no tensor of the name of one of its inputs"
        return "its output has another size in the simulation" if sums.misfit else "one of its inputs isn't visible"


class _Sums:
    """What has been summed up of one op's output."""

    def __init__(self, twin: Twin, axis: int | None) -> None:
        self.axis = axis
        self.dtype, self.count, self.ends, self.misfit, self.finite = "", 0, 0, False, True
        self.levels = twin.grid[1] if twin.grid else 0
        self.to_fp32, self.to_quant, self.alone = Gap(), Gap(), Gap()
        self.own: Errors | None = None
        self.range = Range(twin.grid[0] if twin.grid else None, axis)

    def stored(self, values: Array, shift: int) -> None:
        self.dtype = values.dtype.name
        self.count += values.size
        if self.dtype not in _INTEGERS:
            self.finite = self.finite and bool(np.isfinite(values).all())
            return
        least, most = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
        if self.dtype == "uint8" and not shift and self.levels:
            most = self.levels
        low = least + (1 if self.dtype == "int8" or shift else 0)  # -127 is as far from 0 as 127
        at_low = int((values <= low).sum()) if self.dtype == "int8" or shift else 0  # 0 is no end of what has no sign
        self.ends += at_low + int((values >= most).sum())

    def of_fp32(self, due: Array | None, found: Array) -> None:
        if due is not None and due.size == found.size and due.dtype == np.float32:
            self.to_fp32.add(due, found)
            self.range.add(due)

    def of_quant(self, due: Array, found: Array) -> None:
        if due.size == found.size:
            self.to_quant.add(due, found)

    def of_own(self, due: Array, found: Array, bounds: tuple[float, float, float], residual: Array | None) -> None:
        if due.size != found.size:
            self.misfit = True
            return
        self.own = self.own or Errors(self.axis)
        self.own.compare(due, found.reshape(due.shape), bounds[:2], bounds[2], residual)

    def of_rounding(self, due: Array, found: Array) -> None:
        if due.size == found.size:
            self.alone.add(due, found)

    def told(self) -> Json:
        own, seen = self.own, self.range
        return {
            "fp32_db": self.to_fp32.db,
            "fp32_cosine": self.to_fp32.cosine,
            "quant_db": self.to_quant.db,
            "quant_cosine": self.to_quant.cosine,
            "local_db": own.db if own else None,
            "local_cosine": own.cosine if own else None,
            "local_fp32_db": self.alone.db,
            "low": seen.low if seen.count else None,
            "high": seen.high if seen.count else None,
            "saturated": seen.beyond / seen.count if seen.count and seen.threshold else None,
            "clipped": seen.clipped / seen.count if seen.count and seen.threshold else None,
            "ends": self.ends / self.count if self.dtype in _INTEGERS and self.count else None,
            "outlier": list(seen.outlier) if seen.outlier else None,
            "finite": self.finite,
            "error": own.explain() if own and (own.db or 0.0) < _EXPLAINED_DB else "",
        }


def _channels(shape: tuple[int, ...]) -> int | None:
    """The axis of channels: the second of an image's, the last of all others; None where that is open."""
    axis = 1 if len(shape) == 4 and shape[1] > 0 else len(shape) - 1
    return axis if axis >= 0 and shape[axis] > 0 else None
