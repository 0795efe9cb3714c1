"""The shapes of a program's tensors for given inputs, worked out by Paddle's own shape functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from quant.graph import Graph, program_bytes  # before Paddle: it sets the flag for the legacy format

# isort: split
from paddle.base import core

__all__ = ["sample_shapes", "shapes_for"]


def shapes_for(graph: Graph, feeds: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Variable -> its shape when inputs have the shapes `feeds`; -1 is a dimension that depends on values.

    Ops that Paddle can't tell the shape of keep what the program declares. Nothing runs. Not thread-safe.
    A program that lacks attributes or outputs ends the process, as it does when Paddle runs it: only in a child.
    """
    program: Any = core.ProgramDesc(program_bytes(graph))
    block = program.block(0)
    for name, shape in feeds.items():
        block.find_var(name.encode()).set_shape([*shape])
    found = {name: tuple(var.shape) for name, var in graph.vars.items()} | {n: tuple(s) for n, s in feeds.items()}
    for number in range(block.op_size()):
        op = block.op(number)
        if op.type() in ("feed", "fetch"):
            continue
        try:
            op.infer_shape(block)
        except Exception:  # Paddle's own error types are plain Exceptions; the declared shape stands
            continue
        for name in op.output_arg_names():
            if name in graph.vars and name not in graph.params:
                found[name] = tuple(block.find_var(name.encode()).shape())
    return found


def sample_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """`shapes_for` one sample; nothing where an input holds sequences or has a size that is open."""
    described = [graph.vars[name] for name in graph.feeds]
    if any(var.lod_level or min(var.shape[1:], default=1) < 0 for var in described):
        return {}
    return shapes_for(graph, {name: (1, *graph.vars[name].shape[1:]) for name in graph.feeds})
