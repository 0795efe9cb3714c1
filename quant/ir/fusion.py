"""Which ops one INT8 kernel takes over: convolution, product or recurrent layer, with bias, residual, activation.

Calibration and conversion both read a graph through this module, so what is simulated as one op is fused as one op.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import OptionError, check_choice
from quant.ir.graph import Graph, Op
from quant.ir.ops.activations import UNSIGNED_ACTIVATIONS, conv_activation, fc_activation

__all__ = [
    "CONVS",
    "LOOKUPS",
    "PRODUCTS",
    "QUANTIZABLE",
    "RECURRENT",
    "Chain",
    "cell_fault",
    "chains_of",
    "chosen_ops",
    "is_carrier",
    "is_move",
    "numbered",
    "pack_state_weight",
    "row_dims",
    "state_matrix",
    "whole_bias",
]

CONVS = ("conv2d", "depthwise_conv2d")
PRODUCTS = ("mul", "matmul", "matmul_v2", "fc")
_GATES = {"gru": 3, "lstm": 4}
RECURRENT = tuple(_GATES)
LOOKUPS = ("lookup_table", "lookup_table_v2")

# Ops that only carry values: the same numbers (or the largest of some) come out, so they commute exactly with
# quantisation to one scale. Average pooling isn't one: its mean would be rounded where the simulation rounds nothing.
MOVES = (
    *("pool2d", "concat", "split", "nearest_interp", "nearest_interp_v2"),
    *("reshape2", "transpose2", "flatten_contiguous_range", "flatten2", "squeeze2", "unsqueeze2"),
)
_BY_TENSOR = (
    "AxisTensor",
    "SectionsTensorList",
    "OutSize",
    "SizeTensor",
    "Scale",
)  # what may come from a tensor instead

# What the seeds call quantizable, plus the newer names of the same ops.
QUANTIZABLE = (*CONVS, *PRODUCTS, *RECURRENT, "scale", *MOVES)


def is_move(op: Op) -> bool:
    """Whether an op only carries values, all of them from the slot X to Out, and has an int8 kernel."""
    if op.type not in MOVES or any(op.inputs.get(slot) for slot in _BY_TENSOR):
        return False
    if op.type.startswith("nearest_interp"):
        return _repeats(op)
    return op.type != "pool2d" or op.attr("pooling_type") == "max"


def _repeats(op: Op) -> bool:
    """Whether nearest-neighbour interpolation repeats each value a whole number of times.

    At other factors oneDNN rounds positions otherwise than Paddle's own kernel.
    """
    scale = op.attr("scale", 0.0)
    factors = scale if isinstance(scale, list) else [scale]
    whole = bool(factors) and all(factor >= 1 and float(factor).is_integer() for factor in factors)
    return whole and not op.attr("align_corners", True) and op.attr("data_layout", "NCHW") == "NCHW"


def is_carrier(op: Op) -> bool:
    """Whether an op only carries values, be it in float32: what comes out lies on the grid that went in."""
    return is_move(op) or (op.type == "sequence_pool" and op.attr("pooltype") in ("MAX", "FIRST", "LAST"))


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
    chosen = {op for op, number in ids.items() if number not in skip and (not types or op.type in wanted)}
    writers = graph.writers()
    for cell in [op for op in chosen if op.type in RECURRENT]:  # a layer's kernel computes its input's product too
        before = writers.get(cell.input("Input"))
        if before is not None and before.type == "elementwise_add":
            before = writers.get(before.input("X"))
        if before in ids and ids[before] not in skip:
            chosen.add(before)
    return chosen


@dataclass(frozen=True, eq=False)
class Chain:
    """A weighted op and the ops behind it that its kernel can take over.

    `data`, `weight`, `residual` and `other` are variable names ("" when absent), `ops` run from the weighted op to
    the last one taken over, and `out` is what that one writes. A product of two activations has `other` instead of
    `weight`. A recurrent layer (`cell`) also has the constant weight of its state, `state_weight`.
    """

    ops: tuple[Op, ...]
    data: str
    weight: str
    bias: str
    residual: str
    activation: str  # "", or the type of the op
    out: str
    other: str = ""
    cell: Op | None = None

    @property
    def op(self) -> Op:
        return self.ops[0]

    @property
    def state_weight(self) -> str:
        return self.cell.input("Weight") if self.cell else ""

    @property
    def operands(self) -> tuple[str, ...]:
        """The activations that its kernel multiplies."""
        return (self.data, self.other) if self.other else (self.data,)

    @property
    def stores_unsigned(self) -> bool:
        """Whether its kernel stores a rounded output as uint8.

        `fc` does so only by `activation_type`, and two such ops in a row are taken for fusion_repeated_fc_relu by a
        predictor's own passes, an op without an INT8 kernel; so its ReLU is a post-op, and its output int8.
        """
        return self.activation in UNSIGNED_ACTIVATIONS and self.op.type in CONVS

    @property
    def signed_operands(self) -> bool:
        """Whether its kernel reads signed values only.

        A product of two activations takes both in one type. A recurrent kernel reads uint8 whose zero lies at 128.
        """
        return bool(self.other) or self.cell is not None


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
        if act is not None and act.type in RECURRENT and act in allowed and _is_recurrent(graph, chain, act):
            result[op] = replace(chain, ops=(*ops, act), out=act.output("Hidden"), cell=act)
            continue
        known = conv_activation if op.type in CONVS else fc_activation
        if act is not None and chain.weight and known(act) is not None:
            ops, out, activation = [*ops, act], act.output("Out"), act.type
        result[op] = replace(chain, ops=tuple(ops), residual=residual, activation=activation, out=out)
    return result


def _is_recurrent(graph: Graph, chain: Chain, cell: Op) -> bool:
    """Whether oneDNN's recurrent kernels can take over a layer and the product before it."""
    fetched = cell.output("Hidden") in graph.fetches
    shaped = len(graph.vars[chain.data].shape) == 2 and _fits(graph, chain.weight, cell)
    return not cell_fault(cell) and shaped and not fetched


def cell_fault(cell: Op) -> str:
    """Why oneDNN's recurrent kernels have no such layer, or "": they know sigmoid gates, tanh, a first state of 0."""
    if cell.type == "lstm" and cell.attr("use_peepholes", True):  # Paddle's default (lstm_op.cc)
        return "its cells have peepholes (use_peepholes), which oneDNN's recurrent kernels don't know"
    if given := [slot for slot in ("H0", "C0") if cell.input(slot)]:
        return f"its first state is given ({given[0]}), and oneDNN's recurrent kernels begin with 0"
    # gru: activation; lstm: cell_activation and candidate_activation
    wanted = {"gate_activation": "sigmoid"}
    wanted |= dict.fromkeys(("activation", "cell_activation", "candidate_activation"), "tanh")
    other = [name for name, act in wanted.items() if cell.attr(name, act) != act]
    return f"its {other[0]} is {cell.attr(other[0])}, not {wanted[other[0]]}" if other else ""


def _fits(graph: Graph, weight: str, cell: Op) -> bool:
    """Whether a layer's weights are constants of sizes that go together; if not, that is for Paddle to refuse."""
    before, state = graph.params.get(weight), graph.params.get(cell.input("Weight"))
    if before is None or state is None or state.shape[1:] != (_GATES[cell.type] * len(state),):
        return False
    bias = graph.params.get(cell.input("Bias"), state[:1])  # there may be none
    named = not cell.input("Bias") or cell.input("Bias") in graph.params
    return named and before.shape[1] == state.shape[1] == bias.size


def _head(graph: Graph, op: Op, after: Op | None) -> Chain | None:
    """The weighted op with its bias, or None when no INT8 kernel fits it."""
    if op.type in CONVS:
        data, weight, out = op.input("Input"), op.input("Filter"), op.output("Output")
        fits = op.attr("data_format", "NCHW") == "NCHW" and len(graph.vars[weight].shape) == 4
        bias_axes: tuple[int, ...] = (1,)
    elif op.type in PRODUCTS:
        slots = ("Input", "W") if op.type == "fc" else ("X", "Y")
        data, weight, out = op.input(slots[0]), op.input(slots[1]), op.output("Out")
        rank = len(graph.vars[data].shape)
        plain = not any(op.attr(name, False) for name in ("trans_x", "trans_y", "transpose_X", "transpose_Y"))
        fits = plain and len(graph.vars[weight].shape) == 2 and 2 <= rank <= 4 and op.attr("alpha", 1.0) == 1.0
        fits = fits and op.attr("y_num_col_dims", 1) == 1 and not op.attr("activation_type", "")
        fits = fits and op.attr("head_number", 1) == 1
        bias_axes = (-1, row_dims(graph, op))
        if weight not in graph.params and data not in graph.params:
            return _pair(graph, op)
    else:
        return None
    if not fits or weight not in graph.params or data in graph.params:
        return None
    channels = graph.params[weight].shape[0 if op.type in CONVS else 1]
    if after is not None and after.type == "elementwise_add" and after.input("X") == out:
        bias = after.input("Y")
        if bias in graph.params and graph.params[bias].shape == (channels,) and after.attr("axis", -1) in bias_axes:
            return Chain((op, after), data, weight, bias, "", "", after.output("Out"))
    return Chain((op,), data, weight, op.input("Bias") if op.type == "fc" else "", "", "", out)


def _pair(graph: Graph, op: Op) -> Chain | None:
    """A product of two activations of one rank (3 or 4), as in attention, or None."""
    if op.type not in ("matmul", "matmul_v2"):
        return None
    x, y = op.input("X"), op.input("Y")
    ranks = {len(graph.vars[x].shape), len(graph.vars[y].shape)}
    first_plain = not any(op.attr(name, False) for name in ("trans_x", "transpose_X"))
    if x == y or not first_plain or not ranks <= {3, 4} or len(ranks) > 1:
        return None
    return Chain((op,), x, "", "", "", "", op.output("Out"), other=y)


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


def state_matrix(cell: Op, weight: NDArray[Any]) -> NDArray[Any]:
    """The state's weight of a recurrent op, fused or not, as a matrix [hidden, gates * hidden].

    `gru` packs its [hidden, 3 * hidden] weight: first update and reset gate [hidden, 2 * hidden], then the candidate
    [hidden, hidden] (paddle/phi/kernels/funcs/gru_compute.h).
    """
    if not cell.type.endswith("gru"):
        return weight
    hidden, flat = weight.shape[0], weight.reshape(-1)
    gates, candidate = flat[: 2 * hidden * hidden], flat[2 * hidden * hidden :]
    return np.concatenate([gates.reshape(hidden, 2 * hidden), candidate.reshape(hidden, hidden)], axis=1)


def pack_state_weight(cell: Op, matrix: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `state_matrix`."""
    if not cell.type.endswith("gru"):
        return matrix
    hidden = matrix.shape[0]
    parts = (matrix[:, : 2 * hidden].reshape(-1), matrix[:, 2 * hidden :].reshape(-1))
    return np.concatenate(parts).reshape(hidden, 3 * hidden)


def whole_bias(graph: Graph, chain: Chain) -> NDArray[np.float32]:
    """The biases of a recurrent layer's product and of its cell as one, [1, gates * hidden]."""
    assert chain.cell is not None
    width = graph.params[chain.weight].shape[1]
    biases = (graph.params[name].reshape(1, -1) for name in (chain.bias, chain.cell.input("Bias")) if name)
    return np.asarray(sum(biases, np.zeros((1, width))), np.float32)
