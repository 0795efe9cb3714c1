"""Faults planted in converted graphs: analysis puts the planted op first and says why; healthy ones have none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.analyze import LOCAL_DB, Analysis
from quant.analyze_jobs import analyze_model
from quant.calibrate import calibrate
from quant.convert import convert
from quant.gaps import MOST_DB
from quant.graph import Graph, Op, load_dir, save_dir
from quant.passes import lower_quantizers
from tests.nets import inception_net, inverted_net, residual_net, vgg_net

Analyze = Callable[..., Analysis]
NETS = {"residual": residual_net, "inverted": inverted_net, "inception": inception_net, "vgg": vgg_net}


def write_models(root: Path, graph: Graph, images: np.ndarray, weight_levels: int = 127) -> Path:
    simulated = calibrate(graph, [{"x": images}], algo="mse", weight_levels=weight_levels)
    for name, model in (("fp32", graph), ("quant", lower_quantizers(simulated)), ("int8", convert(simulated)[0])):
        (root / name).mkdir(parents=True)
        save_dir(model, root / name)
    np.savez(root / "data.npz", x=images)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    images = np.random.default_rng(0).standard_normal((32, 8, 8, 8)).astype(np.float32)
    for name, net in NETS.items():
        write_models(root / name, net(), images)
    return root


@pytest.fixture
def analyzed(models: Path, tmp_path: Path) -> Analyze:
    """The analysis of a net; `fault`: what is done to its INT8 graph first."""

    def run(net: str, fault: Callable[[Graph], Graph] = lambda graph: graph, executor: str = "auto") -> Analysis:
        place = models / net
        save_dir(fault(load_dir(place / "int8")), tmp_path)
        arguments = (str(tmp_path), str(place / "fp32"), str(place / "quant"), str(place / "data.npz"))
        found = analyze_model(*arguments, samples=32, executor=executor)
        return Analysis.from_job(found, tmp_path, "here", 1)

    return run


def changed(graph: Graph, op: Op, **attrs: Any) -> Graph:
    return replace(graph, ops=tuple(one.with_attrs(**attrs) if one is op else one for one in graph.ops))


def convs(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if op.type == "fused_conv2d"]


@pytest.mark.parametrize("executor", ["direct", "paddle"])
@pytest.mark.parametrize("net", NETS)
def test_a_healthy_model_has_no_finding(analyzed: Analyze, net: str, executor: str) -> None:
    found = analyzed(net, executor=executor)
    assert found.executor == executor
    assert [finding for finding in found.findings if finding.kind != "range"] == []
    assert found.as_read_db == MOST_DB
    measured = [op for op in found.ops if op.local_db is not None]
    assert len(measured) == len(found.ops) > 3
    assert min(op.local_db or 0 for op in measured) > 60 > LOCAL_DB
    assert all(op.fp32_db and op.fp32_db > 20 and op.quant_db and op.quant_db > 35 for op in found.ops)
    assert all(op.sources for op in found.ops if op.int8 and op.types[-1] != "flatten_contiguous_range")


def test_both_executors_tell_the_same(analyzed: Analyze, models: Path, tmp_path: Path) -> None:
    one, other = analyzed("inception", executor="direct"), analyzed("inception", executor="paddle")
    assert one.ops == other.ops


def test_a_fused_op_is_told_by_its_source_ops(analyzed: Analyze) -> None:
    sources = [op.sources for op in analyzed("residual").ops if op.type == "fused_conv2d"]
    assert ("conv2d", "batch_norm", "relu") in sources
    assert ("conv2d", "batch_norm", "elementwise_add", "relu") in sources


# --- planted faults


def scaled_output(graph: Graph) -> tuple[Graph, str]:
    """Stored twice as large as its readers take it for; the largest values then saturate."""
    op = convs(graph)[1]
    return changed(graph, op, Scale_out=2 * op.attr("Scale_out")), op.output("Output")


def scaled_input(graph: Graph) -> tuple[Graph, str]:
    op = convs(graph)[1]
    return changed(graph, op, Scale_in=2 * op.attr("Scale_in")), op.output("Output")


def without_sign(graph: Graph) -> tuple[Graph, str]:
    """A quantize op that stores values of both signs as uint8."""
    op = next(op for op in graph.ops if op.type == "quantize" and op.attr("is_negative_input"))
    name = op.output("Output")
    vars = {**graph.vars, name: graph.vars[name]._replace(dtype="uint8")}
    return replace(changed(graph, op, is_negative_input=False), vars=vars), name


def scaled_residual(graph: Graph) -> tuple[Graph, str]:
    op = next(op for op in convs(graph) if op.input("ResidualData"))
    return changed(graph, op, Scale_in_eltwise=op.attr("Scale_in_eltwise") / 2), op.output("Output")


def scaled_channel(graph: Graph) -> tuple[Graph, str]:
    """The kernel takes one output channel's weights for 4 times as large as they are stored."""
    op = convs(graph)[1]
    scales = list(op.attr("Scale_weights"))
    scales[3] *= 4
    return changed(graph, op, Scale_weights=scales), op.output("Output")


def stored_channel(graph: Graph) -> tuple[Graph, str]:
    """One channel's stored weights come back as a quarter of what they were: no attribute shows it."""
    op = convs(graph)[1]
    step = op.input("Filter").partition(".stored")[0] + ".step"
    values = graph.params[step].copy()
    values[3] /= 4
    return replace(graph, params={**graph.params, step: values}), op.output("Output")


def swapped_bias(graph: Graph) -> tuple[Graph, str]:
    """An op reads the bias of another."""
    op, other = next(
        (one, two)
        for one in convs(graph)[1:]
        for two in convs(graph)
        if one is not two and graph.vars[one.input("Bias")].shape == graph.vars[two.input("Bias")].shape
    )
    swapped = replace(op, inputs={**op.inputs, "Bias": (other.input("Bias"),)})
    return replace(graph, ops=tuple(swapped if one is op else one for one in graph.ops)), op.output("Output")


FAULTS: dict[str, tuple[Callable[[Graph], tuple[Graph, str]], str, str]] = {
    "output": (scaled_output, "residual", "Scale_out is"),
    "output, concat": (scaled_output, "inception", "Scale_out is"),
    "input": (scaled_input, "residual", "Scale_in is"),
    "sign": (without_sign, "inverted", "without a sign"),
    "residual": (scaled_residual, "residual", "its residual counts 2 times"),
    "residual, linear": (scaled_residual, "inverted", "Scale_in_eltwise is"),
    "channel": (scaled_channel, "residual", "channel 3 of"),
    "stored channel": (stored_channel, "residual", "channel 3 of"),
    "bias": (swapped_bias, "residual", "shifted"),
}


@pytest.mark.parametrize("executor", ["direct", "paddle"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_first(analyzed: Analyze, name: str, executor: str) -> None:
    plant, net, reason = FAULTS[name]
    planted: list[str] = []

    def fault(graph: Graph) -> Graph:
        graph, where = plant(graph)
        planted.append(where)
        return graph

    found = analyzed(net, fault, executor)
    worst = found.ranked[0]
    assert worst.variable == planted[0], [(op.variable, op.local_db) for op in found.ranked[:4]]
    assert worst.local_db is not None and worst.local_db < 30
    engine = [finding for finding in found.findings if finding.kind == "engine"]
    assert {finding.output for finding in engine} == {worst.output}
    assert any(reason in finding.text for finding in engine), engine
