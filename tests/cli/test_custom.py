"""Users' own metrics and readers on the command line, without a manifest: from the working directory."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.cli import main

MODULE = """
import numpy as np

def read(path):
    print("reading", path)
    return {"x": np.load(path / "x.npy")}, np.load(path / "label.npy")

def other(path):
    return {"x": np.load(path / "x.npy")[::-1].copy()}, np.load(path / "label.npy")

def top1(outputs, labels):
    print("scoring")
    return outputs[0].argmax(1) == labels

def confidence(outputs, labels):
    scores = np.exp(outputs[0] - outputs[0].max(1, keepdims=True))
    return scores[np.arange(len(labels)), labels] / scores.sum(1)

def near(outputs, labels):
    return np.abs(outputs[0] - labels).max(1) < 1

def broken(outputs, labels):
    raise KeyError("what")

def lost(path):
    return {"y": 1}, None
"""
COUNT = 1200  # more than one part


@pytest.fixture
def shop(place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a module of one's own, and data as a directory."""
    (tmp_path / "images").mkdir()
    (tmp_path / "own_shop.py").write_text(MODULE)
    with np.load(place / "data.npz") as stored:
        np.save(tmp_path / "images" / "x.npy", stored["x"][:COUNT])
        np.save(tmp_path / "images" / "label.npy", stored["label"][:COUNT])
        np.savez(tmp_path / "images.npz", x=stored["x"][:COUNT], label=stored["label"][:COUNT])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as the console script has it
    monkeypatch.delitem(sys.modules, "own_shop", raising=False)
    return tmp_path


def told(capfd: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    """What a command that ends well prints as JSON."""
    capfd.readouterr()
    assert main([*map(str, args), "--json"]) in (0, 1)
    return dict(json.loads(capfd.readouterr().out))


def test_a_reader_and_a_metric(place: Path, shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = ("--model", place / "int8", "--precision", "int8")
    own = ("--data", "images", "--format", "own_shop:read", "--metric", "own_shop:top1,own_shop:confidence")
    found = told(capfd, "eval", *model, *own)
    usual = told(capfd, "eval", *model, "--data", "images.npz", "--metric", "top1")
    assert found["samples"] == COUNT and found["metrics"]["own_shop:top1"] == usual["metrics"]["top1"]
    assert 0.2 < found["metrics"]["own_shop:confidence"] < 1
    assert told(capfd, "eval", *model, *own)["stored_samples"] == COUNT


def test_labels_of_any_shape_need_no_reader(place: Path, shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Real numbers, a row a sample: what the FP32 model puts out, half of it spoiled."""
    told(capfd, "eval", "--model", place / "fp32", "--data", "images.npz", "--save-outputs", "out.npz")
    with np.load("out.npz") as stored, np.load("images.npz") as given:
        [name] = stored.files
        labels = stored[name] + np.where(np.arange(COUNT) % 2, 0, 9)[:, None]
        np.savez("maps.npz", x=given["x"], label=labels.astype(np.float32))
    data = ("--data", "maps.npz", "--metric", "own_shop:near")
    assert told(capfd, "eval", "--model", place / "fp32", *data)["metrics"] == {"own_shop:near": 0.5}
    assert main(["eval", "--model", str(place / "fp32"), "--data", "maps.npz", "--metric", "top1"]) == 2
    assert "metric 'top1' doesn't fit" in capfd.readouterr().err


def test_results_are_kept_for_the_data_and_the_reader(
    place: Path, shop: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stored(reader: str = "own_shop:read") -> int:
        asked = ("--model", place / "fp32", "--data", "images", "--format", reader, "--metric", "top1")
        return int(told(capfd, "eval", *asked)["stored_samples"])

    assert (stored(), stored(), stored("own_shop:other")) == (0, COUNT, 0)
    (shop / "images" / "note").write_text("one more file of the data")
    assert (stored(), stored()) == (0, COUNT)
    with (shop / "own_shop.py").open("a") as file:
        file.write("# changed\n")
    assert (stored(), stored()) == (0, COUNT)


def test_precisions_are_compared_by_it(place: Path, shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models = ("--fp32-model", place / "fp32", "--quant-model", place / "quant", "--int8-model", place / "int8")
    data = ("--data", "images", "--format", "own_shop:read")
    own = told(capfd, "compare", *models, *data, "--metric", "own_shop:top1")
    usual = told(capfd, "compare", *models, *data, "--metric", "top1")
    assert own["drop"] == usual["drop"] and own["verdict"] == usual["verdict"]  # right and wrong are exact either way
    shares = told(capfd, "compare", *models, *data, "--metric", "own_shop:confidence", "--sequential")
    drop = shares["drop"]
    assert drop["low"] < drop["drop"] < drop["high"] and abs(drop["drop"]) < 0.01


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--metric", "own_shop:broken"), "quant: own_shop:broken raised KeyError: 'what'"),
        (("--metric", "own_shop:absent"), "quant: own_shop:absent can't be imported: AttributeError"),
        (("--metric", "no_shop:f"), "quant: no_shop:f can't be imported: ModuleNotFoundError: No module named 'no_s"),
        (("--metric", "own_shop:"), "quant: 'own_shop:' doesn't name a function: package.module:function"),
        (("--format", "own_shop:lost", "--metric", "top1"), "quant: images: no array for the model's input 'x'; own_"),
        (("--format", "own_shop:read"), "quant: --format own_shop:read: data of a reader's own has no usual metric"),
        (("--format", "no_shop:f", "--metric", "top1"), "quant: no_shop:f can't be imported: there is no module"),
        (("--data", "images.npz", "--format", "own_shop:read", "--metric", "top1"), "quant: own_shop:read raised NotA"),
        (("--format", "npz", "--metric", "top1"), "quant: images: no such data file"),
    ],
)
def test_faults_are_one_line(
    place: Path, shop: Path, capfd: pytest.CaptureFixture[str], args: tuple[str, ...], line: str
) -> None:
    defaults = {"--model": str(place / "fp32"), "--data": "images", "--format": "own_shop:read"}
    given = dict(zip(args[::2], args[1::2], strict=True))
    capfd.readouterr()
    assert main(["eval", *(part for pair in {**defaults, **given}.items() for part in pair)]) == 2
    out, err = capfd.readouterr()
    lines = [told for told in err.splitlines() if told != "scoring"]
    assert out == "" and len(lines) == 1 and lines[0].startswith(line)


def test_a_directory_is_calibrated_with(place: Path, shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--data", "images", "--format", "own_shop:read", "--batch-num", "2", "--output", str(shop / "out"))
    assert main(["ptq", "--model", str(place / "fp32"), *options]) == 0
    assert "from 64 samples" in capfd.readouterr().out
    shutil.rmtree(shop / "out")
