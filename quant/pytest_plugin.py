"""A manifest's models as pytest cases, in users' own repositories: no test code of theirs is needed.

    quant.toml::resnet50::data                  labels in range, calibration and test data apart
    quant.toml::resnet50::floor                 FP32 is as good as it should be, where the manifest says so
    quant.toml::resnet50::drop[top1]            INT8 against FP32, by each metric with a limit
    quant.toml::resnet50::simulation[top1]      INT8 against its simulation
    quant.toml::resnet50::kernels               INT8 kernels did the work
    quant.toml::resnet50::latency[int8-b1-1t]   each precision, batch size and number of threads
    quant.toml::resnet50::ratio[b1-1t]          FP32 / INT8 against what is due on this CPU

A model is measured once a session, in child processes. Its accuracy goes into a run of results.history; its times into
pytest-benchmark's storage (quant.results.benchmark_files). `pytest_quant` registers the plugin when --manifest is
given.

With pytest-xdist the workers share what is on disk, and --dist loadscope keeps a model's cases on one of them. Timed
cases need the machine to themselves, and are skipped there.
"""

import os
import shlex
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from quant.errors import OutputError, QuantError, log_of
from quant.results import comparison, history
from quant.results.benchmark_files import extra_info, machine_info
from quant.results.comparison import Comparison, comparisons
from quant.results.environment import Watch
from quant.results.record import Failure, Record
from quant.results.speed_ratio import Pair, pairs, settled
from quant.storage.cache import locked
from quant.storage.digests import digest
from quant.suites import entries as manifest_suite
from quant.suites.manifest import schema
from quant.suites.manifest.schema import Entry
from quant.suites.prepare import Models
from quant.suites.saving import check_places, hand_over, unfit

__all__ = ["Plugin"]

T = TypeVar("T")


class Plugin:
    """The hooks of a session with a manifest. Raises pytest.UsageError for a manifest that is wrong."""

    def __init__(self, config: pytest.Config) -> None:
        path = Path(config.getoption("quant_manifest"))
        try:
            self.manifest = schema.read(path)
        except QuantError as error:
            raise pytest.UsageError(str(error)) from error
        schema.importable(self.manifest)
        self.history = Path(config.getoption("quant_history"))
        self.is_worker = hasattr(config, "workerinput")
        self.save = Path(config.getoption("quant_save")) if config.getoption("quant_save") else None
        if self.save and not self.is_worker and not config.getoption("collectonly"):
            try:
                check_places(self.save, [entry.name for entry in self.manifest.models])
            except QuantError as error:
                raise pytest.UsageError(str(error)) from error
        self.command = f"quant suite --manifest {shlex.quote(str(path))}"
        self.watch = Watch("pytest", self.command)
        self.records: list[Record] = []
        self.failures: list[Failure] = []
        self.failed = False
        self.told: list[str] = []  # what became of the run's file, and of the models
        self.outcomes: dict[str, dict[str, str]] = {}  # model -> case -> "passed", "skipped" or "failed"
        self.why_untimed = _why_untimed(config)
        if not any(_is_manifest(argument.partition("::")[0], self.manifest.path) for argument in config.args):
            config.args.append(str(path))

    def pytest_report_header(self) -> str:
        return f"quant: {self.manifest.path}, {len(self.manifest.models)} model(s)"

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        if not _is_manifest(file_path, self.manifest.path):
            return None
        found: pytest.Collector = _File.from_parent(parent, path=file_path)
        return found

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """What a case measured goes with its report, from an xdist worker to the process that writes the run."""
        made = yield
        if isinstance(item, _Case):
            records, failures = item.subject.take()
            made.quant_records = list(map(asdict, records))  # type: ignore[attr-defined]
            made.quant_failures = list(map(asdict, failures))  # type: ignore[attr-defined]
            made.quant_case = [item.subject.entry.name, item.name]  # type: ignore[attr-defined]
        return made

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = getattr(report, "quant_records", None)
        if found is not None:
            self.failed |= report.failed
            self.records.extend(map(Record.from_json, found))
            failed = report.quant_failures
            self.failures.extend(Failure(one["title"], one["reason"], tuple(one["log"])) for one in failed)
            model, case = report.quant_case
            cases = self.outcomes.setdefault(model, {})
            if report.failed or (report.when == "call" and cases.get(case) != "failed"):
                cases[case] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.is_worker or not (self.records or self.failures):
            return
        # Workers of xdist that had cases of one model have both told its records, and its failures.
        failures = {(one.title, one.reason): one for one in self.failures}.values()
        records = {(one.model, one.precision, one.isa, one.variant): one for one in self.records}.values()
        known = {entry.name: entry.row() for entry in self.manifest.models}
        exact = list(records)
        rows = [row for name, row in known.items() if any(record.model == name for record in exact)]
        missed = comparison.misses(exact, (), known)
        run = self.watch.run(rows, exact, missed=missed, passed=not self.failed, failures=tuple(failures))
        try:
            self.told.append(f"accuracy written to {history.append(self.history, run)}")
        except OutputError as error:
            self.told.append(f"accuracy not written: {error}")
            session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
        if self.save:
            entries = [entry for entry in self.manifest.models if entry.name in self.outcomes]
            why = unfit(run, [entry.name for entry in entries]) | self._unfit(entries)
            try:
                self.told.extend(hand_over(self.save, entries, run, why))
            except QuantError as error:
                self.told.append(f"not saved: {error}")
                session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED

    def _unfit(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Model -> why it isn't saved: a case that failed, or one of accuracy that wasn't run."""
        found = {}
        for entry in entries:
            outcomes = self.outcomes[entry.name]
            failed = [case for case, outcome in outcomes.items() if outcome == "failed"]
            left = [case for case, _, _ in _accuracy_cases(entry) if outcomes.get(case) != "passed"]
            if failed or left:
                found[entry.name] = f"failed: {', '.join(failed)}" if failed else f"not run: {', '.join(left)}"
        return found

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self.told:
            terminalreporter.write_line(f"quant: {line}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        machine_info.update(_machine_info())


_machine_info = machine_info


def _is_manifest(path: str | Path, known: Path) -> bool:
    return os.path.basename(path) == known.name and os.path.exists(path) and os.path.samefile(path, known)


def _why_untimed(config: pytest.Config) -> str:
    """Why no case of this session is timed; "" when they are."""
    if not config.pluginmanager.has_plugin("benchmark"):
        return "needs pytest-benchmark"
    if hasattr(config, "workerinput"):
        return "timed cases need the machine to themselves: run them without -n"
    if config.getoption("benchmark_disable") and not config.getoption("benchmark_enable"):
        return "--benchmark-disable"
    return ""


# --- what is measured, once


class _Subject:
    """A manifest's model. What is measured of it is kept, and so is the error when it can't be measured."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._kept: dict[object, Any] = {}
        self._told: set[object] = set()
        self._fresh: list[Record] = []
        self._failures: list[Failure] = []

    def _once(self, key: object, work: Callable[[], T]) -> T:
        if key not in self._kept:
            try:
                self._kept[key] = work()
            except QuantError as error:
                self._kept[key] = error
        found = self._kept[key]
        if isinstance(found, QuantError):
            failure = Failure(self.entry.title, str(found), log_of(found))
            if key in self._told:
                pytest.skip(str(failure))  # it has failed once
            self._told.add(key)
            self._failures.append(failure)
            pytest.fail("\n".join([str(failure), *(f"    {line}" for line in failure.log)]), pytrace=False)
        return found  # type: ignore[no-any-return]

    def data(self) -> dict[str, Any]:
        return self._once("data", partial(manifest_suite.check, self.entry))

    def models(self) -> Models:
        self.data()
        return self._once("models", partial(manifest_suite.models_of, self.entry))

    def comparisons(self) -> dict[str, Comparison]:
        """Metric with a limit -> INT8 against FP32 and simulation."""
        records = self._once("accuracy", self._accuracy)
        found = comparisons(records, {self.entry.name: self.entry.row()})
        return {comparison.metric: comparison for comparison in found}

    def _accuracy(self) -> list[Record]:
        with locked(f"manifest-{digest([self.entry.name])}"):  # the next xdist worker finds the outcomes on disk
            records = manifest_suite.accuracy(self.entry, self.models())
        self._fresh = records
        return records

    def take(self) -> tuple[list[Record], list[Failure]]:
        """The accuracy records and the failures that nobody has taken yet."""
        taken = self._fresh, self._failures
        self._fresh, self._failures = [], []
        return taken

    def pair(self, batch: int, threads: int) -> Pair:
        """FP32 and INT8 timed against each other."""
        row, models, samples = self.entry.row(), self.models(), self.data()["samples"]
        measure = partial(manifest_suite.speed, self.entry, models, batch, threads, samples=samples)
        records = self._once(("pair", batch, threads), lambda: settled(row, measure))
        [found] = pairs(records, {row.name: row})
        return found

    def timed(self, precision: str, batch: int, threads: int) -> Record:
        if precision == "bf16":
            models, samples = self.models(), self.data()["samples"]
            work = partial(manifest_suite.speed_bf16, self.entry, models, batch, threads, samples=samples)
            return self._once((precision, batch, threads), work)
        pair = self.pair(batch, threads)
        return pair.int8 if precision == "int8" else pair.fp32


# --- cases


def _data(subject: _Subject) -> None:
    print(subject.data()["summary"])


def _floor(subject: _Subject) -> None:
    _judge(subject, subject.entry.metrics[0], "floor")


def _drop(subject: _Subject, metric: str) -> None:
    found = subject.comparisons()[metric]
    if "drop" in found.faults():
        drop, limit = found.drop, found.row.max_drop[metric]
        pytest.fail(
            f"{subject.entry.title}: {metric} drops by {100 * drop.drop:.2f} points [{100 * drop.low:.2f}, "
            f"{100 * drop.high:.2f}], limit {100 * limit:.2f}: FP32 {found.fp32.score(metric):.2%}, INT8 "
            f"{found.int8.score(metric):.2%} of {drop.samples:,} samples; {drop.lost:,} lost, {drop.won:,} won",
            pytrace=False,
        )


def _simulation(subject: _Subject, metric: str) -> None:
    _judge(subject, metric, "engine")


def _kernels(subject: _Subject) -> None:
    _judge(subject, subject.entry.metrics[0], "share")


def _judge(subject: _Subject, metric: str, kind: str) -> None:
    """Fail with one line when a threshold was missed; see Comparison.faults."""
    fault = subject.comparisons()[metric].faults().get(kind)
    if fault:
        pytest.fail(f"{subject.entry.title}, {metric}: {fault}", pytrace=False)


def _accuracy_cases(entry: Entry) -> Iterator[tuple[str, Callable[..., None], dict[str, str]]]:
    """The cases of a model that aren't timed: name, function, its arguments."""
    first = entry.metrics[0]
    yield "data", _data, {}
    if entry.floor:
        yield "floor", _floor, {}
    for metric in entry.max_drop:
        yield f"drop[{metric}]", _drop, {"metric": metric}
    if "quant" in entry.precisions:
        yield f"simulation[{first}]", _simulation, {"metric": first}
    yield "kernels", _kernels, {}


class _Clock:
    """In place of pytest-benchmark's timer: shows what a child measured, round by round, without the way there."""

    __name__ = "clock of the child process"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def show(self, benchmark: Any, seconds: Sequence[float]) -> None:
        left = iter(seconds)

        def round_of_the_child() -> None:
            self.now += next(left, 0.0)

        benchmark.pedantic(round_of_the_child, rounds=len(seconds))


def _latency(subject: _Subject, precision: str, batch: int, threads: int, clock: _Clock, benchmark: Any) -> None:
    record = subject.timed(precision, batch, threads)
    clock.show(benchmark, record.latency_s)
    told = {"model": record.model, "precision": precision, "threads": threads, "batch": batch}
    benchmark.extra_info.update(told, isa=record.isa, variant=record.variant)


def _ratio(subject: _Subject, batch: int, threads: int, clock: _Clock, command: str, benchmark: Any) -> None:
    """What pytest-benchmark shows is INT8's time."""
    pair = subject.pair(batch, threads)
    clock.show(benchmark, pair.int8.latency_s)
    benchmark.extra_info.update(extra_info(pair.row, (pair.fp32, pair.int8), command))
    fp32, int8 = (1e3 * float(np.median(record.latency_s)) for record in (pair.fp32, pair.int8))
    told = (
        f"{pair.title}: FP32 / INT8 is {pair.ratio:.2f} [{pair.low:.2f}, {pair.high:.2f}], due {pair.due:.2f} on "
        f"{pair.int8.isa}, batch {batch}, {threads} thread(s): {fp32:.3f} and {int8:.3f} ms a batch"
    )
    if pair.result == "FAILED":
        pytest.fail(told, pytrace=False)
    if pair.result == "MISSED":
        pytest.xfail(told)


class _Case(pytest.Function):
    """A case: a function that takes fixtures, as users' own do; it is shown at its model's line of the manifest."""

    subject: _Subject

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.subject.entry.line - 1, f"{self.subject.entry.name} {self.name}"


class _Model(pytest.Collector):
    subject: _Subject
    plugin: Plugin

    def collect(self) -> Iterator[pytest.Item]:
        entry = self.subject.entry
        for name, judge, given in _accuracy_cases(entry):
            yield self._case(name, judge, **given)
        for threads in entry.threads:
            for batch in entry.batch_sizes:
                yield from self._timed_cases(batch, threads)

    def _timed_cases(self, batch: int, threads: int) -> Iterator[pytest.Item]:
        why = self.plugin.why_untimed or manifest_suite.too_many_threads(threads)
        where = f"b{batch}-{threads}t"
        for precision in ("fp32", "int8", "bf16"):
            if precision != "bf16" or precision in self.subject.entry.precisions:
                lacks = "this CPU lacks avx512_bf16" if precision == "bf16" and not manifest_suite.has_bf16() else ""
                given = {"precision": precision, "batch": batch, "threads": threads}
                yield self._timed(f"latency[{precision}-{where}]", _latency, why or lacks, given)
        given = {"batch": batch, "threads": threads, "command": self.plugin.command}
        yield self._timed(f"ratio[{where}]", _ratio, why, given)

    def _timed(self, name: str, judge: Callable[..., None], why: str, given: Mapping[str, Any]) -> pytest.Item:
        clock = _Clock()
        case = self._case(name, judge, clock=clock, **given)
        case.add_marker(pytest.mark.skip(reason=why) if why else pytest.mark.benchmark(timer=clock, group=self.name))
        return case

    def _case(self, name: str, judge: Callable[..., None], **given: Any) -> pytest.Item:
        case: _Case = _Case.from_parent(self, name=name, callobj=partial(judge, self.subject, **given))
        case.subject = self.subject
        return case


class _File(pytest.File):
    def collect(self) -> Iterator[pytest.Collector]:
        plugin = self.config.pluginmanager.get_plugin("quant-manifest")
        assert isinstance(plugin, Plugin)
        for entry in plugin.manifest.models:
            model: _Model = _Model.from_parent(self, name=entry.name)
            model.subject, model.plugin = _Subject(entry), plugin
            yield model
