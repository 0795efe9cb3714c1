"""How far one tensor is from another, summed up part by part, and what kind of difference that is."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_DB", "Errors", "Gap", "Range"]

Array = NDArray[Any]

MOST_DB = 150.0  # float32 shows no smaller difference
_PIECE = 1024
_EXPLAINED = 0.8  # share of the error's energy from which on an explanation counts as one
_NOTICEABLE = 0.01  # a factor this near to 1 explains nothing


def by_channel(values: Array, axis: int | None) -> Array:
    """[channels, the rest]; one row without an axis of channels."""
    if axis is None:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _dot(a: Array, b: Array) -> float:
    """In float32 over pieces that are summed in float64: a third of the time of converting both, and as exact as that
    needs to be."""
    whole = len(a) // _PIECE * _PIECE
    pieces = np.einsum("ij,ij->i", a[:whole].reshape(-1, _PIECE), b[:whole].reshape(-1, _PIECE))
    return float(pieces.sum(dtype=np.float64)) + float(np.einsum("i,i", a[whole:], b[whole:]))


class Gap:
    """Sums over pairs of a reference and what stands for it."""

    def __init__(self) -> None:
        self.signal = self.noise = self.product = self.energy = 0.0

    def add(self, reference: Array, other: Array) -> None:
        before, after = reference.reshape(-1), other.reshape(-1)
        error = after - before
        self.signal += _dot(before, before)
        self.energy += _dot(after, after)
        self.product += _dot(before, after)
        self.noise += _dot(error, error)

    @property
    def db(self) -> float | None:
        """SQNR, 10 log10(|r|^2 / |r - o|^2), at most MOST_DB; None without a signal, or with NaN or Inf."""
        if not self.signal or not math.isfinite(self.noise):
            return None
        return min(10 * math.log10(self.signal / max(self.noise, 1e-300)), MOST_DB)

    @property
    def cosine(self) -> float | None:
        norm = math.sqrt(self.signal * self.energy)
        return self.product / norm if norm and math.isfinite(norm) else None


class Range:
    """Smallest and largest value, share of magnitudes above a threshold, and each channel's largest magnitude."""

    def __init__(self, threshold: float | None, axis: int | None) -> None:
        self.threshold, self.axis = threshold, axis
        self.low, self.high = math.inf, -math.inf
        self.beyond = self.count = 0
        self.clipped = 0.0  # sum of squares of what lies beyond the threshold
        self.peaks: Array = np.zeros(0)

    def add(self, values: Array) -> None:
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.count += values.size
        magnitudes = np.abs(by_channel(values, self.axis))
        if self.threshold is not None and max(-self.low, self.high) > self.threshold:
            beyond = magnitudes[magnitudes > self.threshold] - self.threshold
            self.beyond += beyond.size
            self.clipped += float(beyond @ beyond)
        peaks = magnitudes.max(1)
        self.peaks = np.maximum(self.peaks, peaks) if self.peaks.size else peaks

    @property
    def outlier(self) -> tuple[int, float] | None:
        """The channel of the largest magnitude, and how many times as far as the upper quartile of channels it reaches.

        The quartile, because a layer of which half is dead has no outlier for that.
        """
        if self.peaks.size < 4 or not (usual := float(np.quantile(self.peaks, 0.75))):
            return None
        channel = int(self.peaks.argmax())
        return channel, float(self.peaks[channel]) / usual


class Errors(Gap):
    """What an op gives out against what it should, channel by channel.

    Fits leave out values at the ends of the range, which say little of a factor.
    """

    def __init__(self, axis: int | None) -> None:
        super().__init__()
        self.axis = axis
        self.sums: Array = np.zeros((0, 6))  # a channel: count, due, found, due^2, due found, found^2 of free values
        self.channel_noise: Array = np.zeros(0)
        self.residual = np.zeros(3)  # error residual, residual^2, error^2 of free values
        self.lost = 0.0  # error where a negative value came out as none

    def compare(
        self,
        due: Array,
        found: Array,
        bounds: tuple[float, float],
        step: float,
        residual: Array | None = None,
    ) -> None:
        """Add a part. `bounds`: the least and the largest value that can be stored; `step`: of the grid, 0 for none."""
        self.add(due, found)
        x = by_channel(due, self.axis).astype(np.float64)
        y = by_channel(found, self.axis).astype(np.float64)
        error = y - x
        low, high = bounds[0] + step / 2, bounds[1] - step / 2
        free = (x > low) & (x < high) & (y > low) & (y < high) & ((x != 0) | (y != 0))
        noise = np.einsum("ij,ij->i", error, error)
        self.lost += float((error[(x < -step) & (y >= 0)] ** 2).sum())
        x, y, error = x * free, y * free, error * free
        products = [np.einsum("ij,ij->i", *pair) for pair in ((x, x), (x, y), (y, y))]
        sums = np.stack([free.sum(1), x.sum(1), y.sum(1), *products], axis=1)
        self.sums = self.sums + sums if len(self.sums) else sums
        self.channel_noise = self.channel_noise + noise if len(self.channel_noise) else noise
        if residual is not None and residual.shape == due.shape:
            r = by_channel(residual, self.axis).astype(np.float64) * free
            self.residual += [float((error * r).sum()), float((r * r).sum()), float((error * error).sum())]

    def explain(self) -> str:
        """The simplest kind of difference that most of the error is."""
        if self.noise == 0:
            return ""
        if self.lost > _EXPLAINED * self.noise:
            return "negative values come out as zero or above: stored or read without a sign"
        count, x, y, xx, xy, yy = self.sums.T
        n = np.maximum(count, 1)
        spread = xx - x * x / n
        slopes = np.where(spread > 0, (xy - x * y / n) / np.where(spread > 0, spread, 1), 1.0)
        offsets = (y - slopes * x) / n
        worst = int(self.channel_noise.argmax())
        channels = len(self.channel_noise)
        if channels >= 4 and self.channel_noise[worst] > _EXPLAINED * self.noise:
            share = self.channel_noise[worst] / self.noise
            about = f"channel {worst} of {channels} has {100 * share:.0f}% of the error"
            if abs(slopes[worst] - 1) > 0.05:
                return f"{about}: its values are {slopes[worst]:.3g} times what they should be"
            return f"{about}: its values are off by {offsets[worst]:+.3g}"
        error = float((yy - 2 * xy + xx).sum())  # of the free values
        if error <= 0:
            return "all of the error lies at the ends of the range"
        factor = float(xy.sum() / xx.sum()) if xx.sum() else 1.0
        left = {"factor": float((yy - 2 * factor * xy + factor * factor * xx).sum())}
        if self.residual[1]:
            extra = float(self.residual[0] / self.residual[1])
            left["residual"] = float(self.residual[2] - extra * self.residual[0])
        left["offset"] = error - float(((y - x) ** 2 / n).sum())
        left["channels"] = float((yy - 2 * slopes * xy - 2 * offsets * y).sum()) + float(
            (slopes**2 * xx + 2 * slopes * offsets * x + offsets**2 * count).sum()
        )
        simple = {kind: rest for kind, rest in left.items() if kind != "channels"}
        kind = min(simple, key=lambda name: simple[name])
        if left[kind] > (1 - _EXPLAINED) * error:
            kind = "channels" if left["channels"] < (1 - _EXPLAINED) * error else ""
        if kind == "factor" and abs(factor - 1) > _NOTICEABLE:
            return f"all values are {factor:.3g} times what they should be"
        if kind == "residual":
            return f"its residual counts {1 + extra:.3g} times what it should"
        if kind == "offset":
            shift = np.abs(y - x) / n
            return f"whole channels are shifted, by up to {shift.max():.3g}: their bias"
        if kind == "channels":
            order = np.argsort(-np.abs(slopes - 1))[:3]
            some = ", ".join(f"{channel}: {slopes[channel]:.3g}" for channel in order)
            return f"whole channels are scaled or shifted (factors of channels {some})"
        return "no common factor, offset, channel or residual explains it: kernel, layout or weights"
