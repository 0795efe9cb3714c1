"""Compute once what ops compute from parameters alone, so that a weight or bias is a parameter where it is read.

A Conv1D of Paddle reads its weight [O, I, K] through assign and unsqueeze2; other exporters transpose, cast, scale or
slice. What reads such a tensor has no constant weight then, and stays float32.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.ir.constants import COMPUTABLE, computed
from quant.ir.graph import Graph, Op

__all__ = ["fold_parameters"]


def fold_parameters(graph: Graph) -> Graph:
    """Reshapes, transposes, casts, scales, slices, concat and elementwise arithmetic of parameters become parameters,
    each under the name of what the op wrote: a parameter that others read stays as it is.

    A constant of the program (fill_constant) counts as one beside a parameter; alone it stays an op.
    Not touched: a tensor that is fetched or written twice, and what depends on parameters whose values are unknown
    (as those of a program that hasn't been run).
    """
    writes = Counter(name for op in graph.ops for name in op.writes)
    values: dict[str, NDArray[Any]] = {
        name: array for name, array in graph.params.items() if array.shape == graph.vars[name].shape
    }
    filled: set[str] = set()
    params: dict[str, NDArray[Any]] = {}
    gone: set[Op] = set()
    for op in graph.ops:
        out = op.output("Out")
        if op.type not in COMPUTABLE or out in graph.fetches or writes[out] > 1 or out in graph.params:
            continue
        if not all(name in values for name in op.reads):
            continue
        try:
            value = computed(op, values.__getitem__)
        except (ValueError, IndexError):  # sizes that don't go together: for Paddle to refuse
            continue
        if value is None:
            continue
        values[out] = value
        if filled.issuperset(op.reads):
            filled.add(out)
        else:
            params[out] = np.asarray(value)
            gone.add(op)
    if not gone:
        return graph
    read = {name for op in graph.ops if op not in gone for name in op.reads} | set(graph.fetches)
    dead = {op for op in graph.ops if filled.issuperset(op.writes) and op.writes and read.isdisjoint(op.writes)}
    return graph.evolve((op for op in graph.ops if op not in gone and op not in dead), params=params)
