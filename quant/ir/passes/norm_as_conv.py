"""Write batch norm that no convolution precedes as a depthwise convolution of one value, which has an INT8 kernel.

    y = g * (x - m) / sqrt(v + e) + B   =   k x + (B - m k),   k = g / sqrt(v + e)

DenseNet and pre-activation residual networks normalise what concat or an addition gives out, and hand it on, through
ReLU, to a convolution. In float32 the tensor is dequantized, normalised and rounded again: a third of DenseNet's time.
"""

import numpy as np

from quant.ir.graph import Graph, Op, Var
from quant.ir.ops.activations import conv_activation
from quant.ir.passes.quantizers import WEIGHT_SLOT

__all__ = ["norm_as_conv"]


def norm_as_conv(graph: Graph) -> Graph:
    """batch_norm [-> activation] -> products or convolutions becomes depthwise_conv2d -> bias add -> the same.

    Only for calibration, which then rounds its input: in float32 batch norm's own kernel is as fast.
    Not touched: batch norm in training mode, over another layout or rank, or with a reader that isn't rounded anyway.
    """
    readers, names = graph.readers(), graph.names()

    def is_rounded(name: str) -> bool:
        """Whether all readers of a tensor are ops that round what they read."""
        found = readers.get(name, [])
        return name not in graph.fetches and bool(found) and all(op.type in WEIGHT_SLOT for op in found)

    swap: dict[Op, tuple[Op, ...]] = {}
    vars = {}
    for norm in graph.ops:
        if norm.type != "batch_norm" or norm.attr("data_layout", "NCHW") != "NCHW":
            continue
        if not norm.attr("is_test", False):
            continue
        stats = [norm.input(slot) for slot in ("Scale", "Bias", "Mean", "Variance")]
        out = norm.output("Y")
        if len(graph.vars[out].shape) != 4 or any(name not in graph.params for name in stats):
            continue
        if {graph.params[name].shape for name in stats} != {graph.vars[out].shape[1:2]}:
            continue
        after = readers.get(out, [])
        if len(after) == 1 and out not in graph.fetches and conv_activation(after[0]) is not None:
            if not is_rounded(after[0].output("Out")):
                continue
        elif not is_rounded(out):
            continue
        gamma, beta, mean, variance = (graph.params[name].astype(np.float64) for name in stats)
        gain = gamma / np.sqrt(variance + norm.attr("epsilon", 1e-5))
        weight = names.param(f"{out}.gain", gain.astype(np.float32).reshape(-1, 1, 1, 1))
        bias = names.param(f"{out}.offset", (beta - mean * gain).astype(np.float32))
        scaled = names.fresh(f"{out}.scaled")
        vars[scaled] = Var(graph.vars[out].shape)
        swap[norm] = (
            Op.make(
                "depthwise_conv2d",
                {"Input": norm.input("X"), "Filter": weight},
                {"Output": scaled},
                strides=[1, 1],
                paddings=[0, 0],
                dilations=[1, 1],
                groups=len(gain),
                data_format="NCHW",
                padding_algorithm="EXPLICIT",
            ),
            Op.make("elementwise_add", {"X": scaled, "Y": bias}, {"Out": out}, axis=1),
        )
    if not swap:
        return graph
    return graph.evolve((new for op in graph.ops for new in swap.get(op, (op,))), vars, names.params)
