"""Activations seen during calibration -> the threshold to quantise them with.

An observer takes batches one by one and keeps a bounded state: memory doesn't grow with the calibration set. What comes
out is the same however the samples are cut into batches.
The algorithms are those of the seeds' `quant_post_static`
(python/paddle/static/quantization/post_training_quantization.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

from quant.ir.numerics import dequantise, quantise

__all__ = ["ALGORITHMS", "BATCH_SIZE", "BEST", "DEFAULT", "PERCENTILE", "Choice", "Observer", "Sample", "choose"]

Array = NDArray[Any]

_BINS = 4096  # between half of them and all are below the largest magnitude
# What calibration does where nobody says, everywhere: command line, manifests, tuning, training, Python. Decided by
# measurement over all embedded rows: docs/calibration-defaults.md.
DEFAULT = "mse"
PERCENTILE = 0.99999  # of hist; Paddle's default hist_percent
BATCH_SIZE = 32  # samples read at a time


class Observer(Protocol):
    """Sees batches [N, ...]; then names a threshold, the largest magnitude to keep."""

    def update(self, batch: Array) -> None: ...

    def threshold(self) -> float: ...


class AbsMax:
    """The largest magnitude seen. (min_max is the same for the symmetric grids that oneDNN's kernels use.)"""

    def __init__(self, levels: int) -> None:
        self.peak = 0.0

    def update(self, batch: Array) -> None:
        self.peak = max(self.peak, float(max(batch.max(), -batch.min())))

    def threshold(self) -> float:
        return self.peak


class Average:
    """The mean over samples of each sample's largest magnitude."""

    def __init__(self, levels: int) -> None:
        self.total, self.count = 0.0, 0

    def update(self, batch: Array) -> None:
        peaks = np.abs(batch.reshape(len(batch), -1)).max(1)
        self.total += float(peaks.sum(dtype=np.float64))
        self.count += len(peaks)

    def threshold(self) -> float:
        return self.total / max(self.count, 1)


class _Histogram:
    """A histogram of magnitudes whose range doubles, by merging bins in pairs, when a larger value comes.

    The range ends at a power of two above the largest magnitude, `peak`. So bins merged are the bins that would have
    been, and neither the order of the samples nor their batches matter. Zeros aren't counted: every grid holds them
    exactly, and after a ReLU they would drown the rest.
    """

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.counts = np.zeros(_BINS)
        self.top = self.peak = 0.0

    def update(self, batch: Array) -> None:
        magnitudes = np.abs(batch[batch != 0])
        if magnitudes.size == 0:
            return
        self.peak = max(self.peak, float(magnitudes.max()))
        top = 2.0 ** math.frexp(self.peak)[1]
        if self.top == 0.0:
            self.top = top
        while top > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2)])
            self.top *= 2
        self.counts += np.histogram(magnitudes, _BINS, (0.0, self.top))[0]

    @property
    def edges(self) -> Array:
        return np.linspace(0.0, self.top, _BINS + 1)


class Percentile(_Histogram):
    """The magnitude below which 99.999% of the values lie (Paddle: hist)."""

    def threshold(self) -> float:
        below = np.cumsum(self.counts)
        if below[-1] == 0:
            return 0.0
        return min(float(self.edges[1 + np.searchsorted(below, PERCENTILE * below[-1])]), self.peak)


class LeastSquares(_Histogram):
    """The threshold with the least mean squared rounding and clipping error (Paddle: mse)."""

    def threshold(self) -> float:
        if self.top == 0.0:
            return 0.0
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        best, least = self.peak, np.inf
        for candidate in self.peak * np.linspace(0.2, 1.0, 161):
            step = candidate / self.levels
            error = np.minimum(np.rint(centres / step), self.levels) * step - centres
            loss = float((self.counts * (error**2 + step**2 / 12 * (centres < candidate))).sum())
            if loss < least:
                best, least = float(candidate), loss
        return best


class Entropy(_Histogram):
    """The threshold whose clipped, quantised histogram is nearest to the seen one in KL divergence (Paddle: KL).

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017.
    """

    def threshold(self) -> float:
        total = self.counts.sum()
        if total == 0:
            return 0.0
        filled = int(np.flatnonzero(self.counts)[-1]) + 1
        best, least = filled, np.inf
        for stop in range(min(self.levels + 1, filled), filled + 1, 8):
            seen = self.counts[:stop].copy()
            group = np.arange(stop) * (self.levels + 1) // stop
            occupied = np.bincount(group, seen > 0)
            spread = np.bincount(group, seen)[group] / np.maximum(occupied[group], 1) * (seen > 0)
            seen[-1] += self.counts[stop:].sum()  # what is clipped
            spread = np.where((spread == 0) & (seen > 0), 1e-9, spread)
            loss = float(scipy.special.rel_entr(seen / total, spread / spread.sum()).sum())
            if loss < least:
                best, least = stop, loss
        return min(float(self.edges[best]), self.peak)


ALGORITHMS: dict[str, Callable[[int], Observer]] = {
    "abs_max": AbsMax,
    "min_max": AbsMax,
    "avg": Average,
    "hist": Percentile,
    "KL": Entropy,
    "mse": LeastSquares,
}

BEST = "best"


class Sample:
    """A bounded sample of what one op reads, and what rounding it costs that op.

    `energy` [channels]: the sum of squared weights that each channel is multiplied with. An error e in channel k adds
    e^2 * energy[k] to the op's squared output error, errors of different channels taken as uncorrelated. So a channel
    with outliers that small weights make up for counts for little, though its own rounding error is large.

    Each row, or value, draws a number; those with the least are kept. So all that were seen have the same chance.
    """

    _ROWS, _VALUES = 4096, 1 << 18

    def __init__(self, energy: Array) -> None:
        self.energy = energy
        self.kept: tuple[Array, Array] | None = None  # numbers in ascending order, rows
        self.random = np.random.default_rng(0)

    def update(self, batch: Array) -> None:
        """`batch` [..., channels]; with one energy only, channels don't matter."""
        rows = batch.reshape(-1, len(self.energy)) if len(self.energy) > 1 else batch.reshape(-1, 1)
        limit = self._ROWS if len(self.energy) > 1 else self._VALUES
        drawn = self.random.random(len(rows))
        if self.kept is not None:
            held, bound = self.kept, self.kept[0][-1] if len(self.kept[0]) == limit else 1.0
            chosen = np.flatnonzero(drawn < bound)
            drawn, rows = np.concatenate([held[0], drawn[chosen]]), np.concatenate([held[1], rows[chosen]])
        order = np.argsort(drawn)[:limit]
        self.kept = drawn[order], rows[order]

    def cost(self, threshold: float, levels: int) -> float:
        """Squared output error of rounding with this threshold, as a share of the output's energy."""
        if threshold <= 0:
            return np.inf
        assert self.kept is not None
        _, rows = self.kept
        error = dequantise(quantise(rows, threshold, levels), threshold, levels) - rows
        signal = float((rows.astype(np.float64) ** 2 @ self.energy).sum())
        return float((error.astype(np.float64) ** 2 @ self.energy).sum()) / max(signal, 1e-300)


class Choice(NamedTuple):
    """The threshold of a tensor, and the algorithm it comes from."""

    algorithm: str
    threshold: float


def choose(candidates: Mapping[str, float], read: Sequence[Sample], levels: int) -> Choice:
    """The candidate (algorithm -> threshold) that costs the ops that read the tensor least, all of them together.

    Ties go to the earlier algorithm. Without a sample (a residual alone): least squares.
    """
    if not read:
        return Choice("mse", candidates["mse"])
    name = min(candidates, key=lambda name: sum(sample.cost(candidates[name], levels) for sample in read))
    return Choice(name, candidates[name])
