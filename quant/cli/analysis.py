"""The command that says which op of an INT8 model loses accuracy."""

from contextlib import ExitStack
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from quant.cli.shared import (
    AnyModel,
    Executor,
    Format,
    Isa,
    Json,
    ManifestPath,
    Threads,
    app,
    bar,
    executor_of,
    out,
    print_json,
    sole_entry,
)
from quant.diagnosis.drift import DriftTarget
from quant.diagnosis.drift import analyze as analyzed
from quant.errors import OptionError
from quant.reports import tables as report
from quant.reports.drift import as_json, chart, tables
from quant.reports.page import charts
from quant.storage.files import write_text
from quant.suites import entries
from quant.suites.diagnosed import to_analyze

__all__ = ["analyze"]


@app.command()
def analyze(
    model: AnyModel,
    manifest_path: ManifestPath = None,
    fp32_model: Annotated[Path | None, typer.Option(help="The FP32 model that it was made of.")] = None,
    quant_model: Annotated[
        Path | None, typer.Option(help="The fake-quantized model it was made of; without, only FP32 is compared.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Samples in one of the formats of --format.")] = None,
    format: Format = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of them, from the first.")] = 64,
    executor: Executor = "auto",
    threads: Threads = 1,
    isa: Isa = None,
    each: Annotated[bool, typer.Option("--each", help="List all ops in the order of execution.")] = False,
    chart_file: Annotated[
        Path | None, typer.Option("--chart", help="Also draw SQNR over the ops: an .svg file.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write all of it as JSON, for `quant report --with`.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    json: Json = False,
) -> None:
    """Tell why accuracy dropped: each executed INT8 op against the simulation and the FP32 model, worst first."""
    executor = executor_of(executor)
    given = {"--fp32-model": fp32_model, "--quant-model": quant_model, "--data": data}
    for option, file in (("--chart", chart_file), ("--output", output)):
        if file is not None and not file.absolute().parent.is_dir():
            raise OptionError(f"{option}: {file.parent} is not a directory")
    with bar() as tell, ExitStack() as stack:
        if manifest_path is not None:
            entry = sole_entry(manifest_path, model, {**given, "--format": format})
            made = stack.enter_context(entries.ready(entry, isa=isa, progress=tell))
            sources = made.int8, made.fp32, made.quant, entry.data, entry.format, entry.labels
            subject = DriftTarget(*sources, title=entry.title)
        elif fp32_model is not None and data is not None:
            subject = DriftTarget(Path(model), fp32_model, quant_model, data, format)
        elif any(given.values()):
            missing = "--fp32-model" if fp32_model is None else "--data"
            raise OptionError(f"{model}: {missing} is missing; a row of `quant suite` needs none of {', '.join(given)}")
        else:
            subject = to_analyze(model, samples, isa, tell)
        found = analyzed(subject, samples=samples, executor=executor, isa=isa, threads=threads, progress=tell)
    if chart_file is not None:
        write_text(chart_file, charts.standalone(chart(found)))
    if output is not None:
        write_text(output, dumps(as_json(found), indent=1) + "\n")
    if json:
        print_json(as_json(found))
        return
    for table in tables(found, each=each):
        if markdown:
            print(report.section(table))
        else:
            out.print(report.rich_table(table))
    if found.amplifies:
        out.print(found.amplifies, soft_wrap=True)
