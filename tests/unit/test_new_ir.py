"""INT8 directories stay usable as Paddle moves on: its newer executor, to which it translates them on loading.

Config.enable_new_ir with enable_new_executor is how Paddle 3 runs legacy programs once the legacy executor is gone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import paddle.inference as engine
import pytest

from quant.ir.graph import Graph, save_dir
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Predictor, Settings
from tests.nets import NETS, data
from tests.unit.test_attention import batch, encoder

# Issue 77340 of Paddle's, of all that is enlarged (docs/paddle-faults.md).
NEAREST = "pyramid"


def by_the_newer_executor(directory: Path, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    config = engine.Config(str(directory / "inference.pdmodel"), str(directory / "inference.pdiparams"))
    config.disable_gpu()
    config.disable_glog_info()
    config.enable_onednn()
    config.enable_new_ir(True)
    config.enable_new_executor(True)
    predictor: Any = engine.create_predictor(config)
    for name in predictor.get_input_names():
        predictor.get_input_handle(name).copy_from_cpu(arrays[name])
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]


def converted(graph: Graph, arrays: list[dict[str, np.ndarray]], directory: Path) -> list[np.ndarray]:
    """Write the INT8 model of a graph; its outputs for the first arrays."""
    save_dir(convert(calibrate(graph, arrays, algo="abs_max"))[0], directory)
    with Predictor(directory, Settings("int8", executor="paddle")) as predictor:
        return list(predictor(arrays[0]).values())


@pytest.mark.parametrize("name", sorted({*NETS} - {NEAREST}))
def test_int8_models_give_the_same_bits(name: str, tmp_path: Path) -> None:
    graph = NETS[name]()
    due = converted(graph, data(graph), tmp_path)
    for one, other in zip(due, by_the_newer_executor(tmp_path, data(graph)[0]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("product", ["matmul_v2", "matmul"])
def test_products_of_two_activations_give_the_same_bits(product: str, tmp_path: Path) -> None:
    due = converted(encoder(product), [batch()], tmp_path)
    for one, other in zip(due, by_the_newer_executor(tmp_path, batch()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_enlarging_to_the_nearest_neighbor_fails_there_by_paddles_fault(tmp_path: Path) -> None:
    """When this fails, Paddle is mended: then the net belongs to those above."""
    graph = NETS[NEAREST]()
    converted(graph, data(graph), tmp_path)
    with pytest.raises(Exception, match="ArrayAttribute"):
        by_the_newer_executor(tmp_path, data(graph)[0])
