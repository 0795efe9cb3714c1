"""Records -> tables. Never runs a model.

A table is rows of plain strings; the terminal (rich) and Markdown print the same ones.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table as RichTable
from rich.text import Text

from quant.cpu import TIERS
from quant.metrics.scores import paired
from quant.reports.terminal import WIDTH, fit
from quant.results.comparison import Comparison, comparisons
from quant.results.record import Failure, Machine, Record
from quant.results.speed_ratio import Pair, pairs
from quant.results.target import Row
from quant.suites.registry import find
from quant.timing.instances import Throughput, percentile

__all__ = [
    "Table",
    "accuracy_table",
    "compared_lines",
    "failed",
    "failed_lines",
    "markdown",
    "next_steps",
    "plain",
    "rich_table",
    "section",
    "skipped_tiers",
    "speed_table",
    "throughput_json",
    "throughput_table",
    "tuned_misses",
    "tuned_table",
]


_SHARES = (0.5, 0.9, 0.99)
_GENERATED = (
    "Full size, generated weights and input; GRU and LSTM: trained weights, over test samples of unequal lengths."
)
_ACCURACY_SHOWN = {
    **{title: title for title in ("Model", "ISA", "Metric", "FP32", "INT8", "Drop [95%]")},
    "INT8 share of MACs": "INT8 share",
    "Verdict": "Verdict",
}
_SPEED_SHOWN = {
    **{title: title for title in ("Model", "ISA", "Threads", "Batch", "FP32 ms", "INT8 ms")},
    "FP32 / INT8 [95%]": "Ratio [95%]",
    **{title: title for title in ("Due", "Result")},
}


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    terminal: Mapping[str, str] | None = None  # columns shown on a terminal -> their titles there; None: all
    terminal_note: str | None = None  # None: `note`


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _goal(pair: Pair) -> str:
    """The seeds' ratio, and whether ours is at or above it."""
    if pair.published is None:
        return "-"
    return f"{pair.published:.2f} {'reached' if pair.ratio >= pair.published else 'missed'}"


def tuned_table(records: Sequence[Record], sizes: Mapping[str, int]) -> Table:
    """FP32, calibrated INT8, fine-tuned simulation and INT8 (quant.suites.embedded.judge_tuned), and what they
    weigh."""
    fp32, ptq, quant, int8 = records
    names = ("FP32", "INT8, calibrated", "simulation, trained", "INT8, trained")
    weights = (sizes["fp32"], None, sizes["quant"], sizes["int8"])
    rows = []
    for metric in fp32.outcomes:
        for name, record, weight in zip(names, records, weights, strict=True):
            drop = paired(fp32.counts(metric), record.counts(metric), metric)
            interval = f"{100 * drop.drop:+.2f} [{100 * drop.low:+.2f}, {100 * drop.high:+.2f}]"
            share = f"{100 * (record.int8_share or 0):.1f}% {'+'.join(record.kernel_isas)}"
            size = "-" if weight is None else f"{weight / 1e6:.2f} MB ({weight / sizes['fp32']:.2f})"
            first = record is fp32
            cells = (name, metric, _percent(record.score(metric)), "-" if first else interval)
            rows.append((*cells, "-" if first or record is quant else share, size))
    columns = ("Model", "Metric", "Score %", "Drop to FP32, points [95%]", "INT8 share, kernels", "On disk")
    metric = find(fp32.model).metric
    gain = paired(int8.counts(metric), ptq.counts(metric), metric)
    note = (
        f"{find(fp32.model).title}, {fp32.samples} samples, {fp32.isa}. Trained above calibrated INT8, {metric}: "
        f"{100 * gain.drop:+.2f} points [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]."
    )
    return Table("Quantization-aware training", columns, tuple(rows), note)


def tuned_misses(records: Sequence[Record]) -> list[str]:
    """What fine-tuning fell short of, by the row's own metric: near FP32, and not below calibration.

    The latter by the interval: on the same samples both are right and wrong by turns, and one image decides nothing.
    """
    fp32, ptq, _, int8 = records
    spec, found = find(fp32.model), []
    after = int8.counts(spec.metric)
    drop, below = (paired(before.counts(spec.metric), after, spec.metric) for before in (fp32, ptq))
    if drop.drop > spec.max_tuned_drop + 1e-12:
        found.append(f"drop {100 * drop.drop:.2f} points, limit {100 * spec.max_tuned_drop:.2f}")
    if below.low > 0:
        found.append(f"below calibration alone by {100 * below.drop:.2f} points, at least {100 * below.low:.2f}")
    return found


def accuracy_table(records: Sequence[Record], known: Mapping[str, Row]) -> Table:
    """`known`: the rows by name."""
    rows = []
    for c in comparisons(records, known):
        seeds = c.row.published.get(c.metric)
        same = f"{100 * c.int8.agreement['fp32']:.2f}%" if c.int8.agreement else "-"
        rows.append(
            (
                c.row.title,
                c.metric,
                c.int8.isa,
                c.int8.variant or "8bit",
                *("-" if record is None else _percent(record.score(c.metric)) for record in (c.fp32, c.quant, c.int8)),
                f"{100 * c.drop.drop:+.2f} [{100 * c.drop.low:+.2f}, {100 * c.drop.high:+.2f}]",
                f"{c.drop.p_value:.2f}",
                "-" if c.engine is None else f"{100 * c.engine.drop:+.2f}",
                _number(c.int8.sqnr_db.get("fp32"), 1),
                _number(c.int8.sqnr_db.get("quant"), 1),
                _number(c.int8.cosine.get("quant"), 4),
                f"{100 * (c.fp32.score('top5') - c.int8.score('top5')):+.2f}" if "top5" in c.int8.outcomes else "-",
                same,
                f"{100 * (c.int8.int8_share or 0):.1f}%",
                "+".join(c.int8.kernel_isas),
                f"{100 * (c.int8.overhead or 0):.1f}%",
                "-" if seeds is None else f"{seeds[0]:.2f} {seeds[0] - seeds[1]:+.2f}",
                "; ".join(["MISSED", *c.missed()]) if c.missed() else str(c.verdict),
            )
        )
    compared = "".join(f" {line}." for line in compared_lines(records, known))
    return Table(
        "Accuracy (percent; drops in points, positive is worse)",
        (
            "Model",
            "Metric",
            "ISA",
            "Weights",
            "FP32",
            "Simulated",
            "INT8",
            "Drop [95%]",
            "p",
            "Sim. to INT8",
            "SQNR to FP32 dB",
            "SQNR to sim. dB",
            "Cosine to sim.",
            "Top-5 drop",
            "Same tags as FP32",
            "INT8 share of MACs",
            "Kernels",
            "Eval. overhead",
            "Seeds: FP32, drop",
            "Verdict",
        ),
        tuple(rows),
        "Drop: FP32 - INT8 on the same samples. Shares of samples: Newcombe's paired interval, McNemar's exact p. "
        "Scores of words and steps: bootstrap and permutation over sentences. SQNR of the scores, cosine of the last "
        "output. Verdict: by the interval against the row's limit; 'pass on the point' when only the estimate is "
        f"within it.{compared}",
        _ACCURACY_SHOWN,
        f"Drop: FP32 - INT8 on the same samples.{compared}",
    )


def compared_lines(records: Sequence[Record], known: Mapping[str, Row]) -> Iterator[str]:
    """Sentences on models of which other tensors than the outputs were compared."""
    for name, sentence in dict.fromkeys((record.model, record.compared) for record in records if record.compared):
        yield f"{known[name].title if name in known else name}: {sentence}"


def speed_table(records: Sequence[Record], known: Mapping[str, Row], fed: str = _GENERATED) -> Table:
    """`known`: the rows by name; `fed`: what the models were timed on."""
    rows = []
    for pair in pairs(records, known):
        fp32_ms, int8_ms = (1e3 * float(np.median(record.latency_s)) for record in (pair.fp32, pair.int8))
        rows.append(
            (
                pair.title,
                pair.int8.isa,
                str(pair.int8.threads),
                str(pair.int8.batch),
                pair.fp32.variant,
                pair.int8.variant,
                f"{fp32_ms:.2f}",
                f"{int8_ms:.2f}",
                f"{1e3 * pair.fp32.batch / fp32_ms:.0f}",
                f"{1e3 * pair.int8.batch / int8_ms:.0f}",
                f"{pair.ratio:.2f} [{pair.low:.2f}, {pair.high:.2f}]",
                str(len(pair.int8.latency_s)),
                f"{pair.due:.1f}",
                _goal(pair),
                pair.result,
            )
        )
    return Table(
        "Speed",
        (
            "Model",
            "ISA",
            "Threads",
            "Batch",
            "Best FP32",
            "INT8 by",
            "FP32 ms",
            "INT8 ms",
            "FP32 samples/s",
            "INT8 samples/s",
            "FP32 / INT8 [95%]",
            "Rounds",
            "Due",
            "Seeds",
            "Result",
        ),
        tuple(rows),
        "ms a batch, medians; ratio: median of alternating rounds with a bootstrap interval. FP32 is the fastest "
        f"variant found. {fed} Seeds: their ratio on a Xeon Gold 6271, one core, and whether ours is at or above it. "
        "Due: the row's floor for the tier and the threads.",
        _SPEED_SHOWN,
        "ms a batch, medians; ratio: FP32 / INT8. Due: the row's floor for the tier and the threads.",
    )


def throughput_json(found: Throughput) -> dict[str, Any]:
    """What was measured, raw, and what follows from it; latencies in ms, absent percentiles are null."""
    scaling, low, high = found.scaling()
    return {
        **asdict(found),
        "samples_per_s": float(found.rates.mean()),
        "alone_samples_per_s": float(np.mean(found.alone)),
        "scaling": scaling,
        "scaling_low": low,
        "scaling_high": high,
        "latency_ms": _percentiles(found.latency_s),
    }


def throughput_table(title: str, found: Throughput) -> Table:
    """All instances together, each of them, and one alone."""

    def row(name: str, place: str, latency_s: Sequence[float] | NDArray[np.float64], rates: Any) -> tuple[str, ...]:
        cells = ("-" if ms is None else f"{ms:.2f}" for ms in _percentiles(latency_s).values())
        return (name, place, f"{float(np.mean(rates)):.1f}", *cells, str(len(latency_s)))

    count = len(found.instances)
    places = " ".join(str(instance.cpu) for instance in found.instances)
    scaling, low, high = found.scaling()
    rows = [
        row("all", places, found.latency_s, found.rates),
        *(
            row(f"instance {number}", str(one.cpu), one.latency_s, one.rates)
            for number, one in enumerate(found.instances)
        ),
        row("one alone", "each in turn", found.alone_latency_s, found.alone),
    ]
    return Table(
        title,
        ("Instances", "CPU", "Samples/s", *(f"p{100 * share:.0f} ms" for share in _SHARES), "Batches"),
        tuple(rows),
        f"{count} pinned instances, one thread each: {scaling:.2f} times one alone [{low:.2f}, {high:.2f}], "
        f"{scaling / count:.0%} of {count}; {len(found.alone)} windows of {found.window_s:.2f} s each. A percentile "
        "is told when at least 10 batches lie above it.",
    )


def _percentiles(latency_s: Sequence[float] | NDArray[np.float64]) -> dict[str, float | None]:
    found = {f"p{100 * share:.0f}": percentile(latency_s, share) for share in _SHARES}
    return {name: None if value is None else 1e3 * value for name, value in found.items()}


def next_steps(
    command: str,
    exact: Sequence[Comparison],
    timed: Sequence[Pair],
    inexact: Collection[str] = (),
    slower: Collection[str] = (),
) -> dict[str, list[str]]:
    """Model -> commands that say why it missed its limits, and that mend it.

    `command`: what measured it (`Run.command`). `inexact`, `slower`: names of models that lost accuracy or speed
    otherwise. Nothing unless these were embedded models or a manifest's: what is made of others has no name.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a run's file is from anywhere
        return {}
    if words[:2] not in (["quant", "suite"], ["quant", "gate"]) or words[2:3] not in ([], ["--manifest"]):
        return {}
    where = words[2:]
    inexact = [*(found.row.name for found in exact if found.missed()), *inexact]
    slower = [*(pair.row.name for pair in timed if pair.result != "reached"), *slower]
    steps: dict[str, list[str]] = {}
    for name in dict.fromkeys((*inexact, *slower)):
        found = [["analyze", name, *where]] if name in inexact else []
        if name in inexact and where:  # the embedded models are as they are to be
            found.append(["tune", *where, "--model", name, "--output", f"{name}-tuned"])
        if name in slower:
            found.append(["profile", name, *where])
        steps[name] = [shlex.join(["quant", *words]) for words in found]
    return steps


def skipped_tiers(machine: Machine) -> list[str]:
    """Tiers that this machine can't stand for, each with the reason."""
    best = [tier.name for tier in TIERS].index(machine.tier)
    return [f"{tier.name}: not measured, this CPU lacks {', '.join(sorted(tier.flags))}" for tier in TIERS[best + 1 :]]


def markdown(machine: Machine, tables: Sequence[Table], missed: Sequence[str], failures: Sequence[Failure] = ()) -> str:
    """The report as Markdown."""
    verdict_line = "All thresholds reached." if not missed else "Missed: " + "; ".join(missed) + "."
    if failures and not missed:
        verdict_line = "All thresholds of what could be measured reached."
    packages = ", ".join(f"{name} {number}" for name, number in machine.packages.items())
    parts = [
        "# INT8 report",
        verdict_line,
        f"CPU: {' '.join(machine.flags)}; tier {machine.tier}; {machine.cores} cores. "
        f"Python {machine.python}, {packages}.",
        *skipped_tiers(machine),
        *failed(failures),
    ]
    return "\n\n".join([*parts, *map(section, tables)]) + "\n"


def failed_lines(failures: Sequence[Failure]) -> Iterator[str]:
    """Lines for a terminal: what couldn't be measured, and behind it the log."""
    for failure in failures:
        yield f"failed: {failure}"
        yield from (f"    {line}" for line in failure.log)


def failed(failures: Sequence[Failure]) -> Iterator[str]:
    """Paragraphs of Markdown: models that couldn't be measured, the log of each as code."""
    if failures:
        yield "## Could not be measured"
    for failure in failures:
        yield f"{plain(failure.title)}: {plain(failure.reason)}"
        if failure.log:
            yield "\n".join(f"    {line}" for line in failure.log)


def section(table: Table) -> str:
    """A table as a part of a Markdown document. Names are users' own: they stay text."""
    rows = ([_cell(cell) for cell in row] for row in (table.columns, *table.rows))
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    lines.insert(1, "| " + " | ".join(["---"] * len(table.columns)) + " |")
    return f"## {table.title}\n\n" + "\n".join(lines) + f"\n\n{table.note}"


def _cell(text: str) -> str:
    return plain(text).replace("|", "\\|")


def plain(text: str) -> str:
    """Text that Markdown takes for text: one line, no HTML, no code."""
    return " ".join(text.replace("\\", "\\\\").replace("`", "\\`").replace("<", "&lt;").split())


def rich_table(table: Table, width: int = WIDTH) -> RichTable:
    """The table for a terminal, with the columns that are meant for one; cells are plain text, never markup.

    A table with columns chosen for a terminal fits into `width`; where words are too long for that it is wider.
    """
    titles = table.columns if table.terminal is None else tuple(table.terminal.values())
    places = [table.columns.index(title) for title in table.terminal or titles]
    note = table.note if table.terminal_note is None else table.terminal_note
    result = RichTable(title=table.title, caption=note or None, header_style="bold")
    for title in titles:
        result.add_column(title, overflow="fold")
    for row in table.rows:
        style = "red" if row[-1].startswith(("MISSED", "FAILED")) else None
        result.add_row(*(Text(row[place]) for place in places), style=style)
    if table.terminal:
        cells = [(title, *(row[place] for row in table.rows)) for place, title in zip(places, titles, strict=True)]
        fit(result, cells, width)
    return result
