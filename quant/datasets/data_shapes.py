"""Data of another size than a model declares: whether its ops take that, and the model as if it had declared it.

Data decide: an exported program declares one size, but a convolutional net runs at others too, and its own client may
feed it one of those.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quant.datasets.columns import Column, Dataset, Padded, Ragged
from quant.errors import DataError
from quant.ir.graph import Graph
from quant.ir.shapes import inferred
from quant.process.isolate import report_line

__all__ = ["check_taken", "resized"]

_SAMPLES = 2  # where the batch is open: enough to see that a reshape makes other rows than samples
_Inputs = Mapping[str, Column | Padded]


def check_taken(graph: Graph, data: Dataset) -> None:
    """Tell of inputs that are declared in another size than the data have; no input holds data of another rank.

    Raises DataError where Paddle's own shape functions, or a weight, say that an op can't take it, or where an output
    would have another number of rows than there are samples. Nothing runs. As `quant.ir.shapes`, not thread-safe.
    """
    found = _unlike(graph, data.inputs)
    if not found:
        return
    given = ", ".join(
        f"array {name!r} holds samples of {[*shape]}, the model reads {[*graph.vars[name].shape[1:]]}"
        for name, shape in found.items()
    )
    if why := _refusal(graph, data.inputs, found):
        raise DataError(f"{data.path}: {given}, and {why}")
    for name, shape in found.items():
        report_line(
            f"{data.path}: input {name!r} is declared {[*graph.vars[name].shape]}; the data are {[*shape]}, which is "
            f"what the model is run with"
        )


def resized(graph: Graph, inputs: _Inputs) -> Graph:
    """The graph, declaring the sizes of `inputs`, arrays [N, ...]; the same graph where it does already.

    Shapes behind them are inferred anew; the batch stays as declared, and so does what the sizes don't change.
    """
    found = _unlike(graph, inputs)
    if not found:
        return graph
    declared = {name: graph.vars[name].shape for name in graph.feeds}
    fed = {**declared, **{name: (*declared[name][:1], *shape) for name, shape in found.items()}}
    before, after = inferred(graph, declared).shapes, inferred(graph, fed).shapes
    changed = {name: graph.vars[name]._replace(shape=shape) for name, shape in after.items() if shape != before[name]}
    return replace(graph, vars={**graph.vars, **changed})


def _unlike(graph: Graph, inputs: _Inputs) -> dict[str, tuple[int, ...]]:
    """Input -> the shape of a sample, of dense inputs that the program declares in another one."""
    found = {}
    for name in graph.feeds:
        column = inputs[name]
        if not isinstance(column, Ragged | Padded):
            given, wanted = tuple(np.shape(column)[1:]), graph.vars[name].shape[1:]
            sizes = zip(wanted, given, strict=False)
            if len(given) == len(wanted) and any(size not in (-1, here) for size, here in sizes):
                found[name] = given
    return found


def _refusal(graph: Graph, inputs: _Inputs, found: Mapping[str, tuple[int, ...]]) -> str:
    """Why a program can't take inputs of other sizes; empty when it can."""
    for name, shape in found.items():
        if graph.vars[name].lod_level:
            return f"input {name!r} takes sequences of those"
        if 0 in shape:
            return "samples are not empty"
    declared: dict[str, tuple[int, ...]] = {}
    for name in graph.feeds:
        first, *sizes = graph.vars[name].shape
        column = inputs[name]
        if not isinstance(column, Ragged | Padded):
            sizes = [here if size < 0 else size for size, here in zip(sizes, np.shape(column)[1:], strict=True)]
        declared[name] = (_SAMPLES if first < 0 else first, *sizes)
    fed = {**declared, **{name: (declared[name][0], *shape) for name, shape in found.items()}}
    before, after = inferred(graph, declared), inferred(graph, fed)
    for place, why in after.refused.items():
        if place not in before.refused:
            op = graph.ops[place]
            return f"its op {op.type!r} ({op.writes[0] if op.writes else place}) can't take those: {why}"
    for name in graph.fetches:
        due, made = before.shapes[name][:1], after.shapes[name][:1]
        if due != made and due == (declared[graph.feeds[0]][0],):
            return f"its output {name!r} would have {made[0]} rows for {due[0]} samples"
    return ""
