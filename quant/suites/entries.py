"""Users' own models as cases: a manifest's entries checked, made, judged and timed as the embedded models are."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from quant import cpu
from quant.diagnosis.composition import anatomy_of
from quant.errors import OptionError
from quant.evaluation.collect import data_digest
from quant.evaluation.parts import Store, default_root
from quant.process import isolate
from quant.results.record import Anatomy, Record
from quant.results.speed_ratio import settled
from quant.results.target import Case
from quant.suites.manifest.schema import Entry
from quant.suites.measure import Subject, Timing
from quant.suites.prepare import Given, Models, alike, evaluated, made_of, naming, records_of
from quant.timing import side_by_side

__all__ = [
    "accuracy",
    "check",
    "gated",
    "has_bf16",
    "identity",
    "models_of",
    "ready",
    "skipped",
    "speed",
    "speed_bf16",
    "too_many_threads",
    "whole",
]

Progress = isolate.Progress
_TIMED_BATCHES = 8  # of the test data: sequences differ in length, and a turn runs them all


def check(entry: Entry, progress: Progress | None = None) -> dict[str, Any]:
    """What there is to say of an entry's data, before anything is measured on it; see data_check.check_data.

    Raises DataError for labels out of range, and for test samples that the calibration data holds too.
    """
    arguments = {
        "model": str(entry.fp32 or entry.quant),
        "data": str(entry.data),
        "calibration": entry.calibration and str(entry.calibration),
        "format": entry.format,
        "labels": entry.labels and str(entry.labels),
    }
    found: dict[str, Any] = isolate.call("quant.evaluation.data_check:check_data", arguments, progress=progress)
    for line in found["remarks"]:
        print(f"warning: {line}", file=sys.stderr)
    return found


def _given(entry: Entry) -> Given:
    model = entry.quant or entry.fp32
    assert model is not None  # quant.suites.manifest.schema refuses INT8 alone
    return Given(
        "manifest",
        model,
        entry.data,
        quantized=entry.quant is not None,
        fp32=entry.fp32 if entry.quant else None,
        int8=entry.int8,
        format=entry.format,
        labels=entry.labels,
        calibration=entry.calibration,
        apart=True,
        algo=entry.algo,
        ops_to_quantize=entry.ops_to_quantize,
        op_ids_to_skip=entry.op_ids_to_skip,
    )


def identity(entry: Entry, progress: Progress | None = None) -> dict[str, Any]:
    """What decides what is measured of an entry, for JSON: what it says, and the contents of the files it names."""
    said = {
        "metrics": entry.metrics,
        "precisions": entry.precisions,
        "outputs": entry.outputs,
        "speedup": dict(entry.speedup),
        "batch_size": entry.batch_size,
    }
    return {**_given(entry).identity(Store(default_root()).notes, progress), **said}


def models_of(entry: Entry, *, isa: str | None = None, progress: Progress | None = None) -> Models:
    """FP32, simulation and INT8 of an entry whose data were checked."""
    return made_of(_given(entry), isa=isa, progress=progress)


@contextmanager
def ready(entry: Entry, *, isa: str | None = None, progress: Progress | None = None) -> Iterator[Models]:
    """The models of an entry, its data looked over first; inside, errors name what the entry gives."""
    check(entry, progress)
    models = models_of(entry, isa=isa, progress=progress)
    with _naming(entry, models):
        yield models


@contextmanager
def _naming(entry: Entry, models: Models) -> Iterator[None]:
    """Errors name what was given."""
    source = entry.quant or entry.fp32
    made = {models.fp32: str(entry.fp32 or f"FP32 of {source}")}
    if models.quant is not None and models.quant != entry.quant:
        made[models.quant] = f"simulation of {source}"
    if entry.int8 is None:
        made[models.int8] = f"INT8 of {source}"
    with naming(made):
        yield


def accuracy(
    entry: Entry,
    models: Models,
    *,
    isa: str | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32, simulated (if there is a simulation) and INT8 records by the entry's metrics, on this CPU or under `isa`.

    bfloat16 too, where the entry names it and the CPU has it. Parts of earlier runs count (quant.evaluation.parts).
    """
    lacking = {"quant": models.quant is None, "bf16": not has_bf16(isa)}
    precisions = [name for name in entry.precisions if not lacking.get(name)]
    with _naming(entry, models):
        runs = evaluated(
            models,
            precisions,
            entry.data,
            format=entry.format,
            labels=entry.labels,
            isa=isa,
            batch_size=entry.batch_size,
            outputs=entry.outputs,
            store=store,
            progress=progress,
        )
        alike(runs, {"fp32": models.fp32, "int8": models.int8})
        data = data_digest(entry.data, entry.format, entry.labels)
        return records_of(entry.row(), models, runs, entry.metrics, isa=isa, batch=entry.batch_size, data=data)


def has_bf16(isa: str | None = None) -> bool:
    """Whether bfloat16 can be measured on this CPU: its instructions belong to no tier that another cap stands for."""
    return isa is None and "avx512_bf16" in cpu.flags()


def too_many_threads(threads: int) -> str:
    """Why so many threads aren't timed here; "" where they are."""
    return f"{threads} threads, but only {cpu.cores()} cores" if threads > cpu.cores() else ""


def speed(
    entry: Entry,
    models: Models,
    batch: int,
    threads: int,
    *,
    samples: int,
    isa: str | None = None,
    budget_s: float = 2.5,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32 and INT8 records, measured in pairs on whole batches of the entry's own data, which holds `samples`."""
    with _naming(entry, models):
        return side_by_side.in_pairs(
            entry.name,
            models.fp32,
            models.int8,
            _feed(entry, batch, samples),
            entry.row().case_of(batch),
            isa=isa,
            threads=threads,
            budget_s=budget_s,
            progress=progress,
        )


def _feed(entry: Entry, batch: int, samples: int) -> dict[str, Any]:
    if samples < batch:
        raise OptionError(f"{entry.data}: {samples} samples, too few for a batch of {batch}")
    whole = batch * min(_TIMED_BATCHES, samples // batch)
    return {"batch": batch, "data": str(entry.data), "format": entry.format, "samples": whole}


def speed_bf16(
    entry: Entry, models: Models, batch: int, threads: int, *, samples: int, budget_s: float = 2.5
) -> Record:
    """A record of the FP32 model in bfloat16, measured alone on what `speed` takes."""
    with _naming(entry, models):
        run = {"model": str(models.fp32), "precision": "bf16"}
        timed = side_by_side.bench([[run]], threads=threads, budget_s=budget_s, **_feed(entry, batch, samples))
        [record] = side_by_side.timed_records(entry.name, timed, Case(batch), cpu.detect(), threads)
        return record


class _Ready:
    """An entry's data looked over, and its models made, when they are first needed."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    @cached_property
    def samples(self) -> int:
        found: int = check(self.entry)["samples"]
        return found

    @cached_property
    def models(self) -> Models:
        _ = self.samples  # data first: calibration and test samples are apart
        return models_of(self.entry)

    def feed(self, batch: int) -> dict[str, Any]:
        return _feed(self.entry, batch, self.samples)


def whole(entry: Entry, store: Store | None = None) -> Subject:
    """All of an entry: accuracy, speed at all its threads and batch sizes in one process, what INT8 consists of."""
    row, ready = entry.row(), _Ready(entry)

    def exact(progress: Progress) -> list[Record]:
        return accuracy(entry, ready.models, store=store, progress=progress)

    def timed(timing: Timing, progress: Progress) -> list[Record]:
        measure = partial(
            speed, entry, ready.models, timing.case.batch, timing.threads, samples=ready.samples, progress=progress
        )
        return settled(row, measure)

    def anatomy(progress: Progress) -> Anatomy:
        models = ready.models
        with _naming(entry, models):
            return anatomy_of(
                models.int8,
                {"batch": entry.batch_sizes[0], "data": str(entry.data), "format": entry.format},
                models.fp32,
                models.quant,
                models.int8,
                entry.data,
                entry.format,
                entry.labels,
                progress=progress,
            )

    return Subject(row, exact, timed, _timings(entry), lambda _: ready.models, anatomy)


def gated(entry: Entry, store: Store | None = None) -> Subject:
    """What the gate looks at: accuracy on this machine's own tier, speed in fresh processes."""
    row, ready, isa = entry.row(), _Ready(entry), cpu.detect().cap.lower()

    def exact(progress: Progress) -> list[Record]:
        return accuracy(entry, ready.models, isa=isa, store=store, progress=progress)

    def timed(timing: Timing, progress: Progress) -> list[Record]:
        models = ready.models
        with _naming(entry, models):
            return side_by_side.in_processes(
                entry.name,
                models.fp32,
                models.int8,
                ready.feed(timing.case.batch),
                timing.case,
                isa=isa,
                threads=timing.threads,
                progress=progress,
            )

    return Subject(row, exact, timed, _timings(entry), lambda _: ready.models)


def _timings(entry: Entry) -> tuple[Timing, ...]:
    counts = [count for count in entry.threads if not too_many_threads(count)]
    return tuple(Timing(case, count, cpu.detect().name) for case in entry.row().cases for count in counts)


def skipped(entries: Sequence[Entry]) -> Iterator[str]:
    """What of entries can't be measured on this machine, a line each."""
    for entry in entries:
        for why in filter(None, map(too_many_threads, entry.threads)):
            yield f"{entry.title}: not timed: {why}"
        if "bf16" in entry.precisions and not has_bf16():
            yield f"{entry.title}: bf16 not measured: this CPU lacks avx512_bf16"
