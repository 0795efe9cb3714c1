"""Users' own metrics and readers: what they may give, and what is said of anything else."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.datasets import user_functions
from quant.datasets.columns import Padded, Ragged, Signature
from quant.datasets.readers import batches, check_labels, files_behind, format_of, open_data
from quant.errors import DataError, OptionError
from quant.evaluation.parts import pack, unpack
from quant.metrics.scores import METRICS, metric_of, paired
from quant.results.record import Record, columns

MODULE = """
import numpy as np

def accuracy(outputs, labels):
    print("on stdout")
    return outputs[0].argmax(1) == labels

def confidence(outputs, labels):
    return outputs[0][np.arange(len(labels)), labels]

def f1(outputs, labels):
    found, there = outputs[0].argmax(1) == 1, labels == 1
    return np.stack([2 * (found & there), found.astype(int) + there], 1)

def short(outputs, labels):
    return np.ones(len(labels) - 1)

def text(outputs, labels):
    return ["good"] * len(labels)

def negative(outputs, labels):
    return -np.ones(len(labels))

def not_finite(outputs, labels):
    return np.full(len(labels), np.nan)

def broken(outputs, labels):
    return outputs[7] / 0

def leaves(outputs, labels):
    raise SystemExit("enough\\nof this")

constant = 3

def read(path):
    return {"x": np.load(path / "x.npy")}, np.load(path / "y.npy")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that can be imported after `custom.importable`."""
    (tmp_path / "own_module.py").write_text(MODULE)
    (tmp_path / "damaged_module.py").write_text("def f(:\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    user_functions.importable(tmp_path)
    yield "own_module"
    sys.modules.pop("own_module", None)


SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], np.float32)
LABELS = np.array([0, 1, 0])


def test_a_function_is_a_metric(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    metric = metric_of(f"{module}:accuracy")
    counts = metric.counts([SCORES], LABELS)
    assert counts.tolist() == [[1, 1], [1, 1], [0, 1]] and counts.dtype == np.int64
    assert float(metric.score(counts.sum(0))) == pytest.approx(2 / 3)
    assert capsys.readouterr() == ("", "on stdout\n")  # stdout is for results
    counts = metric_of(f"{module}:confidence").counts([SCORES], LABELS)
    assert counts == pytest.approx(np.array([[0.9, 1], [0.8, 1], [0.4, 1]]))
    counts = metric_of(f"{module}:f1").counts([SCORES], LABELS)
    assert counts.tolist() == [[0, 0], [2, 2], [0, 1]]
    assert float(metric.score(counts.sum(0))) == pytest.approx(2 / 3)


def test_stored_counts_are_scored_without_the_function() -> None:
    metric = metric_of("no_such_package.anywhere:f1")
    assert metric.score(np.array([[1.5, 2.0], [0.0, 0.0], [0.2, 0.4]])).tolist() == [0.75, 0.0, 0.5]
    counts = np.array([[0.25, 1.0], [0.5, 1.0]])
    record = Record("m", "int8", "amx", 1, 50, samples=2, outcomes={"no.such:f": columns(counts)})
    again = Record.from_json(json.loads(json.dumps(vars(record))))
    assert np.array_equal(again.counts("no.such:f"), counts) and again.score("no.such:f") == 0.375


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_module:short", "own_module:short gave float64[2] for 3 samples; a metric gives numbers [3], or [3, 2]"),
        ("own_module:text", "own_module:text gave <U4[3] for 3 samples"),
        ("own_module:negative", "own_module:negative gave -1.0 for sample 0; what a sample scores lies in 0..1"),
        ("own_module:not_finite", "own_module:not_finite gave nan for sample 0"),
        ("own_module:broken", "own_module:broken raised IndexError: list index out of range"),
        ("own_module:leaves", "own_module:leaves raised SystemExit: enough of this"),
        ("own_module:constant", "own_module:constant is no function, but int"),
        ("own_module:absent", "own_module:absent can't be imported: AttributeError: .*no attribute 'absent'"),
        ("nowhere.at.all:f", "nowhere.at.all:f can't be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("damaged_module:f", r"damaged_module:f can't be imported: SyntaxError: .*\(damaged_module.py, line 1\)"),
    ],
)
def test_what_a_metric_may_not_give(module: str, name: str, message: str) -> None:
    metric = metric_of(name)  # nothing is imported yet
    with pytest.raises(OptionError, match="^" + message.replace("[", r"\[")) as raised:
        metric.counts([SCORES], LABELS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a:", ":f", "a b:f", "a:f(1)", "a:b:c", "../x:f", "a:1f"])
def test_a_name_has_a_shape(name: str) -> None:
    assert not user_functions.is_function_name(name)
    with pytest.raises(OptionError, match=r"doesn't name a function: package\.module:function"):
        metric_of(name)
    with pytest.raises(OptionError, match="doesn't name a function"):
        format_of(Path("x.npz"), name)


def test_shares_are_paired_by_bootstrap_and_hits_by_newcombe() -> None:
    random = np.random.default_rng(0)
    hits = np.stack([random.random(400) < 0.8, np.ones(400)], 1).astype(np.int64)
    later = hits.copy()
    later[:12, 0] = 0
    exact = paired(hits, later, "top1")
    assert paired(hits.astype(float), later.astype(float), "a.b:f") == exact
    shares = np.stack([random.random(400), np.ones(400)], 1)
    drop = paired(shares, shares * [0.9, 1], "a.b:f")
    assert drop.drop == pytest.approx(0.1 * shares[:, 0].mean())
    assert drop.low < drop.drop < drop.high and drop.high - drop.low < 0.02
    assert (drop.lost, drop.won) == (400, 0) and drop.p_value < 0.001


# --- readers


def reads(monkeypatch: pytest.MonkeyPatch, module: str, given: Any) -> str:
    """The name of a reader that gives what is given."""
    own = __import__(module)
    monkeypatch.setattr(own, "given", lambda path: given, raising=False)
    return f"{module}:given"


def test_a_reader_of_a_directory(module: str, tmp_path: Path) -> None:
    place = tmp_path / "data"
    (place / "deep").mkdir(parents=True)
    images = np.arange(24, dtype=np.float32).reshape(3, 8)
    np.save(place / "x.npy", np.asfortranarray(images))
    np.save(place / "y.npy", np.array([1, 0, 1], np.int32))
    (place / "deep" / "note").write_text("part of it")
    name = f"{module}:read"
    data = open_data(place, {"x": ((8,), "float32")}, name)
    assert np.array_equal(next(batches(data, 5))["x"], images) and data.inputs["x"][:2].flags.c_contiguous
    assert data.labels is not None and data.labels.dtype == np.int64
    assert format_of(place, name) == name
    files = files_behind(place, name)
    assert {role: path.name for role, path in files.items()} == {
        "data/deep/note": "note",
        "data/x.npy": "x.npy",
        "data/y.npy": "y.npy",
        "reader": "own_module.py",
    }
    assert files_behind(place / "x.npy", name).keys() == {"data", "reader"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked").write_text("part of it too")
    (place / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(place)
    assert files_behind(place, name).keys() - files.keys() == {"data/link/linked"}
    with pytest.raises(DataError, match="carries its labels itself"):
        open_data(place, {"x": ((8,), "float32")}, name, labels=place / "y.npy")
    with pytest.raises(DataError, match="absent: no such data file"):
        open_data(place / "absent", {"x": ((8,), "float32")}, name)
    with pytest.raises(OptionError, match="own_module:read raised NotADirectoryError"):
        open_data(place / "x.npy", {"x": ((8,), "float32")}, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:f", "nowhere:f can't be imported: there is no module 'nowhere'"),
        ("nowhere.at:f", "nowhere.at:f can't be imported: ModuleNotFoundError"),
        ("builtins:open", "builtins:open: its module has no file"),
    ],
)
def test_a_reader_without_a_file_is_refused(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        files_behind(Path("x.npz"), name)


IDS = [np.array([3, 1, 2]), np.array([5]), np.array([4, 4])]


def test_sequences_become_what_the_model_reads(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def opened(given: Any, shape: tuple[int, ...], dtype: str = "int64", labels: Any = None) -> Any:
        name = reads(monkeypatch, module, ({"ids": given, "unread": None}, labels))
        return open_data(tmp_path, {"ids": (shape, dtype)}, name)

    lod = opened(IDS, (1,)).inputs["ids"]
    assert isinstance(lod, Ragged) and lod.values.shape == (6, 1) and lod.lengths.tolist() == [3, 1, 2]
    features = opened([np.zeros((length, 4), np.float32) for length in (2, 2, 2)], (4,), "float32").inputs["ids"]
    assert isinstance(features, Ragged) and features.values.shape == (6, 4)
    dense = opened(IDS, (-1,)).inputs["ids"]
    assert isinstance(dense, Padded) and dense[:3].tolist() == [[3, 1, 2], [5, 0, 0], [4, 4, 0]]
    assert opened([np.arange(4)] * 3, (-1,)).inputs["ids"].shape == (3, 4)
    assert opened([np.arange(4)] * 3, (4,)).inputs["ids"].shape == (3, 4)
    tags = opened(IDS, (1,), labels=[[1, 2, 3], [4], [5, 6]]).labels
    assert isinstance(tags, Ragged) and tags.sequence(2).tolist() == [5, 6]
    tags = opened(IDS, (1,), labels=[[1, 2, 3], [], [5]]).labels
    assert tags.values.dtype == np.int64 and tags.lengths.tolist() == [3, 0, 1]
    assert opened(IDS, (1,), labels=[1, 2, 3]).labels.tolist() == [1, 2, 3]
    boxes = opened(IDS, (1,), labels=[[0.5, 1.5]] * 3).labels
    assert boxes.shape == (3, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nonsense", "gave str, not"),
        (({"x": np.zeros((2, 4), np.float32)}, None, 3), "gave tuple, not"),
        (({"y": 1}, None), r"no array for the model's input 'x'; own_module:given gave \['y'\]"),
        (({"x": np.zeros((2, 4))}, None), "array 'x' is float64, but the model reads float32"),
        (({"x": np.zeros((2, 5, 4), "f")}, None), r"array 'x' holds samples of \[5, 4\], the model reads \[4\]"),
        (({"x": np.float32(1)}, None), r"array 'x' holds samples of \[\]"),
        (({"x": ["a", "b"]}, None), "'x' is <U1, not numbers"),
        (({"x": {}}, None), "'x' is object, not numbers"),
        (({"x": []}, None), "no samples in 'x'"),
        (({"x": np.zeros((0, 4), np.float32)}, np.zeros(0)), r"holds \[0\] samples; one number above 0 is needed"),
        (({"x": np.zeros((2, 4), np.float32)}, [1, 2, 3]), r"holds \[2, 3\] samples"),
        (({"x": [np.zeros((2, 4), "f"), np.zeros((1, 3), "f")]}, None), r"sample 1 of 'x' is \[1, 3\]; the model"),
        (({"x": [np.zeros((2, 4), "f"), np.zeros((0, 4), "f")]}, None), "sample 1 of 'x' is empty"),
        (({"x": [np.zeros((2, 4), "f"), np.zeros((1, 4))]}, None), "sample 1 of 'x' is float64, but"),
        (({"x": np.zeros((2, 4), np.float32)}, [[1, 2], [[3]]]), "labels differ in more than their length"),
        (({"x": np.zeros((2, 4), np.float32)}, 3), "labels are one number, not one a sample"),
        (({"x": np.zeros((2, 4), np.float32)}, ["cat", "dog"]), "'labels' is <U3, not numbers"),
    ],
)  # fmt: skip
def test_what_a_reader_may_not_give(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: Any, message: str
) -> None:
    signature: Signature = {"x": ((4,), "float32")}
    with pytest.raises(DataError, match=message) as raised:
        open_data(tmp_path, signature, reads(monkeypatch, module, given))
    assert str(raised.value).startswith(f"{tmp_path}: ") and "\n" not in str(raised.value)


def test_labels_that_are_no_classes_are_not_checked_as_such(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inputs = {"x": np.zeros((2, 4), np.float32)}

    def labels(given: Any) -> Any:
        data = open_data(tmp_path, {"x": ((4,), "float32")}, reads(monkeypatch, module, (inputs, given)))
        return check_labels(data, 3)

    assert labels([1.5, -2.0]).tolist() == [1.5, -2.0]
    assert labels([[7, 8], [9, 1]]).tolist() == [[7, 8], [9, 1]]
    with pytest.raises(DataError, match=r"label 3 of sample 1 is out of range 0..2"):
        labels([0, 3])
    with pytest.raises(DataError, match="has no labels"):
        labels(None)
    for given in ([1.5, -2.0], [[7, 8], [9, 1]]):
        with pytest.raises(ValueError, match="labels aren't one class a sample"):
            METRICS["top1"].counts([np.zeros((2, 3), np.float32)], labels(given))
    kept = unpack(pack([np.zeros(2)], labels([1.5, -2.0])), 1)[1]
    assert isinstance(kept, np.ndarray) and kept.tolist() == [1.5, -2.0]
