"""The shapes of a program's tensors for given inputs, worked out by Paddle's own shape functions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from quant.ir.graph import Graph, Op, program_bytes  # before Paddle: it sets the flag for the legacy format

# isort: split
from paddle.base import core

from quant.ir.paddle_errors import reason

__all__ = ["Inferred", "inferred", "sample_shapes", "shapes_for"]


class Inferred(NamedTuple):
    """Variable -> its shape, and the places of the ops that refuse what they get -> why, in one line."""

    shapes: dict[str, tuple[int, ...]]
    refused: dict[int, str]


def shapes_for(graph: Graph, feeds: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Variable -> its shape when inputs have the shapes `feeds`; see `inferred`."""
    return inferred(graph, feeds).shapes


def inferred(graph: Graph, feeds: Mapping[str, Sequence[int]]) -> Inferred:
    """What is known of shapes when inputs have the shapes `feeds`; -1 is a dimension that depends on values.

    Ops that Paddle can't tell the shape of, and ops that refuse, keep what the program declares. Nothing runs.
    Not thread-safe. A program that lacks attributes or outputs ends the process, as it does when Paddle runs it: only
    in a child.
    """
    program: Any = core.ProgramDesc(program_bytes(graph))
    block = program.block(0)
    for name, shape in feeds.items():
        block.find_var(name.encode()).set_shape([*shape])
    found = {name: tuple(var.shape) for name, var in graph.vars.items()} | {n: tuple(s) for n, s in feeds.items()}
    refused: dict[int, str] = {}
    described = (block.op(number) for number in range(block.op_size()))
    for place, op in enumerate(op for op in described if op.type() not in ("feed", "fetch")):
        if why := _against_weight(graph.ops[place], found):
            refused[place] = why
        try:
            op.infer_shape(block)
        except Exception as error:  # Paddle's own error types are plain Exceptions; the declared shape stands
            refused[place] = reason(error)
            continue
        for name in op.output_arg_names():
            if name in graph.vars and name not in graph.params:
                found[name] = tuple(block.find_var(name.encode()).shape())
    return Inferred(found, refused)


def _against_weight(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Where a weight fits another number of channels or features than an op gets; Paddle's functions pass over it."""
    if op.input("Filter") and op.input("Input") and "transpose" not in op.type:
        given, weight = shapes[op.input("Input")], shapes[op.input("Filter")]
        if len(given) != len(weight):
            return ""
        last = op.attr("data_format", "NCHW") in ("NHWC", "NDHWC", "NLC")
        here, due = given[-1 if last else 1], weight[1] * int(op.attr("groups", 1))
        what = "channels"
    elif op.type == "rnn" and op.inputs.get("WeightList") and shapes[op.input("Input")]:
        here, due = shapes[op.input("Input")][-1], shapes[op.inputs["WeightList"][0]][-1]
        what = "features"
    else:
        return ""
    return f"it gets {here} {what}, its weight is for {due}" if here >= 0 and here != due else ""


def sample_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """`shapes_for` one sample; nothing where an input holds sequences or has a size that is open."""
    described = [graph.vars[name] for name in graph.feeds]
    if any(var.lod_level or min(var.shape[1:], default=1) < 0 for var in described):
        return {}
    return shapes_for(graph, {name: (1, *graph.vars[name].shape[1:]) for name in graph.feeds})
