"""The table of published models, what of a zoo directory is there, and the verdicts and tables of their records."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures.programs import Program
from quant.datasets.columns import Ragged
from quant.datasets.readers import FORMATS
from quant.errors import FetchError, ModelError, OptionError
from quant.ir.graph import Graph, Op, Var, load_dir, save_dir
from quant.ir.passes import drop_judges, lower_quantizers
from quant.ir.passes.quantizers import without_quantizers
from quant.metrics.scores import METRICS, sqnr
from quant.reports import published
from quant.results.record import Record, columns
from quant.runtime.verbose_log import Declared, proof
from quant.suites import embedded
from quant.suites.prepare import DERIVED, Models
from quant.suites.published import located
from quant.suites.published.catalogue import ROWS, Timing, ZooRow, find_artefact, row_of
from quant.suites.published.worker import split
from quant.suites.registry import MODELS, find
from tests.nets import NATIVE, NETS, data, residual_net, run
from tests.unit.test_foreign_models import paddles_own_ptq

# --- the table


def test_every_row_of_the_registry_is_published_once() -> None:
    assert [row.name for row in ROWS] == [spec.name for spec in MODELS]
    assert len({row.model for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_names_what_exists(row: ZooRow) -> None:
    for name in (row.model, row.fp32, *(source.artefact for source in row.data)):
        assert not name or find_artefact(name)
    assert all(source.format in FORMATS and bool(source.artefact) != bool(source.file) for source in row.data)
    assert set(row.metrics) <= set(METRICS)
    assert {scores.metric for scores in row.scores} <= set(row.metrics)
    assert set(find(row.name).published) <= set(row.metrics)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_both_tables_quote_the_seeds_alike(row: ZooRow) -> None:
    """The registry has one figure of each kind; here are all that the documents print."""
    spec = find(row.name)
    for metric, figures in spec.published.items():
        assert figures in [(scores.score, scores.int8) for scores in row.scores if scores.metric == metric]
    quoted = {(case.batch, case.repeat): case.published for case in spec.cases if case.published}
    printed = {(timing.batch, timing.repeat): timing.ratio for timing in reversed(row.timings) if timing.threads == 1}
    assert quoted == printed
    for timing in row.timings:
        slow, fast = (timing.fp32, timing.int8) if timing.unit == "ms" else (timing.int8, timing.fp32)
        assert timing.ratio == pytest.approx(slow / fast, abs=0.01)  # 4.858 is printed as 4.85


def test_what_is_timed() -> None:
    ernie = [(timing.threads, timing.ratio) for timing in located.cases_of(row_of("ernie"))]
    assert ernie == [(1, 2.99), (20, 1.76)]  # three documents print both
    assert [timing.batch for timing in located.cases_of(row_of("gru"))] == [1, 50, 50]
    [googlenet] = located.cases_of(row_of("googlenet"))
    assert (googlenet.batch, googlenet.threads, googlenet.document) == (1, 1, "")


# --- what is there


def put(zoo: Path, *files: str) -> None:
    for file in files:
        (zoo / file).parent.mkdir(parents=True, exist_ok=True)
        (zoo / file).write_bytes(b"1")


ERNIE = ("ernie-qat/Ernie_qat/float/__model__", "ernie-data/Ernie_dataset/1.8w.bs1")
LABELS = "ernie-data/Ernie_dataset/label.xnli.dev"
LSTM = ("lstm-quant/lstm_quant/model", "lstm-data/quant_lstm_input_data")


def test_what_is_missing_comes_with_the_way_to_get_it(tmp_path: Path) -> None:
    def lacks(name: str) -> list[tuple[str, str]]:
        return [(lack.what, lack.how) for lack in located.missing(row_of(name), tmp_path)]

    binary = f"{tmp_path}/int8_full_val.bin"
    assert lacks("vgg16")[0] == ("vgg16-qat", f"quant fetch vgg16-qat --output {tmp_path}")
    assert lacks("vgg16")[1][0] == binary and f"--output-file {binary}`" in lacks("vgg16")[1][1]
    put(tmp_path, "vgg16-qat/model/__model__", "vgg19-qat.part")
    assert [what for what, _ in lacks("vgg16")] == [binary]
    assert lacks("vgg19")[0][0] == "vgg19-qat (cut off)"
    put(tmp_path, "int8_full_val.bin")
    assert lacks("vgg16") == []
    (tmp_path / "gru-quant").mkdir()  # empty
    model, words = lacks("gru")
    assert model[0] == "gru-quant"
    assert words[0] == f"gru-data or {tmp_path}/lac/test.tsv"
    put(tmp_path, "gru-quant/GRU_quant_acc/__model__", "lac/test.tsv")
    assert lacks("gru") == []


def test_where_the_parts_of_a_row_are(tmp_path: Path) -> None:
    put(tmp_path, *ERNIE)
    with pytest.raises(FetchError, match=r"ernie-data: should hold .*label.xnli.dev, but holds .*fetch it anew"):
        located.located(row_of("ernie"), tmp_path)
    put(tmp_path, LABELS, *LSTM, "lac/test.tsv", "gru-quant/GRU_quant_acc/__model__")
    ernie, gru, lstm = (located.located(row_of(name), tmp_path) for name in ("ernie", "gru", "lstm"))
    assert (ernie.model, ernie.data, ernie.labels) == (
        tmp_path / "ernie-qat/Ernie_qat/float",
        tmp_path / ERNIE[1],
        tmp_path / LABELS,
    )
    assert (gru.data, gru.format, gru.labels) == (tmp_path / "lac/test.tsv", "lac", None)
    assert (lstm.fp32, lstm.calibration) == (None, tmp_path / "calibration/lstm")
    put(tmp_path, "lstm-fp32/lstm_fp32_model/model", "gru-data/GRU_eval_data.bin")
    assert located.located(row_of("lstm"), tmp_path).fp32 == tmp_path / "lstm-fp32/lstm_fp32_model"
    assert located.located(row_of("gru"), tmp_path).format == "lac_bin"


def test_rows_that_can_run_and_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such directory"):
        located.sort_out([], tmp_path / "none")
    with pytest.raises(OptionError, match=r"nothing of gru, lstm is whole; gru needs: quant fetch gru-quant"):
        located.sort_out(["lstm", "gru"], tmp_path)
    put(tmp_path, *LSTM)
    [found], lacks = located.sort_out(["lstm", "gru"], tmp_path)
    assert found.row is row_of("lstm")
    assert [(row.name, lack.what) for row, lack in lacks] == [
        ("gru", "gru-quant"),
        ("gru", f"gru-data or {tmp_path}/lac/test.tsv"),
        ("lstm", "lstm-fp32"),
    ]
    assert {row.name for row, _ in located.sort_out([], tmp_path)[1]} == {row.name for row in ROWS}


# --- what is made of a model


def classifier(judged: bool) -> Graph:
    """x -> scores, and with `judged` the layers that score them, as Paddle's old image models had them."""
    program = Program({"x": Var((-1, 4)), **({"label": Var((-1, 1), "int64")} if judged else {})})
    weight, bias = program.param("w", np.eye(4, 3, dtype=np.float32)), program.param("b", np.ones(3, np.float32))
    scores = program.linear("x", weight, bias, lod_level=0)
    if not judged:
        return program.graph([scores])
    one = Var((1,))
    cost = program.op("cross_entropy", {"X": scores, "Label": "label"}, {"Y": Var((-1, 1))})
    mean = program.op("mean", {"X": cost}, {"Out": one})
    picked = {"Out": Var((-1, 1)), "Indices": Var((-1, 1), "int64")}
    best = program.op("top_k", {"X": scores}, picked, k=1)
    reads = {"Out": best, "Indices": best.replace(".out", ".indices"), "Label": "label"}
    accuracy = program.op("accuracy", reads, {"Accuracy": one, "Correct": one, "Total": one})
    return program.graph([mean, accuracy])


def test_scores_come_out_instead_of_their_score() -> None:
    graph = drop_judges(classifier(judged=True))
    assert [op.type for op in graph.ops] == ["mul", "elementwise_add"]
    assert graph.feeds == ("x",)
    assert graph.fetches == (graph.ops[-1].output("Out"),)
    assert "label" not in graph.vars
    plain = classifier(judged=False)
    assert drop_judges(plain) is plain


def test_tags_come_out_instead_of_counts_of_chunks() -> None:
    """As Paddle's tester reads LAC: words and targets in; three counts out."""
    program = Program({"words": Var((-1, 1), "int64", 1), "targets": Var((-1, 1), "int64", 1)})
    program.param("table", np.ones((5, 4), np.float32))
    emission = program.op("lookup_table", {"W": "table", "Ids": "words"}, {"Out": Var((-1, 4), lod_level=1)})
    program.param("crfw", np.ones((6, 4), np.float32))
    tags = program.op(
        "crf_decoding", {"Emission": emission, "Transition": "crfw"}, {"ViterbiPath": Var((-1, 1), "int64", 1)}
    )
    count = Var((1,), "int64")
    slots = ("NumInferChunks", "NumLabelChunks", "NumCorrectChunks")
    first = program.op("chunk_eval", {"Inference": tags, "Label": "targets"}, dict.fromkeys(slots, count))
    counts = [first.replace("numinferchunks", slot.lower()) for slot in slots]
    graph = drop_judges(program.graph([*counts, emission]))
    assert graph.feeds == ("words",)
    assert graph.fetches == (tags, emission)


@pytest.mark.parametrize("name", NETS)
def test_taking_quantizers_out_leaves_the_network(name: str) -> None:
    from quant.quantization.calibration import calibrate

    graph = NETS[name]()
    assert without_quantizers(graph) is graph
    simulated = lower_quantizers(calibrate(graph, data(graph)))
    bare = without_quantizers(simulated)
    kinds = set(bare.op_counts())
    assert not any(kind.startswith(("fake_", "quantize_", "dequantize_")) for kind in kinds)
    added = {"depthwise_conv2d"} if "batch_norm" in graph.op_counts() else set()  # what norm_as_conv made of it
    assert kinds <= {*graph.op_counts(), *added, "assign", "pad3d"}
    assert bare.fetches == simulated.fetches and bare.feeds == simulated.feeds
    assert not any(attr.startswith("weight_") for op in bare.ops for attr in op.attrs)


def test_a_fetched_tensor_that_is_rounded_stays_fetched() -> None:
    scale = {"threshold": 1.0, "levels": 127}
    graph = classifier(judged=False)
    rounded = Op.make("fake_quant", {"X": graph.fetches[0]}, {"Out": "rounded"}, **scale)
    last = graph.vars[graph.fetches[0]]
    bare = without_quantizers(replace(graph, fetches=("rounded",)).evolve((*graph.ops, rounded), {"rounded": last}))
    assert [op.type for op in bare.ops] == ["mul", "elementwise_add", "assign"]
    assert bare.fetches == ("rounded",)


@pytest.mark.parametrize("onnx_format", [True, False], ids=["qdq", "classic"])
def test_fp32_of_a_model_that_paddle_fake_quantized(onnx_format: bool, tmp_path: Path) -> None:
    """Only its weights, on their grid, tell it from the FP32 model that it was made of."""
    graph = residual_net()
    for name in ("source", "split", "runs"):
        (tmp_path / name).mkdir()
    save_dir(replace(graph, ops=tuple(op.with_attrs(op_role=0) for op in graph.ops)), tmp_path / "source")
    paddles_own_ptq(tmp_path / "source", tmp_path / "quant", data(graph), onnx_format, per_channel=True)
    assert split(str(tmp_path / "quant"), str(tmp_path / "split")) == {"quantized": True}
    assert [path.name for path in (tmp_path / "split").iterdir()] == ["fp32"]
    [batch] = data(graph, 1, seed=9)
    both = (graph, load_dir(tmp_path / "split" / "fp32"), load_dir(tmp_path / "quant"))
    [fp32], [bare], [simulated] = (run(some, batch, tmp_path / "runs", NATIVE) for some in both)
    assert sqnr(fp32, simulated) + 3 < sqnr(fp32, bare) < 60


def test_a_split_model_says_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "out").mkdir()
    save_dir(classifier(judged=True), tmp_path / "plain")
    assert split(str(tmp_path / "plain"), str(tmp_path / "out")) == {"quantized": False}
    assert load_dir(tmp_path / "out" / "fp32").feeds == ("x",)


def test_decoded_sequences_may_differ_in_length_but_not_in_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP32 can be a model of its own, so it is looked at before anything is compared."""
    labels = Ragged.of([np.array([digit]) for digit in (0, 1, 2)])

    def ran(precision: str, classes: int, decoded: list[list[int]]) -> embedded.Evaluated:
        digits = Ragged.of([np.array(some, np.int64).reshape(-1, 1) for some in decoded])
        outputs = [np.eye(3, classes, dtype=np.float32), digits]
        told = {"compared": "", "note": "", "overhead": 0.0}
        result = {"model": precision, "precision": precision, "samples": 3, "threads": 1, **told}
        return embedded.Evaluated(tmp_path, result, outputs, labels, proof([], Declared()))

    put(tmp_path, *LSTM, "lstm-fp32/lstm_fp32_model/model")
    found = located.located(row_of("lstm"), tmp_path)
    models = Models(tmp_path, tmp_path, tmp_path, derived=False, weights="")
    runs = [ran("fp32", 10, [[0], [1], [2]]), ran("quant", 10, [[0], [1], [2]]), ran("int8", 10, [[0], [1, 1], [2]])]
    monkeypatch.setattr(embedded, "evaluate", lambda *args, **more: runs)
    records = located.accuracy(found, models)
    assert [record.score("ctc") for record in records] == [1.0, 1.0, pytest.approx(2 / 3)]
    assert [record.variant for record in records] == ["published", "", ""]
    runs[0] = ran("fp32", 12, [[0], [1], [2]])
    with pytest.raises(ModelError, match=r"lstm_fp32_model: gives out float32\[12\], int64\[1\], but .*another model"):
        located.accuracy(found, models)


# --- verdicts and tables


def outcome(metric: str, hits: int, of: int) -> tuple[str, ...]:
    """One answer a sample, the first `hits` right; for f1 one word a sentence."""
    return columns(np.stack([np.arange(of) < hits, *[np.ones(of)] * (2 if metric == "f1" else 1)], 1).astype(np.int64))


def exact(name: str, before: int, int8: int, of: int, share: float = 1.0) -> list[Record]:
    """FP32, simulation and INT8 records of a row; FP32 is as good as the simulation."""
    row = row_of(name)
    common = {"model": name, "isa": "avx512_vnni", "threads": 1, "batch": 50, "samples": of, "origin": "zoo"}
    made = []
    for precision, hits in (("fp32", before), ("quant", before), ("int8", int8)):
        outcomes = {metric: outcome(metric, hits, of) for metric in row.metrics}
        more = {"variant": DERIVED} if precision == "fp32" else {}
        of_int8 = {"int8_share": share, "kernel_isas": ("avx512_core_vnni",), "sqnr_db": {"fp32": 30.0, "quant": 50.0}}
        made.append(
            Record(precision=precision, outcomes=outcomes, **common, **(of_int8 if precision == "int8" else more))
        )  # type: ignore[arg-type]
    return made


def timed(name: str, ratio: float, timing: Timing) -> list[Record]:
    common = {"model": name, "isa": "avx512_vnni", "threads": timing.threads, "batch": timing.batch, "origin": "zoo"}
    return [
        Record(precision=precision, latency_s=(seconds,) * 20, repeat=timing.repeat, **common)  # type: ignore[arg-type]
        for precision, seconds in (("fp32", 0.01 * ratio), ("int8", 0.01))
    ]


def told(name: str, *args: int, share: float = 1.0) -> str:
    return "; ".join(published.misses(exact(name, *args, share=share), []))


def test_a_part_of_the_images_fails_by_its_interval_all_of_them_by_the_estimate() -> None:
    assert told("resnet50", 1532, 1529, 2000) == ""  # 0.15 points, limit 0.1: a part can't tell
    assert "drop 2.35 points, limit 0.10" in told("resnet50", 1532, 1485, 2000)
    assert "drop 0.15 points, limit 0.10" in told("resnet50", 38310, 38235, 50_000)
    assert told("resnet50", 38310, 38260, 50_000) == ""  # 0.1 exactly
    assert "GRU (LAC) f1" in told("gru", 90, 88, 100)  # text rows: all the data there is, so the estimate
    assert told("gru", 90, 90, 100) == ""


def test_lstm_is_judged_against_fp32_by_both_its_scores() -> None:
    text = told("lstm", 950, 930, 1000)
    assert "LSTM hx: drop 2.00 points" in text and "LSTM ctc: drop 2.00 points" in text
    limits = {(line.metric, line.before.precision): line.limit for line in published.lines(exact("lstm", 9, 9, 10))}
    assert limits == {("hx", "quant"): None, ("hx", "fp32"): 0.01, ("ctc", "quant"): None, ("ctc", "fp32"): 0.01}


def test_shares_and_scores_that_show_that_something_else_was_measured() -> None:
    assert "INT8 share 60.0%, expected 98%" in told("resnet50", 1500, 1500, 2000, share=0.6)
    assert told("ernie", 80, 80, 100, share=0.93) == ""
    *others, int8 = exact("resnet50", 1500, 1500, 2000)
    told_of = "; ".join(published.misses([*others, replace(int8, uncounted=("custom",))], []))
    assert "INT8 share 100.0%, but not counted is what these ops multiply: custom" in told_of
    assert "0.10% where the seeds print 76.62%" in told("resnet50", 2, 2, 2000)
    assert not published.passed(exact("resnet50", 2, 2, 2000), [])


def test_tables_like_the_seeds_with_ours_beside() -> None:
    ernie = located.cases_of(row_of("ernie"))[0]
    records = [*exact("resnet50", 1532, 1530, 2000), *exact("ernie", 80, 80, 100)]
    speed = [*timed("resnet50", 4.0, row_of("resnet50").timings[0]), *timed("ernie", 2.0, ernie)]
    lacks = [(row_of("gru"), located.Missing("gru-quant", "quant fetch gru-quant"))]
    found = {table.title: table for table in published.tables(records, speed, lacks, cores=2)}
    assert [title.partition(" (")[0] for title in found] == [
        "Published models: accuracy, image classification",
        "Published models: speed, image classification",
        "Published models: accuracy, text and handwriting",
        "Published models: speed, text and handwriting",
        "Absent",
    ]
    images, image_speed, text, text_speed, absent = found.values()
    assert all(len(row) == len(table.columns) for table in found.values() for row in table.rows)
    assert images.rows[0][:7] == (
        "ResNet-50", "top1", "fake QAT", "SLIM QAT on INT8", "76.62", "76.61", "+0.01",
    )  # fmt: skip
    assert images.rows[0][7:11] == ("2000", "76.60", "76.50", images.rows[0][10])
    assert images.rows[0][10].startswith("+0.10 [")
    assert images.rows[1][2:5] == ("FP32, weights on their grid", "X86 CPU deployment", "76.63")
    assert images.rows[1][-2:] == ("-", "-")
    assert [row[3] for row in text.rows] == ["-", "X86 CPU deployment", "QAT of NLP models", "ERNIE QAT INT8"]
    assert image_speed.rows[0][4:9] == ("X86 CPU deployment", "images/s", "13.23", "50.02", "3.78")
    assert image_speed.rows[0][12:15] == ("25.00", "100.00", "4.00 [4.00, 4.00]")
    assert image_speed.rows[0][-1] == "reached"
    by_threads = {row[3] for row in text_speed.rows if row[-1].startswith("not measured: 20 threads, but 2 cores")}
    assert by_threads == {"20"}
    assert [row[12:14] for row in text_speed.rows if row[3] == "1"] == [("20.00", "10.00")] * 3  # ms
    assert text_speed.rows[0][-1] == "FAILED"  # 2.0, due 3.0
    assert published.passed(records, speed[:2]) and not published.passed(records, speed)
    assert "ERNIE, batch 1, 1 thread(s): FP32 / INT8 2.00, due 3.0: FAILED" in published.misses(records, speed)
    assert absent.rows == (("GRU (LAC)", "gru-quant", "quant fetch gru-quant"),)


def test_a_row_that_no_document_times_is_timed_all_the_same() -> None:
    [timing] = located.cases_of(row_of("googlenet"))
    _, speed = published.tables(exact("googlenet", 70, 70, 100), timed("googlenet", 3.0, timing), [], cores=2)
    assert speed.rows[0][4:9] == ("-", "images/s", "-", "-", "-")
    assert speed.rows[0][-1] == "reached"


def test_decisions_without_scores_have_no_sqnr() -> None:
    records = exact("gru", 90, 90, 100)
    bare = [replace(record, sqnr_db={}) for record in records]
    [accuracy, _] = published.tables(bare, [], [], cores=2)
    assert {row[12] for row in accuracy.rows} == {"-"}
    assert math.isfinite(records[-1].sqnr_db["quant"])
