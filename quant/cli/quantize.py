"""`quant quantize`: from an FP32 model to its INT8 model in one step."""

from pathlib import Path
from typing import Annotated

import typer

from quant import cpu
from quant.cli.shared import (
    Algo,
    AllThreads,
    BatchNum,
    CalibrationBatch,
    Check,
    Format,
    Json,
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
)
from quant.errors import check_choice
from quant.process import isolate
from quant.quantization import targets
from quant.quantization.observers import ALGORITHMS, BATCH_SIZE, BEST, DEFAULT
from quant.reports import quantized

__all__ = ["quantize"]


@app.command()
def quantize(
    fp32_model: Annotated[Path, typer.Argument(metavar="FP32_DIR", help="FP32 model directory.")],
    calibration: Annotated[Path, typer.Option(help="Calibration data, in one of the formats of --format.")],
    output: Annotated[
        Path, typer.Option(help="Gets quant (the simulation) and int8, both or none: absent, or an empty directory.")
    ],
    algo: Algo = DEFAULT,
    target: Target = None,
    format: Format = None,
    batch_size: CalibrationBatch = BATCH_SIZE,
    batch_num: BatchNum = None,
    ops_to_quantize: OpTypes = "",
    op_ids_to_skip: OpIds = "",
    threads: AllThreads = None,
    check: Check = True,
    as_json: Json = False,
) -> None:
    """Make an INT8 model of an FP32 model and calibration data.

    The same as `quant ptq` and then `quant convert`, which have further options.
    """
    check_choice("calibration algorithm", algo, (*ALGORITHMS, BEST))
    arguments = {
        "model": str(fp32_model),
        "data": str(calibration),
        "output": str(output),
        "algo": algo,
        "format": format,
        "batch_size": batch_size,
        "batch_num": batch_num,
        "weight_levels": targets.weight_levels(target),
        "ops_to_quantize": listed(ops_to_quantize),
        "op_ids_to_skip": ids(op_ids_to_skip),
        "threads": (count := threads or cpu.cores()),
        "check": check,
    }
    with bar() as tell:
        result = isolate.call("quant.suites.commands:quantize", arguments, threads=count, progress=tell)
    for line in result["remarks"]:
        err.print(f"warning: {line}")
    if result["note"]:
        err.print(f"note: {fp32_model}: {result['note']}", soft_wrap=True)
    if as_json:
        places = {"quant": str(output / "quant"), "int8": str(output / "int8")}
        print_json({**result, "model": str(fp32_model), "models": places})
        return
    for line in quantized.summary(str(fp32_model), str(output), algo, result):
        out.print(line, soft_wrap=True)
