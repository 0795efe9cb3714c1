"""Models as training leaves them, and with integers in their weights alone: read as what they simulate, or refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from quant.errors import ConversionError
from quant.ir.graph import Graph, Op, Var, load_dir, run_passes, save_dir
from quant.ir.passes import CALIBRATE, lift_quantizers, lift_weights, lower_quantizers
from quant.ir.passes.quantizers import WEIGHT_SLOT
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Settings
from quant.suites.manifest.inspection import survey
from tests.nets import CONV, NATIVE, NETS, Net, data, run


def made(type: str, inputs: dict[str, str], outputs: dict[str, str], **attrs: Any) -> Op:
    return Op.make(type, inputs, outputs, **attrs)


@dataclass(frozen=True)
class Dialect:
    """Writes a weight's quantizer (name, axis of its channels, name of what comes out) and an activation's."""

    weight: Callable[[str, int, str], list[Op]]
    activation: Callable[[str, str, str], list[Op]]  # input, name of the parameter that holds its scale, output


def channel_pair(round_type: int) -> Callable[[str, int, str], list[Op]]:
    def weight(name: str, axis: int, out: str) -> list[Op]:
        outs = {"Out": out, "OutScale": f"{out}.scale"}
        kind = "fake_channel_wise_quantize_dequantize_abs_max"
        return [made(kind, {"X": name}, outs, bit_length=8, quant_axis=axis, round_type=round_type)]

    return weight


def tensor_pair(name: str, axis: int, out: str) -> list[Op]:
    outs = {"Out": out, "OutScale": f"{out}.scale"}
    return [made("fake_quantize_dequantize_abs_max", {"X": name}, outs, bit_length=8)]


def moving_pair(name: str, scale: str, out: str) -> list[Op]:
    kind = "fake_quantize_dequantize_moving_average_abs_max"
    outs = {"Out": out, "OutScale": scale}
    return [made(kind, {"X": name, "InScale": scale}, outs, bit_length=8, is_test=True, moving_rate=0.9)]


def channel_apart(name: str, axis: int, out: str) -> list[Op]:
    outs, attrs = {"Out": f"{out}.q", "OutScale": f"{out}.scale"}, {"bit_length": 8, "quant_axis": axis}
    quantize = made("fake_channel_wise_quantize_abs_max", {"X": name}, outs, **attrs)
    reads, kind = {"X": f"{out}.q", "Scales": f"{out}.scale"}, "fake_channel_wise_dequantize_max_abs"
    return [quantize, made(kind, reads, {"Out": out}, quant_bits=[8], quant_axis=axis)]


def tensor_apart(name: str, axis: int, out: str) -> list[Op]:
    outs = {"Out": f"{out}.q", "OutScale": f"{out}.scale"}
    reads = {"X": f"{out}.q", "Scale": f"{out}.scale"}
    quantize = made("fake_quantize_abs_max", {"X": name}, outs, bit_length=8)
    return [quantize, made("fake_dequantize_max_abs", reads, {"Out": out}, max_range=127.0)]


def moving_apart(name: str, scale: str, out: str) -> list[Op]:
    outs = {"Out": f"{out}.q", "OutScale": scale}
    kind = "fake_quantize_moving_average_abs_max"
    quantize = made(kind, {"X": name, "InScale": scale}, outs, bit_length=8, is_test=True)
    reads = {"X": f"{out}.q", "Scale": scale}
    return [quantize, made("fake_dequantize_max_abs", reads, {"Out": out}, max_range=127.0)]


def observed(name: str, scale: str, out: str) -> list[Op]:
    """Behind an observer, which passes values on."""
    seen = {"Out": f"{out}.seen", "OutScale": f"{out}.seen.scale"}
    watch = made("moving_average_abs_max_scale", {"X": name}, seen, is_test=True)
    return [watch, *moving_pair(f"{out}.seen", scale, out)]


DIALECTS = {
    "channel-pair": Dialect(channel_pair(1), moving_pair),
    "channel-pair-even": Dialect(channel_pair(0), moving_pair),
    "tensor-pair": Dialect(tensor_pair, moving_pair),
    "channel-apart": Dialect(channel_apart, moving_apart),
    "tensor-apart": Dialect(tensor_apart, moving_apart),
    "observed": Dialect(channel_pair(1), observed),
}


def trained(graph: Graph, dialect: Dialect) -> Graph:
    """A network as its training in `dialect` would leave it; weights are those of the float32 model."""
    simulated = calibrate(graph, data(graph), algo="abs_max")
    normal = run_passes(graph, CALIBRATE)
    ops: list[Op] = []
    vars: dict[str, Var] = {}
    params = {name: normal.params[name] for name in normal.params}
    for op in simulated.ops:
        if op.type == "fake_quant":
            name, out = op.input("X"), op.output("Out")
            params[f"{out}.threshold"] = np.array([op.attr("threshold")], np.float32)
            new = dialect.activation(name, f"{out}.threshold", out)
            vars.update({written: simulated.vars[name] for made in new for written in made.writes})
            ops += new
        elif op.attr("weight_thresholds") and op.type in WEIGHT_SLOT:
            slot, axis = WEIGHT_SLOT[op.type]
            name = op.input(slot).removesuffix(".grid")
            new = dialect.weight(name, axis, f"{op.writes[0]}.w")
            for written in (written for made in new for written in made.writes):
                shape = (params[name].shape[axis],) if written.endswith(".scale") else params[name].shape
                vars[written] = Var(shape)
            plain = {key: attr for key, attr in op.attrs.items() if not key.startswith("weight_")}
            ops += [*new, replace(op, attrs=plain).rewired({op.input(slot): f"{op.writes[0]}.w"})]
        else:
            ops.append(op)
    described = {name: Var(value.shape) for name, value in params.items()}
    return replace(simulated, params=params, vars={**simulated.vars, **vars, **described}).evolve(ops)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())
@pytest.mark.parametrize("name", ["residual", "inverted"])
def test_what_training_leaves_is_read_as_what_it_simulates(name: str, dialect: Dialect, tmp_path: Path) -> None:
    graph = NETS[name]()
    model = trained(graph, dialect)
    int8, coverage = convert(model)
    weighted = ("conv2d", "depthwise_conv2d", "mul", "matmul_v2")
    assert sum(coverage.int8[kind] for kind in weighted) == sum(op.type in weighted for op in graph.ops)
    [batch] = data(graph, 1, seed=9)
    [fp32], [sim] = run(graph, batch, tmp_path), run(model, batch, tmp_path, NATIVE)
    [read] = run(lower_quantizers(lift_quantizers(model)), batch, tmp_path, NATIVE)
    [real] = run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(sim, real) > max(sqnr(fp32, sim), 25)
    assert sqnr(sim, read) > max(sqnr(fp32, sim), 25)  # classic ops round ties away from zero


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())
def test_weights_are_the_very_ones_that_paddle_rounds(dialect: Dialect, tmp_path: Path) -> None:
    """Bit by bit, channels that are zero or tiny and values halfway between two steps included."""
    model = trained(NETS["residual"](), dialect)
    weights = [op.input("Filter") for op in model.ops if op.type == "conv2d"]
    kinds = {op.type for op in dialect.weight("w", 0, "out")}
    name = next(op.input("X") for op in model.ops if op.input("X") in model.params and op.type in kinds)
    odd = model.params[name].copy()
    odd[0], odd[1] = 0, odd[1] * np.float32(1e-9)
    odd.reshape(len(odd), -1)[2, :4] = (127, 0.5, -1.5, 2.5)
    model = replace(model, params={**model.params, name: odd})
    lifted = lift_quantizers(model)
    [batch] = data(model, 1)
    its = run(replace(model, fetches=(*model.fetches, *weights)), batch, tmp_path, NATIVE)[1:]
    for weight, expected in zip(weights, its, strict=True):
        np.testing.assert_allclose(lifted.params[weight], expected, rtol=3e-7, atol=0)


def test_a_float_weight_between_linear_quantizers(tmp_path: Path) -> None:
    """quantize_linear -> dequantize_linear of a weight that is still float32, one scale a channel."""

    def weight(name: str, axis: int, out: str) -> list[Op]:
        reads = {"Scale": f"{out}.given", "ZeroPoint": "zero"}
        attrs = {"quant_axis": axis, "bit_length": 8, "qmin": -128, "qmax": 127, "round_type": 0, "is_test": True}
        return [
            made("quantize_linear", {"X": name, **reads}, {"Y": f"{out}.q"}, **attrs, only_observer=False),
            made("dequantize_linear", {"X": f"{out}.q", **reads}, {"Y": out}, **attrs, only_observer=False),
        ]

    graph = NETS["residual"]()
    model = trained(graph, Dialect(weight, moving_pair))
    params = {**model.params, "zero": np.zeros(1, np.float32)}
    for op in model.ops:
        if op.type == "quantize_linear":
            values, axis = params[op.input("X")], op.attr("quant_axis")
            params[op.input("Scale")] = np.abs(values).max(tuple({*range(values.ndim)} - {axis}))
    described = {name: Var(value.shape) for name, value in params.items()}
    model = replace(model, params=params, vars={**model.vars, **described})
    int8, coverage = convert(model)
    assert not coverage.fp32["conv2d"] and coverage.int8["conv2d"] > 3
    [batch] = data(graph, 1, seed=9)
    [sim], [real] = run(model, batch, tmp_path, NATIVE), run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(sim, real) > 25


def test_weights_of_a_conv1d_behind_their_quantizer(tmp_path: Path) -> None:
    """A scale a channel, int8 weights, then unsqueeze2: the channels stay the channels."""
    net = Net()
    net.vars["x"] = Var((-1, 8, 16))
    weight = net.param(8, 8, 3, scale=0.3)
    channels = channel_pair(1)(weight, 0, "rounded")
    net.vars |= {"rounded": Var((8, 8, 3)), "rounded.scale": Var((8,))}
    net.ops += channels
    wide = net.op("unsqueeze2", {"X": "rounded"}, shape=(8, 8, 1, 3), axes=[-2])
    net.params["threshold"] = np.array([3.0], np.float32)
    net.vars |= {"threshold": Var((1,)), "xq": Var((-1, 8, 16))}
    net.ops += moving_pair("x", "threshold", "xq")
    x = net.op("unsqueeze2", {"X": "xq"}, shape=(-1, 8, 1, 16), axes=[-2])
    y = net.op("conv2d", {"Input": x, "Filter": wide}, "Output", (-1, 8, 1, 16), **{**CONV, "paddings": [0, 1]})
    graph = net.graph(net.act(net.op("squeeze2", {"X": y}, shape=(-1, 8, 16), axes=[-2])))
    int8, coverage = convert(graph)
    assert coverage.int8["conv2d"] == 1
    [batch] = data(graph, 1)
    [sim], [real] = run(graph, batch, tmp_path, NATIVE), run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(sim, real) > 45  # what is halfway between two steps, the quantizer rounds away from zero


def square(axis: int) -> Graph:
    net = Net()
    name = net.param(8, 8, 1, 1)
    net.vars |= {"w": Var((8, 8, 1, 1)), "w.scale": Var((8,)), "threshold": Var((1,)), "xq": net.vars["x"]}
    net.params["threshold"] = np.array([3.0], np.float32)
    net.ops += [*channel_pair(1)(name, axis, "w"), *moving_pair("x", "threshold", "xq")]
    first = net.op("conv2d", {"Input": "xq", "Filter": "w"}, "Output", (-1, 8, 8, 8), **CONV)
    return net.graph(first)


def test_scales_of_another_dimension_than_the_channels_are_no_channels_scales() -> None:
    """8 inputs, 8 outputs: the number of scales doesn't say which they belong to."""
    with pytest.raises(ConversionError, match="scales along dimension 1, and its output channels are dimension 0"):
        convert(square(1))
    assert convert(square(0))[1].int8["conv2d"] == 1


def test_a_scale_that_is_computed_anew_at_each_run() -> None:
    model = trained(NETS["residual"](), Dialect(tensor_pair, lambda name, scale, out: tensor_pair(name, 0, out)))
    with pytest.raises(ConversionError, match=r"activation anew at each run .*moving_average_abs_max"):
        convert(model)


@pytest.mark.parametrize(
    ("kind", "who"),
    [
        ("weight_only_linear", "PaddleNLP"),
        ("dequantize_abs_max", "quant_embedding"),
        ("fake_quantize_odd", "PaddleSlim"),
    ],
)
def test_what_cannot_be_read_names_who_wrote_it(kind: str, who: str) -> None:
    net = Net()
    graph = net.graph(net.op(kind, {"X": "x", "InScale": net.param(1)}))
    for made_of in (convert, lambda graph: calibrate(graph, data(graph))):
        with pytest.raises(ConversionError, match=f"{kind}.*{who}.*quant ptq"):
            made_of(graph)


# --- weights alone


def weights_alone(graph: Graph) -> Graph:
    """int8 weights behind dequantize_linear, activations as they are."""
    simulated = calibrate(graph, data(graph), algo="abs_max")
    rounded = {op.output("Out"): op.input("X") for op in simulated.ops if op.type == "fake_quant"}
    kept = [op.rewired(rounded) for op in simulated.ops if op.type != "fake_quant"]
    return lower_quantizers(simulated.evolve(kept))


def integers_in_attributes(graph: Graph) -> Graph:
    """As paddle.static.quantization.WeightQuantization writes it: what a filter holds is int8."""
    normal = run_passes(graph, CALIBRATE)
    ops, params = [], {}
    for op in normal.ops:
        if op.type in WEIGHT_SLOT:
            slot, axis = WEIGHT_SLOT[op.type]
            name = op.input(slot)
            values = normal.params[name]
            steps = np.abs(values).max(tuple({*range(values.ndim)} - {axis}), keepdims=True) / 127
            params[name] = np.around(values / steps).astype(np.int8)
            op = op.with_attrs(**{f"{name}_quant_scale": [float(step) for step in steps.reshape(-1)]})
            op = op.with_attrs(quantization_type="post_weight_channel_wise_abs_max", quantize_weight_bits=8)
        ops.append(op)
    return replace(normal, ops=tuple(ops), params={**normal.params, **params})


@pytest.mark.parametrize("write", [weights_alone, integers_in_attributes])
def test_a_model_of_which_only_the_weights_are_quantized_is_calibrated(
    write: Callable[[Graph], Graph], tmp_path: Path
) -> None:
    graph = NETS["residual"]()
    model = write(graph)
    assert any(value.dtype == np.int8 for value in model.params.values())
    with pytest.raises(ConversionError, match=r"only its weights are quantized: calibrate it"):
        convert(model)
    simulated = lower_quantizers(calibrate(model, data(graph), algo="abs_max"))
    int8, coverage = convert(simulated)
    assert coverage.int8["conv2d"] == graph.op_counts()["conv2d"] and coverage.int8["matmul_v2"] == 1
    [batch] = data(graph, 1, seed=9)
    [fp32], [sim] = run(graph, batch, tmp_path, NATIVE), run(simulated, batch, tmp_path, NATIVE)
    [real] = run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(fp32, sim) > 25 and sqnr(sim, real) > max(sqnr(fp32, sim), 30)
    (tmp_path / "model").mkdir()
    save_dir(model, tmp_path / "model")
    [told] = survey(str(tmp_path / "model"), 127)
    assert told["kind"] == "fp32" and told["int8"]["conv2d"] == coverage.int8["conv2d"] and not told["why"]


def test_calibrating_what_is_fake_quantized_already() -> None:
    graph = NETS["residual"]()
    with pytest.raises(ConversionError, match="fake-quantized already"):
        calibrate(trained(graph, DIALECTS["channel-pair"]), data(graph))
    assert lift_weights(graph) is graph


def test_scales_in_attributes_only() -> None:
    graph = NETS["residual"]()
    marked = replace(graph, ops=tuple(op.with_attrs(out_threshold=2.5) for op in graph.ops))
    with pytest.raises(ConversionError, match=r"out_threshold.*PaddleSlim.*quant ptq"):
        convert(marked)


# --- Paddle's own tools


class Small(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = paddle.nn.Conv2D(3, 8, 3, padding=1), paddle.nn.Conv2D(8, 8, 3, padding=1)
        self.relu, self.last = paddle.nn.ReLU(), paddle.nn.Linear(8 * 64, 6)

    def forward(self, x: Any) -> Any:
        return self.last(paddle.flatten(self.relu(self.second(self.relu(self.first(x)))), 1))


@pytest.mark.parametrize("weights", ["channel_wise_abs_max", "abs_max"])
@pytest.mark.parametrize("onnx_format", [False, True])
def test_dygraphs_quantization_aware_training(
    weights: str, onnx_format: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImperativeQuantAware, as PaddleSlim's QAT and PaddleOCR's slim models use it."""
    from paddle.quantization import ImperativeQuantAware
    from paddle.quantization.imperative import utils

    # Paddle's own calls float() of an array of one value, which NumPy 2.5 refuses.
    monkeypatch.setattr(utils, "fp_numpy_to_naive", lambda array: array.reshape(-1).tolist())
    paddle.seed(0)
    tool = ImperativeQuantAware(
        weight_quantize_type=weights,
        activation_quantize_type="moving_average_abs_max",
        quantizable_layer_type=["Conv2D", "Linear"],
        onnx_format=onnx_format,
    )
    model = Small()
    tool.quantize(model)
    random = np.random.default_rng(0)
    for _ in range(4):
        model(paddle.to_tensor(random.standard_normal((8, 3, 8, 8)).astype(np.float32)))
    model.eval()
    spec = [paddle.static.InputSpec([None, 3, 8, 8], "float32", "x")]
    tool.save_quantized_model(model, str(tmp_path / "model" / "inference"), input_spec=spec)
    paddle.disable_static()
    graph = load_dir(tmp_path / "model")
    int8, coverage = convert(graph)
    assert coverage.int8["conv2d"] == 2 and coverage.int8["matmul_v2"] == 1
    batch = {graph.feeds[0]: random.standard_normal((8, 3, 8, 8)).astype(np.float32)}
    (tmp_path / "runs").mkdir()
    [sim], [real] = (run(g, batch, tmp_path / "runs", how) for g, how in ((graph, NATIVE), (int8, Settings("int8"))))
    assert sqnr(sim, real) > 35
