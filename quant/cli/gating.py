"""The gate of a CI: what changed since a baseline, and whether that is a regression."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from quant import cpu
from quant.cli.shared import (
    Fresh,
    HistoryDir,
    Json,
    ManifestPath,
    SaveDir,
    app,
    bar,
    check_save,
    counts_of,
    entries_of,
    err,
    given_by,
    given_by_rows,
    out,
    print_json,
    specs_of,
)
from quant.errors import OptionError, OutputError, check_choice, unwritable
from quant.evaluation.parts import Store, default_root
from quant.reports import gate as gate_report
from quant.reports import history as history_report
from quant.reports import tables
from quant.results import comparison, gate, history
from quant.results.environment import Watch
from quant.results.gate import Key
from quant.results.record import Record, Run
from quant.storage.checkpoint import Journal
from quant.storage.files import writable_dir, write_text
from quant.suites import embedded_suite as subjects_of
from quant.suites import entries as manifest_suite
from quant.suites import saving
from quant.suites.manifest.schema import Entry
from quant.suites.measure import Subject, Timing, journal_of, measure

__all__ = ["gate_command", "history_command"]


@app.command("gate")
def gate_command(
    baseline: Annotated[
        str | None,
        typer.Option(help="A commit, branch or tag, whose nearest run counts, or a run's file. Default: any run."),
    ] = None,
    manifest_path: ManifestPath = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only these models (repeatable).")] = None,
    stored: Annotated[
        Path | None,
        typer.Option("--run", help="Compare this run's file, and measure nothing; so nothing is confirmed."),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(help="Comma-separated thread counts of the timed cases; default: 1, or the manifest's."),
    ] = None,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="What regressed is meant to be so: the run becomes a baseline, exit code 0."),
    ] = False,
    summary: Annotated[
        Path | None, typer.Option(help="Append a Markdown summary to this file ($GITHUB_STEP_SUMMARY).")
    ] = None,
    history_dir: HistoryDir = history.DEFAULT,
    save: SaveDir = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Measure the models, and compare with a baseline: accuracy sample by sample, speed as a ratio to FP32.

    Exit code 1 when something regressed, or an accuracy limit is missed. A loss of speed is measured once more before
    it counts. Without a comparable baseline the run is recorded, for the next one to be compared with.
    """
    if stored is not None and (model or accept or manifest_path or threads or fresh or save):
        raise OptionError(
            "--run: compares what was measured; no --model, --manifest, --threads, --accept, --save or --fresh"
        )
    check_save(save, manifest_path)
    names = list(dict.fromkeys(model or []))
    entries = entries_of(manifest_path, names) if manifest_path else []
    if summary is not None and not summary.parent.is_dir():
        raise OutputError(f"{summary}: can't be written: no such directory")
    with ExitStack() as stack:
        if stored is not None:
            run = history.load(stored)
            found = history.baseline(history_dir, baseline, run, err.print)
            changes = gate.compare(found.run if found else None, run)
        else:
            store = Store(default_root(), fresh)
            subjects, command, inputs = _wanted(manifest_path, entries, names, threads, store)
            writable_dir(history_dir)
            if save is not None:
                saving.check_places(save, [entry.name for entry in entries])
            watch = Watch("gate", command)
            place = history_dir / ".gate.jsonl"
            journal = journal_of(place, command, subjects, inputs, fresh=fresh, tell=err.print)
            stack.enter_context(journal)
            run, found, changes = _measured(
                subjects, watch, history_dir, baseline, journal, at_once=manifest_path is None
            )
        missed = comparison.misses(run.exact, run.timed, run.rows)
        regressed = any(change.result == "REGRESSED" for change in changes)
        passed = comparison.passed(run.exact, run.timed, run.rows) and not run.failures and (accept or not regressed)
        lines = [*gate_report.verdict(changes, missed, found), *gate_report.next_steps(run, changes)]
        if stored is None:
            file = history.append(history_dir, replace(run, missed=tuple(missed), passed=passed))
            err.print(f"recorded in {file}")
    if summary is not None:
        _append(summary, gate_report.summary(passed, lines, changes, run.failures))
    if as_json:
        print_json(gate_report.as_json(passed, found, missed, changes, run.failures))
    else:
        out.print(tables.rich_table(gate_report.table(changes)))
        for line in (*lines, *tables.failed_lines(run.failures)):
            out.print(line, soft_wrap=True)
        out.print(gate_report.outcome(passed, changes))
    if save is not None:
        worse = {change.key.model for change in changes if change.result == "REGRESSED" and not accept}
        for line in saving.hand_over(save, entries, run, saving.unfit(run, [one.name for one in entries], worse)):
            (err if as_json else out).print(line, soft_wrap=True)
    if not passed:
        raise typer.Exit(1)


@app.command("history")
def history_command(
    model: Annotated[str | None, typer.Argument(help="One model's course; default: the list of runs.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the model's course into this SVG file.")] = None,
    history_dir: HistoryDir = history.DEFAULT,
    as_json: Json = False,
) -> None:
    """Show the runs that suites and gates recorded, or what became of one model from run to run."""
    found = list(history.runs(history_dir, err.print))
    if model is not None:
        check_choice(f"model in {history_dir}", model, {name for _, run in found for name in run.models()})
    shown = history_report.overview(found) if model is None else history_report.course(model, found)
    if plot is not None and model is not None:
        write_text(plot, history_report.plot(model, found))
    if as_json:
        print_json([dict(zip(shown.columns, row, strict=True)) for row in shown.rows])
    else:
        out.print(tables.rich_table(shown))


def _wanted(
    path: Path | None, entries: Sequence[Entry], names: Sequence[str], threads: str | None, store: Store
) -> tuple[list[Subject], str, Mapping[str, Any]]:
    """What is to be measured, what measures it again, and what else decides the results."""
    counts = counts_of("--threads", threads) if threads else None
    if path is None:
        specs = specs_of(names)
        for count in counts or []:
            if count > cpu.cores():
                err.print(f"not timed: {count} threads, but only {cpu.cores()} cores")
        return [subjects_of.gated(spec, counts or [1], store) for spec in specs], "quant gate", given_by_rows(specs)
    own = [replace(entry, threads=tuple(counts)) if counts else entry for entry in entries]
    for line in manifest_suite.skipped(own):
        err.print(line)
    command = f"quant gate --manifest {shlex.quote(str(path))}"
    return [manifest_suite.gated(entry, store) for entry in own], command, given_by(own)


def _measured(
    subjects: Sequence[Subject],
    watch: Watch,
    history_dir: Path,
    reference: str | None,
    journal: Journal,
    *,
    at_once: bool,
) -> tuple[Run, history.Baseline | None, list[gate.Change]]:
    """A new run, its baseline, and what changed; losses of speed are measured once more."""
    rows = [subject.row for subject in subjects]
    found = history.baseline(history_dir, reference, watch.run(rows, []), err.print)
    with bar() as progress:
        measuring = partial(measure, subjects, at_once=at_once, journal=journal, tell=_tell, progress=progress)
        measured = measuring()
        run = watch.run(rows, [*measured.exact, *measured.timed], failures=measured.failed)
        changes = gate.compare(found.run if found else None, run)
        suspects = gate.suspects(changes)
        if found and suspects:
            err.print(f"measured once more: {', '.join(f'{key.model}, {key}' for key in suspects)}")
            again = Watch("gate", watch.command)
            second = measuring(only=partial(_is_one, suspects))
            changes = gate.confirmed(changes, found.run, again.run(rows, second.timed))
            run = replace(run, failures=(*run.failures, *second.failed))
    return run, found, changes


def _is_one(keys: Sequence[Key], model: str, timing: Timing) -> bool:
    case = timing.case
    wanted = (model, timing.isa, timing.threads, case.batch, case.repeat, case.by_length)
    return wanted in [(key.model, key.isa, key.threads, key.batch, key.repeat, key.by_length) for key in keys]


def _tell(record: Record) -> None:
    if not sys.stderr.isatty():
        what = "accuracy" if record.outcomes else f"speed, {record.threads} thread(s), batch {record.batch}"
        err.print(f"{what}: {record.model}: measured")


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise unwritable(path, error) from error
