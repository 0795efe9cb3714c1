"""What this machine is, which rows there are, and all of them at once."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from quant import cpu, history, manifest_suite, pipeline, registry, report, zoo_report, zoo_suite
from quant.cli.reporting import page
from quant.cli.shared import (
    HistoryDir,
    Json,
    ManifestPath,
    app,
    bar,
    entries_of,
    err,
    out,
    print_json,
    specs_of,
    warn_below_avx512,
)
from quant.errors import OptionError
from quant.isolate import Progress
from quant.manifest import Entry
from quant.places import writable_dir, write_text
from quant.record import Machine, Record
from quant.registry import ModelSpec
from quant.rows import Row
from quant.surroundings import Watch

__all__ = ["cpu_command", "models_command", "suite"]


@app.command("cpu")
def cpu_command(as_json: Json = False) -> None:
    """What this CPU is, what it can stand for, and what to expect of INT8."""
    machine, tier = Machine.here(), cpu.detect()
    if as_json:
        reach = [other.name for other in cpu.reachable()]
        print_json({**asdict(machine), "expects": tier.expects, "reachable": reach})
        return
    out.print(f"tier      {tier.name}: {tier.expects}")
    out.print(f"flags     {' '.join(machine.flags)}")
    out.print(f"cores     {machine.cores}")
    out.print(f"reachable {', '.join(other.cap.lower() for other in cpu.reachable())} (--isa)")


@app.command("models")
def models_command() -> None:
    """The models that the suite knows."""
    for spec in registry.MODELS:
        limits = ", ".join(f"{100 * limit:.1f} points of {metric}" for metric, limit in spec.max_drop.items())
        out.print(f"{spec.name:14} {spec.title:14} drop at most {limits}")


@dataclass(frozen=True)
class _Outcome:
    """What a suite found, and what it is judged to be."""

    rows: Sequence[Row]
    records: Sequence[Record]
    tables: Sequence[report.Table]
    missed: Sequence[str]
    passed: bool
    skipped: Sequence[str] = ()


_Tell = Callable[[Record], None]


def _embedded(specs: Sequence[ModelSpec], full: bool, tell: _Tell, progress: Progress) -> _Outcome:
    exact, timed = pipeline.suite(specs, samples=50_000 if full else None, tell=tell, progress=progress)
    return _judged(specs, exact, timed, report.speed_table(timed, registry.BY_NAME))


def _judged(rows: Sequence[Row], exact: Sequence[Record], timed: Sequence[Record], speed: report.Table) -> _Outcome:
    known = {row.name: row for row in rows}
    return _Outcome(
        rows,
        [*exact, *timed],
        [report.accuracy_table(exact, known), speed],
        report.misses(exact, timed, known),
        report.passed(exact, timed, known),
    )


def _published(directory: Path, specs: Sequence[ModelSpec], full: bool, tell: _Tell, progress: Progress) -> _Outcome:
    found, lacks = zoo_suite.sort_out([spec.name for spec in specs], directory, progress)
    exact, timed = zoo_suite.suite(found, full=full, tell=tell, progress=progress)
    tables = zoo_report.tables(exact, timed, lacks, cpu.cores())
    rows = [zoo_report.recorded(spec) for spec in specs]
    return _Outcome(rows, [*exact, *timed], tables, zoo_report.misses(exact, timed), zoo_report.passed(exact, timed))


def _own(entries: Sequence[Entry], tell: _Tell, progress: Progress) -> _Outcome:
    found = manifest_suite.suite(entries, tell=tell, progress=progress)
    rows = [entry.row() for entry in entries]
    fed = "On the first batches of each model's own data."
    speed = report.speed_table(found.timed, {row.name: row for row in rows}, fed)
    judged = _judged(rows, found.exact, found.timed, speed)
    missed = [*judged.missed, *found.failed]
    return replace(judged, missed=missed, passed=judged.passed and not found.failed, skipped=found.skipped)


@app.command()
def suite(
    model: Annotated[list[str] | None, typer.Option("--model", help="Only these rows (repeatable).")] = None,
    zoo_dir: Annotated[
        Path | None, typer.Option("--zoo", help="Instead of the embedded models, those that `quant fetch` put there.")
    ] = None,
    manifest_path: ManifestPath = None,
    full: Annotated[bool, typer.Option("--full", help="Accuracy on all the data there is: 50,000 images.")] = False,
    output_dir: Annotated[Path, typer.Option(help="Where report.md, report.json and report.html go.")] = Path("out"),
    history_dir: HistoryDir = history.DEFAULT,
) -> None:
    """Accuracy and speed of the embedded models, of published ones, or of one's own, and a report of them."""
    if zoo_dir is not None and manifest_path is not None:
        raise OptionError("give --zoo or --manifest, not both")
    names, command = list(dict.fromkeys(model or [])), "quant suite"
    measure: Callable[[_Tell, Progress], _Outcome]
    if manifest_path is not None:
        command += f" --manifest {shlex.quote(str(manifest_path))}"
        measure = partial(_own, entries_of(manifest_path, names))
    elif zoo_dir is not None:
        command += f" --zoo {shlex.quote(str(zoo_dir))}"
        measure = partial(_published, zoo_dir, specs_of(names), full)
    else:
        measure = partial(_embedded, specs_of(names), full)
    writable_dir(output_dir)
    writable_dir(history_dir)
    watch = Watch("suite", command)
    warn_below_avx512(None)

    def tell(record: Record) -> None:
        if not sys.stderr.isatty():
            what = "accuracy" if record.outcomes else "speed"
            err.print(f"{what}: {record.model} {record.precision} {record.isa} {record.threads} threads: measured")

    with bar() as progress:
        found = measure(tell, progress)
    for table in found.tables:
        out.print(report.rich_table(table))
    run = watch.run(found.rows, found.records, missed=found.missed, passed=found.passed)
    write_text(output_dir / "report.md", report.markdown(run.machine, found.tables, found.missed))
    write_text(output_dir / "report.json", run.to_json())
    history.append(history_dir, run)
    write_text(output_dir / "report.html", page(run, history_dir))
    for line in (*report.skipped_tiers(run.machine), *found.skipped, *(f"missed: {line}" for line in found.missed)):
        out.print(line, soft_wrap=True)
    if not found.passed:
        raise typer.Exit(1)
