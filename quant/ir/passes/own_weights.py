"""Give an op that reads the same input and the same weight as an earlier one a weight parameter of its own.

Paddle keeps oneDNN's kernels by the names of input and weight: two such ops, with other dilations or another activation
behind them, share the kernel of whichever ran first, in float32 and in INT8 (docs/paddle-faults.md). That of a
recurrent layer goes by its product's input and its state's weight (fusion_gru_kernel.cc, fusion_lstm_kernel.cc). And
fc_gru_fuse_pass adds the product's bias to the layer's where that lies: once for each layer that shares it.
"""

from collections.abc import Mapping
from dataclasses import replace

from quant.ir.fusion import RECURRENT
from quant.ir.graph import Graph, Op
from quant.ir.passes.quantizers import WEIGHT_SLOT

__all__ = ["own_weights"]

_SLOTS = {
    **{type: slot for type, (slot, _) in WEIGHT_SLOT.items()},
    **dict.fromkeys(RECURRENT, "Weight"),
    "conv2d_transpose": "Filter",
}


def own_weights(graph: Graph) -> Graph:
    """Outputs don't change. Layers that share a bias get one each.

    Not touched: ops whose input or weight is another one, or whose weight is computed.
    """
    known: set[tuple[str, str]] = set()
    names, writers = graph.names(), graph.writers()
    copies: dict[str, str] = {}  # new parameter -> what it is a copy of
    ops = []
    for op in graph.ops:
        for slot, data in _read_beside(op, writers).items():
            shared = op.input(slot)
            if shared in graph.params and (data, shared) in known:
                name = names.fresh(f"{shared}.own")
                copies[name] = shared
                op = replace(op, inputs={**op.inputs, slot: (name,)})
            known.add((data, shared))
        ops.append(op)
    if not copies:
        return graph
    return graph.evolve(ops, params={name: graph.params[source] for name, source in copies.items()})


def _read_beside(op: Op, writers: Mapping[str, Op]) -> dict[str, str]:
    """Slot of a parameter -> the input with which no other op may read it; "": none may, whatever else it reads."""
    if op.type not in _SLOTS:
        return {}
    data = op.input("Input") or op.input("X")
    if op.type not in RECURRENT:
        return {_SLOTS[op.type]: data}
    for type in ("elementwise_add", "mul"):  # back to what the layer's kernel multiplies
        before = writers.get(data)
        data = before.input("X") if before is not None and before.type == type else data
    return {_SLOTS[op.type]: data, "Bias": ""}
