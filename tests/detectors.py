"""Small detectors that end in NMS, with data: their outputs have as many rows as boxes are found."""

from pathlib import Path

import numpy as np

from quant.ir.graph import Graph, Op, Var, save_dir
from quant.ir.passes import lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Predictor
from tests.nets import Net

CLASSES, SIDE, CELLS = 3, 8, 64
NMS = {
    "score_threshold": 0.85,
    "nms_top_k": 50,
    "keep_top_k": 100,
    "nms_threshold": 0.4,
    "normalized": True,
    "nms_eta": 1.0,
    "background_label": -1,
}


def detector(threshold: float = 0.85, *, scores_too: bool = False) -> Graph:
    """Images `x` [N, 8, 8, 8] -> boxes [found, 6], their places, and how many of each image; `scores_too`: behind
    those the mean score of each class, [N, 3]. One box a cell: its middle and reach by one convolution, the scores of
    its classes by another.
    """
    net = Net()
    x = net.op("relu", {"X": net.bias(net.conv("x", 16, kernel=3))})
    shift = net.op("tanh", {"X": net.bias(net.conv(x, 4))})
    boxes = net.op("reshape2", {"X": shift}, shape=(-1, 4, CELLS))
    net.ops[-1] = net.ops[-1].with_attrs(shape=[0, 4, CELLS])
    boxes = net.op("transpose2", {"X": boxes}, shape=(-1, CELLS, 4))
    net.ops[-1] = net.ops[-1].with_attrs(axis=[0, 2, 1])
    net.params["corners"] = np.tile(np.array([-1.5, -1.5, 1.5, 1.5], np.float32), (CELLS, 1)) + np.repeat(
        np.arange(CELLS, dtype=np.float32)[:, None] / 8, 4, 1
    )
    net.vars["corners"] = Var((CELLS, 4))
    boxes = net.op("elementwise_add", {"X": boxes, "Y": "corners"}, axis=-1)
    scores = net.op("sigmoid", {"X": net.bias(net.conv(x, CLASSES))})
    scores = net.op("reshape2", {"X": scores}, shape=(-1, CLASSES, CELLS))
    net.ops[-1] = net.ops[-1].with_attrs(shape=[0, CLASSES, CELLS])
    written = {"Out": Var((-1, 6)), "Index": Var((-1, 1), "int32"), "NmsRoisNum": Var((-1,), "int32")}
    net.vars.update({f"nms.{slot}": var for slot, var in written.items()})
    nms = Op(
        "multiclass_nms3",
        {"BBoxes": (boxes,), "Scores": (scores,)},
        {slot: (f"nms.{slot}",) for slot in written},
        Op.make("", {}, {}, **{**NMS, "score_threshold": threshold}).attrs,
    )
    net.ops.append(nms)
    fetches = [f"nms.{slot}" for slot in written]
    if scores_too:
        fetches.append(net.op("reduce_mean", {"X": scores}, shape=(-1, CLASSES), keep_dim=False, reduce_all=False))
        net.ops[-1] = net.ops[-1].with_attrs(dim=[2])
    return Graph(tuple(net.ops), net.vars, net.params, ("x",), tuple(fetches))


def write_detector(root: Path, samples: int = 120, threshold: float = 0.85) -> Path:
    """fp32, quant, int8; data.npz and calibration.npz, whose labels are the number of boxes that FP32 finds."""
    random = np.random.default_rng(0)
    graph = detector(threshold)
    images = random.standard_normal((samples + 40, 8, SIDE, SIDE)).astype(np.float32)
    simulated = calibrate(graph, [{"x": images[samples:]}], algo="mse")
    for name, model in {"fp32": graph, "quant": lower_quantizers(simulated), "int8": convert(simulated)[0]}.items():
        (root / name).mkdir(parents=True)
        save_dir(model, root / name)
    with Predictor(root / "fp32") as predictor:
        counts = predictor({"x": images})["nms.NmsRoisNum"]
    np.savez(root / "data.npz", x=images[:samples], label=counts[:samples, None].astype(np.float32))
    np.savez(root / "calibration.npz", x=images[samples:], label=counts[samples:, None].astype(np.float32))
    return root
