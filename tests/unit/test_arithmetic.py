"""Multiply-accumulates: of each op type by hand, of whole programs, and nothing that is passed over in silence."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.evaluation.worker import arithmetic_on, declared
from quant.ir.graph import Graph, Op, Var
from quant.ir.ops.arithmetic import MULTIPLY, Sizes, arithmetic_of
from quant.ir.ops.plain_ops import NO_FORMULA, PLAIN
from quant.ir.passes import lower_quantizers
from quant.ir.shapes import shapes_for
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.verbose_log import Kernel, proof
from tests.nets import NETS, Net, data

# Op type -> shapes of what it reads and writes, by slot; attributes; multiply-accumulates.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "conv2d": ({"Input": (2, 8, 9, 9), "Filter": (6, 4, 3, 3), "Output": (2, 6, 7, 7)}, {}, 2 * 6 * 49 * 4 * 9),
    "conv3d": ({"Input": (2, 8, 5, 9, 9), "Filter": (6, 8, 3, 1, 1), "Output": (2, 6, 3, 9, 9)}, {}, 2916 * 3 * 8),
    "deformable_conv": ({"Filter": (6, 8, 3, 3), "Output": (2, 6, 7, 7)}, {}, 2 * 6 * 49 * 8 * 9),
    "conv2d_transpose": ({"Input": (2, 8, 5, 5), "Filter": (8, 3, 2, 2)}, {}, 2 * 8 * 25 * 3 * 4),
    "depthwise_conv2d_transpose": ({"Input": (2, 8, 5, 5), "Filter": (8, 1, 2, 2)}, {}, 2 * 8 * 25 * 4),
    "conv3d_transpose": ({"Input": (2, 8, 3, 5, 5), "Filter": (8, 3, 2, 2, 2)}, {}, 2 * 8 * 75 * 3 * 8),
    "mul": ({"Y": (4, 4, 10), "Out": (3, 10)}, {"y_num_col_dims": 2}, 3 * 10 * 16),
    "matmul": ({"Y": (10, 16), "Out": (3, 10)}, {"transpose_Y": True}, 3 * 10 * 16),
    "matmul_v2": ({"Y": (2, 16, 10), "Out": (2, 3, 10)}, {}, 2 * 3 * 10 * 16),
    "bmm": ({"X": (2, 3, 16), "Y": (2, 16, 10), "Out": (2, 3, 10)}, {}, 2 * 3 * 10 * 16),
    "fc": ({"W": (16, 10), "Out": (3, 10)}, {}, 3 * 10 * 16),
    "addmm": ({"X": (3, 16), "Y": (16, 10), "Out": (3, 10)}, {}, 3 * 10 * 16),
    "mv": ({"X": (3, 16), "Vec": (16,)}, {}, 48),
    "multi_dot": ({"X": ((2, 3), (3, 4), (4, 5))}, {}, 2 * 12 + 2 * 20),
    "einsum": ({"Operands": ((2, 3, 4), (2, 4, 5))}, {"equation": "bij,bjk->bik"}, 2 * 3 * 4 * 5),
    "bilinear_tensor_product": ({"Weight": (7, 4, 5), "Out": (3, 7)}, {}, 3 * 7 * 20),
    "rnn": ({"Input": (6, 2, 4), "WeightList": ((20, 4), (20, 5), (20,), (20,))}, {}, 6 * 2 * 20 * 9),
    "gru": ({"Input": (9, 15), "Weight": (5, 15)}, {}, 9 * 75),
    "fusion_lstm": ({"X": (9, 4), "WeightX": (4, 20), "WeightH": (5, 20)}, {}, 9 * 180),
    "multi_gru": ({"X": (9, 4), "WeightX": ((4, 15), (4, 15)), "WeightH": ((5, 15), (5, 15))}, {}, 9 * 2 * 135),
    "sequence_conv": ({"X": (9, 4), "Filter": (12, 7)}, {}, 9 * 84),
    "row_conv": ({"X": (9, 4), "Filter": (3, 4)}, {}, 9 * 12),
    "correlation": ({"Input1": (2, 8, 5, 5), "Output": (2, 9, 5, 5)}, {"kernel_size": 1}, 2 * 9 * 25 * 8),
    "multihead_matmul": ({"Input": (2, 6, 8), "W": (8, 3, 2, 4)}, {}, 2 * 6 * 192 + 2 * 2 * 36 * 8),
    "self_dp_attention": ({"X": (2, 6, 3, 2, 4)}, {}, 2 * 2 * 36 * 8),
    "flash_attn": ({"q": (2, 6, 2, 4), "k": (2, 7, 2, 4)}, {}, 2 * 2 * 6 * 7 * 8),
}


@pytest.mark.parametrize("type", CASES)
def test_an_op_by_hand(type: str) -> None:
    given, attrs, macs = CASES[type]
    described: dict[str, Var] = {}
    slots: dict[str, tuple[str, ...]] = {}
    for slot, shapes in given.items():
        many = shapes if isinstance(shapes[0], tuple) else (shapes,)
        slots[slot] = tuple(f"{slot}{number}" for number in range(len(many)))
        described |= {name: Var(shape) for name, shape in zip(slots[slot], many, strict=True)}
    outputs = {slot: names for slot, names in slots.items() if slot in ("Out", "Output")}
    inputs = {slot: names for slot, names in slots.items() if slot not in outputs}
    op = Op(type, inputs, outputs, Op.make("", {}, {}, **attrs).attrs)
    found = arithmetic_of(Graph((op,), described, {}, (), ()), Sizes())
    assert (found.total, found.uncounted) == (macs, ())


def test_every_op_type_of_paddles_is_known() -> None:
    """But for those of other devices, gradients and sparse tensors. One that Paddle adds has to be entered here."""
    script = (
        "import paddle; from paddle.base.framework import OpProtoHolder; print(*OpProtoHolder.instance().op_proto_map)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FLAGS_enable_pir_api": "0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {
        name
        for name in told.stdout.split()
        if not name.endswith("_grad") and "xpu" not in name and not name.startswith(("c_", "sparse_"))
    }
    assert len(names) > 500
    assert names - MULTIPLY.keys() - PLAIN - NO_FORMULA == set()
    assert not MULTIPLY.keys() & PLAIN and not MULTIPLY.keys() & NO_FORMULA and not PLAIN & NO_FORMULA


@pytest.mark.parametrize("name", NETS)
def test_of_our_own_nets_all_is_counted_in_each_of_their_forms(name: str) -> None:
    graph = NETS[name]()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    forms = (graph, simulated, lower_quantizers(simulated), convert(simulated)[0])
    counted = [arithmetic_of(form, Sizes(3)) for form in forms]
    assert all(found.uncounted == () for found in counted)
    assert counted[0].total > 0 == counted[0].int8
    assert counted[3].share == pytest.approx(1.0)


def test_what_no_table_lists_is_told_and_so_is_a_size_that_is_not_known() -> None:
    net = Net()
    custom = net.op("my_own_op", {"X": "x"})
    stft = net.op("stft", {"X": custom})
    found = arithmetic_of(net.graph(net.conv(stft, 8)), Sizes(2))
    assert found.uncounted == ("my_own_op", "stft")
    assert found.total == 2 * 8 * 8 * 8 * 8
    told = str(proof([], declared(found)))
    assert told == "INT8 kernels did 0.0% of the multiply-accumulates (not counted: my_own_op, stft)"


def test_shapes_are_those_of_the_batch_where_a_reshape_joins_dimensions() -> None:
    """A video's frames become samples: the declared -1 of what follows isn't the batch."""
    net = Net()
    net.vars["x"] = Var((-1, 4, 8, 8, 8))
    frames = net.op("reshape2", {"X": "x"}, shape=(-1, 8, 8, 8))
    net.ops[-1] = net.ops[-1].with_attrs(shape=[-1, 8, 8, 8])
    graph = net.graph(net.conv(frames, 8))
    batch = np.zeros((3, 4, 8, 8, 8), np.float32)
    assert shapes_for(graph, {"x": batch.shape})[graph.fetches[0]] == (12, 8, 8, 8)
    assert arithmetic_on(graph, {"x": batch}).total == 12 * 8 * 8 * 8 * 8


def other_arithmetic_net(kind: str) -> Graph:
    """A convolution that becomes INT8, and one op that has no INT8 kernel."""
    net = Net()
    x = net.act(net.bias(net.conv("x", 8, 3)))
    if kind == "rnn":
        flat = net.op("reshape2", {"X": x}, shape=(-1, 64, 8))
        net.ops[-1] = net.ops[-1].with_attrs(shape=[0, 64, 8])
        turned = net.op("transpose2", {"X": flat}, shape=(64, 1, 8), axis=[1, 0, 2])
        weights = [net.param(40, 8), net.param(40, 10), net.param(40), net.param(40)]
        return net.graph(net.op("rnn", {"Input": turned, "WeightList": weights}, "Out", (64, 1, 10), mode="LSTM"))
    if kind == "deformable_conv":
        offset = net.conv(x, 18, 3)
        slots = {"Input": x, "Offset": offset, "Filter": net.param(8, 8, 3, 3)}
        return net.graph(net.op(kind, slots, "Output", (-1, 8, 8, 8)))
    if kind == "conv2d_transpose":
        slots = {"Input": x, "Filter": net.param(8, 8, 2, 2)}
        return net.graph(net.op(kind, slots, "Output", (-1, 8, 16, 16), strides=[2, 2]))
    wide = net.op("unsqueeze2", {"X": x}, shape=(-1, 8, 1, 8, 8), axes=[2])
    slots = {"Input": wide, "Filter": net.param(8, 8, 1, 3, 3)}
    return net.graph(net.op("conv3d", slots, "Output", (-1, 8, 1, 6, 6)))


@pytest.mark.parametrize("kind", ["rnn", "deformable_conv", "conv2d_transpose", "conv3d"])
def test_what_the_log_does_not_show_is_not_int8(kind: str) -> None:
    found = arithmetic_of(marked(other_arithmetic_net(kind)), Sizes(1))
    assert found.uncounted == () and 0.0 < (found.share or 0.0) < 0.9
    alone = sum(macs for op, macs in found.macs.items() if op.type == kind)
    assert alone > 0
    shown = Kernel("convolution", "jit:avx2", ("src:u8", "wei:s8"), "", 1.0, found.int8)
    assert proof([shown], declared(found)).share == pytest.approx(found.share)
    padded = Kernel("convolution", "jit:avx2", ("src:u8", "wei:s8"), "", 1.0, 3 * found.total)
    assert proof([padded], declared(found)).share < 1.0  # whatever else the log shows


def marked(graph: Graph) -> Graph:
    """The graph with its convolutions marked as conversion marks them."""
    return graph.evolve(op.with_attrs(mkldnn_data_type="int8") if op.type == "conv2d" else op for op in graph.ops)
