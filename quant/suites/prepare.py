"""FP32, simulation and INT8 of a model that somebody brings: as given, or made once for the content of its files."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from quant import cpu
from quant.datasets.columns import Column, values_of
from quant.datasets.readers import files_behind
from quant.errors import DataError, ModelError, OutputError, QuantError
from quant.evaluation.collect import chosen
from quant.evaluation.parts import Store, data_digests, default_root, model_digest
from quant.ir.numerics import REDUCED
from quant.process import isolate
from quant.quantization import targets
from quant.quantization.observers import DEFAULT
from quant.results.record import Record
from quant.results.target import Row
from quant.storage.cache import cached
from quant.suites import embedded

__all__ = ["DERIVED", "Given", "Models", "alike", "evaluated", "made_of", "naming", "records_of"]

DERIVED = "weights on their grid"  # Record.variant of an FP32 model that is the simulation without its quantizers

Progress = isolate.Progress


@dataclass(frozen=True)
class Given:
    """What somebody brings.

    `model` is fake-quantized, or FP32 and then calibrated; `quantized` says which it should be, None: either. `fp32` is
    beside a fake-quantized one, `int8` is measured as it is. `data` and `labels` are what the models are tested on,
    `calibration` is in the same format, by default the one that suffixes tell. `apart`: whether it is known already
    that these share no sample.
    """

    name: str  # of the directory in the cache
    model: Path
    data: Path
    quantized: bool | None = None
    fp32: Path | None = None
    int8: Path | None = None
    format: str | None = None
    labels: Path | None = None
    calibration: Path | None = None
    apart: bool = False
    algo: str = DEFAULT
    ops_to_quantize: tuple[str, ...] = ()
    op_ids_to_skip: tuple[int, ...] = ()

    @property
    def calibrated(self) -> Path | None:
        """The data to calibrate with, where that may be needed."""
        return None if self.quantized or self.int8 else self.calibration

    def identity(self, notes: Path, progress: Progress | None = None) -> dict[str, Any]:
        """What decides what is made and measured of it, for JSON: contents of files by role, and settings.

        `notes`: see storage.digests. What can't be read is told by its error, for it is the measurement's to fail.
        """

        def told(work: Callable[[], Any]) -> Any:
            try:
                return work()
            except QuantError as error:
                return str(error)

        places = {"model": self.model, "fp32": self.fp32, "int8": self.int8}
        found = {role: told(partial(model_digest, place, notes, progress)) for role, place in places.items() if place}
        found["data"] = told(lambda: data_digests(files_behind(self.data, self.format, self.labels), notes, progress))
        given = self.calibrated
        if given and given.exists():
            found["calibration"] = told(lambda: data_digests(files_behind(given, self.format), notes, progress))
        names = ("quantized", "format", "algo", "ops_to_quantize", "op_ids_to_skip")
        return {**found, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Models:
    """The model directories that are measured. `derived`: FP32 is the simulation without its quantizers.

    `quant` is None where INT8 was given, and no simulation of it.
    """

    fp32: Path
    quant: Path | None
    int8: Path
    derived: bool
    weights: str  # "7bit", or "" for 8


def made_of(given: Given, *, isa: str | None = None, progress: Progress | None = None) -> Models:
    """FP32, simulation and INT8 of a model.

    Raises DataError for a model that isn't fake-quantized when there is no data to calibrate it with, or when that
    isn't apart from the test data; ModelError for one that isn't what it was given as.
    """
    levels, fresh = targets.weight_levels(isa), False
    files = [file for place in (given.model, given.fp32) if place for file in _files(place)]
    if given.calibrated and given.calibrated.exists():
        files += files_behind(given.calibrated, given.format).values()

    def build(staging: Path) -> None:
        nonlocal fresh
        split = {"model": str(given.model), "output": str(staging), "fp32": given.fp32 and str(given.fp32)}
        about = isolate.call("quant.suites.published.worker:split", split, progress=progress)
        _check_kind(given, about["quantized"])
        if given.int8 is None:
            with naming({staging / name: str(given.model) for name in ("fp32", "rounded", "simulation")}):
                if not about["quantized"]:
                    fresh = True
                    _calibrate(given, staging / "fp32", staging / "simulation", levels, progress)
                source = _first(staging / "rounded", staging / "simulation", given.model)
                arguments = {"quant_model_path": str(source), "output": str(staging / "int8"), **_chosen(given)}
                about["coverage"] = isolate.call("quant.suites.commands:convert_model", arguments, progress=progress)
        (staging / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    settings = [levels, given.quantized, given.int8 is None, given.algo, given.format, _chosen(given)]
    parts = [part for file in files for part in (file.name, file)]
    made = cached(
        given.name,
        [
            *embedded.sources("quant.suites.published.worker:split", "quant.suites.commands:ptq"),
            json.dumps(settings),
            *parts,
        ],
        build,
    )
    quantized = json.loads((made / "about.json").read_text(encoding="utf-8"))["quantized"]
    calibrated = not quantized and given.int8 is None
    if calibrated and not fresh:
        _check_apart(given, made / "fp32")  # the test data may be other ones than when it was calibrated
    return Models(
        fp32=made / "fp32",
        quant=_first(made / "simulation", given.model) if quantized or calibrated else None,
        int8=given.int8 or made / "int8",
        derived=quantized and given.fp32 is None,
        weights="7bit" if calibrated and levels == REDUCED else "",
    )


def _check_kind(given: Given, quantized: bool) -> None:
    if given.quantized is True and not quantized:
        raise ModelError(f"{given.model}: should be a fake-quantized model, but has no quantizers")
    if given.quantized is False and quantized:
        raise ModelError(f"{given.model}: should be an FP32 model, but has quantizers")


def _chosen(given: Given) -> dict[str, Any]:
    """Which ops are quantized. Op ids are the same in a model and its simulation."""
    return {"ops_to_quantize": list(given.ops_to_quantize), "op_ids_to_skip": list(given.op_ids_to_skip)}


def _first(*places: Path) -> Path:
    """The first that exists."""
    return next(place for place in places if place.exists())


def _files(place: Path) -> list[Path]:
    """The files of a directory; none where nothing is."""
    return sorted(path for path in place.rglob("*") if path.is_file())


def _calibrate(given: Given, fp32: Path, output: Path, levels: int, progress: Progress | None) -> None:
    if given.calibration is None or not given.calibration.exists():
        raise DataError(
            f"{given.model}: isn't fake-quantized, and there is no data to calibrate it with, apart from the test "
            f"data: {given.calibration} (format {given.format})"
        )
    _check_apart(given, fp32)
    arguments = {
        "model": str(fp32),
        "data": str(given.calibration),
        "output": str(output),
        "algo": given.algo,
        "weight_levels": levels,
        "format": given.format,
        **_chosen(given),
    }
    isolate.call(
        "quant.suites.commands:ptq", {**arguments, "threads": cpu.cores()}, threads=cpu.cores(), progress=progress
    )


def _check_apart(given: Given, model: Path) -> None:
    if given.apart:
        return
    arguments = {
        "model": str(model),
        "calibration": str(given.calibration),
        "data": str(given.data),
        "format": given.format,
        "labels": given.labels and str(given.labels),
    }
    isolate.call("quant.evaluation.data_check:check_data", arguments)


@contextmanager
def naming(made: Mapping[Path, str]) -> Iterator[None]:
    """Errors about what was made on the way name what it was made of instead; `made`: place -> that.

    But for a place that can't be written: there it is the place that counts.
    """
    try:
        yield
    except OutputError:
        raise
    except QuantError as error:
        message = str(error)
        for place, source in made.items():
            message = source.join(re.split(rf"{re.escape(str(place))}(?!\w)", message))
        raise type(error)(message) from error


# --- measuring


def evaluated(
    models: Models,
    precisions: Sequence[str],
    data: Path,
    *,
    format: str | None = None,
    labels: Path | None = None,
    isa: str | None = None,
    batch_size: int = 50,
    batch_num: int | None = None,
    outputs: Sequence[str] = (),
    store: Store | None = None,
    progress: Progress | None = None,
) -> dict[str, embedded.Evaluated]:
    """Precision -> a model's run over labelled data, on all cores; parts of earlier runs in the store count.

    `store`: by default the cache's (quant.evaluation.parts).
    """
    places = {"fp32": models.fp32, "quant": models.quant, "int8": models.int8, "bf16": models.fp32}
    runs = embedded.evaluate(
        [{"model": str(places[precision]), "precision": precision, **chosen(outputs)} for precision in precisions],
        data,
        format=format,
        labels=labels,
        isa=isa,
        batch_size=batch_size,
        threads=cpu.cores(),
        batch_num=batch_num,
        store=store or Store(default_root()),
        progress=progress,
    )
    return dict(zip(precisions, runs, strict=True))


def alike(runs: Mapping[str, embedded.Evaluated], told: Mapping[str, Path]) -> None:
    """Raise ModelError unless FP32 and INT8 give out the same kinds of answers; they may be of different origin.

    `told`: precision -> what each was given as.
    """
    kinds = {precision: [_kind(column) for column in runs[precision].outputs] for precision in ("fp32", "int8")}
    if kinds["fp32"] != kinds["int8"]:
        fp32, int8 = (", ".join(kinds[precision]) for precision in ("fp32", "int8"))
        raise ModelError(f"{told['fp32']}: gives out {fp32}, but {told['int8']} {int8}: another model?")


def _kind(column: Column) -> str:
    """A column's type and shape without what depends on the sample: decoded sequences differ in length."""
    values = values_of(column)
    return f"{values.dtype}{list(values.shape[1:])}"


def records_of(
    row: Row,
    models: Models,
    runs: Mapping[str, embedded.Evaluated],
    metrics: Sequence[str],
    *,
    isa: str | None = None,
    fp32_variant: str = "",
    **more: Any,
) -> list[Record]:
    """What `evaluated` gave, INT8 against FP32 and its simulation; `more`: other fields of the records."""
    found = []
    for precision, run in runs.items():
        against = {"int8": ("fp32", "quant"), "fp32": ()}.get(precision, ("fp32",))
        references = {name: runs[name] for name in against if name in runs}
        variant = {"fp32": DERIVED if models.derived else fp32_variant, "bf16": ""}.get(precision, models.weights)
        record = embedded.record_of(row, cpu.tier_of(isa), run, references, metrics, variant)
        found.append(replace(record, threads=cpu.cores(), **more))
    return found
