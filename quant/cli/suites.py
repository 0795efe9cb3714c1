"""What this machine is, which rows there are, and all of them at once."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from quant import cpu
from quant.cli.reporting import page
from quant.cli.shared import (
    Fresh,
    HistoryDir,
    Json,
    ManifestPath,
    SaveDir,
    app,
    bar,
    check_save,
    entries_of,
    err,
    given_by,
    given_by_rows,
    out,
    print_json,
    specs_of,
    warn_below_avx512,
)
from quant.errors import ModelError, OptionError, OutputError
from quant.evaluation.parts import Store, default_root
from quant.process import isolate
from quant.process.isolate import Progress
from quant.quantization import targets
from quant.reports import composition, published
from quant.reports import tables as report
from quant.reports.terminal import WIDTH
from quant.results import comparison, history
from quant.results.environment import Watch
from quant.results.record import Machine, Record
from quant.results.speed_ratio import pairs
from quant.results.target import Row
from quant.storage.files import writable_dir, write_text
from quant.suites import embedded_suite as subjects_of
from quant.suites import entries as manifest_suite
from quant.suites import registry, saving
from quant.suites.manifest import schema
from quant.suites.manifest.draft import drafts_of, manifest_text
from quant.suites.manifest.schema import Entry
from quant.suites.measure import Measured, Subject, journal_of, measure
from quant.suites.published import located
from quant.suites.registry import ModelSpec

__all__ = ["cpu_command", "init", "models_command", "suite"]


@app.command("cpu")
def cpu_command(as_json: Json = False) -> None:
    """Show what this CPU is, what it can stand for, and what to expect of INT8."""
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
    """List the models that the suite knows."""
    for spec in registry.MODELS:
        limits = ", ".join(f"{100 * limit:.1f} points of {metric}" for metric, limit in spec.max_drop.items())
        out.print(f"{spec.name:14} {spec.title:14} drop at most {limits}")


Judged = tuple[Sequence[report.Table], Sequence[str], bool]


@dataclass(frozen=True)
class _Plan:
    """What is measured, and how it is judged: tables, what was missed, whether it passed.

    `rows`: as they are recorded. `inputs`: what else decides the results, beside the code and the machine.
    """

    subjects: Sequence[Subject]
    rows: Sequence[Row]
    judge: Callable[[Measured], Judged]
    at_once: bool = False
    skipped: Sequence[str] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)


def _judged(rows: Sequence[Row], found: Measured, fed: str = "") -> Judged:
    known = {row.name: row for row in rows}
    exact, timed = found.exact, found.timed
    speed = report.speed_table(timed, known, fed) if fed else report.speed_table(timed, known)
    tables = [report.accuracy_table(exact, known), speed]
    return tables, comparison.misses(exact, timed, known), comparison.passed(exact, timed, known)


def _embedded(specs: Sequence[ModelSpec], full: bool) -> _Plan:
    subjects = [subjects_of.whole(spec, 50_000 if full else None) for spec in specs]
    inputs = {"--full": full, **given_by_rows(specs)}
    return _Plan(subjects, specs, partial(_judged, specs), at_once=True, inputs=inputs)


def _published(directory: Path, specs: Sequence[ModelSpec], full: bool, store: Store, progress: Progress) -> _Plan:
    found, lacks = located.sort_out([spec.name for spec in specs], directory, progress)

    def judge(measured: Measured) -> Judged:
        exact, timed = measured.exact, measured.timed
        tables = published.tables(exact, timed, lacks, cpu.cores())
        return tables, published.misses(exact, timed), published.passed(exact, timed)

    rows = [published.recorded(spec) for spec in specs]
    subjects = [located.subject_of(one, full=full, store=store) for one in found]
    given = {one.row.name: located.given_of(one).identity(store.notes, progress) for one in found}
    return _Plan(subjects, rows, judge, inputs={"--full": full, "models": given})


def _own(entries: Sequence[Entry], store: Store) -> _Plan:
    rows = [entry.row() for entry in entries]
    fed = "On the first batches of each model's own data."
    return _Plan(
        [manifest_suite.whole(entry, store) for entry in entries],
        rows,
        partial(_judged, rows, fed=fed),
        skipped=list(manifest_suite.skipped(entries)),
        inputs=given_by(entries),
    )


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
    save: SaveDir = None,
    fresh: Fresh = False,
) -> None:
    """Measure accuracy and speed of the embedded models, of published ones, or of one's own, and report them.

    A model that can't be measured fails, and the others go on.
    """
    if zoo_dir is not None and manifest_path is not None:
        raise OptionError("give --zoo or --manifest, not both")
    check_save(save, manifest_path)
    names, command = list(dict.fromkeys(model or [])), "quant suite"
    entries: list[Entry] = []
    store = Store(default_root(), fresh)
    if manifest_path is not None:
        entries = entries_of(manifest_path, names)
        command += f" --manifest {shlex.quote(str(manifest_path))}"
        plan = _own(entries, store)
    elif zoo_dir is not None:
        command += f" --zoo {shlex.quote(str(zoo_dir))}"
        with bar() as progress:
            plan = _published(zoo_dir, specs_of(names), full, store, progress)
    else:
        plan = _embedded(specs_of(names), full)
    writable_dir(output_dir)
    writable_dir(history_dir)
    if save is not None:
        saving.check_places(save, [row.name for row in plan.rows])
    watch = Watch("suite", command)
    warn_below_avx512(None)
    file = output_dir / ".suite.jsonl"
    with journal_of(file, command, plan.subjects, plan.inputs, fresh=fresh, tell=err.print) as journal:
        with bar() as progress:
            found = measure(plan.subjects, at_once=plan.at_once, journal=journal, tell=_tell, progress=progress)
        tables, missed, passed = plan.judge(found)
        passed = passed and not found.failed
        judged: dict[str, Any] = {"missed": missed, "passed": passed, "failures": found.failed}
        run = watch.run(plan.rows, [*found.exact, *found.timed], anatomy=found.anatomy, **judged)
        told = [*tables, *composition.tables(run.anatomy, run.rows)]
        write_text(output_dir / "report.md", report.markdown(run.machine, told, missed, found.failed))
        write_text(output_dir / "report.json", run.to_json())
        history.append(history_dir, run)
        write_text(output_dir / "report.html", page(run, history_dir))
    known = {row.name: row for row in plan.rows}
    steps = report.next_steps(command, comparison.comparisons(found.exact, known), pairs(found.timed, known))
    for table in tables:
        out.print(report.rich_table(table, min(WIDTH, out.width)), crop=False)
    for line in (
        *report.skipped_tiers(run.machine),
        *plan.skipped,
        *found.untold,
        *(f"note: {rec.model} {rec.precision}: {rec.note}" for rec in found.exact if rec.note),
        *(f"missed: {line}" for line in missed),
        *(f"next: {line}" for lines in steps.values() for line in lines),
        *report.failed_lines(found.failed),
    ):
        out.print(line, soft_wrap=True)
    if save is not None:
        for line in saving.hand_over(save, entries, run, saving.unfit(run, [entry.name for entry in entries])):
            out.print(line, soft_wrap=True)
    places = f"{output_dir / 'report.html'}, {output_dir / 'report.md'}"
    out.print(f"all columns, charts and history: {places}", soft_wrap=True)
    if not passed:
        raise typer.Exit(1)


def _tell(record: Record) -> None:
    if not sys.stderr.isatty():
        what = "accuracy" if record.outcomes else "speed"
        err.print(f"{what}: {record.model} {record.precision} {record.isa} {record.threads} threads: measured")


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="A model directory, or one that holds several.")],
    output: Annotated[Path, typer.Option(help="The manifest to write; one that exists is left alone.")] = Path(
        "quant.toml"
    ),
    data: Annotated[Path | None, typer.Option(help="Test data with labels, if you have it.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Calibration data, if you have it.")] = None,
) -> None:
    """Look at models, and write a commented manifest for them: inputs, ops, what will be INT8, and keys to fill in."""
    if os.path.lexists(output):
        raise OutputError(f"{output}: exists already; nothing was written")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: can't be written (No such directory)")
    writable_dir(output.parent)
    for option, path in (("--data", data), ("--calibration", calibration)):
        if path is not None and not path.exists():
            raise OptionError(f"{option}: {path}: no such file")
    arguments = {"directory": str(directory), "weight_levels": targets.weight_levels(None)}
    with bar() as tell:
        found = isolate.call("quant.suites.manifest.inspection:survey", arguments, progress=tell)
    unusable = [model["error"] for model in found if "error" in model]
    if len(unusable) == len(found):
        raise ModelError(unusable[0])
    drafts = drafts_of(found, directory)
    write_text(output, manifest_text(drafts, found, output, data, calibration))
    for line in unusable:
        err.print(f"warning: {line}")
    names = ", ".join(draft.name for draft in drafts)
    out.print(f"{output}: {len(drafts)} {'model' if len(drafts) == 1 else 'models'}: {names}", soft_wrap=True)
    try:
        schema.read(output)
    except OptionError as error:
        out.print(f"to be filled in: {error}", soft_wrap=True)
    else:
        out.print(f"next: quant suite --manifest {output}", soft_wrap=True)
