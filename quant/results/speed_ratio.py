"""FP32 and INT8 records that were timed against each other -> ratios, and what to make of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from quant.errors import DataError
from quant.metrics.scores import ratio_interval
from quant.results.record import Record
from quant.results.target import Case, Row

__all__ = ["Pair", "confirmed", "pairs", "settled"]

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """FP32 and INT8 timed against each other: the median ratio of their rounds, with its 95% interval."""

    row: Row
    fp32: Record
    int8: Record
    ratio: float
    low: float
    high: float

    @property
    def result(self) -> str:
        """reached; MISSED: the estimate is below what is due; FAILED: the whole interval is far below (`fails_below`).

        Coming close to what is due is a figure to print as it is; falling far below means that something broke.
        """
        if self.ratio >= self.due:
            return "reached"
        return "FAILED" if self.high < self.row.fails_below * self.due else "MISSED"

    @property
    def case(self) -> Case:
        return self.row.case_of(self.int8.batch, self.int8.repeat, self.int8.by_length)

    @property
    def due(self) -> float:
        return self.case.due_on(self.int8.isa, self.int8.threads)

    @property
    def published(self) -> float | None:
        """The seeds' ratio, of one thread of a CPU with VNNI and without AMX; None elsewhere."""
        comparable = self.int8.isa == "avx512_vnni" and self.int8.threads == 1
        return self.case.published if comparable else None

    @property
    def title(self) -> str:
        extra = (f"each {self.case.repeat} times" if self.case.repeat > 1 else "", "by length" * self.case.by_length)
        return ", ".join([self.row.title, *filter(None, extra)])


def pairs(records: Sequence[Record], rows: Mapping[str, Row]) -> list[Pair]:
    """FP32 and INT8 records that were measured against each other: they follow one another.

    Raises DataError where one of the two is missing.
    """
    result = []
    for fp32, int8 in zip_longest(records[::2], records[1::2]):
        if int8 is None or fp32.model != int8.model or len(fp32.latency_s) != len(int8.latency_s):
            title = rows[fp32.model].title
            raise DataError(f"{title}: a speed record of {fp32.precision} has no other that it was timed against")
        ratio, low, high = ratio_interval(np.array(fp32.latency_s), np.array(int8.latency_s))
        result.append(Pair(rows[int8.model], fp32, int8, ratio, low, high))
    return result


def settled(row: Row, measure: Callable[..., list[Record]], budget_s: float = 2.5) -> list[Record]:
    """What `measure` (`budget_s` in seconds -> FP32 and INT8 records) finds; a ratio that isn't reached, once more."""

    def reached(records: list[Record]) -> bool:
        return all(pair.result == "reached" for pair in pairs(records, {row.name: row}))

    return confirmed(lambda amount: measure(budget_s=amount), reached, budget_s)


def confirmed(measure: Callable[[float], T], good: Callable[[T], bool], amount: float) -> T:
    """What `measure` finds with an amount of rounds or seconds, or with twice that, when the first isn't good.

    A busy moment of the machine is no slow model, so a miss is measured twice before it counts.
    """
    found = measure(amount)
    return found if good(found) else measure(2 * amount)
