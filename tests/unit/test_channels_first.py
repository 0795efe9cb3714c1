"""Parameters computed from parameters, channels-last programs, Conv1D: they keep their outputs, and become INT8."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.errors import ConversionError
from quant.ir.graph import DTYPE_NUMBERS, Graph, Op, Var, run_passes
from quant.ir.passes import NORMALISE, channels_first, fold_parameters, lower_quantizers
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime import predictor
from quant.runtime.predictor import Settings
from tests.nets import CONV, NATIVE, NETS, Net, data, run

FLOAT = DTYPE_NUMBERS["float32"]


def conv1d(net: Net, x: str, out: int, taps: int, dilation: int = 1, *, shared: str = "") -> str:
    """As Paddle exports it: [N, C, L] with the weight through assign and unsqueeze2, the bias before squeeze2."""
    _, channels, length = net.vars[x].shape
    weight = shared or net.param(out, channels, taps, scale=0.3)
    weight = net.op("assign", {"X": weight})
    weight = net.op("unsqueeze2", {"X": weight}, shape=(out, channels, 1, taps), axes=[-2])
    x = net.op("unsqueeze2", {"X": x}, shape=(-1, channels, 1, length), axes=[-2])
    attrs = {**CONV, "dilations": [1, dilation], "paddings": [0, taps // 2 * dilation]}
    y = net.op("conv2d", {"Input": x, "Filter": weight}, "Output", (-1, out, 1, length), **attrs)
    return net.op("squeeze2", {"X": net.bias(y)}, shape=(-1, out, length), axes=[-2])


def sequence(channels: int = 8, length: int = 16) -> Net:
    net = Net()
    net.vars["x"] = Var((-1, channels, length))
    return net


def stacked() -> Graph:
    """Convolutions along a sequence with a residual, different activations, then a mean and a product."""
    net = sequence()
    y = net.act(conv1d(net, "x", 8, 3))
    z = net.act(net.add(y, conv1d(net, net.act(conv1d(net, y, 8, 3, 2), "leaky_relu"), 8, 3)))
    net.op("reduce_mean", {"X": z}, shape=(-1, 8), dim=[2], keep_dim=False, reduce_all=False)
    return net.graph(net.linear(f"t{len(net.ops) - 1}", 6))


def shared_weight() -> Graph:
    net = sequence()
    weight = net.param(8, 8, 3, scale=0.3)
    first = net.act(conv1d(net, "x", 8, 3, shared=weight))
    return net.graph(conv1d(net, first, 8, 3, shared=weight))


class Last(Net):
    """Nets whose images are channels last: [-1, 8, 8, C]."""

    def __init__(self, channels: int = 8, side: int = 8) -> None:
        super().__init__()
        self.vars["x"] = Var((-1, side, side, channels))

    def conv(self, x: str, out: int, kernel: int = 1, groups: int = 1, type: str = "conv2d") -> str:
        _, side, _, channels = self.vars[x].shape
        weight = self.param(out, channels // groups, kernel, kernel, scale=1 / kernel)
        attrs = {**CONV, "groups": groups, "paddings": [kernel // 2] * 2, "data_format": "NHWC"}
        return self.op(type, {"Input": x, "Filter": weight}, "Output", (-1, side, side, out), **attrs)

    def bias(self, x: str) -> str:
        return self.op("elementwise_add", {"X": x, "Y": self.param(self.vars[x].shape[3])}, axis=-1)

    def bias_as_paddle_exports_it(self, x: str) -> str:
        channels = self.vars[x].shape[3]
        shaped = self.op("reshape2", {"X": self.param(channels)}, shape=(1, 1, 1, channels))
        self.ops[-1] = self.ops[-1].with_attrs(shape=[1, 1, 1, channels])
        return self.op("elementwise_add", {"X": x, "Y": shaped}, axis=-1)

    def norm(self, x: str, **attrs: Any) -> str:
        shape = self.vars[x].shape
        self.vars[x] = Var((shape[0], shape[3], *shape[1:3]))  # for the statistics' size
        out = super().norm(x, **attrs)
        self.vars[x] = self.vars[out] = Var(shape)
        self.ops[-1] = self.ops[-1].with_attrs(data_layout="NHWC")
        return out

    def pool(self, x: str, kind: str = "max") -> str:
        _, side, _, channels = self.vars[x].shape
        attrs = {"pooling_type": kind, "ksize": [2, 2], "strides": [2, 2], "paddings": [0, 0], "exclusive": True}
        attrs |= {"global_pooling": False, "adaptive": False, "ceil_mode": False, "data_format": "NHWC"}
        return self.op("pool2d", {"X": x}, shape=(-1, side // 2, side // 2, channels), **attrs)

    def mean(self, x: str, keep: bool) -> str:
        channels = self.vars[x].shape[3]
        shape = (-1, 1, 1, channels) if keep else (-1, channels)
        return self.op("reduce_mean", {"X": x}, shape=shape, dim=[1, 2], keep_dim=keep, reduce_all=False)

    def concat(self, *names: str) -> str:
        shape = self.vars[names[0]].shape
        return self.op(
            "concat", {"X": names}, shape=(*shape[:3], sum(self.vars[name].shape[3] for name in names)), axis=-1
        )


def last_residual() -> Graph:
    """Batch norms, an exported bias, a residual, a depthwise convolution, pooling, a mean over the image."""
    net = Last()
    stem = net.act(net.norm(net.bias_as_paddle_exports_it(net.conv("x", 8, 3))))
    deep = net.norm(net.conv(stem, 8, 3, groups=8, type="depthwise_conv2d"))
    block = net.act(net.add(net.bias(net.conv(net.act(deep, "relu6"), 8)), stem))
    return net.graph(net.linear(net.mean(net.pool(block), keep=False), 6))


def last_branches() -> Graph:
    """concat and split along the channels, squeeze and excitation, a constant factor, softmax: an image comes out."""
    net = Last()
    stem = net.act(net.bias(net.conv("x", 8, 3)))
    both = net.concat(net.act(net.bias(net.conv(stem, 8, 3))), net.act(stem, "tanh"))
    gate = net.act(net.bias(net.conv(net.mean(both, keep=True), 16)), "sigmoid")
    gated = net.op("elementwise_mul", {"X": both, "Y": gate}, axis=-1)
    halves = tuple(f"half{part}" for part in range(2))
    net.vars.update(dict.fromkeys(halves, Var((-1, 8, 8, 8))))
    attrs = Op.make("", {}, {}, num=2, sections=[8, 8], axis=3).attrs
    net.ops.append(Op("split", {"X": (gated,)}, {"Out": halves}, attrs))
    added = net.add(*halves)
    return net.graph(net.op("softmax", {"X": net.bias(net.conv(added, 8))}, axis=-1))


def last_flat() -> Graph:
    """An image that is flattened channels last, which has to stay behind a transpose."""
    net = Last()
    y = net.pool(net.act(net.norm(net.conv("x", 8, 3))))
    return net.graph(net.head(net.pool(net.act(net.bias(net.conv(y, 8, 3))), "avg")))


def last_sequence() -> Graph:
    """A Conv1D of [N, L, C]: channels last, and one dimension put in before it and taken out behind it."""
    net = Net()
    net.vars["x"] = Var((-1, 16, 8))
    y = "x"
    for kind in ("relu", "tanh"):
        weight = net.op("unsqueeze2", {"X": net.param(8, 8, 3, scale=0.3)}, shape=(8, 8, 1, 3), axes=[2])
        y = net.op("unsqueeze2", {"X": y}, shape=(-1, 1, 16, 8), axes=[-3])
        attrs = {**CONV, "paddings": [0, 1], "data_format": "NHWC"}
        y = net.op("conv2d", {"Input": y, "Filter": weight}, "Output", (-1, 1, 16, 8), **attrs)
        y = net.op("elementwise_add", {"X": y, "Y": net.param(8)}, axis=3)
        y = net.act(net.op("squeeze2", {"X": y}, shape=(-1, 16, 8), axes=[-3]), kind)
    return net.graph(y)


def last_pooled() -> Graph:
    """[N, 1, 1, C], flattened: no transpose is left."""
    net = Last()
    y = net.mean(net.act(net.bias(net.conv("x", 8, 3))), keep=True)
    return net.graph(net.head(y))


LAST = {"residual": last_residual, "branches": last_branches, "flat": last_flat, "sequence": last_sequence,
        "pooled": last_pooled}  # fmt: skip
ALONG = {"stacked": stacked, "shared": shared_weight}
ALL = {**{f"last-{name}": make for name, make in LAST.items()}, **ALONG}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_outputs_stay_and_all_becomes_int8(make: Callable[[], Graph], tmp_path: Path) -> None:
    graph = make()
    normal = run_passes(graph, NORMALISE)
    assert not any("NHWC" in (op.attr("data_format"), op.attr("data_layout")) for op in normal.ops)
    [batch] = data(graph, 1, seed=9)
    [before], [after] = (run(g, batch, tmp_path, NATIVE) for g in (graph, normal))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    simulated = lower_quantizers(calibrate(graph, data(graph), algo="abs_max"))
    int8, coverage = convert(simulated)
    weighted = ("conv2d", "depthwise_conv2d", "matmul_v2")
    assert sum(coverage.int8[kind] for kind in weighted) == sum(op.type in weighted for op in graph.ops)
    [sim], [real] = run(simulated, batch, tmp_path, NATIVE), run(int8, batch, tmp_path, Settings("int8"))
    assert sqnr(before, sim) > 15
    assert sqnr(sim, real) > max(sqnr(before, sim), 30)


@pytest.mark.parametrize(("name", "moves"), [("residual", 1), ("branches", 2), ("flat", 2), ("pooled", 1)])
def test_transposes_are_left_at_the_borders_alone(name: str, moves: int) -> None:
    normal = run_passes(LAST[name](), NORMALISE)
    assert normal.op_counts()["transpose2"] == moves


def test_values_pass_between_convolutions_along_a_sequence_as_int8() -> None:
    normal = run_passes(stacked(), NORMALISE)
    assert normal.op_counts()["unsqueeze2"] == 1 and normal.op_counts()["squeeze2"] == 1
    int8, _ = convert(calibrate(stacked(), data(stacked()), algo="abs_max"))
    assert int8.op_counts()["quantize"] == 2  # the input, and what the product reads
    fused = [op for op in int8.ops if op.type == "fused_conv2d"]
    assert [op.attr("fuse_activation") for op in fused] == ["relu", "leaky_relu", "relu"]
    assert fused[2].attr("fuse_residual_connection")


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_other_programs_come_back_as_they_are(make: Callable[[], Graph]) -> None:
    graph = make()
    assert channels_first(graph) is graph


def test_again_changes_nothing() -> None:
    for make in ALL.values():
        once = run_passes(make(), (fold_parameters, channels_first))
        assert channels_first(once) is once and fold_parameters(once) is once


def test_a_fetched_tensor_keeps_its_layout(tmp_path: Path) -> None:
    """Also one that would have gone: a squeeze before its inverse, an activation behind a transpose."""
    kinds = ("conv2d", "relu", "batch_norm", "squeeze2")
    for graph in (stacked(), last_residual()):
        net = replace(graph, fetches=tuple(op.writes[0] for op in graph.ops if op.type in kinds))
        [batch] = data(net, 1)
        before = run(net, batch, tmp_path, NATIVE)
        after = run(run_passes(net, (fold_parameters, channels_first)), batch, tmp_path, NATIVE)
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_a_program_that_writes_in_place_is_left_alone() -> None:
    graph = last_pooled()
    twice = replace(graph, ops=(*graph.ops, Op.make("relu", {"X": graph.fetches[0]}, {"Out": graph.fetches[0]})))
    assert channels_first(twice) is twice


# --- parameters

CHAINS: dict[str, Callable[[Net, str], str]] = {
    "reshape": lambda net, x: net.op("reshape2", {"X": x}, shape=(6, 2, 4)),
    "transpose": lambda net, x: net.op("transpose2", {"X": x}, shape=(4, 3, 4), axis=[2, 0, 1]),
    "unsqueeze": lambda net, x: net.op("unsqueeze2", {"X": x}, shape=(3, 1, 4, 4), axes=[1]),
    "flatten": lambda net, x: net.op("flatten_contiguous_range", {"X": x}, shape=(3, 16), start_axis=1, stop_axis=2),
    "scale": lambda net, x: net.op("scale", {"X": x}, scale=0.3, bias=0.7, bias_after_scale=True),
    "scale before": lambda net, x: net.op("scale", {"X": x}, scale=0.3, bias=0.7, bias_after_scale=False),
    "cast": lambda net, x: net.op("cast", {"X": x}, in_dtype=FLOAT, out_dtype=DTYPE_NUMBERS["int32"]),
    "assign": lambda net, x: net.op("assign", {"X": x}),
    "slice": lambda net, x: net.op(
        "slice", {"Input": x}, shape=(3, 2), axes=[1, 2], starts=[1, -3], ends=[2, 100], decrease_axis=[1]
    ),
    "concat": lambda net, x: net.op("concat", {"X": (x, net.param(3, 4, 4))}, shape=(3, 8, 4), axis=1),
    "add": lambda net, x: net.op("elementwise_add", {"X": x, "Y": net.param(4, 4)}, axis=-1),
    "times": lambda net, x: net.op("elementwise_mul", {"X": x, "Y": net.param(3)}, axis=0),
    "minus": lambda net, x: net.op("elementwise_sub", {"X": x, "Y": net.param(4)}, axis=1),
    "over": lambda net, x: net.op("elementwise_div", {"X": x, "Y": net.param(1)}, axis=-1),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_parameters_compute_is_what_paddle_computes(name: str, tmp_path: Path) -> None:
    net = Net()
    made = CHAINS[name](net, net.param(3, 4, 4, scale=3.0))
    if name == "reshape":
        net.ops[-1] = net.ops[-1].with_attrs(shape=[6, 2, -1])
    dtype = "int32" if name == "cast" else "float32"
    net.vars[made] = net.vars[made]._replace(dtype=dtype)
    given = net.op("cast", {"X": made}, in_dtype=DTYPE_NUMBERS[dtype], out_dtype=FLOAT)
    net.vars[given] = Var(net.vars[made].shape)
    # What is fetched isn't folded, so Paddle computes it: beside what is folded, added to zeros of the input.
    zeros = net.op("scale", {"X": "x"}, scale=0.0, bias=0.0)
    total = net.op("reduce_sum", {"X": zeros}, shape=(1,), reduce_all=True, dim=[0], keep_dim=True)
    out = net.op("elementwise_add", {"X": total, "Y": given}, shape=net.vars[made].shape, axis=-1)
    graph = net.graph(out)
    folded = fold_parameters(graph)
    assert given in folded.params and len(folded.ops) == 3
    [batch] = data(graph, 1)
    [its], [mine] = (run(g, batch, tmp_path, NATIVE) for g in (graph, folded))
    np.testing.assert_array_equal(mine, its)


def test_a_shared_parameter_is_folded_to_one_for_each_result() -> None:
    graph = shared_weight()
    folded = fold_parameters(graph)
    convs = [op for op in folded.ops if op.type == "conv2d"]
    weights = [op.input("Filter") for op in convs]
    assert len(set(weights)) == 2 and "assign" not in folded.op_counts()
    np.testing.assert_array_equal(*(folded.params[name] for name in weights))


def test_constants_of_the_program_count_beside_a_parameter_only() -> None:
    net = Net()
    net.ops.append(
        Op("fill_constant", {}, {"Out": ("half",)}, Op.make("", {}, {}, shape=[1], value=0.5, dtype=FLOAT).attrs)
    )
    net.vars["half"] = Var((1,))
    alone = net.graph(net.add(net.act("x"), "half"))
    assert fold_parameters(alone) is alone
    weight = net.op("elementwise_mul", {"X": net.param(8, 8, 1, 1), "Y": "half"}, axis=-1)
    graph = net.graph(net.op("conv2d", {"Input": "x", "Filter": weight}, "Output", (-1, 8, 8, 8), **CONV))
    folded = fold_parameters(graph)
    np.testing.assert_array_equal(folded.params[weight], graph.params["p0"] * np.float32(0.5))
    assert "elementwise_mul" not in folded.op_counts()


def test_parameters_without_values_and_fetched_ones_are_left_alone() -> None:
    net = Net()
    graph = net.graph(net.op("scale", {"X": net.param(3)}, scale=2.0, bias=0.0), net.act("x"))
    assert fold_parameters(graph) is graph
    graph = shared_weight()
    unknown = replace(graph, params={name: np.empty(0, np.float32) for name in graph.params})
    assert fold_parameters(unknown) is unknown
    net = Net()
    by_tensor = net.op("scale", {"X": net.param(3), "ScaleTensor": net.param(1)}, bias=0.0)
    graph = net.graph(net.op("elementwise_add", {"X": "x", "Y": by_tensor}, axis=1))
    assert fold_parameters(graph) is graph


# --- as Paddle runs them, and why something stays float32


def test_paddles_optimisation_breaks_channels_last_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, Paddle has been mended: let such programs be optimised (quant.runtime.predictor)."""
    graph = last_flat()
    [batch] = data(graph, 1)
    [expected] = run(graph, batch, tmp_path, NATIVE)
    for settings in (Settings(), Settings(onednn=False)):
        [found] = run(graph, batch, tmp_path, settings)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(predictor, "_CHANNELS_LAST", set())
    [found] = run(graph, batch, tmp_path, Settings(onednn=False))
    assert sqnr(expected, found) < 20


def test_a_layout_that_stays_is_the_reason() -> None:
    net = Last()
    net.vars["x"] = Var((-1, 8, 8, 8))
    y = net.conv("x", 8)
    net.vars["x"] = net.vars[y] = Var(())  # of unknown rank: nothing can be said of its dimensions
    with pytest.raises(ConversionError, match="conv2d: its layout is NHWC, and there are INT8 kernels for NCHW only"):
        calibrate(net.graph(y), [])


def test_what_multiplies_says_why_it_is_float32() -> None:
    net = Net()
    flat = net.op("flatten_contiguous_range", {"X": "x"}, shape=(-1, 512), start_axis=1, stop_axis=-1)
    weight = net.param(6, 512)
    y = net.op("matmul_v2", {"X": flat, "Y": weight}, shape=(-1, 6), trans_x=False, trans_y=True)
    with pytest.raises(ConversionError, match=r"matmul_v2: it transposes a factor \(trans_y\)"):
        calibrate(net.graph(y), [])
    net = Net()
    y = net.op("conv2d", {"Input": "x", "Filter": net.act(net.param(8, 8, 1, 1))}, "Output", (-1, 8, 8, 8), **CONV)
    with pytest.raises(ConversionError, match=r"conv2d: its filter 't0' is computed when the model runs"):
        calibrate(net.graph(y), [])
