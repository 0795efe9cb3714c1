"""Small graphs for tests, built directly as values, and a way to run them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quant.ir.graph import Graph, Op, Var, save_dir
from quant.runtime.predictor import Predictor, Settings

CONV = {
    "strides": [1, 1],
    "paddings": [0, 0],
    "dilations": [1, 1],
    "groups": 1,
    "data_format": "NCHW",
    "padding_algorithm": "EXPLICIT",
}


class Net:
    """Adds ops one by one; every method returns the name of its output. Shapes are worked out for 4-D [-1, C, 8, 8]."""

    def __init__(self, channels: int = 8, side: int = 8, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.ops: list[Op] = []
        self.params: dict[str, np.ndarray] = {}
        self.vars: dict[str, Var] = {"x": Var((-1, channels, side, side))}

    def param(self, *shape: int, scale: float = 1.0) -> str:
        name = f"p{len(self.params)}"
        self.params[name] = (self.random.standard_normal(shape) * scale).astype(np.float32)
        self.vars[name] = Var(shape)
        return name

    def op(
        self, type: str, inputs: dict[str, Any], out: str = "Out", shape: tuple[int, ...] | None = None, **attrs: Any
    ) -> str:
        name = f"t{len(self.ops)}"
        slots = {slot: (value,) if isinstance(value, str) else tuple(value) for slot, value in inputs.items()}
        first = next(iter(slots.values()))[0]
        self.vars[name] = Var(shape) if shape else self.vars[first]
        self.ops.append(Op(type, slots, {out: (name,)}, Op.make("", {}, {}, **attrs).attrs))
        return name

    def conv(self, x: str, out: int, kernel: int = 1, groups: int = 1, type: str = "conv2d") -> str:
        channels, side = self.vars[x].shape[1], self.vars[x].shape[2]
        weight = self.param(out, channels // groups, kernel, kernel, scale=1 / kernel)
        attrs = {**CONV, "groups": groups, "paddings": [kernel // 2] * 2}
        return self.op(type, {"Input": x, "Filter": weight}, "Output", (-1, out, side, side), **attrs)

    def bias(self, x: str) -> str:
        return self.op("elementwise_add", {"X": x, "Y": self.param(self.vars[x].shape[1])}, axis=1)

    def bias_as_paddle_exports_it(self, x: str) -> str:
        channels = self.vars[x].shape[1]
        shaped = self.op("reshape2", {"X": self.param(channels)}, shape=(1, channels, 1, 1))
        self.ops[-1] = self.ops[-1].with_attrs(shape=[1, channels, 1, 1])
        return self.op("elementwise_add", {"X": x, "Y": shaped}, axis=-1)

    def norm(self, x: str, **attrs: Any) -> str:
        channels = self.vars[x].shape[1]
        names = {slot: self.param(channels) for slot in ("Scale", "Bias", "Mean", "Variance")}
        self.params[names["Variance"]] = np.abs(self.params[names["Variance"]]) + 0.5
        out = self.op("batch_norm", {"X": x, **names}, "Y", epsilon=1e-3, data_layout="NCHW", is_test=True, **attrs)
        extra = {slot: (f"{out}.{slot}",) for slot in ("MeanOut", "VarianceOut", "SavedMean", "SavedVariance")}
        extra["MeanOut"], extra["VarianceOut"] = (names["Mean"],), (names["Variance"],)
        for slot in ("SavedMean", "SavedVariance"):
            self.vars[extra[slot][0]] = Var((channels,))
        last = self.ops[-1]
        self.ops[-1] = Op(last.type, last.inputs, {"Y": (out,), **extra}, last.attrs)
        return out

    def act(self, x: str, type: str = "relu") -> str:
        return self.op(type, {"X": x})

    def add(self, x: str, y: str) -> str:
        return self.op("elementwise_add", {"X": x, "Y": y}, axis=-1)

    def pool(self, x: str, kind: str = "max") -> str:
        _, channels, side, _ = self.vars[x].shape
        attrs = {"pooling_type": kind, "ksize": [2, 2], "strides": [2, 2], "paddings": [0, 0], "exclusive": True}
        shape = (-1, channels, side // 2, side // 2)
        return self.op("pool2d", {"X": x}, shape=shape, **attrs, global_pooling=False, adaptive=False, ceil_mode=False)

    def concat(self, *names: str) -> str:
        channels = sum(self.vars[name].shape[1] for name in names)
        return self.op("concat", {"X": names}, shape=(-1, channels, *self.vars[names[0]].shape[2:]), axis=1)

    def split(self, x: str, parts: int) -> tuple[str, ...]:
        _, channels, *sides = self.vars[x].shape
        names = tuple(f"t{len(self.ops)}.{part}" for part in range(parts))
        self.vars.update(dict.fromkeys(names, Var((-1, channels // parts, *sides))))
        attrs = Op.make("", {}, {}, num=0, sections=[channels // parts] * parts, axis=1).attrs
        self.ops.append(Op("split", {"X": (x,)}, {"Out": names}, attrs))
        return names

    def head(self, x: str, classes: int = 6) -> str:
        size = int(np.prod(self.vars[x].shape[1:]))
        flat = self.op("flatten_contiguous_range", {"X": x}, shape=(-1, size), start_axis=1, stop_axis=-1)
        return self.linear(flat, classes)

    def linear(self, x: str, out: int) -> str:
        weight = self.param(self.vars[x].shape[1], out, scale=0.1)
        y = self.op("matmul_v2", {"X": x, "Y": weight}, shape=(-1, out), trans_x=False, trans_y=False)
        return self.op("elementwise_add", {"X": y, "Y": self.param(out)}, axis=-1)

    def graph(self, *fetches: str) -> Graph:
        return Graph(tuple(self.ops), self.vars, self.params, ("x",), fetches)

    def batches(self, count: int = 4, size: int = 8) -> list[dict[str, np.ndarray]]:
        shape = self.vars["x"].shape[1:]
        return [{"x": self.random.standard_normal((size, *shape)).astype(np.float32)} for _ in range(count)]


def run(
    graph: Graph, arrays: dict[str, np.ndarray], directory: Path, settings: Settings | None = None
) -> list[np.ndarray]:
    """Save a graph under `directory` and run it once, an INT8 model by either executor: no bit may differ."""
    place = directory / f"run{len(list(directory.iterdir()))}"
    place.mkdir()
    save_dir(graph, place)
    settings = settings or Settings()
    with Predictor(place, replace(settings, executor="paddle")) as predictor:
        found = list(predictor(arrays).values())
    with Predictor(place, settings) as predictor:
        if predictor.executor == "direct":
            for mine, its in zip(predictor(arrays).values(), found, strict=True):
                np.testing.assert_array_equal(mine, its)
    return found


NATIVE = Settings(onednn=False, optimise=False)


def residual_net() -> Graph:
    """Both kinds of residual: a signed one (from a convolution) and an unsigned one (from a ReLU)."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8, 3)))
    shortcut = net.norm(net.conv(stem, 16))
    block = net.act(net.add(net.norm(net.conv(net.act(net.norm(net.conv(stem, 8))), 16)), shortcut))
    again = net.act(net.add(net.bias(net.conv(block, 16, 3)), block))
    return net.graph(net.head(net.pool(again, "avg")))


def inverted_net() -> Graph:
    """MobileNetV2's block: linear residuals, depthwise, ReLU6."""
    net = Net()
    stem = net.bias(net.conv("x", 8))
    hidden = net.act(net.bias(net.conv(stem, 24)), "relu6")
    deep = net.act(net.bias(net.conv(hidden, 24, 3, groups=24, type="depthwise_conv2d")), "relu6")
    return net.graph(net.head(net.add(net.bias(net.conv(deep, 8)), stem)))


def inception_net() -> Graph:
    """Concat and max pooling between convolutions, one input for several readers."""
    net = Net()
    stem = net.pool(net.act(net.bias(net.conv("x", 8, 3))))
    branches = [net.act(net.bias(net.conv(stem, 8))), net.act(net.bias(net.conv(stem, 4, 3)))]
    joined = net.concat(*branches)
    return net.graph(net.head(net.pool(net.act(net.bias(net.conv(joined, 8))), "max")))


def vgg_net() -> Graph:
    """Fully connected layers in a row, with ReLU and dropout between."""
    net = Net()
    x = net.pool(net.act(net.bias_as_paddle_exports_it(net.conv("x", 8, 3))))
    x = net.act(net.head(x, 32))
    x = net.op("dropout", {"X": x}, dropout_implementation="upscale_in_train", dropout_prob=0.5, is_test=True)
    x = net.act(net.linear(x, 32))
    return net.graph(net.linear(x, 6))


def mixed_net() -> Graph:
    """A concat of a tensor that can't be negative and one that can: one grid, two storage types."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8)))
    joined = net.concat(net.act(net.bias(net.conv(stem, 8))), net.bias(net.conv(stem, 8)))
    return net.graph(net.head(net.act(net.bias(net.conv(joined, 8, 3)))))


def shuffle_net() -> Graph:
    """ShuffleNetV2's units: one half passes by, both are joined, and channels change places."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8, 3)))
    joined = net.concat(stem, net.act(net.bias(net.conv(stem, 8))))
    for _ in range(2):
        shape = net.vars[joined].shape
        wide = net.op("reshape2", {"X": joined}, shape=(-1, 2, 8, 8, 8))
        net.ops[-1] = net.ops[-1].with_attrs(shape=[-1, 2, 8, 8, 8])
        turned = net.op("transpose2", {"X": wide}, shape=(-1, 8, 2, 8, 8), axis=[0, 2, 1, 3, 4])
        shuffled = net.op("reshape2", {"X": turned}, shape=shape)
        net.ops[-1] = net.ops[-1].with_attrs(shape=list(shape))
        by, through = net.split(shuffled, 2)
        deep = net.bias(net.conv(net.act(net.bias(net.conv(through, 8))), 8, 3, groups=8, type="depthwise_conv2d"))
        joined = net.concat(by, net.act(net.bias(net.conv(deep, 8))))
    return net.graph(net.head(joined))


def dense_net() -> Graph:
    """DenseNet's layers: batch norm and ReLU of a concat, in front of convolutions; an average between blocks."""
    net = Net()
    joined = net.conv("x", 8, 3)
    for _ in range(2):
        narrow = net.norm(net.conv(net.act(net.norm(joined)), 8))
        joined = net.concat(joined, net.conv(net.act(narrow), 8, 3))
    between = net.pool(net.conv(net.act(net.norm(joined)), 8), "avg")
    last = net.act(net.norm(net.concat(between, net.conv(net.act(net.norm(between)), 4, 3))))
    return net.graph(net.head(last))


def preact_net() -> Graph:
    """Residual blocks that normalise first (He et al. 2016, identity mappings); one has a shortcut of its own."""
    net = Net()
    x = net.conv("x", 8, 3)
    for width in (8, 12):
        y = net.act(net.norm(x))
        deep = net.conv(net.act(net.norm(net.conv(y, width, 3))), width, 3)
        x = net.add(deep, x if width == 8 else net.conv(y, width))
    return net.graph(net.head(net.pool(net.act(net.norm(x)), "avg")))


def swish_net() -> Graph:
    """Residuals in nets without ReLU: the activation behind the sum, or before it."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8, 3)), "swish")
    behind = net.act(net.add(net.bias(net.conv(stem, 8)), stem), "leaky_relu")
    before = net.add(net.act(net.bias(net.conv(behind, 8, 3)), "swish"), behind)
    unsigned = net.act(net.bias(net.conv(before, 8)))
    total = net.add(net.bias(net.conv(unsigned, 8)), unsigned)
    return net.graph(net.head(net.op("hard_sigmoid", {"X": total}, slope=0.2, offset=0.5)))


def pyramid_net() -> Graph:
    """A detector's neck: a coarse map is enlarged and joined to the fine one."""
    net = Net()
    fine = net.act(net.bias(net.conv("x", 8, 3)), "leaky_relu")
    coarse = net.act(net.bias(net.conv(net.pool(fine), 8)), "leaky_relu")
    attrs = {"interp_method": "nearest", "align_corners": False, "out_h": -1, "out_w": -1, "data_layout": "NCHW"}
    large = net.op("nearest_interp_v2", {"X": coarse}, shape=net.vars[fine].shape, scale=[2.0, 2.0], **attrs)
    return net.graph(net.head(net.bias(net.conv(net.concat(fine, large), 8, 3))))


def seeds_time_net() -> Graph:
    """Classifiers as Paddle 1.x wrote them: `mul` straight on a [N, C, H, W] map, and on a pooled [N, C, 1, 1]."""
    net = Net()
    flat = {"x_num_col_dims": 1, "y_num_col_dims": 1}
    x = net.pool(net.act(net.bias(net.conv("x", 8, 3))))
    x = net.op("mul", {"X": x, "Y": net.param(8 * 16, 16, scale=0.1)}, shape=(-1, 16), **flat)
    x = net.act(net.op("elementwise_add", {"X": x, "Y": net.param(16)}, axis=1))
    x = net.op("reshape2", {"X": x}, shape=(-1, 16, 1, 1))
    net.ops[-1] = net.ops[-1].with_attrs(shape=[0, 16, 1, 1])
    x = net.op("mul", {"X": x, "Y": net.param(16, 6, scale=0.1)}, shape=(-1, 6), **flat)
    return net.graph(net.op("elementwise_add", {"X": x, "Y": net.param(6)}, axis=1))


NETS = {
    "seeds_time": seeds_time_net,
    "mixed": mixed_net,
    "residual": residual_net,
    "inverted": inverted_net,
    "inception": inception_net,
    "vgg": vgg_net,
    "shuffle": shuffle_net,
    "swish": swish_net,
    "dense": dense_net,
    "preact": preact_net,
    "pyramid": pyramid_net,
}


def data(graph: Graph, count: int = 4, size: int = 8, seed: int = 1) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    shape = graph.vars["x"].shape[1:]
    return [{"x": random.standard_normal((size, *shape)).astype(np.float32)} for _ in range(count)]
