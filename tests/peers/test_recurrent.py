"""Recurrent rows as ONNX graphs and their decoding, against Paddle; what needs the peers is skipped without them."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.peers.onnx_inputs import arrays_of, copy_decoder, decoder_in, outputs_of
from bench.peers.recurrent import LENGTHS, Decoder, aligned, export_recurrent, viterbi
from quant.datasets.columns import Ragged, values_of
from quant.datasets.readers import batches, open_data
from quant.errors import ModelError
from quant.ir.graph import Graph, Op, Var, load_dir
from quant.runtime.inputs import signature
from quant.runtime.predictor import Predictor, Settings
from quant.suites import embedded
from quant.suites.registry import MODELS, ModelSpec

TEXT = [spec for spec in MODELS if not spec.full]
# Engine, whether its graph reads the lengths, whether it is loaded for the batches' own shapes.
FORMS = [
    ("onnxruntime", True, False),
    ("onnxruntime", False, False),
    ("openvino", False, False),
    ("openvino", False, True),
]


def test_viterbi_finds_the_best_of_all_paths() -> None:
    random = np.random.default_rng(0)
    for steps in (1, 2, 5):
        emissions = random.standard_normal((steps, 3), dtype=np.float32)
        transition = random.standard_normal((5, 3), dtype=np.float32)

        def score(path: tuple[int, ...], e: np.ndarray = emissions, t: np.ndarray = transition) -> float:
            inner = sum(t[2 + a, b] for a, b in itertools.pairwise(path))
            return float(t[0, path[0]] + t[1, path[-1]] + inner + sum(e[place, tag] for place, tag in enumerate(path)))

        best = max(itertools.product(range(3), repeat=steps), key=score)
        assert viterbi(emissions, transition).tolist() == list(best)


def test_alignment_merges_repeats_before_it_drops_blanks() -> None:
    symbols = [9, 1, 1, 9, 1, 2, 2, 9]
    assert aligned(np.eye(10, dtype=np.float32)[symbols], blank=9).tolist() == [1, 1, 2]
    assert aligned(np.eye(10, dtype=np.float32)[[9, 9]], blank=9).tolist() == [-1]


def test_a_decoder_is_what_was_written(tmp_path: Path) -> None:
    steps = [("crf", "emissions", 0), ("sequences", "emissions", 0), ("dense", "scores", 0), ("ctc", "symbols", 2)]
    transition = np.random.default_rng(1).standard_normal((6, 4), dtype=np.float32)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    Decoder(steps, {"emissions": transition}).write(source / "decoder.npz")
    copy_decoder(source, target)
    decoder = decoder_in(target)
    assert decoder is not None and decoder.steps == steps
    assert np.array_equal(decoder.arrays["emissions"], transition)
    padded = np.random.default_rng(2).standard_normal((5, 2, 4)).astype(np.float32)
    symbols = np.eye(3, dtype=np.float32)[[[0, 1], [2, 1], [0, 0], [0, 2], [1, 2]]]
    scores = np.ones((2, 7), np.float32)
    found = outputs_of(
        decoder,
        ("emissions", "scores", "symbols"),
        (padded, scores, symbols),
        {LENGTHS: np.array([5, 3], np.int32)},
    )
    path, emissions, dense, read = found
    assert isinstance(path, Ragged) and path.lengths.tolist() == [5, 3] and path.values.shape == (8, 1)
    assert path.sequence(1)[:, 0].tolist() == viterbi(padded[:3, 1], transition).tolist()
    assert isinstance(emissions, Ragged) and np.array_equal(emissions.sequence(1), padded[:3, 1])
    assert np.array_equal(dense, scores)
    assert isinstance(read, Ragged)
    assert read.sequence(0)[:, 0].tolist() == [0, 0, 1] and read.sequence(1)[:, 0].tolist() == [1, 0]
    assert decoder_in(tmp_path) is None


def test_sequences_are_padded_behind_their_end_time_first() -> None:
    column = Ragged.of([np.full((length, 2), length, np.float32) for length in (3, 1)])
    arrays = arrays_of({"x": column})
    assert arrays["x"].shape == (3, 2, 2) and arrays[LENGTHS].tolist() == [3, 1]
    assert arrays["x"][:, 1, 0].tolist() == [1, 0, 0] and arrays[LENGTHS].dtype == np.int32


def test_mapped_files_become_arrays_that_can_be_written(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert arrays_of({"x": mapped})["x"].flags.writeable


@pytest.fixture(scope="module")
def models() -> Callable[[ModelSpec], Path]:
    return lambda spec: embedded.small_of(spec) / "fp32"


@pytest.mark.parametrize("text", [spec for spec in TEXT if "tags" in spec.max_drop], ids=lambda spec: spec.name)
def test_viterbi_is_paddles(text: ModelSpec, models: Callable[[ModelSpec], Path]) -> None:
    """Tags and emissions of the model itself, on test sentences."""
    graph = load_dir(models(text))
    [decode] = [op for op in graph.ops if op.type == "crf_decoding"]
    transition = graph.params[decode.input("Transition")]
    data = open_data(embedded.data_of(text, text.test), signature(graph), text.format)
    with Predictor(models(text), Settings()) as predictor:
        tags, emissions = predictor(next(batches(data, 50))).values()
    for place in range(50):
        assert viterbi(emissions.sequence(place), transition).tolist() == tags.sequence(place)[:, 0].tolist()


@pytest.mark.parametrize(("engine", "masked", "shaped"), FORMS)
@pytest.mark.parametrize("text", TEXT, ids=lambda spec: spec.name)
def test_an_exported_graph_gives_what_our_fp32_model_gives(
    text: ModelSpec, engine: str, masked: bool, shaped: bool, models: Callable[[ModelSpec], Path], tmp_path: Path
) -> None:
    """On real sentences and records, padded, in two batches of unlike lengths."""
    pytest.importorskip("onnx", reason="the peers aren't installed: pip install '.[peers]'")
    pytest.importorskip(engine, reason="the peers aren't installed: pip install '.[peers]'")
    module = pytest.importorskip(f"bench.peers.{engine}_engine")
    graph = load_dir(models(text))
    export_recurrent(graph, tmp_path, masked=masked)
    data = open_data(embedded.data_of(text, text.test), signature(graph), text.format)
    with Predictor(models(text), Settings()) as predictor:
        for batch in batches(data, 50, 2):
            session = module.load(str(tmp_path), "fp32", 1, "onnx", [batch] if shaped else [])
            feed = session.batch(batch)
            feed.feed()
            feed.run()
            for found, due in zip(feed.read(), predictor(batch).values(), strict=True):
                assert isinstance(found, Ragged) == isinstance(due, Ragged)
                assert np.abs(values_of(found).astype(np.float64) - values_of(due)).max() < 1e-4


def test_an_op_that_has_no_onnx_form_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the peers aren't installed: pip install '.[peers]'")
    shape = Var((-1, 4), lod_level=1)
    op = Op.make("sequence_softmax", {"X": "x"}, {"Out": "y"})
    with pytest.raises(ModelError, match="sequence_softmax"):
        export_recurrent(Graph((op,), {"x": shape, "y": shape}, {}, ("x",), ("y",)), tmp_path, masked=True)
