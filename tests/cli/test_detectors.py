"""Every command on detectors that end in NMS: FP32 and INT8 keep unlike numbers of boxes, or none at all."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quant.suites.entries import gated
from quant.suites.manifest.schema import read
from tests.detectors import write_detector

Call = Callable[..., tuple[int, str, str]]

MODULE = """
import numpy as np

def near(outputs, labels):
    "Of boxes and scores: as many cells above the threshold as boxes FP32 finds, or nearly."
    boxes, scores = outputs
    return np.abs((scores.max(1) > 0.85).sum(1) - labels[:, 0]) < 4

def found(outputs, labels):
    "Of what NMS kept: so many boxes of each image."
    rows, counts = outputs
    assert rows.shape == (counts.sum(), 6)
    return np.abs(counts - labels[:, 0]) < 4
"""
MANIFEST = """
[[model]]
name = "{name}"
fp32 = "{place}/fp32"
quant = "{place}/quant"
data = "{place}/data.npz"
metric = "own_boxes:{metric}"
{more}
[model.thresholds]
drop = 0.1
"""
BEFORE = "compared before the number of rows depends on values: t8, t12 for nms.Out, nms.Index, nms.NmsRoisNum"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("detectors")
    write_detector(root / "some")
    write_detector(root / "none", threshold=2.0)
    (root / "own_boxes.py").write_text(MODULE)
    return root


@pytest.fixture
def shop(places: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which has the metrics."""
    (tmp_path / "own_boxes.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def dirs(place: Path) -> list[object]:
    return ["--fp32-model", place / "fp32", "--quant-model", place / "quant", "--int8-model", place / "int8"]


def test_the_nets_are_what_they_should_be(places: Path, shop: Path, call: Call) -> None:
    rows = {}
    for name in ("some", "none"):
        for precision in ("fp32", "int8"):
            run = ["--model", places / name / precision, "--precision", precision, "--data", places / name / "data.npz"]
            asked = [*run, "--metric", "own_boxes:found", "--output-name", "nms.Out", "--output-name", "nms.NmsRoisNum"]
            code, out, err = call("eval", *asked, "--save-outputs", "out.npz", "--json")
            assert code == 0, err
            told = json.loads(out)
            assert told["outputs"] == ["nms.Out", "nms.NmsRoisNum"] and told["compared"] == ""
            with np.load("out.npz") as stored:
                rows[name, precision] = len(stored["nms.Out"])
    assert rows["some", "fp32"] != rows["some", "int8"] and rows["some", "int8"] > 100
    assert rows["none", "fp32"] == rows["none", "int8"] == 0


@pytest.mark.parametrize("name", ["some", "none"])
def test_compare(places: Path, shop: Path, call: Call, name: str) -> None:
    given = [*dirs(places / name), "--data", places / name / "data.npz", "--acc-diff-threshold", "0.1"]
    code, out, err = call("compare", *given, "--metric", "own_boxes:near")
    assert code == 0 and BEFORE in out, err
    found = json.loads(call("compare", *given, "--metric", "own_boxes:near", "--json")[1])
    assert found["sqnr_db"]["fp32"] > 20 and found["sqnr_db"]["quant"] > 25
    assert set(found["compared"].values()) == {BEFORE}


def test_what_nms_kept_is_scored_where_somebody_asks(places: Path, shop: Path, call: Call) -> None:
    chosen = ["--output-name", "nms.Out", "--output-name", "nms.NmsRoisNum", "--metric", "own_boxes:found"]
    given = [*dirs(places / "some"), "--data", places / "some" / "data.npz", "--acc-diff-threshold", "0.1"]
    code, out, err = call("compare", *given, *chosen, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["own_boxes:found"]["fp32"] == 1 and found["sqnr_db"].keys() <= {"quant"}
    code, out, err = call("compare", *given, "--metric", "own_boxes:found", "--output-name", "nms.Rows")
    assert code == 2 and "unknown output of" in err and err.count("\n") == 1


def test_suite_report_and_what_a_gate_compares(places: Path, shop: Path, call: Call) -> None:
    (shop / "quant.toml").write_text(
        MANIFEST.format(name="boxes", place=places / "some", metric="near", more="")
        + MANIFEST.format(
            name="final", place=places / "some", metric="found", more='outputs = ["nms.Out", "nms.NmsRoisNum"]'
        )
    )
    code, out, err = call("suite", "--manifest", "quant.toml", "--output-dir", "out", "--history", "history")
    text = (shop / "out" / "report.md").read_text()
    run = json.loads((shop / "out" / "report.json").read_text())
    assert code in (0, 1) and not run["failures"], (out, err)  # whether so small a net gains speed isn't the question
    assert f"boxes: {BEFORE}." in text and "final: compared" not in text
    exact = [record for record in run["records"] if record["outcomes"]]
    assert {(record["model"], record["precision"]) for record in exact} == {
        (model, precision) for model in ("boxes", "final") for precision in ("fp32", "quant", "int8")
    }
    assert BEFORE in (shop / "out" / "report.html").read_text()
    entries = read(shop / "quant.toml").models
    gate = [record.compared for entry in entries for record in gated(entry).accuracy(lambda *_: None)]
    assert gate == [BEFORE] * 3 + [""] * 3


def test_tune(places: Path, shop: Path, call: Call) -> None:
    place = places / "some"
    given = ["--fp32-model", place / "fp32", "--calibration", place / "calibration.npz", "--data", place / "data.npz"]
    options = ["--metric", "own_boxes:near", "--output", "tuned", "--max-drop", "0.0", "--time-budget", "15"]
    code, out, err = call("tune", *given, *options)
    assert code in (0, 1), err
    assert BEFORE in out
    assert json.loads((shop / "tuned" / "tuning.json").read_text())["compared"] == BEFORE


@pytest.mark.parametrize("name", ["some", "none"])
def test_what_runs_whole_models(places: Path, shop: Path, call: Call, name: str) -> None:
    place = places / name
    models = ["--fp32-model", place / "fp32", "--data", place / "data.npz"]
    for command in (
        ["analyze", place / "int8", *models, "--quant-model", place / "quant", "--json"],
        ["profile", place / "int8", *models],
        ["bench", "--model", place / "int8", "--precision", "int8", "--data", place / "data.npz"],
    ):
        code, out, err = call(*command)
        assert code == 0, err
        if command[0] == "analyze":
            compared = {op["output"] for op in json.loads(out)["ops"]}
            assert "t8" in compared and not [output for output in compared if output.startswith("nms.")]
