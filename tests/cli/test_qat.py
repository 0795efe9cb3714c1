"""`quant qat` as a person uses it: their own model and data, a checkpoint, and what can be wrong with those."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quant.cli import main
from quant.datasets.readers import write_bin
from quant.errors import OutputError
from quant.ir.graph import load_dir, save_dir
from quant.ir.numerics import bits_of
from quant.process import isolate
from quant.quantization.targets import weight_levels
from tests.nets import residual_net

Run = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 model and labelled images."""
    place = tmp_path_factory.mktemp("qat")
    (place / "fp32").mkdir()
    save_dir(residual_net(), place / "fp32")
    random = np.random.default_rng(0)
    images = random.standard_normal((40, 8, 8, 8)).astype(np.float32)
    write_bin(place / "train.bin", iter([(images, random.integers(0, 6, 40))]), 40)
    return place


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: stdout, or the one line on stderr of a refusal."""

    def call(*args: object, code: int = 0) -> str:
        capfd.readouterr()
        assert main([str(arg) for arg in args]) == code, capfd.readouterr().err
        out, err = capfd.readouterr()
        if code != 2:
            return out
        lines = [line for line in err.splitlines() if not line.startswith("warning: tier")]
        assert out == "" and len(lines) == 1 and lines[0].startswith("quant: "), err
        return lines[0]

    return call


def own(place: Path, output: Path) -> list[object]:
    small = ["--steps", 4, "--batch-size", 10, "--learning-rate", 0.001]
    return ["qat", "--model", place / "fp32", "--data", place / "train.bin", "--output", output, *small]


def test_own_model_to_int8(place: Path, tmp_path: Path, run: Run) -> None:
    trained = json.loads(run(*own(place, tmp_path / "quant"), "--json"))
    assert trained["steps"] == len(trained["losses"]) == 4
    assert "conv2d" in run(
        "convert", "--quant-model-path", tmp_path / "quant", "--int8-model-save-path", tmp_path / "int8"
    )
    stored = load_dir(tmp_path / "quant").params.values()
    assert any(value.dtype == np.int8 for value in stored)
    scored = run("eval", "--model", tmp_path / "int8", "--precision", "int8", "--data", place / "train.bin", "--json")
    assert json.loads(scored)["int8_ops"] > 0


def test_a_configuration_file_is_used(place: Path, tmp_path: Path, run: Run) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"weight_bits": 4, "quantize_op_types": ["conv2d"]}))
    run(*own(place, tmp_path / "quant"), "--config", config)
    graph = load_dir(tmp_path / "quant")
    weights = [value for value in graph.params.values() if value.dtype == np.int8]
    assert weights and max(np.abs(value.astype(int)).max() for value in weights) == 7


def test_a_second_run_goes_on_from_the_checkpoint(
    place: Path, tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the rule of quant.storage.checkpoint. A finished run leaves no checkpoint."""
    point = tmp_path / "checkpoint.npz"
    whole = json.loads(run(*own(place, tmp_path / "one"), "--checkpoint", point, "--json"))
    assert (whole["resumed_from"], len(whole["losses"]), point.exists()) == (0, 4, False)
    arguments = {
        "model": str(place / "fp32"),
        "data": str(place / "train.bin"),
        "output": str(tmp_path / "none"),
        "config": {"weight_bits": bits_of(weight_levels(None))},
        "training": {"steps": 4, "batch": 10, "rate": 0.001},
        "checkpoint": str(point),
    }
    with pytest.raises(OutputError, match="no space left"):
        isolate.call("tests.cut_off:qat", arguments)
    assert point.exists() and not (tmp_path / "none").exists()
    left = f"{point}: left by a run that was cut off, with other inputs"
    shutil.copyfile(place / "train.bin", tmp_path / "other.bin")
    with (tmp_path / "other.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\x3f")
    other = [tmp_path / "other.bin" if part == place / "train.bin" else part for part in own(place, tmp_path / "two")]
    assert run(*other, "--checkpoint", point, code=2) == f"quant: {left}: data data; --fresh starts anew"
    assert run(*own(place, tmp_path / "two"), "--checkpoint", point, "--steps", 3, code=2).startswith(
        f"quant: {left}: training steps (4, now 3)"
    )
    main([str(part) for part in [*own(place, tmp_path / "two"), "--checkpoint", point]])
    out, err = capfd.readouterr()
    assert f"{point}: 4 steps of a run that was cut off are reused; --fresh starts anew\n" in err
    assert "resumed at 4" in out and not point.exists()
    one, two = (load_dir(tmp_path / name).params for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    with pytest.raises(OutputError, match="no space left"):
        isolate.call("tests.cut_off:qat", arguments)
    anew = json.loads(run(*own(place, tmp_path / "three"), "--checkpoint", point, "--fresh", "--json"))
    assert (anew["resumed_from"], anew["losses"]) == (0, whole["losses"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"quantize_op_types": ["elmentwise_add"]}', "'elementwise_add'"),
        ('{"weight_bits": 9}', "weight_bits: 9"),
        ("[1]", "config.json: not a JSON object"),
        ("{", "config.json: not JSON"),
        (None, "config.json: can't be read"),
    ],
)
def test_a_bad_configuration_is_refused(content: str | None, told: str, place: Path, tmp_path: Path, run: Run) -> None:
    config = tmp_path / "config.json"
    if content is not None:
        config.write_text(content)
    assert told in run(*own(place, tmp_path / "quant"), "--config", config, code=2)
    assert not (tmp_path / "quant").exists()


def test_bad_input_is_told_in_a_line_and_nothing_is_left(place: Path, tmp_path: Path, run: Run) -> None:
    quant, point = tmp_path / "quant", tmp_path / "checkpoint.npz"
    assert "either a row, or --model and --data" in run("qat", "--output", quant, code=2)
    assert "either a row, or --model and --data" in run("qat", "lstm", *own(place, quant)[1:], code=2)
    assert "did you mean 'mobilenet_v1'" in run("qat", "mobilenet-v1", "--output", quant, code=2)
    assert "gru: has no training data" in run("qat", "gru", "--output", quant, code=2)
    assert "40 samples, but a batch takes 64" in run(*own(place, quant)[:7], code=2)
    assert "no such model directory" in run(*own(place / "absent", quant), code=2)
    point.write_bytes(b"nonsense")
    assert "checkpoint.npz: left by a run that was cut off, whose inputs can't be read; --fresh" in run(
        *own(place, quant), "--checkpoint", point, code=2
    )
    assert point.read_bytes() == b"nonsense"
    nowhere = place / "train.bin" / "checkpoint.npz"
    assert "can't be written" in run(*own(place, quant), "--checkpoint", nowhere, code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.npz"}
    quant.mkdir()
    (quant / "mine").write_text("")
    assert "not an empty directory" in run(*own(place, quant), code=2)
