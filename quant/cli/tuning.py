"""`quant tune`: the command that finds what must stay in FP32."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from quant.cli.shared import (
    Format,
    Fresh,
    Isa,
    Json,
    Labels,
    OutputNames,
    Threads,
    app,
    bar,
    entries_of,
    err,
    ids,
    out,
    own_function,
    print_json,
    warn_below_avx512,
)
from quant.datasets.readers import format_of
from quant.errors import OptionError, check_choice
from quant.metrics import scores
from quant.quantization.observers import DEFAULT
from quant.reports import tables
from quant.reports.page import charts
from quant.reports.tuning import chart, sentences, table
from quant.storage.files import write_text
from quant.suites.manifest.schema import Entry
from quant.suites.tuning import ALGORITHMS, Subject
from quant.suites.tuning import tune as tuned

__all__ = ["tune"]

_MISSED, _INTERRUPTED = 1, 2  # exit codes


@app.command()
def tune(
    output: Annotated[Path, typer.Option(help="Directory to write: int8, quant, tuning.json, pareto.svg, quant.toml.")],
    fp32_model: Annotated[Path | None, typer.Option(help="FP32 model directory.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration data, in the format of --data, without samples of it.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled data that the drop is measured on.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Instead of these three: a quant.toml.")] = None,
    model: Annotated[str | None, typer.Option(help="The name of a model in it; needed where it has several.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Drop from FP32 that is accepted; 0.003 is 0.3 points.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(scores.METRICS)}, or module:function.", callback=own_function),
    ] = None,
    format: Format = None,
    labels: Labels = None,
    output_name: OutputNames = None,
    algo: Annotated[
        str | None, typer.Option(help=f"To begin with: {', '.join(ALGORITHMS)}; default: {DEFAULT}.")
    ] = None,
    op_ids_to_skip: Annotated[str, typer.Option(help="Ids of ops that stay in FP32 in any case.")] = "",
    time_budget: Annotated[float, typer.Option(min=1.0, help="Seconds; a trial that was begun is finished.")] = 600.0,
    batch_size: Annotated[int | None, typer.Option(min=1, max=4096, help="Of the evaluation; default: 50.")] = None,
    threads: Threads = 1,
    isa: Isa = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Find the ops to keep in FP32, or the calibration algorithm, with which INT8 loses no more than --max-drop.

    A run that was cut off, or out of time, goes on by the same command.
    Exit code 0: met; 1: not met, the best model is written all the same. Ctrl-C ends the search and does so, too.
    """
    paths = {"--fp32-model": fp32_model, "--calibration": calibration, "--data": data}
    if manifest is not None:
        beside: dict[str, object] = {
            **paths,
            "--format": format,
            "--labels": labels,
            "--output-name": output_name,
            "--metric": metric,
            "--algo": algo,
        }
        beside |= {"--op-ids-to-skip": op_ids_to_skip or None, "--batch-size": batch_size}
        for option, value in beside.items():
            if value is not None:
                raise OptionError(f"{option}: the entry in {manifest} says this")
        entry = _entry_of(manifest, model)
    else:
        if missing := [option for option, path in paths.items() if path is None]:
            raise OptionError(f"{missing[0]} is missing, or --manifest")
        assert fp32_model and calibration and data
        known = format_of(data, format)
        name = metric or scores.usual(known)[0]
        scores.check_metrics([name], data, known)
        entry = _entry(fp32_model, calibration, data, name, format, labels)
        entry = replace(entry, algo=algo or DEFAULT, op_ids_to_skip=tuple(ids(op_ids_to_skip)))
        entry = replace(entry, batch_size=batch_size or 50, threads=(threads,), outputs=tuple(output_name or []))
    check_choice("calibration algorithm", entry.algo, (*ALGORITHMS, "min_max"))
    entry = replace(entry, algo="abs_max" if entry.algo == "min_max" else entry.algo)
    limit = max_drop if max_drop is not None else 0.003 if manifest is None else entry.max_drop[entry.metrics[0]]
    with bar() as tell:
        subject = Subject(entry, limit, threads, isa)
        found = tuned(subject, output, budget_s=time_budget, fresh=fresh, tell=err.print, progress=tell)
    if drawing := chart(found):
        write_text(output / "pareto.svg", charts.standalone(drawing))
    warn_below_avx512(isa)
    if json:
        print_json(found)
    else:
        out.print(tables.rich_table(table(found)))
        for line in sentences(found, output, resumable=not found["finished"]):
            out.print(line, soft_wrap=True)
    if found["interrupted"]:
        err.print("quant: interrupted: the best model so far is written")
        raise typer.Exit(_INTERRUPTED)
    if not found["met"]:
        err.print(
            f"quant: no model within {100 * limit:.2f} points was found; the one with the smallest drop is written"
        )
        raise typer.Exit(_MISSED)


def _entry_of(manifest: Path, model: str | None) -> Entry:
    entries = entries_of(manifest, [model] if model else [])
    if len(entries) > 1:
        raise OptionError(f"{manifest}: has several models: --model names one: {', '.join(e.name for e in entries)}")
    [entry] = entries
    for key in ("fp32", "calibration"):
        if getattr(entry, key) is None:
            raise OptionError(f"{manifest}:{entry.line}: model {entry.name!r}: tuning needs the key {key}")
    if entry.quant is not None or entry.int8 is not None:
        key = "quant" if entry.quant is not None else "int8"
        raise OptionError(f"{manifest}:{entry.line}: model {entry.name!r}: key {key}: tuning calibrates anew")
    return entry


def _entry(fp32: Path, calibration: Path, data: Path, metric: str, format: str | None, labels: Path | None) -> Entry:
    """What a manifest would say of the options."""
    return Entry(
        name=fp32.absolute().name,
        title=str(fp32),
        fp32=fp32.absolute(),
        quant=None,
        int8=None,
        data=data.absolute(),
        format=format,
        labels=labels.absolute() if labels else None,
        calibration=calibration.absolute(),
        algo=DEFAULT,
        metrics=(metric,),
        precisions=("fp32", "quant", "int8"),
        max_drop=MappingProxyType({}),
        floor=0.0,
        speedup=MappingProxyType({}),
        min_int8_share=0.0,
        threads=(1,),
        batch_sizes=(1,),
        batch_size=50,
        ops_to_quantize=(),
        op_ids_to_skip=(),
        line=0,
    )
