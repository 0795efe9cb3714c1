"""What a gate measures: the accuracy of models, and their speed in fresh processes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from quant import cpu, isolate, pipeline
from quant.errors import QuantError
from quant.outcomes import Store
from quant.record import Record
from quant.registry import ModelSpec
from quant.rows import Case, Row

__all__ = ["Subject", "Timed", "fits", "measure", "subject_of", "timings_of"]

Progress = isolate.Progress
Timed = tuple[Case, int]  # a case, at a number of threads


@dataclass(frozen=True, eq=False)
class Subject:
    """A row, and how it is measured on this machine's own tier.

    `accuracy` (progress): FP32, simulation, INT8. `speed` (case, threads, progress): FP32 and INT8 with its twin, by
    `pipeline.in_processes`. `timings`: cases at numbers of threads.
    """

    row: Row
    accuracy: Callable[[Progress | None], list[Record]]
    speed: Callable[[Case, int, Progress | None], list[Record]]
    timings: tuple[Timed, ...]


def timings_of(cases: Iterable[Case], threads: Iterable[int]) -> tuple[Timed, ...]:
    """Each case at each number of threads."""
    return tuple((case, count) for case in cases for count in threads)


def fits(threads: int) -> bool:
    """Whether this machine has a core for each thread to be pinned to."""
    return threads <= len(cpu.physical_cores())


def subject_of(spec: ModelSpec, threads: Sequence[int], store: Store | None) -> Subject:
    """An embedded row; its first case is timed."""
    isa = cpu.detect().cap.lower()

    def speed(case: Case, count: int, progress: Progress | None) -> list[Record]:
        models = pipeline.full_of(spec, progress)
        contenders = (
            pipeline.fp32_variants(models / "fp32"),
            [{"model": str(pipeline.int8_of(spec, isa)), "precision": "int8"}],
        )
        feed = pipeline.feed_of(spec, case, progress)
        return pipeline.in_processes(spec.name, contenders, feed, case, isa=isa, threads=count, progress=progress)

    def accuracy(progress: Progress | None) -> list[Record]:
        return pipeline.accuracy(spec, isa=isa, store=store, progress=progress)

    return Subject(Row.of(spec), accuracy, speed, timings_of(spec.cases[:1], threads))


def measure(
    subjects: Sequence[Subject],
    *,
    only: Callable[[str, Case, int], bool] | None = None,
    tell: Callable[[Record], None],
    progress: Progress | None = None,
) -> tuple[list[Record], list[str]]:
    """Accuracy of all subjects, then their speed where there are enough cores.

    With `only` (model, case, threads) the speed of the cases for which that is true, and no accuracy. A subject that
    can't be measured is left alone from then on, and the others go on: gives the records, and a line for each of these.
    """
    timed = [
        (subject, case, count)
        for subject in subjects
        for case, count in subject.timings
        if fits(count) and (only is None or only(subject.row.name, case, count))
    ]
    step, steps = 0, (len(subjects) if only is None else 0) + len(timed)

    def numbered(what: str, done: int, total: int) -> None:
        if progress:
            progress(f"[{step}/{steps}] {what}", done, total)

    found: list[Record] = []
    failed: dict[str, str] = {}

    def keep(subject: Subject, measured: Callable[[Progress | None], list[Record]]) -> None:
        nonlocal step
        step += 1
        if subject.row.name in failed:
            return
        try:
            records = measured(numbered)
        except QuantError as error:
            failed[subject.row.name] = f"{subject.row.title}: could not be measured: {error}"
        else:
            found.extend(records)
            tell(records[-1])

    for subject in subjects if only is None else ():
        keep(subject, subject.accuracy)
    for subject, case, count in timed:
        keep(subject, partial(subject.speed, case, count))
    return found, list(failed.values())
