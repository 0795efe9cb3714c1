"""Every command on data of 24x32 for models that are declared 16x16."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quant.ir.graph import load_dir, save_dir
from quant.suites.entries import gated
from quant.suites.manifest.schema import read
from tests.resizable import CLASSES, convolutional, flattened, images

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]

MANIFEST = """
[[model]]
name = "wide"
fp32 = "fp32"
data = "test.npz"
calibration = "calibration.npz"
metric = "top1"
[model.thresholds]
drop = 0.2
"""


def write_data(path: Path, count: int, *size: int, seed: int) -> None:
    label = np.random.default_rng(seed).integers(0, CLASSES, count)
    np.savez(path, x=images(count, *size, seed=seed), label=label)


@pytest.fixture
def shop(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: fp32 and fixed, two models; data of 24x32, and some of 16x16."""
    for name, graph in {"fp32": convolutional(), "fixed": flattened()}.items():
        (tmp_path / name).mkdir()
        save_dir(graph, tmp_path / name)
    write_data(tmp_path / "test.npz", 60, 24, 32, seed=1)
    write_data(tmp_path / "calibration.npz", 20, 24, 32, seed=2)
    write_data(tmp_path / "small.npz", 20, 16, 16, seed=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quant.process.isolate._Told.lines", set())
    return tmp_path


def made(call: Call) -> None:
    """quant and int8, of 24x32."""
    code, _, err = call("ptq", "--model", "fp32", "--data", "calibration.npz", "--output", "quant")
    assert code == 0, err
    assert err.count("note: ") == 1
    assert (
        "note: calibration.npz: input 'x' is declared [-1, 4, 16, 16]; the data are [4, 24, 32], which is what the "
        "model is run with\n"
    ) in err
    code, _, err = call("convert", "--quant-model-path", "quant", "--int8-model-save-path", "int8")
    assert code == 0, err


def test_making_measuring_and_comparing(shop: Path, call: Call) -> None:
    made(call)
    for name in ("quant", "int8"):
        graph = load_dir(shop / name)
        assert [graph.vars[feed].shape for feed in graph.feeds] == [(-1, 4, 24, 32)]
    assert load_dir(shop / "fp32").vars["x"].shape == (-1, 4, 16, 16)
    models = ["--fp32-model", "fp32", "--quant-model", "quant", "--int8-model", "int8", "--data", "test.npz"]
    code, out, err = call("compare", *models, "--json", "--acc-diff-threshold", "0.5")
    found = json.loads(out)
    assert code == 0 and found["sqnr_db"]["fp32"] > 20 and found["sqnr_db"]["quant"] > 60, (found, err)
    assert err.count("note: test.npz: input 'x' is declared [-1, 4, 16, 16]") == err.count("note: ") == 1
    for name in ("fp32", "int8"):
        code, out, err = call("eval", "--model", name, "--precision", name, "--data", "test.npz", "--json")
        assert code == 0 and json.loads(out), err


def test_two_models_are_timed_on_the_same_input(shop: Path, call: Call, refused: Refused) -> None:
    made(call)
    both = ["bench", "--model", "int8", "--against", "fp32"]
    assert refused(*both) == (
        "quant: int8 would be timed on input 'x' of [1, 4, 24, 32], fp32 on one of [1, 4, 16, 16]: give both the same "
        "by --data or --input-shape x=\n"
    )
    for same in (["--data", "test.npz"], ["--input-shape", "x=1,4,24,32"]):
        code, _, err = call(*both, *same)
        assert code == 0, err


def test_looking_into_it(shop: Path, call: Call) -> None:
    made(call)
    code, out, err = call("analyze", "int8", "--fp32-model", "fp32", "--quant-model", "quant", "--data", "test.npz")
    assert code == 0, err
    for model in ("fp32", "int8"):
        code, out, err = call("profile", model, "--data", "test.npz", "--json")
        assert code == 0 and "ih24" in out, err


def test_tune_writes_models_of_the_calibration_data(shop: Path, call: Call) -> None:
    given = ["--fp32-model", "fp32", "--calibration", "calibration.npz", "--data", "test.npz", "--output", "tuned"]
    code, _, err = call("tune", *given, "--metric", "top1", "--max-drop", "0.3", "--time-budget", "10")
    assert code == 0, err
    assert load_dir(shop / "tuned" / "int8").vars["x"].shape == (-1, 4, 24, 32)


def test_suite(shop: Path, call: Call) -> None:
    (shop / "quant.toml").write_text(MANIFEST)
    code, out, err = call("suite", "--manifest", "quant.toml", "--output-dir", "out", "--history", "history")
    run = json.loads((shop / "out" / "report.json").read_text())
    assert code in (0, 1) and not run["failures"], (out, err)  # whether so small a net gains speed isn't the question
    assert {record["precision"] for record in run["records"] if record["outcomes"]} == {"fp32", "quant", "int8"}
    [entry] = read(shop / "quant.toml").models
    assert len(gated(entry).accuracy(lambda *_: None)) == 3


def test_data_of_several_sizes_are_each_run_at_their_own(shop: Path, call: Call) -> None:
    made(call)
    given = ["--model", "int8", "--precision", "int8", "--data", "small.npz"]
    code, _, err = call("eval", *given)
    assert code == 0, err
    assert "note: small.npz: input 'x' is declared [-1, 4, 24, 32]; the data are [4, 16, 16]" in err


@pytest.mark.parametrize(
    "command",
    [
        ["ptq", "--model", "fixed", "--data", "calibration.npz", "--output", "quant"],
        ["eval", "--model", "fixed", "--precision", "fp32", "--data", "test.npz"],
        ["bench", "--model", "fixed", "--precision", "fp32", "--data", "test.npz"],
        ["profile", "fixed", "--data", "test.npz"],
    ],
    ids=lambda command: command[0],
)
def test_a_layer_for_one_size(shop: Path, refused: Refused, command: list[str]) -> None:
    file = next(part for part in command if part.endswith(".npz"))
    assert refused(*command).startswith(
        f"quant: {file}: array 'x' holds samples of [4, 24, 32], the model reads [4, 16, 16], and its op 'matmul_v2' "
        f"(t4) can't take those: "
    )
    assert not (shop / "quant").exists()


def test_a_layer_for_one_size_in_a_suite(shop: Path, refused: Refused) -> None:
    (shop / "quant.toml").write_text(MANIFEST.replace('"fp32"', '"fixed"'))
    told = refused("suite", "--manifest", "quant.toml", "--output-dir", "out", "--history", "history")
    assert "holds samples of [4, 24, 32], the model reads [4, 16, 16]" in told
