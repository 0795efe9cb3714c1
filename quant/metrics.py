"""Pure scores over a whole set, and statistics of paired outcomes.

FP32, simulated and INT8 runs see the same samples, so a drop is a paired difference: only the samples on which two
runs disagree carry information, and the interval comes from them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["METRICS", "Metric", "Paired", "Verdict", "paired", "ratio_interval", "sqnr", "verdict"]

Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Metric:
    """A score in 0..1, the mean of per-sample outcomes; higher is better."""

    unit: str
    outcomes: Callable[[NDArray[Any], NDArray[Any]], Hits]


def _top(count: int) -> Callable[[NDArray[Any], NDArray[Any]], Hits]:
    def outcomes(scores: NDArray[Any], labels: NDArray[Any]) -> Hits:
        """scores [N, classes], labels [N] -> [N]. Ties go to the lower class, as argmax does."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        hits: Hits = (order == labels[:, None]).any(1)
        return hits

    return outcomes


METRICS: dict[str, Metric] = {"top1": Metric("share of images", _top(1)), "top5": Metric("share of images", _top(5))}


def sqnr(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to quantization noise ratio in dB, 10 log10(|r|^2 / |r - o|^2); higher is better, inf when equal."""
    noise = float(np.sum((reference.astype(np.float64) - other) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


@dataclass(frozen=True)
class Paired:
    """A drop (before - after, as a share of the samples) with its 95% interval and McNemar's exact p-value."""

    samples: int
    lost: int  # right before, wrong after
    won: int  # wrong before, right after
    drop: float
    low: float
    high: float
    p_value: float


def paired(before: Hits, after: Hits) -> Paired:
    """Compare two runs over the same samples.

    Interval: Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998, method 10).
    p-value: two-sided exact binomial test on the discordant pairs (McNemar).
    """
    if before.shape != after.shape or not before.size:
        raise ValueError(f"paired outcomes of different or no samples: {before.shape} and {after.shape}")
    n = before.size
    both, lost = int((before & after).sum()), int((before & ~after).sum())
    won, neither = int((~before & after).sum()), int((~before & ~after).sum())
    p1, p2 = (both + lost) / n, (both + won) / n
    (l1, u1), (l2, u2) = _wilson(both + lost, n), _wilson(both + won, n)
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    cross = float(both * neither - lost * won)
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0
    drop = p1 - p2
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    p_value = float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return Paired(n, lost, won, drop, drop - math.sqrt(max(below, 0)), drop + math.sqrt(max(above, 0)), p_value)


def _wilson(successes: int, n: int) -> tuple[float, float]:
    interval = stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Verdict:
    """PASS, FAIL or INCONCLUSIVE by the interval; `on_point` is the answer of the point estimate alone.

    `needed` is about how many samples would decide an inconclusive case if the drop stayed what it is.
    """

    result: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    on_point: bool
    needed: int | None = None

    def __str__(self) -> str:
        if self.result != "INCONCLUSIVE":
            return self.result
        needs = f"needs about {self.needed:,}" if self.needed else "at the limit exactly"
        return f"{'pass' if self.on_point else 'fail'} on the point, INCONCLUSIVE ({needs})"


def verdict(drop: Paired, limit: float) -> Verdict:
    """PASS: the interval's upper bound is within `limit`; FAIL: its lower bound is beyond it."""
    if drop.high <= limit:
        return Verdict("PASS", True)
    if drop.low > limit:
        return Verdict("FAIL", False)
    distance = abs(limit - drop.drop)
    reach = drop.high - drop.drop if drop.drop <= limit else drop.drop - drop.low
    needed = math.ceil(drop.samples * (reach / distance) ** 2) if distance > 1e-9 else None
    return Verdict("INCONCLUSIVE", drop.drop <= limit, needed)


def ratio_interval(slow: NDArray[Any], fast: NDArray[Any], seed: int = 0) -> tuple[float, float, float]:
    """Median of the per-round ratios slow / fast and its bootstrap 95% interval: (ratio, low, high).

    Round i of both ran one after the other, so a change of the machine's speed meets both.
    """
    ratios = np.asarray(slow, np.float64) / np.asarray(fast, np.float64)
    random = np.random.default_rng(seed)
    medians = np.median(ratios[random.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)
