"""Two runs -> what changed between them, and which changes are regressions. Pure; never runs a model.

Accuracy is paired: the stored outcomes of the same samples, before and after. Speed is the ratio to the FP32 of the
same run, so what slows the whole machine cancels out; its unit is the process, because how a process lies in memory
decides its speed for as long as it lives. A loss of speed has to pass three bars: it isn't chance (Mann-Whitney over
processes, corrected for the number of cases), it is large enough to matter, and it is larger than twice what two
measurements of one model differ by in the same minutes (the A/A run). What passes the first two alone is INVALID: on
so noisy a machine nobody knows. What passes all three is measured once more before it counts.

Sources: Mann and Whitney, Annals of Mathematical Statistics 18 (1947); McNemar, Psychometrika 12 (1947); Benjamini and
Hochberg, Journal of the Royal Statistical Society B 57 (1995); Tarone, Biometrics 46 (1990).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from quant.metrics.scores import paired
from quant.results.record import Record, Run
from quant.results.target import Case

__all__ = ["ALPHA", "LEAST_DROP", "LEAST_LOSS", "Change", "Key", "Result", "compare", "confirmed", "suspects"]

Result = Literal["same", "better", "REGRESSED", "INVALID", "recorded"]
Array = NDArray[np.float64]

ALPHA = 0.05  # of all cases together
LEAST_LOSS = 0.05  # of the ratio; below it a loss of speed doesn't matter
LEAST_DROP = 0.001  # a tenth of a point
LEAST_SHARE = 0.001  # of multiply-accumulates; the share is exact
STEAL = 0.05  # of the CPU time, taken by a hypervisor: no speed can be trusted
_NOISE = 2  # times the A/A run's interval
_RESAMPLES = 4000


class Key(NamedTuple):
    """Which case of a run it is."""

    model: str
    what: str  # "accuracy METRIC", "INT8 share" or "speed"
    isa: str
    variant: str = ""
    threads: int = 1
    batch: int = 1
    repeat: int = 1
    by_length: bool = False

    def __str__(self) -> str:
        if self.what != "speed":
            return " ".join(filter(None, (self.what, self.isa, self.variant)))
        case = Case(self.batch, repeat=self.repeat, by_length=self.by_length)
        return f"speed {self.isa}, {case.words(self.threads)}"


@dataclass(frozen=True)
class Change:
    """One case of two runs. `loss` is positive when it became worse: points of a score, or a share of the ratio.

    `before`, `after`: scores, INT8 shares, or FP32 / INT8. `low`, `high`: the loss's 95% interval. `p_value` of a loss,
    one-sided. `least`: the loss below which this case is never a regression: what matters, and what the machine's noise
    hides. `note` says why there is nothing to compare with, or what a second measurement found.
    """

    key: Key
    result: Result
    after: float
    before: float | None = None
    loss: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p_value: float = 1.0
    least: float = 0.0
    note: str = ""
    differs: bool = True  # False: every sample's outcome is as before


def compare(before: Run | None, after: Run) -> list[Change]:
    """Every case of `after`, against `before`; without, all of it is recorded, and nothing else."""
    changes = [*_accuracy(before, after), *_shares(before, after), *_speed(before, after)]
    corrected = _corrected(changes)
    return [_decided(change, corrected.get(change.key, change.p_value)) for change in changes]


def suspects(changes: Iterable[Change]) -> list[Key]:
    """The cases that have to be measured once more before they count: losses of speed."""
    return [change.key for change in changes if change.result == "REGRESSED" and change.key.what == "speed"]


def confirmed(changes: Sequence[Change], before: Run, again: Run) -> list[Change]:
    """`changes` after a second measurement of its suspects: what isn't found again doesn't count."""
    second = {change.key: change for change in compare(before, again)}
    found = []
    for change in changes:
        other = second.get(change.key)
        if change.key not in suspects([change]) or other is None:
            found.append(change)
            continue
        told = f"measured again: {100 * other.loss:+.1f}%"
        result: Result = other.result if other.result in ("REGRESSED", "INVALID") else "same"
        found.append(replace(change, result=result, note=told if result == "REGRESSED" else f"not confirmed; {told}"))
    return found


def _decided(change: Change, p_value: float) -> Change:
    """What a case comes to, given its corrected p-value."""
    if change.result in ("recorded", "REGRESSED"):  # there is nothing to compute
        return change
    matters = {"speed": LEAST_LOSS, "INT8 share": LEAST_SHARE}.get(change.key.what, LEAST_DROP)
    result: Result = "same"
    if p_value < ALPHA and change.loss > matters - 1e-12:
        result = "REGRESSED" if change.loss > change.least - 1e-12 and change.result != "INVALID" else "INVALID"
    elif change.high < 0 and change.loss < -max(matters, change.least):
        result = "better"
    return replace(change, result=result)


# --- accuracy


def _accuracy(before: Run | None, after: Run) -> list[Change]:
    """INT8's outcomes, sample by sample, by all metrics that its row is judged by."""
    known = {_key(record, metric): record for record in _int8(before) for metric in record.outcomes}
    found = []
    for record in _int8(after):
        row = after.rows.get(record.model)
        for metric in row.max_drop if row else record.outcomes:
            key, score = _key(record, metric), record.score(metric)
            old = known.get(key)
            if old is None or old.data != record.data or old.samples != record.samples:
                why = "other data" if old else "no baseline"
                found.append(Change(key, "recorded", score, old.score(metric) if old else None, note=why))
                continue
            drop = paired(old.counts(metric), record.counts(metric), metric)
            one_sided = drop.p_value / 2 if drop.drop > 0 else 1 - drop.p_value / 2
            found.append(
                Change(
                    key,
                    "same",
                    score,
                    old.score(metric),
                    drop.drop,
                    drop.low,
                    drop.high,
                    one_sided,
                    LEAST_DROP,
                    differs=not np.array_equal(old.counts(metric), record.counts(metric)),
                )
            )
    return found


def _shares(before: Run | None, after: Run) -> list[Change]:
    """The share of multiply-accumulates that INT8 kernels did: a count, so any loss of it is real.

    So is a share of less than before: what isn't counted any more may be what became float32. Where other ops
    aren't counted, but fewer, the shares are of unlike things and say nothing of each other.
    """
    known = {_share_key(record): record for record in _int8(before)}
    found = []
    for record in _int8(after):
        key, share = _share_key(record), record.int8_share or 0.0
        old = known.get(key)
        if old is None:
            found.append(Change(key, "recorded", share, note="no baseline"))
            continue
        fewer = sorted({*record.uncounted} - {*old.uncounted})
        if not fewer and record.uncounted != old.uncounted:
            note = f"counted now: {', '.join(sorted({*old.uncounted} - {*record.uncounted}))}"
            found.append(Change(key, "recorded", share, old.int8_share, note=note))
            continue
        if fewer:
            note = f"not counted any more: {', '.join(fewer)}"
            found.append(Change(key, "REGRESSED", share, old.int8_share, note=note))
            continue
        loss = (old.int8_share or 0.0) - share
        found.append(
            Change(key, "same", share, old.int8_share, loss, loss, loss, 0.0 if loss > 0 else 1.0, LEAST_SHARE)
        )
    return found


def _int8(run: Run | None) -> list[Record]:
    return [record for record in (run.exact if run else ()) if record.precision == "int8"]


def _key(record: Record, metric: str) -> Key:
    return Key(record.model, f"accuracy {metric}", record.isa, record.variant)


def _share_key(record: Record) -> Key:
    return Key(record.model, "INT8 share", record.isa, record.variant)


# --- speed


class _Timed(NamedTuple):
    """FP32 and INT8 of one case: a log ratio and an A/A log ratio for each process."""

    ratios: Array
    twins: Array

    @property
    def noise(self) -> float:
        """How far the A/A run's median may be from 1, by its 95% interval."""
        return float(np.abs(np.quantile(_medians(self.twins), [0.025, 0.975])).max())


def _speed(before: Run | None, after: Run) -> list[Change]:
    """The ratio to the same run's FP32, of the records that were measured in fresh processes."""
    known = dict(_timed(before))
    stolen = max((run.load.steal or 0.0 for run in (before, after) if run), default=0.0)
    found = []
    for key, new in _timed(after):
        ratio, old = float(np.exp(np.median(new.ratios))), known.get(key)
        if old is None:
            found.append(Change(key, "recorded", ratio, note="no baseline"))
            continue
        loss = 1 - np.exp(np.median(new.ratios) - np.median(old.ratios))
        drawn = 1 - np.exp(_medians(new.ratios, 1) - _medians(old.ratios, 2))
        low, high = np.quantile(drawn, [0.025, 0.975])
        p_value = scipy.stats.mannwhitneyu(new.ratios, old.ratios, alternative="less").pvalue
        least = max(LEAST_LOSS, _NOISE * new.noise, _NOISE * old.noise)
        noisy: Result = "INVALID" if stolen > STEAL else "same"
        note = f"{stolen:.0%} of the CPU time was stolen" if noisy == "INVALID" else ""
        found.append(
            Change(
                key, noisy, ratio, float(np.exp(np.median(old.ratios))), float(loss), float(low), float(high),
                float(p_value), least, note,
            )
        )  # fmt: skip
    return found


def _timed(run: Run | None) -> Iterable[tuple[Key, _Timed]]:
    records = run.timed if run else ()
    for fp32, int8 in zip(records[::2], records[1::2], strict=True):
        if int8.processes > 1 and int8.twin_s:
            slow, fast, twin = (
                np.reshape(values, (int8.processes, -1)) for values in (fp32.latency_s, int8.latency_s, int8.twin_s)
            )
            key = Key(
                int8.model, "speed", int8.isa, "", int8.threads, int8.batch, int8.repeat, int8.by_length
            )  # fmt: skip
            yield key, _Timed(np.median(np.log(slow / fast), axis=1), np.median(np.log(fast / twin), axis=1))


def _medians(values: Array, seed: int = 0) -> Array:
    """Medians of resamples."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    medians: Array = np.median(values[drawn], axis=1)
    return medians


def _corrected(changes: Sequence[Change]) -> dict[Key, float]:
    """p-values corrected for their number: those of accuracy and those of speed, by Benjamini and Hochberg.

    A model that answers every sample as before is no test that chance could pass or fail, so it doesn't count (Tarone).
    """
    found: dict[Key, float] = {}
    for kind in ("accuracy", "speed"):
        some = [c for c in changes if c.key.what.startswith(kind) and c.result != "recorded" and c.differs]
        if some:
            adjusted = scipy.stats.false_discovery_control([min(change.p_value, 1.0) for change in some], method="bh")
            found.update(zip((change.key for change in some), map(float, adjusted), strict=True))
    return found
