"""The job behind `quant profile`: a model is run with oneDNN's log on, and is watched; who reads the log adds it up."""

import ctypes
import gc
import pkgutil
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import QuantError
from quant.evaluation import opened, settings_of
from quant.graph import Graph, Op, load_dir
from quant.islands import int8_op, islands, weighted_before, why_float
from quant.isolate import report_event, report_progress
from quant.jobs import sample_input
from quant.kernel_table import OUTPUT_LINE, middle
from quant.predictor import Predictor, log_kernels
from quant.readers import batches
from quant.sequences import Column

__all__ = ["profile_model"]

Json = dict[str, Any]

_WARM_UP = 3
_TURN_S = 0.03  # how long runs without the log are timed in a round
_ROUNDS = (8, 40)
_ALONE = 5  # runs that other processes left alone, enough for a median


def profile_model(
    model: str,
    *,
    precision: str | None = None,
    executor: str = "auto",
    threads: int = 1,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    full_input: str = "",
    data: str | None = None,
    format: str | None = None,
    budget_s: float = 5.0,
) -> Json:
    """Run a model many times: as it is, with oneDNN's log on, and watched.

    `precision` is by default int8 for a model that holds INT8 ops, else fp32. Input is generated, or comes from the
    function `full_input` (batch), or is a data file's first batch.
    Events: {"log": "kernels"}, then what the log shows of one run, then {"log": None}, once a round; {"log": "ops"}
    instead for one run in whose log there is a line OUTPUT_LINE after each output of each op.

    The result: `precision` and `executor` that were used; median seconds of a run without the log (`wall_s`) and with
    it (`logged_s`), and the share of runs in which other processes took the CPU away (`interrupted`; the medians leave
    those out); `written`, (op type, variable) for each output in the order of execution, and `output_ms`, the time
    since the one before; the `program`, see `_told`.
    """
    try:
        graph = load_dir(Path(model))
        if precision is None:
            precision = "int8" if any(map(int8_op, graph.ops)) else "fp32"
        feed = _feed(graph, batch, shapes or {}, full_input, data, format)
    except QuantError as error:
        text = str(error)
        raise type(error)(text if model in text or (data and data in text) else f"{model}: {text}") from error
    with Predictor(Path(model), settings_of({"precision": precision, "executor": executor}, threads)) as predictor:
        predictor.feed(feed)
        used = predictor.executor
        warm = min(_timed(predictor)[0] for _ in range(_WARM_UP))
        repeat = int(np.clip(_TURN_S / warm, 1, 10))
        rounds = int(np.clip(budget_s / (warm * (repeat + 3)), *_ROUNDS))
        gc.disable()  # as timeit does; the process ends with this job
        wall: list[tuple[float, bool]] = []
        logged: list[tuple[float, bool]] = []
        for number in range(rounds):
            predictor.run()  # untimed: after the log's turn the caches hold something else
            wall += [_timed(predictor) for _ in range(repeat)]
            log_kernels(True)
            report_event({"log": "kernels"})
            logged.append(_timed(predictor))
            log_kernels(False)
            report_event({"log": None})
            report_progress("profile", number + 1, rounds)
        wall_s, logged_s = _median(wall), _median(logged)
        watched = _watch(predictor, rounds, wall_s)
    interrupted = sum(not alone for _, alone in wall) / len(wall)
    seconds = {"wall_s": wall_s, "logged_s": logged_s, "interrupted": interrupted}
    return {"precision": precision, "executor": used, **seconds, **watched, "program": _told(graph)}


def _feed(
    graph: Graph,
    batch: int,
    shapes: Mapping[str, Sequence[int]],
    full_input: str,
    data: str | None,
    format: str | None,
) -> Mapping[str, Column]:
    if full_input:
        made: Mapping[str, Column] = pkgutil.resolve_name(full_input)(batch)
        return made
    if data is not None:
        return next(iter(batches(opened(graph, data, format), batch)))
    return sample_input(graph, batch, shapes)


def _timed(predictor: Predictor) -> tuple[float, bool]:
    """Seconds of a run, and whether it had the CPU all that time: no other process was given it instead."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.perf_counter()
    predictor.run()
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before


def _median(runs: Sequence[tuple[float, bool]]) -> float:
    """The median seconds of the runs that had the CPU, of all where those are few."""
    alone = [seconds for seconds, undisturbed in runs if undisturbed]
    return float(np.median(alone if len(alone) >= _ALONE else [seconds for seconds, _ in runs]))


def _watch(predictor: Predictor, rounds: int, wall_s: float) -> Json:
    """Which ops run, and how long each takes, less what telling of them costs; `wall_s`: a run that isn't watched."""
    library = ctypes.CDLL(None)
    line = OUTPUT_LINE.encode()
    written: list[tuple[str, str]] = []
    stamps: list[float] = []

    def in_log(type: str, variable: str) -> None:
        written.append((type, variable))
        library.puts(line)  # C's own stdout, into which oneDNN prints: so the order is kept

    def in_time(type: str, variable: str) -> None:
        stamps.append(time.perf_counter())

    tell = in_log
    predictor.watch(lambda type, variable: tell(type, variable))
    log_kernels(True)
    report_event({"log": "ops"})
    predictor.run()
    log_kernels(False)
    report_event({"log": None})
    tell = in_time
    laps, runs = [], []
    for _ in range(rounds):
        stamps.clear()
        start = time.perf_counter()
        runs.append(_timed(predictor))
        laps.append(np.diff([start, *stamps]))
    told = max(_median(runs) - wall_s, 0.0) / len(written)
    output_ms = 1e3 * np.maximum(middle(np.array(laps)) - told, 0.0)
    return {"written": written, "output_ms": output_ms.tolist()}


def _told(graph: Graph) -> Json:
    """What a reader of the log has to know of a program, ops by their number in it.

    `outputs`: the first output of each op; `types`: their types; `writers`: variable -> op; `islands`: their `ops`, and
    the quantize and dequantize ops `enter` and `leave`; `floats`, of a converted model: op -> the float32 op that its
    kernel multiplies for, and why that isn't INT8.
    """
    place = {op: number for number, op in enumerate(graph.ops)}
    found = islands(graph)

    def why(op: Op) -> tuple[int, str] | None:
        source = None if int8_op(op) else weighted_before(graph, op)
        return None if source is None or int8_op(source) else (place[source], why_float(graph, source))

    reasons = ((number, why(op)) for op, number in place.items()) if found else ()
    return {
        "outputs": [op.writes[0] if op.writes else "" for op in graph.ops],
        "types": [op.type for op in graph.ops],
        "writers": {name: place[op] for name, op in graph.writers().items()},
        "islands": [
            {
                "ops": [place[op] for op in island.ops],
                "enter": [place[op] for op in island.enter],
                "leave": [place[op] for op in island.leave],
            }
            for island in found
        ],
        "floats": {str(number): reason for number, reason in reasons if reason},
    }
