"""The published models as cases: what of a zoo directory is there, what is made of it, and the records of both tables.

A zoo directory is laid out as `quant fetch` does it: DIR/ARTEFACT/ holds what was in the archive. What is no archive
lies beside these: the image binary, LAC's TSV, and DIR/calibration/ROW for a model that isn't fake-quantized yet.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from quant import cpu, fetch, isolate, pipeline
from quant.errors import DataError, ModelError, OptionError, QuantError
from quant.numerics import REDUCED
from quant.outcomes import Store, default_root
from quant.places import cached
from quant.ratios import settled
from quant.record import Record
from quant.registry import ModelSpec, find
from quant.rows import Case
from quant.sequences import Column, values_of
from quant.zoo import ROWS, Source, Timing, ZooRow, find_artefact

__all__ = [
    "DERIVED",
    "ORIGIN",
    "PUBLISHED",
    "Found",
    "Missing",
    "Models",
    "accuracy",
    "cases_of",
    "located",
    "missing",
    "models_of",
    "sort_out",
    "speed",
    "suite",
]

ORIGIN = "zoo"  # of these records
PUBLISHED, DERIVED = "published", "weights on their grid"  # Record.variant of FP32
_BATCH = 50  # as in the seeds' commands

Progress = isolate.Progress


# --- what is there


@dataclass(frozen=True)
class Missing:
    """Something that a row needs and that isn't in the directory, and the command or the way to get it."""

    what: str
    how: str


@dataclass(frozen=True, eq=False)
class Found:
    """Where a row's parts are.

    `fp32`: the published FP32 model, where that is there. `calibration`: where data to calibrate with would be.
    """

    row: ZooRow
    model: Path
    fp32: Path | None
    data: Path
    format: str
    labels: Path | None
    calibration: Path

    @property
    def spec(self) -> ModelSpec:
        return find(self.row.name)


def _file(source: Source, directory: Path) -> Path:
    return directory / source.file


def _has(source: Source, directory: Path) -> bool:
    if source.artefact:
        return fetch.is_there(find_artefact(source.artefact), directory)
    return _file(source, directory).is_file()


def missing(row: ZooRow, directory: Path) -> tuple[Missing, ...]:
    """What a row lacks before it can run. A published FP32 model is welcome, but not needed."""
    lacks = []
    if not fetch.is_there(find_artefact(row.model), directory):
        lacks.append(_to_fetch(row.model, directory))
    if not any(_has(source, directory) for source in row.data):
        ways = [
            _to_fetch(source.artefact, directory)
            if source.artefact
            else Missing(str(_file(source, directory)), source.how.format(path=_file(source, directory)))
            for source in row.data
        ]
        lacks.append(Missing(" or ".join(way.what for way in ways), "; or ".join(way.how for way in ways)))
    return tuple(lacks)


def _to_fetch(name: str, directory: Path) -> Missing:
    begun = " (cut off)" if (directory / f"{name}.part").exists() else ""
    return Missing(name + begun, f"quant fetch {name} --output {directory}")


def located(row: ZooRow, directory: Path, progress: Progress | None = None) -> Found:
    """A row's parts, of which nothing is `missing`. FetchError when an artefact isn't whole, or was changed."""
    source = next(source for source in row.data if _has(source, directory))
    places = _find(source.artefact, directory, progress) if source.artefact else (_file(source, directory),)
    has_fp32 = bool(row.fp32) and fetch.is_there(find_artefact(row.fp32), directory)
    return Found(
        row,
        model=_find(row.model, directory, progress)[0],
        fp32=_find(row.fp32, directory, progress)[0] if has_fp32 else None,
        data=places[0],
        format=source.format,
        labels=places[1] if len(places) > 1 else None,
        calibration=directory / "calibration" / row.name,
    )


def _find(name: str, directory: Path, progress: Progress | None) -> tuple[Path, ...]:
    def tell(what: str, done: int, total: int) -> None:
        if progress:
            progress(f"{name}: {what}", done, total)

    return fetch.find(find_artefact(name), directory, tell)


def sort_out(
    names: Sequence[str], directory: Path, progress: Progress | None = None
) -> tuple[list[Found], list[tuple[ZooRow, Missing]]]:
    """(rows that can run, what is not there) of the registry's rows `names`, all if empty.

    A row can run without its published FP32 model, which then is told as well.

    Raises OptionError when the directory doesn't exist, or no row can run.
    """
    if not directory.is_dir():
        raise OptionError(f"--zoo: {directory}: no such directory; `quant fetch NAME --output {directory}` makes it")
    wanted = [row for row in ROWS if not names or row.name in names]
    lacks = {row: missing(row, directory) for row in wanted}
    present = [row for row in wanted if not lacks[row]]
    if not present:
        row = wanted[0]
        told = f"{row.name} needs: {'; and '.join(lack.how for lack in lacks[row])}"
        raise OptionError(f"--zoo: {directory}: nothing of {', '.join(row.name for row in wanted)} is whole; {told}")
    found = [located(row, directory, progress) for row in present]
    for place in found:
        if place.row.fp32 and place.fp32 is None:
            lacks[place.row] = (_to_fetch(place.row.fp32, directory),)
    return found, [(row, lack) for row in wanted for lack in lacks[row]]


# --- what is made of it


@dataclass(frozen=True)
class Models:
    """The model directories that a row is measured on. `derived`: FP32 is the simulation without its quantizers."""

    fp32: Path
    quant: Path
    int8: Path
    derived: bool
    weights: str  # "7bit", or "" for 8


def models_of(found: Found, *, isa: str | None = None, progress: Progress | None = None) -> Models:
    """FP32, simulation and INT8 of a published model, made once for the content of its files.

    Raises DataError for a model that isn't fake-quantized when there is no data to calibrate it with, or when that
    isn't apart from the test data.
    """
    levels, fresh = pipeline.weight_levels(isa), False
    files = [file for place in (found.model, found.fp32, found.calibration) if place for file in _files(place)]

    def build(staging: Path) -> None:
        nonlocal fresh
        split = {"model": str(found.model), "output": str(staging), "fp32": found.fp32 and str(found.fp32)}
        about = isolate.call("quant.zoo_jobs:split", split, progress=progress)
        with _named(staging, found.model):
            if not about["quantized"]:
                fresh = True
                _calibrate(found, staging / "fp32", staging / "simulation", levels, progress)
            source = _first(staging / "rounded", staging / "simulation", found.model)
            arguments = {"quant_model_path": str(source), "output": str(staging / "int8")}
            coverage = isolate.call("quant.jobs:convert_model", arguments, progress=progress)
        (staging / "about.json").write_text(json.dumps({**about, "coverage": coverage}, indent=1), encoding="utf-8")

    parts = [part for file in files for part in (file.name, file)]
    made = cached(f"zoo-{found.row.name}", [*pipeline.sources(), str(levels), *parts], build)
    quantized = json.loads((made / "about.json").read_text(encoding="utf-8"))["quantized"]
    if not quantized and not fresh:
        _check_apart(found, made / "fp32")  # the test data may be other ones than when it was calibrated
    return Models(
        fp32=made / "fp32",
        quant=_first(made / "simulation", found.model),
        int8=made / "int8",
        derived=quantized and found.fp32 is None,
        weights="7bit" if not quantized and levels == REDUCED else "",
    )


def _first(*places: Path) -> Path:
    """The first that exists."""
    return next(place for place in places if place.exists())


def _files(place: Path) -> list[Path]:
    """A file, or the files of a directory; none where nothing is."""
    return sorted(path for path in (place, *place.rglob("*")) if path.is_file())


def _calibrate(found: Found, fp32: Path, output: Path, levels: int, progress: Progress | None) -> None:
    if not found.calibration.is_file():
        raise DataError(
            f"{found.model}: isn't fake-quantized, and there is no data to calibrate it with, apart from the test "
            f"data: {found.calibration} (format {found.format})"
        )
    _check_apart(found, fp32)
    arguments = {
        "model": str(fp32),
        "data": str(found.calibration),
        "output": str(output),
        "algo": found.spec.algo,
        "weight_levels": levels,
        "format": found.format,
    }
    isolate.call("quant.jobs:ptq", arguments, threads=cpu.cores(), progress=progress)


def _check_apart(found: Found, model: Path) -> None:
    arguments = {
        "model": str(model),
        "calibration": str(found.calibration),
        "data": str(found.data),
        "format": found.format,
        "labels": found.labels and str(found.labels),
    }
    isolate.call("quant.zoo_jobs:check_apart", arguments)


@contextmanager
def _named(staging: Path, model: Path) -> Iterator[None]:
    """Errors about what was made on the way name the published model instead."""
    try:
        yield
    except QuantError as error:
        raise type(error)(re.sub(rf"{re.escape(str(staging))}/\w+", str(model), str(error))) from error


# --- measuring


def accuracy(
    found: Found,
    models: Models,
    *,
    isa: str | None = None,
    full: bool = False,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32, simulated and INT8 records of a published model on this CPU, or under the cap `isa`, on all its cores.

    Parts of earlier runs count (quant.outcomes), however many rows those had: 50,000 images take hours.
    """
    row, threads = found.row, cpu.cores()
    runs = [
        {"model": str(models.fp32), "precision": "fp32"},
        {"model": str(models.quant), "precision": "quant"},
        {"model": str(models.int8), "precision": "int8"},
    ]
    evaluated = pipeline.evaluate(
        runs,
        found.data,
        format=found.format,
        labels=found.labels,
        isa=isa,
        batch_size=_BATCH,
        threads=threads,
        batch_num=None if full or row.look is None else math.ceil(row.look / _BATCH),
        store=Store(default_root()),
        progress=progress,
    )
    _check_alike(found, evaluated)
    fp32, quant, int8 = evaluated
    variant = DERIVED if models.derived else PUBLISHED
    tier = cpu.tier_of(isa)
    records = [
        pipeline.record_of(found.spec, tier, fp32, {}, row.metrics, variant),
        pipeline.record_of(found.spec, tier, quant, {"fp32": fp32}, row.metrics, models.weights),
        pipeline.record_of(found.spec, tier, int8, {"fp32": fp32, "quant": quant}, row.metrics, models.weights),
    ]
    return [replace(record, origin=ORIGIN, threads=threads) for record in records]


def _check_alike(found: Found, evaluated: Sequence[pipeline.Evaluated]) -> None:
    """Raise ModelError unless all precisions give out the same kinds of answers; FP32 may be a model of its own."""
    kinds = [[_kind(column) for column in run.outputs] for run in evaluated]
    if kinds[0] != kinds[-1]:
        fp32, int8 = (", ".join(some) for some in (kinds[0], kinds[-1]))
        raise ModelError(f"{found.fp32}: gives out {fp32}, but {found.model} {int8}: another row's model?")


def _kind(column: Column) -> str:
    """A column's type and shape without what depends on the sample: decoded sequences differ in length."""
    values = values_of(column)
    return f"{values.dtype}{list(values.shape[1:])}"


def cases_of(row: ZooRow) -> list[Timing]:
    """What is timed: every way that a document prints, once. Without one, a batch of 1 on one thread."""
    unique = {(timing.batch, timing.repeat, timing.threads): timing for timing in reversed(row.timings)}
    return list(reversed(unique.values())) or [Timing("", 0, 0, "images/s", 0)]


def speed(
    found: Found,
    models: Models,
    timing: Timing,
    *,
    isa: str | None = None,
    budget_s: float = 2.5,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32 and INT8 records of a published model, measured in pairs."""
    feed: dict[str, Any] = {}
    if timing.samples:
        data = {"data": str(found.data), "format": found.format, "samples": timing.samples}
        feed = {**data, "repeat": timing.repeat}
    timed = pipeline.bench(
        [pipeline.fp32_variants(models.fp32), [{"model": str(models.int8), "precision": "int8"}]],
        isa=isa,
        threads=timing.threads,
        batch=timing.batch,
        budget_s=budget_s,
        progress=progress,
        **feed,
    )
    case = Case(timing.batch, repeat=timing.repeat)
    records = pipeline.timed_records(found.row.name, timed, case, cpu.tier_of(isa), timing.threads)
    return [replace(record, origin=ORIGIN) for record in records]


def suite(
    rows: Sequence[Found],
    *,
    full: bool = False,
    tell: Callable[[Record], None],
    progress: Progress | None = None,
) -> tuple[list[Record], list[Record]]:
    """Models of all rows, their accuracy, then their speed as the documents print it, where there are as many cores."""
    timings = [(found, timing) for found in rows for timing in cases_of(found.row) if timing.threads <= cpu.cores()]
    step, steps = 0, 2 * len(rows) + len(timings)
    models: dict[Found, Models] = {}
    exact: list[Record] = []

    def numbered(what: str, done: int, total: int) -> None:
        if progress:
            progress(f"[{step}/{steps}] {what}", done, total)

    def prepare(found: Found) -> None:
        nonlocal step
        models[found] = models_of(found)
        step += 1
        numbered("models", step, len(rows))

    pipeline.each(rows, prepare)
    for found in rows:
        step += 1
        records = accuracy(found, models[found], full=full, progress=numbered)
        for record in records:
            tell(record)
        exact.extend(records)
    timed = []
    for found, timing in timings:
        step += 1
        timed.extend(settled(found.spec, partial(speed, found, models[found], timing, progress=numbered)))
        tell(timed[-1])
    return exact, timed
