"""The command that says where a model's time goes."""

from contextlib import ExitStack
from dataclasses import replace
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
    precision_of,
    print_json,
    shapes_of,
    sole_entry,
)
from quant.diagnosis import profile as profiler
from quant.errors import OptionError
from quant.reports import tables as report
from quant.reports.profile import as_json, tables
from quant.suites import diagnosed, entries

__all__ = ["profile"]


@app.command()
def profile(
    model: AnyModel,
    manifest_path: ManifestPath = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, quant, int8 or bf16; default: int8 where the model holds INT8 ops.")
    ] = None,
    executor: Executor = "auto",
    fp32_model: Annotated[
        Path | None, typer.Option(help="The FP32 model it was made of: also says what each island spares.")
    ] = None,
    threads: Threads = 1,
    isa: Isa = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    data: Annotated[Path | None, typer.Option(help="Run on this data's first batch, not on generated input.")] = None,
    format: Format = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="name=1,3,224,224 for an input with open dimensions.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Also list every kernel, with its shape and its op.")] = False,
    json: Json = False,
) -> None:
    """Tell why it is not faster: kernels, conversions, overhead and INT8 islands of a model, by the time they take."""
    shapes = shapes_of(input_shape or [])
    precision = None if precision is None else precision_of(precision)
    with bar() as tell, ExitStack() as stack:
        if manifest_path is not None:
            beside = {"--fp32-model": fp32_model, "--data": data, "--format": format, "--input-shape": input_shape}
            entry = sole_entry(manifest_path, model, beside)
            made = stack.enter_context(entries.ready(entry, isa=isa, progress=tell))
            subject = profiler.ProfileTarget(made.int8, {"data": str(entry.data), "format": entry.format}, made.fp32)
        else:
            if shapes and not profiler.is_directory(model):
                raise OptionError(f"--input-shape: not with the row {model!r}, which says what the input is")
            subject = diagnosed.to_profile(model, isa, tell)
        if data is not None:
            subject = replace(subject, feed={"data": str(data), "format": format})
        if fp32_model is not None:
            subject = replace(subject, fp32=fp32_model)
        found = profiler.profile(
            subject,
            precision=precision,
            executor=executor_of(executor),
            isa=isa,
            threads=threads,
            batch=batch_size,
            shapes=shapes,
            progress=tell,
        )
    if json:
        print_json(as_json(found))
        return
    for table in tables(found, each=each):
        out.print(report.rich_table(table))
