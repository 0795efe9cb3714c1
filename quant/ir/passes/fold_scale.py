"""Fold a multiplication by a constant into a product with a constant weight, before it or else behind it:

    (x W + b) * s = x (W s) + b s        (x * s) W = x (s W)

Attention scales its queries this way, and dropout as Paddle 1.x trained with it (downgrade_in_infer) is a
multiplication by 1 - p. A fake-quantized weight stays on its grid: its thresholds are multiplied by |s|.
"""

from dataclasses import replace

import numpy as np

from quant.ir.fusion import CONVS
from quant.ir.graph import Graph, Op
from quant.ir.passes.quantizers import WEIGHT_SLOT

__all__ = ["fold_scale"]

_PRODUCTS = ("mul", "matmul", "matmul_v2")
_RESHAPES = ("reshape2", "transpose2", "flatten_contiguous_range", "flatten2", "squeeze2", "unsqueeze2")
_HOMOGENEOUS = (*_RESHAPES, "relu", "leaky_relu", "pool2d")  # f(s x) = s f(x) for s > 0


def fold_scale(graph: Graph) -> Graph:
    """Remove `scale` ops without offset, and dropout that scales, behind a product with a constant weight [+ constant
    bias], or in front of one; reshapes, ReLU and pooling may lie between.

    Not touched: a scale that is a tensor or not above 0, a value in between with another reader, a fetched output.
    """
    writers, readers, names = graph.writers(), graph.readers(), graph.names()
    swap: dict[Op, tuple[Op, ...]] = {}
    renamed: dict[str, str] = {}
    for op in graph.ops:
        factor, out = _factor(op), op.output("Out")
        if factor is None or out in graph.fetches:
            continue
        sides = (_above(graph, writers, readers, op), _below(graph, readers, op))
        targets = next((side for side in sides if side and swap.keys().isdisjoint(side)), ())
        if not targets:
            continue
        for scaled in targets:
            slot = "Filter" if scaled.type in CONVS else "Y"
            old = scaled.input(slot)
            new = names.param(f"{old}.times", (graph.params[old] * np.float32(factor)).astype(np.float32))
            rescaled = replace(scaled, inputs={**scaled.inputs, slot: (new,)})
            if thresholds := scaled.attr("weight_thresholds"):
                rescaled = rescaled.with_attrs(weight_thresholds=[factor * threshold for threshold in thresholds])
            swap[scaled] = (rescaled,)
        swap[op] = ()
        renamed[out] = op.input("X")
    if not swap:
        return graph
    return graph.evolve((new.rewired(renamed) for op in graph.ops for new in swap.get(op, (op,))), params=names.params)


def _factor(op: Op) -> float | None:
    """By what an op multiplies its input, if that is a constant above 0 and all that it does."""
    if op.type == "dropout" and op.attr("dropout_implementation", "downgrade_in_infer") == "downgrade_in_infer":
        factor = 1 - float(op.attr("dropout_prob", 0.5))
    elif op.type == "scale" and not op.input("ScaleTensor") and op.attr("bias", 0.0) == 0.0:
        factor = float(op.attr("scale", 1.0))
    else:
        return None
    return factor if factor > 0 else None


def _above(graph: Graph, writers: dict[str, Op], readers: dict[str, list[Op]], op: Op) -> tuple[Op, ...]:
    """The product that makes what `op` reads, and the addition of a constant between; () when there is none."""
    additions: list[Op] = []
    name = op.input("X")
    while name in writers and len(readers[name]) == 1 and name not in graph.fetches:
        link = writers[name]
        if link.type in _PRODUCTS and link.input("Y") in graph.params:
            return (link, *additions)
        if link.type == "elementwise_add" and link.input("Y") in graph.params:
            additions.append(link)
        elif link.type not in _HOMOGENEOUS:
            break
        name = link.input("X")
    return ()


def _below(graph: Graph, readers: dict[str, list[Op]], op: Op) -> tuple[Op, ...]:
    """The product or convolution that alone reads what `op` gives out."""
    name = op.output("Out")
    while len(readers.get(name, [])) == 1 and name not in graph.fetches:
        [link] = readers[name]
        if link.type in WEIGHT_SLOT and link.type != "fc":
            slot = WEIGHT_SLOT[link.type][0]
            return (link,) if link.input(slot) in graph.params and link.input(slot) != name else ()
        if link.type not in _HOMOGENEOUS or len(link.reads) > 1:
            break
        name = link.output("Out")
    return ()
