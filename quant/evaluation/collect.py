"""Outputs of models over labelled data: what earlier runs kept, and the rest from a child process or from elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quant import cpu
from quant.datasets.columns import Column, Ragged, joined, values_of
from quant.datasets.readers import files_behind, format_of
from quant.errors import ChildError, OptionError
from quant.evaluation.parts import (
    About,
    Key,
    Part,
    Shelf,
    Store,
    data_digests,
    default_root,
    model_digest,
    parts_of,
    unpack,
    versions,
)
from quant.metrics.scores import WORDS, Paired, Verdict, counted, paired, verdict
from quant.metrics.sequential import Look, looks
from quant.process import isolate
from quant.runtime.verbose_log import Declared, Proof, kernels, proof
from quant.storage.digests import digest
from quant.storage.files import scratch_dir

__all__ = [
    "Decision",
    "Evaluated",
    "Remote",
    "Sequential",
    "Task",
    "Until",
    "chosen",
    "counts_of",
    "data_digest",
    "evaluate",
    "run_child",
]

Progress = isolate.Progress
Run = Mapping[str, Any]
# (number of the run, what there is to say of the part, its arrays as quant.evaluation.parts.pack makes them)
Arrived = Callable[[int, About, bytes], None]


# --- results


class Evaluated(NamedTuple):
    """One model's run over a dataset. `result` is JSON:

    model, precision; samples, and stored_samples: those of an earlier run; outputs: names; compared: a sentence, where
    they stand for the model's own (quant.ir.comparable), or ""; int8_ops, fp32_ops: counts;
    executor: who called the kernels; threads: that they ran on; note: why a reference ran on other kernels than usual,
    or ""; run_s: seconds in predictor.run by batch; overhead: the other share of wall time; measured: first and last
    time, UTC; hosts.
    """

    data: Path
    result: dict[str, Any]
    outputs: list[Column]
    labels: Column
    proof: Proof
    format: str | None = None  # of the data

    def counts(self, metric: str) -> NDArray[Any]:
        """What each sample adds to a metric, [N, k]. Raises OptionError when the model or the data don't fit it."""
        return counts_of(metric, self.outputs, self.labels, self.result["model"], self.data, self.format)

    @property
    def scores(self) -> list[Column]:
        """The outputs of real numbers, first to last."""
        return [column for column in self.outputs if values_of(column).dtype.kind == "f"]


def counts_of(
    metric: str, outputs: Sequence[Column], labels: Column, model: str, data: Path, format: str | None
) -> NDArray[Any]:
    """What each sample adds to a metric, [N, k]. Raises OptionError when the model or the data don't fit it."""
    try:
        return counted(metric, outputs, labels, data, format_of(data, format) if metric in WORDS else "")
    except (IndexError, ValueError) as error:
        shapes = ", ".join(_shape(column) for column in outputs)
        raise OptionError(
            f"metric {metric!r} doesn't fit: {model} puts out {shapes}, {data} has labels {_shape(labels)}"
        ) from error


def _shape(column: Column) -> str:
    kind = f"{values_of(column).dtype}{list(values_of(column).shape)}"
    return f"sequences of {kind}" if isinstance(column, Ragged) else kind


def _evaluated(data: Path, format: str | None, run: Run, parts: Sequence[Part], stored: int) -> Evaluated:
    """All parts of a run as one."""
    abouts = [part.about for part in parts]
    run_s = [seconds for about in abouts for seconds in about.run_s]
    ended = sorted(about.ended for about in abouts)
    result = {
        "model": run["model"],
        "precision": run["precision"],
        "samples": sum(about.samples for about in abouts),
        "stored_samples": stored,
        "outputs": list(abouts[0].outputs),
        "compared": _compared(abouts[0]),
        "int8_ops": abouts[0].int8_ops,
        "fp32_ops": abouts[0].fp32_ops,
        "executor": abouts[0].executor,
        "threads": abouts[0].threads,
        "note": next((about.note for about in abouts if about.note), ""),
        "run_s": run_s,
        "overhead": 1 - sum(run_s) / sum(about.wall_s for about in abouts),
        "measured": [ended[0], ended[-1]],
        "hosts": sorted({about.host for about in abouts}),
    }
    outputs = [joined(columns) for columns in zip(*(part.outputs for part in parts), strict=True)]
    shown = abouts[0].proof or {}
    labels = joined([part.labels for part in parts])
    lists = {key: tuple(shown.get(key, ())) for key in ("isas", "uncounted")}
    return Evaluated(data, result, outputs, labels, Proof(**{**shown, **lists}), format)


def _compared(about: About) -> str:
    """A sentence on outputs that others stand for; "" where none do."""
    if not about.instead:
        return ""
    named = f"{', '.join(about.outputs)} for {', '.join(about.instead)}"
    return f"compared before the number of rows depends on values: {named}"


def chosen(outputs: Sequence[str]) -> dict[str, list[str]]:
    """What a run is told of outputs that somebody chose: nothing, where nobody did."""
    return {"outputs": list(outputs)} if outputs else {}


# --- where parts are run


@dataclass(frozen=True)
class Task:
    """A part that is to be run, as plain values: what is run, on what, and how to know that it is the same thing."""

    number: int  # of the run
    start: int
    run: Run
    shared: Mapping[str, Any]  # keyword arguments of quant.evaluation.worker.evaluate
    isa: str
    key: Key


class Remote(Protocol):
    """Where tasks can be run in any order, several at a time."""

    def run(self, tasks: Callable[[], Sequence[Task]], arrived: Arrived) -> None:
        """Once it is clear that they can be run, ask for the tasks; call `arrived` for each part.

        What that raises ends the others.
        """


class Until(Protocol):
    def __call__(self, parts: Sequence[Part], planned: Sequence[range]) -> bool:
        """Told of one part of each run, the same samples, in order; `planned`: all there will be. True: enough."""


def run_child(
    runs: Sequence[Run],
    shared: Mapping[str, Any],
    arrived: Arrived,
    *,
    isa: str | None,
    progress: Progress | None = None,
    **which: Any,
) -> None:
    """Run parts in one child process; `shared` and `which` are arguments of quant.evaluation.worker.evaluate."""
    watch = _Watch(arrived)
    with scratch_dir("quant-outputs") as scratch:
        try:
            isolate.call(
                "quant.evaluation.worker:evaluate",
                {"runs": list(runs), "outputs": str(scratch), **shared, **which},
                isa=isa,
                threads=shared["threads"],
                progress=progress,
                log=watch.log,
                heard=watch.heard,
            )
        except ChildError as error:
            raise ChildError(error.what, error.log, watch.model or str(runs[0]["model"])) from error


class _Watch:
    """Hears what a child has done, and picks the kernels of each model's first batch out of its log."""

    def __init__(self, arrived: Arrived) -> None:
        self.arrived = arrived
        self.model = ""
        self.lines: list[str] = []
        self.open = False

    def log(self, line: str) -> None:
        if self.open:
            self.lines.append(line)

    def heard(self, event: Mapping[str, Any]) -> None:
        self.model = event.get("model", self.model)
        if "kernels" in event:
            self.open = event["kernels"]
            self.lines = [] if self.open else self.lines
        if "part" in event:
            part, file = event["part"], Path(event["part"]["file"])
            about = About.of(part["about"])
            if about.start == 0:
                about = replace(about, proof=asdict(proof(kernels(self.lines), Declared(**part["macs"]))))
            blob = file.read_bytes()
            file.unlink()
            self.arrived(part["run"], about, blob)


# --- comparing until it is decided


@dataclass(frozen=True)
class Decision:
    """What a look at a comparison says, of how many looks there would be."""

    look: Look
    looks: tuple[Look, ...]
    drop: Paired
    verdict: Verdict

    def summary(self) -> dict[str, Any]:
        """Samples needed, of how many; which look, of how many; the confidence of its interval."""
        return {
            "samples": self.look.samples,
            "of": self.looks[-1].samples,
            "look": self.look.number,
            "looks": len(self.looks),
            "confidence": self.look.confidence,
        }


class Sequential:
    """Compares the first run with the last one as their parts come in, until that is decided: quant.metrics.sequential.

    `decision` is the last look's.
    """

    def __init__(self, metric: str, limit: float, data: Path, models: Sequence[str], format: str | None = None) -> None:
        self.metric, self.limit, self.data, self.format = metric, limit, data, format
        self.models = (models[0], models[-1])
        self.counts: list[tuple[NDArray[Any], ...]] = []  # of each part: before, after
        self.decision: Decision | None = None

    def __call__(self, parts: Sequence[Part], planned: Sequence[range]) -> bool:
        pair = zip((parts[0], parts[-1]), self.models, strict=True)
        self.counts.append(
            tuple(
                counts_of(self.metric, part.outputs, part.labels, model, self.data, self.format) for part, model in pair
            )
        )
        done = planned[len(self.counts) - 1].stop
        at = looks(tuple(samples.stop for samples in planned))
        for look in at:
            if look.samples == done:
                before, after = (np.concatenate(counts) for counts in zip(*self.counts, strict=True))
                drop = paired(before, after, self.metric, look.confidence)
                self.decision = Decision(look, at, drop, verdict(drop, self.limit))
                return self.decision.verdict.result != "INCONCLUSIVE"
        return False


# --- all of it


class _Enough(Exception):  # noqa: N818 - no error
    """Raised where parts arrive, to end what brings them."""


class _Gathered:
    """The parts of all runs, as they come in."""

    def __init__(
        self, shelves: Sequence[Shelf | None], batch_size: int, batch_num: int | None, until: Until | None
    ) -> None:
        self.shelves, self.until = shelves, until
        self.batch_size, self.batch_num = batch_size, batch_num
        self.parts: list[dict[int, Part]] = [{} for _ in shelves]
        self.planned: tuple[range, ...] = ()  # empty while the data's size isn't known
        self.looked = 0  # parts that `until` was told of
        self.stored: list[frozenset[int]] = [frozenset() for _ in shelves]  # where parts of earlier runs begin

    def take_stored(self) -> None:
        """Take what is on the shelves, and is needed."""
        for number, shelf in enumerate(self.shelves):
            for start in shelf.starts() if shelf else ():
                if shelf and (part := shelf.get(start)):
                    self._add(number, part)
            self.stored[number] = frozenset(self.parts[number])

    def arrived(self, number: int, about: About, blob: bytes) -> None:
        """Keep a part that was run. Raises _Enough when no other is needed."""
        shelf = self.shelves[number]
        if shelf is not None:
            shelf.put(about, blob)
        self._add(number, Part(about, *unpack(blob, len(about.outputs))))
        if self.until and self.enough():
            raise _Enough

    def plan(self, total: int) -> None:
        """Told of the number of samples in the data."""
        self.planned = parts_of(total, self.batch_size, self.batch_num)

    def _add(self, number: int, part: Part) -> None:
        if not self.planned:
            self.plan(part.about.total)
        for samples in self.planned:
            whole = samples.start != 0 or part.about.proof is not None
            if samples.start == part.about.start and part.about.samples >= len(samples) and whole:
                self.parts[number][samples.start] = part.head(len(samples), self.batch_size)

    def enough(self) -> bool:
        """Whether all parts are there, or those that `until` asks for."""
        while self.until and self.looked < len(self.planned):
            start = self.planned[self.looked].start
            if not all(start in parts for parts in self.parts):
                return False
            self.looked += 1
            if self.until([parts[start] for parts in self.parts], self.planned):
                self.planned = self.planned[: self.looked]
        return bool(self.planned) and not any(self.missing(number) for number in range(len(self.parts)))

    def missing(self, number: int) -> list[int]:
        """Where the parts begin that a run lacks; the data's size is known."""
        return [samples.start for samples in self.planned if samples.start not in self.parts[number]]

    def progress(self) -> tuple[int, int]:
        """(samples done, all samples) of all runs."""
        there = sum(len(samples) for samples in self.planned for parts in self.parts if samples.start in parts)
        return there, sum(map(len, self.planned)) * len(self.parts)

    def of(self, number: int) -> tuple[list[Part], int]:
        """A run's parts, in order, and how many of their samples are of an earlier run."""
        old = sum(len(samples) for samples in self.planned if samples.start in self.stored[number])
        return [self.parts[number][samples.start] for samples in self.planned], old


def evaluate(
    runs: Sequence[Run],
    data: Path,
    *,
    format: str | None = None,
    labels: Path | None = None,
    isa: str | None = None,
    batch_size: int = 50,
    threads: int = 1,
    batch_num: int | None = None,
    store: Store | None = None,
    remote: Remote | None = None,
    until: Until | None = None,
    progress: Progress | None = None,
) -> list[Evaluated]:
    """Run models ({"model", "precision", "outputs"}) over one labelled dataset, in parts.

    With a `store`, parts that earlier runs kept there are not run again, and each part that is run is kept at once.
    The rest is run in one child process, or by `remote`. With `until`, all models are run part by part until it says
    that it is enough; without, one model after the other.
    """
    shared = {
        "data": str(data),
        "format": format,
        "labels": None if labels is None else str(labels),
        "batch_size": batch_size,
        "threads": threads,
        "batch_num": batch_num,
    }
    if remote is not None:
        isa = cpu.tier_of(isa).cap.lower()  # workers are not alike
    elif store is not None:
        isa = cpu.settled_isa(isa, {run["precision"] for run in runs})
    keys: list[Key] = []
    shelves: list[Shelf | None] = [None for _ in runs]
    if store is not None or remote is not None:
        notes = (store or Store(default_root())).notes
        keys = _keys(runs, data, format, labels, isa, batch_size, threads, notes, progress)
    if store is not None:
        told = {"data_file": str(data.absolute())}
        shelves = [
            store.shelf(key, {"model_directory": str(Path(run["model"]).absolute()), **told})
            for key, run in zip(keys, runs, strict=True)
        ]
    gathered = _Gathered(shelves, batch_size, batch_num, until)
    gathered.take_stored()
    if not gathered.enough():
        try:
            if remote is None:
                _run_here(runs, shared, isa, gathered, progress)
            else:
                _run_elsewhere(remote, runs, shared, str(isa), keys, gathered, progress)
        except _Enough:
            pass
    return [_evaluated(data, format, run, *gathered.of(number)) for number, run in enumerate(runs)]


def data_digest(
    data: Path, format: str | None = None, labels: Path | None = None, progress: Progress | None = None
) -> str:
    """A digest of all files that labelled data is read from: what tells whether two runs saw the same samples."""
    found = data_digests(files_behind(data, format, labels), Store(default_root()).notes, progress)
    return digest(f"{role} {sha256}" for role, sha256 in sorted(found.items()))


def _keys(
    runs: Sequence[Run],
    data: Path,
    format: str | None,
    labels: Path | None,
    isa: str | None,
    batch_size: int,
    threads: int,
    notes: Path,
    progress: Progress | None,
) -> list[Key]:
    """What decides each run's outputs; `notes`: where digests of large files are noted."""
    instructions = isa or " ".join(["uncapped", *sorted(flag for flag in cpu.flags() if flag[:3] in ("avx", "amx"))])
    digests = data_digests(files_behind(data, format, labels), notes, progress)
    return [
        Key(
            model=model_digest(Path(run["model"]), notes, progress),
            data=digests,
            format=format_of(data, format),
            run={name: value for name, value in run.items() if name != "model"},
            isa=instructions,
            batch_size=batch_size,
            threads=threads,
            versions=versions(),
        )
        for run in runs
    ]


def _run_here(
    runs: Sequence[Run], shared: Mapping[str, Any], isa: str | None, gathered: _Gathered, progress: Progress | None
) -> None:
    """What is missing, in one child process."""
    left = [number for number in range(len(runs)) if not gathered.planned or gathered.missing(number)]

    def arrived(place: int, about: About, blob: bytes) -> None:
        gathered.arrived(left[place], about, blob)

    asked = [{**runs[number], "skip": sorted(gathered.parts[number])} for number in left]
    run_child(asked, shared, arrived, isa=isa, progress=progress, together=gathered.until is not None)


def _run_elsewhere(
    remote: Remote,
    runs: Sequence[Run],
    shared: Mapping[str, Any],
    isa: str,
    keys: Sequence[Key],
    gathered: _Gathered,
    progress: Progress | None,
) -> None:
    """What is missing, as tasks, in the order in which it is wanted. This machine only counts the samples."""

    def tasks() -> list[Task]:
        if not gathered.planned:
            counted = {"model": runs[0]["model"], **{name: shared[name] for name in ("data", "format", "labels")}}
            gathered.plan(isolate.call("quant.evaluation.worker:count_samples", counted))
        tell()
        missing = [(start, number) for number in range(len(runs)) for start in gathered.missing(number)]
        if gathered.until is not None:
            missing.sort()
        absolute = {name: shared[name] and str(Path(shared[name]).absolute()) for name in ("data", "labels")}
        return [
            Task(
                number,
                start,
                {**runs[number], "model": str(Path(runs[number]["model"]).absolute())},
                {**shared, **absolute},
                isa,
                keys[number],
            )
            for start, number in missing
        ]

    def tell() -> None:
        if progress:
            progress("on the cluster", *gathered.progress())

    def arrived(number: int, about: About, blob: bytes) -> None:
        gathered.arrived(number, about, blob)
        tell()

    remote.run(tasks, arrived)
