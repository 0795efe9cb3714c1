"""Columns of samples, of unequal length too: what readers give out, models read and metrics score."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quant.storage.files import fresh_file

__all__ = [
    "DAMAGE",
    "Array",
    "Column",
    "Dataset",
    "Padded",
    "Ragged",
    "Signature",
    "joined",
    "offsets_of",
    "staged",
    "values_of",
]

Array = NDArray[Any]
# What NumPy and zipfile raise of a damaged .npz: their own, and what lies about sizes and formats comes to.
DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
# Model input -> (shape of one sample with -1 for open dimensions, dtype), in the model's order.
Signature = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of unequal length, one behind the other: values [sum of lengths, ...], offsets int64 [N + 1]."""

    values: Array
    offsets: Array

    @staticmethod
    def of(sequences: Sequence[Array]) -> "Ragged":
        """At least one sequence [length, ...]; all share what follows the length."""
        return Ragged(np.concatenate(sequences), offsets_of([len(sequence) for sequence in sequences]))

    @staticmethod
    def join(parts: Sequence["Ragged"]) -> "Ragged":
        """The sequences of all parts (at least one), in order."""
        return Ragged(
            np.concatenate([part.values for part in parts]),
            offsets_of(np.concatenate([part.lengths for part in parts])),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, part: slice) -> "Ragged":
        """Some of the sequences; their values are a view."""
        start, stop = _bounds(part, len(self))
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    @property
    def lengths(self) -> Array:
        """int64 [N]."""
        return np.diff(self.offsets)

    def sequence(self, index: int) -> Array:
        """The values of one sequence, counted from 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, order: Array) -> "Ragged":
        """The sequences at the places `order`, int64 [n], as a copy."""
        lengths = self.lengths[order]
        offsets = offsets_of(lengths)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[order] - offsets[:-1], lengths)
        return Ragged(self.values[places], offsets)

    def record(self, place: int) -> int:
        """The number, counted from 1, of the sequence that `values[place]` belongs to."""
        return int(np.searchsorted(self.offsets, place, side="right"))


@dataclass(frozen=True, eq=False)
class Padded:
    """The same, but a slice is dense: [n, longest of the slice, ...], filled up with zeros."""

    ragged: Ragged

    def __len__(self) -> int:
        return len(self.ragged)

    def __getitem__(self, part: slice) -> Array:
        some = self.ragged[part]
        lengths = some.lengths
        longest = int(lengths.max(initial=0))
        dense = np.zeros((len(some), longest, *some.values.shape[1:]), some.values.dtype)
        dense[np.arange(longest) < lengths[:, None]] = some.values
        return dense


Column = Array | Ragged


def values_of(column: Column) -> Array:
    """The numbers of a column, [N, ...]; of sequences [sum of lengths, ...]."""
    return np.asarray(column.values if isinstance(column, Ragged) else column)


def joined(parts: Sequence[Column]) -> Column:
    """The samples of all parts (at least one), in order; the parts are of one kind."""
    ragged = [part for part in parts if isinstance(part, Ragged)]
    return Ragged.join(ragged) if ragged else np.concatenate([values_of(part) for part in parts])


@dataclass(frozen=True)
class Dataset:
    """`inputs`: model input -> column of N samples; `labels`: int64 [N], or int64 sequences, or None."""

    path: Path
    inputs: Mapping[str, Column | Padded]
    labels: Column | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def _bounds(part: slice, count: int) -> tuple[int, int]:
    if not isinstance(part, slice):  # else Python's fallback iteration and NumPy would ask for items, and loop or guess
        raise TypeError(f"sequences are taken by slices, not by {part!r}; sequence(i) gives one")
    start, stop, step = part.indices(count)
    if step != 1:
        raise ValueError(f"a slice of sequences has step 1, not {step}")
    return start, max(start, stop)


def offsets_of(lengths: ArrayLike) -> Array:
    """Lengths [N] -> offsets int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@contextmanager
def staged(path: Path) -> Iterator[IO[bytes]]:
    """An open file that becomes `path` when the block ends well; on an error nothing is left. Raises OutputError."""
    with fresh_file(path) as staging, staging.open("wb") as file:
        yield file
