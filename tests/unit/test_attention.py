"""Products of two activations, and what stands around them in an encoder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures.programs import Program
from quant.ir.fusion import chains_of, numbered
from quant.ir.graph import Graph, Op, Var, run_passes
from quant.ir.ops.arithmetic import Sizes, arithmetic_of
from quant.ir.passes import NORMALISE, fold_scale, lower_quantizers
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Settings
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


@pytest.mark.parametrize("second", [False, True])
def test_best_weighs_both_operands_of_a_product(second: bool) -> None:
    """Values that lie on a grid cost nothing at their abs-max; least squares, not knowing that, clips the largest."""
    wide, square = Var((-1, STEPS, WIDTH)), Var((-1, STEPS, STEPS))
    program = Program({"x": wide, "y": wide})
    weight = program.param("w", np.eye(WIDTH, dtype=np.float32))
    linear = program.op("matmul_v2", {"X": "x", "Y": weight}, {"Out": wide}, trans_x=False, trans_y=False)
    operands = {"X": linear, "Y": "y"} if second else {"X": "y", "Y": linear}
    graph = program.graph([program.op("matmul_v2", operands, {"Out": square}, trans_x=False, trans_y=True)])
    random = np.random.default_rng(0)
    integers = random.integers(-1, 2, (64, STEPS, WIDTH))
    integers[0, 0, 0] = 127
    given = {
        "x": random.standard_normal(integers.shape).astype(np.float32),
        "y": (integers * 3 / 127).astype(np.float32),
    }

    def chosen(algo: str) -> tuple[str, float]:
        ops = calibrate(graph, [given], algo=algo).ops
        [op] = [op for op in ops if op.type == "fake_quant" and op.input("X") == "y"]
        return op.attr("algorithm"), op.attr("threshold")

    assert chosen("mse")[1] < 2.98
    assert chosen("best") == ("abs_max", pytest.approx(3))


def test_below_vnni_products_of_two_activations_stay_float() -> None:
    """Both factors are stored with 127 levels there, and pairs of such products would saturate 16 bits."""
    simulated = calibrate(encoder(), [batch()], algo="abs_max", weight_levels=63)
    int8, coverage = convert(simulated)
    assert int8.op_counts()["fc"] == 6
    assert coverage.fp32["matmul_v2"] == 2
    assert any("both its factors" in kept.reason for kept in coverage.kept)


@pytest.mark.parametrize(
    ("skipped", "int8", "fp32"),
    [
        # The last reshape reads a transpose that is float32 now; the other three read int8 as before.
        (lambda op: op.type == "transpose2", {"matmul_v2": 8, "reshape2": 3}, {"transpose2": 4, "reshape2": 1}),
        # The product in float32 reads rounded queries and keys, carried on int8 as before.
        (lambda op: op.attr("trans_y", False), {"matmul_v2": 7, "reshape2": 4, "transpose2": 4}, {"matmul_v2": 1}),
    ],
    ids=["transposes", "product"],
)
def test_skipped_ops_leave_the_products_around_them_int8(
    skipped: Callable[[Op], bool], int8: dict[str, int], fp32: dict[str, int], tmp_path: Path
) -> None:
    graph = run_passes(encoder(), NORMALISE)
    simulated = calibrate(graph, [batch()], algo="abs_max")
    ids = [number for op, number in numbered(graph).items() if skipped(op)]
    converted, coverage = convert(simulated, op_ids_to_skip=ids)
    assert (dict(coverage.int8), dict(coverage.fp32)) == (int8, fp32)
    [sim] = run(lower_quantizers(simulated), batch(9), tmp_path, NATIVE)
    [real] = run(converted, batch(9), tmp_path, Settings("int8"))
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
    assert arithmetic_of(graph, Sizes(3)).total == 3 * STEPS * each
    opened = {
        name: var._replace(
            shape=tuple(-1 if size == STEPS and name not in graph.params else size for size in var.shape)
        )
        for name, var in graph.vars.items()
    }
    assert arithmetic_of(replace(graph, vars=opened), Sizes(3, longest=STEPS)).total == 3 * STEPS * each


@pytest.mark.parametrize(
    ("kind", "names"), [("matmul_v2", ("trans_x", "trans_y")), ("matmul", ("transpose_X", "transpose_Y"))]
)
@pytest.mark.parametrize("flipped", [(False, False), (False, True), (True, False), (True, True)])
def test_a_product_with_a_transposed_first_factor_has_no_int8_kernel(
    kind: str, names: tuple[str, str], flipped: tuple[bool, bool]
) -> None:
    square = Var((-1, WIDTH, WIDTH))
    program = Program({"x": square, "y": square})
    out = program.op(kind, {"X": "x", "Y": "y"}, {"Out": square}, **dict(zip(names, flipped, strict=True)))
    graph = program.graph([out])
    assert [chain.operands for chain in chains_of(graph, graph.ops).values()] == ([] if flipped[0] else [("x", "y")])
