"""The steps that make models, as jobs: plain arguments in, plain results out, run in a child by `process.isolate`."""

import gc
import itertools
import json
import pkgutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quant import cpu
from quant.datasets.columns import Column
from quant.datasets.data_shapes import resized
from quant.datasets.readers import batches, files_behind
from quant.datasets.remarks import calibrating
from quant.diagnosis.check import check_int8, check_simulation, write_sample
from quant.diagnosis.crossings import crossings_of
from quant.errors import ConversionError, DataError, ModelError, OptionError, OutputError, about
from quant.evaluation.parts import Store, data_digests, default_root
from quant.ir.drawing import quoted
from quant.ir.fusion import numbered
from quant.ir.graph import Graph, load_dir, model_size, run_passes, save_dir
from quant.ir.ops.arithmetic import Sizes, arithmetic_of
from quant.ir.passes import NORMALISE, lower_quantizers
from quant.ir.shapes import sample_shapes
from quant.process.isolate import report_progress
from quant.quantization.calibration import calibrate
from quant.quantization.calibration_table import Applied, apply_table, read_table, table_of, write_table
from quant.quantization.conversion import Coverage, convert
from quant.quantization.observers import BATCH_SIZE, DEFAULT
from quant.runtime.inputs import opened, sample_input
from quant.search.for_speed import DECISIONS, SCHEMA, optimise
from quant.storage.files import fresh_dir

__all__ = ["convert_model", "dot", "prepare", "ptq", "qat", "quantize", "write_data"]

Json = dict[str, Any]


# --- making models


def write_data(function: str, split: str, count: int, output: str) -> None:
    """Write a dataset with a registry row's own function."""
    pkgutil.resolve_name(function)(split, count, Path(output))


def prepare(
    function: str,
    name: str,
    output: str,
    *,
    data: str | None,
    format: str,
    full_input: str,
    algo: str,
    weight_levels: Mapping[str, int],
) -> None:
    """Everything that one registry row is measured on, as directories under `output`.

    `fp32` is the normalised model. For each entry of `weight_levels` (suffix -> levels) there is an int8 model, and
    its simulation when calibration `data` is given; without, a full-size model is calibrated on generated input, which
    the function `full_input` makes if there is one.
    """
    root = Path(output)
    with tempfile.TemporaryDirectory(prefix="quant-export-") as exported:
        pkgutil.resolve_name(function)(name, Path(exported))
        graph = run_passes(load_dir(Path(exported)), NORMALISE)
    (root / "fp32").mkdir()
    save_dir(graph, root / "fp32")
    for suffix, levels in weight_levels.items():
        inputs: Iterable[Mapping[str, Column]]
        if data is not None:
            inputs = batches(opened(graph, data, format), BATCH_SIZE)
        elif full_input:
            inputs = [pkgutil.resolve_name(full_input)(2)]
        else:
            inputs = [sample_input(graph, 2, {})]
        simulated = calibrate(
            graph,
            inputs,
            algo=algo,
            weight_levels=levels,
            progress=lambda done: report_progress(f"calibrate {name}", done, 0),
        )
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
    algo: str = DEFAULT,
    weight_levels: int = 127,
    batch_size: int = BATCH_SIZE,
    batch_num: int | None = None,
    format: str | None = None,
    ops_to_quantize: Sequence[str] = (),
    op_ids_to_skip: Sequence[int] = (),
    save_table: str | None = None,
    threads: int | None = None,
    check: bool = True,
) -> Json:
    """FP32 model directory + calibration data -> fake-quantized model directory, and a file with its thresholds.

    With `check` it is run once and compared with the FP32 model (quant.diagnosis.check), which may give a `note`.
    The result: samples, what is odd about them (quant.datasets.remarks), fake-quantized tensors, how many by which
    algorithm, and bytes of both models. Raises DataError for data of which nothing can be learned.
    """
    table = _table_place(save_table, Path(output))
    graph = load_dir(Path(model))
    dataset = opened(graph, data, format)
    graph = resized(graph, dataset.inputs)
    total = min(len(dataset), batch_size * batch_num) if batch_num else len(dataset)
    odd = calibrating(dataset, total)
    with fresh_dir(Path(output)) as staging:
        with about(model, ModelError, ConversionError, OptionError), about(data, DataError):
            simulated = calibrate(
                graph,
                batches(dataset, batch_size, batch_num),
                algo=algo,
                ops_to_quantize=ops_to_quantize,
                op_ids_to_skip=op_ids_to_skip,
                weight_levels=weight_levels,
                threads=threads,
                progress=lambda done: report_progress("calibrate", done, total),
            )
        save_dir(lower_quantizers(simulated), staging)
        first = next(iter(batches(dataset, batch_size, 1)))
        write_sample(staging, first)
        with about(model):
            note = check_simulation(graph, staging, first) if check else ""
        if table is not None:
            write_table(staging / table if table.name == str(table) else table, table_of(graph, simulated))
        sizes = {"fp32": model_size(Path(model)), "quant": model_size(staging)}
    chosen = Counter(op.attr("algorithm") for op in simulated.ops if op.type == "fake_quant")
    about_all = {"samples": total, "remarks": odd, "bytes": sizes, "note": note}
    return {**about_all, "fake_quantized": chosen.total(), "algorithms": dict(chosen)}


def _table_place(path: str | None, output: Path) -> Path | None:
    """Where a table of thresholds goes: a bare name lies in the output directory, which isn't there yet.

    Raises OutputError, before any work is done, when there is no such place.
    """
    if path is None:
        return None
    place = Path(path).resolve()
    if place.parent == output.resolve():
        return Path(place.name)
    if place.is_dir() or not place.parent.is_dir():
        raise OutputError(f"{path}: can't be written: {'a directory' if place.is_dir() else 'no such directory'}")
    return place


def qat(
    model: str,
    data: str,
    output: str,
    *,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    format: str | None = None,
    labels: str | None = None,
    checkpoint: str | None = None,
    fresh: bool = False,
    config_file: str | None = None,
    threads: int = 1,
    check: bool = True,
) -> Json:
    """FP32 model directory + training data -> fake-quantized model directory, fine-tuned; with `check` run once.

    The `checkpoint` is gone on from by the rule of storage.checkpoint, and gone when the model is there. `told`: the
    lines
    that say what was gone on with.
    `config_file`: where `config` comes from, for errors.
    """
    from quant.quantization.training.finetune import (  # these load Paddle's training side, which other jobs don't need
        Training,
        fine_tune,
    )
    from quant.quantization.training.program import Config

    with about(config_file) if config_file else nullcontext():
        settings = Config.of(config)
    plan = Training(**training)
    graph = load_dir(Path(model))
    dataset = opened(graph, data, format, labels, scored=True)
    graph = resized(graph, dataset.inputs)
    known: Json = {}
    if checkpoint is not None:
        files = files_behind(Path(data), format, Path(labels) if labels else None)
        known = {"data": data_digests(files, Store(default_root()).notes, report_progress)}
    told: list[str] = []
    with fresh_dir(Path(output)) as staging, about(model, ModelError, DataError, ConversionError):
        report_progress("calibrate", 0, plan.steps)
        trained, losses = fine_tune(
            graph,
            dataset,
            settings,
            plan,
            checkpoint=Path(checkpoint) if checkpoint else None,
            inputs=known,
            fresh=fresh,
            tell=told.append,
            threads=threads,
            progress=report_progress,
        )
        save_dir(lower_quantizers(trained), staging)
        first = next(iter(batches(dataset, plan.batch, 1)))
        write_sample(staging, first)
        if check:
            check_simulation(graph, staging, first, compare=False)
        sizes = {"fp32": model_size(Path(model)), "quant": model_size(staging)}
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    done = plan.steps - len(losses)
    return {"steps": plan.steps, "resumed_from": done, "losses": losses, "bytes": sizes, "told": told}


def convert_model(
    quant_model_path: str,
    output: str,
    *,
    ops_to_quantize: Sequence[str] = (),
    op_ids_to_skip: Sequence[int] = (),
    debug: str | None = None,
    calibration_file: str | None = None,
    weight_levels: int = 127,
    target: str | None = None,
    speed: Mapping[str, Any] | None = None,
    check: bool = True,
    called: str | None = None,
) -> Json:
    """Fake-quantized model directory -> INT8 model directory; with `debug`, a .dot of the graph after each step.

    A `calibration_file` has thresholds of activations; the model may then be FP32, and its weights get
    `weight_levels`, those of the CPU tier `target`, if the user named one.
    With `speed` ({"budget_s", "isa", "threads", "batch", "shapes", "fp32_model"}) the directory holds what is fastest
    on this CPU, and `decisions.json` (quant.search.for_speed); `debug` is then not taken.
    With `check` an INT8 model is run once and compared with its simulation (quant.diagnosis.check), which may give a
    `note`.
    `called`: what errors call the model; default: its path.
    The result: op counts by type, ops that stayed FP32, bytes of both models, what became of the file's entries, and
    the decisions.
    """
    report_progress("convert", 0, 3)
    graph, applied = load_dir(Path(quant_model_path)), None
    if calibration_file is not None:
        try:
            applied = apply_table(
                graph,
                read_table(Path(calibration_file)),
                source=calibration_file,
                weight_levels=weight_levels,
                ops_to_quantize=ops_to_quantize,
                op_ids_to_skip=op_ids_to_skip,
            )
        except ModelError as error:  # others are the table's, which they name
            raise ModelError(f"{quant_model_path}: {error}") from error
        if target is not None and not applied.was_fp32:
            raise OptionError(f"--target: the weights of {quant_model_path} are quantized already, for any target")
        graph = applied.graph
    report_progress("convert", 1, 3)
    decisions: Json = {}
    with ExitStack() as stack:
        drawings = stack.enter_context(fresh_dir(Path(debug))) if debug is not None else None
        staging = stack.enter_context(fresh_dir(Path(output)))
        stack.enter_context(about(called or quant_model_path))
        if speed is not None:
            own = quant_model_path if applied and applied.was_fp32 else speed.get("fp32_model")
            result, coverage, decisions = _fastest(graph, {**speed, "fp32_model": own}, ops_to_quantize, op_ids_to_skip)
            (staging / DECISIONS).write_text(json.dumps(decisions, indent=1) + "\n", encoding="utf-8")
        else:
            steps = itertools.count(1)

            def draw(name: str, step: Graph) -> None:
                if drawings is not None:
                    (drawings / f"{next(steps):02d}_{name}.dot").write_text(dot(step), encoding="utf-8")

            result, coverage = convert(graph, ops_to_quantize=ops_to_quantize, op_ids_to_skip=op_ids_to_skip, seen=draw)
        report_progress("convert", 2, 3)
        save_dir(result, staging)
        note = ""
        if check and decisions.get("choice") != "fp32":
            note = check_int8(graph, staging, Path(quant_model_path), threads=speed["threads"] if speed else 1)
        given = "fp32" if applied and applied.was_fp32 else "quant"
        made = "fp32" if decisions.get("choice") == "fp32" else "int8"
        sizes = {given: model_size(Path(quant_model_path)), made: model_size(staging)}
    report_progress("convert", 3, 3)
    told = {**({"table": _table_json(applied)} if applied else {}), **({"decisions": decisions} if decisions else {})}
    return {**_coverage_json(coverage), **_verdict(result), "bytes": sizes, "note": note, **told}


def quantize(
    model: str,
    data: str,
    output: str,
    *,
    ops_to_quantize: Sequence[str] = (),
    op_ids_to_skip: Sequence[int] = (),
    check: bool = True,
    **calibration: Any,
) -> Json:
    """FP32 model directory + calibration data -> output/quant as `ptq` makes it and output/int8 as `convert_model`
    does of that. Both are there, or none.

    `calibration`: further arguments of `ptq`. The result: those of both, sizes of all three models.
    """
    with fresh_dir(Path(output)) as staging:
        simulation = str(staging / "quant")
        calibrated = ptq(
            model,
            data,
            simulation,
            ops_to_quantize=ops_to_quantize,
            op_ids_to_skip=op_ids_to_skip,
            check=check,
            **calibration,
        )
        converted = convert_model(
            simulation,
            str(staging / "int8"),
            ops_to_quantize=ops_to_quantize,
            op_ids_to_skip=op_ids_to_skip,
            called=model,
            check=check,
        )
    notes = "; ".join(note for note in (calibrated["note"], converted["note"]) if note)
    return {
        **calibrated,
        **converted,
        "note": notes,
        "bytes": {**calibrated["bytes"], **converted["bytes"]},
    }


def _fastest(
    graph: Graph, speed: Mapping[str, Any], ops_to_quantize: Sequence[str], op_ids_to_skip: Sequence[int]
) -> tuple[Graph, Coverage, Json]:
    """quant.search.for_speed.optimise on generated input, and the whole content of decisions.json."""
    place = {key: speed[key] for key in ("isa", "threads", "batch", "shapes")}
    gc.disable()  # as timeit does; the process ends with this job
    result, coverage, found = optimise(
        graph,
        sample_input(graph, speed["batch"], speed["shapes"]),
        budget_s=speed["budget_s"],
        threads=speed["threads"],
        ops_to_quantize=ops_to_quantize,
        op_ids_to_skip=op_ids_to_skip,
        own=Path(speed["fp32_model"]) if speed["fp32_model"] else None,
    )
    machine = {"tier": cpu.tier_of(speed["isa"]).name, **place}
    return result, coverage, {"schema": SCHEMA, "cpu": machine, "budget_s": speed["budget_s"], **found}


def _table_json(applied: Applied) -> Json:
    return {"used": len(applied.used), "unused": len(applied.unused), "missing": list(applied.missing)}


def _verdict(graph: Graph) -> Json:
    """What shapes alone tell of a converted graph, for one sample; see ops.arithmetic and diagnosis.crossings."""
    shapes = sample_shapes(graph)
    found, between = arithmetic_of(graph, Sizes(1, shapes=shapes)), crossings_of(graph, shapes)
    return {"int8_mac_share": found.share, "uncounted": found.uncounted, "crossings": asdict(between)}


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
        label = [f"{op.type}({ids[op]})" if op in ids else op.type]
        if op.attr("mkldnn_data_type") == "int8":
            label.append("int8")
        lines.append(f"  n{place[op]} [label={quoted(*label)}];")
    for op in graph.ops:
        for name in dict.fromkeys(op.reads):
            if name in writers:
                lines.append(f"  n{place[writers[name]]} -> n{place[op]} [label={quoted(name)}];")
    return "\n".join([*lines, "}"]) + "\n"


# --- input for timing
