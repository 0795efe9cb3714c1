"""Names that one rewrite of a graph gives out: none that the graph has, and none twice.

One allocator a rewrite, because a graph learns of new names only when the rewrite is done: two ops that read one
parameter would otherwise be given one name for what becomes of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Names"]


class Names:
    """What a rewrite adds to a graph whose variables are called `taken`. Made by `Graph.names()`; for one thread.

    `params`: the parameters that `param` was given, as `Graph.evolve` takes them.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._next: Counter[str] = Counter()
        self._of_stem: defaultdict[str, list[str]] = defaultdict(list)
        self.params: dict[str, NDArray[Any]] = {}

    def fresh(self, stem: str) -> str:
        """`stem`, or where that is taken `stem` and a number."""
        name = stem
        while name in self._taken:
            name = f"{stem}.{self._next[stem]}"
            self._next[stem] += 1
        self._taken.add(name)
        return name

    def param(self, stem: str, value: NDArray[Any]) -> str:
        """The name of a new parameter of this value: that of an earlier one of this stem, if it has the same bits."""
        for name in self._of_stem[stem]:
            if _same_bits(self.params[name], value):
                return name
        name = self.fresh(stem)
        self.params[name] = value
        self._of_stem[stem].append(name)
        return name


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays are of one shape and type, and equal bit by bit: 0 isn't -0, and NaN may be NaN."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return one is other or np.array_equal(_bytes(one), _bytes(other))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
