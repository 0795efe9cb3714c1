"""What became of one model's figures over earlier runs of such a machine -> charts and a table. No markup."""

from collections.abc import Sequence

from quant.reports.page.charts import Trend
from quant.reports.sheet import Cell, Chart, Line, Sheet, counted, figure, heads
from quant.results import run_scores
from quant.results.comparison import Comparison
from quant.results.record import Run
from quant.results.speed_ratio import Pair

__all__ = ["case_words", "commit_of", "comparable", "history_of"]


def case_words(pair: Pair) -> str:
    """Which of a row's cases the pair is."""
    case = pair.case
    times, order = f"{case.repeat} times" if case.repeat > 1 else "", "by length" if case.by_length else ""
    return ", ".join(filter(None, (f"batch {case.batch}", times, order)))


def commit_of(run: Run) -> str:
    return run.commit[:10] + (" with changes that aren't committed" if run.dirty else "")


def comparable(run: Run, history: Sequence[Run]) -> tuple[list[Run], str]:
    """Earlier runs of such a machine and this one, oldest first; and which they are, in words."""
    others = {(r.started, r.commit, r.kind): r for r in history if r.started < run.started}
    machine = (run.machine.cpu, run.machine.tier, run.machine.cores)
    alike = [r for r in others.values() if (r.machine.cpu, r.machine.tier, r.machine.cores) == machine]
    out = len(others) - len(alike)
    left = f" {counted(out, 'run')} on other CPUs left out." if out else ""
    if not alike:
        return [run], f"No earlier run on this CPU is known.{left}"
    told = f"{counted(len(alike), 'earlier run')} on this CPU, from {min(r.started for r in alike)[:10]} on.{left}"
    return [*sorted(alike, key=lambda r: r.started), run], told


def history_of(
    run: Run, name: str, past: Sequence[Run], exact: Sequence[Comparison], timed: Sequence[Pair]
) -> tuple[list[Chart], Sheet | None]:
    """Drops and ratios of a model over runs on one CPU, on its own tier; nothing without earlier figures."""
    tier, title = run.machine.tier, run.rows[name].title
    drops = [
        Trend(c.metric, [run_scores.drop(r, name, tier, c.metric, c.int8) for r in past])
        for c in exact
        if c.int8.isa == tier
    ]
    timings = [run_scores.ratios(r, name, tier) for r in past]
    ratios = [
        Trend(
            f"{case_words(pair)}, {counted(pair.int8.threads, 'thread')}",
            [timing.get(run_scores.case_of(pair.int8)) for timing in timings],
        )
        for pair in timed
        if pair.row.name == name and pair.int8.isa == tier
    ]
    moments = tuple(f"{r.started[5:10]}\n{r.commit[:7]}{'*' * r.dirty}" for r in past)
    known = [[t for t in some if any(v is not None for v in t.values[:-1])] for some in (drops, ratios)]
    charts = [
        Chart(what, _course(f"{what} of {title}", some, digits), axis, trends=tuple(some), moments=moments)
        for some, what, digits, axis in (
            (known[0], "Drop", "+.2f", "points of drop"),
            (known[1], "Speed", ".2f", "FP32 / INT8"),
        )
        if some
    ]
    if not charts:
        return [], None
    columns = heads(("Run", "Commit"), [*(f"Drop, {t.label}" for t in known[0]), *(t.label for t in known[1])])
    lines = tuple(
        Line((
            Cell(r.started[:16].replace("T", " ")), Cell(commit_of(r) or "-"),
            *(figure(t.values[place], 2, "+") for t in known[0]), *(figure(t.values[place], 2) for t in known[1]),
        ))
        for place, r in enumerate(past)
    )  # fmt: skip
    return charts, Sheet(f"{title} over runs: drops in points, FP32 / INT8", columns, lines)


def _course(what: str, trends: Sequence[Trend], digits: str) -> str:
    ends = []
    for trend in trends:
        known = [value for value in trend.values if value is not None]
        ends.append(f"{trend.label} {known[0]:{digits}} at first, {known[-1]:{digits}} now")
    return f"{what} over runs: {'; '.join(ends)}."
