"""What was written is run once, and compared with what it should give: conversion doesn't write what can't run.

A fake-quantized model against its FP32 model, on the first calibration samples. An INT8 model against its simulation,
on generated values of the shapes and ranges that calibration saw, which lie beside the simulation (`sample.json`,
some hundred bytes), or else such as the model declares. Both on Paddle's plain kernels, which take no part in
conversion.

What crashes ends the process; what is refused, isn't finite, has other shapes or differs is a ConversionError that
names the first op that differs. How far a simulation's outputs may be from FP32 has no bound: one outlier in a tensor
takes all that 8 bits leave. So what must hold exactly is looked at: the FP32 model after the passes that calibration
runs is the one before, and each weight of the simulation is that model's, off by half a step at most. An INT8 model's
outputs need no further look at 30 dB; else each op is judged on its own inputs, as in `quant analyze`, and where none
is at fault, the network amplifies: a note.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.datasets.columns import Column, Dataset, Ragged, values_of
from quant.diagnosis.drift import OpError
from quant.diagnosis.drift_worker import analyze_dataset
from quant.errors import ConversionError, DataError, ModelError
from quant.ir.comparable import comparable, sized_by_values
from quant.ir.graph import Graph, load_dir, run_passes, save_dir
from quant.ir.passes import CALIBRATE, PLACE, lower_quantizers
from quant.ir.passes.quantizers import WEIGHT_SLOT, without_quantizers
from quant.metrics.scores import sqnr
from quant.process.isolate import report_kernels
from quant.runtime.inputs import signature, vocabularies
from quant.runtime.predictor import Executor, Predictor, Settings, nameless
from quant.runtime.reference import agreement_db, native, plain

__all__ = ["SAMPLE", "check_int8", "check_simulation", "generated", "seen_of", "write_sample"]

SAMPLE = "sample.json"
_SCHEMA = 1
_SAMPLES = 2
_NEAR_FP32 = 15.0  # dB of outputs; below, what 8 bits cost is worth a note
_NEAR_DB = 30.0  # dB of INT8 to its simulation; the same kernels but for values beside a boundary
_SAME_DB, _OFF_DB = 60.0, 40.0  # the same but for the order of sums; and not the same
_OPEN = 32  # taken for a dimension that a model leaves open, where nobody says what it was

Arrays = Mapping[str, Column]


# --- what a model is fed


@dataclass(frozen=True)
class Seen:
    """Of a model's input in calibration: shape of the samples that are run again, lengths of sequences, values."""

    shape: tuple[int, ...]
    low: float
    high: float
    lengths: tuple[int, ...] = ()


def first_of(batch: Arrays) -> dict[str, Column]:
    """The first samples of a batch, where all inputs have as many."""
    sizes = {len(column) for column in batch.values()}
    return {name: column[:_SAMPLES] if len(sizes) == 1 else column for name, column in batch.items()}


def seen_of(batch: Arrays) -> dict[str, Seen]:
    found = {}
    for name, column in batch.items():
        values = values_of(column)
        lengths = tuple(int(length) for length in column.lengths) if isinstance(column, Ragged) else ()
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        found[name] = Seen(tuple(values.shape), low, high, lengths)
    return found


def write_sample(directory: Path, batch: Arrays) -> None:
    """Beside a fake-quantized model: what an input for it looks like, not the values."""
    content = {"schema": _SCHEMA, "inputs": {name: asdict(seen) for name, seen in seen_of(first_of(batch)).items()}}
    (directory / SAMPLE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _read(directory: Path) -> dict[str, Seen]:
    """What `write_sample` wrote; empty where nothing is, or something else."""
    try:
        content = json.loads((directory / SAMPLE).read_text(encoding="utf-8"))
        return {
            name: Seen(tuple(seen["shape"]), float(seen["low"]), float(seen["high"]), tuple(seen["lengths"]))
            for name, seen in content["inputs"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def generated(graph: Graph, directory: Path) -> dict[str, Column]:
    """Values for a model's inputs, always the same: as calibration saw them, else as declared, one sample."""
    random = np.random.default_rng(0)
    seen, words = _read(directory), vocabularies(graph)
    thresholds = {op.input("X"): op.attr("threshold") for op in graph.ops if op.type == "fake_quant"}
    found: dict[str, Column] = {}
    for name, (shape, dtype) in signature(graph).items():
        sequence = bool(graph.vars[name].lod_level)
        declared = (_OPEN if sequence else 1, *(_OPEN if size < 1 else size for size in shape))
        reach = thresholds.get(name, 3.0)
        one = seen.get(name) or Seen(declared, -reach, reach, (_OPEN,) if sequence else ())
        values: NDArray[Any]
        if dtype.startswith("float"):
            middle, half = (one.low + one.high) / 2, (one.high - one.low) / 2
            values = np.clip(middle + half / 3 * random.standard_normal(one.shape), one.low, one.high)
        else:
            top = min(one.high, words.get(name, 2) - 1) if name in seen else words.get(name, 2) - 1
            values = random.integers(int(max(one.low, 0)), int(max(top, one.low, 0)) + 1, one.shape)
        array = np.ascontiguousarray(values, dtype)
        found[name] = Ragged(array, np.concatenate([[0], np.cumsum(one.lengths)])) if sequence else array
    return found


# --- a fake-quantized model


def check_simulation(exported: Graph, directory: Path, batch: Arrays, *, compare: bool = True) -> str:
    """Run the fake-quantized model in `directory` on a batch's first samples, and the FP32 graph it was made of.

    The result is a note, "" where there is nothing to say. Without `compare` (weights were trained) only whether it
    runs and gives finite values is looked at. Raises ConversionError.
    """
    report_kernels("")  # a crash from here on isn't one that other kernels help against
    sample, simulation = first_of(batch), load_dir(directory)
    if _sized_by_values(exported):  # that all of it runs, too; compared is what decides how many rows come out
        _ran(exported, sample)
        _ran(simulation, sample)
        exported, simulation = comparable(exported), comparable(simulation)
    due = _ran(exported, sample)
    try:
        found = _ran(simulation, sample)
    except ModelError as error:
        raise ConversionError(f"the fake-quantized model can't be run: {error}") from error
    _check_alike("the fake-quantized model", due, found, simulation, sample)
    apart = [
        sqnr(one, other)
        for one, other in zip(due.values(), found.values(), strict=True)
        if values_of(one).dtype.kind == "f"
    ]
    if not compare:
        return ""
    normal = run_passes(exported, CALIBRATE)
    if wrong := _first_off(exported, normal, sample) or _first_other_weight(normal, run_passes(simulation, PLACE)):
        raise ConversionError(f"the fake-quantized model isn't the FP32 model rounded: {wrong}")
    if min(apart, default=np.inf) >= _NEAR_FP32:
        return ""
    return (
        f"the fake-quantized model's outputs are {min(apart):.1f} dB from FP32 on the first samples, and no op is at "
        "fault: `quant analyze` says which ones lose most"
    )


def _ran(graph: Graph, sample: Arrays, fetches: tuple[str, ...] = ()) -> dict[str, Any]:
    """Outputs, or those variables, on plain kernels. Raises ModelError."""
    with tempfile.TemporaryDirectory(prefix="quant-check-") as scratch:
        save_dir(replace(native(graph), fetches=fetches or graph.fetches), Path(scratch))
        with nameless(Path(scratch)), Predictor(Path(scratch), plain(Settings())) as predictor:
            found = predictor(sample)
    return dict(zip(fetches or graph.fetches, found.values(), strict=True))


def _check_alike(what: str, due: Arrays, found: Arrays, graph: Graph, sample: Arrays) -> None:
    """Raise ConversionError for outputs that aren't finite where the reference's are, or of another shape."""
    for (name, one), other in zip(due.items(), found.values(), strict=True):
        values, expected = values_of(other), values_of(one)
        if not isinstance(one, Ragged) and values.shape[1:] != expected.shape[1:]:
            shapes = f"{list(values.shape)}, not {list(expected.shape)}"
            raise ConversionError(f"{what} puts out values of shape {shapes} (output {name!r})")
        if values.dtype.kind == "f" and np.isfinite(expected).all() and not np.isfinite(values).all():
            first = _first_not_finite(graph, sample)
            raise ConversionError(f"{what} puts out NaN or Inf (output {name!r}){first}")


def _float_variables(graph: Graph) -> tuple[str, ...]:
    written = (name for op in graph.ops for name in op.writes)
    return tuple(
        name for name in dict.fromkeys(written) if graph.vars[name].dtype == "float32" and name not in graph.params
    )


def _first_not_finite(graph: Graph, sample: Arrays) -> str:
    try:
        values = _ran(graph, sample, _float_variables(graph))
    except (ModelError, DataError):  # an INT8 model's inner tensors
        return ""
    writers = graph.writers()
    for name, column in values.items():
        if not np.isfinite(values_of(column)).all():
            return f": op {writers[name].type!r} (output {name!r}) is the first"
    return ""


def _first_off(exported: Graph, normal: Graph, sample: Arrays) -> str:
    """The first op of the FP32 model that the passes have changed, in words; "" for none."""
    due, found = _ran(exported, sample), _ran(normal, sample)
    if min(agreement_db(due, found), default=np.inf) >= _SAME_DB:
        return ""
    names = tuple(name for name in _float_variables(exported) if name in set(_float_variables(normal)))
    due, found = _ran(exported, sample, names), _ran(normal, sample, names)
    apart = dict(zip(names, agreement_db(due, found), strict=True))
    for op in normal.ops:
        for out in op.writes:
            if apart.get(out, np.inf) < _OFF_DB and all(apart.get(name, np.inf) >= _SAME_DB for name in op.reads):
                return f"op {op.type!r} (output {out!r}) gives other values before anything is rounded"
    return ""


def _first_other_weight(normal: Graph, placed: Graph) -> str:
    """The first op of the simulation whose weight isn't the FP32 model's on its grid, in words; "" for none."""
    sources = {name: op for op in normal.ops for name in op.writes}
    for op in placed.ops:
        source = sources.get(op.writes[0]) if op.writes else None
        if op.type not in WEIGHT_SLOT or source is None or source.type != op.type or not op.attr("weight_thresholds"):
            continue
        slot, axis = WEIGHT_SLOT[op.type]
        due, found = normal.params.get(source.input(slot)), placed.params[op.input(slot)]
        thresholds = np.array(op.attr("weight_thresholds"), np.float64)
        step = thresholds / op.attr("weight_levels")
        if due is not None and due.shape == found.shape:
            along = step.reshape([-1 if dim == axis else 1 for dim in range(due.ndim)]) if step.size > 1 else step
            if not (np.abs(due.astype(np.float64) - found) > 0.51 * along + 1e-6 * np.abs(due)).any():
                continue
        return f"op {op.type!r} (output {op.writes[0]!r}) has another weight than there"
    return ""


# --- an INT8 model


def check_int8(simulation: Graph, directory: Path, source: Path, *, threads: int = 1) -> str:
    """Run the INT8 model in `directory` by each executor that takes it, and the simulation that it was made of.

    `source`: the directory that `sample.json` may lie in. The result is a note, "" where there is nothing to say.
    Raises ConversionError.
    """
    report_kernels("")
    placed = run_passes(simulation, PLACE)
    sample = generated(placed, source)
    lowered = lower_quantizers(placed)
    if _sized_by_values(lowered):
        with tempfile.TemporaryDirectory(prefix="quant-check-") as scratch:
            save_dir(comparable(load_dir(directory)), Path(scratch))
            return _check_int8(comparable(placed), comparable(lowered), Path(scratch), source, sample, threads)
    return _check_int8(placed, lowered, directory, source, sample, threads)


def _check_int8(placed: Graph, lowered: Graph, directory: Path, source: Path, sample: Arrays, threads: int) -> str:
    try:
        due = _ran(lowered, sample)
    except (ModelError, DataError) as error:
        if _read(source):
            raise ConversionError(f"the fake-quantized model can't be run: {error}") from error
        return f"not checked: the model doesn't run on inputs of a made-up size ({error})"
    notes = []
    for executor in _executors(directory, sample, threads):
        try:
            with nameless(directory), Predictor(directory, Settings("int8", threads, executor=executor)) as predictor:
                found = predictor(sample)
        except ModelError as error:
            raise ConversionError(f"the INT8 model can't be run (executor {executor}): {error}") from error
        _check_alike(f"the INT8 model (executor {executor})", due, found, load_dir(directory), sample)
        apart = [
            db
            for db, column in zip(agreement_db(due, found), due.values(), strict=True)
            if values_of(column).dtype.kind == "f" and np.isfinite(values_of(column)).all()
        ]
        if min(apart, default=np.inf) < _NEAR_DB:
            notes.append(_op_by_op(placed, lowered, directory, sample, executor, min(apart)))
    return next(filter(None, notes), "")


def _sized_by_values(graph: Graph) -> bool:
    """Whether an output has a row for each thing found, so that two models can't be compared by it."""
    return not sized_by_values(graph).isdisjoint(graph.fetches)


def _executors(directory: Path, sample: Arrays, threads: int) -> tuple[Executor, ...]:
    """Those that run this model: Paddle's own always, the direct one where it takes model and input."""
    try:
        with Predictor(directory, Settings("int8", threads)) as predictor:
            predictor.feed(sample)
            return ("direct", "paddle") if predictor.executor == "direct" else ("paddle",)
    except ModelError:
        return ("paddle",)


def _op_by_op(placed: Graph, lowered: Graph, directory: Path, sample: Arrays, executor: Executor, apart: float) -> str:
    """ConversionError for the first op that doesn't do what the simulation says; else a note."""
    with tempfile.TemporaryDirectory(prefix="quant-check-") as scratch:
        places = [Path(scratch) / name for name in ("fp32", "quant")]
        for place, graph in zip(places, (without_quantizers(placed), lowered), strict=True):
            place.mkdir()
            save_dir(graph, place)
        dataset = Dataset(directory, dict(sample), None)
        found = analyze_dataset(directory, places[0], places[1], dataset, executor=executor)
    ops = [OpError.from_json(entry) for entry in found["ops"]]
    for op in ops:
        if op.faulty:
            told = "NaN or Inf" if not op.finite else f"{op.local_db:.1f} dB to the simulation of it; {op.error}"
            raise ConversionError(
                f"the INT8 model (executor {executor}) isn't its simulation, {apart:.1f} dB at the outputs: "
                f"op {op.type!r} (output {op.output!r}): {told}"
            )
    least = min((op.local_db for op in ops if op.local_db is not None), default=None)
    agreed = "no op could be judged by itself" if least is None else f"each op agrees to {least:.0f} dB"
    return f"on generated inputs INT8 is {apart:.1f} dB from its simulation: {agreed}; the network amplifies"
