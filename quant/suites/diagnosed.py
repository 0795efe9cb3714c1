"""What of an embedded model is profiled, analyzed and taken apart."""

from pathlib import Path

from quant.diagnosis.composition import anatomy_of
from quant.diagnosis.drift import DriftTarget
from quant.diagnosis.profile import ProfileTarget, is_directory
from quant.errors import OptionError
from quant.ir.numerics import SIGNED
from quant.process import isolate
from quant.quantization.targets import weight_levels
from quant.results.record import Anatomy
from quant.suites.embedded import data_of, full_of, int8_of, small_of
from quant.suites.registry import ModelSpec, find

__all__ = ["anatomy_of_row", "to_analyze", "to_profile"]


def to_profile(name: str, isa: str | None = None, progress: isolate.Progress | None = None) -> ProfileTarget:
    """A model directory, or a registry row's full-size INT8 model for the tier, which is built when it isn't there yet.

    Raises OptionError, with the nearest row, for what is neither.
    """
    if is_directory(name):
        return ProfileTarget(Path(name))
    spec, levels = find(name), weight_levels(isa)
    models = full_of(spec, progress)
    differs = not spec.full or spec.differs_below_vnni
    model = models / ("int8" if levels == SIGNED or not differs else "int8-7bit")
    if spec.full:
        return ProfileTarget(model, {"full_input": spec.full_input}, models / "fp32")
    data = data_of(spec, (spec.test[0], 50), progress)
    return ProfileTarget(model, {"data": str(data), "format": spec.format}, models / "fp32")


def to_analyze(
    name: str, samples: int, isa: str | None = None, progress: isolate.Progress | None = None
) -> DriftTarget:
    """A registry row's trained models for the tier, and its first test samples; built when they aren't there yet.

    Raises OptionError, with the nearest row, for another name.
    """
    if Path(name).exists() or len(Path(name).parts) != 1:
        raise OptionError(f"{name}: --fp32-model and --data say what it was made of and is run on")
    spec = find(name)
    models = small_of(spec, progress)
    suffix = "" if weight_levels(isa) == SIGNED else "-7bit"
    data = data_of(spec, (spec.test[0], min(samples, spec.most)), progress)
    int8, simulation = models / f"int8{suffix}", models / f"quant{suffix}"
    return DriftTarget(int8, models / "fp32", simulation, data, spec.format, title=spec.title)


def anatomy_of_row(
    spec: ModelSpec,
    *,
    samples: int = 64,
    isa: str | None = None,
    threads: int = 1,
    progress: isolate.Progress | None = None,
) -> Anatomy:
    """Of a registry row: the model that is timed on an ISA, and the layers of its trained one on test samples."""
    models = small_of(spec, progress)
    suffix = "" if weight_levels(isa) == SIGNED else "-7bit"
    data = data_of(spec, (spec.test[0], min(samples, spec.most)), progress)
    feed = {"full_input": spec.full_input} if spec.full else {"data": str(data), "format": spec.format}
    return anatomy_of(
        int8_of(spec, isa),
        feed,
        models / "fp32",
        models / f"quant{suffix}",
        models / f"int8{suffix}",
        data,
        spec.format,
        samples=samples,
        isa=isa,
        threads=threads,
        progress=progress,
    )
