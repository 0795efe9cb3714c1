"""INT8 records against FP32's and the simulation's: drops, verdicts, what was missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quant.errors import DataError
from quant.metrics.scores import Paired, Verdict, paired, verdict
from quant.results.record import Record
from quant.results.speed_ratio import pairs
from quant.results.target import Row

__all__ = ["Comparison", "comparisons", "misses", "passed"]


@dataclass(frozen=True)
class Comparison:
    """One INT8 record against its FP32 and its simulation, by one metric of its row."""

    row: Row
    metric: str
    fp32: Record
    quant: Record | None  # None where no simulation was given
    int8: Record
    drop: Paired  # FP32 -> INT8
    engine: Paired | None  # simulation -> INT8
    verdict: Verdict

    @property
    def first(self) -> bool:
        """Whether the metric is the row's own."""
        return self.metric == self.row.metric

    def faults(self) -> dict[str, str]:
        """What this row's own thresholds say was missed: drop, engine, floor or share -> a phrase."""
        row, found = self.row, {}
        limit = row.max_drop[self.metric]
        if self.drop.drop > limit + 1e-12:
            found["drop"] = f"drop {100 * self.drop.drop:.2f} points, limit {100 * limit:.2f}"
        if self.engine and abs(self.engine.drop) > row.max_engine_gap + 1e-12:
            gap, limit = 100 * self.engine.drop, 100 * row.max_engine_gap
            found["engine"] = f"INT8 against simulation {gap:+.2f}, limit {limit:.2f}"
        if self.first and self.fp32.score(self.metric) < row.floor:
            found["floor"] = f"FP32 {self.fp32.score(self.metric):.2%} is below its floor {row.floor:.0%}"
        if self.first and not self.int8.int8_share:
            found["share"] = "not one INT8 kernel ran"
        elif self.first and (fault := self.int8.share_fault(row.int8_share_due(self.int8.variant))):
            found["share"] = fault
        return found

    def missed(self) -> list[str]:
        """The phrases alone."""
        return list(self.faults().values())


def comparisons(records: Sequence[Record], rows: Mapping[str, Row]) -> list[Comparison]:
    """Every INT8 accuracy record with its FP32 and its simulation of the same weights, once for each of its metrics.

    Raises DataError for one without FP32.
    """
    result = []
    for int8 in records:
        if int8.precision != "int8" or not int8.outcomes:
            continue
        row = rows[int8.model]
        same = [record for record in records if record.model == int8.model]
        fp32 = next((record for record in same if record.precision == "fp32"), None)
        if fp32 is None:
            raise DataError(f"{row.title}: INT8 has no record of its FP32 model to be compared with")
        alike = (record for record in same if record.precision == "quant" and record.variant == int8.variant)
        quant = next(alike, None)
        for metric, limit in row.max_drop.items():
            drop = paired(fp32.counts(metric), int8.counts(metric), metric)
            engine = paired(quant.counts(metric), int8.counts(metric), metric) if quant else None
            result.append(Comparison(row, metric, fp32, quant, int8, drop, engine, verdict(drop, limit)))
    return result


def passed(accuracy: Sequence[Record], speed: Sequence[Record], rows: Mapping[str, Row]) -> bool:
    """Whether the suite passes: every accuracy threshold holds, and no speed ratio has FAILED."""
    exact = not any(c.missed() for c in comparisons(accuracy, rows))
    return exact and all(pair.result != "FAILED" for pair in pairs(speed, rows))


def misses(accuracy: Sequence[Record], speed: Sequence[Record], rows: Mapping[str, Row]) -> list[str]:
    """One line for every threshold or figure that was missed."""
    exact = comparisons(accuracy, rows)
    lines = [f"{c.row.title} {c.metric} on {c.int8.isa}: {text}" for c in exact for text in c.missed()]
    for pair in pairs(speed, rows):
        if pair.result != "reached":
            where = f"{pair.title} on {pair.int8.isa}, batch {pair.int8.batch}, {pair.int8.threads} thread(s)"
            lines.append(f"{where}: FP32 / INT8 {pair.ratio:.2f}, due {pair.due:.1f}: {pair.result}")
    return lines
