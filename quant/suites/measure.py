"""Models measured one by one, whoever they are of: what is done is kept, and what fails ends nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from quant.errors import ChildError, OutputError, QuantError, log_of
from quant.evaluation.parts import versions
from quant.process import isolate, parallel
from quant.process.imports import code_of
from quant.results.record import Anatomy, Failure, Machine, Record
from quant.results.target import Case, Row
from quant.storage.checkpoint import Journal, Tell

__all__ = ["Measured", "Subject", "Timing", "journal_of", "measure"]

Progress = isolate.Progress
# What measures subjects, whoever they are of; each with all that it imports, and the jobs that it names.
_DECIDING = (
    "quant.suites.measure",
    "quant.suites.embedded_suite",
    "quant.suites.entries",
    "quant.suites.published.located",
)


@dataclass(frozen=True)
class Timing:
    """A case on a tier, at a number of threads."""

    case: Case
    threads: int
    isa: str

    def __str__(self) -> str:
        return f"speed {self.isa}, {self.case.words(self.threads)}"


def _nothing(_: Progress) -> None:
    return None


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is measured, and how.

    `prepare`: data and models, in whatever place they stay. `accuracy`: FP32, simulation (if any), INT8. `speed`: FP32
    and INT8 of one of the `timings`. `anatomy`: what INT8 consists of; None where nobody asks.
    """

    row: Row
    accuracy: Callable[[Progress], list[Record]]
    speed: Callable[[Timing, Progress], list[Record]]
    timings: tuple[Timing, ...]
    prepare: Callable[[Progress], object] = _nothing
    anatomy: Callable[[Progress], Anatomy] | None = None


@dataclass(frozen=True)
class Measured:
    """Accuracy records, speed records, what models consist of; the models that couldn't be measured; a line for each of
    which it couldn't be told what it consists of.
    """

    exact: tuple[Record, ...] = ()
    timed: tuple[Record, ...] = ()
    anatomy: dict[str, Anatomy] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()
    untold: tuple[str, ...] = ()


def journal_of(
    path: Path,
    command: str,
    subjects: Sequence[Subject],
    inputs: Mapping[str, Any],
    *,
    fresh: bool = False,
    tell: Tell | None = None,
) -> Journal:
    """The journal of a suite or a gate, which goes on only with the same command, cases, inputs, code and machine.

    `inputs`: name -> what else decides the results, for JSON. Raises as `Journal` does.
    """
    about = {
        "command": command,
        "cases": {subject.row.name: list(map(str, subject.timings)) for subject in subjects},
        **inputs,
        "versions": {**versions(), "code": code_of(*_DECIDING)},
        "machine": asdict(Machine.here()),
    }
    return Journal(path, about, fresh=fresh, tell=tell)


def measure(
    subjects: Sequence[Subject],
    *,
    at_once: bool,
    only: Callable[[str, Timing], bool] | None = None,
    journal: Journal | None = None,
    tell: Callable[[Record], None],
    progress: Progress,
) -> Measured:
    """Data and models of all, their accuracy, their speed, then what they consist of.

    `at_once`: accuracy of one model on each core, for models that are evaluated on one thread. With `only` (name,
    timing) nothing but these timings, once more. What a `journal` has isn't measured again; it keeps the timings of
    `only` apart. A model that fails is left alone from then on. When nothing at all can be measured the first model's
    error is raised, unless a child process died over it, for its log is to be kept; nor with `only`, for what was
    measured before must not be lost with it.
    """
    timings = [(s, timing) for s in subjects for timing in s.timings if only is None or only(s.row.name, timing)]
    looked_into = [subject for subject in subjects if subject.anatomy and only is None]
    steps = isolate.Steps((2 * len(subjects) if only is None else 0) + len(timings) + len(looked_into), progress)
    kept = journal.kept if journal else _unkept
    failed: dict[str, Failure] = {}
    errors: list[QuantError] = []
    untold: list[str] = []

    def attempt(subject: Subject, work: Callable[[], Any]) -> Any:
        """What `work` gives; None where this model has failed, or does now."""
        steps.begin()
        if subject.row.name in failed:
            return None
        try:
            return work()
        except OutputError:
            raise  # where one can't write, none can
        except QuantError as error:
            failed[subject.row.name] = Failure(subject.row.title, str(error), log_of(error))
            errors.append(error)
            return None

    def records(subject: Subject, what: str, work: Callable[[], list[Record]]) -> list[Record]:
        key = f"{'' if only is None else 'once more, '}{subject.row.name}: {what}"
        content = attempt(subject, lambda: kept(key, lambda: list(map(asdict, work()))))
        found = list(map(Record.from_json, content or ()))
        for record in found[-1:]:
            tell(record)
        return found

    def prepare(subject: Subject) -> None:
        attempt(subject, partial(subject.prepare, steps))

    def accuracy(subject: Subject) -> list[Record]:
        return records(subject, "accuracy", partial(subject.accuracy, steps))

    def speed(subject: Subject, timing: Timing) -> list[Record]:
        return records(subject, str(timing), partial(subject.speed, timing, steps))

    def anatomy(subject: Subject, look: Callable[[Progress], Anatomy]) -> Anatomy | None:
        """None where it can't be told, which is no verdict on the model."""

        def content() -> Any:
            try:
                return kept(f"{subject.row.name}: anatomy", lambda: asdict(look(steps)))
            except QuantError as error:
                if isinstance(error, OutputError):
                    raise
                untold.append(f"{subject.row.title}: not told what it consists of: {error}")
                return None

        found = attempt(subject, content)
        return None if found is None else Anatomy.from_json(found)

    exact: list[list[Record]] = []
    if only is None:
        parallel.each(subjects, prepare)
        exact = parallel.each(subjects, accuracy) if at_once else list(map(accuracy, subjects))
    timed = [speed(subject, timing) for subject, timing in timings]
    nothing = only is None and not any(exact) and not any(timed)
    if errors and nothing and not any(isinstance(error, ChildError) for error in errors):
        raise errors[0]
    seen = {subject.row.name: anatomy(subject, subject.anatomy) for subject in looked_into if subject.anatomy}
    return Measured(
        tuple(record for some in exact for record in some),
        tuple(record for some in timed for record in some),
        {name: found for name, found in seen.items() if found is not None},
        tuple(failed.values()),
        tuple(untold),
    )


def _unkept(_: str, work: Callable[[], Any]) -> Any:
    return work()
