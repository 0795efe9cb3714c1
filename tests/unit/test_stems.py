"""Which tensor a variable of a converted graph is a form of: one notion, for analysis and for costs."""

from collections.abc import Callable

import pytest

from quant.diagnosis.pairing import stem
from quant.ir.graph import Graph, run_passes
from quant.ir.passes import PLACE
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.search.op_costs import Costs
from tests.nets import NETS, data
from tests.unit.test_recurrent import layers, sequences


def recurrent(kind: str) -> Callable[[], Graph]:
    return lambda: layers(kind)


@pytest.mark.parametrize(
    ("variable", "names", "tensor"),
    [
        ("x.int8", {"x"}, "x"),
        ("x.u8", {"x"}, "x"),
        ("x.flat.int8", {"x"}, "x"),
        ("x.int8.3", {"x"}, "x"),
        ("x.int8", {"x", "x.int8"}, "x.int8"),  # a tensor may be called so
        ("x.0.int8", {"x", "x.0"}, "x.0"),
        ("x.0.int8", {"x"}, ""),  # x.0 is another tensor than x
        ("x.0", {"x"}, ""),
        ("a.b.c", {"a", "a.b"}, ""),
        ("x.quantized.int8", {"x"}, "x"),
        ("x.above.y.int8.1", {"x"}, "x"),
        ("x", {"x"}, "x"),
        ("y.int8", {"x"}, ""),
        ("", {"x"}, ""),
    ],
)
def test_a_stored_form_is_of_the_tensor_of_its_name_and_of_no_other(
    variable: str, names: set[str], tensor: str
) -> None:
    assert stem(variable, names) == tensor


@pytest.mark.parametrize("net", [*NETS.values(), recurrent("gru"), recurrent("lstm")], ids=[*NETS, "gru", "lstm"])
def test_costs_of_ops_are_each_counted_once(net: Callable[[], Graph]) -> None:
    """A millisecond for each op, told at the first of its outputs, is as many as the graph has ops."""
    graph = net()
    batches = data(graph) if "x" in graph.feeds and not graph.vars["x"].lod_level else [sequences()]
    simulated = calibrate(graph, batches, algo="abs_max")
    placed, converted = run_passes(simulated, PLACE), convert(simulated)[0]
    for place in (0, -1):
        costs = Costs.of(placed.vars, converted, {op.writes[place]: 1.0 for op in converted.ops}, {})
        assert costs.predicted_ms(converted) == pytest.approx(len(converted.ops))
