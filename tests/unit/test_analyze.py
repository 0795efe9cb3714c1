"""Faults planted in converted graphs: analysis puts the planted op first and says why; healthy ones have none."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from quant.datasets.columns import Dataset, Ragged
from quant.diagnosis.composition_worker import kept_ops
from quant.diagnosis.drift import LOCAL_DB, Analysis, OpError, Scale, findings_of
from quant.diagnosis.drift_worker import analyze_model
from quant.errors import ModelError
from quant.ir.fusion import numbered
from quant.ir.graph import Graph, Op, load_dir, save_dir
from quant.ir.int8_regions import int8_op
from quant.ir.passes import lower_quantizers
from quant.metrics.tensor_error import MOST_DB, Errors, Gap
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.reports.drift import as_json, chart, from_json, tables
from quant.reports.page.charts import standalone
from tests.nets import Net, inception_net, inverted_net, residual_net, vgg_net
from tests.outliers import plant, planted_net
from tests.unit.test_attention import STEPS, WIDTH, encoder
from tests.unit.test_recurrent import layers

Analyze = Callable[..., Analysis]
NETS = {"residual": residual_net, "inverted": inverted_net, "inception": inception_net, "vgg": vgg_net}


def write_models(root: Path, graph: Graph, data: Mapping[str, np.ndarray], algo: str = "mse") -> Path:
    """fp32, quant and int8 under `root`, and the samples that they were calibrated on."""
    simulated = calibrate(graph, [data], algo=algo)
    for name, model in (("fp32", graph), ("quant", lower_quantizers(simulated)), ("int8", convert(simulated)[0])):
        (root / name).mkdir(parents=True)
        save_dir(model, root / name)
    np.savez(root / "data.npz", **data)
    return root


def analysis_of(place: Path, **options: Any) -> Analysis:
    names = (str(place / name) for name in ("int8", "fp32", "quant", "data.npz"))
    return Analysis.from_job(analyze_model(*names, **{"samples": 32, **options}), place / "int8", "here")


def images(count: int = 32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, net in NETS.items():
        write_models(root / name, net(), {"x": images()})
    return root


@pytest.fixture
def analyzed(models: Path, tmp_path: Path) -> Analyze:
    """The analysis of a net; `fault`: what is done to its INT8 graph first."""

    def run(net: str, fault: Callable[[Graph], Graph] = lambda graph: graph, executor: str = "auto") -> Analysis:
        place = models / net
        save_dir(fault(load_dir(place / "int8")), tmp_path)
        arguments = (str(tmp_path), str(place / "fp32"), str(place / "quant"), str(place / "data.npz"))
        found = analyze_model(*arguments, samples=32, executor=executor)
        return Analysis.from_job(found, tmp_path, "here")

    return run


def changed(graph: Graph, op: Op, **attrs: Any) -> Graph:
    return replace(graph, ops=tuple(one.with_attrs(**attrs) if one is op else one for one in graph.ops))


def convs(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if op.type == "fused_conv2d"]


@pytest.mark.parametrize("executor", ["direct", "paddle"])
@pytest.mark.parametrize("net", NETS)
def test_a_healthy_model_has_no_finding(analyzed: Analyze, net: str, executor: str) -> None:
    found = analyzed(net, executor=executor)
    assert found.executor == executor
    assert [finding for finding in found.findings if finding.kind != "range"] == []
    assert found.as_read_db == MOST_DB
    measured = [op for op in found.ops if op.local_db is not None]
    assert len(measured) == len(found.ops) > 3
    assert min(op.local_db or 0 for op in measured) > 60 > LOCAL_DB
    assert all(op.fp32_db and op.fp32_db > 20 and op.quant_db and op.quant_db > 35 for op in found.ops)
    assert all(op.sources for op in found.ops if op.int8 and op.types[-1] != "flatten_contiguous_range")


def test_both_executors_tell_the_same(analyzed: Analyze, models: Path, tmp_path: Path) -> None:
    one, other = analyzed("inception", executor="direct"), analyzed("inception", executor="paddle")
    assert one.ops == other.ops


def test_a_fused_op_is_told_by_its_source_ops(analyzed: Analyze) -> None:
    sources = [op.sources for op in analyzed("residual").ops if op.type == "fused_conv2d"]
    assert ("conv2d", "batch_norm", "relu") in sources
    assert ("conv2d", "batch_norm", "elementwise_add", "relu") in sources


def test_ops_whose_rounding_costs_most_come_first_by_the_ids_that_leave_them_in_fp32(tmp_path: Path) -> None:
    """Two convolutions read outliers. Behind the first one little is left of the signal, and any noise adds much."""
    _, graph, planted = planted_net()
    data = {"x": images()}
    found = analysis_of(write_models(tmp_path, graph, data))
    ids = {op.output("Output"): number for op, number in numbered(graph).items() if op.type == "conv2d"}
    assert {op.op_ids for op in found.ranked[:2]} == {(ids[name],) for name in planted}
    assert all(op.local_fp32_db is not None and op.local_fp32_db < 10 for op in found.ranked[:2])
    assert all(op.local_fp32_db is None or op.local_fp32_db > 20 for op in found.ranked[2:])
    for op in found.ranked[:2]:
        left = convert(calibrate(graph, [data], algo="mse", op_ids_to_skip=op.op_ids), op_ids_to_skip=op.op_ids)[0]
        assert [one.type for one in left.ops if not int8_op(one)].count("conv2d") == 1


# --- planted faults


def scaled_output(graph: Graph) -> tuple[Graph, str]:
    """Stored twice as large as its readers take it for; the largest values then saturate."""
    op = convs(graph)[1]
    return changed(graph, op, Scale_out=2 * op.attr("Scale_out")), op.output("Output")


def scaled_input(graph: Graph) -> tuple[Graph, str]:
    op = convs(graph)[1]
    return changed(graph, op, Scale_in=2 * op.attr("Scale_in")), op.output("Output")


def without_sign(graph: Graph) -> tuple[Graph, str]:
    """A quantize op that stores values of both signs as uint8."""
    op = next(op for op in graph.ops if op.type == "quantize" and op.attr("is_negative_input"))
    name = op.output("Output")
    vars = {**graph.vars, name: graph.vars[name]._replace(dtype="uint8")}
    return replace(changed(graph, op, is_negative_input=False), vars=vars), name


def scaled_residual(graph: Graph) -> tuple[Graph, str]:
    op = next(op for op in convs(graph) if op.input("ResidualData"))
    return changed(graph, op, Scale_in_eltwise=op.attr("Scale_in_eltwise") / 2), op.output("Output")


def scaled_channel(graph: Graph) -> tuple[Graph, str]:
    """The kernel takes one output channel's weights for 4 times as large as they are stored."""
    op = convs(graph)[1]
    scales = list(op.attr("Scale_weights"))
    scales[3] *= 4
    return changed(graph, op, Scale_weights=scales), op.output("Output")


def stored_channel(graph: Graph) -> tuple[Graph, str]:
    """One channel's stored weights come back as a quarter of what they were: no attribute shows it."""
    op = convs(graph)[1]
    step = op.input("Filter").partition(".stored")[0] + ".step"
    values = graph.params[step].copy()
    values[3] /= 4
    return replace(graph, params={**graph.params, step: values}), op.output("Output")


def swapped_bias(graph: Graph) -> tuple[Graph, str]:
    """An op reads the bias of another."""
    op, other = next(
        (one, two)
        for one in convs(graph)[1:]
        for two in convs(graph)
        if one is not two and graph.vars[one.input("Bias")].shape == graph.vars[two.input("Bias")].shape
    )
    swapped = replace(op, inputs={**op.inputs, "Bias": (other.input("Bias"),)})
    return replace(graph, ops=tuple(swapped if one is op else one for one in graph.ops)), op.output("Output")


FAULTS: dict[str, tuple[Callable[[Graph], tuple[Graph, str]], str, str]] = {
    "output": (scaled_output, "residual", "Scale_out is"),
    "output, concat": (scaled_output, "inception", "Scale_out is"),
    "input": (scaled_input, "residual", "Scale_in is"),
    "sign": (without_sign, "inverted", "without a sign"),
    "residual": (scaled_residual, "residual", "its residual counts 2 times"),
    "residual, linear": (scaled_residual, "inverted", "Scale_in_eltwise is"),
    "channel": (scaled_channel, "residual", "channel 3 of"),
    "stored channel": (stored_channel, "residual", "channel 3 of"),
    "bias": (swapped_bias, "residual", "shifted"),
}


@pytest.mark.parametrize("executor", ["direct", "paddle"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_first(analyzed: Analyze, name: str, executor: str) -> None:
    plant, net, reason = FAULTS[name]
    planted: list[str] = []

    def fault(graph: Graph) -> Graph:
        graph, where = plant(graph)
        planted.append(where)
        return graph

    found = analyzed(net, fault, executor)
    worst = found.ranked[0]
    assert worst.variable == planted[0], [(op.variable, op.local_db) for op in found.ranked[:4]]
    assert worst.local_db is not None and worst.local_db < 30
    engine = [finding for finding in found.findings if finding.kind == "engine"]
    assert {finding.output for finding in engine} == {worst.output}
    assert any(reason in finding.text for finding in engine), engine


def test_a_concat_of_unequal_grids_is_found(analyzed: Analyze) -> None:
    """Miswired: it reads what the simulation computes one of its operands from."""

    def fault(graph: Graph) -> Graph:
        joined = next(op for op in graph.ops if op.type == "concat")
        pooled = next(op for op in graph.ops if op.type == "pool2d").output("Out")
        wrong = replace(joined, inputs={**joined.inputs, "X": (pooled, joined.inputs["X"][1])})
        return replace(graph, ops=tuple(wrong if op is joined else op for op in graph.ops))

    found = analyzed("inception", fault)
    worst = found.ranked[0]
    assert worst.type == "concat" and worst.faulty
    assert [finding.text.partition(" is ")[0] for finding in findings_of(worst)][1:] == ["the scale of t3.int8"]


# --- what calibration did


def test_an_outlier_channel_is_told(tmp_path: Path) -> None:
    """One channel of an encoder's layer norms is 100 times larger, which leaves the function as it was."""
    random = np.random.default_rng(2)
    data = {
        "x": random.standard_normal((16, STEPS, WIDTH)).astype(np.float32),
        "mask": np.zeros((16, 1, 1, STEPS), np.float32),
    }
    plain = analysis_of(write_models(tmp_path / "plain", encoder(), data, "abs_max"))
    assert [finding.kind for finding in plain.findings if finding.kind != "range"] == []
    planted = analysis_of(write_models(tmp_path / "planted", plant(encoder(), 100.0, (3,)), data, "abs_max"))
    told = [finding for finding in planted.findings if finding.kind != "range"]
    assert {finding.kind for finding in told} == {"calibration"}, "the engine does what the simulation does"
    assert any(finding.text.startswith("channel 3 reaches") for finding in told), told
    assert all(op.local_db and op.local_db > LOCAL_DB for op in planted.ops)
    worst = next(op for op in planted.ranked if op.int8)
    assert worst.local_fp32_db is not None and worst.local_fp32_db < 20, "and the loss is its own rounding's"


def op_error(**values: Any) -> OpError:
    """A healthy uint8 op, but for `values`."""
    whole = OpError(
        output="t",
        variable="t.int8",
        types=("fused_conv2d",),
        int8=True,
        sources=("conv2d",),
        op_ids=(0,),
        inputs=("s.int8",),
        stored="uint8",
        shift=0,
        scale=51.0,
        grid=(5.0, 255),
        scales=(),
        fp32_db=35.0,
        fp32_cosine=1.0,
        quant_db=50.0,
        quant_cosine=1.0,
        local_db=80.0,
        local_cosine=1.0,
        local_fp32_db=40.0,
        low=0.0,
        high=5.1,
        saturated=0.001,
        clipped=1e-6,
        ends=0.001,
        outlier=(3, 2.0),
        finite=True,
        error="",
        unmeasured="",
    )
    return replace(whole, **values)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, []),
        ({"local_db": 44.0, "error": "why"}, [("engine", "44.0 dB to what the simulation makes")]),
        ({"local_db": 44.0, "types": ("fusion_gru",)}, []),
        ({"local_db": 29.0, "types": ("fusion_gru",)}, [("engine", "29.0 dB")]),
        ({"finite": False, "local_db": None}, [("engine", "NaN or Inf")]),
        ({"scales": (Scale("Scale_out", 102.0, 51.0),)}, [("engine", "Scale_out is 102, 2 times the simulation's 51")]),
        ({"scales": (Scale("Scale_out", 51.01, 51.0),)}, []),
        ({"low": -0.5}, [("engine", "stored as uint8, but the FP32 model's values reach -0.5")]),
        ({"low": -0.009}, []),  # less than half a step
        ({"low": -0.5, "shift": 128}, []),
        ({"stored": "int8", "grid": (5.0, 127)}, [("range", "half of the range is lost")]),
        ({"stored": "int8", "grid": (5.0, 127), "low": -0.1}, []),
        ({"high": 1.2}, [("calibration", "threshold 5, 4.2 times the largest value seen")]),
        ({"high": 1.3}, []),
        ({"saturated": 0.02, "clipped": 0.01}, [("calibration", "2% of the values are beyond the threshold 5")]),
        ({"saturated": 0.02, "clipped": 1e-5}, []),  # clipping costs less than rounding
        ({"high": 25.0, "clipped": 0.01}, [("calibration", "the largest 5.0 times that")]),
        ({"outlier": (7, 30.0)}, [("calibration", "channel 7 reaches 30 times as far")]),
    ],
)
def test_what_counts_as_a_finding(values: dict[str, Any], found: list[tuple[str, str]]) -> None:
    told = list(findings_of(op_error(**values)))
    assert [finding.kind for finding in told] == [kind for kind, _ in found], told
    assert all(text in finding.text for finding, (_, text) in zip(told, found, strict=True)), told


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ({"local_db": 90.0, "quant_db": 20.0}, "each op agrees to 80 dB; the network amplifies: 20 dB at 'end'"),
        ({"local_db": 90.0, "quant_db": 65.0}, ""),
        ({"local_db": 40.0, "quant_db": 20.0}, ""),  # its own fault
        ({"local_db": None, "quant_db": 20.0}, ""),  # not known
    ],
)
def test_a_network_that_amplifies_is_told(last: dict[str, Any], told: str) -> None:
    ops = (op_error(), op_error(output="end", variable="end.int8", **last))
    found = Analysis(Path("model"), "model", "direct", "AMX", 1, 8, 150.0, (), ops)
    assert found.amplifies == told


# --- recurrent layers, models without a simulation, models that don't fit


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrent_layers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of unequal length; that the kernel rounds its state is no fault, a wrong weight scale is."""
    random = np.random.default_rng(1)
    graph = layers(kind)
    x = Ragged.of([random.standard_normal((length, 12)).astype(np.float32) for length in (5, 1, 9, 4)])
    simulated = calibrate(graph, [{"x": x}], algo="abs_max")
    for name, model in (("fp32", graph), ("quant", lower_quantizers(simulated)), ("int8", convert(simulated)[0])):
        (tmp_path / name).mkdir()
        save_dir(model, tmp_path / name)
    monkeypatch.setattr("quant.diagnosis.drift_worker.opened", lambda *_: Dataset(tmp_path, {"x": x}, None))
    found = analysis_of(tmp_path)
    assert [finding for finding in found.findings if finding.kind == "engine"] == []
    cells = [op for op in found.ops if op.type == f"fusion_{kind}"]
    assert len(cells) == 4
    assert all(op.local_db and 30 < op.local_db < 60 for op in cells)
    assert all(op.sources == ("mul", "elementwise_add", kind) for op in cells)
    assert all(op.local_db and op.local_db > 100 for op in found.ops if op not in cells)

    converted = load_dir(tmp_path / "int8")
    first = next(op for op in converted.ops if op.type == f"fusion_{kind}")
    step = first.input("WeightX").partition(".stored")[0] + ".step"
    (tmp_path / "faulty" / "int8").mkdir(parents=True)
    save_dir(
        replace(converted, params={**converted.params, step: 2 * converted.params[step]}), tmp_path / "faulty" / "int8"
    )
    for name in ("fp32", "quant"):
        (tmp_path / "faulty" / name).symlink_to(tmp_path / name)
    worst = analysis_of(tmp_path / "faulty").ranked[0]
    assert (worst.variable, worst.faulty) == (first.output("Hidden"), True)


def test_without_a_simulation_only_fp32_is_compared(models: Path) -> None:
    place = models / "inception"
    found = analyze_model(str(place / "int8"), str(place / "fp32"), None, str(place / "data.npz"), samples=32)
    whole = {op.variable: op for op in analysis_of(place).ops}
    for op in Analysis.from_job(found, place, "here", 1).ops:
        assert (op.quant_db, op.local_db, op.grid) == (None, None, None)
        assert op.fp32_db == pytest.approx(whole[op.variable].fp32_db)


def renamed(graph: Graph, rename: Callable[[str], str]) -> Graph:
    def slots(of: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {slot: tuple(map(rename, found)) for slot, found in of.items()}

    ops = tuple(replace(op, inputs=slots(op.inputs), outputs=slots(op.outputs)) for op in graph.ops)
    vars = {rename(name): var for name, var in graph.vars.items()}
    params = {rename(name): value for name, value in graph.params.items()}
    return Graph(ops, vars, params, tuple(map(rename, graph.feeds)), tuple(map(rename, graph.fetches)))


def test_a_tensor_of_another_name_has_no_counterpart(models: Path, tmp_path: Path) -> None:
    """Nothing is guessed: not for it, and not for what rounding the ops that read it costs."""
    place, name = models / "residual", "t2"
    graph = load_dir(place / "fp32")
    save_dir(renamed(graph, lambda old: "stem" if old == name else old), tmp_path)
    found = analyze_model(str(place / "int8"), str(tmp_path), str(place / "quant"), str(place / "data.npz"))
    whole = {op.variable: op for op in analysis_of(place).ops}
    for op in Analysis.from_job(found, place, "here", 1).ops:
        before = whole[op.variable]
        reads = f"{name}.int8" in op.inputs
        if op.output == name:
            before = replace(
                before, fp32_db=None, fp32_cosine=None, low=None, high=None, saturated=None, clipped=None, outlier=None
            )
        if op.output == name or reads:
            before = replace(before, local_fp32_db=None, sources=())
        assert op == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("fp32", "fp32", "quant"), "holds no INT8 op"),
        (("int8", "other", "quant"), "reads the input 'y', which"),
        (("int8", "fp32", "other"), "reads the input 'y', which"),
        (("int8", "fp32", "renamed"), "has no tensor of"),
    ],
)
def test_models_that_do_not_belong_together(models: Path, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    place = models / "residual"
    graph = load_dir(place / "fp32")

    others = {
        "other": lambda name: "y" if name == "x" else name,
        "renamed": lambda name: name if name == "x" else f"_{name}",
    }
    for name, rename in others.items():
        (tmp_path / name).mkdir()
        save_dir(renamed(graph, rename), tmp_path / name)
    paths = [str((tmp_path if name in others else place) / name) for name in names]
    with pytest.raises(ModelError, match=message):
        analyze_model(*paths, str(place / "data.npz"))


def test_nan_is_told(analyzed: Analyze) -> None:
    def fault(graph: Graph) -> Graph:
        name = [op for op in graph.ops if op.type == "fc"][-1].input("Bias")
        return replace(graph, params={**graph.params, name: np.full_like(graph.params[name], np.nan)})

    found = analyzed("vgg", fault)
    assert not found.ranked[0].finite
    assert [(finding.output, finding.text) for finding in found.findings if finding.kind == "engine"] == [
        (found.ops[-1].output, "puts out NaN or Inf")
    ]


# --- numbers, tables, chart


def test_gaps_are_those_of_the_whole() -> None:
    random = np.random.default_rng(3)
    due = random.standard_normal((7, 5000)).astype(np.float32)
    found = due + 1e-3 * random.standard_normal(due.shape).astype(np.float32)
    gap = Gap()
    for part in np.array_split(np.arange(7), 3):
        gap.add(due[part], found[part])
    exact = 10 * np.log10((due.astype(np.float64) ** 2).sum() / ((due.astype(np.float64) - found) ** 2).sum())
    assert gap.db == pytest.approx(exact, abs=1e-3)
    assert gap.cosine == pytest.approx(1.0, abs=1e-5)
    same, empty = Gap(), Gap()
    same.add(due, due)
    assert (same.db, empty.db, empty.cosine) == (MOST_DB, None, None)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda x, r: 1.5 * x, "all values are 1.5 times what they should be"),
        (lambda x, r: x + r, "its residual counts 2 times what it should"),
        (
            lambda x, r: x + np.linspace(1, 2, 6, dtype=np.float32)[:, None, None],
            "whole channels are shifted, by up to 2",
        ),
        (
            lambda x, r: x * np.linspace(0.2, 3, 6, dtype=np.float32)[:, None, None],
            "whole channels are scaled or shifted",
        ),
        (
            lambda x, r: np.where(np.arange(6)[:, None, None] == 2, 4 * x, x),
            "channel 2 of 6 has 100% of the error: its values are 4",
        ),
        (lambda x, r: np.abs(x), "negative values come out as zero or above"),
        (lambda x, r: x[..., ::-1], "no common factor"),
        (lambda x, r: x, ""),
    ],
)
def test_kinds_of_error(wrong: Callable[..., np.ndarray], text: str) -> None:
    random = np.random.default_rng(4)
    due, residual = random.standard_normal((2, 8, 6, 9, 9)).astype(np.float32)
    errors = Errors(1)
    for part in (slice(0, 3), slice(3, 8)):
        errors.compare(due[part], wrong(due[part], residual[part]), (-np.inf, np.inf), 0.0, residual[part])
    assert errors.explain().startswith(text)
    assert bool(errors.explain()) == bool(text)


def test_tables_chart_and_json(analyzed: Analyze) -> None:
    found = analyzed("residual", lambda graph: scaled_residual(graph)[0])
    findings, ops, *_ = tables(found)
    assert findings.rows[0][0] == "engine"
    assert ops.rows[0][1] == found.ranked[0].output
    assert "conv2d + batch_norm + add + relu" in ops.rows[0]
    each = tables(found, each=True)[1]
    assert [row[0] for row in each.rows] == [str(number) for number in range(1, len(found.ops) + 1)]
    text = json.dumps(as_json(found), allow_nan=False)
    assert from_json(text) == found
    content = json.loads(text)
    assert content["ops"][0]["output"] == found.ranked[0].output
    assert content["ops"][0]["place"] == found.ops.index(found.ranked[0]) + 1
    drawing = chart(found)
    assert "fault of the engine" in drawing
    sound = replace(found, ops=tuple(op for op in found.ops if not op.faulty))
    assert "fault of the engine" not in chart(sound)
    assert f"{found.ranked[0].output} doesn't do what the simulation does" in drawing
    root = ElementTree.fromstring(standalone(drawing))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_what_stays_float32_and_why(models: Path) -> None:
    kept = kept_ops(load_dir(models / "residual" / "int8"))
    assert [entry["type"] for entry in kept] == ["pool2d"]
    assert "average" in kept[0]["why"]
    net = Net()
    plain = net.graph(net.head(net.act(net.conv("x", 8))))
    assert [entry["type"] for entry in kept_ops(plain)] == ["conv2d", "matmul_v2"]
