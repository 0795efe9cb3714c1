"""What a converted graph leaves between its INT8 ops: float32 ops, and bytes that change their type. Pure functions.

The share of multiply-accumulates can be 100% where a batch norm and a ReLU in float32 stand behind each convolution:
they multiply next to nothing, but each costs two passes over memory, and conversions beside it.
"""

import math
from collections.abc import Mapping, Sequence

from quant.diagnosis.advice import Crossings
from quant.ir.fusion import MOVES, is_move
from quant.ir.graph import Graph, Op
from quant.ir.int8_regions import int8_op, why_float
from quant.ir.ops.activations import conv_activation, fc_activation
from quant.ir.ops.arithmetic import MULTIPLY
from quant.results.record import Between

__all__ = ["crossings_of"]

_BORDERS = ("quantize", "dequantize")
_KERNELS = {"fused_conv2d", "fc", "fused_matmul"}


def crossings_of(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> Crossings:
    """`shapes`: of variables, as far as they are known; open dimensions of others count once."""
    writers, readers = graph.writers(), graph.readers()
    constants = set(graph.params)
    for op in graph.ops:
        if op.reads and constants.issuperset(name for name in op.reads if name):
            constants.update(op.writes)

    def moved(op: Op) -> int:
        return sum(_bytes(graph, name, shapes) for name in (*op.reads, *op.writes) if name not in constants)

    behind: set[str] = set()
    for op in graph.ops:
        if int8_op(op) or behind.intersection(op.reads):
            behind.update(name for name in op.writes if name not in constants)
    ahead: set[str] = set()
    for op in reversed(graph.ops):
        if int8_op(op) or ahead.intersection(op.writes):
            ahead.update(name for name in op.reads if name not in constants)
    floats = [
        op
        for op in graph.ops
        if not int8_op(op)
        and op.type not in _BORDERS
        and behind.intersection(op.reads)
        and ahead.intersection(op.writes)
    ]
    found = (
        Between(
            op.type, next(name for name in op.writes if name in ahead), moved(op), _why(graph, writers, readers, op)
        )
        for op in floats
    )
    borders = sum(moved(op) for op in graph.ops if op.type in _BORDERS)
    return Crossings(tuple(sorted(found, key=lambda entry: -entry.bytes)), borders)


def _bytes(graph: Graph, name: str, shapes: Mapping[str, Sequence[int]]) -> int:
    if name not in graph.vars:
        return 0
    shape, dtype = shapes.get(name, graph.vars[name].shape), graph.vars[name].dtype
    width = 1 if dtype in ("int8", "uint8", "bool") else 8 if dtype in ("int64", "float64") else 4
    return width * math.prod(max(size, 1) for size in shape)


def _why(graph: Graph, writers: Mapping[str, Op], readers: Mapping[str, list[Op]], op: Op) -> str:
    """The pass or rule that would have taken a float32 op, and why it didn't, as far as the graph shows."""
    if op.type in MULTIPLY:
        return f"chains_of: {why_float(graph, op)}"
    if op.type == "pool2d" and op.attr("pooling_type") != "max":
        return "is_move: an average would be rounded, which the simulation doesn't do"
    if op.type in MOVES:
        form = "its inputs are not int8 on one grid" if is_move(op) else "no int8 kernel for this form of it"
        return f"hoist_quantizers: {form}"
    if op.type == "batch_norm":
        return f"fold_batch_norm: {_behind(writers, readers, op)}"
    if op.type == "elementwise_add":
        return f"chains_of: neither a bias nor a residual: {_behind(writers, readers, op)}"
    if conv_activation(op) is not None or fc_activation(op) is not None:
        return f"chains_of: {_behind(writers, readers, op)}"
    return f"no pass takes {op.type} into an INT8 kernel"


def _behind(writers: Mapping[str, Op], readers: Mapping[str, list[Op]], op: Op) -> str:
    """What an op that a kernel could take over stands behind."""
    name = op.input("X")
    while name in writers and writers[name].type == "dequantize":
        name = writers[name].input("Input")
    if name not in writers:
        return "it reads the model's input"
    writer = writers[name]
    others = [other for other in readers.get(name, []) if other.type not in _BORDERS and other is not op]
    if others:
        return f"what it reads, of {writer.type}, is also read by {others[0].type} {others[0].writes[0]!r}"
    if writer.type not in _KERNELS or not int8_op(writer):
        return f"it stands behind {writer.type} in float32, not behind an INT8 kernel"
    done = next((key for key in ("fuse_activation", "activation_type") if writer.attr(key)), None)
    return f"the kernel before it, {writer.type}, " + (
        "has an activation" if done else "doesn't match in form or layout"
    )
