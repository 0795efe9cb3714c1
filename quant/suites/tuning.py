"""`quant tune`: the search of `quant.search.for_accuracy` on a user's model, the latency of what it found, OUTPUT.

The search's measures are kept (quant.search.state). Ctrl-C searches again at once, with those that there are: what is
written is the best so far, untimed.

OUTPUT holds `quant` and `int8`, the chosen model and its simulation; `quant.toml`, a manifest of it; and `tuning.json`,
of which the command draws `pareto.svg`:

    schema      3
    title, metric, max_drop, samples, fp32: score and median_ms; compared: see quant.evaluation.collect.Evaluated
    met         whether the chosen point's drop is within max_drop, by its estimate; `verdict`: by its interval
    finished    false when the time budget or Ctrl-C (`interrupted`) ended the search
    points      each that was run on the whole set: algo, op_ids, tensors (name -> algorithm), ops in FP32 (op_ids of
                what one kernel does, op_type, output), score, drop, low, high (95%), lost, won, p_value, verdict, met,
                median_ms, speedup over FP32 with its 95% interval (null where it wasn't timed), chosen, pareto: no
                other, nor FP32, is as good in drop and time, and better in one
    trials      in order: kind "guess" (on the worst samples: error, predicted drop) or "point", setup, seconds, failed
    cpu         tier, isa, threads; batch: samples of a timed run
    budget_s, spent_s   of this call
"""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quant import cpu
from quant.datasets.readers import files_behind
from quant.errors import ChildError, QuantError
from quant.evaluation.collect import Evaluated, chosen, evaluate
from quant.evaluation.parts import Store, data_digests, default_root, model_digest, versions
from quant.metrics.scores import metric_of, paired, ratio_interval, verdict
from quant.process import isolate
from quant.quantization import targets
from quant.search.for_accuracy import (
    OFFERED,
    Focus,
    Guess,
    Kernel,
    Point,
    Setup,
    chosen_point,
    predicted_drop,
    sample_errors,
    search,
    worst_samples,
)
from quant.search.state import SCHEMA, State, held_part
from quant.storage.checkpoint import Tell
from quant.storage.digests import digest
from quant.storage.files import fresh_dir
from quant.suites import embedded
from quant.suites.manifest.entry_text import entry_text
from quant.suites.manifest.schema import Entry
from quant.timing import side_by_side

__all__ = ["ALGORITHMS", "Subject", "tune"]

Json = dict[str, Any]
ALGORITHMS = ("best", *OFFERED)  # tried for all tensors
_CRASHES = 3  # children that died one after the other, after which the search ends
_TIMED = 8  # models that are timed against each other, FP32 among them


@dataclass(frozen=True)
class Subject:
    """What is tuned, as a manifest's entry tells it (fp32, calibration and data are there), and how it is run."""

    entry: Entry
    max_drop: float
    threads: int = 1
    isa: str | None = None

    @property
    def metric(self) -> str:
        return self.entry.metrics[0]

    @property
    def given(self) -> Setup:
        return Setup(self.entry.algo, self.entry.op_ids_to_skip)

    def job(self) -> Json:
        """Arguments of quant.search.worker.serve."""
        entry = self.entry
        return {
            "model": str(entry.fp32),
            "calibration": str(entry.calibration),
            "data": str(entry.data),
            "format": entry.format,
            "labels": entry.labels and str(entry.labels),
            "metric": self.metric,
            "weight_levels": targets.weight_levels(self.isa),
            "ops_to_quantize": list(entry.ops_to_quantize),
            "batch_size": entry.batch_size,
            "threads": self.threads,
            "outputs": list(entry.outputs),
        }

    def identity(self, progress: isolate.Progress | None) -> Json:
        """What must be the same for a run to go on: contents of files, options, versions."""
        entry, notes = self.entry, Store(default_root()).notes
        assert entry.fp32 is not None and entry.calibration is not None
        options = {name: value for name, value in self.job().items() if name not in ("model", "calibration", "data")}
        return {
            "model": model_digest(entry.fp32, notes, progress),
            "calibration data": data_digests(files_behind(entry.calibration, entry.format), notes, progress),
            "data": data_digests(files_behind(entry.data, entry.format, entry.labels), notes, progress),
            "options": {
                **{name: value for name, value in options.items() if name != "labels"},
                "algo": entry.algo,
                "op_ids_to_skip": list(entry.op_ids_to_skip),
                "max_drop": self.max_drop,
                "isa": self.isa,
            },
            "version": dict(versions()),
        }


# --- measuring


class _Bench:
    """quant.search.for_accuracy.Bench by children: one that holds the model for guesses, one for each run over the
    whole set."""

    def __init__(
        self,
        subject: Subject,
        part: Path,
        state: State,
        budget_s: float,
        store: Store,
        progress: isolate.Progress | None,
    ) -> None:
        self.subject, self.part, self.state, self.progress = subject, part, state, progress
        self.store = store
        self.budget_s, self.begun = budget_s, time.monotonic()
        self.timing_s = float(np.clip(0.1 * budget_s, 1.0, 30.0))
        self.whole_s = 0.0  # the longest run of a model over the whole set
        self.ended = False
        self.stopped = False  # nothing is measured any more; what was counts
        self.known, self.found = len(state.trials), set[int]()  # trials of an earlier run, and those met again
        self.crashes = 0
        self.metric = metric_of(subject.metric)
        self.stack = ExitStack()
        self.child: isolate.Child | None = None
        self.child_focus = ""
        self.fp32: Evaluated | None = None
        self.runs: dict[str, Evaluated] = {}  # of the focus alone
        self.focused: tuple[Point, Focus] | None = None
        self.what, self.done, self.trials = "", 0, 0
        self.drop: float | None = None  # the smallest so far

    def spent_s(self) -> float:
        return time.monotonic() - self.begun

    def close(self) -> None:
        self.stack.close()
        self.child = None

    # what quant.search.for_accuracy.search asks for

    def searching(self) -> bool:
        if len(self.state.trials) == self.known and len(self.found) < self.known:
            return True  # what an earlier run measured takes no time
        if self.spent_s() + self.whole_s + self.timing_s >= self.budget_s or self.crashes >= _CRASHES or self.stopped:
            self.ended = True
        return not self.ended

    def stop(self) -> None:
        """Measure nothing any more: to search again then finds what has been found."""
        self.close()
        self.stopped, self.known, self.found = True, len(self.state.trials), set()

    def known_trial(self, kind: str, setup: Setup, focus: str = "") -> Json | None:
        found = self.state.find(kind, setup, focus)
        if found is not None:
            self.found.add(self.state.trials.index(found))
        return found

    def phase(self, what: str, trials: int) -> None:
        self.what, self.done, self.trials = what, 0, trials
        self.tell()

    def tell(self) -> None:
        if self.progress and self.trials:
            best = "" if self.drop is None else f", smallest drop so far {100 * self.drop:.2f} points"
            spent = f"{self.spent_s():.0f} of at most {self.budget_s:.0f} s"
            self.progress(f"trying {self.what}{best}, {spent}", min(self.done, self.trials), self.trials)

    def tell_step(self, what: str, done: int, total: int) -> None:
        if self.progress and total:
            self.progress(what, done, total)

    def guess(self, setup: Setup) -> Guess | None:
        assert self.focused and self.fp32
        point, focus = self.focused
        found = self.known_trial("guess", setup, point.setup.key)
        if found is None:
            if self.stopped:
                return None
            begin = time.monotonic()
            try:
                if self.child is None or self.child_focus != point.setup.key:
                    self.ask({"focus": focus.samples.tolist()})
                    self.child_focus = point.setup.key
                answer = self.ask({"guess": asdict(setup)})
                before, after = (run.counts(self.subject.metric) for run in (self.fp32, self.runs[point.setup.key]))
                drop = predicted_drop(self.metric, before, after, focus, np.array(answer["counts"]))
                measured: Json = {"error": answer["error"], "drop": drop, "failed": None}
            except _TrialError as error:
                measured = {"error": None, "drop": None, "failed": str(error)}
            seconds = time.monotonic() - begin
            found = self.state.add("guess", setup, point.setup.key, **measured, seconds=seconds)
        self.done += 1
        self.tell()
        return None if found["failed"] else Guess(found["error"], found["drop"])

    def confirm(self, setup: Setup) -> Point | None:
        found, begin = self.known_trial("point", setup), time.monotonic()
        if found["failed"] if found else self.stopped:
            return None
        try:
            run = self.whole(setup)
        except (_TrialError, ChildError) as error:
            self.state.add("point", setup, failed=str(error), seconds=time.monotonic() - begin)
            return None
        assert self.fp32
        drop = paired(self.fp32.counts(self.subject.metric), run.counts(self.subject.metric), self.subject.metric)
        score = float(self.metric.score(run.counts(self.subject.metric).sum(0)))
        if found is None:
            found = self.state.add("point", setup, failed=None, seconds=time.monotonic() - begin, drop=drop.drop)
        self.drop = drop.drop if self.drop is None else min(self.drop, drop.drop)
        self.runs = {key: kept for key, kept in self.runs.items() if self.focused and key == self.focused[0].setup.key}
        self.runs[setup.key] = run
        return Point(setup, score, drop, self.state.trials.index(found))

    def focus(self, point: Point) -> None:
        assert self.fp32
        run = self.runs[point.setup.key] if point.setup.key in self.runs else self.whole(point.setup)
        before, after = self.fp32.counts(self.subject.metric), run.counts(self.subject.metric)
        self.focused = point, worst_samples(self.metric, before, after, sample_errors(self.fp32.outputs, run.outputs))
        self.runs = {point.setup.key: run}

    def kernels(self) -> Sequence[Kernel]:
        return [
            Kernel(**{**kernel, "op_ids": tuple(kernel["op_ids"]), "tensors": tuple(kernel["tensors"])})
            for kernel in self.survey()["kernels"]
        ]

    def thresholds(self) -> Mapping[str, Mapping[str, float]]:
        found: Mapping[str, Mapping[str, float]] = self.survey()["thresholds"]
        return found

    # how

    def survey(self) -> Json:
        """What can be moved, looked up once: of the given setup, whose ops in INT8 are a superset of all others'."""
        if self.state.content["survey"] is None and not self.stopped:
            try:
                self.state.content["survey"] = self.ask({"survey": asdict(self.subject.given)})
            except _TrialError:
                self.ended = True
            else:
                self.state.write()
        found: Json = self.state.content["survey"] or {"kernels": [], "thresholds": {}}
        return found

    def models(self, setup: Setup) -> Path:
        """A directory with `quant` and `int8` of a setup."""
        place = self.part / "models" / digest([setup.key])
        if not place.exists():
            with fresh_dir(place) as staging:
                self.ask({"save": asdict(setup), "place": str(staging)})
        return place

    def whole(self, setup: Setup) -> Evaluated:
        """The whole set, in parts that are kept."""
        entry = self.subject.entry
        named = chosen(entry.outputs)
        runs: list[Json] = [{"model": str(self.models(setup) / "int8"), "precision": "int8", **named}]
        if self.fp32 is None:
            runs.insert(0, {"model": str(entry.fp32), "precision": "fp32", **named})
        begin = time.monotonic()
        found = evaluate(
            runs,
            entry.data,
            format=entry.format,
            labels=entry.labels,
            isa=self.subject.isa,
            batch_size=entry.batch_size,
            threads=self.subject.threads,
            store=self.store,
            progress=self.progress,
        )
        self.whole_s = max(self.whole_s, (time.monotonic() - begin) / len(runs))
        if self.fp32 is None:
            self.fp32 = found[0]
        return found[-1]

    def ask(self, request: Json) -> Json:
        """The child's answer. Raises _TrialError for a request that can't be done, or that ended the child."""
        if self.child is None:
            self.child_focus = ""
            self.child = self.stack.enter_context(
                isolate.Child(
                    "quant.search.worker:serve", self.subject.job(), isa=self.subject.isa, threads=self.subject.threads
                )
            )
        child = self.child
        child.tell(request)
        try:
            answer: Json = child.hear_event(progress=self.tell_step)
        except ChildError as error:
            self.crashes += 1
            self.close()
            raise _TrialError(str(error)) from error
        except QuantError:
            self.close()
            raise
        self.crashes = 0
        if "failed" in answer:
            raise _TrialError(answer["failed"])
        return answer

    def timed(self, points: Sequence[Point]) -> dict[str, list[float]]:
        """Seconds of rounds in alternation: "fp32", and the key of each setup; empty when that fails."""
        entry = self.subject.entry
        keys = [point.setup.key for point in points]
        int8 = [[{"model": str(self.models(point.setup) / "int8"), "precision": "int8"}] for point in points]
        with contextlib.suppress(ChildError):
            found = side_by_side.bench(
                [embedded.fp32_variants(Path(str(entry.fp32))), *int8],
                isa=self.subject.isa,
                threads=self.subject.threads,
                budget_s=self.timing_s,
                progress=self.progress,
                data=str(entry.data),
                format=entry.format,
                samples=1,
            )
            return {key: timing["seconds"] for key, timing in zip(["fp32", *keys], found, strict=True)}
        return {}


class _TrialError(QuantError):
    """A trial that didn't come to a result; the search goes on."""


# --- all of it


def tune(
    subject: Subject,
    output: Path,
    *,
    budget_s: float = 600.0,
    fresh: bool = False,
    tell: Tell | None = None,
    progress: isolate.Progress | None = None,
) -> Json:
    """Search, and write OUTPUT; the content of `tuning.json`. The budget is this call's, in seconds.

    `fresh` starts anew, whatever a run that was cut off has left; `tell` hears of what is gone on with. What was begun
    when the budget ends is finished: a run over the whole set, and the timing. Raises QuantError for bad input.
    """
    entry = subject.entry
    with held_part(output) as part:
        state: State | None = None
        try:
            state = State(part, subject.identity(progress), fresh=fresh, tell=tell)
            if not state.resumed:
                checked = {"model": str(entry.fp32), "calibration": str(entry.calibration), "data": str(entry.data)}
                more = {"format": entry.format, "labels": entry.labels and str(entry.labels)}
                isolate.call("quant.evaluation.data_check:check_data", {**checked, **more}, progress=progress)
            bench = _Bench(subject, part, state, budget_s, Store(default_root(), fresh), progress)
            try:
                try:
                    points = search(bench, subject.given, subject.max_drop, ALGORITHMS)
                    if not points:
                        raise ChildError(f"{entry.fp32}: {state.trials[-1]['failed']}")
                    timed = bench.timed(_to_time(points, subject.max_drop))
                except KeyboardInterrupt:
                    bench.stop()
                    points, timed = search(bench, subject.given, subject.max_drop, ALGORITHMS), {}
                    if not points:
                        raise
                chosen = chosen_point(points, timed, subject.max_drop)
                content = _content(subject, bench, points, timed, chosen)
                models = bench.models(chosen.setup)
            finally:
                bench.close()
        except (QuantError, OSError):
            if state is None:
                left = (part / "state.json").exists()  # another run's
            else:
                left = state.resumed or any(trial["failed"] is None for trial in state.trials)
            if not left:  # bad input leaves nothing behind, but a full disk loses no hours
                shutil.rmtree(part, ignore_errors=True)
            raise
        if output.exists() and any(output.iterdir()):
            output.rename(part / f"replaced-{time.time_ns()}")
        with fresh_dir(output) as staging:
            for name in ("quant", "int8"):
                shutil.copytree(models / name, staging / name)
            tuned = replace(entry, algo=chosen.setup.algo, op_ids_to_skip=tuple(sorted(chosen.setup.op_ids)))
            simulation = output.absolute() / "quant" if chosen.setup.tensors else None
            text = entry_text(tuned, subject.max_drop, simulation)
            (staging / "quant.toml").write_text(text, encoding="utf-8")
            (staging / "tuning.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if content["finished"]:
            shutil.rmtree(part, ignore_errors=True)
    return content


def _to_time(points: Sequence[Point], max_drop: float) -> list[Point]:
    """The given setup, then those that meet the target, then the smallest drops; each once."""
    first, *others = points
    others.sort(key=lambda point: (not point.meets(max_drop), len(point.setup.op_ids), point.drop.drop))
    return [first, *others[: _TIMED - 2]]


def _content(
    subject: Subject, bench: _Bench, points: Sequence[Point], timed: Mapping[str, Sequence[float]], chosen: Point
) -> Json:
    assert bench.fp32
    seconds = {key: np.array(found) for key, found in timed.items()}
    kernels = bench.kernels() if bench.state.content["survey"] else ()

    def told(point: Point) -> Json:
        setup, drop = point.setup, point.drop
        rounds = seconds.get(setup.key)
        speedup = None
        if rounds is not None:
            speedup = dict(zip(("ratio", "low", "high"), ratio_interval(seconds["fp32"], rounds), strict=True))
        in_fp32 = [kernel for kernel in kernels if set(kernel.op_ids) <= set(setup.op_ids)]
        return {
            "algo": setup.algo,
            "op_ids": sorted(setup.op_ids),
            "tensors": dict(setup.tensors),
            "ops": [{name: getattr(kernel, name) for name in ("op_ids", "op_type", "output")} for kernel in in_fp32],
            "score": point.score,
            **{name: getattr(drop, name) for name in ("drop", "low", "high", "lost", "won", "p_value")},
            "verdict": verdict(drop, subject.max_drop).result,
            "met": point.meets(subject.max_drop),
            "median_ms": None if rounds is None else 1e3 * float(np.median(rounds)),
            "speedup": speedup,
            "chosen": point is chosen,
        }

    rows = [told(point) for point in points]
    ms = 1e3 * float(np.median(seconds["fp32"])) if "fp32" in seconds else None
    fp32 = {"drop": 0.0, "median_ms": ms}
    for row in rows:
        row["pareto"] = row["median_ms"] is not None and not any(_beats(other, row) for other in (fp32, *rows))
    score = float(bench.metric.score(bench.fp32.counts(subject.metric).sum(0)))
    tier = cpu.tier_of(subject.isa).name
    return {
        "schema": SCHEMA,
        "title": subject.entry.title,
        "metric": subject.metric,
        "max_drop": subject.max_drop,
        "samples": bench.fp32.result["samples"],
        "compared": bench.fp32.result["compared"],
        "fp32": {"score": score, "median_ms": ms},
        "met": chosen.meets(subject.max_drop),
        "verdict": verdict(chosen.drop, subject.max_drop).result,
        "finished": not (bench.ended or bench.stopped),
        "interrupted": bench.stopped,
        "points": rows,
        "trials": bench.state.trials,
        "cpu": {"tier": tier, "isa": subject.isa, "threads": subject.threads, "batch": 1},
        "budget_s": bench.budget_s,
        "spent_s": bench.spent_s(),
    }


def _beats(one: Json, other: Json) -> bool:
    """Whether one is as good as the other in drop and time, and better in one."""
    if one["median_ms"] is None:
        return False
    pairs = [(one[name], other[name]) for name in ("drop", "median_ms")]
    return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)
