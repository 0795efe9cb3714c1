"""What an INT8 model consists of, for reports: its ops, its kernels, and what each layer loses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.diagnosis.advice import Crossings
from quant.diagnosis.drift import OpError
from quant.diagnosis.kernel_table import groups, moved
from quant.diagnosis.profile import added_up
from quant.process import isolate
from quant.results.record import Anatomy, KeptOp, Kernel, Layer
from quant.runtime.verbose_log import Declared, proof

__all__ = ["anatomy_of"]

_KERNELS = _LAYERS = 12

# Ops that only carry or convert values: as a layer they would be the one before them once more.
_CARRIERS = (
    *("quantize", "dequantize", "concat", "split", "slice", "assign", "reshape2", "transpose2", "fused_transpose"),
    *("flatten_contiguous_range", "flatten2", "squeeze2", "unsqueeze2", "nearest_interp", "nearest_interp_v2"),
)


def anatomy_of(
    timed: Path,
    feed: Mapping[str, Any],
    fp32: Path,
    quant: Path | None,
    int8: Path,
    data: Path | None,
    format: str | None = None,
    labels: Path | None = None,
    *,
    samples: int = 64,
    isa: str | None = None,
    threads: int = 1,
    progress: isolate.Progress | None = None,
) -> Anatomy:
    """Of the INT8 model `timed`: ops and kernels, run on `feed` (arguments of profile_worker.profile_model).

    Layers are those of the model `int8` on the first `samples` of `data`, against the `fp32` model and, if there is
    one, the simulation `quant`; without data there are none. Raises ModelError and DataError.
    """
    analyzed = data and {
        "model": str(int8),
        "fp32_model": str(fp32),
        "quant_model": str(quant) if quant else None,
        "data": str(data),
        "format": format,
        "labels": str(labels) if labels else None,
        "samples": samples,
        "threads": threads,
    }
    arguments = {"timed": str(timed), "feed": dict(feed), "threads": threads, "analyzed": analyzed}
    found = isolate.call(
        "quant.diagnosis.composition_worker:dissect", arguments, isa=isa, threads=threads, progress=progress
    )
    run = found["run"]
    ran, _, sums = added_up(run)
    arithmetic = proof(ran, Declared(**run["declared"]))
    crossing_bytes, reorder_bytes = moved(ran, run["samples"])
    crossings = run["program"]["crossings"]
    return Anatomy(
        int8=found["int8"],
        fp32=tuple(KeptOp(**entry) for entry in found["fp32"]),
        kernels=tuple(
            Kernel(group.op, group.implementation, " ".join(group.types), group.count, group.ms, group.share)
            for group in groups(ran)[:_KERNELS]
        ),
        layers=_worst([OpError.from_json(entry) for entry in found["ops"]]),
        mac_share=arithmetic.share,
        uncounted=arithmetic.uncounted,
        time_share=sums.int8_share,
        outside_share=sums.outside_ms / sums.told_ms if sums.told_ms else 0.0,
        crossing_bytes=crossing_bytes,
        reorder_bytes=reorder_bytes,
        between=Crossings.from_json(crossings).between if crossings else (),
    )


def _worst(ops: list[OpError]) -> tuple[Layer, ...]:
    """The layers furthest from FP32, the furthest first; those without a counterpart there can't be told."""
    layers = [Layer(op.output, op.type, op.fp32_db, op.quant_db) for op in ops if op.types[-1] not in _CARRIERS]
    known = [layer for layer in layers if layer.fp32_db is not None]
    return tuple(sorted(known, key=lambda layer: layer.fp32_db or 0.0)[:_LAYERS])
