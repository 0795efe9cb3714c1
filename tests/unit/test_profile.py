"""Where a run's time goes: recorded logs, sums that add up, islands of hand-made graphs, findings of given figures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.diagnosis.advice import FloatKernel, IslandCost, findings, float_kernels, float_ms_of, island_costs
from quant.diagnosis.kernel_table import (
    KINDS,
    Step,
    Sums,
    groups,
    kind_of,
    lowest,
    middle,
    per_op,
    steps_of,
    sums_of,
    typical,
)
from quant.errors import ModelError
from quant.ir.graph import Attr, Graph, Op, Var, save_dir
from quant.ir.int8_regions import islands, weighted_before, why_float
from quant.ir.passes import lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Predictor, Settings
from quant.runtime.verbose_log import Kernel, kernels
from tests.nets import Net, data, residual_net

# Recorded with oneDNN 3.6.2 (verbose level 2); ERNIE, MobileNetV2, LAC and a transposed convolution.
LOG = """\
onednn_verbose,v1,info,cpu,isa:Intel AVX-512 with Intel DL Boost and bfloat16 support
onednn_verbose,v1,primitive,info,template:operation,engine,primitive,implementation,prop_kind,memory_descriptors,attributes,auxiliary,problem_desc,exec_time
onednn_verbose,v1,primitive,create:cache_hit,cpu,reorder,jit:uni,undef,src:f32::blocked:abcd::f0 dst:s8::blocked:abcd::f0,attr-scales:src0:0:f32,,1x3x224x224,0.00219727
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32::blocked:abcd::f0 dst:s8::blocked:abcd::f0,attr-scales:src0:0:f32,,1x3x224x224,0.0300293
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:s8::blocked:abcd::f0 dst:s8::blocked:acdb::f0,,,1x3x224x224,0.0388184
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512_core_vnni,forward_inference,src:s8:a:blocked:acdb::f0 wei:s8:ap:blocked:AcdB64a4b::f1:s8m1 bia:f32::blocked:a::f0 dst:u8::blocked:acdb::f0,attr-scales:src0:0:f32+dst:0:f32+wei:1:f32 attr-post-ops:eltwise_relu,alg:convolution_direct,mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3,0.381836
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:blk,undef,src:f32::blocked:abcd::f0 dst:f32::blocked:acdb::f0,,,1x8x8x8,0.00488281
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512_core,forward_inference,src:f32:a:blocked:acdb::f0 wei:f32:ap:blocked:Acdb16a::f0 bia:undef::undef::: dst:f32:a:blocked:acdb::f0,,alg:convolution_direct,mb1_ic8oc8_ih8oh8kh3sh1dh0ph1_iw8ow8kw3sw1dw0pw1,0.0200195
onednn_verbose,v1,primitive,exec,cpu,deconvolution,brg_deconv:avx512_core+brgconv_strided:avx512_core,forward_inference,src:f32:a:blocked:acdb::f0 wei:f32:ap:blocked:Acdb16a::f0 bia:undef::undef::: dst:f32:a:blocked:acdb::f0,,alg:deconvolution_direct,mb1_ic8oc4_ih8oh16kh2sh2dh0ph0_iw8ow16kw2sw2dw0pw0,0.0241699
onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512_core_vnni,undef,src:s8::blocked:acbd::f0 wei:s8::blocked:adbc::f0 dst:f32::blocked:abcd::f0,attr-scales:src0:0:f32+wei:0:f32,,1x12x128x64:1x12x64x128,0.0397949
onednn_verbose,v1,primitive,exec,cpu,softmax,jit:avx512_core_bf16,forward_inference,src:f32::blocked:abcd::f0 dst:f32::blocked:abcd::f0,,alg:softmax_accurate axis:3,1x12x128x128,0.0639648
onednn_verbose,v1,primitive,exec,cpu,rnn,brgemm:avx512_core_vnni,forward_inference,src_layer:u8:a:blocked:abc::f0 src_iter:u8::blocked:abcd::f0 wei_layer:s8:a:blocked:abdEC32e4c::f4 wei_iter:s8:a:blocked:abdEC32e4c::f4 bias:f32::blocked:abcd::f0 dst_layer:u8:a:blocked:abc::f0,rnn_data_qparams:127:128;,alg:vanilla_gru direction:unidirectional_left2right activation:undef flags:,l1t20mb1sic128slc128dhc128dic128,0.0388184
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:s8::blocked:abcd::f0 dst:f32::blocked:abcd::f0,attr-scales:src0:0:f32,,1x12x128x64,0.00488281
"""  # noqa: E501
RUN = list(kernels(LOG.splitlines()))


def kernel(op: str = "convolution", types: str = "src:u8 wei:s8 dst:u8", ms: float = 1.0, macs: int = 0) -> Kernel:
    return Kernel(op, "jit:avx512_core_vnni", tuple(types.split()), "mb1", ms, macs)


FLOAT = "src:f32 wei:f32 dst:f32"
ROUND, BACK = kernel("reorder", "src:f32 dst:s8", 0.02), kernel("reorder", "src:u8 dst:f32", 0.03)


# --- logs, groups, sums


def test_a_recorded_log_is_read() -> None:
    assert [(entry.op, kind_of(entry)) for entry in RUN] == [
        ("reorder", "quantize"),
        ("reorder", "reorder"),
        ("convolution", "int8"),
        ("reorder", "reorder"),
        ("convolution", "fp32"),
        ("deconvolution", "fp32"),
        ("matmul", "int8"),
        ("softmax", "other"),
        ("rnn", "int8"),
        ("reorder", "quantize"),
    ]
    macs = {entry.op: entry.macs for entry in RUN}
    assert macs["deconvolution"] == 8 * 4 * 2 * 2 * 8 * 8
    assert macs["matmul"] == 12 * 128 * 64 * 128
    assert macs["rnn"] == 20 * (128 + 128) * 3 * 128
    assert RUN[2].isa == "avx512_core_vnni"
    assert RUN[2].types == ("src:s8", "wei:s8", "bia:f32", "dst:u8")


def test_bfloat16_is_a_kind_of_its_own() -> None:
    assert kind_of(kernel(types="src:bf16 wei:bf16 dst:bf16")) == "bf16"
    assert kind_of(kernel("reorder", "src:f32 dst:bf16")) == "reorder"
    assert kind_of(kernel("reorder", "src:s8 dst:u8")) == "reorder"
    assert kind_of(kernel("reorder", "src:bf16 dst:u8")) == "quantize"


def test_groups_and_sums_add_up_to_the_total() -> None:
    total = sum(entry.ms for entry in RUN)
    found = groups(RUN)
    assert sum(group.ms for group in found) == pytest.approx(total)
    assert sum(group.share for group in found) == pytest.approx(1)
    assert sum(group.count for group in found) == len(RUN)
    assert [group.ms for group in found] == sorted((group.ms for group in found), reverse=True)
    sums = sums_of(RUN, (), 2 * total, 3 * total)
    assert set(sums.kinds) == set(KINDS)
    assert sum(sums.kinds.values()) == pytest.approx(sums.kernel_ms) == pytest.approx(total)
    assert sums.ratio == pytest.approx(2)
    assert sums.overhead_ms == pytest.approx(total)


def test_kernels_of_one_kind_but_other_types_are_apart() -> None:
    one, two, three = groups([kernel(ms=3.0), kernel(types=FLOAT, ms=2.0), kernel(ms=1.5), kernel("pooling", ms=1.0)])
    assert (one.count, one.ms, one.kind) == (2, 4.5, "int8")
    assert (two.count, two.kind, three.op) == (1, "fp32", "pooling")


def test_the_middle_half_ignores_outliers_and_the_coarse_clock() -> None:
    ticks = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 500.0])
    assert middle(ticks) == pytest.approx(0.5)
    assert middle(np.array([7.0])) == 7.0
    runs = [[kernel(ms=ms), kernel("pooling", ms=1)] for ms in (2.0, 3.0, 4.0, 900.0)]
    assert [entry.ms for entry in typical(runs)] == [3.5, 1.0]


def test_the_lowest_quarter_stands_when_most_readings_are_spoilt() -> None:
    assert lowest(np.array([9.0, 2.0, 8.0, 7.0, 4.0, 99.0, 8.0, 9.0])) == pytest.approx(3.0)
    assert lowest(np.array([5.0, 4.0])) == 4.0
    assert [entry.ms for entry in typical([[kernel(ms=ms)] for ms in (9.0, 2.0, 8.0, 9.0)], lowest)] == [2.0]


def test_runs_of_other_kernels_are_refused() -> None:
    for other in ([kernel()], [kernel("pooling"), kernel()], [kernel(), kernel("pooling", "src:f32 dst:f32")]):
        with pytest.raises(ModelError, match="the same kernels"):
            typical([[kernel(), kernel("pooling")], other])


# --- executed ops


def test_kernels_belong_to_the_op_that_wrote_next() -> None:
    run = [ROUND, kernel(ms=2.0), BACK]
    written = [("quantize", "a"), ("conv", "b"), ("reshape2", "c"), ("reshape2", "c.shape"), ("reshape2", "d")]
    writers = {"a": 0, "b": 1, "c": 2, "c.shape": 2, "d": 3}
    steps = steps_of(written, [1, 2, 2, 2, 3], [0.05, 2.5, 0.1, 0.2, 0.4], run, writers)
    assert [(step.type, step.outputs, step.program) for step in steps] == [
        ("quantize", ("a",), 0),
        ("conv", ("b",), 1),
        ("reshape2", ("c", "c.shape"), 2),
        ("reshape2", ("d",), 3),
    ]
    assert [len(step.kernels) for step in steps] == [1, 1, 0, 1]
    assert [step.beside_ms for step in steps] == pytest.approx([0.03, 0.5, 0.3, 0.37])
    assert per_op(steps)[0][:2] == ("conv", 1)
    assert sum(row[2] for row in per_op(steps)) == pytest.approx(sum(entry.ms for entry in run))


def test_outputs_that_no_op_of_the_program_writes() -> None:
    """A fused op's scratch outputs have names of Paddle's; kernels in between tell two such ops apart."""
    written = [("fusion_gru", "x1"), ("fusion_gru", "hidden1"), ("fusion_gru", "x2"), ("fusion_gru", "hidden2")]
    steps = steps_of(written, [1, 1, 2, 2], [1.0] * 4, [kernel(), kernel()], {"hidden1": 4, "hidden2": 9})
    assert [(step.program, len(step.kernels), step.ms) for step in steps] == [(4, 1, 2.0), (9, 1, 2.0)]


def test_the_rest_of_a_run_is_ops_outside_onednn_and_dispatch() -> None:
    steps = (Step("conv", ("a",), 0, (kernel(ms=2.0),), 0.3), Step("lookup_table", ("b",), 1, (), 0.5))
    sums = sums_of([kernel(ms=2.0)], steps, 4.0, 5.0)
    assert (sums.kernel_ops, sums.outside_ops, sums.outside_ms) == (1, 1, 0.5)
    assert sums.dispatch_ms == pytest.approx(1.5)
    assert sums.kernel_ms + sums.outside_ms + sums.dispatch_ms == pytest.approx(sums.wall_ms)


def test_a_predictor_tells_what_it_runs(tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.act(net.op("transpose2", {"X": net.conv("x", 8)}), "tanh"))
    graph = replace(
        graph, ops=tuple(op.with_attrs(axis=[0, 1, 3, 2]) if "trans" in op.type else op for op in graph.ops)
    )
    save_dir(graph, tmp_path)
    [batch] = data(graph, 1)
    with Predictor(tmp_path, Settings()) as predictor:
        predictor.feed(batch)
        predictor.run()
        seen: list[tuple[str, str]] = []
        predictor.watch(lambda type, variable: seen.append((type, variable)))
        predictor.run()
    names = [name for _, name in seen]
    assert [name for op in graph.ops for name in op.writes if name in names] == [n for n in names if n in graph.vars]
    assert seen[-1] == ("tanh", graph.fetches[0])


# --- islands


def int8(type: str, reads: Sequence[str], out: str) -> Op:
    op = Op(type, {"X": tuple(reads)}, {"Out": (out,)})
    return replace(op, attrs={"mkldnn_data_type": Attr.of("int8")})


def rounding(type: str, source: str, out: str) -> Op:
    return Op.make(type, {"Input": source}, {"Output": out})


def graph_of(ops: Sequence[Op], *integers: str) -> Graph:
    names = {name for op in ops for name in (*op.reads, *op.writes)}
    return Graph(tuple(ops), {name: Var((1,), "int8" if name in integers else "float32") for name in names}, {}, (), ())


# x -> q -> conv a -> concat c <- conv b <- q; c -> dequantize -> softmax -> quantize -> fc, which writes float32
TWO = graph_of(
    [
        rounding("quantize", "x", "q"),
        int8("fused_conv2d", ["q"], "a"),
        int8("fused_conv2d", ["q"], "b"),
        int8("concat", ["a", "b"], "c"),
        rounding("dequantize", "c", "f"),
        Op.make("softmax", {"X": "f"}, {"Out": "s"}),
        rounding("quantize", "s", "r"),
        int8("fc", ["r"], "y"),
    ],
    *"qabcr",
)


def test_islands_are_joined_by_int8_variables() -> None:
    one, two = islands(TWO)
    assert [op.writes[0] for op in one.ops] == ["a", "b", "c"]
    assert [op.writes[0] for op in (*one.enter, *one.leave)] == ["q", "f"]
    assert [op.writes[0] for op in (*two.ops, *two.enter)] == ["y", "r"]
    assert two.leave == ()


def test_two_readers_of_one_rounded_tensor_are_one_island_and_float32_parts_them() -> None:
    ops = [rounding("quantize", "x", "q"), int8("fc", ["q"], "a"), int8("fc", ["q"], "b"), int8("fc", ["z"], "w")]
    shared, other = islands(graph_of([*ops, rounding("quantize", "a", "z")], "q", "z"))
    assert [op.writes[0] for op in shared.ops] == ["a", "b"]
    assert [op.writes[0] for op in other.ops] == ["w"]


def test_groups_that_meet_late_are_one_island() -> None:
    """Two branches with quantize ops of their own, joined by a concat."""
    ops = [int8("fc", ["p"], "a"), int8("fc", ["q"], "b"), int8("concat", ["a", "b"], "c"), int8("fc", ["c"], "d")]
    [island] = islands(graph_of([rounding("quantize", "x", "p"), rounding("quantize", "y", "q"), *ops], *"pqabc"))
    assert len(island.ops) == 4
    assert len(island.enter) == 2


def test_int8_parameters_join_nothing() -> None:
    """Stored weights are int8 too; and a float32 model has no island."""
    ops = [int8("fc", ["p", "w"], "a"), int8("fc", ["q", "w"], "b")]
    graph = graph_of([rounding("quantize", "x", "p"), rounding("quantize", "a", "q"), *ops], *"pqw")
    assert len(islands(replace(graph, params={"w": np.zeros(1, np.int8)}))) == 2
    assert islands(residual_net()) == ()


def test_a_converted_model_is_one_island_and_its_classifier() -> None:
    """Average pooling between them stays in float32."""
    graph = residual_net()
    converted = convert(lower_quantizers(calibrate(graph, data(graph), algo="abs_max")))[0]
    body, head = islands(converted)
    assert {op.type for op in body.ops} == {"fused_conv2d"}
    assert head.ops[-1].type == "fc"
    assert len(body.enter) == len(head.enter) == 1
    assert {op for island in (body, head) for op in island.ops} == {
        op for op in converted.ops if op.attr("mkldnn_data_type") == "int8"
    }


def test_why_an_op_stayed_float32() -> None:
    net = Net()
    plain = net.linear(net.head("x"), 6)
    flipped = net.op("matmul_v2", {"X": plain, "Y": net.param(6, 6)}, shape=(-1, 6), trans_x=False, trans_y=True)
    spread = net.op("conv2d_transpose", {"Input": "x", "Filter": net.param(8, 4, 2, 2)}, "Output")
    graph = net.graph(flipped, spread)
    writers = graph.writers()
    act = writers[plain]
    assert act.type == "elementwise_add"
    source = weighted_before(graph, act)
    assert source is not None and source.type == "matmul_v2"
    assert "fake-quantized" in why_float(graph, source)
    assert "transposition" in why_float(graph, writers[flipped])
    assert "conv2d_transpose" in why_float(graph, writers[spread])
    flat = next(op for op in graph.ops if op.type == "flatten_contiguous_range")
    assert weighted_before(graph, flat) is None


# --- islands and float32 kernels with their times

PROGRAM = {
    "outputs": ["q", "a", "b", "c", "f", "s", "r", "y"],
    "types": [op.type for op in TWO.ops],
    "writers": {},
    "islands": [{"ops": [1, 2, 3], "enter": [0], "leave": [4]}, {"ops": [7], "enter": [6], "leave": []}],
    "floats": {},
}
STEPS = (
    Step("quantize", ("q",), 0, (ROUND,), 0.01),
    Step("fused_conv2d", ("a",), 1, (kernel(ms=2.0, macs=100),), 0.02),
    Step("fused_conv2d", ("b",), 2, (kernel("reorder", "src:s8 dst:s8", 0.1), kernel(ms=1.0, macs=50)), 0.02),
    Step("concat", ("c",), 3, (kernel("concat", "src:u8 dst:u8", 0.2),), 0.02),
    Step("dequantize", ("f",), 4, (BACK,), 0.01),
    Step("softmax", ("s",), 5, (kernel("softmax", "src:f32 dst:f32", 0.5),), 0.02),
    Step("quantize", ("r",), 6, (ROUND,), 0.01),
    Step("fc", ("y",), 7, (kernel("inner_product", ms=0.01, macs=7),), 0.02),
)
KERNELS = tuple(kernel for step in STEPS for kernel in step.kernels)


def test_what_islands_cost() -> None:
    one, two = island_costs(STEPS, PROGRAM)
    assert (one.number, one.ops, one.first, one.last, one.macs) == (1, 3, "a", "c", 150)
    assert one.types == {"fused_conv2d": 2, "concat": 1}
    assert (one.enter, one.leave) == (1, 1)
    assert one.inside_ms == pytest.approx(3.3)
    assert one.beside_ms == pytest.approx(0.06)
    assert one.border_ms == pytest.approx(0.02 + 0.03 + 0.02)
    assert two.border_ms == pytest.approx(0.03)
    assert one.float_ms is one.spared_ms is None


def test_what_islands_spare() -> None:
    """Counterparts are found by their work; kernels that don't multiply have none."""
    theirs = [kernel(types=FLOAT, ms=ms, macs=macs) for ms, macs in ((5.0, 100), (4.0, 50), (0.02, 7))]
    theirs.insert(1, kernel("softmax", FLOAT, 9.0))
    float_ms = float_ms_of(KERNELS, theirs)
    assert float_ms == (None, 5.0, None, 4.0, None, None, None, None, 0.02)
    one, two = island_costs(STEPS, PROGRAM, float_ms)
    assert one.float_ms == pytest.approx(9.0)
    assert one.spared_ms == pytest.approx(9.0 - 3.3 - 0.07)
    assert two.spared_ms == pytest.approx(0.02 - 0.01 - 0.03)
    unlike = float_ms_of(KERNELS, theirs[:-1])
    assert set(unlike) == {None}
    assert island_costs(STEPS, PROGRAM, unlike)[0].float_ms is None


def test_counterparts_are_found_whatever_their_order() -> None:
    """Paddle runs the branches of a residual block in another order in FP32; a product may lose its dimensions."""

    def shaped(problem: str, macs: int, ms: float) -> Kernel:
        return replace(kernel(types=FLOAT, ms=ms, macs=macs), problem=problem)

    ours = [shaped("wide", 8, 1.0), shaped("deep", 8, 1.0), shaped("wide", 8, 1.0)]
    assert float_ms_of(ours, [shaped("deep", 8, 3.0), shaped("wide", 8, 1.5), shaped("wide", 8, 2.0)]) == (
        1.5,
        3.0,
        2.0,
    )
    flat = [shaped("2d", 9, 4.0), shaped("4d", 7, 5.0)]
    assert float_ms_of([shaped("4d", 7, 1.0), shaped("4d too", 9, 1.0)], flat) == (5.0, 4.0)
    assert float_ms_of([shaped("4d", 7, 1.0), shaped("4d", 7, 1.0)], flat) == (None, None)


def test_float32_kernels_are_named_by_their_op() -> None:
    steps = (
        Step("fused_conv2d", ("relu_out",), 3, (kernel(types=FLOAT, ms=0.5),), 0.0),
        Step("fc", ("made_up",), None, (kernel("inner_product", FLOAT, 0.2),), 0.0),
        Step("fused_conv2d", ("a",), 1, (kernel(),), 0.0),
    )
    program = {**PROGRAM, "floats": {"3": [2, "no INT8 kernel for its layout"]}}
    one, two = float_kernels(steps, program)
    assert (one.op_type, one.output, one.reason) == ("fused_conv2d", "b", "no INT8 kernel for its layout")
    assert (two.op_type, two.output) == ("fc", "made_up")
    assert "fusion" in two.reason


# --- findings


def sums(wall: float = 10.0, **other: object) -> Sums:
    given = Sums(wall, wall, dict.fromkeys(KINDS, 0.0), 5.0, 50, 4.0, 1, 1.0)
    return replace(given, **other)  # type: ignore[arg-type]


def texts(*arguments: object) -> list[str]:
    return [entry.text for entry in findings(*arguments)]  # type: ignore[arg-type]


def test_overhead_is_told_with_its_ops() -> None:
    lookup = Step("lookup_table", ("b",), 1, (), 1.0)
    found = findings([kernel(ms=5.0)], [lookup], sums(), (), ())
    assert [entry.ms for entry in found] == [4.0, 1.0]
    assert "40% of a run" in found[0].text and "50 ops at 80.0 us each" in found[0].text
    assert "1 lookup_table op outside oneDNN" in found[1].text


def test_conversions_and_copies_are_counted() -> None:
    copy = kernel("reorder", "src:s8 dst:s8", 0.3)
    found = texts([kernel(ms=5.0), ROUND, ROUND, BACK, copy], (), sums(), (), ())
    assert any("3 reorders between float32 and int8: 0.070 ms" in text for text in found)
    assert any("1 reorder within one type (layout, copies): 0.300 ms" in text for text in found)


def test_float32_kernels_are_findings_by_reason() -> None:
    single = [kernel("inner_product", FLOAT, ms) for ms in (1.0, 2.0)]
    floats = [FloatKernel("fc", f"y{ms}", "why", entry) for ms, entry in zip("12", single, strict=True)]
    [text] = [text for text in texts([kernel(ms=3.0), *single], (), sums(), (), floats) if "FP32" in text]
    assert text == "2 FP32 kernels: 3.000 ms, 50% of kernel time: fc 'y2', fc 'y1' (why)"
    [text] = [text for text in texts(single, (), sums(), (), ()) if "INT8" in text]
    assert text == "there is no INT8 kernel: 2 FP32 kernels take 100% of kernel time"


def test_islands_that_cost_more_than_they_hold() -> None:
    small = IslandCost(3, {"fc": 1}, "y", "y", 7, 0.1, 0.0, 1, 0.2, 1, 0.3, 0.0)
    [text] = [text for text in texts([kernel()], (), sums(), [small], ()) if "island" in text]
    assert text == (
        "island 3: 1 op of 0.100 ms, but 0.500 ms at its borders (1 quantize op, 1 dequantize op): "
        "'y' may be faster in float32"
    )
    loses = replace(small, float_ms=0.2)
    [found] = [entry for entry in findings([kernel()], (), sums(), [loses], ()) if "island" in entry.text]
    assert found.ms == pytest.approx(0.4)
    assert "loses against float32 (0.200 ms)" in found.text and "leave 'y' in float32" in found.text
    for gains in (replace(small, float_ms=2.0), replace(small, inside_ms=5.0)):
        assert not [text for text in texts([kernel()], (), sums(), [gains], ()) if "island" in text]


def test_reference_code_and_other_kernels_are_findings() -> None:
    slow = replace(kernel(ms=2.0), implementation="ref:any")
    found = texts([slow, kernel("pooling", "src:u8 dst:u8", 1.0), kernel("softmax", FLOAT, 1.0)], (), sums(), (), ())
    assert any("1 kernel of oneDNN's reference code: 2.000 ms" in text for text in found)
    assert any("1 pooling kernel in int8: 1.000 ms, 25% of kernel time" in text for text in found)
    assert any("1 softmax kernel in float32" in text for text in found)


def test_int8_kernels_that_gain_nothing_are_a_finding() -> None:
    """Beside their counterparts in FP32: depthwise convolutions are bound by memory and often gain nothing."""
    run = [replace(kernel(ms=1.0), problem="deep"), kernel(ms=1.0), kernel("pooling", ms=1.0)]
    found = texts(run, (), sums(), (), (), (1.1, 4.0, None))
    assert "1 INT8 kernel hardly faster than in FP32 (1.100 ms): 1.000 ms; the longest convolution deep" in found
    for other in ((4.0, 4.0, None), (None, None, None), ()):
        assert not any("hardly faster" in text for text in texts(run, (), sums(), (), (), other))


def test_findings_are_sorted_and_trifles_left_out() -> None:
    run = [kernel(ms=5.0), ROUND, kernel("pooling", FLOAT, 0.9), kernel("softmax", FLOAT, 1.1)]
    found = findings(run, (), sums(), (), ())
    assert [entry.ms for entry in found] == sorted((entry.ms for entry in found), reverse=True)
    assert not any("reorder" in entry.text for entry in found)  # 0.02 of 10 ms
