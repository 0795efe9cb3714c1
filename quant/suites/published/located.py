"""The published models as cases: what of a zoo directory is there, what is made of it, and the records of both tables.

A zoo directory is laid out as `quant fetch` does it: DIR/ARTEFACT/ holds what was in the archive. What is no archive
lies beside these: the image binary, LAC's TSV, and DIR/calibration/ROW for a model that isn't fake-quantized yet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from quant import cpu
from quant.errors import OptionError
from quant.evaluation.collect import data_digest
from quant.evaluation.parts import Store
from quant.process import isolate
from quant.results.record import Record
from quant.results.speed_ratio import settled
from quant.results.target import Case, Row
from quant.suites.measure import Subject, Timing
from quant.suites.prepare import Given, Models, alike, evaluated, made_of, records_of
from quant.suites.published import fetch
from quant.suites.published.catalogue import ROWS, Source, ZooRow, find_artefact
from quant.suites.published.catalogue import Timing as Printed
from quant.suites.registry import ModelSpec, find
from quant.timing import side_by_side

__all__ = [
    "ORIGIN",
    "PUBLISHED",
    "Found",
    "Missing",
    "accuracy",
    "cases_of",
    "given_of",
    "located",
    "missing",
    "models_of",
    "sort_out",
    "speed",
    "subject_of",
]

ORIGIN = "zoo"  # of these records
PUBLISHED = "published"  # Record.variant of FP32 that isn't derived
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


def given_of(found: Found) -> Given:
    """A published model, and what it is tested on."""
    return Given(
        f"zoo-{found.row.name}",
        found.model,
        found.data,
        fp32=found.fp32,
        format=found.format,
        labels=found.labels,
        calibration=found.calibration,
        algo=found.spec.algo,
    )


def models_of(found: Found, *, isa: str | None = None, progress: Progress | None = None) -> Models:
    """FP32, simulation and INT8 of a published model; see quant.suites.prepare."""
    return made_of(given_of(found), isa=isa, progress=progress)


# --- measuring


def accuracy(
    found: Found,
    models: Models,
    *,
    isa: str | None = None,
    full: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32, simulated and INT8 records of a published model on this CPU, or under the cap `isa`, on all its cores.

    Parts of earlier runs count (quant.evaluation.parts), however many rows those had: 50,000 images take hours.
    """
    row = found.row
    runs = evaluated(
        models,
        ("fp32", "quant", "int8"),
        found.data,
        format=found.format,
        labels=found.labels,
        isa=isa,
        batch_size=_BATCH,
        batch_num=None if full or row.look is None else math.ceil(row.look / _BATCH),
        store=store,
        progress=progress,
    )
    alike(runs, {"fp32": found.fp32 or found.model, "int8": found.model})
    data = data_digest(found.data, found.format, found.labels)
    about = {"origin": ORIGIN, "data": data}
    return records_of(found.spec, models, runs, row.metrics, isa=isa, fp32_variant=PUBLISHED, **about)


def cases_of(row: ZooRow) -> list[Printed]:
    """What is timed: every way that a document prints, once. Without one, a batch of 1 on one thread."""
    unique = {(timing.batch, timing.repeat, timing.threads): timing for timing in reversed(row.timings)}
    return list(reversed(unique.values())) or [Printed("", 0, 0, "images/s", 0)]


def speed(
    found: Found,
    models: Models,
    timing: Printed,
    *,
    isa: str | None = None,
    budget_s: float = 2.5,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32 and INT8 records of a published model, measured in pairs."""
    feed: dict[str, Any] = {"batch": timing.batch}
    if timing.samples:
        data = {"data": str(found.data), "format": found.format, "samples": timing.samples}
        feed |= {**data, "repeat": timing.repeat}
    case = Case(timing.batch, repeat=timing.repeat)
    how: dict[str, Any] = {"isa": isa, "threads": timing.threads, "budget_s": budget_s, "progress": progress}
    records = side_by_side.in_pairs(found.spec.name, models.fp32, models.int8, feed, case, **how)
    return [replace(record, origin=ORIGIN) for record in records]


def subject_of(found: Found, *, full: bool = False, store: Store | None = None) -> Subject:
    """A published model: its accuracy, and its speed as the documents print it, where there are as many cores."""

    @cache
    def models() -> Models:
        return models_of(found)

    def exact(progress: Progress) -> list[Record]:
        return accuracy(found, models(), full=full, store=store, progress=progress)

    cases = {_case(timing): timing for timing in cases_of(found.row) if timing.threads <= cpu.cores()}

    def timed(timing: Timing, progress: Progress) -> list[Record]:
        printed = cases[timing.case.batch, timing.case.repeat, timing.threads]
        return settled(found.spec, partial(speed, found, models(), printed, progress=progress))

    tier = cpu.detect().name
    timings = tuple(Timing(Case(batch, repeat=repeat), threads, tier) for batch, repeat, threads in cases)
    return Subject(Row.of(found.spec), exact, timed, timings, lambda _: models())


def _case(timing: Printed) -> tuple[int, int, int]:
    return timing.batch, timing.repeat, timing.threads
