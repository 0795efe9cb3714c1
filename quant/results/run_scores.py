"""A model's figures in one run, without intervals: what is followed over runs."""

import numpy as np

from quant.results.record import Record, Run
from quant.results.target import Case

__all__ = ["case_of", "drop", "ratios"]


def drop(run: Run, model: str, isa: str, metric: str, like: Record | None = None) -> float | None:
    """Points that INT8 loses to FP32; None where that wasn't measured.

    `like`: only what was measured as that INT8 record, on the same data.
    """
    scored = [record for record in run.exact if record.model == model and metric in record.outcomes]
    int8 = next(
        (r for r in scored if (r.precision, r.isa) == ("int8", isa) and (like is None or _alike(r, like))), None
    )
    fp32 = next((r for r in scored if r.precision == "fp32" and int8 and _data(r) == _data(int8)), None)
    return None if fp32 is None or int8 is None else 100 * (fp32.score(metric) - int8.score(metric))


def _alike(one: Record, other: Record) -> bool:
    return one.variant == other.variant and _data(one) == _data(other)


def _data(record: Record) -> tuple[str, int]:
    return record.data, record.samples


def ratios(run: Run, model: str, isa: str) -> dict[str, float]:
    """FP32 / INT8, medians of rounds, by case (`case_of`)."""
    found: dict[str, float] = {}
    for before, after in zip(run.timed[::2], run.timed[1::2], strict=False):
        if (after.model, after.isa) == (model, isa) and len(before.latency_s) == len(after.latency_s):
            found.setdefault(case_of(after), float(np.median(np.divide(before.latency_s, after.latency_s))))
    return found


def case_of(record: Record) -> str:
    """How a record was timed, in words."""
    return Case(record.batch, repeat=record.repeat, by_length=record.by_length).words(record.threads)
