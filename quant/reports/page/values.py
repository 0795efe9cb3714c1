"""What the HTML report shows: a run, and earlier ones -> sentences, tables and the entries of charts. No markup."""

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from quant.cpu import TIERS
from quant.reports.composition import cost_of
from quant.reports.page.charts import Bar
from quant.reports.page.history import case_words, commit_of, comparable, history_of
from quant.reports.sheet import (
    Cell,
    Chart,
    Column,
    Line,
    Sheet,
    Status,
    counted,
    figure,
    heads,
    interval,
    points,
    times,
)
from quant.reports.tables import compared_lines, next_steps, skipped_tiers
from quant.results.comparison import Comparison, comparisons
from quant.results.record import Anatomy, Failure, Run
from quant.results.speed_ratio import Pair, pairs

__all__ = ["Headline", "Page", "Part", "page_of"]

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Headline:
    """PASSED or FAILED, a sentence, and a line for each thing that was missed; `facts`: what, figure, more."""

    passed: bool
    sentence: str
    missed: tuple[str, ...]
    facts: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """All about one model. An absent sheet is None; `int8` is "" when what the model consists of wasn't measured."""

    title: str
    name: str
    status: Status
    summary: str
    command: str
    next_steps: tuple[str, ...]  # where it missed its limits: commands that say why, and that mend it
    accuracy: Sheet | None
    speed: Sheet | None
    int8: str
    kept: Sheet | None
    between: Sheet | None
    kernels: Sheet | None
    layers: Sheet | None
    charts: tuple[Chart, ...]
    past: Sheet | None


@dataclass(frozen=True)
class Page:
    about: str  # when, where, of what
    headline: Headline
    failures: tuple[Failure, ...]
    drops: tuple[Chart, ...]
    accuracy: Sheet | None
    ratios: tuple[Chart, ...]
    speed: Sheet | None
    parts: tuple[Part, ...]
    past: str  # which earlier runs the lines are of
    environment: tuple[tuple[str, str], ...]
    command: str


def page_of(run: Run, history: Sequence[Run] = ()) -> Page:
    """What to show of a run, beside earlier ones. Raises ValueError for records that don't belong together."""
    exact, timed = _compared(run), _timed(run)
    names = list(dict.fromkeys((*run.models(), *run.anatomy)))
    lost = [name for name in names if name not in run.rows]
    if lost:
        raise ValueError(f"no row for the model {lost[0]!r}")
    past, told = comparable(run, history)
    accuracy, speed = _accuracy(exact, names), _speed(timed, names)
    steps = next_steps(run.command, exact, timed)
    parts = [
        _part(run, name, number, accuracy, speed, exact, timed, past, steps.get(name, ()))
        for number, name in enumerate(names)
    ]
    when = run.started.replace("T", " ").partition("+")[0]
    about = [f"{run.kind}, {when} UTC" if when else run.kind, run.machine.cpu, f"tier {run.machine.tier}"]
    return Page(
        about=" · ".join(filter(None, (*about, f"commit {commit_of(run)}" if run.commit else ""))),
        headline=_headline(run, names, exact, timed),
        failures=run.failures,
        drops=tuple(_drops(isa, some) for isa, some in _grouped(exact, lambda c: c.int8.isa)),
        accuracy=accuracy if exact else None,
        ratios=tuple(
            _ratios(isa, threads, some)
            for isa, of_isa in _grouped(timed, lambda pair: pair.int8.isa)
            for threads, some in _grouped(of_isa, lambda pair: pair.int8.threads)
        ),
        speed=speed if timed else None,
        parts=tuple(parts),
        past=told,
        environment=tuple(_environment(run)),
        command=run.command,
    )


def _compared(run: Run) -> list[Comparison]:
    """What can be compared: INT8 with FP32, by the metrics that both were scored by."""
    by_model = _grouped(run.exact, lambda record: record.model)
    rows, records = {}, []
    for model, some in by_model:
        row = run.rows.get(model)
        if row is None or {"fp32", "int8"} - {record.precision for record in some}:
            continue
        known = {metric: limit for metric, limit in row.max_drop.items() if all(metric in r.outcomes for r in some)}
        if known:
            rows[model] = replace(row, max_drop=known)
            records += some
    return comparisons(records, rows)


def _timed(run: Run) -> list[Pair]:
    for before, after in zip(run.timed[::2], run.timed[1::2], strict=False):
        if before.model != after.model or len(before.latency_s) != len(after.latency_s):
            raise ValueError(f"timings of {before.model} and {after.model} that weren't taken against each other")
    if len(run.timed) % 2:
        raise ValueError(f"timings of {run.timed[-1].model} that nothing was timed against")
    lost = [record.model for record in run.timed if record.model not in run.rows]
    if lost:
        raise ValueError(f"no row for the model {lost[0]!r}")
    return pairs(run.timed, run.rows)


def _grouped(entries: Iterable[T], key: Callable[[T], K]) -> list[tuple[K, list[T]]]:
    """Entries by a key, in the order in which keys first appear."""
    found: dict[K, list[T]] = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return list(found.items())


# --- accuracy

_ACCURACY = (
    Column("Model"), Column("Result"), Column("Metric"), Column("ISA"), Column("Weights"),
    Column("Drop", True), Column("95% interval"), Column("Limit", True),
    Column("FP32 %", True), Column("Simulated %", True), Column("INT8 %", True),
    Column("Seeds FP32 %", True), Column("Seeds INT8 %", True), Column("Seeds drop", True),
    Column("p", True), Column("Sim. to INT8", True), Column("SQNR to FP32, dB", True), Column("SQNR to sim., dB", True),
    Column("MACs in INT8, %", True), Column("Kernels"), Column("Why"),
)  # fmt: skip


def _accuracy_result(c: Comparison) -> tuple[Status, str, str]:
    """Status, result in a word, and more about it."""
    missed = c.missed()
    if missed:
        return "failed", "missed", "; ".join(missed)
    if math.isinf(c.row.max_drop[c.metric]):
        return "", "not judged", "no limit"
    if c.verdict.result == "INCONCLUSIVE":
        needs = f"about {c.verdict.needed:,} samples would decide" if c.verdict.needed else "at the limit exactly"
        return "unsure", "undecided", f"the interval reaches beyond the limit; {needs}"
    return "ok", "passed", "-"


def _accuracy(found: Sequence[Comparison], names: Sequence[str]) -> Sheet:
    lines = []
    for c in found:
        seeds = c.row.published.get(c.metric)
        status, result, why = _accuracy_result(c)
        limit = c.row.max_drop[c.metric]
        cells = (
            Cell(c.row.title),
            Cell(result),
            Cell(c.metric),
            Cell(c.int8.isa),
            Cell(c.int8.variant or "8bit"),
            points(c.drop.drop),
            Cell(interval(100 * c.drop.low, 100 * c.drop.high, "+")),
            points(None if math.isinf(limit) else limit, ""),
            *(points(None if r is None else r.score(c.metric), "") for r in (c.fp32, c.quant, c.int8)),
            *(figure(value, 2) for value in (seeds or (None, None))),
            figure(None if seeds is None else seeds[0] - seeds[1], 2, "+"),
            figure(c.drop.p_value, 2),
            points(None if c.engine is None else c.engine.drop),
            figure(c.int8.sqnr_db.get("fp32"), 1),
            figure(c.int8.sqnr_db.get("quant"), 1),
            figure(None if c.int8.int8_share is None else 100 * c.int8.int8_share, 1),
            Cell(", ".join(c.int8.kernel_isas) or "-"),
            Cell(why),
        )
        lines.append(Line(cells, status, names.index(c.row.name)))
    return Sheet("Accuracy: percent; drops in points, positive is worse", _ACCURACY, tuple(lines))


def _drops(isa: str, found: Sequence[Comparison]) -> Chart:
    entries = []
    for c in found:
        limit = c.row.max_drop[c.metric]
        beyond = c.drop.drop > limit + 1e-12
        entries.append(
            Bar(
                c.row.title,
                100 * c.drop.drop,
                100 * c.drop.low,
                100 * c.drop.high,
                points(c.drop.drop).text + " ✗" * beyond,
                None if math.isinf(limit) else 100 * limit,
                beyond=beyond,
                detail=c.metric if len(c.row.max_drop) > 1 else "",
            )
        )
    over = [entry for entry in entries if entry.beyond]
    verdict = f"{len(over)} beyond their limit: {_named(over)}." if over else "none beyond a limit."
    message = (
        f"Drop from FP32 to INT8 on {isa} of {counted(len(entries), 'score')}, {_span(entries, ' points')}; {verdict}"
    )
    return Chart(isa, message, "points of drop, FP32 to INT8 (to the left: INT8 is better)", tuple(entries))


def _span(entries: Sequence[Bar], unit: str) -> str:
    """From where to where the entries' values go, in words."""
    finite = [entry for entry in entries if math.isfinite(entry.value)]
    if not finite:
        return "none of them a number"
    least, most = min(finite, key=lambda e: e.value), max(finite, key=lambda e: e.value)
    if least is most:
        return f"{most.text}{unit} ({most.full})"
    return f"from {least.text}{unit} ({least.full}) to {most.text}{unit} ({most.full})"


def _named(entries: Sequence[Bar], most: int = 5) -> str:
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entry.full for entry in entries[:most]) + more


# --- speed

_SPEED = (
    Column("Model"), Column("Result"), Column("ISA"), Column("Threads", True), Column("Batch", True),
    Column("FP32 / INT8", True), Column("95% interval"), Column("Due", True), Column("Seeds", True),
    Column("FP32, ms", True), Column("INT8, ms", True), Column("FP32 samples/s", True), Column("INT8 samples/s", True),
    Column("Rounds", True), Column("Processes", True), Column("Best FP32"), Column("INT8 by"),
)  # fmt: skip
_STATUS: Mapping[str, Status] = {"reached": "ok", "MISSED": "missed", "FAILED": "failed"}


def _speed(found: Sequence[Pair], names: Sequence[str]) -> Sheet:
    lines = []
    for pair in found:
        medians = [float(np.median(record.latency_s)) for record in (pair.fp32, pair.int8)]
        cells = (
            Cell(pair.title),
            Cell(pair.result.lower()),
            Cell(pair.int8.isa),
            *(figure(count, 0) for count in (pair.int8.threads, pair.int8.batch)),
            figure(pair.ratio, 2),
            Cell(interval(pair.low, pair.high)),
            figure(pair.due, 2),
            figure(pair.published, 2),
            *(figure(1e3 * seconds, 2) for seconds in medians),
            *(figure(pair.int8.batch / seconds if seconds else math.nan, 1) for seconds in medians),
            *(figure(count, 0) for count in (len(pair.int8.latency_s), pair.int8.processes)),
            Cell(pair.fp32.variant or "-"),
            Cell(pair.int8.variant or "-"),
        )
        lines.append(Line(cells, _STATUS[pair.result], names.index(pair.row.name)))
    caption = "Speed: the ratio is the median of alternating rounds; ms are medians a batch"
    return Sheet(caption, _SPEED, tuple(lines))


def _ratios(isa: str, threads: int, found: Sequence[Pair]) -> Chart:
    entries = [
        Bar(
            pair.row.title,
            pair.ratio,
            pair.low,
            pair.high,
            times(pair.ratio) + {"reached": "", "MISSED": " !", "FAILED": " ✗"}[pair.result],
            pair.due,
            pair.published,
            pair.result != "reached",
            case_words(pair) if len(pair.row.cases) > 1 or pair.int8.batch > 1 else "",
        )
        for pair in found
    ]
    short = [entry for entry in entries if entry.beyond]
    verdict = f"{len(short)} below what is due: {_named(short)}." if short else "all reach what is due."
    where = f"{isa}, {counted(threads, 'thread')}"
    message = (
        f"How many times as fast as FP32 INT8 is on {where}: {counted(len(entries), 'case')}, {_span(entries, '')}; "
    )
    return Chart(where, message + verdict, "FP32 / INT8 (broken line: as fast as FP32)", tuple(entries), 1.0)


# --- the verdict


def _headline(run: Run, names: Sequence[str], exact: Sequence[Comparison], timed: Sequence[Pair]) -> Headline:
    missed = len(run.missed)
    if not names and run.failures:
        sentence = "No model could be measured."
    elif not names:
        sentence = "Nothing was measured."
    elif run.passed and missed:
        are = "figure is" if missed == 1 else "figures are"
        sentence = f"Nothing failed, but {missed} {are} short of what is due:"
    elif run.passed:
        sentence = "All limits hold, and all figures reach what is due."
    elif missed:
        sentence = "A limit was missed:" if missed == 1 else f"{missed} limits or figures were missed:"
    elif run.failures:
        sentence = f"{counted(len(run.failures), 'model')} could not be measured; the others keep all limits."
    else:
        sentence = "The run failed; it doesn't tell by what."
    known = run.machine.tier in {tier.name for tier in TIERS}
    notes = skipped_tiers(run.machine) if known and names else []
    return Headline(
        run.passed,
        sentence,
        run.missed,
        tuple(_facts(run, names, exact, timed)),
        (*notes, *compared_lines(run.exact, run.rows)),
    )


def _facts(
    run: Run, names: Sequence[str], exact: Sequence[Comparison], timed: Sequence[Pair]
) -> Iterable[tuple[str, str, str]]:
    """What to know at first sight: what it is, the figure, more about it."""
    lost = f"; {len(run.failures)} could not be measured" if run.failures else ""
    yield "Models", str(len(names)), f"{len(exact)} scores, {len(timed)} ratios{lost}"
    if exact:
        worst = max(exact, key=lambda c: (not math.isnan(c.drop.drop), c.drop.drop))
        where = f"points, {worst.row.title} {worst.metric} on {worst.int8.isa}"
        yield "Largest drop", points(worst.drop.drop).text, where
    own = [p.ratio for p in timed if p.int8.isa == run.machine.tier and p.int8.threads == 1 and math.isfinite(p.ratio)]
    if own:
        span = f"FP32's, {times(min(own))} to {times(max(own))}, on {run.machine.tier} at one thread"
        yield "Median speed", f"{times(float(np.median(own)))}×", span
    if timed:
        reached = sum(pair.result == "reached" for pair in timed)
        yield "Ratios that reach what is due", f"{reached} of {len(timed)}", "on all tiers and thread counts"


# --- a model

_OWN_ACCURACY = (
    "Metric", "Result", "ISA", "Weights", "Drop", "95% interval", "Limit",
    "FP32 %", "INT8 %", "Seeds FP32 %", "Seeds INT8 %", "Why",
)  # fmt: skip
_OWN_SPEED = (
    "Model", "Result", "ISA", "Threads", "Batch", "FP32 / INT8", "95% interval", "Due", "Seeds", "FP32, ms", "INT8, ms",
)  # fmt: skip


def _part(
    run: Run,
    name: str,
    number: int,
    accuracy: Sheet,
    speed: Sheet,
    exact: Sequence[Comparison],
    timed: Sequence[Pair],
    past: Sequence[Run],
    steps: Sequence[str],
) -> Part:
    def own(line: Line) -> bool:
        return line.model == number

    row = run.rows[name]
    lines = [line for sheet in (accuracy, speed) for line in sheet.lines if own(line)]
    scores = accuracy.only(f"Accuracy of {row.title}", _OWN_ACCURACY, own)
    ratios = speed.only(f"Speed of {row.title}", _OWN_SPEED, own)
    found = run.anatomy.get(name)
    charts, table = history_of(run, name, past, [c for c in exact if c.row.name == name], timed)
    return Part(
        title=row.title,
        name=name,
        status=_worst([line.status for line in lines]),
        summary=_summary(run, [c for c in exact if c.row.name == name], [p for p in timed if p.row.name == name]),
        command=f"{run.command} --model {shlex.quote(name)}",
        next_steps=tuple(steps),
        accuracy=scores if scores.lines else None,
        speed=ratios if ratios.lines else None,
        int8=_composition(found),
        kept=_kept(found, row.title) if found and found.fp32 else None,
        between=_between(found, row.title) if found and found.between else None,
        kernels=_kernels(found, row.title) if found and found.kernels else None,
        layers=_layers(found, row.title) if found and found.layers else None,
        charts=tuple(charts),
        past=table,
    )


_ORDER: tuple[Status, ...] = ("", "ok", "unsure", "missed", "failed")


def _worst(found: Sequence[Status]) -> Status:
    return max(found, key=_ORDER.index, default="")


def _summary(run: Run, exact: Sequence[Comparison], timed: Sequence[Pair]) -> str:
    """The model's own score, and its first case at one thread, on the machine's own tier."""
    drop = next((c for c in exact if c.first and c.int8.isa == run.machine.tier), None)
    pair = next((p for p in timed if p.int8.isa == run.machine.tier and p.int8.threads == 1), None)
    parts = (
        f"{points(drop.drop.drop).text} points of {drop.metric}" if drop else "",
        f"{times(pair.ratio)} times FP32" if pair else "",
    )
    return " · ".join(filter(None, parts))


def _composition(found: Anatomy | None) -> str:
    if found is None:
        return ""
    ops = ", ".join(f"{count} {kind}" for kind, count in sorted(found.int8.items(), key=lambda item: -item[1]))
    total = sum(found.int8.values())
    kept = (
        f"{counted(len(found.fp32), 'op')} could be and stays float32"
        if len(found.fp32) == 1
        else (
            f"{len(found.fp32)} ops could be and stay float32"
            if found.fp32
            else "nothing that could be is left in float32"
        )
    )
    return f"{counted(total, 'op')} in INT8{f' ({ops})' if ops else ''}; {kept}. {cost_of(found)}".rstrip()


def _kept(found: Anatomy, title: str) -> Sheet:
    lines = tuple(Line((Cell(op.op), Cell(op.type), Cell(op.why))) for op in found.fp32)
    return Sheet(f"Ops of {title} that stay float32", (Column("Output"), Column("Op"), Column("Why")), lines)


def _between(found: Anatomy, title: str) -> Sheet:
    columns = ("Output", "Op", "Pass", "Why it did not take it"), ("Bytes a sample",)
    lines = tuple(
        Line((Cell(op.output), Cell(op.type), *map(Cell, op.parts), figure(op.bytes, 0))) for op in found.between or ()
    )
    return Sheet(f"FP32 ops of {title} between INT8 ops, most bytes first", heads(*columns), lines)


def _kernels(found: Anatomy, title: str) -> Sheet:
    columns = ("Kernel", "Implementation", "Types"), ("Runs", "Time, ms", "Share, %")
    lines = tuple(
        Line((
            Cell(k.op), Cell(k.implementation), Cell(k.types),
            figure(k.count, 0), figure(k.ms, 3), figure(100 * k.share, 1),
        ))
        for k in found.kernels
    )  # fmt: skip
    return Sheet(f"Kernels of {title}, most time first", heads(*columns), lines)


def _layers(found: Anatomy, title: str) -> Sheet:
    columns = ("Output", "Op"), ("SQNR to FP32, dB", "SQNR to simulation, dB")
    lines = tuple(
        Line((Cell(layer.op), Cell(layer.type), figure(layer.fp32_db, 1), figure(layer.quant_db, 1)))
        for layer in found.layers
    )
    return Sheet(f"Layers of {title}, worst first", heads(*columns), lines)


# --- the environment


def _environment(run: Run) -> Iterable[tuple[str, str]]:
    machine, load = run.machine, run.load
    yield "CPU", f"{machine.cpu or 'unknown'}; {counted(machine.cores, 'core')} for this process"
    yield "Tier and flags", f"{machine.tier}: {' '.join(machine.flags) or 'none'}"
    yield (
        "Versions",
        ", ".join([f"Python {machine.python}", *(f"{k} {v}" for k, v in sorted(machine.packages.items()))]),
    )
    yield "Commit", commit_of(run) or "unknown (not in a git repository)"
    yield "Began", f"{run.started or 'unknown'}; took {run.seconds:.0f} s"
    average = "unknown" if load.average is None else f"{load.average:.2f}"
    steal = "unknown" if load.steal is None else f"{load.steal:.2%}"
    switches = "unknown" if load.switches is None else f"{load.switches:,}"
    yield "Load", f"1-minute average before it began {average}; stolen by a hypervisor {steal} of CPU time; "\
        f"involuntary context switches {switches}"  # fmt: skip
    yield "Seed", f"{run.seed}, of generated input and of resampling"
