"""What a gate found -> a table, a verdict, a Markdown summary, JSON. Never runs a model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from quant.reports.tables import Table, failed, plain, section
from quant.reports.tables import next_steps as next_steps_of
from quant.results.comparison import comparisons
from quant.results.gate import Change
from quant.results.history import Baseline
from quant.results.record import Failure, Run
from quant.results.speed_ratio import pairs

__all__ = ["as_json", "next_steps", "outcome", "summary", "table", "verdict"]

_ORDER = ("REGRESSED", "INVALID", "better", "recorded", "same")


def _score(change: Change, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if change.key.what == "speed" else f"{100 * value:.2f}%"


def _loss(change: Change) -> str:
    if change.before is None or change.result == "recorded":
        return "-"
    unit = "%" if change.key.what == "speed" else " points"
    return f"{100 * change.loss:+.2f}{unit} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"


def table(changes: Sequence[Change]) -> Table:
    """All cases, what regressed first."""
    rows = [
        (
            change.key.model,
            str(change.key),
            _score(change, change.before),
            _score(change, change.after),
            _loss(change),
            "-" if change.result == "recorded" else f"{change.p_value:.4f}",
            "-" if change.result == "recorded" else f"{100 * change.least:.1f}",
            change.note,
            change.result,
        )
        for change in sorted(changes, key=lambda change: _ORDER.index(change.result))
    ]
    columns = ("Model", "Case", "Before", "Now", "Loss [95%]", "p", "Least seen", "Note", "Result")
    return Table(
        "Changes against the baseline",
        columns,
        tuple(rows),
        "Speed: FP32 / INT8 of the same run, processes new in each round; its loss in percent of the ratio. Accuracy: "
        "INT8's outcomes on the same samples. p: one-sided, judged after correction for the number of cases. Least "
        "seen: a smaller loss isn't told from noise, or doesn't matter. INVALID: so noisy a machine can't tell.",
    )


def outcome(passed: bool, changes: Sequence[Change]) -> str:
    """FAILED, passed, or what is neither: nothing to compare with, or cases that such a machine can't tell."""
    results = {change.result for change in changes}
    if not passed:
        return "FAILED"
    if "INVALID" in results:
        return "INVALID where said so; passed elsewhere"
    return "recorded" if results <= {"recorded"} else "passed"


def verdict(changes: Sequence[Change], missed: Sequence[str], baseline: Baseline | None) -> list[str]:
    """Sentences: what regressed, by how much; what couldn't be told; what it was compared with."""
    against = "recorded: there is no comparable run to compare with"
    if baseline is not None:
        unlike = f" ({'; '.join(baseline.unlike)})" if baseline.unlike else ""
        against = (
            f"compared with {baseline.path}, {baseline.run.started}, commit {baseline.run.commit[:10] or '-'}{unlike}"
        )
    lines = [against, *(f"limit: {line}" for line in missed)]
    for result in ("REGRESSED", "INVALID"):
        for change in changes:
            if change.result == result:
                note = f" ({change.note})" if change.note else ""
                values = f"{_score(change, change.before)} to {_score(change, change.after)}"
                lines.append(f"{result}: {change.key.model}, {change.key}: {values}, {_loss(change)}{note}")
    recorded = sum(change.result == "recorded" for change in changes)
    if baseline is not None and recorded:
        lines.append(f"recorded: {recorded} case(s) that the baseline doesn't have")
    return lines


def next_steps(run: Run, changes: Sequence[Change]) -> list[str]:
    """What to run next where something regressed or missed a limit, a line each; see tables.next_steps."""
    lost = [change.key for change in changes if change.result == "REGRESSED"]
    inexact = [key.model for key in lost if key.what.startswith("accuracy")]
    slower = [key.model for key in lost if not key.what.startswith("accuracy")]
    exact, timed = comparisons(run.exact, run.rows), pairs(run.timed, run.rows)
    steps = next_steps_of(run.command, exact, timed, inexact, slower)
    return [f"next: {line}" for lines in steps.values() for line in lines]


def summary(passed: bool, lines: Sequence[str], changes: Sequence[Change], failures: Sequence[Failure] = ()) -> str:
    """Markdown for a pull request or a step summary."""
    found = "\n".join(f"- {plain(line)}" for line in lines)
    parts = [f"# INT8 gate: {outcome(passed, changes)}", found, *failed(failures), section(table(changes))]
    return "\n\n".join(parts) + "\n"


def as_json(
    passed: bool,
    baseline: Baseline | None,
    missed: Sequence[str],
    changes: Sequence[Change],
    failures: Sequence[Failure] = (),
) -> dict[str, Any]:
    return {
        "passed": passed,
        "outcome": outcome(passed, changes),
        "baseline": None if baseline is None else str(baseline.path),
        "unlike": [] if baseline is None else list(baseline.unlike),
        "missed": list(missed),
        "failures": [asdict(failure) for failure in failures],
        "changes": [{**asdict(change), "key": change.key._asdict()} for change in changes],
    }
