"""Users' own models as cases: a manifest's entries checked, made, judged and timed as the embedded models are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

from quant import cpu, isolate, pipeline
from quant.collect import data_digest
from quant.errors import OptionError, QuantError
from quant.gating import Subject, timings_of
from quant.manifest import Entry
from quant.models import Given, Models, alike, evaluated, made_of, naming, paired, records_of
from quant.ratios import settled
from quant.record import Record
from quant.rows import Case

__all__ = [
    "Measured",
    "accuracy",
    "check",
    "has_bf16",
    "models_of",
    "speed",
    "speed_bf16",
    "subject_of",
    "suite",
    "too_many_threads",
]

Progress = isolate.Progress
T = TypeVar("T")
_TIMED_BATCHES = 8  # of the test data: sequences differ in length, and a turn runs them all


def check(entry: Entry, progress: Progress | None = None) -> dict[str, Any]:
    """What there is to say of an entry's data, before anything is measured on it; see quant.data_check.check_data.

    Raises DataError for labels out of range, and for test samples that the calibration data holds too.
    """
    arguments = {
        "model": str(entry.fp32 or entry.quant),
        "data": str(entry.data),
        "calibration": entry.calibration and str(entry.calibration),
        "format": entry.format,
        "labels": entry.labels and str(entry.labels),
    }
    found: dict[str, Any] = isolate.call("quant.data_check:check_data", arguments, progress=progress)
    return found


def models_of(entry: Entry, *, isa: str | None = None, progress: Progress | None = None) -> Models:
    """FP32, simulation and INT8 of an entry whose data were checked."""
    model = entry.quant or entry.fp32
    assert model is not None  # quant.manifest refuses INT8 alone
    given = Given(
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
    return made_of(given, isa=isa, progress=progress)


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


def accuracy(entry: Entry, models: Models, *, isa: str | None = None, progress: Progress | None = None) -> list[Record]:
    """FP32, simulated (if there is a simulation) and INT8 records by the entry's metrics, on this CPU or under `isa`.

    bfloat16 too, where the entry names it and the CPU has it. Parts of earlier runs count (quant.outcomes).
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
    row = entry.row()
    with _naming(entry, models):
        return paired(
            row,
            models,
            row.case_of(batch),
            isa=isa,
            threads=threads,
            budget_s=budget_s,
            progress=progress,
            **_feed(entry, batch, samples),
        )


def _feed(entry: Entry, batch: int, samples: int) -> dict[str, Any]:
    if samples < batch:
        raise OptionError(f"{entry.data}: {samples} samples, too few for a batch of {batch}")
    whole = batch * min(_TIMED_BATCHES, samples // batch)
    return {"data": str(entry.data), "format": entry.format, "samples": whole}


def speed_bf16(
    entry: Entry, models: Models, batch: int, threads: int, *, samples: int, budget_s: float = 2.5
) -> Record:
    """A record of the FP32 model in bfloat16, measured alone on what `speed` takes."""
    with _naming(entry, models):
        run = {"model": str(models.fp32), "precision": "bf16"}
        timed = pipeline.bench([[run]], threads=threads, budget_s=budget_s, batch=batch, **_feed(entry, batch, samples))
        [record] = pipeline.timed_records(entry.name, timed, Case(batch), cpu.detect(), threads)
        return record


def subject_of(entry: Entry) -> Subject:
    """What a gate measures of an entry. Its data are looked over, and its models made, when they are first needed."""
    row, isa = entry.row(), cpu.detect().cap.lower()

    @cache
    def ready() -> tuple[int, Models]:
        return check(entry)["samples"], models_of(entry)

    def exact(progress: Progress | None) -> list[Record]:
        return accuracy(entry, ready()[1], isa=isa, progress=progress)

    def timed(case: Case, threads: int, progress: Progress | None) -> list[Record]:
        samples, models = ready()
        feed = {"batch": case.batch, **_feed(entry, case.batch, samples)}
        int8 = {"model": str(models.int8), "precision": "int8"}
        with _naming(entry, models):
            return pipeline.in_processes(
                entry.name,
                [pipeline.fp32_variants(models.fp32), [int8]],
                feed,
                case,
                isa=isa,
                threads=threads,
                progress=progress,
            )

    return Subject(row, exact, timed, timings_of(row.cases, entry.threads))


@dataclass(frozen=True)
class Measured:
    """Accuracy records, speed records, and a line for each entry that failed and for each case that was left out."""

    exact: tuple[Record, ...]
    timed: tuple[Record, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]


class _Attempts:
    """What is done for entries: an error is kept, and ends nothing else."""

    def __init__(self) -> None:
        self.errors: dict[Entry, QuantError] = {}

    def __call__(self, entry: Entry, work: Callable[[], list[T]]) -> list[T]:
        """What `work` gives, nothing where it fails."""
        try:
            return work()
        except QuantError as error:
            self.errors[entry] = error
            return []


def suite(
    entries: Sequence[Entry],
    *,
    tell: Callable[[Record], None],
    progress: Progress | None = None,
) -> Measured:
    """Data and models of all entries, their accuracy, then their speed at all threads and batch sizes.

    An entry that fails is left alone from then on, and the others go on.
    """
    cases = [(entry, batch, threads) for entry in entries for batch in entry.batch_sizes for threads in entry.threads]
    timings = [case for case in cases if not too_many_threads(case[2])]
    steps = isolate.Steps(2 * len(entries) + len(timings), progress)
    attempt = _Attempts()

    def prepare(entry: Entry) -> list[tuple[int, Models]]:
        found = attempt(entry, lambda: [(check(entry)["samples"], models_of(entry))])
        steps.begin()
        steps("data and models", steps.step, len(entries))
        return found

    ready = dict(zip(entries, pipeline.each(entries, prepare), strict=True))
    exact: list[Record] = []
    timed: list[Record] = []
    for entry in entries:
        steps.begin()
        for _, models in ready[entry]:
            records = attempt(entry, partial(accuracy, entry, models, progress=steps))
            exact.extend(records)
            for record in records:
                tell(record)
    for entry, batch, threads in timings:
        steps.begin()
        if entry not in attempt.errors:
            [(samples, models)] = ready[entry]
            measure = partial(speed, entry, models, batch, threads, samples=samples, progress=steps)
            pair = attempt(entry, partial(settled, entry.row(), measure))
            timed.extend(pair)
            for record in pair[1:]:
                tell(record)
    failed = [f"{entry.title}: could not be measured: {error}" for entry, error in attempt.errors.items()]
    return Measured(tuple(exact), tuple(timed), tuple(failed), tuple(_skipped(entries)))


def _skipped(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        for why in filter(None, map(too_many_threads, entry.threads)):
            yield f"{entry.title}: not timed: {why}"
        if "bf16" in entry.precisions and not has_bf16():
            yield f"{entry.title}: bf16 not measured: this CPU lacks avx512_bf16"
