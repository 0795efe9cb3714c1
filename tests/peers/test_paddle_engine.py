"""What Paddle's own INT8 is given, and how much of it counts as INT8."""

import json
from pathlib import Path

import numpy as np

from bench.peers.export import describe
from bench.peers.paddle_engine import as_8_bits, int8_layers, load, write_as_8_bits
from bench.peers.protocol import opened
from quant.datasets.columns import values_of
from quant.datasets.readers import batches
from quant.ir.graph import Graph, Op, load_dir, run_passes, save_dir
from quant.ir.passes import NORMALISE, lower_quantizers
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.inputs import sample_input
from tests.nets import NETS, data


def simulated(name: str = "residual") -> Graph:
    graph = run_passes(NETS[name](), NORMALISE)
    return calibrate(graph, data(graph), algo="abs_max")


def test_unsigned_thresholds_are_declared_as_8_bits_and_nothing_else_changes() -> None:
    before = lower_quantizers(simulated())
    after = as_8_bits(before)
    bits = [op.attr("bit_length") for op in before.ops if "quantize_linear" in op.type]
    assert {8, 9} <= set(bits)
    for old, new in zip(before.ops, after.ops, strict=True):
        if old.attr("bit_length") == 9:
            assert (new.attr("bit_length"), new.attr("qmin"), new.attr("qmax")) == (8, -128, 127)
            assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
        else:
            assert new == old
    assert after.params.keys() == before.params.keys()


def test_paddle_runs_it_in_int8(tmp_path: Path) -> None:
    """Through `enable_onednn_int8`, near our own INT8 of the same simulation."""
    simulation = simulated()
    for part in ("quant", "narrow", "int8"):
        (tmp_path / part).mkdir()
    save_dir(lower_quantizers(simulation), tmp_path / "quant")
    save_dir(convert(simulation)[0], tmp_path / "int8")
    int8, every = write_as_8_bits(str(tmp_path / "quant"), str(tmp_path / "narrow"))["int8"]
    assert 0 < int8 <= every
    assert int8_layers(load_dir(tmp_path / "quant"))[0] == 0
    assert int8_layers(load_dir(tmp_path / "int8"))[0] > 0
    [batch] = data(simulation, 1, seed=9)
    found = []
    for model, form in (("narrow", "qdq"), ("int8", "ours")):
        feed = load(str(tmp_path / model), "int8", 1, form, []).batch(batch)
        feed.feed()
        feed.run()
        found.append(values_of(next(iter(feed.read()))))
    assert sqnr(found[1], found[0]) > 15


def test_a_full_size_row_is_fed_what_prepare_calibrates_it_on(tmp_path: Path) -> None:
    graph = run_passes(NETS["residual"](), NORMALISE)
    (tmp_path / "fp32").mkdir()
    save_dir(graph, tmp_path / "fp32")
    describe(str(tmp_path / "fp32"), str(tmp_path), generated=True, full_input="")
    about = json.loads((tmp_path / "about.json").read_text())
    assert not about["transformer"] and not about["recurrent"]
    for name, count in (("timing", 1), ("calibration", 2)):
        path = str(tmp_path / f"{name}.npz")
        [batch] = batches(opened({"path": path, "format": "npz", "signature": about["signature"]}), 9)
        for key, column in sample_input(graph, count, {}).items():
            assert np.array_equal(values_of(column), values_of(batch[key]))


def test_products_that_paddle_hides_in_one_float32_op_are_counted() -> None:
    weights = {"W": ("a", "b"), "Bias": ("c", "d")}
    ops = (
        Op.make("fused_conv2d", {"Input": "x"}, {"Output": "y"}, mkldnn_data_type="int8"),
        Op("fusion_repeated_fc_relu", {"X": ("y",), **weights}, {"Out": ("z",)}, {}),
        Op.make("pool2d", {"X": "z"}, {"Out": "out"}, mkldnn_data_type="int8"),
    )
    assert int8_layers(Graph(ops, {}, {}, ("x",), ("out",))) == [1, 3]
