"""Programs of older Paddle versions: each old way of writing an op is the same network as today's way."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.errors import UnsupportedError
from quant.ir.graph import Attr, Graph, Op, Var, as_today, load_dir, run_passes, save_dir
from quant.ir.passes import NORMALISE, lower_quantizers
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import Coverage, convert
from quant.runtime.predictor import Predictor, Settings
from tests.nets import NATIVE, Net, data

FLAT = {"x_num_col_dims": 1, "y_num_col_dims": 1}


def network() -> Graph:
    """One of each op whose attributes have changed over the years, as today's Paddle writes them."""
    net = Net()
    x = net.act(net.norm(net.conv("x", 8, 3)), "relu6")
    x = net.act(net.bias(net.conv(net.pool(x), 8, 3, groups=8, type="depthwise_conv2d")), "hard_swish")
    wide = net.act(net.norm(net.bias(net.conv(x, 8))), "swish")
    x = net.act(net.conv(net.concat(wide, net.act(net.conv(x, 8), "leaky_relu")), 8, 3), "relu")
    x = net.op("dropout", {"X": x}, dropout_prob=0.25, dropout_implementation="downgrade_in_infer", is_test=True)
    x = net.op("transpose2", {"X": net.pool(x, "avg")}, shape=(-1, 2, 2, 8), axis=[0, 2, 3, 1])
    x = net.op("reshape2", {"X": x}, shape=(-1, 4, 8))
    net.ops[-1] = net.ops[-1].with_attrs(shape=[0, 4, 8])
    x = net.op("unsqueeze2", {"X": x}, shape=(-1, 1, 4, 8), axes=[1])
    x = net.op("squeeze2", {"X": x}, shape=(-1, 4, 8), axes=[1])
    x = net.op("flatten2", {"X": x}, shape=(-1, 32), axis=1)
    x = net.op("mul", {"X": x, "Y": net.param(32, 16, scale=0.1)}, shape=(-1, 16), **FLAT)
    x = net.op("elementwise_add", {"X": x, "Y": net.param(16)}, axis=-1)
    x = net.op("scale", {"X": net.act(x, "relu")}, scale=0.5, bias=0.0, bias_after_scale=True)
    x = net.op(
        "matmul", {"X": x, "Y": net.param(16, 6, scale=0.1)}, shape=(-1, 6), transpose_X=False, transpose_Y=False
    )
    return as_today(net.graph(net.op("softmax", {"X": x}, axis=-1)))


@dataclass(frozen=True)
class Old:
    """How ops of the type `type` were written. `attrs`: their values, None for one that isn't there; `name`: the op's
    name. `reference`: how Paddle runs such a program; None where it refuses to."""

    type: str
    attrs: Mapping[str, Any]
    name: str = ""
    reference: Settings | None = NATIVE

    def __str__(self) -> str:
        return f"{self.name or self.type}-{','.join(f'{name}={value}' for name, value in self.attrs.items())}"


TABLE = [
    *(Old(type, {"data_format": "AnyLayout"}) for type in ("conv2d", "depthwise_conv2d", "pool2d")),
    Old("batch_norm", {"data_layout": "AnyLayout"}, reference=Settings()),  # plain kernels: "unknown storage order"
    *(
        Old(type, {"data_format": None, "padding_algorithm": None, "groups": None, "dilations": None})
        for type in ("conv2d",)
    ),
    Old("depthwise_conv2d", {"data_format": None, "padding_algorithm": None, "dilations": None, "strides": None}),
    Old("pool2d", {"global_pooling": None, "exclusive": None, "adaptive": None, "ceil_mode": None, "paddings": None}),
    Old("pool2d", {"padding_algorithm": "VALID", "paddings": [1, 1]}),
    Old("batch_norm", {"is_test": None, "use_global_stats": True}),
    Old("batch_norm", {"is_test": False, "use_global_stats": False}, reference=Settings()),  # plain ones would train
    Old("batch_norm", {"is_test": None, "trainable_statistics": True, "use_global_stats": True}),
    Old("batch_norm", {"momentum": None, "use_global_stats": None, "trainable_statistics": None, "data_layout": None}),
    Old("dropout", {"is_test": None, "dropout_implementation": None}),
    Old("dropout", {"is_test": False}),
    Old("relu6", {"threshold": 4.0}),  # constants that no kernel heeds any more
    Old("hard_swish", {"threshold": 5.0, "scale": 5.0, "offset": 2.5}),
    Old("hard_swish", {"threshold": 5.0, "scale": 6.0, "offset": 3.0}),
    Old("hard_swish", {"threshold": None, "scale": None, "offset": None}),
    Old("swish", {"beta": 1.5}),
    Old("leaky_relu", {"alpha": None}),
    Old("scale", {"bias": None, "bias_after_scale": None}),
    Old("scale", {"bias_after_scale": False}),
    Old("softmax", {"axis": None}),
    Old("mul", {"x_num_col_dims": None, "y_num_col_dims": None}),
    Old("matmul", {"transpose_X": None, "transpose_Y": None, "alpha": None, "head_number": None}),
    Old("flatten2", {"axis": None}),
    Old("reshape2", {}, name="reshape"),
    Old("transpose2", {}, name="transpose"),
    *(Old(f"{name}2", {}, name=name, reference=None) for name in ("squeeze", "unsqueeze", "flatten")),
    *(
        Old(type, {"use_cudnn": True, "use_mkldnn": True, "mkldnn_data_type": "float32", "use_quantizer": True})
        for type in ("conv2d", "mul", "relu", "elementwise_add", "transpose2")
    ),
]


def as_old(graph: Graph, old: Old) -> Graph:
    def written(op: Op) -> Op:
        if op.type != old.type:
            return op
        attrs = {name: attr for name, attr in op.attrs.items() if name not in old.attrs}
        attrs |= {name: Attr.of(value) for name, value in old.attrs.items() if value is not None}
        outputs = {slot: names for slot, names in op.outputs.items() if not old.name or slot != "XShape"}
        return replace(op, type=old.name or op.type, attrs=attrs, outputs=outputs)

    assert any(op.type == old.type for op in graph.ops)
    return graph.evolve(map(written, graph.ops))


def outputs(graph: Graph, batch: dict[str, np.ndarray], place: Path, how: Settings) -> np.ndarray:
    directory = place / str(len(list(place.iterdir())))
    directory.mkdir()
    save_dir(graph, directory)
    with Predictor(directory, how) as predictor:
        [found] = predictor(batch).values()
    return np.asarray(found)


def loaded(graph: Graph, place: Path) -> Graph:
    directory = place / f"loaded{len(list(place.iterdir()))}"
    directory.mkdir()
    save_dir(graph, directory)
    return load_dir(directory)


def converted(graph: Graph) -> tuple[Graph, Graph, Coverage]:
    simulated = calibrate(graph, data(graph, 1), algo="abs_max")
    return simulated, *convert(lower_quantizers(simulated))


@pytest.mark.parametrize("in_memory", [False, True], ids=["loaded", "in memory"])
@pytest.mark.parametrize("old", TABLE, ids=str)
def test_an_old_program_is_todays(old: Old, in_memory: bool, tmp_path: Path) -> None:
    """The same outputs in float32, the same ops in INT8, and no bit of those is another."""
    modern, [batch] = network(), data(network(), 1, seed=5)
    former = as_old(modern, old)
    if old.reference is not None:
        due = outputs(modern, batch, tmp_path, NATIVE)
        np.testing.assert_allclose(outputs(former, batch, tmp_path, old.reference), due, rtol=1e-4, atol=1e-5)
    now = former if in_memory else loaded(former, tmp_path)
    (simulated, int8, coverage), (due_simulated, due_int8, due_coverage) = converted(now), converted(modern)
    assert coverage == due_coverage
    assert int8.op_counts() == due_int8.op_counts()
    assert not int8.op_counts().keys() & {"conv2d", "depthwise_conv2d", "batch_norm", "mul", "matmul"}
    for mine, its, how in (
        (lower_quantizers(simulated), lower_quantizers(due_simulated), NATIVE),
        (int8, due_int8, Settings("int8")),
    ):
        np.testing.assert_array_equal(outputs(mine, batch, tmp_path, how), outputs(its, batch, tmp_path, how))


@pytest.mark.parametrize("algorithm", ["SAME", "VALID"])
@pytest.mark.parametrize("type", ["conv2d", "depthwise_conv2d"])
def test_kernels_pad_by_the_algorithm_that_a_program_names(type: str, algorithm: str, tmp_path: Path) -> None:
    """On both executors; with SAME Paddle ignores dilations, with either the paddings."""
    net = Net()
    groups = 8 if type == "depthwise_conv2d" else 1
    x = net.act(net.conv("x", 8, 3, groups=groups, type=type))
    asked = {"padding_algorithm": algorithm, "strides": [2, 2], "paddings": [1, 1]}
    net.ops[0] = net.ops[0].with_attrs(**asked, dilations=[2, 2] if algorithm == "SAME" else [1, 1])
    side = 4 if algorithm == "SAME" else 3
    net.vars.update(dict.fromkeys([name for op in net.ops for name in op.writes], Var((-1, 8, side, side))))
    graph = net.graph(net.conv(x, 4))
    [batch] = data(graph, 1)
    simulated, int8, coverage = converted(graph)
    assert not coverage.fp32
    due = outputs(graph, batch, tmp_path, NATIVE)
    rounded = outputs(lower_quantizers(simulated), batch, tmp_path, NATIVE)
    assert sqnr(due, rounded) > 30
    for how in (Settings("int8"), Settings("int8", executor="paddle")):
        assert sqnr(rounded, outputs(int8, batch, tmp_path, how)) > 50


def test_a_batch_norm_that_trains_is_not_folded_and_not_run_directly(tmp_path: Path) -> None:
    """`trainable_statistics`: a predictor normalises by the statistics of each batch then."""
    net = Net()
    graph = net.graph(net.conv(net.norm(net.conv("x", 8, 3), trainable_statistics=True), 4))
    [batch] = data(graph, 1)
    assert as_today(graph).ops[1].attr("is_test") is False
    int8, _ = convert(calibrate(as_old(graph, Old("batch_norm", {"trainable_statistics": False})), [batch]))
    assert int8.op_counts()["batch_norm"] == 0
    normal = run_passes(graph, NORMALISE)
    assert normal.op_counts()["batch_norm"] == 1
    due = outputs(graph, batch, tmp_path, Settings())
    np.testing.assert_allclose(outputs(normal, batch, tmp_path, Settings()), due, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnsupportedError, match="by the statistics of each batch"):
        outputs(normal, batch, tmp_path, Settings(executor="direct"))


def test_todays_programs_are_left_as_they_are() -> None:
    modern = network()
    assert as_today(modern) is modern
    int8 = convert(calibrate(modern, data(modern, 1)))[0]
    assert as_today(int8) is int8


def test_which_library_an_op_ran_on_counts_in_int8_models_only() -> None:
    flags = {"use_mkldnn": True, "use_cudnn": False, "mkldnn_data_type": "float32"}
    former = as_old(network(), Old("conv2d", flags))
    assert not any(flags.keys() & op.attrs.keys() for op in as_today(former).ops)
    int8 = convert(calibrate(network(), data(network(), 1)))[0]
    assert any(op.attr("use_mkldnn") for op in as_today(int8).ops)
