"""Write channels-last ops channels first, and move what only rearranges dimensions out from between them.

    conv_NHWC(x) = to_last(conv_NCHW(to_first(x)))        f(move(x)) = move(f(x)) for what acts on each value by itself

INT8 kernels want channels first, and take over only what follows them directly. TensorFlow's exporters write
convolutions channels last; a Conv1D of Paddle is a convolution of [N, C, 1, L] between unsqueeze2 and squeeze2, with
its activation behind the latter. One walk in program order knows of each tensor that is a move of another, and makes
it only when an op asks for it; where a move meets its inverse both are gone.
"""

from collections import Counter
from dataclasses import replace

import numpy as np

from quant.ir.constants import beside
from quant.ir.fusion import CONVS
from quant.ir.graph import Attr, Graph, Op, Var
from quant.ir.ops.activations import KNOWN
from quant.ir.passes.moves import TO_CHANNELS_LAST, Stack, backwards, move_of, source_axis, source_var

__all__ = ["channels_first"]

# Op type -> its attribute that names the layout, and the slots of the tensors that have it.
_LAYOUTS = {
    **dict.fromkeys((*CONVS, "conv2d_transpose", "depthwise_conv2d_transpose"), ("data_format", "Input", "Output")),
    "pool2d": ("data_format", "X", "Out"),
    "batch_norm": ("data_layout", "X", "Y"),
    **dict.fromkeys(
        ("nearest_interp", "nearest_interp_v2", "bilinear_interp", "bilinear_interp_v2"), ("data_layout", "X", "Out")
    ),
}
_UNARY = (  # act on each value of X by itself
    *KNOWN,
    *("fake_quant", "scale", "dropout", "assign", "cast", "elu", "exp", "sqrt", "rsqrt", "square", "abs", "log", "pow"),
    *("softplus", "softsign", "thresholded_relu", "sin", "cos", "floor", "ceil", "round", "sign", "erf", "reciprocal"),
)
_BINARY = ("elementwise_add", "elementwise_sub", "elementwise_mul", "elementwise_div", "elementwise_max",
           "elementwise_min", "elementwise_pow")  # fmt: skip
_REDUCTIONS = ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min")
_FLATTENINGS = ("flatten_contiguous_range", "flatten2", "reshape2")
_SOURCES = (*CONVS, "conv2d_transpose")  # a squeeze behind these moves on


def channels_first(graph: Graph) -> Graph:
    """Channels-last convolutions, pooling, batch norms and interpolations become channels first; transposes to and fro,
    and squeezes behind a convolution, move behind elementwise ops, concat, split and softmax.

    Not touched: programs that write a variable twice, and with neither a channels-last op nor such a squeeze in them.
    """
    written = Counter(name for op in graph.ops for name in op.writes if name not in graph.params)
    if any(count > 1 for count in written.values()):
        return graph
    walk = _Walk(graph)
    for op in graph.ops:
        walk.visit(op.rewired(walk.names))
    for name in graph.fetches:
        walk.need(name)
    return graph.evolve(walk.ops, walk.vars, walk.new.params) if walk.changed else graph


class _Walk:
    """What is emitted so far, and which tensors are known as moves of others."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.writers = graph, graph.writers()
        self.ops: list[Op] = []
        self.vars: dict[str, Var] = {}
        self.new = graph.names()
        self.names: dict[str, str] = {}  # tensor -> the equal one that stands for it
        self.moved: dict[str, tuple[str, Stack]] = {}  # tensor -> its source, and what makes the tensor of it
        self.made: set[str] = set()  # those that were made nevertheless
        self.sources: dict[tuple[str, Stack], str] = {}  # plain tensor, stack -> the source that was made for it
        self.operands: dict[tuple[str, int, int, Stack], tuple[str, int]] = {}  # constants in the layout of a source
        self.changed = False

    def visit(self, op: Op) -> None:
        for rewrite in (self.channels_last, self.undone, self.squeeze, self.commuting, self.binary, self.joint,
                        self.reduction, self.flattening):  # fmt: skip
            if rewrite(op):
                return
        self.ops.append(op.rewired({name: self.need(name) for name in op.reads}))

    # --- tensors

    def need(self, name: str) -> str:
        """Make a tensor of its source, if it isn't there yet; its name."""
        if name in self.moved and name not in self.made:
            self.made.add(name)
            source, stack = self.moved[name]
            for place, move in enumerate(stack):
                last = place == len(stack) - 1
                target = name if last else self.new.fresh(f"{name}.between")
                self.vars[target] = source_var(stack[place + 1 :], self.graph.vars[name])
                self.ops.append(move.forth(source, target))
                source = target
        return name

    def source(self, name: str, stack: Stack) -> str:
        """The tensor that a stack makes `name` of, made if it isn't there."""
        if name in self.moved and self.moved[name][1] == stack:
            return self.moved[name][0]
        if (name, stack) not in self.sources:
            tensor = self.need(name)
            for place in range(len(stack) - 1, -1, -1):
                target = self.new.fresh(f"{name}.first")
                self.vars[target] = source_var(stack[place:], self.graph.vars[name])
                self.ops.append(stack[place].back(tensor, target))
                tensor = target
            self.sources[name, stack] = tensor
        return self.sources[name, stack]

    def result(self, name: str, stack: Stack) -> str:
        """A new variable that will be the source of the output `name`."""
        self.changed = True
        source = self.new.fresh(f"{name}.first")
        self.vars[source] = source_var(stack, self.graph.vars[name])
        self.moved[name] = (source, stack)
        return source

    def stack_of(self, name: str) -> Stack:
        return self.moved[name][1] if name in self.moved else ()

    def rank(self, name: str) -> int:
        return len(self.graph.vars[name].shape)

    # --- ops: each emits the op and says so, or does nothing

    def channels_last(self, op: Op) -> bool:
        attr, slot, out = _LAYOUTS.get(op.type, ("", "", ""))
        if not attr or op.attr(attr) != "NHWC" or self.rank(op.input(slot)) != 4 or self.rank(op.output(out)) != 4:
            return False
        stack = (TO_CHANNELS_LAST,)
        inputs = {name: tuple(map(self.need, names)) for name, names in op.inputs.items() if name != slot}
        inputs[slot] = (self.source(op.input(slot), stack),)
        outputs = {**op.outputs, out: (self.result(op.output(out), stack),)}
        self.ops.append(replace(op, inputs=inputs, outputs=outputs).with_attrs(**{attr: "NCHW"}))
        return True

    def undone(self, op: Op) -> bool:
        """A move whose inverse this op is."""
        source, out, stack = op.input("X"), op.output("Out"), self.stack_of(op.input("X"))
        if not stack or not stack[-1].undone_by(op) or out in self.graph.fetches:
            return False
        self.changed = True
        if len(stack) > 1:
            self.moved[out] = (self.moved[source][0], stack[:-1])
        else:
            self.names[out] = self.moved[source][0]
        return True

    def squeeze(self, op: Op) -> bool:
        name, out = op.input("X"), op.output("Out")
        move = move_of(op, self.rank(name)) if name in self.graph.vars else None
        if move is None or self.rank(out) != move.rank - 1:
            return False
        if name in self.moved:
            source, stack = self.moved[name]
        elif self.rank(name) == 4 and self.from_convolution(name):
            source, stack = name, ()
        else:
            return False
        self.moved[out] = (source, (*stack, move))
        return True

    def from_convolution(self, name: str) -> bool:
        op = self.writers.get(name)
        while op is not None and (op.type in _UNARY or op.type in _BINARY):
            op = self.writers.get(op.input("X"))
        return op is not None and op.type in _SOURCES

    def commuting(self, op: Op) -> bool:
        """What acts on each value by itself, and a softmax."""
        if op.type not in (*_UNARY, "softmax") or len(op.reads) != 1:
            return False
        name, out = op.input("X"), op.output("Out")
        stack = self.stack_of(name)
        if not stack or not out or self.graph.vars[out].shape != self.graph.vars[name].shape:
            return False
        source = self.source(name, stack)
        outputs = {**op.outputs, "Out": (self.result(out, stack),)}
        done = replace(op, inputs={**op.inputs, "X": (source,)}, outputs=outputs)
        if op.type == "softmax":
            done = done.with_attrs(axis=source_axis(stack, op.attr("axis", -1)))
        self.ops.append(done)
        return True

    def binary(self, op: Op) -> bool:
        if op.type not in _BINARY:
            return False
        x, y, out = op.input("X"), op.input("Y"), op.output("Out")
        rank = self.rank(x)
        stacks = [self.moved[name][1] for name in (y, x) if name in self.moved]
        if not stacks or self.rank(out) != rank or x in self.graph.params:
            return False
        stack, axis = stacks[0], -1
        if y in self.graph.params:
            other, axis = self.operand(y, rank, op.attr("axis", -1), stack)
        elif self.rank(y) == rank:
            other = self.source(y, stack)
        else:
            return False
        inputs = {**op.inputs, "X": (self.source(x, stack),), "Y": (other,)}
        outputs = {**op.outputs, "Out": (self.result(out, stack),)}
        self.ops.append(replace(op, inputs=inputs, outputs=outputs).with_attrs(axis=axis))
        return True

    def operand(self, name: str, rank: int, axis: int, stack: Stack) -> tuple[str, int]:
        """A constant as the second operand of an op on a stack's source, and its axis there."""
        key = (name, rank, axis, stack)
        if key not in self.operands:
            values = backwards(stack, beside(self.graph.params[name], rank, axis))
            wide = [place for place, size in enumerate(values.shape) if size > 1]
            if not wide:
                self.operands[key] = (name, -1)
            else:
                along = wide == [1]
                laid = np.ascontiguousarray(values.reshape(-1) if along else values)
                new = self.new.param(f"{name}.first", laid)
                self.operands[key] = (new, 1 if along else -1)
        return self.operands[key]

    def joint(self, op: Op) -> bool:
        """concat of tensors that are moved alike, and split."""
        by_tensor = any(op.inputs.get(slot) for slot in ("AxisTensor", "SectionsTensorList"))
        if op.type not in ("concat", "split") or by_tensor:
            return False
        stack = self.stack_of(op.inputs["X"][0])
        if not stack or any(self.stack_of(name) != stack for name in op.inputs["X"]):
            return False
        inputs = {**op.inputs, "X": tuple(self.moved[name][0] for name in op.inputs["X"])}
        outputs = {**op.outputs, "Out": tuple(self.result(name, stack) for name in op.outputs["Out"])}
        axis = source_axis(stack, op.attr("axis", 0))
        self.ops.append(replace(op, inputs=inputs, outputs=outputs).with_attrs(axis=axis))
        return True

    def reduction(self, op: Op) -> bool:
        """Of what is transposed, where what is left keeps its order."""
        stack = self.stack_of(op.input("X"))
        transposed = bool(stack) and not any(move.squeezed for move in stack)
        if op.type not in _REDUCTIONS or not transposed or op.attr("reduce_all", False):
            return False
        rank, keep = self.rank(op.input("X")), op.attr("keep_dim", False)
        dims = {axis % rank for axis in op.attr("dim", [0])}
        left = [source_axis(stack, axis) for axis in range(rank) if axis not in dims]
        if not keep and (left != sorted(left) or not left):
            return False
        self.changed = True
        outputs = {**op.outputs, "Out": (self.result(op.output("Out"), stack),)} if keep else op.outputs
        inputs = {**op.inputs, "X": (self.moved[op.input("X")][0],)}
        kind = op.attrs["dim"].kind if "dim" in op.attrs else Attr.of([0]).kind
        attrs = {**op.attrs, "dim": Attr(kind, sorted(source_axis(stack, axis) for axis in dims))}
        self.ops.append(replace(op, inputs=inputs, outputs=outputs, attrs=attrs))
        return True

    def flattening(self, op: Op) -> bool:
        """[N, 1, 1, C] to [N, C]: the same of [N, C, 1, 1]."""
        name = op.input("X")
        if op.type not in _FLATTENINGS or self.stack_of(name) != (TO_CHANNELS_LAST,) or len(op.reads) != 1:
            return False
        shape = self.graph.vars[name].shape
        plain = op.type == "reshape2" or op.attr("start_axis", op.attr("axis", 1)) == 1
        if shape[1:3] != (1, 1) or not plain or self.rank(op.output("Out")) != 2:
            return False
        self.changed = True
        self.ops.append(op.rewired({name: self.moved[name][0]}))
        return True
