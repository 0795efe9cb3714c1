"""The command line: parse, call, print, exit code. 0 done; 1 a gate failed; 2 bad input or usage, one line on stderr.

`--json` prints one JSON object on stdout and nothing else. Progress and warnings go to stderr, bars only on a terminal.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from quant import (
    cpu,
    download,
    fetch,
    graphviz,
    isolate,
    metrics,
    pipeline,
    preprocess,
    registry,
    report,
    zoo,
    zoo_report,
    zoo_suite,
)
from quant.cluster import Cluster
from quant.collect import Sequential
from quant.errors import OptionError, OutputError, QuantError, check_choice
from quant.numerics import bits_of
from quant.observers import ALGORITHMS, BEST
from quant.outcomes import Store, default_root
from quant.readers import FORMATS, format_of
from quant.record import Machine, Record, to_json
from quant.sequences import Column, Ragged, values_of
from quant.sequential import ALPHA

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
_out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Isa = Annotated[
    str | None, typer.Option(help="Cap oneDNN to an ISA: avx2, avx512_core, avx512_core_vnni, avx512_core_amx.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one run.")]
Model = Annotated[Path, typer.Option("--model", help="Model directory.")]
Data = Annotated[Path, typer.Option(help="Labelled data in one of the formats of --format.")]
Format = Annotated[
    str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}; default: what the file's suffix tells.")
]
Labels = Annotated[Path | None, typer.Option(help="File of labels, for data without them (pairs).")]
BatchNum = Annotated[int | None, typer.Option(min=1, help="Use only this many batches.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run everything again; what earlier runs kept is replaced.")]
ClusterAt = Annotated[
    str | None, typer.Option("--cluster", help="Run on the workers of dask's scheduler at tcp://host:port.")
]
ClusterWait = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the scheduler, and for a worker.")]
OpTypes = Annotated[str, typer.Option("--ops-to-quantize", help="Comma-separated op types; empty: all quantizable.")]
OpIds = Annotated[str, typer.Option("--op-ids-to-skip", help="Comma-separated op ids (see --debug) to keep in FP32.")]


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _ids(text: str) -> list[int]:
    for part in _list(text):
        if not part.isdecimal():
            raise OptionError(f"--op-ids-to-skip: {part!r} is not an op id")
    return [int(part) for part in _list(text)]


def _precision(text: str) -> str:
    check_choice("precision", text, ("fp32", "quant", "int8", "bf16"))
    return text


def _shapes(specs: Sequence[str]) -> dict[str, list[int]]:
    """name=1,3,224,224 -> {name: [1, 3, 224, 224]}"""
    shapes = {}
    for spec in specs:
        name, _, dims = spec.partition("=")
        if not name or not _list(dims) or not all(part.isdecimal() and int(part) for part in _list(dims)):
            raise OptionError(f"--input-shape: {spec!r} is not name=1,3,224,224")
        shapes[name] = [int(part) for part in _list(dims)]
    return shapes


@contextmanager
def _bar(*amount: ProgressColumn) -> Iterator[isolate.Progress]:
    """A progress function: one bar with an ETA, on a terminal only; `amount` shows how much, by default m/n."""
    shown = amount or (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *shown, TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("starting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            if done == 0 or bars.tasks[0].total != (total or None):
                bars.reset(task, total=total or None)
            bars.update(task, description=what, completed=done)

        yield tell


def _warn_below_avx512(isa: str | None) -> None:
    if cpu.tier_of(isa) is cpu.TIERS[0]:
        _err.print(f"warning: tier {cpu.TIERS[0].name}: {cpu.TIERS[0].expects}")


def _print_json(content: Any) -> None:
    print(json.dumps(content))


@app.command("cpu")
def cpu_command(as_json: Json = False) -> None:
    """What this CPU is, what it can stand for, and what to expect of INT8."""
    machine, tier = Machine.here(), cpu.detect()
    if as_json:
        reach = [other.name for other in cpu.reachable()]
        _print_json({**asdict(machine), "expects": tier.expects, "reachable": reach})
        return
    _out.print(f"tier      {tier.name}: {tier.expects}")
    _out.print(f"flags     {' '.join(machine.flags)}")
    _out.print(f"cores     {machine.cores}")
    _out.print(f"reachable {', '.join(other.cap.lower() for other in cpu.reachable())} (--isa)")


@app.command("models")
def models_command() -> None:
    """The models that the suite knows."""
    for spec in registry.MODELS:
        limits = ", ".join(f"{100 * limit:.1f} points of {metric}" for metric, limit in spec.max_drop.items())
        _out.print(f"{spec.name:14} {spec.title:14} drop at most {limits}")


@app.command()
def ptq(
    model: Model,
    data: Annotated[Path, typer.Option(help="Calibration data, in one of the formats of --format.")],
    output: Annotated[Path, typer.Option(help="Where the fake-quantized model goes: absent, or an empty directory.")],
    algo: Annotated[
        str, typer.Option(help="abs_max, min_max, avg, hist, KL, mse, or best: of these, by tensor.")
    ] = "avg",
    target: Annotated[str | None, typer.Option(help="CPU tier the model is for; default: this CPU's.")] = None,
    format: Format = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    batch_num: BatchNum = None,
    ops_to_quantize: OpTypes = "",
    op_ids_to_skip: OpIds = "",
    save_calibration_table: Annotated[
        Path | None, typer.Option(help="Also write the thresholds to this file, 'name threshold' a line.")
    ] = None,
) -> None:
    """Calibrate an FP32 model: write its fake-quantized twin."""
    check_choice("calibration algorithm", algo, (*ALGORITHMS, BEST))
    arguments = {
        "model": str(model),
        "data": str(data),
        "output": str(output),
        "algo": algo,
        "format": format,
        "batch_size": batch_size,
        "batch_num": batch_num,
        "weight_levels": pipeline.weight_levels(target),
        "ops_to_quantize": _list(ops_to_quantize),
        "op_ids_to_skip": _ids(op_ids_to_skip),
        "save_table": None if save_calibration_table is None else str(save_calibration_table),
    }
    with _bar() as bar:
        result = isolate.call("quant.jobs:ptq", arguments, threads=cpu.cores(), progress=bar)
    _out.print(f"{output}: {result['fake_quantized']} tensors quantized from {result['samples']} samples")
    if algo == BEST:
        _out.print(
            "algorithms: " + ", ".join(f"{name} {count}" for name, count in sorted(result["algorithms"].items()))
        )
    _out.print(_sizes(result["bytes"]))


def _sizes(sizes: Mapping[str, int]) -> str:
    """A line on what two models take on disk, given as precision -> bytes."""
    (was, before), (now, after) = sizes.items()
    return f"on disk: {before:,} bytes {was}, {after:,} bytes {now} ({100 * after / before:.1f}%)"


@app.command()
def qat(
    row: Annotated[str | None, typer.Argument(help="A row of `quant models`; or give --model and --data.")] = None,
    output: Annotated[
        Path, typer.Option(help="Where the fake-quantized model goes: absent, or an empty directory.")
    ] = ...,  # type: ignore[assignment]
    config: Annotated[
        Path | None, typer.Option(help="JSON with keys of PaddleSlim's quant_aware: weight_bits, moving_rate, ...")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to write now and then, and to go on from when it is there.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="FP32 model directory of your own.")] = None,
    data: Annotated[Path | None, typer.Option(help="Training data for it, in one of the formats of --format.")] = None,
    format: Format = None,
    labels: Labels = None,
    steps: Annotated[int, typer.Option(min=1, help="Of --model.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Of --model.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of --model; Adam's, falling to 0.")] = 1e-4,
    target: Annotated[str | None, typer.Option(help="CPU tier the model is for; default: this CPU's.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Judge a row on all its test data.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model with fake quantisation in it; for a row, also convert and compare with calibration.

    Exit code 1 when a row's INT8 is further below FP32 than its limit, or below calibration alone.
    """
    if (row is None) == (model is None and data is None) or (model is None) != (data is None):
        raise OptionError("give either a row, or --model and --data")
    settings = {"weight_bits": bits_of(pipeline.weight_levels(target)), **_config(config)}
    if row is None:
        arguments = {
            "model": str(model),
            "data": str(data),
            "output": str(output),
            "config": settings,
            "training": {"steps": steps, "batch": batch_size, "rate": learning_rate},
            "format": format,
            "labels": None if labels is None else str(labels),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "threads": cpu.cores(),
        }
        with _bar() as bar:
            result = isolate.call("quant.jobs:qat", arguments, threads=cpu.cores(), progress=bar)
        if as_json:
            _print_json(result)
            return
        _out.print(f"{output}: {_trained(result)}")
        return
    spec = registry.find(row)
    with _bar() as bar, tempfile.TemporaryDirectory(prefix="quant-trained-") as scratch:
        result = pipeline.tune(spec, output, config=settings, checkpoint=checkpoint, progress=bar)
        (Path(scratch) / "quant").symlink_to(output.resolve())
        arguments = {"quant_model_path": str(output), "output": str(Path(scratch) / "int8")}
        converted = isolate.call("quant.jobs:convert_model", arguments, progress=bar)
        records = pipeline.judge_tuned(spec, Path(scratch), samples=50_000 if full else None, progress=bar)
    missed, sizes = report.tuned_misses(records), {**result["bytes"], **converted["bytes"]}
    if as_json:
        names = ("fp32", "ptq_int8", "quant", "int8")
        scores = {name: record.score(spec.metric) for name, record in zip(names, records, strict=True)}
        _print_json({**result, "model": row, "metric": spec.metric, **scores, "bytes": sizes, "missed": missed})
    else:
        _out.print(f"{output}: {_trained(result)}")
        _out.print(report.rich_table(report.tuned_table(records, sizes)))
        for line in missed:
            _out.print(f"missed: {line}")
    if missed:
        raise typer.Exit(1)


def _trained(result: Mapping[str, Any]) -> str:
    losses = result["losses"]
    gone_on = f" (resumed at {result['resumed_from']})" if result["resumed_from"] else ""
    told = f"loss {losses[0]:.4f} to {losses[-1]:.4f}" if losses else "nothing left to do"
    return f"{result['steps']} steps{gone_on}, {told}"


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise OptionError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path}: not a JSON object of configuration keys")
    return content


@app.command()
def convert(
    quant_model_path: Annotated[
        Path, typer.Option(help="Fake-quantized model directory; with --calibration-file also an FP32 one.")
    ],
    int8_model_save_path: Annotated[
        Path, typer.Option(help="Where the INT8 model goes: absent, or an empty directory.")
    ],
    ops_to_quantize: OpTypes = "",
    op_ids_to_skip: OpIds = "",
    calibration_file: Annotated[
        Path | None, typer.Option(help="Thresholds of activations, 'name threshold' a line: calibration_table.txt.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="CPU tier, for an FP32 model with --calibration-file; default: this CPU's.")
    ] = None,
    debug: Annotated[Path | None, typer.Option(help="Directory for drawings of the graph after each step.")] = None,
    as_json: Json = False,
) -> None:
    """Convert a fake-quantized model to a real oneDNN INT8 model, and say what became INT8.

    With --calibration-file, the file's thresholds replace the model's, or quantize an FP32 model.
    """
    if target is not None and calibration_file is None:
        raise OptionError("--target: only for an FP32 model with --calibration-file; else the weights are quantized")
    arguments = {
        "quant_model_path": str(quant_model_path),
        "output": str(int8_model_save_path),
        "ops_to_quantize": _list(ops_to_quantize),
        "op_ids_to_skip": _ids(op_ids_to_skip),
        "debug": None if debug is None else str(debug),
        "calibration_file": None if calibration_file is None else str(calibration_file),
        "weight_levels": pipeline.weight_levels(target),
        "target": target,
    }
    with _bar() as bar:
        result = isolate.call("quant.jobs:convert_model", arguments, progress=bar)
        wrong = [] if debug is None else graphviz.draw_all(debug, progress=bar)
    for line in wrong:
        _err.print(f"warning: {line}")
    if as_json:
        _print_json({"model": str(int8_model_save_path), **result})
        return
    kinds = sorted({*result["int8"], *result["fp32"]})
    rows = [(kind, str(result["int8"].get(kind, 0)), str(result["fp32"].get(kind, 0))) for kind in kinds]
    _out.print(report.rich_table(report.Table("Converted", ("Op type", "INT8", "FP32"), tuple(rows))))
    for kept in result["kept"]:
        _out.print(f"FP32: {kept['op_type']}({kept['op_id']}) -> {kept['output']}: {kept['reason']}")
    if "table" in result:
        _print_table_use(calibration_file, result["table"], "fp32" in result["bytes"])
    _out.print(_sizes(result["bytes"]))


def _print_table_use(path: Path | None, found: Mapping[str, Any], was_fp32: bool) -> None:
    """What became of a calibration table's entries."""
    _out.print(f"{path}: {found['used']} entries used, {found['unused']} not needed", soft_wrap=True)
    if found["missing"]:
        then = "the ops that read them stay FP32" if was_fp32 else "they keep the model's thresholds"
        named = ", ".join(found["missing"][:5]) + ", ..." * (len(found["missing"]) > 5)
        _out.print(f"no entry for {len(found['missing'])} rounded tensors, {then}: {named}", soft_wrap=True)


@app.command("eval")
def eval_command(
    model: Model,
    data: Data,
    precision: Annotated[str, typer.Option(help="fp32, quant, int8 or bf16.")] = "fp32",
    metric: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(metrics.METRICS)}; default: those usual for the data.")
    ] = "",
    format: Format = None,
    labels: Labels = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 50,
    threads: Threads = 1,
    isa: Isa = None,
    batch_num: BatchNum = None,
    fresh: Fresh = False,
    cluster_at: ClusterAt = None,
    cluster_wait: ClusterWait = 30.0,
    save_outputs: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz.")] = None,
    as_json: Json = False,
) -> None:
    """Score one model on labelled data. What was run before is kept, and not run again."""
    names = _metrics(metric, data, format)
    run = {"model": str(model), "precision": _precision(precision)}
    with _bar() as bar:
        [found] = pipeline.evaluate(
            [run],
            data,
            format=format,
            labels=labels,
            isa=isa,
            batch_size=batch_size,
            threads=threads,
            batch_num=batch_num,
            store=_store(fresh),
            remote=_remote(cluster_at, cluster_wait),
            progress=bar,
        )
    _warn_below_avx512(isa)
    result, shown = found.result, found.proof
    scores = {name: _score(found.counts(name), name) for name in names}
    ms = [1e3 * value for value in result["run_s"]]
    latency = {"median": float(np.median(ms)), "p95": float(np.quantile(ms, 0.95))}
    if save_outputs is not None:
        _save_npz(save_outputs, _flat(dict(zip(result["outputs"], found.outputs, strict=True))))
    content = {
        "model": str(model),
        "precision": precision,
        "isa": cpu.tier_of(isa).name,
        "samples": result["samples"],
        "stored_samples": result["stored_samples"],
        "measured": result["measured"],
        "hosts": result["hosts"],
        "metrics": scores,
        "latency_ms": latency,
        "int8_ops": result["int8_ops"],
        "fp32_ops": result["fp32_ops"],
        "int8_mac_share": shown.share,
        "kernel_isas": shown.isas,
        "overhead": result["overhead"],
    }
    if as_json:
        _print_json(content)
        return
    told = ", ".join(f"{name} {100 * value:.2f}%" for name, value in scores.items())
    _out.print(f"{told} of {result['samples']} samples; {latency['median']:.2f} ms a batch of {batch_size} (median)")
    _out.print(f"INT8 kernels did {100 * shown.share:.1f}% of the multiply-accumulates {' '.join(shown.isas)}")
    _print_stored({precision: result})


def _store(fresh: bool) -> Store:
    return Store(default_root(), fresh)


def _remote(address: str | None, wait_s: float) -> Cluster | None:
    return None if address is None else Cluster(address, wait_s)


def _print_stored(results: Mapping[str, Mapping[str, Any]]) -> None:
    """How many samples are of earlier runs, and from when; `results`: precision -> result of pipeline.evaluate."""
    counts = {precision: result["stored_samples"] for precision, result in results.items()}
    if not any(counts.values()):
        return
    moments = sorted(moment.partition("+")[0] for result in results.values() for moment in result["measured"])
    hosts = sorted({host for result in results.values() for host in result["hosts"]})
    alike = len(set(counts.values())) == 1
    told = f"{max(counts.values()):,}" if alike else ", ".join(f"{key} {value:,}" for key, value in counts.items())
    samples = next(iter(results.values()))["samples"]
    when = moments[0] if moments[0] == moments[-1] else f"{moments[0]} to {moments[-1]}"
    _out.print(
        f"{told} of {samples:,} samples from an earlier run: {when} UTC, {', '.join(hosts)} (--fresh runs again)"
    )


def _metrics(text: str, data: Path, format: str | None) -> list[str]:
    names = _list(text) or list(metrics.USUAL[format_of(data, format)])
    for name in names:
        check_choice("metric", name, metrics.METRICS)
    return names


def _score(counts: NDArray[np.int64], metric: str) -> float:
    return float(metrics.METRICS[metric].score(counts.sum(0)))


def _flat(outputs: Mapping[str, Column]) -> dict[str, Any]:
    """Outputs for an .npz: sequences as their values, and their offsets as NAME.offsets."""
    arrays: dict[str, Any] = {}
    for name, column in outputs.items():
        arrays[name] = values_of(column)
        if isinstance(column, Ragged):
            arrays[f"{name}.offsets"] = column.offsets
    return arrays


def _save_npz(path: Path, arrays: dict[str, Any]) -> None:
    staging = path.with_name(f".{path.name}.part.npz")
    try:
        np.savez(staging, **arrays)
        staging.rename(path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror})") from error
    finally:
        staging.unlink(missing_ok=True)


@app.command()
def compare(
    int8_model: Annotated[Path, typer.Option(help="INT8 model directory.")],
    data: Data,
    fp32_model: Annotated[
        Path | None, typer.Option(help="FP32 model directory; without, INT8 is compared with --quant-model.")
    ] = None,
    quant_model: Annotated[Path | None, typer.Option(help="Fake-quantized model directory.")] = None,
    acc_diff_threshold: Annotated[
        float, typer.Option(min=0.0, help="Largest accepted drop of the metric, 0.01 is one point.")
    ] = 0.01,
    metric: Annotated[str, typer.Option(help="What is compared; default: the first usual one for the data.")] = "",
    format: Format = None,
    labels: Labels = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 50,
    batch_num: BatchNum = None,
    isa: Isa = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop when PASS or FAIL is certain; the error of all looks is 5%.")
    ] = False,
    fresh: Fresh = False,
    cluster_at: ClusterAt = None,
    cluster_wait: ClusterWait = 30.0,
    as_json: Json = False,
) -> None:
    """Compare FP32, simulated and INT8 on the same samples. What was run before is kept, and not run again.

    Exit code 1 when INT8 drops more than the threshold, or when no INT8 kernel ran.
    """
    models = {"fp32": fp32_model, "quant": quant_model, "int8": int8_model}
    runs = [{"model": str(path), "precision": key} for key, path in models.items() if path is not None]
    if len(runs) < 2:
        raise OptionError("give --fp32-model, --quant-model, or both")
    reference = runs[0]["precision"]
    names = _metrics(metric, data, format)
    name = names[0]
    until = None
    if sequential:
        until = Sequential(name, acc_diff_threshold, data, [run["model"] for run in runs])
    with _bar() as bar:
        evaluated = pipeline.evaluate(
            runs,
            data,
            format=format,
            labels=labels,
            isa=isa,
            batch_size=batch_size,
            batch_num=batch_num,
            store=_store(fresh),
            remote=_remote(cluster_at, cluster_wait),
            until=until,
            progress=bar,
        )
        found = {run.result["precision"]: run for run in evaluated}
    counts = {precision: run.counts(name) for precision, run in found.items()}
    decision = until.decision if until else None
    drop = decision.drop if decision else metrics.paired(counts[reference], counts["int8"], name)
    decided = decision.verdict if decision else metrics.verdict(drop, acc_diff_threshold)
    int8, share = found["int8"], found["int8"].proof
    references = {precision: run for precision, run in found.items() if precision != "int8"}
    content: dict[str, Any] = {
        "metric": name,
        "reference": reference,
        **{other: {precision: _score(run.counts(other), other) for precision, run in found.items()} for other in names},
        "drop": asdict(drop),
        "verdict": decided.result,
        "on_point": decided.on_point,
        "needed": decided.needed,
        "sqnr_db": {
            precision: metrics.sqnr(run.scores[0], int8.scores[0])
            for precision, run in references.items()
            if int8.scores  # a model may give out decisions only
        },
        "int8_mac_share": share.share,
        "kernel_isas": share.isas,
        "stored_samples": {precision: run.result["stored_samples"] for precision, run in found.items()},
        "measured": {precision: run.result["measured"] for precision, run in found.items()},
        "sequential": decision.summary() if decision else None,
    }
    if "quant" in found:
        content["engine_drop"] = asdict(metrics.paired(counts["quant"], counts["int8"], name, drop.confidence))
    if as_json:
        _print_json(content)
    else:
        for other in names:
            _out.print(f"{other}: " + ", ".join(f"{key} {100 * value:.2f}%" for key, value in content[other].items()))
        interval = f"[{100 * drop.low:+.2f}, {100 * drop.high:+.2f}]"
        whose = "" if reference == "fp32" else " to the simulation"
        _out.print(f"{name} drop{whose} {100 * drop.drop:+.2f} points {interval}, p {drop.p_value:.3f}: {decided}")
        if decision:
            told = decision.summary()
            _out.print(
                f"sequential: {told['samples']:,} of {told['of']:,} samples were needed; look {told['look']} of "
                f"{told['looks']}, interval at {100 * told['confidence']:.3f}%, error of all looks {100 * ALPHA:.0f}%"
            )
        if "quant" in found and reference == "fp32":
            engine = content[name]["quant"] - content[name]["int8"]
            _out.print(f"of which the engine: {100 * engine:+.2f} points")
        _out.print(f"INT8 kernels did {100 * share.share:.1f}% of the multiply-accumulates {' '.join(share.isas)}")
        _print_stored({precision: run.result for precision, run in found.items()})
    if not share.int8_kernels:
        _err.print(f"{int8_model}: not one INT8 kernel ran: this is not an INT8 model")
    if decided.result == "FAIL" or not decided.on_point or not share.int8_kernels:
        raise typer.Exit(1)


@app.command()
def bench(
    model: Model,
    against: Annotated[
        Path | None, typer.Option(help="A second model, timed in alternation; ratio = it / --model.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of --model: fp32, quant, int8 or bf16.")] = "int8",
    against_precision: Annotated[str, typer.Option(help="Of --against.")] = "fp32",
    threads: Annotated[str, typer.Option(help="Comma-separated thread counts.")] = "1",
    batch_size: Annotated[str, typer.Option(help="Comma-separated batch sizes.")] = "1",
    isa: Isa = None,
    data: Annotated[Path | None, typer.Option(help="Time on this data's samples, not on generated input.")] = None,
    format: Format = None,
    samples: Annotated[int, typer.Option(min=1, help="Of --data.")] = 500,
    by_length: Annotated[bool, typer.Option("--by-length", help="Sort --data's samples by length.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each batch of --data in a row.")] = 1,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="name=1,3,224,224 for an input with open dimensions.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a model, or two in alternation. An FP32 model is timed in its fastest variant."""
    shapes = _shapes(input_shape or [])

    def contender(path: Path, kind: str) -> list[dict[str, Any]]:
        return pipeline.fp32_variants(path) if kind == "fp32" else [{"model": str(path), "precision": _precision(kind)}]

    contenders = [contender(model, _precision(precision))]
    if against is not None:
        contenders.append(contender(against, _precision(against_precision)))
    feed: dict[str, Any] = {}
    if data is not None:
        feed = {"data": str(data), "format": format, "samples": samples, "sort": by_length, "repeat": repeat}
    rows = []
    for thread_count in _counts("--threads", threads):
        for batch in _counts("--batch-size", batch_size):
            with _bar() as bar:
                timed = pipeline.bench(
                    contenders, isa=isa, threads=thread_count, batch=batch, shapes=shapes, progress=bar, **feed
                )
            ms = 1e3 * np.array(timed[0]["seconds"])
            row = {
                "model": str(model),
                "precision": precision,
                "isa": cpu.tier_of(isa).name,
                "threads": thread_count,
                "batch": batch,
                "median_ms": float(np.median(ms)),
                "p95_ms": float(np.quantile(ms, 0.95)),
                "samples": len(ms),
            }
            if against is not None:
                other = 1e3 * np.array(timed[1]["seconds"])
                ratio, low, high = metrics.ratio_interval(other, ms)
                row |= {"against": str(against), "against_median_ms": float(np.median(other))}
                row |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
            rows.append(row)
    if as_json:
        _print_json({"results": rows})
        return
    columns = ["threads", "batch", "median_ms", "p95_ms", "samples"]
    columns += ["against_median_ms", "ratio", "ratio_low", "ratio_high"] if against is not None else []
    cells = [
        tuple(f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in columns) for row in rows
    ]
    _out.print(report.rich_table(report.Table(f"{model} {precision}", tuple(columns), tuple(cells))))


def _counts(option: str, text: str) -> list[int]:
    if not _list(text) or not all(part.isdecimal() and int(part) for part in _list(text)):
        raise OptionError(f"{option}: {text!r} is not a list of numbers above 0")
    return [int(part) for part in _list(text)]


@app.command("preprocess")
def preprocess_command(
    data_dir: Annotated[Path, typer.Option(help="Directory that the list's paths are relative to.")],
    output_file: Annotated[Path, typer.Option(help="The image binary to write.")],
    label_list: Annotated[
        Path | None, typer.Option(help="List of 'path label'; default: val_list.txt in --data-dir.")
    ] = None,
    data_dim: Annotated[int, typer.Option(min=1, help="Height and width.")] = 224,
) -> None:
    """Make an image binary from a folder of images. A run that was cut off goes on where it stopped."""
    with _bar() as bar:
        count = preprocess.preprocess(
            data_dir,
            label_list or data_dir / "val_list.txt",
            output_file,
            data_dim,
            lambda done, total: bar("preprocess", done, total),
        )
    _out.print(f"{output_file}: {count} images of 3x{data_dim}x{data_dim}")


@app.command("fetch")
def fetch_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="What to fetch; see --list.")] = None,
    output: Annotated[Path, typer.Option(help="Each goes into a directory of its name in this one.")] = Path("zoo"),
    mirror: Annotated[
        str | None, typer.Option(help="http://host[:port][/path] in place of the published server.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="The archive's SHA-256, if you know it.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Tries in a row that bring nothing new, before it gives up.")] = 4,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds without a byte until a try counts as failed.")
    ] = 60,
    list_all: Annotated[bool, typer.Option("--list", help="Print what there is: name, address, source.")] = False,
) -> None:
    """Download what the seeds publish: models and data. A download that was cut off goes on where it stopped."""
    if list_all:
        for artefact in zoo.ARTEFACTS:
            _out.print(f"{artefact.name:15} {artefact.url}  {artefact.source}", soft_wrap=True)
        return
    artefacts = [zoo.find_artefact(name) for name in names or []]
    if not artefacts:
        raise OptionError("fetch: name what to fetch; --list prints what there is")
    if sha256 is not None and len(artefacts) > 1:
        raise OptionError("--sha256: of one archive, but several are named")
    patience = download.Patience(retries=retries, timeout_s=timeout)
    for artefact in artefacts:
        with _bar(DownloadColumn(), TransferSpeedColumn()) as bar:

            def tell(what: str, done: int, total: int, name: str = artefact.name) -> None:
                bar(f"{name}: {what}", done, total)

            found = fetch.fetch(artefact, output, mirror=mirror, sha256=sha256, patience=patience, progress=tell)
        if found.as_published is False and not found.was_there:
            told = f"not the archive that Paddle's own tests demand (MD5 {artefact.md5})"
            _err.print(f"warning: {artefact.name}: {told}; taken all the same, as --mirror or --sha256 asks")
        what = "was there, unchanged" if found.was_there else f"{found.bytes:,} bytes fetched"
        places = " ".join(str(path) for path in found.holds)
        _out.print(f"{places}  {what}; archive's SHA-256 {found.sha256}", soft_wrap=True)


@app.command()
def suite(
    model: Annotated[list[str] | None, typer.Option("--model", help="Only these rows (repeatable).")] = None,
    zoo_dir: Annotated[
        Path | None, typer.Option("--zoo", help="Instead of the embedded models, those that `quant fetch` put there.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Accuracy on all the data there is: 50,000 images.")] = False,
    output_dir: Annotated[Path, typer.Option(help="Where report.md and report.json go.")] = Path("out"),
) -> None:
    """Accuracy and speed of every row on the embedded data, or of the published models; report.md and report.json."""
    specs = [registry.find(name) for name in model] if model else list(registry.MODELS)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output_dir}: can't be written ({error.strerror})") from error
    if not os.access(output_dir, os.W_OK):
        raise OutputError(f"{output_dir}: can't be written")
    machine = Machine.here()
    _warn_below_avx512(None)

    def tell(record: Record) -> None:
        if not sys.stderr.isatty():
            what = "accuracy" if record.outcomes else "speed"
            _err.print(f"{what}: {record.model} {record.precision} {record.isa} {record.threads} threads: measured")

    with _bar() as bar:
        if zoo_dir is None:
            exact, timed = pipeline.suite(specs, samples=50_000 if full else None, tell=tell, progress=bar)
            tables = [report.accuracy_table(exact), report.speed_table(timed)]
            missed, passed = report.misses(exact, timed), report.passed(exact, timed)
        else:
            found, lacks = zoo_suite.sort_out([spec.name for spec in specs], zoo_dir, bar)
            exact, timed = zoo_suite.suite(found, full=full, tell=tell, progress=bar)
            tables = zoo_report.tables(exact, timed, lacks, machine.cores)
            missed, passed = zoo_report.misses(exact, timed), zoo_report.passed(exact, timed)
    for table in tables:
        _out.print(report.rich_table(table))
    for name, text in (
        ("report.md", report.markdown(machine, tables, missed)),
        ("report.json", to_json(machine, (*exact, *timed))),
    ):
        staging = output_dir / f".{name}.part"
        staging.write_text(text, encoding="utf-8")
        staging.rename(output_dir / name)
    for line in (*report.skipped_tiers(machine), *(f"missed: {line}" for line in missed)):
        _out.print(line)
    if not passed:
        raise typer.Exit(1)


def _spelled(argv: Sequence[str]) -> list[str]:
    """Options with dashes for underscores, as the seeds' scripts spell them."""
    fixed = []
    for arg in argv:
        name, equals, value = arg.partition("=")
        fixed.append(name.replace("_", "-") + equals + value if arg.startswith("--") else arg)
    return fixed


_INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    command = typer.main.get_command(app)
    try:
        result = command.main(_spelled(sys.argv[1:] if argv is None else argv), "quant", standalone_mode=False)
    except QuantError as error:
        return _fail(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of the parser's usage errors
            raise
        return _fail(error.format_message())
    if result == _INTERRUPTED:
        return _fail("interrupted")
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    _err.print(f"quant: {' '.join(message.split())}")
    return 2
