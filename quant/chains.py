"""Which ops one INT8 kernel takes over: convolution or fully connected, bias, residual add, activation.

Calibration and conversion both read a graph through this module, so what is simulated as one op is fused as one op.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from quant.errors import OptionError, check_choice
from quant.graph import Graph, Op

__all__ = [
    "CONVS",
    "PRODUCTS",
    "QUANTIZABLE",
    "Chain",
    "chains_of",
    "chosen_ops",
    "graph_macs",
    "is_move",
    "numbered",
    "row_dims",
]

CONVS = ("conv2d", "depthwise_conv2d")
PRODUCTS = ("mul", "matmul", "matmul_v2", "fc")

# Ops that only carry values: the same numbers (or the largest of some) come out, so they commute exactly with
# quantisation to one scale. Average pooling isn't one: its mean would be rounded where the simulation rounds nothing.
MOVES = ("pool2d", "concat", "reshape2", "transpose2", "flatten_contiguous_range", "flatten2", "squeeze2", "unsqueeze2")

# What the seeds call quantizable, plus the newer names of the same ops.
QUANTIZABLE = (*CONVS, *PRODUCTS, "scale", *MOVES)


def is_move(op: Op) -> bool:
    return op.type in MOVES and (op.type != "pool2d" or op.attr("pooling_type") == "max")


def numbered(graph: Graph) -> dict[Op, int]:
    """Op ids: the quantizable ops in program order, counted from 0. The same in a model and its simulation."""
    return {op: number for number, op in enumerate(op for op in graph.ops if op.type in QUANTIZABLE)}


def chosen_ops(graph: Graph, types: Collection[str], skip: Collection[int]) -> set[Op]:
    """The ops that a user's `ops_to_quantize` (empty: all) and `op_ids_to_skip` leave."""
    for name in types:
        check_choice("op type", name, QUANTIZABLE)
    ids = numbered(graph)
    for number in skip:
        if number not in ids.values():
            raise OptionError(f"unknown op id {number}; this model's quantizable ops are 0 to {len(ids) - 1}")
    wanted = {"mul", "matmul", "matmul_v2", "fc", *types} if {"mul", "matmul", "fc"} & set(types) else set(types)
    return {op for op, number in ids.items() if number not in skip and (not types or op.type in wanted)}


@dataclass(frozen=True, eq=False)
class Chain:
    """A weighted op and the ops behind it that its kernel can take over.

    `data`, `weight` and `residual` are variable names ("" when absent), `ops` run from the weighted op to the last
    one taken over, and `out` is what that one writes.
    """

    ops: tuple[Op, ...]
    data: str
    weight: str
    bias: str
    residual: str
    activation: str  # "", "relu" or "relu6"
    out: str

    @property
    def op(self) -> Op:
        return self.ops[0]

    @property
    def stores_unsigned(self) -> bool:
        """Whether its kernel stores a rounded output as uint8.

        `fc` does so only by `activation_type`, and two such ops in a row are taken for fusion_repeated_fc_relu by a
        predictor's own passes, an op without an INT8 kernel; so its ReLU is a post-op, and its output int8.
        """
        return bool(self.activation) and self.op.type in CONVS


def chains_of(graph: Graph, allowed: Collection[Op]) -> dict[Op, Chain]:
    """Weighted op -> its chain, for the ops in `allowed` that a kernel exists for.

    When both sides of an addition could take it over, the later convolution does: the other's value is there by then.
    """
    readers = graph.readers()
    place = {op: index for index, op in enumerate(graph.ops)}

    def only_reader(name: str) -> Op | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in graph.fetches else None

    heads = {op: head for op in graph.ops if op in allowed and (head := _head(graph, op, only_reader(op.writes[0])))}
    wants: dict[Op, Op] = {}  # addition -> the weighted op that takes it over
    for op, chain in heads.items():
        add = only_reader(chain.out)
        if add is None or op.type not in CONVS or not _is_residual(graph, add):
            continue
        if add not in wants or place[op] > place[wants[add]]:
            wants[add] = op
    result = {}
    for op, chain in heads.items():
        ops, out, residual = list(chain.ops), chain.out, ""
        add = only_reader(out)
        if add is not None and wants.get(add) is op:
            residual = next(name for name in (add.input("Y"), add.input("X")) if name != out)
            ops, out = [*ops, add], add.output("Out")
        act, activation = only_reader(out), ""
        if act is not None and act.type in ("relu", "relu6") and (op.type in CONVS or act.type == "relu"):
            ops, out, activation = [*ops, act], act.output("Out"), act.type
        result[op] = Chain(tuple(ops), chain.data, chain.weight, chain.bias, residual, activation, out)
    return result


def _head(graph: Graph, op: Op, after: Op | None) -> Chain | None:
    """The weighted op with its bias, or None when no INT8 kernel fits it."""
    if op.type in CONVS:
        data, weight, out = op.input("Input"), op.input("Filter"), op.output("Output")
        fits = op.attr("data_format", "NCHW") in ("NCHW", "AnyLayout") and len(graph.vars[weight].shape) == 4
        bias_axes: tuple[int, ...] = (1,)
    elif op.type in PRODUCTS:
        slots = ("Input", "W") if op.type == "fc" else ("X", "Y")
        data, weight, out = op.input(slots[0]), op.input(slots[1]), op.output("Out")
        rank = len(graph.vars[data].shape)
        plain = not any(op.attr(name, False) for name in ("trans_x", "trans_y", "transpose_X", "transpose_Y"))
        fits = plain and len(graph.vars[weight].shape) == 2 and 2 <= rank <= 4 and op.attr("alpha", 1.0) == 1.0
        fits = fits and op.attr("y_num_col_dims", 1) == 1 and not op.attr("activation_type", "")
        bias_axes = (-1, row_dims(graph, op))
    else:
        return None
    if not fits or weight not in graph.params:
        return None
    channels = graph.params[weight].shape[0 if op.type in CONVS else 1]
    if after is not None and after.type == "elementwise_add" and after.input("X") == out:
        bias = after.input("Y")
        if bias in graph.params and graph.params[bias].shape == (channels,) and after.attr("axis", -1) in bias_axes:
            return Chain((op, after), data, weight, bias, "", "", after.output("Out"))
    return Chain((op,), data, weight, op.input("Bias") if op.type == "fc" else "", "", "", out)


def row_dims(graph: Graph, op: Op) -> int:
    """How many leading dimensions of a product's input number its rows; the others are summed over.

    `mul` and `fc` may flatten: a classifier of the seeds' time reads the pooled [N, C, 1, 1] as it is.
    """
    if op.type == "mul":
        return int(op.attr("x_num_col_dims", 1))
    if op.type == "fc":
        return int(op.attr("in_num_col_dims", 1))
    return len(graph.vars[op.input("X")].shape) - 1


def _is_residual(graph: Graph, op: Op) -> bool:
    """An addition of two tensors of one shape, neither constant."""
    if op.type != "elementwise_add":
        return False
    x, y = op.input("X"), op.input("Y")
    return x != y and x not in graph.params and y not in graph.params and graph.vars[x].shape == graph.vars[y].shape


def graph_macs(graph: Graph, batch: int) -> int:
    """Multiply-accumulates of a graph's weighted ops for one run, from its declared shapes.

    Counts what the log can't show: ops that ran outside oneDNN. 0 for an op whose spatial size is open.
    """
    return sum(_op_macs(graph, op, batch) for op in graph.ops)


def _op_macs(graph: Graph, op: Op, batch: int) -> int:
    if "Filter" in op.inputs:
        out, weight = graph.vars[op.output("Output")].shape, graph.vars[op.input("Filter")].shape
        each = math.prod(weight[1:])
    elif op.type in ("mul", "matmul", "matmul_v2", "fc"):
        weight_name = op.input("W") or op.input("Y")
        out, weight = graph.vars[op.output("Out")].shape, graph.vars[weight_name].shape
        each = weight[-2] if len(weight) > 1 else weight[0]
    else:
        return 0
    dims = [batch if place == 0 and size < 0 else size for place, size in enumerate(out)]
    return 0 if any(size < 0 for size in dims) else math.prod(dims) * max(each, 0)
