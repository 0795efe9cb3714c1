"""The steps that touch Paddle, as jobs: plain arguments in, plain results out, run in a child by `quant.isolate`."""

import gc
import pkgutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.calibrate import calibrate
from quant.chains import CONVS, PRODUCTS, graph_macs, numbered
from quant.convert import Coverage, convert
from quant.errors import DataError, ModelError, QuantError
from quant.graph import Graph, load_dir, run_passes, save_dir
from quant.isolate import report_progress
from quant.passes import NORMALISE, lower_quantizers
from quant.places import fresh_dir
from quant.predictor import Predictor, Settings, log_kernels
from quant.readers import batches, check_labels, open_data

__all__ = [
    "bench",
    "convert_model",
    "dot",
    "evaluate",
    "prepare",
    "ptq",
    "sample_input",
    "signature",
    "write_data",
]

Json = dict[str, Any]
_WARM_UP = 2
_HOPELESS = 1.5  # a variant this much slower than the best needs no second look
_TURN_S = 0.03  # how long a contender's turn lasts, so that quick models get several runs


def signature(graph: Graph) -> dict[str, tuple[tuple[int, ...], str]]:
    """Model input -> (shape of one sample, dtype)."""
    return {name: (graph.vars[name].shape[1:], graph.vars[name].dtype) for name in graph.feeds}


@contextmanager
def _about(path: str) -> Iterator[None]:
    """Errors raised inside name `path`, unless they name it already."""
    try:
        yield
    except QuantError as error:
        if path in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


# --- making models


def write_data(function: str, split: str, count: int, output: str) -> None:
    """Write a dataset with a registry row's own function."""
    pkgutil.resolve_name(function)(split, count, Path(output))


def prepare(
    function: str, name: str, output: str, *, data: str | None, algo: str, weight_levels: Mapping[str, int]
) -> None:
    """Everything that one registry row is measured on, as directories under `output`.

    `fp32` is the normalised model. For each entry of `weight_levels` (suffix -> levels) there is an int8 model, and
    its simulation when calibration `data` is given; without, a full-size model is calibrated on generated input.
    """
    root = Path(output)
    with tempfile.TemporaryDirectory(prefix="quant-export-") as exported:
        pkgutil.resolve_name(function)(name, Path(exported))
        graph = run_passes(load_dir(Path(exported)), NORMALISE)
    (root / "fp32").mkdir()
    save_dir(graph, root / "fp32")
    for suffix, levels in weight_levels.items():
        if data is None:
            inputs: Iterable[Mapping[str, NDArray[Any]]] = [sample_input(graph, 2, {})]
        else:
            inputs = batches(open_data(Path(data), signature(graph)), 50)
        simulated = calibrate(graph, inputs, algo=algo, weight_levels=levels)
        (root / f"int8{suffix}").mkdir()
        save_dir(convert(simulated)[0], root / f"int8{suffix}")
        if data is not None:
            (root / f"quant{suffix}").mkdir()
            save_dir(lower_quantizers(simulated), root / f"quant{suffix}")


def ptq(
    model: str,
    data: str,
    output: str,
    *,
    algo: str = "avg",
    weight_levels: int = 127,
    batch_size: int = 32,
    batch_num: int | None = None,
    ops_to_quantize: Sequence[str] = (),
    op_ids_to_skip: Sequence[int] = (),
) -> Json:
    """FP32 model directory + calibration data -> fake-quantized model directory."""
    graph = load_dir(Path(model))
    dataset = open_data(Path(data), signature(graph))
    total = min(len(dataset), batch_size * batch_num) if batch_num else len(dataset)
    with fresh_dir(Path(output)) as staging, _about(data):
        simulated = calibrate(
            graph,
            batches(dataset, batch_size, batch_num),
            algo=algo,
            ops_to_quantize=ops_to_quantize,
            op_ids_to_skip=op_ids_to_skip,
            weight_levels=weight_levels,
            progress=lambda done: report_progress("calibrate", done, total),
        )
        save_dir(lower_quantizers(simulated), staging)
    return {"samples": total, "fake_quantized": simulated.op_counts()["fake_quant"]}


def convert_model(
    quant_model_path: str,
    output: str,
    *,
    ops_to_quantize: Sequence[str] = (),
    op_ids_to_skip: Sequence[int] = (),
    debug: str | None = None,
) -> Json:
    """Fake-quantized model directory -> INT8 model directory; with `debug`, a .dot of the graph after each step."""
    report_progress("convert", 0, 3)
    graph = load_dir(Path(quant_model_path))
    report_progress("convert", 1, 3)
    with fresh_dir(Path(output)) as staging, _about(quant_model_path):
        if debug is None:
            result, coverage = convert(graph, ops_to_quantize=ops_to_quantize, op_ids_to_skip=op_ids_to_skip)
        else:
            with fresh_dir(Path(debug)) as drawings:
                steps: list[str] = []

                def draw(name: str, step: Graph) -> None:
                    steps.append(name)
                    (drawings / f"{len(steps):02d}_{name}.dot").write_text(dot(step))

                result, coverage = convert(
                    graph, ops_to_quantize=ops_to_quantize, op_ids_to_skip=op_ids_to_skip, seen=draw
                )
        report_progress("convert", 2, 3)
        save_dir(result, staging)
    report_progress("convert", 3, 3)
    return _coverage_json(coverage)


def _coverage_json(coverage: Coverage) -> Json:
    kept = [vars(entry) for entry in coverage.kept]
    return {"int8": dict(coverage.int8), "fp32": dict(coverage.fp32), "kept": kept}


def dot(graph: Graph) -> str:
    """A graph in Graphviz's language, ops as boxes with their id in parentheses, as --op-ids-to-skip takes them."""
    ids = numbered(graph)
    writers = graph.writers()
    place = {op: number for number, op in enumerate(graph.ops)}
    lines = ["digraph model {", "  node [shape=box];"]
    for op in graph.ops:
        label = f"{op.type}({ids[op]})" if op in ids else op.type
        if op.attr("mkldnn_data_type") == "int8":
            label += "\\nint8"
        lines.append(f'  n{place[op]} [label="{label}"];')
    for op in graph.ops:
        for name in dict.fromkeys(op.reads):
            if name in writers:
                text = name.replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'  n{place[writers[name]]} -> n{place[op]} [label="{text}"];')
    return "\n".join([*lines, "}"]) + "\n"


# --- running models


def _settings(run: Mapping[str, Any], threads: int, cache_capacity: int = 10) -> Settings:
    return Settings(
        precision=run["precision"],
        threads=threads,
        cache_capacity=cache_capacity,
        onednn=run.get("onednn", True),
        optimise=run.get("optimise", True),
    )


def count_ops(graph: Graph) -> tuple[int, int]:
    """(ops that are int8, convolutions and products that are not)."""
    int8 = [op for op in graph.ops if op.attr("mkldnn_data_type") == "int8"]
    weighted = [op for op in graph.ops if op.type in (*CONVS, *PRODUCTS, "fused_conv2d") and op not in int8]
    return len(int8), len(weighted)


def evaluate(
    runs: Sequence[Mapping[str, Any]],
    data: str,
    outputs: str,
    *,
    batch_size: int = 50,
    threads: int = 1,
    batch_num: int | None = None,
) -> list[Json]:
    """Run models ({"model", "precision"}) over one dataset; outputs and labels go to .npy files in `outputs`.

    The result of each run: samples, ops, seconds in predictor.run by batch, and overhead (the other share of wall
    time). Raises ModelError for NaN or Inf in an output.
    """
    results = []
    for number, run in enumerate(runs):
        graph = load_dir(Path(run["model"]))
        dataset = open_data(Path(data), signature(graph))
        total = min(len(dataset), batch_size * batch_num) if batch_num else len(dataset)
        collected: dict[str, list[NDArray[Any]]] = {}
        seconds = []
        with Predictor(Path(run["model"]), _settings(run, threads)) as predictor:
            predictor(next(batches(dataset, batch_size)))  # oneDNN builds its kernels on the first run
            what = f"{run['precision']} {Path(run['model']).name}"
            log_kernels(True)
            report_progress(what, 0, total)  # what the log shows from here to the next report is one run
            begin, done = time.perf_counter(), 0
            for batch in batches(dataset, batch_size, batch_num):
                predictor.feed(batch)
                start = time.perf_counter()
                predictor.run()
                seconds.append(time.perf_counter() - start)
                if not done:
                    log_kernels(False)
                for name, value in predictor.read().items():
                    collected.setdefault(name, []).append(value)
                done += len(next(iter(batch.values())))
                report_progress(what, done, total)
            wall = time.perf_counter() - begin
        joined = {name: np.concatenate(parts) for name, parts in collected.items()}
        for name, value in joined.items():
            if not np.isfinite(value).all():
                bad = int(np.argwhere(~np.isfinite(value))[0][0])
                raise ModelError(f"{run['model']}: NaN or Inf in output {name!r} at sample {bad}")
        first = next(iter(joined.values()))
        if first.ndim != 2:
            raise DataError(f"{run['model']}: its first output is {list(first.shape)}, not scores [N, classes]")
        np.save(Path(outputs) / "labels.npy", check_labels(dataset, first.shape[1])[: len(first)])
        for place, value in enumerate(joined.values()):
            np.save(Path(outputs) / f"{number}.{place}.npy", value)
        int8_ops, fp32_ops = count_ops(graph)
        results.append(
            {
                "model": run["model"],
                "precision": run["precision"],
                "samples": len(first),
                "outputs": list(joined),
                "int8_ops": int8_ops,
                "fp32_ops": fp32_ops,
                "run_s": seconds,
                "overhead": 1 - sum(seconds) / wall,
                "declared_macs": graph_macs(graph, min(batch_size, total)),
            }
        )
    return results


def sample_input(graph: Graph, batch: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[Any]]:
    """Generated input for timing. Raises DataError when a shape is open and not given."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, (shape, dtype) in signature(graph).items():
        full = tuple(shapes.get(name, (batch, *shape)))
        if any(size < 1 for size in full):
            raise DataError(f"model input {name!r} has the open shape {list(full)}: give --input-shape {name}=...")
        values = random.standard_normal(full, dtype=np.float32)
        arrays[name] = values if dtype == "float32" else (np.abs(values) * 2).astype(dtype)
    return arrays


def bench(
    contenders: Sequence[Sequence[Mapping[str, Any]]],
    *,
    batch: int = 1,
    threads: int = 1,
    budget_s: float = 6.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Json]:
    """Time models against each other: {"run": ..., "seconds": [...]} for each contender.

    A contender is a list of variants ({"model", "precision", "onednn", "optimise"}), of which the fastest in a short
    trial is measured. Contenders then alternate, round by round, on the same input, and the order within a round
    alternates too. In its turn a contender runs once untimed, because the other one has emptied the caches, and then
    a few times in a row, as a served model does: a round's value is the median of those. The number of rounds
    follows from the time budget: 10 to 60.
    """
    chosen = [_quickest(runs, batch, threads, shapes or {}) for runs in contenders]
    repeats = [int(np.clip(_TURN_S / quickest, 1, 10)) for quickest, _, _ in chosen]
    each_s = sum(quickest * (count + 1) for (quickest, _, _), count in zip(chosen, repeats, strict=True))
    rounds = int(np.clip(budget_s / each_s, 10, 60))
    seconds: list[list[float]] = [[] for _ in chosen]
    gc.disable()  # as timeit does; the process ends with this job
    for number in range(rounds):
        places = range(len(chosen)) if number % 2 == 0 else reversed(range(len(chosen)))
        for place in places:
            predictor = chosen[place][2]
            _timed(predictor)
            seconds[place].append(float(np.median([_timed(predictor) for _ in range(repeats[place])])))
        report_progress("bench", number + 1, rounds)
    return [{"run": dict(run), "seconds": times} for (_, run, _), times in zip(chosen, seconds, strict=True)]


def _timed(predictor: Predictor) -> float:
    start = time.perf_counter()
    predictor.run()
    return time.perf_counter() - start


_Candidate = tuple[float, Mapping[str, Any], Predictor]


def _quickest(
    runs: Sequence[Mapping[str, Any]], batch: int, threads: int, shapes: Mapping[str, Sequence[int]]
) -> _Candidate:
    """The fastest of a contender's variants in a short trial: (seconds of its best run, the variant, its predictor)."""
    best: _Candidate | None = None
    for run in runs:
        with _about(run["model"]):
            arrays = sample_input(load_dir(Path(run["model"])), batch, shapes)
        predictor = Predictor(Path(run["model"]), _settings(run, threads))
        predictor.feed(arrays)
        seconds = [_timed(predictor)]  # the first run builds the kernels
        while len(seconds) <= _WARM_UP and not (best and len(seconds) > 1 and seconds[-1] > _HOPELESS * best[0]):
            seconds.append(_timed(predictor))
        candidate = (min(seconds[1:]), run, predictor)
        loser = candidate if best and best[0] <= candidate[0] else best
        best = best if loser is candidate else candidate
        if loser:
            loser[2].close()
    assert best is not None
    return best
