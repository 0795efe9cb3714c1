"""Calibration and conversion: INT8 equals the simulation, and says what it did."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.errors import ConversionError, DataError, ModelError, OptionError
from quant.ir.fusion import is_move, numbered
from quant.ir.graph import Graph, run_passes, save_dir
from quant.ir.passes import CALIBRATE, PLACE, lift_quantizers, lower_quantizers
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.quantization.observers import ALGORITHMS, Choice
from quant.quantization.plan import plan_of, roundable, simulate
from quant.runtime.predictor import Settings
from tests.nets import NATIVE, NETS, Net, data, pyramid_net, residual_net, run

INT8_OPS = ("fused_conv2d", "fc")


def int8_ops(graph: Graph) -> int:
    return sum(op.type in INT8_OPS and op.attr("mkldnn_data_type") == "int8" for op in graph.ops)


@pytest.mark.parametrize("name", ["shuffle", "pyramid"])
def test_ops_that_only_carry_values_run_on_int8(name: str) -> None:
    """Nothing is rounded but the input, and what the average or the last product reads."""
    graph = NETS[name]()
    int8, coverage = convert(calibrate(graph, data(graph), algo="abs_max"))
    assert int8.op_counts()["quantize"] == 1
    assert not coverage.fp32


def test_uneven_enlarging_stays_float() -> None:
    """oneDNN takes other neighbours there than Paddle's own kernel."""
    graph = pyramid_net()
    uneven = [op.with_attrs(scale=[1.5, 1.5]) if op.type == "nearest_interp_v2" else op for op in graph.ops]
    assert [is_move(op) for op in uneven if op.type == "nearest_interp_v2"] == [False]


LOAD = """
import sys
from paddle.inference import Config, create_predictor
config = Config(sys.argv[1] + "/inference.pdmodel", sys.argv[1] + "/inference.pdiparams")
config.enable_onednn()
create_predictor(config)
"""


def test_loading_scales_weights_by_fast_kernels(tmp_path: Path) -> None:
    """oneDNN multiplies by a step along the first axis in a plain loop, 20 times slower."""
    graph = residual_net()
    int8, _ = convert(calibrate(graph, data(graph), algo="abs_max"))
    save_dir(int8, tmp_path)
    command, log = [sys.executable, "-c", LOAD, str(tmp_path)], {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(command, env=log, capture_output=True, text=True, check=True)
    kernels = [line.split(",") for line in done.stdout.splitlines() if ",exec," in line]
    assert len([line for line in kernels if "binary" in line]) == int8_ops(int8)
    assert not [line for line in kernels if any(part.startswith("ref") for part in line)]


@pytest.mark.parametrize("levels", [127, 63])
@pytest.mark.parametrize("name", NETS)
def test_int8_equals_the_simulation(name: str, levels: int, tmp_path: Path) -> None:
    graph = NETS[name]()
    simulated = calibrate(graph, data(graph), algo="abs_max", weight_levels=levels)
    int8, coverage = convert(lower_quantizers(simulated))
    seen = run_passes(graph, CALIBRATE).ops
    assert int8_ops(int8) == sum(op.type in ("conv2d", "depthwise_conv2d", "matmul_v2", "mul") for op in seen)
    assert not set(coverage.fp32) - {"pool2d", "concat", "flatten_contiguous_range"}
    [batch] = data(graph, 1, seed=9)
    [fp32] = run(graph, batch, tmp_path)
    [sim] = run(lower_quantizers(simulated), batch, tmp_path, NATIVE)
    [real] = run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(fp32, sim) > 15
    # An activation on a rounding boundary may fall to either side, by float32 summation order: one step of one value.
    assert sqnr(sim, real) > sqnr(fp32, sim) + 6


ACTIVATIONS: list[tuple[str, dict[str, float]]] = [
    ("relu", {}),
    ("relu6", {}),
    ("leaky_relu", {"alpha": 0.1}),
    ("hard_swish", {"threshold": 6.0, "scale": 6.0, "offset": 3.0}),
    ("hard_sigmoid", {"slope": 0.2, "offset": 0.4}),
    ("swish", {}),
    ("silu", {}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("gelu", {"approximate": False}),
    ("gelu", {"approximate": True}),
    ("mish", {"threshold": 20.0}),
    ("brelu", {"t_min": -1.0, "t_max": 1.5}),
    ("clip", {"min": 0.0, "max": 1.5}),
    ("clip", {"min": -0.5, "max": 1.5}),
]


def activated(type: str, attrs: dict[str, float], *, products: bool) -> Graph:
    """The activation twice: in front of a kernel that reads it rounded, and as the float32 output."""
    net = Net()
    first = net.head("x", 32) if products else net.bias(net.conv("x", 8, 3))
    x = net.op(type, {"X": first}, **attrs)
    second = net.linear(x, 16) if products else net.bias(net.conv(x, 8, 3))
    return net.graph(net.op(type, {"X": second}, **attrs))


@pytest.mark.parametrize("products", [False, True], ids=["conv", "fc"])
@pytest.mark.parametrize(("type", "attrs"), ACTIVATIONS, ids=[f"{t}-{list(a.values())}" for t, a in ACTIVATIONS])
def test_activations_are_part_of_the_kernel(type: str, attrs: dict, products: bool, tmp_path: Path) -> None:
    graph = activated(type, attrs, products=products)
    simulated = lower_quantizers(calibrate(graph, data(graph), algo="abs_max", weight_levels=63))
    int8, _ = convert(simulated)
    assert int8.op_counts()[type] == 0
    assert int8.op_counts()["quantize"] == 1
    [batch] = data(graph, 1, seed=9)
    [sim] = run(simulated, batch, tmp_path, NATIVE)
    [real] = run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(sim, real) > 60


@pytest.mark.parametrize(
    ("type", "attrs"),
    [
        ("elu", {"alpha": 1.0}),
        ("mish", {"threshold": 1.0}),
    ],
)
def test_an_activation_that_kernels_compute_otherwise_stays_an_op(type: str, attrs: dict, tmp_path: Path) -> None:
    graph = activated(type, attrs, products=False)
    simulated = lower_quantizers(calibrate(graph, data(graph), algo="abs_max", weight_levels=63))
    int8, _ = convert(simulated)
    assert int8.op_counts()[type] == 2


def test_each_kernel_is_exact_when_nothing_lies_on_a_boundary(tmp_path: Path) -> None:
    """One layer, inputs on the grid: INT8 and simulation differ by float32 rounding only."""
    net = Net()
    graph = net.graph(net.bias(net.conv("x", 8, 3)))
    grid = np.rint(np.random.default_rng(0).standard_normal((4, 8, 8, 8)) * 30).clip(-127, 127).astype(np.float32)
    grid[0, 0, 0, 0] = 127
    simulated = calibrate(graph, [{"x": grid}], algo="abs_max")
    [sim] = run(lower_quantizers(simulated), {"x": grid}, tmp_path, NATIVE)
    [real] = run(convert(simulated)[0], {"x": grid}, tmp_path, Settings("int8"))
    np.testing.assert_allclose(real, sim, rtol=1e-5, atol=1e-4)


def test_a_saved_simulation_is_lifted_back_as_it_was() -> None:
    graph = residual_net()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    lifted = lift_quantizers(lower_quantizers(simulated))
    assert lifted.op_counts() == simulated.op_counts()
    before = [op.attrs for op in simulated.ops if op.type == "fake_quant"]
    after = [op.attrs for op in lifted.ops if op.type == "fake_quant"]
    for one, other in zip(before, after, strict=True):
        assert one["levels"] == other["levels"]
        assert one["threshold"].value == pytest.approx(other["threshold"].value, rel=1e-6)


def test_a_signed_residual_halves_the_levels_and_an_unsigned_one_does_not() -> None:
    graph = residual_net()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    writers = simulated.writers()
    rounded = [(writers.get(op.input("X")), op.attr("levels")) for op in simulated.ops if op.type == "fake_quant"]
    levels = [level for op, level in rounded if op is not None and op.type == "relu"]
    assert levels == [255, 255, 127]  # the stem, a convolution inside the block, the sum over the shortcut


def test_a_model_that_never_rounded_its_residual_keeps_it_in_float(tmp_path: Path) -> None:
    """What the simulation doesn't round, INT8 doesn't round: the residual is added in float32."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8)))
    out = net.act(net.add(net.bias(net.conv(stem, 8)), stem))
    graph = net.graph(net.head(net.pool(out, "avg")))
    simulated = calibrate(graph, data(graph), algo="abs_max")
    raw = {op.output("Out"): op.input("X") for op in simulated.ops if op.type == "fake_quant"}
    ops = tuple(
        op.rewired({name: raw[name] for name in op.reads if name in raw}) if op.type == "elementwise_add" else op
        for op in simulated.ops
    )
    unrounded = replace(simulated, ops=ops)
    int8, _ = convert(unrounded)
    fused = [op for op in int8.ops if op.input("ResidualData")]
    assert [int8.vars[op.input("ResidualData")].dtype for op in fused] == ["float32"]
    [batch] = data(graph, 1)
    [sim] = run(lower_quantizers(unrounded), batch, tmp_path, NATIVE)
    [real] = run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(sim, real) > 35


def test_skipped_ops_and_types_stay_float_with_their_reason() -> None:
    graph = residual_net()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    ids = numbered(run_passes(simulated, PLACE))
    first = min(ids.values())
    int8, coverage = convert(simulated, op_ids_to_skip=[first])
    assert [entry.op_id for entry in coverage.kept if "left out" in entry.reason] == [first]
    assert int8.op_counts()["conv2d"] == 1
    only_conv, coverage = convert(simulated, ops_to_quantize=["conv2d"])
    assert coverage.int8.keys() == {"conv2d"}
    assert only_conv.op_counts()["matmul_v2"] == 1


def test_ids_are_the_same_in_a_model_and_its_simulation() -> None:
    for build in NETS.values():
        graph = build()
        simulated = run_passes(lower_quantizers(calibrate(graph, data(graph), algo="abs_max")), PLACE)
        seen = numbered(run_passes(graph, CALIBRATE))
        assert [op.type for op in seen] == [op.type for op in numbered(simulated)]


def test_nothing_int8_is_an_error() -> None:
    graph = residual_net()
    with pytest.raises(ConversionError, match="no op became INT8"):
        convert(graph)
    simulated = calibrate(graph, data(graph), algo="abs_max")
    with pytest.raises(ConversionError, match="no op became INT8"):
        convert(simulated, ops_to_quantize=["concat"])


def test_unknown_names_are_refused_with_a_hint() -> None:
    graph = residual_net()
    with pytest.raises(OptionError, match="did you mean 'conv2d'"):
        calibrate(graph, data(graph), ops_to_quantize=["conv2"])
    with pytest.raises(OptionError, match="unknown op id 99"):
        calibrate(graph, data(graph), op_ids_to_skip=[99])
    with pytest.raises(OptionError, match="did you mean 'KL'"):
        calibrate(graph, data(graph), algo="kl")


def test_nan_in_calibration_data_is_named() -> None:
    graph = residual_net()
    batches = data(graph)
    batches[2]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="calibration batch 2: NaN or Inf in the data"):
        calibrate(graph, batches)
    with pytest.raises(DataError, match="no calibration data"):
        calibrate(graph, [])


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_gives_a_usable_model(algo: str, tmp_path: Path) -> None:
    graph = residual_net()
    simulated = calibrate(graph, data(graph, 8), algo=algo)
    [batch] = data(graph, 1, seed=9)
    [fp32] = run(graph, batch, tmp_path)
    [real] = run(convert(simulated)[0], batch, tmp_path, Settings("int8"))
    assert sqnr(fp32, real) > 8


def test_calibration_streams() -> None:
    """Batches are taken one at a time, and none is kept."""
    graph = residual_net()
    alive: list[int] = []

    class Counted(dict):
        def __init__(self, batch: dict) -> None:
            super().__init__(batch)
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def stream():
        for batch in data(graph, 20):
            assert len(alive) <= 1
            yield Counted(batch)

    for algo in ("avg", "mse"):
        calibrate(graph, stream(), algo=algo)


# --- what can't be rounded


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_told(value: float) -> None:
    net = Net()
    weight = net.conv("x", 8)
    graph = net.graph(weight)
    name = graph.ops[0].input("Filter")
    graph.params[name][0, 0, 0, 0] = value
    chains = roundable(graph, (), (), 127)
    plan = plan_of(graph, chains)
    chosen = {group: Choice("abs_max", 1.0) for group in plan.levels}
    with pytest.raises(ModelError, match=f"parameter '{name}' holds NaN or Inf"):
        simulate(graph, chains, plan, chosen, 127)


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (np.full(8, np.nan), "the scale of weight '.*' is nan: not calibrated"),
        (np.full(8, -1.0), "the scale of weight '.*' is -1.0: not calibrated"),
        (np.zeros(0), r"weight '.*' of shape \[8, 8, 1, 1\] has 0 scales along axis 0"),
        (np.ones(5), r"weight '.*' of shape \[8, 8, 1, 1\] has 5 scales along axis 0"),
    ],
)
def test_scales_of_weights_that_make_no_sense_are_told(scale: np.ndarray, told: str) -> None:
    net = Net()
    graph = lower_quantizers(calibrate(net.graph(net.conv("x", 8)), net.batches(1), algo="abs_max"))
    [name] = [op.input("Scale") for op in graph.ops if op.type == "dequantize_linear" and op.input("X") in graph.params]
    with pytest.raises(ConversionError, match=told):
        lift_quantizers(replace(graph, params={**graph.params, name: scale.astype(np.float32)}))
