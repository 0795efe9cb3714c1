"""Small columns for tests, and what is in them."""

import numpy as np

from quant.datasets.columns import Ragged


def ragged(sizes: list[int], *inner: int) -> Ragged:
    """Sequences of these lengths that count from 1."""
    counter = iter(range(1, 10_000))
    return Ragged.of(
        [np.array([next(counter) for _ in range(size * int(np.prod(inner)))]).reshape(size, *inner) for size in sizes]
    )


def sequences(column: Ragged) -> list[list]:
    return [column.sequence(index).tolist() for index in range(len(column))]
