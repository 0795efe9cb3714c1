"""Give every column of an embedding table that feeds recurrent layers the range [-1, 1], that of their state.

    lookup(E) W = lookup(E / t) (t W),   t = abs-max of each column of E

A recurrent kernel has one grid for input and state. After this no entry of the table is clipped and every column uses
the whole grid (equalisation across layers: Nagel et al. 2019, section 4.1).
"""

from dataclasses import replace

import numpy as np

from quant.ir.fusion import LOOKUPS, RECURRENT
from quant.ir.graph import Graph, Op
from quant.ir.passes.quantizers import peaks_of

__all__ = ["equalise_embeddings"]


def equalise_embeddings(graph: Graph) -> Graph:
    """Rescale tables whose lookups are read only by products (`mul`) that feed gru or lstm.

    Of a table with other readers they read a copy.
    Not touched: a fetched lookup, a table whose columns have that range already.
    """
    readers, names = graph.readers(), graph.names()
    swap: dict[Op, Op] = {}
    for lookup in graph.ops:
        if lookup.type not in LOOKUPS or lookup.output("Out") in graph.fetches:
            continue
        table, products = lookup.input("W"), readers.get(lookup.output("Out"), [])
        if table not in graph.params or not products:
            continue
        if not all(_feeds_cell(graph, readers, op) and op.input("X") == lookup.output("Out") for op in products):
            continue
        if any(op.attr("weight_thresholds") for op in products) or not np.isfinite(graph.params[table]).all():
            continue
        peaks = peaks_of(table, graph.params[table], 1)
        if (peaks == 1).all():
            continue
        new_table = names.param(f"{table}.equalised", np.clip(graph.params[table] / peaks, -1, 1).astype(np.float32))
        swap[lookup] = replace(lookup, inputs={**lookup.inputs, "W": (new_table,)})
        for op in products:
            scaled = (graph.params[op.input("Y")] * peaks[:, None]).astype(np.float32)
            weight = names.param(f"{op.input('Y')}.equalised", scaled)
            swap[op] = replace(op, inputs={**op.inputs, "Y": (weight,)})
    return graph.evolve((swap.get(op, op) for op in graph.ops), params=names.params) if swap else graph


def _feeds_cell(graph: Graph, readers: dict[str, list[Op]], op: Op) -> bool:
    """mul [-> elementwise_add of a constant] -> gru or lstm."""
    if op.type != "mul" or op.input("Y") not in graph.params or op.attr("x_num_col_dims", 1) != 1:
        return False
    after = readers.get(op.output("Out"), [])
    if len(after) == 1 and after[0].type == "elementwise_add":
        after = readers.get(after[0].output("Out"), [])
    return len(after) == 1 and after[0].type in RECURRENT
