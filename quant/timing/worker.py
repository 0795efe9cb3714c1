"""Models that are timed, as jobs: plain arguments in, seconds out, run in children by `quant.process.isolate`.

`bench` alternates models in one process. `take_turns` and `serve` stay loaded and run when their parent says so.
"""

import gc
import itertools
import os
import pkgutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant.datasets.columns import Column, values_of
from quant.datasets.readers import batches, by_length, head
from quant.errors import DataError, OptionError, UnsupportedError, about
from quant.evaluation.worker import settings_of
from quant.ir.graph import load_dir
from quant.process.isolate import report_event, report_progress, requests
from quant.runtime.inputs import opened, sample_input
from quant.runtime.predictor import Predictor
from quant.timing.baseline import worth_timing
from quant.timing.rounds import BLOCK_S, in_turn, rounds_in

__all__ = ["Feed", "bench", "load", "serve", "take_turns"]

Json = dict[str, Any]
Variants = Sequence[Mapping[str, Any]]
_WARM_UP = 2
_HOPELESS = 1.5  # a variant this much slower than the best needs no second look
_LOST = 4  # and this much slower even in its first run, which builds the kernels, no first one
_LONG_S = 0.1  # a lap that takes longer doesn't feel what the other contender left in the caches
_TURN_S = 0.03  # how long a contender's turn lasts, so that quick models get several runs


@dataclass(frozen=True)
class Feed:
    """What models are timed on.

    Generated input (`shapes`: input -> shape, where open), or what the function `full_input` (batch) makes, or a data
    file's first `samples` (0: all), in their order or sorted by length; then a turn runs all its batches, each `repeat`
    times in a row.
    """

    batch: int = 1
    shapes: Mapping[str, Sequence[int]] | None = None
    full_input: str = ""
    data: str | None = None
    format: str | None = None
    sort: bool = False
    samples: int = 0
    repeat: int = 1

    def batches(self, model: str) -> list[Mapping[str, Column]]:
        """Raises DataError when the model doesn't tell what it takes, or takes other data."""
        if self.full_input:
            return [pkgutil.resolve_name(self.full_input)(self.batch)]
        with about(model):
            graph = load_dir(Path(model))
            if self.data is None:
                return [sample_input(graph, self.batch, self.shapes or {})]
        whole = opened(graph, self.data, self.format)
        dataset = head(whole, self.samples or len(whole))
        return list(batches(by_length(dataset) if self.sort else dataset, self.batch))


def bench(contenders: Sequence[Variants], *, threads: int = 1, budget_s: float = 6.0, **feed: Any) -> list[Json]:
    """Time models against each other: {"run": ..., "seconds": [...]} for each contender, in seconds a batch.

    A contender is a list of variants ({"model", "precision", "onednn", "optimise", "executor"}), of which the fastest
    in a short trial is measured. Contenders then alternate, round by round, on the same input (`Feed`), and the order
    within a round alternates too. In its turn a contender runs once untimed, because the other one has emptied the
    caches (unless it takes long), and then a few times in a row, as a served model does: a round's value is the median
    of those. The number of rounds follows from the time budget.
    """
    chosen = _chosen(contenders, threads, Feed(**feed))
    rounds = rounds_in(budget_s, sum(turn.cost_s for turn in chosen))
    seconds: list[list[float]] = [[] for _ in chosen]
    gc.disable()  # as timeit does; the process ends with this job
    for number in range(rounds):
        for place in in_turn(len(chosen), number):
            seconds[place].append(chosen[place].take())
        report_progress("bench", number + 1, rounds)
    return [{"run": turn.used, "seconds": times} for turn, times in zip(chosen, seconds, strict=True)]


def take_turns(contenders: Sequence[Variants], *, threads: int, cpus: Sequence[int] = (), **feed: Any) -> None:
    """As `bench`, but a round whenever the parent asks for one, by its number.

    Events: {"runs": [...], "cost_s": of a round}, and for each request {"seconds": [...]}, one a contender, when
    OpenMP's threads have gone to sleep: waiting, they would take a core from whoever is next. `cpus`: what the process
    is pinned to once its models are loaded, which may use all.
    """
    chosen = _chosen(contenders, threads, Feed(**feed))
    gc.disable()
    if cpus:
        _pin(cpus)
    rest_s = 2 * BLOCK_S if threads > 1 else 0.0
    time.sleep(rest_s)
    report_event({"runs": [turn.used for turn in chosen], "cost_s": sum(turn.cost_s for turn in chosen)})
    for number in requests():
        seconds = {place: chosen[place].take() for place in in_turn(len(chosen), number)}
        time.sleep(rest_s)
        report_event({"seconds": [seconds[place] for place in range(len(chosen))]})


def _pin(cpus: Sequence[int]) -> None:
    """Pin all threads that this process has."""
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


def serve(variants: Variants, **feed: Any) -> None:
    """Run a model over and over, from and until when the parent says, and tell of each batch.

    Events: {"run": ..., "batch_s": the quickest seen}, and for each request {"from", "until"} {"begun": [...],
    "ended": [...], "samples": [...]}, of each batch that began in that time; in seconds of the monotonic clock, which
    all processes share.
    """
    [turn] = _chosen([variants], 1, Feed(**feed))
    gc.disable()
    report_event({"run": turn.used, "batch_s": turn.best / len(turn.feeds)})
    cycle = itertools.cycle(turn.feeds)
    for window in requests():
        begun, ended, samples = [], [], []
        time.sleep(max(window["from"] - time.monotonic(), 0))
        while time.monotonic() < window["until"]:
            given = next(cycle)
            turn.predictor.feed(given)
            begun.append(time.monotonic())
            turn.predictor.run()
            ended.append(time.monotonic())
            samples.append(len(next(iter(given.values()))))
        report_event({"begun": begun, "ended": ended, "samples": samples})


def load(run: Mapping[str, Any], *, threads: int, **feed: Any) -> Json:
    """Seconds that this process takes to load its first model, and from there to the model's first answer."""
    given = Feed(**feed).batches(run["model"])[0]
    start = time.perf_counter()
    predictor = Predictor(Path(run["model"]), settings_of(run, threads))
    loaded = time.perf_counter()
    predictor(given)
    return {"load_s": loaded - start, "answer_s": time.perf_counter() - loaded}


class _Turn:
    """A variant that is timed: its predictor, what it is fed, and its best lap in the trial, in seconds."""

    def __init__(self, run: Mapping[str, Any], threads: int, feed: Feed) -> None:
        self.run = run
        self.feeds = feed.batches(run["model"])
        self.predictor = Predictor(Path(run["model"]), settings_of(run, threads))
        self.given = feed.repeat if feed.data else 0
        self.best = np.inf

    @property
    def used(self) -> Json:
        """The variant, who called its kernels, and on how many threads."""
        return {**self.run, "executor": self.predictor.executor, "threads": self.predictor.threads}

    @property
    def repeat(self) -> int:
        """Timed runs of a batch in a turn."""
        return self.given or int(np.clip(_TURN_S / self.best, 1, 10))

    @property
    def cost_s(self) -> float:
        return self.best * (self.repeat + (self.best < _LONG_S))

    def take(self) -> float:
        """The turn: seconds a batch."""
        if self.best < _LONG_S:
            self.lap(1)
        return self.lap(self.repeat) / len(self.feeds)

    def lap(self, repeat: int) -> float:
        """Seconds for all batches once: for each the median of `repeat` runs in a row."""
        total = 0.0
        for feed in self.feeds:
            self.predictor.feed(feed)
            runs = []
            for _ in range(repeat):
                start = time.perf_counter()
                self.predictor.run()
                runs.append(time.perf_counter() - start)
            total += float(np.median(runs))
        return total


def _chosen(contenders: Sequence[Variants], threads: int, feed: Feed) -> list[_Turn]:
    chosen = [_quickest(variants, threads, feed) for variants in contenders]
    first, *others = chosen
    for other in others:
        for name, column in first.feeds[0].items():
            mine, its = np.shape(values_of(column)), np.shape(values_of(other.feeds[0].get(name, column)))
            if mine != its:
                raise DataError(
                    f"{first.run['model']} would be timed on input {name!r} of {[*mine]}, {other.run['model']} on one "
                    f"of {[*its]}: give both the same by --data or --input-shape {name}="
                )
    return chosen


def _quickest(variants: Variants, threads: int, feed: Feed) -> _Turn:
    """The fastest of a contender's variants in a short trial."""
    best: _Turn | None = None
    refused: UnsupportedError | None = None
    for number, run in enumerate(worth_timing(variants)):
        report_progress("trial", number, len(variants))
        try:
            turn = _Turn(run, threads, feed)
            laps = [turn.lap(1)]  # the first run builds the kernels
        except UnsupportedError as error:
            refused = error
            continue
        if best and laps[0] > _LOST * best.best:
            turn.predictor.close()
            continue
        while len(laps) <= _WARM_UP and not (best and len(laps) > 1 and laps[-1] > _HOPELESS * best.best):
            laps.append(turn.lap(1))
            report_progress("trial", number, len(variants))
        turn.best = min(laps[1:])
        loser = turn if best and best.best <= turn.best else best
        best = best if loser is turn else turn
        if loser:
            loser.predictor.close()
    if best is None:
        raise refused or OptionError("no way to run the model was given")
    return best
