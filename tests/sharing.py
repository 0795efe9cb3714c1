"""Random nets whose ops share parameters, beside twins in which each op has its own; and what compares the two."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixtures.programs import Program
from quant.datasets.columns import Ragged
from quant.ir.constants import computed
from quant.ir.graph import Graph, Op, Var
from tests.nets import Net

Array = NDArray[Any]
SIZE = 8  # of every dimension that can be: parameters of one shape can be shared


def images(random: np.random.Generator) -> Graph:
    """Convolutions, depthwise ones, batch norms, residual additions, concat, scales, and a few products behind."""
    net = Net(SIZE, SIZE, seed=int(random.integers(1 << 30)))
    maps = ["x"]

    def pick() -> str:
        return str(random.choice(maps))

    for _ in range(int(random.integers(2, 6))):
        kind, x = random.choice(["conv", "conv3", "depthwise", "concat", "norm", "scale", "twice"]), pick()
        if kind == "depthwise":
            x = net.conv(x, SIZE, 3, groups=SIZE, type="depthwise_conv2d")
        elif kind == "concat":
            x = net.conv(net.concat(x, pick()), SIZE)
        elif kind == "twice":  # of one input, with and without an activation
            x = net.add(net.act(net.conv(x, SIZE)), net.conv(x, SIZE))
        elif kind == "norm":
            x = net.conv(net.act(net.norm(x)), SIZE)
        elif kind == "scale":
            x = net.op("scale", {"X": net.bias(net.conv(x, SIZE))}, scale=float(random.choice([0.25, 3.0])), bias=0.0)
        else:
            x = net.conv(x, SIZE, 3 if kind == "conv3" else 1)
        behind = random.choice(["", "bias", "exported bias", "norm", "bias norm"])
        x = net.bias_as_paddle_exports_it(x) if behind == "exported bias" else net.bias(x) if "bias" in behind else x
        x = net.norm(x) if "norm" in behind else x
        x = net.add(x, pick()) if random.random() < 0.3 else x
        maps.append(net.act(x, str(random.choice(["relu", "leaky_relu", "relu6"]))) if random.random() < 0.7 else x)
    attrs = {"pooling_type": "avg", "ksize": [SIZE, SIZE], "strides": [1, 1], "paddings": [0, 0], "exclusive": True}
    outs = []
    for name in maps[-2:]:
        pooled = net.op("pool2d", {"X": name}, shape=(-1, SIZE, 1, 1), global_pooling=True, adaptive=False, **attrs)
        y = net.op("flatten_contiguous_range", {"X": pooled}, shape=(-1, SIZE), start_axis=1, stop_axis=-1)
        for _ in range(int(random.integers(1, 3))):
            y = net.linear(y, SIZE)
            if random.random() < 0.5:
                y = net.op("scale", {"X": y}, scale=0.5, bias=0.0)
        outs.append(y)
    return net.graph(*outs)


def texts(random: np.random.Generator) -> Graph:
    """Embeddings, GRU and LSTM layers and products over two inputs, joined by additions and concat."""
    program = Program({name: Var((-1, 1), "int64", 1) for name in "ab"})
    row = Var((-1, SIZE), lod_level=1)

    def param(*shape: int) -> str:
        value = random.standard_normal(shape) * random.choice([0.2, 0.4, 2.0])
        return program.param(f"p{len(program.params)}", value.astype(np.float32))

    outs = []
    for feed in "ab":
        inputs = {"W": param(SIZE, SIZE), "Ids": feed}
        rows = [program.op("lookup_table", inputs, {"Out": row}, padding_idx=-1)]
        for _ in range(int(random.integers(1, 4))):
            x, kind = str(random.choice(rows)), random.choice(["gru", "lstm", "linear", "add", "concat", "tied"])
            if kind in ("gru", "lstm"):
                gates = SIZE * (3 if kind == "gru" else 4)
                x = program.linear(x, param(SIZE, gates), param(gates))
                x = program.recurrent(str(kind), x, param(SIZE, gates), param(1, gates), bool(random.random() < 0.5))
            elif kind == "tied":  # scores by a table, as a language model reads its embeddings
                inputs = {"X": x, "Y": param(SIZE, SIZE)}
                x = program.op("matmul_v2", inputs, {"Out": row}, trans_x=False, trans_y=True)
            elif kind == "add":
                x = program.op("elementwise_add", {"X": x, "Y": str(random.choice(rows))}, {"Out": row}, axis=-1)
            elif kind == "concat":
                x = program.concat([x, str(random.choice(rows))])
                x = program.linear(x, param(2 * SIZE, SIZE), param(SIZE))
            else:
                x = program.linear(x, param(SIZE, SIZE), param(SIZE))
                x = program.op("relu", {"X": x}, {"Out": row})
            rows.append(x)
        outs.append(program.linear(rows[-1], param(SIZE, SIZE), param(SIZE)))
    return program.graph(outs)


def shared(graph: Graph, random: np.random.Generator) -> tuple[Graph, Graph]:
    """The graph with some parameters of one shape read as one, and its twin: the same values under all the names.

    Variances share among themselves: they are positive, and Paddle refuses a batch norm with one mean and variance.
    """
    by_shape: defaultdict[tuple[tuple[int, ...], bool], list[str]] = defaultdict(list)
    variances = {op.input("Variance") for op in graph.ops if op.type == "batch_norm"}
    for name, value in graph.params.items():
        by_shape[value.shape, name in variances].append(name)
    one: dict[str, str] = {}
    for names in by_shape.values():
        kept: list[str] = []
        for name in names:
            if kept and random.random() < 0.6:
                one[name] = str(random.choice(kept[-2:]))
            else:
                kept.append(name)
    values = {name: graph.params[one.get(name, name)] for name in graph.params}
    ops = []
    for op in graph.ops:
        outputs = {slot: tuple(one.get(name, name) for name in names) for slot, names in op.outputs.items()}
        ops.append(replace(op.rewired(one), outputs=outputs))
    twin = replace(graph, params=values)
    return twin.evolve(ops), twin


def inputs(graph: Graph, random: np.random.Generator, sizes: tuple[int, ...]) -> dict[str, Any]:
    """A batch for a graph of this module; of texts, sequences of these lengths."""
    if graph.feeds == ("x",):
        return {"x": random.standard_normal((len(sizes), SIZE, SIZE, SIZE)).astype(np.float32)}
    return {name: Ragged.of([random.integers(0, SIZE, (size, 1)) for size in sizes]) for name in graph.feeds}


def written(graph: Graph) -> list[tuple[Any, ...]]:
    """What a graph computes, without its names: its ops with their attributes, activations by their place, parameters
    (and what is computed from them alone) by their bits."""
    values: dict[str, Array] = dict(graph.params)
    places = {name: ("fed", number) for number, name in enumerate(graph.feeds)}
    found: list[tuple[Any, ...]] = []

    def of(name: str) -> Any:
        if name in values:
            value = values[name]
            return value.shape, str(value.dtype), value.tobytes()
        return places[name] if name else ()

    for op in graph.ops:
        if op.reads and all(name in values for name in op.reads):
            value = computed(op, values.__getitem__)
            if value is not None:
                values[op.output("Out")] = value
                continue
            if op.type == "dequantize_linear":
                values[op.output("Y")] = np.concatenate([values[name].reshape(-1) for name in op.reads])
                continue
        attrs = {name: attr.value for name, attr in op.attrs.items()}
        found.append((op.type, attrs, {slot: [of(name) for name in names] for slot, names in op.inputs.items()}))
        for slot, names in op.outputs.items():
            for number, name in enumerate(names):
                if name not in graph.params:
                    places[name] = (slot, len(found) * 10 + number)
    return [*found, tuple(places[name] for name in graph.fetches)]


def size(graph: Graph) -> int:
    """Bytes of a graph's parameters."""
    return sum(value.nbytes for value in graph.params.values())


def check_rewrite(before: Graph, after: Graph, may_round: Callable[[Op], bool] = lambda op: False) -> None:
    """A rewrite dropped or overwrote no parameter that an op reads, and every op reads what is there by then.

    `may_round`: ops that may read other values under a parameter's old name.
    """
    known = {*after.feeds, *after.params}
    written_before = {name for op in before.ops for name in op.writes}
    for op in after.ops:
        for name in filter(None, op.reads):
            assert name in known, f"{op.type} reads {name!r}, which is neither a parameter nor written by then"
            if name in before.params and name in after.params and not may_round(op):
                assert _same(before.params[name], after.params[name]), f"{op.type} reads other values as {name!r}"
        for name in op.writes:
            assert name not in after.params or name in written_before, f"{op.type} writes the parameter {name!r}"
        known.update(op.writes)
    for name in after.fetches:
        assert name in known, f"the output {name!r} isn't written"


def _same(one: Array, other: Array) -> bool:
    return one is other or (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
