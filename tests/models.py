"""A small model at three precisions and data of several parts for it: what commands are run on."""

from pathlib import Path

import numpy as np

from quant.ir.graph import save_dir
from quant.ir.passes import lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Predictor
from tests.nets import inverted_net, residual_net

SAMPLES = 4500


def write_place(root: Path) -> Path:
    """fp32, quant, int8, and `other`: another network for the same data; data.npz, nine in ten labels as FP32 says."""
    random = np.random.default_rng(0)
    images = random.standard_normal((SAMPLES, 8, 8, 8)).astype(np.float32)
    graph = residual_net()
    simulated = calibrate(graph, [{"x": images[:200]}], algo="mse")
    models = {
        "fp32": graph,
        "quant": lower_quantizers(simulated),
        "int8": convert(simulated)[0],
        "other": inverted_net(),
    }
    for name, model in models.items():
        (root / name).mkdir()
        save_dir(model, root / name)
    with Predictor(root / "fp32") as predictor:
        [scores] = predictor({"x": images}).values()
    labels = np.where(random.random(SAMPLES) < 0.9, scores.argmax(1), random.integers(0, 6, SAMPLES))
    np.savez(root / "data.npz", x=images, label=labels)
    return root
