"""What is odd about input data as a whole: all zero, constant, all samples alike, not scaled as images usually are."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from quant.datasets.columns import Array, Column, Dataset, Padded, Ragged
from quant.datasets.readers import batches
from quant.errors import DataError

__all__ = ["calibrating", "digests", "remarks"]

_BATCH = 100
_PIXELS = (16, 255)  # the largest value, where all are whole numbers from 0 on
_SMALL = 16  # values of a sample: beside other inputs a size or a scale, which may well be the same everywhere


def remarks(data: Dataset, count: int | None = None) -> list[str]:
    """A line for each thing that is odd about the first `count` samples; files that are right have none."""
    ranges, found = _ranges(data, count), []
    for name, seen in ranges.items():
        if seen.each < _SMALL and len(ranges) > 1:
            continue
        if seen.low == seen.high:
            found.append(f"{data.path}: every value of input {name!r} is {seen.low:g}")
        elif seen.whole and seen.low >= 0 and _PIXELS[0] <= seen.high <= _PIXELS[1]:
            found.append(
                f"{data.path}: input {name!r} has whole numbers from {seen.low:g} to {seen.high:g}, as pixels "
                f"that were not normalized have: is that what the model reads?"
            )
    alike = {digest for _, digest in zip(range(len(data) if count is None else count), digests(data), strict=False)}
    total = min(len(data), count or len(data))
    if len(alike) == 1 and total > 1:
        found.append(f"{data.path}: all {total} samples are the same")
    elif 2 * len(alike) < total:
        found.append(f"{data.path}: of {total} samples only {len(alike)} differ")
    return found


def calibrating(data: Dataset, count: int | None = None) -> list[str]:
    """The remarks on data to calibrate with. Raises DataError where no range can be learned: all numbers are 0."""
    ranges = _ranges(data, count)
    if ranges and all(seen.low == seen.high == 0 for seen in ranges.values()):
        raise DataError(f"{data.path}: every value of {' and '.join(map(repr, ranges))} is 0: that calibrates nothing")
    return remarks(data, count)


@dataclass
class _Range:
    low: float = np.inf
    high: float = -np.inf
    whole: bool = True
    each: int = 0  # values of a sample, or of a step of a sequence

    def add(self, values: Array) -> None:
        self.each = values[0].size
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.whole = self.whole and bool((values == np.rint(values)).all())


def _ranges(data: Dataset, count: int | None) -> dict[str, _Range]:
    """Of the inputs of real numbers, by name; padding apart."""
    found: dict[str, _Range] = {}
    left = len(data) if count is None else count
    for batch in batches(Dataset(data.path, _unpadded(data), None), _BATCH):
        for name, column in batch.items():
            some = column[: max(left, 0)]
            values = np.asarray(some.values if isinstance(some, Ragged) else some)
            if values.dtype.kind == "f" and values.size:
                found.setdefault(name, _Range()).add(values)
        left -= _BATCH
        if left <= 0:
            break
    return found


def digests(data: Dataset) -> Iterator[bytes]:
    """A hash of the inputs of each sample."""
    for batch in batches(Dataset(data.path, _unpadded(data), None), _BATCH):
        for number in range(len(next(iter(batch.values())))):
            total = sha256()
            for column in batch.values():
                values = np.asarray(column.sequence(number) if isinstance(column, Ragged) else column[number])
                total.update(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
            yield total.digest()


def _unpadded(data: Dataset) -> dict[str, Column]:
    """Columns whose samples don't depend on their neighbours' lengths."""
    return {name: column.ragged if isinstance(column, Padded) else column for name, column in data.inputs.items()}
