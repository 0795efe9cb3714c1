"""Small nets declared for images of 16x16: one that takes any size, and one whose last layer is for that size only."""

import numpy as np

from quant.ir.graph import Graph
from tests.nets import Net

CHANNELS, SIDE, CLASSES = 4, 16, 3


def convolutional() -> Graph:
    """Images `x` [N, 4, 16, 16] -> scores [N, 3]: two convolutions, and the mean over all places."""
    net = Net(CHANNELS, SIDE)
    x = net.act(net.bias(net.conv("x", 8, kernel=3)))
    x = net.bias(net.conv(x, CLASSES))
    return net.graph(_mean(net, x))


def flattened() -> Graph:
    """The same, but the last layer reads all places, flattened."""
    net = Net(CHANNELS, SIDE)
    x = net.act(net.bias(net.conv("x", 8, kernel=3)))
    size = 8 * SIDE * SIDE
    x = net.op("flatten_contiguous_range", {"X": x}, shape=(-1, size), start_axis=1, stop_axis=3)
    return net.graph(net.op("matmul_v2", {"X": x, "Y": net.param(size, CLASSES)}, shape=(-1, CLASSES)))


def reshaped() -> Graph:
    """The same mean, over rows of as many values as 16x16 places have."""
    net = Net(CHANNELS, SIDE)
    x = net.act(net.bias(net.conv("x", 8, kernel=3)))
    x = net.op("reshape2", {"X": x}, shape=(-1, 8 * SIDE * SIDE))
    net.ops[-1] = net.ops[-1].with_attrs(shape=[-1, 8 * SIDE * SIDE])
    return net.graph(x)


def images(count: int, height: int, width: int, channels: int = CHANNELS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, channels, height, width)).astype(np.float32)


def _mean(net: Net, x: str) -> str:
    name = net.op("reduce_mean", {"X": x}, shape=(-1, CLASSES), keep_dim=False, reduce_all=False)
    net.ops[-1] = net.ops[-1].with_attrs(dim=[2, 3])
    return name
