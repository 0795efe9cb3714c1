"""The steps of a published model that touch Paddle, as a job (`quant.process.isolate`): FP32 made of it."""

from pathlib import Path
from typing import Any

from quant.errors import ModelError
from quant.ir.graph import load_dir, run_passes, save_dir
from quant.ir.passes import NORMALISE, drop_judges, lift_quantizers, lower_quantizers, quantize_cells
from quant.ir.passes.quantizers import without_quantizers

__all__ = ["split"]


def split(model: str, output: str, *, fp32: str | None = None) -> dict[str, Any]:
    """What a published model is measured as, in the directory `output`, which exists.

    `fp32`: normalised, the published FP32 model in the directory `fp32`, or else `model` without its quantizers.
    `simulation`: `model` without the layers that score it, only where it has such layers. `rounded`: the simulation
    with all that recurrent kernels round, only where `model` leaves some of that out.
    The result tells whether `model` is fake-quantized at all.
    """
    whole = load_dir(Path(model))
    graph = drop_judges(whole)
    bare = without_quantizers(graph)
    quantized = bare is not graph
    baseline = bare
    if fp32 is not None:
        baseline = drop_judges(load_dir(Path(fp32)))
        if without_quantizers(baseline) is not baseline:
            raise ModelError(f"{fp32}: should be an FP32 model, but has quantizers")
    written = {"fp32": run_passes(baseline, NORMALISE)}
    if quantized and graph is not whole:
        written["simulation"] = graph
    if quantized:
        lifted = run_passes(graph, (lift_quantizers, *NORMALISE))
        if (rounded := quantize_cells(lifted)) is not lifted:
            written["rounded"] = lower_quantizers(rounded)
    for name, made in written.items():
        (Path(output) / name).mkdir()
        save_dir(made, Path(output) / name)
    return {"quantized": quantized}
