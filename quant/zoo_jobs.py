"""The steps of a published model that touch Paddle, as jobs (`quant.isolate`): FP32 made of it, data kept apart."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from quant.errors import DataError, ModelError
from quant.evaluation import opened
from quant.graph import load_dir, run_passes, save_dir
from quant.passes import NORMALISE, drop_judges, lift_quantizers, lower_quantizers, quantize_cells
from quant.passes.quantizers import without_quantizers
from quant.readers import Dataset
from quant.sequences import Padded, Ragged

__all__ = ["check_apart", "split"]


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


def check_apart(model: str, calibration: str, data: str, format: str, labels: str | None = None) -> None:
    """Raise DataError when a sample of the calibration data is also in the test data."""
    graph = load_dir(Path(model))
    tested = set(_digests(opened(graph, data, format, labels)))
    for number, digest in enumerate(_digests(opened(graph, calibration, format))):
        if digest in tested:
            raise DataError(
                f"{calibration}: sample {number} is also in {data}: a model isn't tested on what it was calibrated with"
            )


def _digests(data: Dataset) -> Iterator[bytes]:
    """A hash of the inputs of each sample."""
    columns = [column.ragged if isinstance(column, Padded) else column for column in data.inputs.values()]
    for number in range(len(data)):
        total = sha256()
        for column in columns:
            values = column.sequence(number) if isinstance(column, Ragged) else column[number]
            total.update(str(values.shape).encode() + values.tobytes())
        yield total.digest()
