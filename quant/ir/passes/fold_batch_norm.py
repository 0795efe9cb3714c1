"""Fold batch normalisation into the convolution before it.

    y = g * (conv(x, W) + b - m) / sqrt(v + e) + B   =   conv(x, W * k) + (B + (b - m) * k),   k = g / sqrt(v + e)

(Jacob et al. 2017, section 3.2.) A fake-quantized weight stays on its grid: its thresholds are multiplied by |k|.
"""

from dataclasses import replace

import numpy as np

from quant.ir.graph import Graph, Op

__all__ = ["fold_batch_norm"]

_CONVS = ("conv2d", "depthwise_conv2d")


def fold_batch_norm(graph: Graph) -> Graph:
    """conv [-> bias add] -> batch_norm becomes conv -> bias add.

    Not touched: batch norm in training mode, over another layout or number of channels, after anything else than a
    convolution with a constant filter, or when the values in between have another reader or are fetched.
    """
    writers, readers, names = graph.writers(), graph.readers(), graph.names()

    def only_reader(name: str) -> bool:
        return len(readers[name]) == 1 and name not in graph.fetches

    swap: dict[Op, tuple[Op, ...]] = {}
    for norm in graph.ops:
        if norm.type != "batch_norm" or norm.attr("data_layout", "NCHW") != "NCHW":
            continue
        if not norm.attr("is_test", False):
            continue
        bias_op, conv = None, writers.get(norm.input("X"))
        if conv is not None and conv.type == "elementwise_add" and conv.attr("axis", -1) == 1:
            bias_op, conv = conv, writers.get(conv.input("X"))
        if conv is None or conv.type not in _CONVS or conv.attr("data_format", "NCHW") != "NCHW":
            continue
        if not only_reader(conv.output("Output")) or (bias_op and not only_reader(bias_op.output("Out"))):
            continue
        weight, bias = conv.input("Filter"), bias_op.input("Y") if bias_op else ""
        stats = [norm.input(slot) for slot in ("Scale", "Bias", "Mean", "Variance")]
        if any(name not in graph.params for name in (weight, *stats, *([bias] if bias else []))):
            continue
        shape = graph.params[weight].shape
        if len(shape) != 4 or any(graph.params[name].shape != shape[:1] for name in (*stats, bias) if name):
            continue
        gamma, beta, mean, variance = (graph.params[name].astype(np.float64) for name in stats)
        gain = gamma / np.sqrt(variance + norm.attr("epsilon", 1e-5))
        before = graph.params[bias].astype(np.float64) if bias else 0.0
        scaled = (graph.params[weight] * gain[:, None, None, None]).astype(np.float32)
        new_weight = names.param(f"{weight}.folded", scaled)
        new_bias = names.param(f"{norm.output('Y')}.bias", (beta + (before - mean) * gain).astype(np.float32))
        folded = replace(conv, inputs={**conv.inputs, "Filter": (new_weight,)})
        if thresholds := conv.attr("weight_thresholds"):
            folded = folded.with_attrs(
                weight_thresholds=[float(t) for t in np.broadcast_to(thresholds, gain.shape) * abs(gain)]
            )
        swap[conv] = (folded,)
        if bias_op:
            swap[bias_op] = ()
        ends = {"X": conv.output("Output"), "Y": new_bias}
        swap[norm] = (Op.make("elementwise_add", ends, {"Out": norm.output("Y")}, axis=1),)
    if not swap:
        return graph
    return graph.evolve((new for op in graph.ops for new in swap.get(op, (op,))), params=names.params)
