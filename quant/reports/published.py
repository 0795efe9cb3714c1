"""Records of published models -> the seeds' tables, ours beside each figure. Never runs a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quant.metrics.scores import Paired, Verdict, paired, verdict
from quant.reports.tables import Table
from quant.results.record import Record
from quant.results.speed_ratio import Pair, pairs
from quant.results.target import Row
from quant.suites.prepare import DERIVED
from quant.suites.published.catalogue import Before, Scores, Timing, ZooRow, row_of
from quant.suites.published.located import Missing
from quant.suites.registry import BY_NAME, find

__all__ = ["Line", "lines", "misses", "passed", "recorded", "tables"]

_NONSENSE = 0.5  # of the published score: below it something else was measured


@dataclass(frozen=True, eq=False)
class Line:
    """INT8 against FP32 or the simulation, by one metric of a row. `limit`: None where no seed's command sets one."""

    row: ZooRow
    metric: str
    before: Record
    int8: Record
    drop: Paired
    limit: float | None

    @property
    def verdict(self) -> Verdict | None:
        return None if self.limit is None else verdict(self.drop, self.limit)

    @property
    def seeds(self) -> list[Scores]:
        """What the documents print of the same comparison."""
        return [
            scores
            for scores in self.row.scores
            if scores.metric == self.metric and scores.before == self.before.precision
        ]

    def missed(self) -> list[str]:
        """What this line's limits say was missed; none without a limit."""
        decided = self.verdict
        if decided is None or self.limit is None:
            return []
        found = []
        beyond = self.drop.drop > self.limit + 1e-12
        if decided.result == "FAIL" or (beyond and self.int8.samples >= self.row.decides):
            found.append(f"drop {100 * self.drop.drop:.2f} points, limit {100 * self.limit:.2f}")
        printed = [scores.score for scores in self.row.scores if scores.metric == self.metric]
        score = 100 * self.before.score(self.metric)
        if printed and score < _NONSENSE * min(printed):
            found.append(
                f"{score:.2f}% where the seeds print {min(printed):.2f}%: the data of this model, and as it was made?"
            )
        first = self.metric == next(iter(self.row.max_drop))
        if first and (fault := self.int8.share_fault(self.row.min_int8_share)):
            found.append(fault)
        return found


def lines(records: Sequence[Record]) -> list[Line]:
    """Every published model's INT8 record against its simulation and its FP32, once for each metric."""
    result = []
    for int8 in records:
        if int8.precision != "int8" or not int8.outcomes:
            continue
        row = row_of(int8.model)
        same = {record.precision: record for record in records if record.model == int8.model}
        both: tuple[Before, Before] = ("quant", "fp32")
        for metric in row.metrics:
            for kind in both:
                drop = paired(same[kind].counts(metric), int8.counts(metric), metric)
                limit = row.max_drop.get(metric) if kind == row.against else None
                result.append(Line(row, metric, same[kind], int8, drop, limit))
    return result


def passed(accuracy: Sequence[Record], speed: Sequence[Record]) -> bool:
    """Whether every accuracy limit holds, and no speed ratio has FAILED."""
    return not any(line.missed() for line in lines(accuracy)) and all(
        pair.result != "FAILED" for pair in pairs(speed, BY_NAME)
    )


def misses(accuracy: Sequence[Record], speed: Sequence[Record]) -> list[str]:
    """One line for every limit or figure that was missed."""
    found = [f"{_title(line.row)} {line.metric}: {text}" for line in lines(accuracy) for text in line.missed()]
    for pair in pairs(speed, BY_NAME):
        if pair.result != "reached":
            where = f"{pair.title}, batch {pair.int8.batch}, {pair.int8.threads} thread(s)"
            found.append(f"{where}: FP32 / INT8 {pair.ratio:.2f}, due {pair.due:.1f}: {pair.result}")
    return found


def tables(
    accuracy: Sequence[Record], speed: Sequence[Record], lacks: Sequence[tuple[ZooRow, Missing]], cores: int
) -> list[Table]:
    """Accuracy and speed of image rows, the same of text rows, and what was not measured. Empty ones are left out."""
    found = []
    for family, of_images in (("image classification", True), ("text and handwriting", False)):
        some = [line for line in lines(accuracy) if _is_image(line.row) == of_images]
        timed = [pair for pair in pairs(speed, BY_NAME) if _is_image(row_of(pair.row.name)) == of_images]
        if some:
            found.append(_accuracy_table(family, some))
            found.append(_speed_table(family, timed, list(dict.fromkeys(line.row for line in some)), cores))
    if lacks:
        cells = tuple((_title(row), lack.what, lack.how) for row, lack in lacks)
        note = f"A row without its published FP32 model is measured all the same, against FP32, {DERIVED}."
        found.append(Table("Absent", ("Model", "Missing", "How to get it"), cells, note))
    return found


def _is_image(row: ZooRow) -> bool:
    return row.data[0].format == "images"


def recorded(row: Row) -> Row:
    """The registry's row as a run of published models keeps it: with their metrics, and without its own limits.

    Theirs are of INT8 against the simulation, and depend on how many samples were measured; the run tells what was
    missed.
    """
    drops = dict.fromkeys(row_of(row.name).metrics, math.inf)
    free = replace(Row.of(row), max_drop=drops, max_engine_gap=math.inf, floor=0.0)
    return replace(free, min_int8_share=0.0, min_int8_share_7bit=0.0)


def _title(row: ZooRow) -> str:
    return find(row.name).title


def _kind(record: Record) -> str:
    """What INT8 is compared with."""
    return "fake QAT" if record.precision == "quant" else f"FP32, {record.variant}"


def _accuracy_table(family: str, some: Sequence[Line]) -> Table:
    cells = []
    for line in some:
        decided, missed, before, int8 = line.verdict, line.missed(), line.before, line.int8
        sqnr = int8.sqnr_db.get(before.precision)
        ours = (
            str(int8.samples),
            f"{100 * before.score(line.metric):.2f}",
            f"{100 * int8.score(line.metric):.2f}",
            f"{100 * line.drop.drop:+.2f} [{100 * line.drop.low:+.2f}, {100 * line.drop.high:+.2f}]",
            f"{line.drop.p_value:.2f}",
            "-" if sqnr is None else f"{sqnr:.1f}",
            f"{100 * (int8.int8_share or 0):.1f}% {'+'.join(int8.kernel_isas)}",
            "-" if line.limit is None else f"{100 * line.limit:.2f}",
            "; ".join(["MISSED", *missed]) if missed else "-" if decided is None else str(decided),
        )
        documents: list[Scores | None] = [*line.seeds] or [None]
        for seeds in documents:
            cells.append((_title(line.row), line.metric, _kind(before), *_scores(seeds), *ours))
    return Table(
        f"Published models: accuracy, {family} (percent; drops in points, positive is worse)",
        (
            "Model",
            "Metric",
            "INT8 against",
            "Seeds",
            "Seeds: before",
            "Seeds: INT8",
            "Seeds: drop",
            "Samples",
            "Before",
            "INT8",
            "Drop [95%]",
            "p",
            "SQNR dB",
            "MACs in INT8 kernels",
            "Limit",
            "Verdict",
        ),
        tuple(cells),
        "Seeds: the document and what it prints. Ours: the published fake-quantized model run as it is, and converted "
        "to INT8; recurrent kernels also round weights that it may leave as they are, as Paddle's own conversion does. "
        f"FP32, {DERIVED}: no FP32 model is there, so the fake-quantized one without its quantizers. Drop, p, verdict: "
        "as for the embedded models. Limit: that of the seed's command.",
    )


def _scores(seeds: Scores | None) -> tuple[str, ...]:
    if seeds is None:
        return ("-",) * 4
    return (seeds.document, f"{seeds.score:.2f}", f"{seeds.int8:.2f}", f"{seeds.score - seeds.int8:+.2f}")


def _speed_table(family: str, timed: Sequence[Pair], rows: Sequence[ZooRow], cores: int) -> Table:
    by_case = {(pair.row.name, *_case(pair.int8)): pair for pair in timed}
    cells = []
    for row in rows:
        for timing in row.timings or [None]:
            key = (timing.batch, timing.repeat, timing.threads) if timing else (1, 1, 1)
            pair = by_case.get((row.name, *key))
            cells.append(
                (_title(row), *(str(value) for value in key), *_printed(timing), *_ours(timing, pair, key[2], cores))
            )
    return Table(
        f"Published models: speed, {family}",
        (
            "Model",
            "Batch",
            "Repeat",
            "Threads",
            "Seeds",
            "Unit",
            "Seeds: FP32",
            "Seeds: INT8",
            "Seeds: ratio",
            "ISA",
            "Best FP32",
            "INT8 by",
            "FP32",
            "INT8",
            "Ratio [95%]",
            "Rounds",
            "Due",
            "Result",
        ),
        tuple(cells),
        "Seeds: Xeon Gold 6271. Ratio: how many times faster INT8 is; ours the median of alternating rounds with a "
        "bootstrap interval, against the fastest FP32 variant found. Image models on generated input, the others on "
        "the data's first samples.",
    )


def _case(record: Record) -> tuple[int, int, int]:
    return record.batch, record.repeat, record.threads


def _printed(timing: Timing | None) -> tuple[str, ...]:
    if timing is None:
        return ("-", "images/s", "-", "-", "-")
    return (timing.document, timing.unit, f"{timing.fp32:.2f}", f"{timing.int8:.2f}", f"{timing.ratio:.2f}")


def _ours(timing: Timing | None, pair: Pair | None, threads: int, cores: int) -> tuple[str, ...]:
    if pair is None:
        return (*("-",) * 8, f"not measured: {threads} threads, but {cores} cores here")
    seconds = [float(np.median(record.latency_s)) for record in (pair.fp32, pair.int8)]
    in_ms = timing is not None and timing.unit == "ms"
    shown = [1e3 * value if in_ms else pair.int8.batch / value for value in seconds]
    return (
        pair.int8.isa,
        pair.fp32.variant,
        pair.int8.variant,
        *(f"{value:.2f}" for value in shown),
        f"{pair.ratio:.2f} [{pair.low:.2f}, {pair.high:.2f}]",
        str(len(pair.int8.latency_s)),
        f"{pair.due:.1f}",
        pair.result,
    )
