"""Fold a multiplication by a constant into the product before it: (x W + b) * s = x (W s) + b s.

Attention scales its queries this way. A fake-quantized weight stays on its grid: its thresholds are multiplied by |s|.
"""

from dataclasses import replace

import numpy as np

from quant.graph import Graph, Op

__all__ = ["fold_scale"]

_PRODUCTS = ("mul", "matmul", "matmul_v2")
_CARRIERS = ("reshape2", "transpose2", "flatten_contiguous_range", "squeeze2", "unsqueeze2")


def fold_scale(graph: Graph) -> Graph:
    """Remove `scale` ops without offset behind a product with a constant weight [+ constant bias] [+ reshapes].

    Not touched: a scale that is a tensor or not above 0, a value in between with another reader, a fetched output.
    """
    writers, readers = graph.writers(), graph.readers()
    swap: dict[Op, tuple[Op, ...]] = {}
    params = {}
    names: dict[str, str] = {}
    for op in graph.ops:
        factor = op.attr("scale", 1.0)
        if op.type != "scale" or op.input("ScaleTensor") or op.attr("bias", 0.0) != 0.0 or factor <= 0:
            continue
        path: list[Op] = []  # from the scale upwards
        name = op.input("X")
        while name in writers and len(readers[name]) == 1 and name not in graph.fetches:
            path.append(writers[name])
            if path[-1].type in _PRODUCTS or path[-1] in swap:
                break
            adds_constant = path[-1].type == "elementwise_add" and path[-1].input("Y") in graph.params
            if path[-1].type not in _CARRIERS and not adds_constant:
                break
            name = path[-1].input("X")
        product = path[-1] if path else None
        if product is None or product.type not in _PRODUCTS or product in swap or op.output("Out") in graph.fetches:
            continue
        if product.input("Y") not in graph.params:
            continue
        for scaled in (product, *(link for link in path if link.type == "elementwise_add")):
            old = scaled.input("Y")
            new = graph.fresh(f"{old}.times.{op.output('Out')}")
            params[new] = (graph.params[old] * np.float32(factor)).astype(np.float32)
            renamed = replace(scaled, inputs={**scaled.inputs, "Y": (new,)})
            if thresholds := scaled.attr("weight_thresholds"):
                renamed = renamed.with_attrs(weight_thresholds=[factor * threshold for threshold in thresholds])
            swap[scaled] = (renamed,)
        swap[op] = ()
        names[op.output("Out")] = op.input("X")
    if not swap:
        return graph
    return graph.evolve((new.rewired(names) for op in graph.ops for new in swap.get(op, (op,))), params=params)
