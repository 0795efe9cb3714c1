"""Round what a recurrent layer's INT8 kernel rounds, in a model that fake-quantizes only the products before it.

Paddle's quantization-aware training rounds the product with a layer's input (`mul`), not the layer (gru, lstm). Its
conversion takes the layer's weights as they are and rounds them on the way (_compute_single_gru_weight_scales in
quant2_int8_onednn_pass.py). Here that rounding is written into the simulation first, by the rules of quantization.plan:
one scale a channel for both weights, and the state, bounded by 1, on a grid of 127 steps.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.ir.fusion import RECURRENT, Chain, chains_of, is_carrier, pack_state_weight, state_matrix
from quant.ir.graph import Graph, Op
from quant.ir.names import Names
from quant.ir.numerics import SIGNED, STATE_THRESHOLD, dequantise, quantise
from quant.ir.passes.quantizers import WEIGHT_SLOT, peaks_of

__all__ = ["quantize_cells"]


def quantize_cells(graph: Graph) -> Graph:
    """Give the recurrent layers of a lifted, normalised graph weights on a grid, and round what they give out.

    A tensor made of such states alone is rounded on their grid from now on, not on that of its own quantizer.
    Not touched: layers whose weights lie on a grid already, or whose product isn't fake-quantized with 127 levels.
    """
    cells = {op for op in graph.ops if op.type in RECURRENT and not op.attr("weight_thresholds")}
    weighted = {op for op in graph.ops if op.attr("weight_thresholds")}
    writers = graph.writers()
    chains = [
        chain
        for chain in chains_of(graph, cells | weighted).values()
        if chain.cell in cells and chain.op in weighted and _rounds(writers.get(chain.data))
    ]
    if not chains:
        return graph
    names = graph.names()
    states = {chain.out: names.fresh(f"{chain.out}.quantized") for chain in chains}
    swap: dict[Op, Op] = {}
    for op in graph.ops:
        if op.type == "fake_quant" and _roots(op.input("X"), writers) <= states.keys():
            swap[op] = op.with_attrs(threshold=STATE_THRESHOLD, levels=SIGNED)
    for chain in chains:
        quantizer = writers[chain.data]
        threshold = swap.get(quantizer, quantizer).attr("threshold")
        _round_weights(graph, chain, threshold, swap, names)
    ops = []
    for op in graph.ops:
        ops.append(swap.get(op, op).rewired(states))
        for name in op.writes:
            if name in states:
                attrs = {"threshold": STATE_THRESHOLD, "levels": SIGNED}
                ops.append(Op.make("fake_quant", {"X": name}, {"Out": states[name]}, **attrs))
    return graph.evolve(ops, {new: graph.vars[old] for old, new in states.items()}, names.params)


def _rounds(op: Op | None) -> bool:
    return op is not None and op.type == "fake_quant" and op.attr("levels") == SIGNED


def _roots(name: str, writers: dict[str, Op]) -> set[str]:
    """The tensors that ops which only carry values make a tensor of."""
    op = writers.get(name)
    if op is None or not is_carrier(op):
        return {name}
    return {root for source in op.inputs["X"] for root in _roots(source, writers)}


def _round_weights(graph: Graph, chain: Chain, threshold: float, swap: dict[Op, Op], names: Names) -> None:
    """Put both weights of a layer on their joint grid; `threshold` is that of its input."""
    cell, op = chain.cell, chain.op
    assert cell is not None
    slot, axis = WEIGHT_SLOT[op.type]
    levels, own = op.attr("weight_levels"), np.array(op.attr("weight_thresholds"), np.float64)
    state = state_matrix(cell, graph.params[chain.state_weight])
    peaks = np.maximum(own * threshold / STATE_THRESHOLD, peaks_of(chain.state_weight, state, 1))
    of_input = peaks * STATE_THRESHOLD / threshold

    def onto_grid(matrix: NDArray[Any], thresholds: NDArray[Any], axis: int) -> NDArray[np.float32]:
        return dequantise(quantise(matrix, thresholds, levels, axis), thresholds, levels, axis)

    def gridded(op: Op, slot: str, values: NDArray[Any], thresholds: NDArray[Any]) -> Op:
        name = names.param(f"{op.input(slot)}.joint", values)
        attrs = {"weight_thresholds": [float(value) for value in thresholds], "weight_levels": levels}
        return replace(op, inputs={**op.inputs, slot: (name,)}).with_attrs(**attrs)

    swap[cell] = gridded(cell, "Weight", pack_state_weight(cell, onto_grid(state, peaks, 1)), peaks)
    swap[op] = gridded(op, slot, onto_grid(graph.params[chain.weight], of_input, axis), of_input)
