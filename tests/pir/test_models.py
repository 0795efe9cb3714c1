"""Whole PIR models: Paddle's own bits, layers' names kept, and through the main job as legacy models go."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.cli import main
from quant.errors import ModelError
from quant.ir.graph import load_dir, model_size
from quant.ir.passes import lower_quantizers
from quant.ir.pir import read_program
from quant.ir.pir.translate import LAYER
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.predictor import Predictor, Settings
from tests.nets import NATIVE, run
from tests.pir.models import MODELS
from tests.pir.oracle import differences, translated_back

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pir-models")
    environment = {**os.environ, "FLAGS_enable_pir_api": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.pir.models", root, *MODELS]
    subprocess.run(command, check=True, env=environment)
    return root


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_paddles_own_bits(exported: Path, name: str) -> None:
    data = np.load(exported / name / "io.npz")
    for settings, tolerance in ((NATIVE, 0.0), (Settings(executor="paddle"), 1e-5)):
        with Predictor(exported / name, settings) as predictor:
            found = list(predictor({one: data[one] for one in predictor.inputs}).values())
        for number, values in enumerate(found):
            due = data[f"y{number}"]
            assert np.abs(values - due).max() <= tolerance * max(1.0, np.abs(due).max())


@pytest.mark.parametrize("name", MODELS)
def test_paddles_translator_gives_back_the_program_that_was_read(exported: Path, name: str, tmp_path: Path) -> None:
    original = read_program(exported / name / "inference.json")
    assert differences(original, translated_back(load_dir(exported / name), tmp_path)) == []


def test_a_large_program_is_read_in_a_moment(exported: Path) -> None:
    program = exported / "densenet121" / "inference.json"
    begun = time.process_time()
    read_program(program)
    assert time.process_time() - begun < 1.0


def test_layers_keep_their_names(exported: Path) -> None:
    graph = load_dir(exported / "convolutions")
    layers = [op.attr(LAYER, "") for op in graph.ops if op.type == "conv2d"]
    assert len(set(layers)) == 2 and all("Conv2D" in layer for layer in layers)


def test_int8_of_a_pir_model_equals_its_simulation(exported: Path, tmp_path: Path) -> None:
    graph = load_dir(exported / "convolutions")
    random = np.random.default_rng(3)
    batches = [{"x0": random.standard_normal((8, 3, 16, 16)).astype(np.float32)} for _ in range(3)]
    simulated = lower_quantizers(calibrate(graph, batches, algo="mse"))
    converted, coverage = convert(simulated)
    assert coverage.fp32["conv2d"] == 0 and coverage.int8["conv2d"] == 2
    due, found = (
        run(one, batches[0], tmp_path, how)[0] for one, how in ((simulated, NATIVE), (converted, Settings("int8")))
    )
    assert np.abs(due - found).max() <= 0.02 * np.abs(due).max()


def test_the_main_job_takes_a_pir_directory(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(4)
    for name in ("calibration", "test"):
        images = random.standard_normal((32, 3, 16, 16)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x0=images, label=random.integers(0, 5, 32))
    fp32, quant, int8 = str(exported / "convolutions"), str(tmp_path / "quant"), str(tmp_path / "int8")
    assert main(["ptq", "--model", fp32, "--data", str(tmp_path / "calibration.npz"), "--output", quant]) == 0
    assert main(["convert", "--quant-model-path", quant, "--int8-model-save-path", int8]) == 0
    data = str(tmp_path / "test.npz")
    assert main(["eval", "--model", fp32, "--data", data, "--json"]) == 0
    compared = ["compare", "--fp32-model", fp32, "--quant-model", quant, "--int8-model", int8, "--data", data]
    assert main(compared) in (0, 1), capsys.readouterr().err
    assert main(["bench", "--model", int8, "--against", fp32]) == 0
    assert model_size(exported / "convolutions") > 0


def _damaged(document: dict[str, Any], kind: str) -> str:
    ops = document["program"]["regions"][0]["blocks"][0]["ops"]
    relu = next(op for op in ops if op["#"] == "1.relu")
    if kind == "an unknown op":
        relu["#"] = "1.never_heard_of"
    elif kind == "control flow":
        relu["#"], relu["regions"] = "1.if", [{"blocks": []}]
    elif kind == "another version":
        document["base_code"]["version"] = 99
    elif kind == "no pir":
        document["base_code"]["magic"] = "other"
    elif kind == "a lost value":
        relu["I"][0]["%"] = 10**6
    elif kind == "an array of tensors":
        relu["O"][0]["TT"] = {"#": "1.t_dtensor_array", "D": []}
    elif kind == "a list for a number":
        conv = next(op for op in ops if op["#"] == "1.conv2d")
        next(one for one in conv["A"] if one["N"] == "groups")["AT"]["D"] = {"a": 1}
    return json.dumps(document)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("an unknown op", ["pd_op.never_heard_of", "ReLU", "no legacy form"]),
        ("control flow", ["pd_op.if", "ReLU", "control flow"]),
        ("another version", ["version 99"]),
        ("no pir", ["not a PIR program"]),
        ("a lost value", ["pd_op.relu", "nothing wrote"]),
        ("an array of tensors", ["t_dtensor_array"]),
        ("a list for a number", ["pd_op.conv2d", "Conv2D"]),
        ("truncated", ["truncated"]),
        ("deep", ["nested too deeply"]),
        ("other parameters", ["inference.pdiparams"]),
        ("no parameters", ["inference.pdiparams", "no such file"]),
        ("cut parameters", ["inference.pdiparams", "truncated"]),
    ],
)
def test_what_is_damaged_is_one_line_that_names_it(exported: Path, tmp_path: Path, kind: str, words: list[str]) -> None:
    text = (exported / "convolutions" / "inference.json").read_text()
    params = (exported / "convolutions" / "inference.pdiparams").read_bytes()
    if kind == "truncated":
        text = text[: len(text) // 2]
    elif kind == "deep":
        text = "[" * 10**5
    elif kind == "other parameters":
        params = (exported / "resnet18" / "inference.pdiparams").read_bytes()
    elif kind == "cut parameters":
        params = params[:-100]
    else:
        text = _damaged(json.loads(text), kind)
    (tmp_path / "inference.json").write_text(text)
    if kind != "no parameters":
        (tmp_path / "inference.pdiparams").write_bytes(params)
    with pytest.raises(ModelError) as caught:
        load_dir(tmp_path)
    told = str(caught.value)
    assert str(tmp_path) in told and "\n" not in told
    assert all(word in told for word in words), told
