"""Commands that make something: data, downloads, fake-quantized and INT8 models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    DownloadColumn,
    TransferSpeedColumn,
)

from quant import cpu
from quant.cli.shared import (
    Algo,
    AllThreads,
    BatchNum,
    CalibrationBatch,
    Check,
    Format,
    Fresh,
    Isa,
    Json,
    Labels,
    Model,
    OpIds,
    OpTypes,
    Target,
    app,
    bar,
    err,
    ids,
    listed,
    out,
    print_json,
    shapes_of,
)
from quant.datasets import preprocess
from quant.errors import OptionError, check_choice
from quant.ir import drawing
from quant.ir.numerics import bits_of
from quant.process import isolate
from quant.quantization import targets
from quant.quantization.observers import ALGORITHMS, BATCH_SIZE, BEST, DEFAULT
from quant.reports import decisions, quantized, tables
from quant.storage import download
from quant.storage.files import scratch_dir
from quant.suites import embedded, registry
from quant.suites.published import catalogue, fetch

__all__ = ["convert", "fetch_command", "preprocess_command", "ptq", "qat"]

_SHOWN = 3  # FP32 ops between INT8 ops


@app.command()
def ptq(
    model: Model,
    data: Annotated[Path, typer.Option(help="Calibration data, in one of the formats of --format.")],
    output: Annotated[Path, typer.Option(help="Where the fake-quantized model goes: absent, or an empty directory.")],
    algo: Algo = DEFAULT,
    target: Target = None,
    format: Format = None,
    batch_size: CalibrationBatch = BATCH_SIZE,
    batch_num: BatchNum = None,
    ops_to_quantize: OpTypes = "",
    op_ids_to_skip: OpIds = "",
    save_calibration_table: Annotated[
        Path | None, typer.Option(help="Also write the thresholds to this file, 'name threshold' a line.")
    ] = None,
    threads: AllThreads = None,
    check: Check = True,
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
        "weight_levels": targets.weight_levels(target),
        "ops_to_quantize": listed(ops_to_quantize),
        "op_ids_to_skip": ids(op_ids_to_skip),
        "save_table": None if save_calibration_table is None else str(save_calibration_table),
        "threads": (count := threads or cpu.cores()),
        "check": check,
    }
    with bar() as tell:
        result = isolate.call("quant.suites.commands:ptq", arguments, threads=count, progress=tell)
    for line in result["remarks"]:
        err.print(f"warning: {line}")
    out.print(f"{output}: {result['fake_quantized']} tensors quantized from {result['samples']} samples")
    if algo == BEST:
        out.print("algorithms: " + ", ".join(f"{name} {count}" for name, count in sorted(result["algorithms"].items())))
    out.print(quantized.on_disk(result["bytes"]))
    _print_note(output, result["note"])


def _print_note(model: Path, note: str) -> None:
    if note:
        err.print(f"note: {model}: {note}", soft_wrap=True)


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
        Path | None, typer.Option(help="File to write now and then, and to go on from; gone when the model is there.")
    ] = None,
    fresh: Fresh = False,
    model: Annotated[Path | None, typer.Option(help="FP32 model directory of your own.")] = None,
    data: Annotated[Path | None, typer.Option(help="Training data for it, in one of the formats of --format.")] = None,
    format: Format = None,
    labels: Labels = None,
    steps: Annotated[int, typer.Option(min=1, help="Of --model.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Of --model.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of --model; Adam's, falling to 0.")] = 1e-4,
    target: Target = None,
    threads: AllThreads = None,
    full: Annotated[bool, typer.Option("--full", help="Judge a row on all its test data.")] = False,
    check: Check = True,
    as_json: Json = False,
) -> None:
    """Fine-tune a model with fake quantisation in it; for a row, also convert and compare with calibration.

    Exit code 1 when a row's INT8 is further below FP32 than its limit, or below calibration alone.
    """
    if (row is None) == (model is None and data is None) or (model is None) != (data is None):
        raise OptionError("give either a row, or --model and --data")
    count = threads or cpu.cores()
    settings = {"weight_bits": bits_of(targets.weight_levels(target)), **_config(config)}
    if row is None:
        arguments = {
            "model": str(model),
            "data": str(data),
            "output": str(output),
            "config": settings,
            "config_file": None if config is None else str(config),
            "training": {"steps": steps, "batch": batch_size, "rate": learning_rate},
            "format": format,
            "labels": None if labels is None else str(labels),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "check": check,
            "fresh": fresh,
            "threads": count,
        }
        with bar() as tell:
            result = isolate.call("quant.suites.commands:qat", arguments, threads=count, progress=tell)
        _say(result.pop("told"))
        if as_json:
            print_json(result)
            return
        out.print(f"{output}: {_trained(result)}")
        return
    spec = registry.find(row)
    with bar() as tell, scratch_dir("quant-trained") as scratch:
        kept: dict[str, Any] = {"checkpoint": checkpoint, "fresh": fresh}
        result = embedded.tune(spec, output, config=settings, **kept, threads=count, progress=tell)
        _say(result.pop("told"))
        (scratch / "quant").symlink_to(output.resolve())
        arguments = {"quant_model_path": str(output), "output": str(scratch / "int8")}
        converted = isolate.call("quant.suites.commands:convert_model", arguments, progress=tell)
        records = embedded.judge_tuned(spec, scratch, samples=50_000 if full else None, progress=tell)
    missed, sizes = tables.tuned_misses(records), {**result["bytes"], **converted["bytes"]}
    if as_json:
        names = ("fp32", "ptq_int8", "quant", "int8")
        scores = {name: record.score(spec.metric) for name, record in zip(names, records, strict=True)}
        print_json({**result, "model": row, "metric": spec.metric, **scores, "bytes": sizes, "missed": missed})
    else:
        out.print(f"{output}: {_trained(result)}")
        out.print(tables.rich_table(tables.tuned_table(records, sizes)))
        for line in missed:
            out.print(f"missed: {line}")
    if missed:
        raise typer.Exit(1)


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        err.print(line)


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
    except (ValueError, RecursionError) as error:
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
    optimize: Annotated[
        str | None, typer.Option(help="speed: measure, and leave in FP32 what INT8 makes slower on this CPU.")
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds that --optimize may measure for; default 60.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a run that --optimize measures; 1.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Batch that --optimize measures on; 1.")] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="For --optimize: name=1,3,224,224 for an input with open dimensions.")
    ] = None,
    fp32_model: Annotated[
        Path | None, typer.Option(help="For --optimize: your own FP32 model, which INT8 has to be faster than.")
    ] = None,
    isa: Isa = None,
    check: Check = True,
    as_json: Json = False,
) -> None:
    """Convert a fake-quantized model to a real oneDNN INT8 model, and say what became INT8.

    With --calibration-file, the file's thresholds replace the model's, or quantize an FP32 model.
    With --optimize speed, what was tried and decided is printed and written to decisions.json beside the model; where
    no INT8 model is faster than FP32, that is said, and the FP32 model is written.
    """
    arguments = {
        "quant_model_path": str(quant_model_path),
        "output": str(int8_model_save_path),
        "ops_to_quantize": listed(ops_to_quantize),
        "op_ids_to_skip": ids(op_ids_to_skip),
        "debug": None if debug is None else str(debug),
        "calibration_file": None if calibration_file is None else str(calibration_file),
        "weight_levels": targets.weight_levels(target),
        "target": target,
        "check": check,
        "speed": _speed(optimize, time_budget, isa, threads, batch_size, input_shape, fp32_model),
    }
    with bar() as tell:
        result = isolate.call(
            "quant.suites.commands:convert_model", arguments, isa=isa, threads=threads or 1, progress=tell
        )
        wrong = [] if debug is None else drawing.draw_all(debug, progress=tell)
    for line in wrong:
        err.print(f"warning: {line}")
    if as_json:
        print_json({"model": str(int8_model_save_path), **result})
        return
    kinds = sorted({*result["int8"], *result["fp32"]})
    rows = [(kind, str(result["int8"].get(kind, 0)), str(result["fp32"].get(kind, 0))) for kind in kinds]
    out.print(tables.rich_table(tables.Table("Converted", ("Op type", "INT8", "FP32"), tuple(rows))))
    for kept in result["kept"]:
        out.print(f"FP32: {kept['op_type']}({kept['op_id']}) -> {kept['output']}: {kept['reason']}")
    _print_verdict(result)
    if "table" in result:
        _print_table_use(calibration_file, result["table"], "fp32" in result["bytes"])
    out.print(quantized.on_disk(result["bytes"]))
    _print_note(int8_model_save_path, result["note"])
    if "decisions" in result:
        _print_decisions(result["decisions"])


def _print_verdict(result: Mapping[str, Any]) -> None:
    """How much of the arithmetic is INT8, what lies between INT8 ops, and what changes its type."""
    between = result["crossings"]["between"]
    crossing = f"{result['crossings']['bytes']:,} bytes a sample cross quantize and dequantize ops"
    out.print(f"INT8: {quantized.arithmetic(result)}; {crossing}", soft_wrap=True)
    if between:
        out.print(f"{len(between)} FP32 ops stand between INT8 ops; those that move most bytes:")
    for entry in between[:_SHOWN]:
        line = f"  {entry['type']} {entry['output']!r}, {entry['bytes']:,} bytes: {entry['reason']}"
        out.print(line, soft_wrap=True, markup=False)


def _speed(
    optimize: str | None,
    time_budget: float | None,
    isa: str | None,
    threads: int | None,
    batch_size: int | None,
    input_shape: Sequence[str] | None,
    fp32_model: Path | None,
) -> dict[str, Any] | None:
    """What --optimize measures with, as the job takes it; None without that option."""
    if optimize is None:
        return None
    check_choice("optimization", optimize, ("speed",))
    shapes = shapes_of(input_shape or [])
    return {
        "budget_s": time_budget or 60.0,
        "isa": isa,
        "threads": threads or 1,
        "batch": batch_size or 1,
        "shapes": shapes,
        "fp32_model": None if fp32_model is None else str(fp32_model),
    }


def _print_decisions(found: Mapping[str, Any]) -> None:
    """What was tried, what was chosen, and how fast that is."""
    if found["tried"]:
        out.print(tables.rich_table(decisions.table(found)))
    for line in decisions.sentences(found):
        out.print(line, soft_wrap=True)


def _print_table_use(path: Path | None, found: Mapping[str, Any], was_fp32: bool) -> None:
    """What became of a calibration table's entries."""
    out.print(f"{path}: {found['used']} entries used, {found['unused']} not needed", soft_wrap=True)
    if found["missing"]:
        then = "the ops that read them stay FP32" if was_fp32 else "they keep the model's thresholds"
        named = ", ".join(found["missing"][:5]) + ", ..." * (len(found["missing"]) > 5)
        out.print(f"no entry for {len(found['missing'])} rounded tensors, {then}: {named}", soft_wrap=True)


@app.command("preprocess")
def preprocess_command(
    data_dir: Annotated[Path, typer.Option(help="Directory that the list's paths are relative to.")],
    output_file: Annotated[Path, typer.Option(help="The image binary to write.")],
    label_list: Annotated[
        Path | None, typer.Option(help="List of 'path label'; default: val_list.txt in --data-dir.")
    ] = None,
    data_dim: Annotated[int, typer.Option(min=1, help="Height and width.")] = 224,
    fresh: Fresh = False,
) -> None:
    """Make an image binary from a folder of images. A run that was cut off goes on where it stopped."""
    with bar() as tell:
        count = preprocess.preprocess(
            data_dir,
            label_list or data_dir / "val_list.txt",
            output_file,
            data_dim,
            lambda done, total: tell("preprocess", done, total),
            fresh=fresh,
            tell=err.print,
        )
    out.print(f"{output_file}: {count} images of 3x{data_dim}x{data_dim}")


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
    fresh: Fresh = False,
    list_all: Annotated[bool, typer.Option("--list", help="Print what there is: name, address, source.")] = False,
) -> None:
    """Download what the seeds publish: models and data. A download that was cut off goes on where it stopped."""
    if list_all:
        for artefact in catalogue.ARTEFACTS:
            out.print(f"{artefact.name:15} {artefact.url}  {artefact.source}", soft_wrap=True)
        return
    artefacts = [catalogue.find_artefact(name) for name in names or []]
    if not artefacts:
        raise OptionError("fetch: name what to fetch; --list prints what there is")
    if sha256 is not None and len(artefacts) > 1:
        raise OptionError("--sha256: of one archive, but several are named")
    patience = download.Patience(retries=retries, timeout_s=timeout)
    for artefact in artefacts:
        with bar(DownloadColumn(), TransferSpeedColumn()) as show:

            def tell(what: str, done: int, total: int, name: str = artefact.name) -> None:
                show(f"{name}: {what}", done, total)

            how: dict[str, Any] = {"patience": patience, "fresh": fresh, "say": err.print}
            found = fetch.fetch(artefact, output, mirror=mirror, sha256=sha256, **how, progress=tell)
        if found.as_published is False and not found.was_there:
            told = f"not the archive that Paddle's own tests demand (MD5 {artefact.md5})"
            err.print(f"warning: {artefact.name}: {told}; taken all the same, as --mirror or --sha256 asks")
        what = "was there, unchanged" if found.was_there else f"{found.bytes:,} bytes fetched"
        places = " ".join(str(path) for path in found.holds)
        out.print(f"{places}  {what}; archive's SHA-256 {found.sha256}", soft_wrap=True)
