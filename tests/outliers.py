"""Encoders and convolutional networks with planted outlier channels that leave the function unchanged.

Pretrained encoders have a few channels behind their layer norms that are tens of times larger than the others, and
there Paddle's own INT8 becomes noise while the simulation is fine. Generated and small trained weights don't show it.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quant.ir.graph import Graph, Op, Var, run_passes
from quant.ir.passes import NORMALISE
from tests.nets import Net

__all__ = ["plant", "plant_conv", "plantable", "planted_net"]


def plant(graph: Graph, factor: float, channels: tuple[int, ...] = (3, 40, 77)) -> Graph:
    """Multiply some channels of every layer norm by `factor`, and divide where they are read.

    Products divide in their weights' rows; for any other reader (the residual addition) a division is inserted.
    """
    readers = graph.readers()
    params, vars = dict(graph.params), dict(graph.vars)
    rewired: dict[Op, Op] = {}
    behind: dict[Op, Op] = {}
    for norm in graph.ops:
        if norm.type != "layer_norm":
            continue
        out = norm.output("Y")
        gain = np.ones(vars[out].shape[-1], np.float32)
        gain[list(channels)] = factor
        slots = {}
        for slot in ("Scale", "Bias"):
            slots[slot] = (f"{norm.input(slot)}.planted",)
            params[slots[slot][0]] = params[norm.input(slot)] * gain
            vars[slots[slot][0]] = Var(gain.shape)
        rewired[norm] = replace(norm, inputs={**norm.inputs, **slots})
        divided, divisor = f"{out}.divided", f"{out}.divisor"
        params[divisor], vars[divisor], vars[divided] = 1 / gain, Var(gain.shape), vars[out]
        for reader in readers[out]:
            weight = reader.input("Y")
            if reader.type == "matmul_v2" and weight in params:
                name = f"{weight}.planted"
                params[name], vars[name] = params[weight] / gain[:, None], vars[weight]
                rewired[reader] = replace(reader, inputs={**reader.inputs, "Y": (name,)})
            else:
                rewired[reader] = rewired.get(reader, reader).rewired({out: divided})
                inputs = {"X": out, "Y": divisor}
                behind[norm] = Op.make("elementwise_mul", inputs, {"Out": divided}, axis=-1)
    ops: list[Op] = []
    for op in graph.ops:
        ops.append(rewired.get(op, op))
        if op in behind:
            ops.append(behind[op])
    return replace(graph, ops=tuple(ops), params=params, vars=vars).evolve(ops)


def plant_conv(graph: Graph, reader: str, factors: Mapping[int, float]) -> Graph:
    """Multiply channels (channel -> factor) of what a convolution reads, and divide in its weights.

    `reader`: the convolution's output. What it reads is the ReLU of a convolution with a bias, and nothing else reads
    it; batch norm is folded.
    """
    writers, readers = graph.writers(), graph.readers()
    conv = writers[reader]
    relu = writers[conv.input("Input")]
    bias = writers[relu.input("X")]
    before = writers[bias.input("X")]
    assert (relu.type, before.type) == ("relu", "conv2d")
    assert readers[relu.output("Out")] == [conv]
    params = dict(graph.params)
    gain = np.ones(len(params[before.input("Filter")]), np.float32)
    gain[list(factors)] = list(factors.values())
    params[before.input("Filter")] = params[before.input("Filter")] * gain[:, None, None, None]
    params[bias.input("Y")] = params[bias.input("Y")] * gain
    params[conv.input("Filter")] = params[conv.input("Filter")] / gain[:, None, None]
    return replace(graph, params=params)


def plantable(graph: Graph) -> list[str]:
    """Outputs of the convolutions that `plant_conv` takes, in order."""
    writers, readers = graph.writers(), graph.readers()

    def biased_relu(name: str) -> bool:
        relu = writers.get(name)
        bias = writers.get(relu.input("X")) if relu is not None and relu.type == "relu" else None
        conv = writers.get(bias.input("X")) if bias is not None and bias.type == "elementwise_add" else None
        return conv is not None and conv.type == "conv2d"

    convs = [op for op in graph.ops if op.type == "conv2d"]
    alone = [op for op in convs if readers[op.input("Input")] == [op]]
    return [op.output("Output") for op in alone if biased_relu(op.input("Input"))]


def planted_net() -> tuple[Graph, Graph, tuple[str, str]]:
    """Six convolutions; the same with outliers in what the third and the fifth read; these two's outputs."""
    net = Net()
    x, convs = "x", []
    for _ in range(6):
        convs.append(net.conv(x, 16, 3))
        x = net.act(net.bias(convs[-1]))
    plain = run_passes(net.graph(net.head(net.pool(x, "avg"))), NORMALISE)
    graph = plain
    for reader in (convs[2], convs[4]):
        graph = plant_conv(graph, reader, {0: 3000.0, 1: 60.0})
    return plain, graph, (convs[2], convs[4])
