"""Fake-quantized models made by Paddle's own tools, in both dialects, convert and agree with their simulation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from quant.ir.graph import load_dir, save_dir
from quant.metrics.scores import sqnr
from quant.quantization.conversion import convert
from quant.runtime.predictor import Settings
from tests.nets import NATIVE, NETS, data, run


def paddles_own_ptq(
    source: Path, target: Path, samples: list[dict[str, np.ndarray]], onnx_format: bool, per_channel: bool
) -> dict[str, dict[str, float]]:
    """Write the model; with `onnx_format`, the thresholds that PaddleSlim puts into calibration_table.txt."""
    from paddle.static.quantization import PostTrainingQuantization

    paddle.enable_static()
    try:
        exe = paddle.static.Executor(paddle.CPUPlace())
        names = {"model_filename": "inference.pdmodel", "params_filename": "inference.pdiparams"}

        quantizer = PostTrainingQuantization(
            executor=exe,
            model_dir=str(source),
            **names,
            data_loader=lambda: samples,
            batch_nums=len(samples),
            algo="abs_max",
            quantizable_op_type=["conv2d", "depthwise_conv2d", "mul", "matmul_v2"],
            weight_quantize_type="channel_wise_abs_max" if per_channel else "abs_max",
            onnx_format=onnx_format,
            is_full_quantize=False,
        )
        quantizer.quantize()
        quantizer.save_quantized_model(str(target), **names)
        return dict(getattr(quantizer, "_calibration_scales", {}))
    finally:
        paddle.disable_static()


@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("onnx_format", [True, False], ids=["qdq", "classic"])
@pytest.mark.parametrize("name", NETS)
def test_paddles_fake_quantized_models_convert(
    name: str, onnx_format: bool, per_channel: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = NETS[name]()
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    # Paddle's tool reads an attribute that every op of an exported program has.
    save_dir(replace(graph, ops=tuple(op.with_attrs(op_role=0) for op in graph.ops)), source)
    paddles_own_ptq(source, target, data(graph), onnx_format, per_channel)
    quantized = load_dir(target)
    int8, coverage = convert(quantized)
    assert sum(coverage.int8[kind] for kind in ("conv2d", "depthwise_conv2d", "mul", "matmul_v2")) >= 3
    [batch] = data(graph, 1, seed=9)
    [fp32] = run(graph, batch, tmp_path)
    [sim] = run(quantized, batch, tmp_path, NATIVE)
    [real] = run(int8, batch, tmp_path, Settings("int8"))
    # Classic ops round ties away from zero and clip one step earlier below zero; all else is the same grid.
    assert sqnr(sim, real) > max(sqnr(fp32, sim), 12)
