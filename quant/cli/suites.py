"""What this machine is, which rows there are, and all of them at once."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from quant import cpu, history, pipeline, registry, report, zoo_report, zoo_suite
from quant.cli.shared import HistoryDir, Json, app, bar, err, out, print_json, warn_below_avx512
from quant.places import writable_dir, write_text
from quant.record import Machine, Record
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


@app.command()
def suite(
    model: Annotated[list[str] | None, typer.Option("--model", help="Only these rows (repeatable).")] = None,
    zoo_dir: Annotated[
        Path | None, typer.Option("--zoo", help="Instead of the embedded models, those that `quant fetch` put there.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Accuracy on all the data there is: 50,000 images.")] = False,
    output_dir: Annotated[Path, typer.Option(help="Where report.md and report.json go.")] = Path("out"),
    history_dir: HistoryDir = history.DEFAULT,
) -> None:
    """Accuracy and speed of every row on the embedded data, or of the published models; report.md and report.json."""
    specs = [registry.find(name) for name in model] if model else list(registry.MODELS)
    writable_dir(output_dir)
    writable_dir(history_dir)
    watch = Watch("suite", "quant suite" if zoo_dir is None else f"quant suite --zoo {shlex.quote(str(zoo_dir))}")
    warn_below_avx512(None)

    def tell(record: Record) -> None:
        if not sys.stderr.isatty():
            what = "accuracy" if record.outcomes else "speed"
            err.print(f"{what}: {record.model} {record.precision} {record.isa} {record.threads} threads: measured")

    with bar() as progress:
        if zoo_dir is None:
            exact, timed = pipeline.suite(specs, samples=50_000 if full else None, tell=tell, progress=progress)
            tables = [report.accuracy_table(exact, registry.BY_NAME), report.speed_table(timed, registry.BY_NAME)]
            missed = report.misses(exact, timed, registry.BY_NAME)
            passed = report.passed(exact, timed, registry.BY_NAME)
        else:
            found, lacks = zoo_suite.sort_out([spec.name for spec in specs], zoo_dir, progress)
            exact, timed = zoo_suite.suite(found, full=full, tell=tell, progress=progress)
            tables = zoo_report.tables(exact, timed, lacks, cpu.cores())
            missed, passed = zoo_report.misses(exact, timed), zoo_report.passed(exact, timed)
    for table in tables:
        out.print(report.rich_table(table))
    run = watch.run(specs, [*exact, *timed], missed=missed, passed=passed)
    write_text(output_dir / "report.md", report.markdown(run.machine, tables, missed))
    write_text(output_dir / "report.json", run.to_json())
    history.append(history_dir, run)
    for line in (*report.skipped_tiers(run.machine), *(f"missed: {line}" for line in missed)):
        out.print(line)
    if not passed:
        raise typer.Exit(1)
