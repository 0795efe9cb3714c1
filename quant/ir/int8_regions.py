"""INT8 islands: groups of INT8 ops that hand each other int8 values, between quantize and dequantize ops.

What an island gains lies inside; what it costs lies at its borders. Pure functions on graphs.
"""

from dataclasses import dataclass

from quant.ir.fusion import CONVS, PRODUCTS, RECURRENT, chains_of
from quant.ir.graph import Graph, Op
from quant.ir.ops.arithmetic import MULTIPLY

__all__ = ["Island", "int8_op", "islands", "weighted_before", "why_float"]

_INTEGERS = ("int8", "uint8")


def int8_op(op: Op) -> bool:
    return bool(op.attr("mkldnn_data_type") == "int8")


@dataclass(frozen=True, eq=False)
class Island:
    """INT8 ops in program order, the quantize ops that their values come from, the dequantize ops that these go to."""

    ops: tuple[Op, ...]
    enter: tuple[Op, ...]
    leave: tuple[Op, ...]


def islands(graph: Graph) -> tuple[Island, ...]:
    """The islands of a converted graph, in the order of their first ops.

    Ops that read or write one int8 variable belong together. A kernel may write float32 itself, and read a float32
    addend; that is no border, as no op converts anything there.
    """

    def values(op: Op) -> list[str]:
        names = (name for name in (*op.reads, *op.writes) if name in graph.vars and name not in graph.params)
        return [name for name in names if graph.vars[name].dtype in _INTEGERS]

    group: dict[str, set[str]] = {}  # int8 variable -> the variables of its island, one set for all of them
    members = [op for op in graph.ops if int8_op(op)]
    for op in members:
        joined = set(values(op)).union(*(group[name] for name in values(op) if name in group))
        group.update(dict.fromkeys(joined, joined))
    found: dict[int, tuple[list[Op], list[Op], list[Op]]] = {}
    for op in graph.ops:
        own = [name for name in values(op) if name in group]
        place = 0 if op in members else 1 if op.type == "quantize" else 2 if op.type == "dequantize" else None
        if own and place is not None:
            found.setdefault(id(group[own[0]]), ([], [], []))[place].append(op)
    order = {op: number for number, op in enumerate(graph.ops)}
    result = [Island(tuple(ops), tuple(enter), tuple(leave)) for ops, enter, leave in found.values()]
    return tuple(sorted(result, key=lambda island: order[island.ops[0]]))


def weighted_before(graph: Graph, op: Op) -> Op | None:
    """The op that multiplies, for an op that Paddle's passes may have fused it with: itself or the nearest before it.

    Followed is the way without a choice: through the one input that isn't a parameter, or the first of several.
    """
    writers = graph.writers()
    while op.type not in MULTIPLY:
        before = [writers[name] for name in op.reads if name in writers]
        if not before:
            return None
        op = next((other for other in before if other.type in MULTIPLY), before[0])
    return op


def why_float(graph: Graph, op: Op) -> str:
    """Why an op that multiplies is float32 in a converted graph, as far as that graph tells."""
    if op.type not in (*CONVS, *PRODUCTS, *RECURRENT):
        return f"there is no INT8 kernel for {op.type}"
    if op.type in RECURRENT:
        return "no INT8 kernel for its form, or it wasn't fake-quantized"
    chain = chains_of(graph, {op}).get(op)
    if chain is None:
        return "no INT8 kernel for its layout, transposition or weight shape"
    if chain.other:
        return "a product of two activations that weren't both fake-quantized, or left out on converting"
    return "it wasn't fake-quantized, or left out on converting"
