"""Ops that read one parameter: each gets what it needs, and what is equal is stored once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures.programs import Program
from quant.datasets.columns import values_of
from quant.ir.graph import Graph, Var, save_dir
from quant.ir.passes import lower_quantizers
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Predictor, Settings
from tests.nets import NATIVE, Net, run
from tests.sharing import SIZE, inputs


def convolutions() -> Graph:
    """One input and filter: a float32 output, one behind ReLU, one that is rounded; the same of an unsigned input."""
    net = Net(SIZE, SIZE)
    first = net.conv("x", SIZE, 3)
    weight = net.ops[0].input("Filter")

    def again(x: str) -> str:
        out = net.conv(x, SIZE, 3)
        net.ops[-1] = net.ops[-1].rewired({net.ops[-1].input("Filter"): weight})
        return out

    unsigned = net.act(again("x"))
    outs = [again(unsigned), net.act(again(again(unsigned))), net.act(again("x"), "leaky_relu")]
    return net.graph(first, *outs)


def products() -> Graph:
    """One weight for what is stored as uint8 and for what is stored as int8."""
    net = Net(SIZE, SIZE)
    flat = []
    for x in (net.act(net.bias(net.conv("x", 4))), net.bias(net.conv("x", 4))):
        flat.append(net.head(net.pool(x), SIZE))
        net.ops[-2] = net.ops[-2].rewired({net.ops[-2].input("Y"): net.ops[7].input("Y")} if len(flat) > 1 else {})
    return net.graph(*flat, net.act(flat[0]))


def layers(kind: str) -> Graph:
    """Two layers of one input with one state's weight: with unlike weights of the input, and in either direction."""
    random = np.random.default_rng(0)
    gates = SIZE * {"gru": 3, "lstm": 4}[kind]
    program = Program({name: Var((-1, 1), "int64", 1) for name in "ab"})

    def param(name: str, *shape: int) -> str:
        return program.param(name, (0.5 * random.standard_normal(shape)).astype(np.float32))

    table = {"W": param("table", SIZE, SIZE), "Ids": "a"}
    rows = program.op("lookup_table", table, {"Out": Var((-1, SIZE), lod_level=1)}, padding_idx=-1)
    state, bias, zero = param("wh", SIZE, gates), param("bh", 1, gates), param("bx", gates)
    outs = []
    for name, reverse in (("one", False), ("one", True), ("two", False)):
        if f"wx{name}" not in program.params:
            param(f"wx{name}", SIZE, gates)
        outs.append(program.recurrent(kind, program.linear(rows, f"wx{name}", zero), state, bias, reverse))
    return program.graph([program.linear(out, param(f"w{out}", SIZE, 3), param(f"b{out}", 3)) for out in outs])


PADDLE = Settings("int8", executor="paddle")
NETS: dict[str, Callable[[], Graph]] = {
    "convolutions": convolutions,
    "products": products,
    "gru": lambda: layers("gru"),
    "lstm": lambda: layers("lstm"),
}


@pytest.mark.parametrize("levels", [127, 63])
@pytest.mark.parametrize("name", NETS)
def test_kernels_that_share_a_weight_agree_with_the_simulation(name: str, levels: int, tmp_path: Path) -> None:
    """On either executor: Paddle's keeps prepared weights by the names of variables (docs/paddle-faults.md)."""
    graph = NETS[name]()
    batch = inputs(graph, np.random.default_rng(1), (5,))
    simulated = lower_quantizers(calibrate(graph, [batch], algo="abs_max", weight_levels=levels))
    int8, _ = convert(simulated)
    found = []
    for model, how in ((simulated, NATIVE), (int8, PADDLE), (int8, Settings("int8"))):
        place = tmp_path / str(len(found))
        place.mkdir()
        save_dir(model, place)
        with Predictor(place, how) as predictor:
            found.append([values_of(column) for column in predictor(batch).values()])
            found[-1] = [values_of(column) for column in predictor(batch).values()]  # what was kept is used
    for expected, by_paddle, directly in zip(*found, strict=True):
        np.testing.assert_allclose(by_paddle, expected, atol=0.03 * np.abs(expected).max())
        np.testing.assert_array_equal(directly, by_paddle)


def test_a_product_of_two_parameters_is_left_as_it_is(tmp_path: Path) -> None:
    """Learnt queries times a weight: there is no activation to round, and nothing that writes one."""
    net = Net()
    factors = {"X": net.param(4, 8), "Y": net.param(8, 8)}
    constant = net.op("matmul_v2", factors, shape=(4, 8), trans_x=False, trans_y=False)
    graph = net.graph(net.op("matmul_v2", {"X": net.head(net.conv("x", 4), 4), "Y": constant}, shape=(-1, 8)))
    [batch] = net.batches(1)
    int8, coverage = convert(lower_quantizers(calibrate(graph, [batch], algo="abs_max")))
    [kept] = [kept for kept in coverage.kept if kept.output == constant]
    assert "both its factors are constants" in kept.reason
    due, found = (run(model, batch, tmp_path, how) for model, how in ((graph, NATIVE), (int8, PADDLE)))
    assert sqnr(due[0], found[0]) > 25
