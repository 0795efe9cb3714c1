"""What was written is run once: what can't run, isn't finite or differs is an error that names the op, not a model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.datasets.columns import Ragged
from quant.diagnosis import check
from quant.diagnosis.check import SAMPLE, check_int8, check_simulation, generated, write_sample
from quant.errors import ConversionError
from quant.ir.graph import Graph, load_dir, run_passes, save_dir
from quant.ir.passes import NORMALISE, PLACE, lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.suites import commands
from tests.nets import Net, inception_net, inverted_net, mixed_net, residual_net, shuffle_net, vgg_net

NETS = [residual_net, inverted_net, inception_net, vgg_net, mixed_net, shuffle_net]


def saved(graph: Graph, place: Path) -> Path:
    place.mkdir()
    save_dir(graph, place)
    return place


def with_param(graph: Graph, name: str, value: np.ndarray) -> Graph:
    return replace(graph, params={**graph.params, name: value})


@pytest.mark.parametrize("net", NETS)
def test_what_conversion_makes_passes(tmp_path: Path, net: Any) -> None:
    graph, batches = net(), Net().batches()
    simulated = calibrate(graph, batches, algo="mse")
    place = saved(lower_quantizers(simulated), tmp_path / "quant")
    write_sample(place, batches[0])
    assert check_simulation(graph, place, batches[0]) == ""
    made = saved(convert(load_dir(place))[0], tmp_path / "int8")
    assert check_int8(load_dir(place), made, place) == ""


def test_a_simulation_with_another_ops_weights_is_refused_by_the_op(tmp_path: Path) -> None:
    """As when two ops share a name: rounding can't explain it, however little is left at the output."""
    graph, batches = residual_net(), Net().batches()
    simulation = lower_quantizers(calibrate(graph, batches))
    weights = [name for name, value in simulation.params.items() if value.dtype == np.int8 and value.ndim == 4]
    wrong = with_param(simulation, weights[2], simulation.params[weights[2]][::-1].copy())
    place = saved(wrong, tmp_path / "quant")
    conv = next(op for op in simulation.ops if op.input("Filter") == f"{weights[2].removesuffix('.int8')}.float")
    with pytest.raises(
        ConversionError, match=f"isn't the FP32 model rounded: op 'conv2d' .output '{conv.writes[0]}'. has"
    ):
        check_simulation(graph, place, batches[0])
    assert check_simulation(graph, place, batches[0], compare=False) == ""


@pytest.mark.parametrize("place", [0, 2])
def test_a_pass_that_changes_values_is_refused_by_the_op(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    graph, batches = run_passes(residual_net(), NORMALISE), Net().batches()
    conv = [op for op in graph.ops if op.type == "conv2d"][place]

    def spoil(graph: Graph) -> Graph:
        return with_param(graph, conv.input("Filter"), graph.params[conv.input("Filter")][::-1].copy())

    monkeypatch.setattr(check, "CALIBRATE", (spoil,))
    simulation = lower_quantizers(calibrate(spoil(graph), batches))
    with pytest.raises(ConversionError, match=f"op 'conv2d' .output '{conv.writes[0]}'. gives other values before"):
        check_simulation(graph, saved(simulation, tmp_path / "quant"), batches[0])


def test_an_outlier_that_takes_nearly_all_is_no_fault(tmp_path: Path) -> None:
    """One channel a thousand times as large, and its weights a thousandth: FP32 is the same, 8 bits are lost."""
    net = Net()
    stem = net.conv("x", 8, 3)
    net.params[net.ops[-1].input("Filter")][0] *= 1000
    out = net.conv(stem, 8, 3)
    net.params[net.ops[-1].input("Filter")][:, 0] /= 1000
    graph, batches = net.graph(out), net.batches()
    place = saved(lower_quantizers(calibrate(graph, batches, algo="abs_max")), tmp_path / "quant")
    assert "no op is at fault" in check_simulation(graph, place, batches[0])


def test_a_simulation_that_loses_much_by_rounding_alone_is_a_note(tmp_path: Path) -> None:
    """Thresholds that a thousandth of the values need: that is for `analyze` to tell, and no fault."""
    graph, batches = residual_net(), Net().batches()
    simulated = calibrate(graph, batches)
    coarse = tuple(
        op.with_attrs(threshold=op.attr("threshold") * 40) if op.type == "fake_quant" else op for op in simulated.ops
    )
    place = saved(lower_quantizers(replace(simulated, ops=coarse)), tmp_path / "quant")
    assert "no op is at fault" in check_simulation(graph, place, batches[0])


def test_nan_in_a_simulation_is_told_by_the_op(tmp_path: Path) -> None:
    graph, batches = residual_net(), Net().batches()
    simulation = lower_quantizers(calibrate(graph, batches))
    add = [op for op in simulation.ops if op.type == "elementwise_add" and op.input("Y") in simulation.params][-1]
    wrong = with_param(simulation, add.input("Y"), np.full_like(simulation.params[add.input("Y")], np.nan))
    place = saved(wrong, tmp_path / "quant")
    with pytest.raises(ConversionError, match=rf"NaN or Inf .*op 'elementwise_add' .output '{add.writes[0]}'. is the"):
        check_simulation(graph, place, batches[0])


def test_an_int8_model_that_computes_something_else_is_refused_by_the_op(tmp_path: Path) -> None:
    batches = Net().batches()
    simulation = lower_quantizers(calibrate(residual_net(), batches))
    converted = convert(simulation)[0]
    convs = [op for op in converted.ops if op.type == "fused_conv2d"]
    wrong = converted.evolve(
        op.with_attrs(Scale_out=op.attr("Scale_out") * 0.1) if op is convs[1] else op for op in converted.ops
    )
    place = saved(wrong, tmp_path / "int8")
    with pytest.raises(ConversionError, match=r"isn't its simulation, .* dB at the outputs: op 'fused_conv2d"):
        check_int8(simulation, place, tmp_path)


def test_an_int8_model_that_paddle_refuses_is_refused(tmp_path: Path) -> None:
    batches = Net().batches()
    simulation = lower_quantizers(calibrate(residual_net(), batches))
    converted = convert(simulation)[0]
    ops = [op.with_attrs(strides=[7]) if op.type == "fused_conv2d" else op for op in converted.ops]
    place = saved(converted.evolve(ops), tmp_path / "int8")
    with pytest.raises(ConversionError, match=r"the INT8 model can't be run"):
        check_int8(simulation, place, tmp_path)


def test_nothing_is_written_of_a_model_that_fails_and_everything_with_no_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = residual_net()
    [batch] = Net().batches(1)
    model = saved(graph, tmp_path / "model")
    np.savez(tmp_path / "data.npz", **batch)

    def spoiled(simulated: Graph) -> Graph:
        lowered = lower_quantizers(simulated)
        name = next(name for name, value in lowered.params.items() if value.dtype == np.int8 and value.ndim == 4)
        return with_param(lowered, name, lowered.params[name][::-1].copy())

    monkeypatch.setattr(commands, "lower_quantizers", spoiled)
    places = {"model": str(model), "data": str(tmp_path / "data.npz"), "output": str(tmp_path / "quant")}
    with pytest.raises(ConversionError, match=rf"{model}: the fake-quantized model isn't the FP32 model rounded"):
        commands.ptq(**places)
    assert not (tmp_path / "quant").exists()
    assert commands.ptq(**places, check=False)["note"] == ""
    assert (tmp_path / "quant" / SAMPLE).stat().st_size < 1000


def test_the_same_of_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved(lower_quantizers(calibrate(residual_net(), Net().batches())), tmp_path / "quant")

    def spoiled(graph: Graph, **options: Any) -> Any:
        converted, coverage = convert(graph, **options)
        conv = next(op for op in converted.ops if op.type == "fused_conv2d" and op.attr("Scale_out", 0.0))
        ops = (op.with_attrs(Scale_out=op.attr("Scale_out") * 0.1) if op is conv else op for op in converted.ops)
        return converted.evolve(ops), coverage

    monkeypatch.setattr(commands, "convert", spoiled)
    with pytest.raises(ConversionError, match=rf"{place}: the INT8 model .* isn't its simulation"):
        commands.convert_model(str(place), str(tmp_path / "int8"))
    assert not (tmp_path / "int8").exists()
    commands.convert_model(str(place), str(tmp_path / "int8"), check=False)
    assert (tmp_path / "int8").exists()


def test_generated_values_are_like_those_that_calibration_saw(tmp_path: Path) -> None:
    net = Net()
    graph = run_passes(residual_net(), PLACE)
    batch = {"x": np.abs(net.batches(1)[0]["x"]) + 3}
    write_sample(tmp_path, batch)
    found = generated(graph, tmp_path)["x"]
    assert isinstance(found, np.ndarray) and found.shape == (2, 8, 8, 8)
    assert batch["x"].min() <= found.min() < found.max() <= batch["x"].max()
    np.testing.assert_array_equal(found, generated(graph, tmp_path)["x"])
    (tmp_path / SAMPLE).write_text(json.dumps({"inputs": 3}))
    alone = generated(graph, tmp_path)["x"]
    assert isinstance(alone, np.ndarray) and alone.shape == (1, 8, 8, 8)


def test_generated_sequences_have_the_lengths_that_calibration_saw(tmp_path: Path) -> None:
    graph = residual_net()
    graph = replace(graph, vars={**graph.vars, "x": graph.vars["x"]._replace(lod_level=1)})
    steps = np.zeros((7, 8, 8, 8), np.float32)
    write_sample(tmp_path, {"x": Ragged(steps, np.array([0, 3, 5, 7]))})
    found = generated(graph, tmp_path)["x"]
    assert isinstance(found, Ragged) and found.lengths.tolist() == [3, 2]
