"""Float32 ops that one oneDNN kernel does together -> fused_conv2d, fc, fusion_gru and fusion_lstm, as the INT8 emitter
writes them.

So that direct.program can run an FP32 model as it runs the INT8 one: what INT8 gains is then not what Paddle's executor
loses. The outputs are those of the separate ops, up to the rounding of float32 sums.
"""

from typing import Any

from quant.ir.fusion import CONVS, PRODUCTS, RECURRENT, Chain, chains_of, row_dims, whole_bias
from quant.ir.graph import Graph, Op
from quant.ir.ops.activations import conv_activation

__all__ = ["fuse_kernels"]

_COPIED = ("strides", "paddings", "dilations", "groups", "data_format", "padding_algorithm")


def fuse_kernels(graph: Graph) -> Graph:
    """Fuse float32 convolutions, products by a constant weight and recurrent layers with what belongs to them."""
    weighted = {
        op for op in graph.ops if op.type in (*CONVS, *PRODUCTS, *RECURRENT) and op.attr("mkldnn_data_type") != "int8"
    }
    chains = {op: chain for op, chain in chains_of(graph, weighted).items() if chain.weight}
    if not chains:
        return graph
    names = graph.names()
    last = {}
    for chain in chains.values():
        if chain.cell:
            bias = names.param(f"{chain.out}.bias", whole_bias(graph, chain))
            last[chain.cell] = _cell(chain, chain.cell, bias)
        else:
            last[chain.ops[-1]] = _fused(graph, chain)
    gone = {op for chain in chains.values() for op in chain.ops} - set(last)
    return graph.evolve((last.get(op, op) for op in graph.ops if op not in gone), params=names.params)


def _cell(chain: Chain, cell: Op, bias: str) -> Op:
    inputs = {"X": chain.data, "WeightX": chain.weight, "WeightH": cell.input("Weight"), "Bias": bias}
    attrs = {name: cell.attr(name, False) for name in ("is_reverse", "origin_mode")}
    return Op.make(f"fusion_{cell.type}", inputs, {"Hidden": chain.out}, **attrs)


def _fused(graph: Graph, chain: Chain) -> Op:
    attrs: dict[str, Any] = {}
    if chain.activation and (eltwise := conv_activation(chain.ops[-1])):
        attrs = {"fuse_activation": eltwise.name, "fuse_alpha": eltwise.alpha, "fuse_beta": eltwise.beta}
    bias = {"Bias": chain.bias} if chain.bias else {}
    if chain.op.type in CONVS:
        attrs |= {name: chain.op.attr(name) for name in _COPIED if name in chain.op.attrs}
        residual = {"ResidualData": chain.residual} if chain.residual else {}
        inputs = {"Input": chain.data, "Filter": chain.weight, **bias, **residual}
        return Op.make("fused_conv2d", inputs, {"Output": chain.out}, fuse_residual_connection=bool(residual), **attrs)
    inputs = {"Input": chain.data, "W": chain.weight, **bias}
    return Op.make("fc", inputs, {"Out": chain.out}, in_num_col_dims=row_dims(graph, chain.op), **attrs)
