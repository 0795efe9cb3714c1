"""What a converted graph leaves in float32 between INT8 ops, and the reasons that are told."""

from dataclasses import asdict
from pathlib import Path

import pytest

from quant.diagnosis.advice import Crossings
from quant.diagnosis.crossings import crossings_of
from quant.ir.graph import Graph, save_dir
from quant.ir.ops.arithmetic import Sizes, arithmetic_of
from quant.ir.passes import lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.suites.commands import convert_model
from tests.nets import Net, data, inception_net, inverted_net

SIZE = 8 * 8 * 8 * 4  # bytes of a map of 8 channels


def softmax_between_net() -> Graph:
    """A softmax, which has no INT8 kernel, keeps the ReLU behind it from a convolution's kernel."""
    net = Net()
    x = net.bias(net.conv("x", 8, 3))
    y = net.act(net.op("softmax", {"X": x}, axis=1))
    return net.graph(net.head(net.bias(net.conv(y, 8))))


def converted(graph: Graph) -> Graph:
    return convert(lower_quantizers(calibrate(graph, data(graph), algo="abs_max")))[0]


@pytest.mark.parametrize("make", [inverted_net, inception_net])
def test_a_net_that_is_int8_throughout_has_nothing_between(make: object) -> None:
    assert callable(make)
    assert crossings_of(converted(make()), {}).between == ()


def test_all_arithmetic_is_int8_and_yet_it_reads_as_bad() -> None:
    graph = converted(softmax_between_net())
    assert arithmetic_of(graph, Sizes(1)).share == pytest.approx(1.0)
    found = crossings_of(graph, {})
    told = {entry.type: entry for entry in found.between}
    assert {"softmax", "relu"} <= told.keys()
    assert told["softmax"].reason == "no pass takes softmax into an INT8 kernel"
    assert "in float32, not behind an INT8 kernel" in told["relu"].reason
    assert told["relu"].bytes == 2 * SIZE
    assert found.bytes >= SIZE + SIZE // 4  # the quantize op in front of the second convolution
    assert [entry.bytes for entry in found.between] == sorted((e.bytes for e in found.between), reverse=True)
    assert Crossings.from_json(asdict(found)) == found
    assert crossings_of(softmax_between_net(), {}) == Crossings((), 0)  # a float32 model has no INT8 ops to be between


def test_converting_tells(tmp_path: Path) -> None:
    graph = softmax_between_net()
    (tmp_path / "quant").mkdir()
    save_dir(lower_quantizers(calibrate(graph, data(graph), algo="abs_max")), tmp_path / "quant")
    result = convert_model(str(tmp_path / "quant"), str(tmp_path / "int8"))
    assert result["int8_mac_share"] == pytest.approx(1.0) and result["uncounted"] == ()
    assert {"softmax", "relu"} <= {entry["type"] for entry in result["crossings"]["between"]}
