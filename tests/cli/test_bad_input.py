"""Every bad input: exit code 2, one line on stderr naming the file or option, nothing on stdout, nothing written."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures import digits
from quant.cli import main
from quant.datasets.readers import write_bin
from quant.ir.graph import Attr, load_dir, save_dir
from tests.nets import Net, residual_net

Fail = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_dir(residual_net(), directory)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.bin"
    random = np.random.default_rng(0)
    write_bin(path, iter([(random.standard_normal((20, 8, 8, 8)).astype(np.float32), random.integers(0, 6, 20))]), 20)
    return path


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fail:
    def run(*args: object) -> str:
        capfd.readouterr()
        assert main([str(arg) for arg in args]) == 2
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("warning: tier")]
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("quant: ")
        assert "Traceback" not in err
        return lines[0]

    return run


def test_models(fails: Fail, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pir").mkdir()
    (tmp_path / "pir" / "inference.json").write_text("{}")
    for name, told in (("absent", "no such model directory"), ("empty", "no program"), ("pir", "not a PIR program")):
        line = fails("eval", "--model", tmp_path / name, "--data", images)
        assert told in line and str(tmp_path / name) in line


@pytest.mark.parametrize("file", ["inference.pdmodel", "inference.pdiparams"])
@pytest.mark.parametrize("command", ["ptq", "convert", "eval", "bench"])
def test_damaged_model_files(fails: Fail, model: Path, images: Path, tmp_path: Path, file: str, command: str) -> None:
    bad, output = tmp_path / "bad", tmp_path / "output"
    bad.mkdir()
    for path in model.iterdir():
        content = path.read_bytes()
        (bad / path.name).write_bytes(content[: len(content) // 3] if path.name == file else content)
    args = {
        "ptq": ("--model", bad, "--data", images, "--output", output),
        "convert": ("--quant-model-path", bad, "--int8-model-save-path", output),
        "eval": ("--model", bad, "--data", images),
        "bench": ("--model", bad),
    }
    assert file in fails(command, *args[command])
    assert not output.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bad"}


def test_a_model_that_kills_paddle_is_a_message(fails: Fail, images: Path, tmp_path: Path) -> None:
    """A program that parses and that Paddle can't bear: an fc whose weight is missing from its inputs."""
    graph = residual_net()
    ops = tuple(replace(op, inputs={"X": op.inputs["X"]}) if op.type == "matmul_v2" else op for op in graph.ops)
    save_dir(graph.evolve(ops), tmp_path)
    assert str(tmp_path) in fails("eval", "--model", tmp_path, "--data", images)


def test_data(fails: Fail, model: Path, images: Path, tmp_path: Path) -> None:
    content = images.read_bytes()
    cases = {
        "short.bin": (content[:-5], "truncated"),
        "count.bin": (struct.pack("<q", 21) + content[8:], "wrong count"),
        "labels.bin": (content[:-8] + struct.pack("<q", 6), "label 6 of sample 19 is out of range"),
        "notes.txt": (b"", "unknown data format"),
        "junk.npz": (b"junk", "not an .npz file"),
    }
    for name, (text, told) in cases.items():
        (tmp_path / name).write_bytes(text)
        line = fails("eval", "--model", model, "--data", tmp_path / name)
        assert told in line and name in line
    digits.write_images("test", 4, tmp_path / "digits.bin")
    assert "values each" in fails("eval", "--model", model, "--data", tmp_path / "digits.bin")
    np.savez(tmp_path / "dtype.npz", x=np.zeros((4, 8, 8, 8)), label=np.zeros(4, np.int64))
    assert "float64" in fails("eval", "--model", model, "--data", tmp_path / "dtype.npz")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    assert "pickled" in fails("eval", "--model", model, "--data", tmp_path / "pickled.npz")


def test_nan_in_calibration_and_in_outputs(fails: Fail, model: Path, tmp_path: Path) -> None:
    batch = np.zeros((40, 8, 8, 8), np.float32)
    batch[35, 0, 0, 0] = np.inf
    np.savez(tmp_path / "inf.npz", x=batch, label=np.zeros(40, np.int64))
    line = fails("ptq", "--model", model, "--data", tmp_path / "inf.npz", "--output", tmp_path / "output")
    assert "inf.npz: calibration batch 1: NaN or Inf in the data" in line
    assert not (tmp_path / "output").exists()
    assert "NaN or Inf in output" in fails(
        "eval", "--model", model, "--data", tmp_path / "inf.npz", "--batch-size", "7"
    )


def test_data_that_calibrate_nothing(
    fails: Fail, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "zero.npz", x=np.zeros((4, 8, 8, 8), np.float32))
    line = fails("ptq", "--model", model, "--data", tmp_path / "zero.npz", "--output", tmp_path / "output")
    assert "zero.npz: every value of 'x' is 0: that calibrates nothing" in line
    np.savez(tmp_path / "one.npz", x=np.ones((4, 8, 8, 8), np.float32))
    ptq = ("ptq", "--model", model, "--data", tmp_path / "one.npz", "--output", tmp_path / "output")
    assert main([str(argument) for argument in ptq]) == 0
    assert f"warning: {tmp_path / 'one.npz'}: every value of input 'x' is 1\n" in capfd.readouterr().err


def test_outputs(fails: Fail, model: Path, images: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("precious")
    line = fails("ptq", "--model", model, "--data", images, "--output", full)
    assert "not an empty directory" in line
    assert (full / "mine").read_text() == "precious"
    assert "can't be written" in fails("ptq", "--model", model, "--data", images, "--output", "/proc/nothing/here")
    assert "can't be written" in fails("suite", "--model", "resnet50", "--output-dir", "/proc/nothing")


def test_options(fails: Fail, model: Path, images: Path, tmp_path: Path) -> None:
    ptq = ("ptq", "--model", model, "--data", images, "--output", tmp_path / "output")
    assert "did you mean 'conv2d'" in fails(*ptq, "--ops-to-quantize", "conv2b")
    assert "unknown op id 77" in fails(*ptq, "--op-ids-to-skip", "77")
    assert "'x' is not an op id" in fails(*ptq, "--op-ids-to-skip", "1,x")
    assert "unknown calibration algorithm" in fails(*ptq, "--algo", "magic")
    assert "unknown ISA" in fails(*ptq, "--target", "sse9")
    assert "did you mean 'resnet50'" in fails("suite", "--model", "resnet5")
    assert "unknown precision 'int4'" in fails("eval", "--model", model, "--data", images, "--precision", "int4")
    assert "unknown metric" in fails("eval", "--model", model, "--data", images, "--metric", "top7")
    assert "--threads" in fails("bench", "--model", model, "--threads", "zero")
    assert "--input-shape" in fails("bench", "--model", model, "--input-shape", "x=1,-3")
    assert "physical cores only" in fails("bench", "--model", model, "--instances", "1000")
    assert "no --threads" in fails("bench", "--model", model, "--instances", "1", "--threads", "1,2")
    assert "--against: not with --instances" in fails("bench", "--model", model, "--instances", "1", "--against", model)
    assert "either a row, or --model" in fails("bench")
    assert "either a row, or --model" in fails("bench", "resnet50", "--data", images)
    assert "did you mean 'resnet50'" in fails("bench", "resnet5")
    assert "isn't timed" in fails("bench", "resnet50", "--precision", "quant")
    assert "No such command" in fails("evaluate")
    assert "--data" in fails("eval", "--model", model)
    assert not (tmp_path / "output").exists()


def test_a_model_that_calibration_can_not_run_is_named(fails: Fail, images: Path, tmp_path: Path) -> None:
    """By its directory, not by the scratch directory that calibration runs it in."""
    graph = residual_net()
    conv = graph.ops[0]
    bad = replace(conv, attrs={**conv.attrs, "groups": Attr.of(3)})
    (tmp_path / "bad").mkdir()
    save_dir(replace(graph, ops=(bad, *graph.ops[1:])), tmp_path / "bad")
    line = fails("ptq", "--model", tmp_path / "bad", "--data", images, "--output", tmp_path / "output")
    assert line.startswith(f"quant: {tmp_path / 'bad'}: Paddle can't ") and "quant-calibrate" not in line
    assert not (tmp_path / "output").exists()


def test_a_fault_of_our_own_is_no_failed_gate(
    fails: Fail, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 is a gate's. What happened is kept for whoever is told of it."""

    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("quant.process.isolate.call", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = fails("ptq", "--model", model, "--data", images, "--output", tmp_path / "new")
    [file] = tmp_path.iterdir()
    assert line == f"quant: internal error (ZeroDivisionError: by zero); the traceback is in {file}"
    assert 'raise ZeroDivisionError("by zero")' in file.read_text()


LONG = "a" * 300  # longer than a file's name can be: what the file system says of it is no "there is no such file"


@pytest.mark.parametrize(
    "command",
    [
        "eval --model {long} --data {images}",
        "eval --model {model} --data {long}.npz",
        "ptq --model {model} --data {images} --output {out}/{long}",
        "convert --quant-model-path {long} --int8-model-save-path {out}/new",
        "tune --fp32-model {model} --calibration {long}.npz --data {images} --output {out}/new",
        "suite --manifest {long}",
        "suite --zoo {long}",
        "history --history {long}",
        "preprocess --data-dir {long} --output-file {out}/new",
        "profile ./{long}",
    ],
)
def test_names_that_no_file_can_have(fails: Fail, model: Path, images: Path, tmp_path: Path, command: str) -> None:
    line = fails(*command.format(long=LONG, model=model, images=images, out=tmp_path).split())
    assert "File name too long" in line and LONG in line
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_without_int8_is_an_error(fails: Fail, model: Path, tmp_path: Path) -> None:
    line = fails("convert", "--quant-model-path", model, "--int8-model-save-path", tmp_path / "int8")
    assert "no op became INT8" in line and str(model) in line
    assert list(tmp_path.iterdir()) == []


def test_open_shapes_are_asked_for(fails: Fail, tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.act("x"))
    save_dir(replace(graph, vars={**graph.vars, "x": graph.vars["x"]._replace(shape=(-1, 8, -1, -1))}), tmp_path)
    assert "--input-shape x=" in fails("bench", "--model", tmp_path, "--precision", "fp32")


def test_json_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["cpu", "--json"]) == 0
    out, _ = capfd.readouterr()
    assert json.loads(out)["cores"] >= 1


def test_the_fixture_model_is_fine(model: Path) -> None:
    """So that the failures above are about what they say."""
    assert load_dir(model).op_counts()["conv2d"] == 5
