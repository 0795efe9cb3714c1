"""Data looked over before it is measured on: labels, what is shared between the sets, what there is to say."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures import lac
from quant.datasets.readers import write_bin
from quant.errors import DataError
from quant.evaluation.data_check import check_data
from quant.ir.graph import save_dir
from tests.nets import Net, residual_net

COUNT = 230  # more than two batches


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of images [8, 8, 8] with 6 classes."""
    directory = tmp_path_factory.mktemp("model")
    save_dir(residual_net(), directory)
    return str(directory)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((COUNT, 8, 8, 8)).astype(np.float32)


def write(path: Path, images: np.ndarray, labels: Any) -> str:
    write_bin(path, iter([(images, np.asarray(labels))]), len(images))
    return str(path)


def test_what_there_is_to_say(model: str, images: np.ndarray, tmp_path: Path) -> None:
    images = images.copy()
    images[[50, 229]] = images[7]
    labels = np.arange(COUNT) % 4
    labels[:10] = 3
    test = write(tmp_path / "test.bin", images, labels)
    assert check_data(model, test) == {
        "samples": COUNT,
        "classes": 4,
        "of_classes": 6,
        "most_frequent": {"label": 3, "share": pytest.approx((labels == 3).mean())},
        "repeated": 2,
        "calibration": None,
        "remarks": [],
        "summary": "230 samples; 4 of 6 classes, label 3 has 28.3%; 2 equal an earlier one",
    }
    other = write(tmp_path / "calibration.bin", images[:3] + 1, [0, 0, 0])
    found = check_data(model, test, calibration=other)
    assert found["calibration"] == 3 and found["summary"].endswith("none among the 3 of the calibration data")


def test_calibration_data_are_no_test_data(model: str, images: np.ndarray, tmp_path: Path) -> None:
    labels = np.zeros(COUNT, np.int64)
    test = write(tmp_path / "test.bin", images[:215], labels[:215])
    leaks = write(tmp_path / "leaks.bin", images[209:], labels[209:])
    with pytest.raises(DataError, match=r"leaks.bin: sample 0 is also in .*test.bin, sample 209: a model isn't tested"):
        check_data(model, test, calibration=leaks)
    apart = write(tmp_path / "apart.bin", images[215:], labels[215:])
    assert check_data(model, test, calibration=apart)["calibration"] == COUNT - 215


@pytest.mark.parametrize("bad", [-1, 6])
def test_every_label_is_looked_at(model: str, images: np.ndarray, tmp_path: Path, bad: int) -> None:
    labels = np.zeros(COUNT, np.int64)
    labels[COUNT - 1] = bad
    test = write(tmp_path / "test.bin", images, labels)
    with pytest.raises(DataError, match=f"test.bin: label {bad} of sample {COUNT - 1} is out of range 0..5"):
        check_data(model, test)


def test_data_without_labels_are_refused(model: str, images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=images[:4])
    with pytest.raises(DataError, match=r"test\.npz: has no labels"):
        check_data(model, str(tmp_path / "test.npz"))


def test_labels_that_are_no_classes(
    model: str, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", images[:4])
    (tmp_path / "targets_module.py").write_text(
        "import numpy as np\ndef read(path):\n    return {'x': np.load(path)}, [1e3, -2.0, 0.5, 0.5]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = check_data(model, str(tmp_path / "x.npy"), format="targets_module:read")
    sys.modules.pop("targets_module")
    assert found["classes"] is None and found["most_frequent"] is None and found["summary"] == "4 samples"


def test_sequences(tmp_path: Path) -> None:
    """A model that gives out decisions doesn't show how many there are; sentences are told apart by their ids."""
    net = Net()
    net.vars["x"] = net.vars["x"]._replace(shape=(-1, 1), dtype="int64")
    table = net.param(20_941, 4)
    out = net.op("lookup_table_v2", {"Ids": "x", "W": table}, shape=(-1, 4))
    kinds = net.op("arg_max", {"X": out}, shape=(-1,), axis=1)
    net.vars[kinds] = net.vars[kinds]._replace(dtype="int64")
    (tmp_path / "model").mkdir()
    save_dir(net.graph(kinds), tmp_path / "model")
    for split in ("test", "calibration"):
        (tmp_path / split).mkdir()
        lac.write_sentences(split, 40, tmp_path / split / "data")
    places = [str(tmp_path / split / "data") for split in ("test", "calibration")]
    model = str(tmp_path / "model")
    found = check_data(model, places[0], calibration=places[1], format="lac")
    assert (found["samples"], found["calibration"], found["of_classes"]) == (40, 40, None)
    assert 1 < found["classes"] <= 57 and 0 < found["most_frequent"]["share"] < 1
    with pytest.raises(DataError, match="sample 0 is also in"):
        check_data(model, places[0], calibration=places[0], format="lac")
