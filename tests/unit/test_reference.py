"""FP32 models and simulations run where they are right, also where oneDNN behind Paddle's fusion is not."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.datasets.columns import values_of
from quant.ir.graph import Graph, Op, load_dir, run_passes, save_dir
from quant.ir.passes import NORMALISE, lower_quantizers, own_weights
from quant.metrics.scores import sqnr
from quant.process import isolate
from quant.process.isolate import KERNELS, report_kernels
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Predictor, Settings
from quant.runtime.reference import Reference, agreement_db
from quant.suites import embedded
from tests.nets import NATIVE, Net, residual_net, run
from tests.sharing import inputs
from tests.unit.test_sharing import layers


def twice(first: str, **other: object) -> Graph:
    """Two convolutions that read one tensor and one filter; behind the second stands a ReLU, and attributes differ."""
    net = Net()
    stem = net.act(net.conv("x", 8, 3))
    plain = net.conv(stem, 8, 3)
    weight = net.ops[-1].input("Filter")
    again = net.op("conv2d", {"Input": stem, "Filter": weight}, "Output", (-1, 8, 8, 8))
    net.ops[-1] = Op(
        "conv2d", net.ops[-1].inputs, net.ops[-1].outputs, Op.make("", {}, {}, **{**attrs_of(net), **other}).attrs
    )
    again = net.act(again)
    return net.graph(*((plain, again) if first == "plain" else (again, plain)))


def attrs_of(net: Net) -> dict[str, object]:
    conv = next(op for op in net.ops if op.type == "conv2d")
    return {name: conv.attr(name) for name in conv.attrs}


def saved(graph: Graph, place: Path) -> Path:
    place.mkdir()
    save_dir(graph, place)
    return place


DILATED = {"dilations": [2, 2], "paddings": [2, 2]}


@pytest.mark.parametrize("other", [{}, DILATED], ids=["relu behind one", "other dilations"])
def test_paddle_keeps_onednns_kernels_by_the_names_of_input_and_filter(
    tmp_path: Path, other: dict[str, object]
) -> None:
    """The fault. When this fails, Paddle is mended: `own_weights` can go."""
    graph = twice("plain", **other)
    [batch] = Net().batches(1)
    right, fused = run(graph, batch, tmp_path, NATIVE), run(graph, batch, tmp_path, Settings())
    assert min(sqnr(due, found) for due, found in zip(right, fused, strict=True)) < 20


@pytest.mark.parametrize("other", [{}, DILATED], ids=["relu behind one", "other dilations"])
def test_with_weights_of_their_own_they_are_right(tmp_path: Path, other: dict[str, object]) -> None:
    graph = twice("plain", **other)
    [batch] = Net().batches(1)
    own = own_weights(graph)
    due, found = run(graph, batch, tmp_path, NATIVE), run(own, batch, tmp_path, Settings())
    assert min(sqnr(a, b) for a, b in zip(due, found, strict=True)) > 100
    assert own_weights(own) is own


def test_only_ops_that_read_both_get_weights_of_their_own() -> None:
    graph = residual_net()
    assert own_weights(graph) is graph
    net = Net()
    one = net.act(net.conv("x", 8, 3))
    net.op("conv2d", {"Input": one, "Filter": net.ops[0].input("Filter")}, "Output")
    other = net.ops[-1].writes[0]
    shared = net.graph(other)
    assert own_weights(shared) is shared


@pytest.mark.parametrize("executor", ["direct", "paddle"])
@pytest.mark.parametrize("other", [{}, DILATED], ids=["relu behind one", "other dilations"])
def test_int8_is_its_simulation_on_both_executors(tmp_path: Path, other: dict[str, object], executor: str) -> None:
    graph, batches = twice("plain", **other), Net().batches(2)
    simulated = calibrate(graph, batches)
    due = run(lower_quantizers(simulated), batches[0], tmp_path, NATIVE)
    place = saved(convert(simulated)[0], tmp_path / "int8")
    with Predictor(place, Settings("int8", executor=executor)) as predictor:  # type: ignore[arg-type]
        for _ in range(2):
            found = list(predictor(batches[0]).values())
            assert min(sqnr(a, b) for a, b in zip(due, found, strict=True)) > 40


def test_a_reference_is_right_and_says_why_it_is_slow(tmp_path: Path) -> None:
    place = saved(twice("plain"), tmp_path / "model")
    [batch] = Net().batches(1, 20)
    with Predictor(place, NATIVE) as predictor:
        due = predictor(batch)
    with Reference(place, Settings()) as reference:
        assert agreement_db(due, reference(batch)) == [np.inf, np.inf]
        assert reference.way == "plain"
        assert reference.note.startswith("oneDNN's fused kernels gave outputs ") and "plain ones" in reference.note


def test_the_fast_way_is_used_where_it_is_right(tmp_path: Path) -> None:
    graph = run_passes(residual_net(), NORMALISE)
    place = saved(lower_quantizers(calibrate(graph, Net().batches())), tmp_path / "model")
    [batch] = Net().batches(1)
    with Predictor(place, NATIVE) as predictor:
        due = predictor(batch)
    with Reference(place, Settings("quant")) as reference:
        assert min(agreement_db(due, reference(batch))) > 60
        assert (reference.way, reference.note) == ("onednn", "")


def test_a_network_that_amplifies_rounding_is_no_fault(tmp_path: Path) -> None:
    """sin(1e5 x): sums in another order come out 40 dB apart, and so do inputs that are a little off."""
    net = Net()
    large = net.op("scale", {"X": net.conv("x", 8, 3)}, scale=1e5, bias=0.0, bias_after_scale=True)
    place = saved(net.graph(net.op("sin", {"X": large})), tmp_path / "model")
    [batch] = net.batches(1)
    with Predictor(place, NATIVE) as predictor:
        due = predictor(batch)
    with Reference(place, Settings()) as reference:
        assert min(agreement_db(due, reference(batch))) < 60
        assert (reference.way, reference.note) == ("onednn", "")


def test_what_one_way_refuses_runs_on_the_other(tmp_path: Path) -> None:
    """A fused op has no plain kernel."""
    net = Net()
    conv = net.conv("x", 8, 3)
    net.ops[-1] = replace(net.ops[-1].with_attrs(use_mkldnn=True, fuse_activation="relu"), type="fused_conv2d")
    place = saved(net.graph(conv), tmp_path / "model")
    with Reference(place, Settings()) as reference:
        [found] = reference(net.batches(1)[0]).values()
        assert (found >= 0).all() and reference.way == "onednn" and "refuse" in reference.note


def test_an_evaluation_says_it(tmp_path: Path) -> None:
    place = saved(twice("plain"), tmp_path / "model")
    [batch] = Net().batches(1)
    np.savez(tmp_path / "data.npz", **batch, label=np.zeros(len(batch["x"]), np.int64))
    runs = [{"model": str(place), "precision": "quant"}, {"model": str(place), "precision": "quant", "onednn": True}]
    right, asked = embedded.evaluate(runs, tmp_path / "data.npz")
    assert "dB apart" in right.result["note"] and not asked.result["note"]
    with Predictor(place, NATIVE) as predictor:
        due = predictor(batch)
    for found, column in zip(right.outputs, due.values(), strict=True):
        np.testing.assert_array_equal(found, column)


def crash_on(way: str) -> list[str]:
    """A job that comes to its end on other kernels only."""
    report_kernels(way)
    if os.environ.get(KERNELS, way) == way:
        os.kill(os.getpid(), signal.SIGSEGV)
    return [os.environ[KERNELS]]


@pytest.mark.parametrize(("way", "other"), [("onednn", "plain"), ("plain", "onednn")])
def test_a_crash_on_one_kind_of_kernels_is_a_run_on_the_other(way: str, other: str) -> None:
    assert isolate.call("tests.unit.test_reference:crash_on", {"way": way}) == [other]


def test_the_run_after_a_crash_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved(residual_net(), tmp_path / "model")
    monkeypatch.setenv(KERNELS, "plain")
    with Reference(place, Settings()) as reference:
        reference(Net().batches(1)[0])
        assert reference.way == "plain" and reference.note.startswith("Paddle crashed on oneDNN's kernels")


def large_net() -> Net:
    """One op of each kind on images of 1024 x 1024."""
    net = Net(channels=3, side=1024)
    stem = net.act(net.norm(net.conv("x", 4, 3)))
    deep = net.act(net.bias(net.conv(stem, 4, 3, groups=4, type="depthwise_conv2d")), "relu6")
    joined = net.concat(net.add(deep, stem), net.act(net.conv(deep, 4), "hard_swish"))
    small = net.pool(joined, "max")
    shape = net.vars[joined].shape
    options = {"interp_method": "nearest", "align_corners": False, "data_layout": "NCHW", "out_h": -1, "out_w": -1}
    large = net.op("nearest_interp_v2", {"X": net.conv(small, 8)}, shape=shape, scale=[2.0, 2.0], **options)
    net.act(net.conv(net.pool(net.add(large, joined), "avg"), 2), "sigmoid")
    return net


def test_large_images_calibrate_convert_and_run(tmp_path: Path) -> None:
    net = large_net()
    graph, [batch] = net.graph(net.ops[-1].writes[0]), net.batches(1, 1)
    simulated = calibrate(graph, [batch])
    place = saved(lower_quantizers(simulated), tmp_path / "quant")
    with Reference(place, Settings("quant")) as reference:
        due = reference(batch)
        assert not reference.note
    found = run(convert(simulated)[0], batch, tmp_path, Settings("int8"))
    assert min(sqnr(a, b) for a, b in zip(due.values(), found, strict=True)) > 30
    assert load_dir(place).op_counts()["quantize_linear"] >= 5


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_layers_of_one_input_and_states_weight_get_one_each(kind: str, tmp_path: Path) -> None:
    """In float32, too: Paddle's fused kernels of both would share what they made of the first one's weights."""
    graph = run_passes(layers(kind), [rewrite for rewrite in NORMALISE if rewrite is not own_weights])
    batch = inputs(graph, np.random.default_rng(0), (5, 3))
    due, now = (values_in(one, batch, tmp_path, NATIVE) for one in (graph, own_weights(graph)))
    fused = values_in(own_weights(graph), batch, tmp_path, Settings())
    for expected, plain, found in zip(due, now, fused, strict=True):
        np.testing.assert_array_equal(plain, expected)
        assert sqnr(expected, found) > 80


def values_in(graph: Graph, batch: dict[str, Any], place: Path, how: Settings) -> list[np.ndarray]:
    with Predictor(saved(graph, place / f"{len(list(place.iterdir()))}"), how) as predictor:
        return [values_of(column) for column in predictor(batch).values()]
