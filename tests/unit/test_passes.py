"""Each pass: a graph it changes (outputs hold), and graphs it must give back as they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.ir.graph import DTYPE_NUMBERS, Graph, Pass, run_passes
from quant.ir.numerics import channel_thresholds, dequantise, quantise
from quant.ir.passes import (
    NORMALISE,
    bias_as_vector,
    drop_identities,
    fold_batch_norm,
    fold_scale,
    hoist_quantizers,
    lower_quantizers,
    norm_as_conv,
    pad_as_pad3d,
)
from tests.nets import NATIVE, NETS, Net, data, run


def dropout(net: Net, x: str, mode: str) -> str:
    return net.op("dropout", {"X": x}, dropout_implementation=mode, dropout_prob=0.5, is_test=True)


def with_identities() -> Graph:
    net = Net()
    x = dropout(net, net.act("x"), "upscale_in_train")
    x = net.op("scale", {"X": x}, scale=1.0, bias=0.0)
    x = net.op("assign", {"X": net.concat(x)})
    x = net.op("transpose2", {"X": x}, axis=[0, 1, 2, 3])
    x = net.op("cast", {"X": x}, in_dtype=DTYPE_NUMBERS["float32"], out_dtype=DTYPE_NUMBERS["float32"])
    single = {"ksize": [1, 1], "strides": [1, 1], "paddings": [0, 0]}
    return net.graph(net.act(net.op("pool2d", {"X": x}, pooling_type="avg", **single)))


def with_exported_bias() -> Graph:
    net = Net()
    return net.graph(net.act(net.bias_as_paddle_exports_it(net.conv("x", 4))))


def with_norm() -> Graph:
    net = Net()
    first = net.act(net.norm(net.conv("x", 4, 3)))
    return net.graph(net.norm(net.bias(net.conv(first, 4, 3, groups=4, type="depthwise_conv2d"))))


def with_pad() -> Graph:
    net = Net(4)
    return net.graph(net.op("pad", {"X": "x"}, shape=(-1, 7, 11, 13), paddings=[0, 0, 1, 2, 0, 3, 4, 1], pad_value=0.5))


def with_old_dropout() -> Graph:
    """As Paddle 1.x trained it: at inference it multiplies by 1 - p. Once behind a product, once only before one."""
    net = Net()
    x = net.head(dropout(net, net.pool("x", "avg"), "downgrade_in_infer"), 16)
    return net.graph(net.linear(dropout(net, net.act(x), "downgrade_in_infer"), 6))


def with_scale_before_conv() -> Graph:
    net = Net()
    return net.graph(net.conv(net.pool(net.op("scale", {"X": net.act("x", "tanh")}, scale=3.0, bias=0.0)), 4, 3))


def with_norm_first() -> Graph:
    net = Net()
    joined = net.concat("x", net.act("x"))
    first = net.act(net.norm(joined), "leaky_relu")
    return net.graph(net.concat(net.conv(first, 4), net.conv(first, 4, 3), net.conv(net.norm(joined), 4)))


CHANGES = [
    (
        norm_as_conv,
        with_norm_first,
        {"relu": 1, "concat": 2, "depthwise_conv2d": 2, "elementwise_add": 2, "leaky_relu": 1, "conv2d": 3},
    ),
    (drop_identities, with_identities, {"relu": 2}),
    (bias_as_vector, with_exported_bias, {"conv2d": 1, "elementwise_add": 1, "relu": 1}),
    (fold_batch_norm, with_norm, {"conv2d": 1, "elementwise_add": 2, "relu": 1, "depthwise_conv2d": 1}),
    (fold_scale, with_scale_before_conv, {"tanh": 1, "pool2d": 1, "conv2d": 1}),
    (
        fold_scale,
        with_old_dropout,
        {"pool2d": 1, "flatten_contiguous_range": 1, "matmul_v2": 2, "elementwise_add": 2, "relu": 1},
    ),
    (pad_as_pad3d, with_pad, {"unsqueeze2": 1, "pad3d": 1, "squeeze2": 1}),
]


@pytest.mark.parametrize(("rewrite", "build", "after"), CHANGES, ids=[row[1].__name__ for row in CHANGES])
def test_rewrites_and_outputs_hold(rewrite: Pass, build, after: dict[str, int], tmp_path: Path) -> None:
    graph = build()
    rewritten = rewrite(graph)
    assert dict(rewritten.op_counts()) == after
    [batch] = data(graph, 1)
    [before], [now] = (run(g, batch, tmp_path, NATIVE) for g in (graph, rewritten))
    np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-4)
    assert rewrite(rewritten) is rewritten


def scaled() -> Graph:
    net = Net()
    return net.graph(net.act(net.op("scale", {"X": "x"}, scale=2.0, bias=0.0)))


def downgraded() -> Graph:
    net = Net()
    return net.graph(net.act(dropout(net, "x", "downgrade_in_infer")))


def scaled_before_two() -> Graph:
    net = Net()
    x = net.op("scale", {"X": "x"}, scale=2.0, bias=0.0)
    return net.graph(net.conv(x, 4), net.act(x))


def scaled_before_tanh() -> Graph:
    net = Net()
    return net.graph(net.conv(net.act(net.op("scale", {"X": "x"}, scale=2.0, bias=0.0), "tanh"), 4))


def norm_of_other_channels() -> Graph:
    """What no model has, and a damaged one may."""
    net = Net()
    net.norm(net.conv("x", 4))
    net.params[net.ops[-1].inputs["Mean"][0]] = np.zeros(3, np.float32)
    return net.graph("t1")


def bias_of_a_computed_weight() -> Graph:
    net = Net()
    out = net.bias(net.conv("x", 4))
    net.ops[0] = replace(net.ops[0], inputs={**net.ops[0].inputs, "Filter": ("x",)})
    return net.graph(out)


def fetched_identity() -> Graph:
    net = Net()
    return net.graph(dropout(net, net.act("x"), "upscale_in_train"))


def add_of_a_map() -> Graph:
    net = Net()
    return net.graph(net.op("elementwise_add", {"X": net.conv("x", 4), "Y": net.param(1, 1, 8, 8)}, axis=-1))


def bias_after_relu() -> Graph:
    net = Net()
    return net.graph(net.bias_as_paddle_exports_it(net.act("x")))


def norm_of_a_relu() -> Graph:
    net = Net()
    return net.graph(net.norm(net.act("x")))


def norm_in_training() -> Graph:
    net = Net()
    graph = net.graph(net.norm(net.conv("x", 4)))
    return replace(graph, ops=(graph.ops[0], graph.ops[1].with_attrs(is_test=False)))


def conv_with_two_readers() -> Graph:
    net = Net()
    conv = net.conv("x", 4)
    return net.graph(net.norm(conv), net.act(conv))


def pad_of_the_batch() -> Graph:
    net = Net()
    return net.graph(net.op("pad", {"X": "x"}, paddings=[0, 1, 0, 0, 0, 0, 0, 0], pad_value=0.0))


def norm_before_a_float_op() -> Graph:
    net = Net()
    x = net.act(net.norm("x"))
    return net.graph(net.conv(x, 4), net.pool(x, "avg"))


def norm_that_is_fetched() -> Graph:
    net = Net()
    x = net.norm("x")
    return net.graph(x, net.conv(x, 4))


def padded_single_values() -> Graph:
    net = Net()
    attrs = {"ksize": [1, 1], "strides": [1, 1], "paddings": [1, 1], "pooling_type": "max"}
    return net.graph(net.act(net.op("pool2d", {"X": "x"}, shape=(-1, 8, 10, 10), **attrs)))


LEAVES = [
    (drop_identities, padded_single_values),
    (norm_as_conv, norm_before_a_float_op),
    (norm_as_conv, norm_that_is_fetched),
    (fold_scale, scaled),
    (fold_scale, scaled_before_two),
    (fold_scale, scaled_before_tanh),
    (drop_identities, scaled),
    (drop_identities, downgraded),
    (drop_identities, fetched_identity),
    (bias_as_vector, add_of_a_map),
    (bias_as_vector, bias_after_relu),
    (fold_batch_norm, norm_of_a_relu),
    (fold_batch_norm, norm_in_training),
    (fold_batch_norm, norm_of_other_channels),
    (bias_as_vector, bias_of_a_computed_weight),
    (fold_batch_norm, conv_with_two_readers),
    (pad_as_pad3d, pad_of_the_batch),
]


@pytest.mark.parametrize(("rewrite", "build"), LEAVES, ids=[f"{r.__name__}-{b.__name__}" for r, b in LEAVES])
def test_must_not_touch(rewrite: Pass, build) -> None:
    graph = build()
    assert rewrite(graph) is graph


@pytest.mark.parametrize("name", NETS)
def test_normalising_keeps_outputs(name: str, tmp_path: Path) -> None:
    graph = NETS[name]()
    [batch] = data(graph, 1)
    [before], [after] = (run(g, batch, tmp_path, NATIVE) for g in (graph, run_passes(graph, NORMALISE)))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_folding_keeps_a_quantised_weight_on_its_grid() -> None:
    net = Net()
    conv = net.conv("x", 4)
    graph = net.graph(net.norm(conv))
    [weight] = graph.ops[0].inputs["Filter"]
    peaks = channel_thresholds(graph.params[weight], 0)
    on_grid = dequantise(quantise(graph.params[weight], peaks, 127), peaks, 127)
    first = graph.ops[0].with_attrs(weight_thresholds=[float(p) for p in peaks], weight_levels=127)
    graph = replace(graph, ops=(first, *graph.ops[1:]), params={**graph.params, weight: on_grid})
    folded = fold_batch_norm(graph)
    conv_op = folded.ops[0]
    thresholds = np.array(conv_op.attr("weight_thresholds"))[:, None, None, None]
    steps = folded.params[conv_op.input("Filter")] / thresholds * 127
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def quantised(net: Net, x: str, threshold: float = 2.0, levels: int = 127) -> str:
    return net.op("fake_quant", {"X": x}, threshold=threshold, levels=levels)


def hoistable() -> Graph:
    net = Net()
    pooled = net.pool(net.act("x"))
    return net.graph(net.conv(quantised(net, pooled), 4), net.conv(quantised(net, pooled), 4))


def test_hoisting_is_exact_and_merges_equal_quantisers(tmp_path: Path) -> None:
    graph = hoistable()
    hoisted = hoist_quantizers(graph)
    assert [op.type for op in hoisted.ops] == ["relu", "fake_quant", "pool2d", "conv2d", "conv2d"]
    [batch] = data(graph, 1)
    before, after = (run(lower_quantizers(g), batch, tmp_path, NATIVE) for g in (graph, hoisted))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_hoisting_leaves_averages_unlike_grids_and_float_readers() -> None:
    net = Net()
    average = net.graph(net.conv(quantised(net, net.pool(net.act("x"), "avg")), 4))
    assert hoist_quantizers(average) is average
    net = Net()
    pooled = net.pool(net.act("x"))
    unlike = net.graph(quantised(net, quantised(net, pooled, 2.0)), quantised(net, pooled, 3.0))
    assert hoist_quantizers(unlike) is unlike
    net = Net()
    pooled = net.pool(net.act("x"))
    float_reader = net.graph(net.conv(quantised(net, pooled), 4), net.act(pooled))
    assert hoist_quantizers(float_reader) is float_reader


def test_a_pass_never_changes_its_argument() -> None:
    graph = with_norm()
    ops, params = graph.ops, dict(graph.params)
    run_passes(graph, NORMALISE)
    assert graph.ops is ops
    assert graph.params.keys() == params.keys()
    assert all(graph.params[name] is value for name, value in params.items())
