"""The predictor: inputs, outputs, errors; and the kernels that are broken in the supported Paddle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.errors import ChildError, DataError, ModelError
from quant.ir.graph import Graph, save_dir
from quant.process import isolate
from quant.runtime.predictor import BROKEN_ONEDNN, Predictor, Settings
from tests.nets import NATIVE, Net, data, residual_net, run


def test_named_inputs_and_several_outputs(tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.act("x"), net.conv("x", 4))
    [batch] = data(graph, 1)
    save_dir(graph, tmp_path)
    with Predictor(tmp_path) as predictor:
        outputs = predictor(batch)
        assert list(outputs) == list(predictor.outputs)
        np.testing.assert_array_equal(outputs[predictor.outputs[0]], np.maximum(batch["x"], 0))
        with pytest.raises(DataError, match="no data for model input 'x'"):
            predictor({"y": batch["x"]})


def test_two_inputs_in_any_order(tmp_path: Path) -> None:
    net = Net()
    total = net.add("x", "y")
    shape = net.vars["x"]
    graph = replace(net.graph(total), feeds=("x", "y"), vars={**net.vars, "y": shape})
    save_dir(graph, tmp_path)
    one, two = (np.full((2, 8, 8, 8), value, np.float32) for value in (1, 2))
    with Predictor(tmp_path) as predictor:
        assert predictor.inputs == ("x", "y")
        np.testing.assert_array_equal(predictor({"y": two, "x": one})[total], one + two)


def test_inputs_are_not_copied(tmp_path: Path) -> None:
    net = Net()
    save_dir(net.graph(net.act("x")), tmp_path)
    array = np.ones((1, 8, 8, 8), np.float32)
    with Predictor(tmp_path, NATIVE) as predictor:
        predictor.feed({"x": array})
        array[:] = 3.0
        predictor.run()
        assert next(iter(predictor.read().values())).max() == 3.0


def test_oneDNN_and_native_agree(tmp_path: Path) -> None:  # noqa: N802
    graph = residual_net()
    [batch] = data(graph, 1)
    np.testing.assert_allclose(
        run(graph, batch, tmp_path)[0], run(graph, batch, tmp_path, NATIVE)[0], rtol=1e-3, atol=1e-4
    )


def test_a_program_that_paddle_refuses(tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.act("x", "no_such_op"))
    save_dir(graph, tmp_path)
    with pytest.raises((ModelError, ChildError), match=r"no_such_op|can't load|crashed"):
        isolate.call("quant.timing.worker:bench", {"contenders": [[{"model": str(tmp_path), "precision": "fp32"}]]})


def padded() -> Graph:
    net = Net(16, 32)
    out = net.op("pad", {"X": net.act("x")}, shape=(-1, 32, 32, 32), paddings=[0, 0, 8, 8, 0, 0, 0, 0], pad_value=0.0)
    return net.graph(net.act(out))


def run_pad_on_onednn(model: str) -> bool:
    """Run in a child: the program as it is, with `pad` allowed on oneDNN; whether every output was right."""
    BROKEN_ONEDNN.clear()
    ones = np.ones((1, 16, 32, 32), np.float32)
    expected = np.pad(ones, ((0, 0), (8, 8), (0, 0), (0, 0)))
    with Predictor(Path(model)) as predictor:
        return all(np.array_equal(next(iter(predictor({"x": ones}).values())), expected) for _ in range(20))


def test_pad_is_broken_on_onednn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, Paddle has been mended: take `pad` out of BROKEN_ONEDNN, and drop pad_as_pad3d."""
    assert set(BROKEN_ONEDNN) == {"pad"}
    save_dir(padded(), tmp_path)
    monkeypatch.setenv("QUANT_TIMEOUT", "10")
    try:
        right = isolate.call(f"{__name__}:run_pad_on_onednn", {"model": str(tmp_path)})
    except ChildError as error:
        right = "crashed" not in str(error) and "exceeded" not in str(error)
    assert not right


@pytest.mark.parametrize("settings", [Settings(), Settings(optimise=False), Settings("bf16"), NATIVE])
def test_pad_is_kept_off_onednn(settings: Settings, tmp_path: Path) -> None:
    graph = padded()
    [batch] = data(graph, 1)
    expected = np.pad(np.maximum(batch["x"], 0), ((0, 0), (8, 8), (0, 0), (0, 0)))
    [found] = run(graph, batch, tmp_path, settings)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_an_open_program_can_be_closed_twice(tmp_path: Path) -> None:
    save_dir(residual_net(), tmp_path)
    predictor = Predictor(tmp_path)
    predictor.close()
    predictor.close()


def test_a_type_that_paddle_can_not_be_fed_is_told(tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.act("x"))
    save_dir(graph, tmp_path)
    with Predictor(tmp_path) as predictor, pytest.raises(DataError, match="uint8 can't be fed to input 'x'"):
        predictor({"x": np.zeros((1, 8, 8, 8), np.uint8)})
