"""What jobs work out of a model and a batch before they run anything."""

from dataclasses import replace

import numpy as np
import pytest

from fixtures.programs import Program
from quant.datasets.columns import Column
from quant.evaluation.worker import arithmetic_on, sizes_of
from quant.ir.graph import Graph, Var
from quant.ir.ops.arithmetic import Arithmetic, Sizes, arithmetic_of
from tests.columns import ragged
from tests.nets import Net


def reads(*shapes: tuple[int, ...], lod_level: int = 0) -> Graph:
    """A graph with inputs a, b, ... of these shapes, and no ops."""
    names = "abc"[: len(shapes)]
    return Program({name: Var(shape, lod_level=lod_level) for name, shape in zip(names, shapes, strict=True)}).graph([])


@pytest.mark.parametrize(
    ("graph", "given", "sizes"),
    [
        (reads((-1, -1, 1), (-1, -1)), {"a": np.zeros((4, 7, 1)), "b": np.zeros((4, 7))}, (4, 7, 0)),
        (reads((-1, 1, -1, -1), (-1, -1)), {"a": np.zeros((4, 1, 9, 9)), "b": np.zeros((4, 7))}, (4, 7, 0)),
        (reads((-1, 16)), {"a": np.zeros((4, 16))}, (4, 0, 0)),
        (reads((-1,)), {"a": np.zeros(4)}, (4, 0, 0)),
        (reads((-1, 3, 8, 8)), {"a": np.zeros((4, 3, 8, 8))}, (4, 0, 0)),
        (reads((-1, 3, -1, -1)), {"a": np.zeros((4, 3, 8, 8))}, (4, 0, 0)),
        (reads((-1, -1, -1, -1)), {"a": np.zeros((4, 3, 8, 8))}, (4, 0, 0)),
        (reads((-1, 2), lod_level=1), {"a": ragged([2, 5, 1], 2)}, (3, 5, 8)),
    ],
    ids=["ids", "ids-and-mask", "features", "scalars", "images", "images-of-any-size", "all-open", "sequences"],
)
def test_the_sizes_of_a_batch(graph: Graph, given: dict[str, Column], sizes: tuple[int, int, int]) -> None:
    assert sizes_of(graph, given) == sizes


def test_macs_of_an_image_model_of_open_size() -> None:
    """Those of the batch; without it they aren't known, and channels aren't taken for a height."""
    net = Net()
    graph = net.graph(net.conv("x", 8, 3))
    fixed = {"x": np.zeros((4, 8, 8, 8), np.float32)}
    assert arithmetic_on(graph, fixed).total == 4 * 8 * 8 * 8 * 8 * 9
    opened = {name: var._replace(shape=(*var.shape[:2], -1, -1)) for name, var in graph.vars.items()}
    opened |= {name: graph.vars[name] for name in graph.params}
    graph = replace(graph, vars=opened)
    assert arithmetic_on(graph, fixed).total == 4 * 8 * 8 * 8 * 8 * 9
    assert arithmetic_of(graph, Sizes(*sizes_of(graph, fixed))) == Arithmetic({}, ("conv2d",))
