"""Products of two activations, and what stands around them in an encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures.programs import Program
from quant.calibrate import calibrate
from quant.chains import graph_macs
from quant.convert import convert
from quant.graph import Attr, Graph, Op, Var, run_passes
from quant.metrics import sqnr
from quant.passes import NORMALISE, fold_scale, lower_quantizers
from quant.predictor import Settings
from tests.nets import NATIVE, run

STEPS, WIDTH, HEADS = 6, 16, 2


def encoder(product: str = "matmul_v2", scaled: bool = True) -> Graph:
    """One post-norm layer with a mask: queries scaled, or (legacy `matmul`) the product's own alpha."""
    random = np.random.default_rng(0)
    program = Program({"x": Var((-1, STEPS, WIDTH)), "mask": Var((-1, 1, 1, STEPS))})
    wide, split = Var((-1, STEPS, WIDTH)), Var((-1, HEADS, STEPS, WIDTH // HEADS))
    shadow = Var((0,))

    def param(name: str, *shape: int) -> str:
        return program.param(name, (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def linear(x: str, name: str, width: int = WIDTH) -> str:
        out = Var((-1, STEPS, width))
        weight = param(f"{name}.w", program.vars[x].shape[-1], width)
        y = program.op("matmul_v2", {"X": x, "Y": weight}, {"Out": out}, trans_x=False, trans_y=False)
        return program.op("elementwise_add", {"X": y, "Y": param(f"{name}.b", width)}, {"Out": out}, axis=-1)

    def heads(x: str) -> str:
        each = [0, 0, HEADS, WIDTH // HEADS]
        y = program.op(
            "reshape2", {"X": x}, {"Out": Var((-1, STEPS, HEADS, WIDTH // HEADS)), "XShape": shadow}, shape=each
        )
        return program.op("transpose2", {"X": y}, {"Out": split, "XShape": shadow}, axis=[0, 2, 1, 3])

    def pair(x: str, y: str, out: Var, flip: bool, alpha: float = 1.0) -> str:
        if product == "matmul":
            attrs = {"transpose_X": False, "transpose_Y": flip, "alpha": alpha}
        else:
            attrs = {"trans_x": False, "trans_y": flip}
        return program.op(product, {"X": x, "Y": y}, {"Out": out}, **attrs)

    def norm(x: str, name: str) -> str:
        gain = program.param(f"{name}.g", np.linspace(0.5, 2, WIDTH).astype(np.float32))
        inputs = {"X": x, "Scale": gain, "Bias": param(f"{name}.b", WIDTH)}
        outputs = {"Y": wide, "Mean": Var((-1,)), "Variance": Var((-1,))}
        return program.op("layer_norm", inputs, outputs, begin_norm_axis=2, epsilon=1e-5)

    factor = (WIDTH // HEADS) ** -0.5
    query, key, value = (heads(linear("x", name)) for name in ("q", "k", "v"))
    if scaled and product == "matmul_v2":
        query = program.op("scale", {"X": query}, {"Out": split}, scale=factor, bias=0.0, bias_after_scale=True)
    square = Var((-1, HEADS, STEPS, STEPS))
    scores = pair(query, key, square, True, factor)
    scores = program.op("elementwise_add", {"X": scores, "Y": "mask"}, {"Out": square}, axis=-1)
    scores = program.op("softmax", {"X": scores}, {"Out": square}, axis=-1)
    seen = pair(scores, value, split, False)
    seen = program.op(
        "transpose2", {"X": seen}, {"Out": Var((-1, STEPS, HEADS, WIDTH // HEADS)), "XShape": shadow}, axis=[0, 2, 1, 3]
    )
    seen = program.op("reshape2", {"X": seen}, {"Out": wide, "XShape": shadow}, shape=[0, 0, WIDTH])
    x = norm(program.op("elementwise_add", {"X": "x", "Y": linear(seen, "o")}, {"Out": wide}, axis=-1), "n1")
    hidden = program.op("gelu", {"X": linear(x, "f1", 32)}, {"Out": Var((-1, STEPS, 32))}, approximate=False)
    x = norm(program.op("elementwise_add", {"X": x, "Y": linear(hidden, "f2")}, {"Out": wide}, axis=-1), "n2")
    return program.graph([x])


def batch(seed: int = 1, size: int = 8) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    mask = np.where(np.arange(STEPS) < random.integers(2, STEPS + 1, (size, 1)), 0, -10_000).astype(np.float32)
    return {"x": random.standard_normal((size, STEPS, WIDTH)).astype(np.float32), "mask": mask[:, None, None]}


@pytest.mark.parametrize("settings", [Settings("int8"), Settings("int8", optimise=False)], ids=["fused", "bare"])
@pytest.mark.parametrize("product", ["matmul_v2", "matmul"])
def test_int8_equals_the_simulation(product: str, settings: Settings, tmp_path: Path) -> None:
    """Also after a predictor's own passes, one of which would fuse the mask's addition into the INT8 product."""
    graph = encoder(product)
    simulated = calibrate(graph, [batch(seed) for seed in range(3)], algo="abs_max")
    int8, coverage = convert(lower_quantizers(simulated))
    counts = int8.op_counts()
    assert (counts["fc"], counts["fused_matmul"], counts["gelu"], counts["dequantize"]) == (6, 2, 0, 0)
    assert coverage.int8["transpose2"] == 4
    given = batch(9)
    [fp32], [sim] = run(graph, given, tmp_path, NATIVE), run(lower_quantizers(simulated), given, tmp_path, NATIVE)
    [real] = run(int8, given, tmp_path, settings)
    assert sqnr(fp32, sim) > 25
    assert sqnr(sim, real) > sqnr(fp32, sim) + 8


def test_below_vnni_products_of_two_activations_stay_float() -> None:
    """Both factors are stored with 127 levels there, and pairs of such products would saturate 16 bits."""
    simulated = calibrate(encoder(), [batch()], algo="abs_max", weight_levels=63)
    int8, coverage = convert(simulated)
    assert int8.op_counts()["fc"] == 6
    assert coverage.fp32["matmul_v2"] == 2
    assert any("both its factors" in kept.reason for kept in coverage.kept)


def test_a_skipped_product_leaves_its_neighbours_int8(tmp_path: Path) -> None:
    graph = run_passes(encoder(), NORMALISE)
    simulated = calibrate(graph, [batch()], algo="abs_max")
    ids = [kept.op_id for kept in convert(simulated, ops_to_quantize=["fc"])[1].kept if kept.op_type == "transpose2"]
    int8, coverage = convert(simulated, op_ids_to_skip=ids)
    assert coverage.int8["matmul_v2"] == 6 + 2 * (coverage.int8["matmul_v2"] == 8)
    [sim] = run(lower_quantizers(simulated), batch(9), tmp_path, NATIVE)
    [real] = run(int8, batch(9), tmp_path, Settings("int8"))
    assert sqnr(sim, real) > 30


def test_a_scale_is_folded_into_the_product_before_it(tmp_path: Path) -> None:
    graph = encoder()
    folded = fold_scale(graph)
    assert folded.op_counts()["scale"] == 0
    [before], [after] = run(graph, batch(), tmp_path, NATIVE), run(folded, batch(), tmp_path, NATIVE)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert fold_scale(folded) is folded


@pytest.mark.parametrize("change", [{"bias": 0.5}, {"scale": -2.0}])
def test_a_scale_that_cannot_be_folded_stays(change: dict[str, float]) -> None:
    graph = encoder()
    ops = tuple(op.with_attrs(**change) if op.type == "scale" else op for op in graph.ops)
    kept = replace(graph, ops=ops)
    assert fold_scale(kept) is kept


def test_a_scale_whose_input_has_another_reader_stays() -> None:
    graph = encoder()
    scale = next(op for op in graph.ops if op.type == "scale")
    kept = replace(graph, fetches=(*graph.fetches, scale.input("X")))
    assert fold_scale(kept) is kept


def test_thresholds_of_a_fake_quantized_weight_are_folded_too() -> None:
    graph = encoder()
    scale = next(op for op in graph.ops if op.type == "scale")
    first = next(op for op in graph.ops if op.input("Y") == "q.w")
    marked = first.with_attrs(weight_thresholds=[2.0], weight_levels=127)
    folded = fold_scale(replace(graph, ops=tuple(marked if op is first else op for op in graph.ops)))
    [thresholds] = [op.attr("weight_thresholds") for op in folded.ops if op.attr("weight_thresholds")]
    assert thresholds == pytest.approx([2.0 * scale.attr("scale")])


def test_macs_of_open_dimensions() -> None:
    graph = encoder()
    each = 4 * WIDTH * WIDTH + 2 * WIDTH * 32 + 2 * WIDTH * STEPS
    assert graph_macs(graph, 3) == 3 * STEPS * each
    opened = {
        name: var._replace(
            shape=tuple(-1 if size == STEPS and name not in graph.params else size for size in var.shape)
        )
        for name, var in graph.vars.items()
    }
    assert graph_macs(replace(graph, vars=opened), 3, longest=STEPS) == 3 * STEPS * each


def test_a_product_with_a_transposed_first_factor_stays_float() -> None:
    graph = encoder()
    ops = []
    for op in graph.ops:
        if op.type == "matmul_v2" and op.attr("trans_y"):
            shape = {"trans_x": Attr.of(True), "trans_y": Attr.of(False)}
            op = Op(op.type, op.inputs, op.outputs, {**op.attrs, **shape})
        ops.append(op)
    int8 = convert(calibrate_shapes_only(replace(graph, ops=tuple(ops))))[1]
    assert int8.fp32["matmul_v2"] >= 1


def calibrate_shapes_only(graph: Graph) -> Graph:
    """Fake-quantized without a run: every tensor that is multiplied gets the grid of threshold 4."""
    from quant.passes.quantizers import WEIGHT_SLOT

    ops = []
    for op in graph.ops:
        if op.type in WEIGHT_SLOT and op.input("Y") in graph.params:
            op = op.with_attrs(weight_thresholds=[4.0], weight_levels=127)
            rounded = f"{op.output('Out')}.in"
            ops.append(Op.make("fake_quant", {"X": op.input("X")}, {"Out": rounded}, threshold=4.0, levels=127))
            graph = replace(graph, vars={**graph.vars, rounded: graph.vars[op.input("X")]})
            op = op.rewired({op.input("X"): rounded})
        ops.append(op)
    return replace(graph, ops=tuple(ops))
