"""Give an op that reads the same input and the same weight as an earlier one a weight parameter of its own.

Paddle keeps oneDNN's kernels by the names of input and weight: two such ops, with other dilations or another activation
behind them, share the kernel of whichever ran first, in float32 and in INT8 (docs/paddle-faults.md).
"""

from quant.graph import Graph
from quant.passes.quantizers import WEIGHT_SLOT

__all__ = ["own_weights"]

_SLOTS = {**{type: slot for type, (slot, _) in WEIGHT_SLOT.items()}, "conv2d_transpose": "Filter"}


def own_weights(graph: Graph) -> Graph:
    """Outputs don't change. Not touched: ops whose input or weight is another one, or whose weight is computed."""
    known: set[tuple[str, str]] = set()
    names = graph.names()
    copies: dict[str, str] = {}  # new parameter -> what it is a copy of
    ops = []
    for op in graph.ops:
        slot = _SLOTS.get(op.type, "")
        weight = op.input(slot) if slot else ""
        key = (op.input("Input") or op.input("X"), weight)
        if weight in graph.params and key in known:
            name = names.fresh(f"{weight}.own")
            copies[name] = weight
            op = op.rewired({weight: name})
        known.add(key)
        ops.append(op)
    if not copies:
        return graph
    return graph.evolve(ops, params={name: graph.params[source] for name, source in copies.items()})
