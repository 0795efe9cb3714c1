"""The job behind `quant profile`: a model is run as it is, with oneDNN's log on, and watched."""

import ctypes
import gc
import os
import pkgutil
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quant.datasets.columns import Column
from quant.datasets.data_shapes import resized
from quant.datasets.readers import batches
from quant.diagnosis.crossings import crossings_of
from quant.diagnosis.kernel_table import Average, lowest, middle, typical
from quant.errors import ModelError, QuantError
from quant.evaluation.worker import arithmetic_on, declared, settings_of, sizes_of
from quant.ir.graph import Graph, Op, load_dir
from quant.ir.int8_regions import int8_op, islands, weighted_before, why_float
from quant.ir.shapes import sample_shapes
from quant.process.isolate import report_progress
from quant.runtime.inputs import opened, sample_input
from quant.runtime.predictor import Predictor, log_kernels
from quant.runtime.verbose_log import Kernel, kernels

__all__ = ["profile_model"]

Json = dict[str, Any]
Found = TypeVar("Found")
Run = tuple[float, float, bool]  # seconds, those of them on the CPU, and whether it had the CPU to itself

_WARM_UP = 3
_TURN_S = 0.03  # how long runs without the log are timed in a round
_ROUNDS = (8, 40)
_OUTPUT_LINE = "quant_output"  # in the log of a watched run: an op has written an output


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

    The result: `precision`, `executor` and `threads` that were used; median seconds of a run without the log (`wall_s`)
    and with it (`logged_s`), `interrupted`, the share of runs in which other processes took the CPU away (the medians
    leave those out; without others, they are of CPU time), and `runs`, how many were logged; the `kernels` of a run
    (quant.runtime.verbose_log.Kernel) with their typical times; `written`, (op type, variable) for each output in the
    order of
    execution, `before`, how many kernels had run by then, and `output_ms`, the time since the output before; the
    `program`, see `_told`; how many `samples` were fed, and what the program `declared` of them
    (quant.runtime.verbose_log.Declared).
    Raises ModelError when no kernel of oneDNN's runs, or not the same ones each time.
    """
    try:
        graph = load_dir(Path(model))
        if precision is None:
            precision = "int8" if any(map(int8_op, graph.ops)) else "fp32"
        feed = _feed(graph, batch, shapes or {}, full_input, data, format)
        with Predictor(Path(model), settings_of({"precision": precision, "executor": executor}, threads)) as predictor:
            predictor.feed(feed)
            used = {"executor": predictor.executor, "threads": predictor.threads}
            measured = _measure(predictor, budget_s)
    except QuantError as error:
        text = str(error)
        raise type(error)(text if model in text or (data and data in text) else f"{model}: {text}") from error
    counted = {"samples": sizes_of(graph, feed)[0], "declared": asdict(declared(arithmetic_on(graph, feed)))}
    return {"precision": precision, **used, **measured, **counted, "program": _told(resized(graph, feed))}


def _measure(predictor: Predictor, budget_s: float) -> Json:
    warm = min(_timed(predictor)[0] for _ in range(_WARM_UP))
    repeat = int(np.clip(_TURN_S / warm, 1, 10))
    rounds = int(np.clip(budget_s / (warm * (repeat + 3)), *_ROUNDS))
    gc.disable()  # as timeit does; the process ends with this job
    wall: list[Run] = []
    logged: list[Run] = []
    logs: list[list[Kernel]] = []
    end = time.monotonic() + 2 * budget_s
    while len(logs) < rounds or (_quiet(logged) < _ROUNDS[0] and time.monotonic() < end):  # longer on a busy machine
        predictor.run()  # untimed: after the log's turn the caches hold something else
        wall += [_timed(predictor) for _ in range(repeat)]
        logs.append(list(kernels(_log_of(lambda: logged.append(_timed(predictor))))))
        report_progress("profile", min(len(logs), rounds), rounds)
    if not any(logs):
        raise ModelError("runs no kernel of oneDNN's, so there is nothing to profile")
    run = typical(*_undisturbed(logs, logged))
    wall_s = _median(wall)
    watched = _watch(predictor, rounds, wall_s)
    if watched["before"][-1:] != [len(run)]:
        raise ModelError("the model doesn't run the same kernels each time")
    return {
        "wall_s": wall_s,
        "logged_s": _median(logged),
        "interrupted": 1 - _quiet(wall) / len(wall),
        "runs": len(logs),
        "kernels": [asdict(kernel) for kernel in run],
        **watched,
    }


def _log_of(action: Callable[[], None]) -> list[str]:
    """What oneDNN prints while `action` runs.

    It goes to a file, because a pipe would wake its reader for every line; one in memory, because C's stdio says
    nothing of what a full disk doesn't take.
    """
    library = ctypes.CDLL(None)
    with os.fdopen(os.memfd_create("kernels"), "w+") as file:
        library.fflush(None)
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(file.fileno(), 1)
        log_kernels(True)
        try:
            action()
        finally:
            log_kernels(False)
            library.fflush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
        file.seek(0)
        return file.read().splitlines()


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


def _timed(predictor: Predictor) -> Run:
    before, on_cpu = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.thread_time()
    start = time.perf_counter()
    predictor.run()
    seconds = time.perf_counter() - start
    on_cpu = time.thread_time() - on_cpu
    return seconds, on_cpu, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before


def _quiet(runs: Sequence[Run]) -> int:
    """How many runs had the CPU to themselves."""
    return sum(alone for *_, alone in runs)


def _undisturbed(found: Sequence[Found], runs: Sequence[Run]) -> tuple[list[Found], Average]:
    """What was found in the runs that had the CPU to themselves, or in all where those are too few; and how to average
    that."""
    kept = [entry for entry, (*_, alone) in zip(found, runs, strict=True) if alone]
    return (kept, middle) if len(kept) >= _ROUNDS[0] else (list(found), lowest)


def _median(runs: Sequence[Run]) -> float:
    """The median seconds of the runs that had the CPU to themselves; without any, of the time that they had it."""
    alone = [seconds for seconds, _, undisturbed in runs if undisturbed]
    return float(np.median(alone or [on_cpu for _, on_cpu, _ in runs]))


def _watch(predictor: Predictor, rounds: int, wall_s: float) -> Json:
    """Which ops run, and how long each takes, less what telling of them costs; `wall_s`: a run that isn't watched."""
    library = ctypes.CDLL(None)
    line = _OUTPUT_LINE.encode()
    written: list[tuple[str, str]] = []
    stamps: list[float] = []

    def in_log(type: str, variable: str) -> None:
        written.append((type, variable))
        library.puts(line)  # C's own stdout, into which oneDNN prints: so the order is kept

    def in_time(type: str, variable: str) -> None:
        stamps.append(time.perf_counter())

    tell = in_log
    predictor.watch(lambda type, variable: tell(type, variable))
    before, ran = [], 0
    for entry in _log_of(predictor.run):
        if entry == _OUTPUT_LINE:
            before.append(ran)
        else:
            ran += sum(1 for _ in kernels([entry]))
    tell = in_time
    laps, runs = [], []
    for _ in range(rounds):
        stamps.clear()
        start = time.perf_counter()
        runs.append(_timed(predictor))
        laps.append(np.diff([start, *stamps]))
    told = max(_median(runs) - wall_s, 0.0) / len(written)
    kept, average = _undisturbed(laps, runs)
    output_ms = 1e3 * np.maximum(average(np.array(kept)) - told, 0.0)
    return {"written": written, "before": before, "output_ms": output_ms.tolist()}


def _told(graph: Graph) -> Json:
    """What a reader of the log has to know of a program, ops by their number in it.

    `outputs`: the first output of each op; `types`: their types; `writers`: variable -> op; `islands`: their `ops`, and
    the quantize and dequantize ops `enter` and `leave`; `floats`, of a converted model: op -> the float32 op that its
    kernel multiplies for, and why that isn't INT8; `crossings` (quant.diagnosis.crossings), None without INT8 ops.
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
        "crossings": asdict(crossings_of(graph, sample_shapes(graph))) if found else None,
        "floats": {str(number): reason for number, reason in reasons if reason},
    }
