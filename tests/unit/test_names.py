"""New names for a rewrite: none that the graph has, none twice; equal parameters share one."""

import numpy as np
import pytest

from quant.ir.graph import Graph, Op, Var
from quant.ir.names import Names


def small_graph() -> Graph:
    ops = (Op.make("elementwise_add", {"X": "x", "Y": "p"}, {"Out": "y"}),)
    params = {"p": np.ones(1, np.float32)}
    return Graph(ops, {"x": Var((1,)), "p": Var((1,)), "y": Var((1,))}, params, ("x",), ("y",))


def test_no_name_is_given_twice() -> None:
    names = Names({"x", "x.0"})
    assert [names.fresh(stem) for stem in ("z", "z", "x", "x", "z", "z.0")] == [
        "z",
        "z.0",
        "x.1",
        "x.2",
        "z.1",
        "z.0.0",
    ]


def test_a_graph_gives_none_that_it_has_declared_or_not() -> None:
    graph = small_graph()
    undeclared = graph.evolve([Op.make("relu", {"X": "a"}, {"Out": "b"}), *graph.ops])
    assert [undeclared.names().fresh(name) for name in ("x", "p", "y", "a", "b", "c")] == [
        *("x.0", "p.0", "y.0", "a.0", "b.0"),
        "c",
    ]


def test_equal_parameters_of_one_stem_share_a_name() -> None:
    names = Names(())
    ones = np.ones((2, 3), np.float32)
    assert [names.param("w", ones), names.param("w", ones.copy()), names.param("v", ones)] == ["w", "w", "v"]
    for other in (ones.reshape(3, 2), ones.astype(np.float64), 2 * ones, ones.T.copy()):
        assert names.param("w", other) in ("w.0", "w.1", "w.2")
    assert len(names.params) == 5
    zero = np.zeros(1, np.float32)
    assert names.param("z", zero) != names.param("z", -zero)  # other bits
    nan = np.full(1, np.nan, np.float32)
    assert names.param("n", nan) == names.param("n", nan.copy())
    strided = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert names.param("s", strided.T) == names.param("s", np.ascontiguousarray(strided.T))


def test_a_parameter_that_the_graph_has_is_not_overwritten() -> None:
    graph = small_graph()
    with pytest.raises(ValueError, match="the parameter 'p' would be overwritten"):
        graph.evolve(graph.ops, params={"p": np.zeros(1, np.float32)})
