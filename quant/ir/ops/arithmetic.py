"""How many multiply-accumulates an op does: one table of op types, for every share of them that is told.

oneDNN's log shows its own kernels alone, but Paddle runs ops on kernels of its own too (`rnn`, `deformable_conv`): what
those multiply is known from the program's shapes only. An op type that isn't in the tables is reported, never passed
over in silence.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from quant.ir.graph import Graph, Op
from quant.ir.ops.plain_ops import PLAIN

__all__ = ["MULTIPLY", "Arithmetic", "Sizes", "arithmetic_of"]

_CONVS = ("conv2d", "depthwise_conv2d", "conv3d", "fused_conv2d", "fused_conv2d_add_act", "fused_conv3d")
_DEFORMABLE = ("deformable_conv", "deformable_conv_v1")
_TRANSPOSED = ("conv2d_transpose", "depthwise_conv2d_transpose", "conv3d_transpose")
_PRODUCTS = ("mul", "matmul", "matmul_v2", "fused_matmul", "fc", "fused_fc_elementwise_layernorm", "bmm")
_RECURRENT = ("gru", "lstm", "gru_unit", "fusion_gru", "fusion_lstm", "multi_gru", "fused_embedding_fc_lstm")
_STACKED = ("rnn", "cudnn_lstm")
_SEQUENCE_CONVS = ("sequence_conv", "fusion_seqconv_eltadd_relu")
_ATTENTION = ("flash_attn", "fused_dot_product_attention", "memory_efficient_attention")


class _OpenSizeError(Exception):
    """A dimension that isn't known."""


@dataclass(frozen=True)
class Sizes:
    """What open dimensions of a graph are in one run.

    `shapes`: variable -> its shape, as far as it is known. Of others the first dimension is `batch`, or `steps` (the
    total length of the batch's sequences) in a tensor of one row a step; further ones are `longest`, its longest
    sequence. 0: there is no such thing.
    """

    batch: int = 1
    longest: int = 0
    steps: int = 0
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def of(self, graph: Graph, name: str) -> list[int]:
        shape = self.shapes.get(name, ())
        if shape and min(shape) >= 0:
            return [*shape]
        if name not in graph.vars:
            raise _OpenSizeError
        declared, has_rows = graph.vars[name].shape, graph.vars[name].lod_level > 0
        first = self.steps if has_rows else self.batch
        found = [size if size >= 0 else self.longest if place else first for place, size in enumerate(declared)]
        if any(not size and declared[place] < 0 for place, size in enumerate(found)):
            raise _OpenSizeError
        return found


_Of = Callable[[str], list[int]]


def _convolution(op: Op, size: _Of) -> int:
    return math.prod(size(op.output("Output"))) * math.prod(size(op.input("Filter"))[1:])


def _spread(op: Op, size: _Of) -> int:
    """A transposed convolution spreads each value of its input; its filter is [in, out / groups, ...]."""
    return math.prod(size(op.input("Input"))) * math.prod(size(op.input("Filter"))[1:])


def _product(op: Op, size: _Of) -> int:
    weight = size(op.input("W") or op.input("Y"))
    if op.type == "mul":
        return math.prod(size(op.output("Out"))) * math.prod(weight[: op.attr("y_num_col_dims", 1)])
    flipped = op.attr("trans_y", False) or op.attr("transpose_Y", False)
    return math.prod(size(op.output("Out"))) * weight[-1 if flipped or len(weight) == 1 else -2]


def _sum_of_product(op: Op, size: _Of) -> int:
    """addmm, baddbmm: alpha X Y + beta Input."""
    return math.prod(size(op.output("Out"))) * size(op.input("X"))[-1]


def _recurrent(op: Op, size: _Of) -> int:
    """Each row of the input meets all weights; of several layers too (`multi_gru`)."""
    rows = size(op.input("X") or op.input("Input") or op.input("Ids"))
    steps = rows[0] if op.input("Ids") else math.prod(rows[:-1])
    slots = ("Weight", "WeightX", "WeightH")
    return steps * sum(math.prod(size(name)) for slot in slots for name in op.inputs.get(slot, ()) if name)


def _stacked(op: Op, size: _Of) -> int:
    """`rnn` of nn.LSTM, nn.GRU, nn.SimpleRNN: input [steps, batch, width], a list of matrices and biases."""
    weights = [size(name) for name in op.inputs.get("WeightList", ())] or [size(op.input("W"))]
    matrices = [shape for shape in weights if len(shape) > 1] or weights
    return math.prod(size(op.input("Input"))[:-1]) * sum(map(math.prod, matrices))


def _rows_by_filter(op: Op, size: _Of) -> int:
    return math.prod(size(op.input("X"))[:-1]) * math.prod(size(op.input("Filter")))


def _correlation(op: Op, size: _Of) -> int:
    return math.prod(size(op.output("Output"))) * size(op.input("Input1"))[1] * int(op.attr("kernel_size", 1)) ** 2


def _bilinear(op: Op, size: _Of) -> int:
    """Weight [outputs, x, y]."""
    return size(op.output("Out"))[0] * math.prod(size(op.input("Weight")))


def _elements(op: Op, size: _Of) -> int:
    """dot, mv: one multiply-accumulate a value."""
    return math.prod(size(op.input("X")))


def _multi_dot(op: Op, size: _Of) -> int:
    """The product of several matrices, from left to right."""
    first, *rest = (size(name) for name in op.inputs["X"])
    rows = math.prod(first[:-1]) if len(first) > 1 else 1
    return sum(rows * math.prod(shape) for shape in rest)


def _repeated_fc(op: Op, size: _Of) -> int:
    return size(op.input("X"))[0] * sum(math.prod(size(name)) for name in op.inputs["W"])


def _squared(op: Op, size: _Of) -> int:
    """(X Y)^2 - X^2 Y^2: two products."""
    return 2 * math.prod(size(op.output("Out"))) * size(op.input("X"))[-1]


def _einsum(op: Op, size: _Of) -> int:
    """The product of the sizes of all letters: each meets each once, unless it is taken apart in pairs."""
    spelled = re.sub(r"\s", "", str(op.attr("equation", ""))).partition("->")[0].split(",")
    shapes = [size(name) for name in op.inputs["Operands"]]
    if len(shapes) < 2 or len(spelled) != len(shapes):
        return 0
    letters: dict[str, int] = {}
    rest: list[int] = []
    for text, shape in zip(spelled, shapes, strict=True):
        before, dots, after = text.partition("...")
        letters |= dict(zip(before, shape, strict=False))
        letters |= dict(zip(reversed(after), reversed(shape), strict=False))
        if dots:
            rest = max(rest, shape[len(before) : len(shape) - len(after)], key=math.prod)
    return math.prod(letters.values()) * math.prod(rest)


def _attention(op: Op, size: _Of) -> int:
    """Query and key [batch, steps, heads, width]: scores, and the values that they weigh."""
    query, key = (size(op.input(names[0]) or op.input(names[1])) for names in (("q", "query"), ("k", "key")))
    return 2 * math.prod(query) * key[1]


def _self_attention(op: Op, size: _Of) -> int:
    """`self_dp_attention`: query, key and value in one, [batch, steps, 3, heads, width]."""
    shape = size(op.input("X"))
    return 2 * math.prod(shape) // 3 * shape[1]


def _multihead(op: Op, size: _Of) -> int:
    """`multihead_matmul`: the products that make query, key and value of [batch, steps, width], then attention."""
    batch, steps, width = size(op.input("Input"))
    return batch * steps * math.prod(size(op.input("W"))) + 2 * batch * steps * steps * width


# Op type -> its multiply-accumulates, of an op and what gives the sizes of a variable.
MULTIPLY: Mapping[str, Callable[[Op, _Of], int]] = {
    **dict.fromkeys((*_CONVS, *_DEFORMABLE), _convolution),
    **dict.fromkeys(_TRANSPOSED, _spread),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_RECURRENT, _recurrent),
    **dict.fromkeys(_STACKED, _stacked),
    **dict.fromkeys((*_SEQUENCE_CONVS, "row_conv"), _rows_by_filter),
    **dict.fromkeys(("addmm", "baddbmm"), _sum_of_product),
    **dict.fromkeys(("dot", "mv"), _elements),
    **dict.fromkeys(_ATTENTION, _attention),
    "bilinear_tensor_product": _bilinear,
    "correlation": _correlation,
    "einsum": _einsum,
    "fusion_repeated_fc_relu": _repeated_fc,
    "fusion_squared_mat_sub": _squared,
    "multi_dot": _multi_dot,
    "multihead_matmul": _multihead,
    "self_dp_attention": _self_attention,
}


@dataclass(frozen=True)
class Arithmetic:
    """Multiply-accumulates of a run of a graph: of each op that does some, in program order.

    `uncounted`: op types that multiply, or may, and whose share isn't known: without a formula, of a shape that isn't
    known, or of a type that no table lists (a custom op).
    """

    macs: Mapping[Op, int]
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.macs.values())

    @property
    def int8(self) -> int:
        """Of the ops that a conversion marked as INT8."""
        return sum(macs for op, macs in self.macs.items() if op.attr("mkldnn_data_type") == "int8")

    @property
    def share(self) -> float | None:
        """The share of `int8`; None where nothing is counted."""
        return self.int8 / self.total if self.total else None


def arithmetic_of(graph: Graph, sizes: Sizes) -> Arithmetic:
    """The multiply-accumulates of a graph's ops for one run. What is computed of parameters alone counts too."""
    macs: dict[Op, int] = {}
    uncounted: dict[str, None] = {}
    for op in graph.ops:
        if op.type in PLAIN:
            continue
        try:
            macs[op] = MULTIPLY[op.type](op, lambda name: sizes.of(graph, name))
        except (KeyError, IndexError, ValueError, _OpenSizeError):  # no formula, or a shape that doesn't tell
            uncounted[op.type] = None
    return Arithmetic(macs, tuple(sorted(uncounted)))
