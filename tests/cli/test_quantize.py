"""quant quantize: what ptq and convert make, in one step; both models or none."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quant.ir.graph import save_dir
from tests.documents import commands_in, parse_quant
from tests.nets import Net

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in Paddle 3's own format, and calibration.npz."""
    root = tmp_path_factory.mktemp("pir")
    environment = {**os.environ, "FLAGS_enable_pir_api": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.pir.models", root, "convolutions"]
    subprocess.run(command, check=True, env=environment)
    images = np.random.default_rng(3).standard_normal((24, 3, 16, 16)).astype(np.float32)
    np.savez(root / "calibration.npz", x0=images)
    return root


@pytest.fixture(params=["legacy", "pir"])
def given(request: pytest.FixtureRequest, place: Path, pir: Path) -> tuple[Path, Path]:
    """A model directory and calibration data."""
    if request.param == "pir":
        return pir / "convolutions", pir / "calibration.npz"
    return place / "fp32", place / "data.npz"


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [(), ("--algo", "avg", "--target", "avx2", "--op-ids-to-skip", "1", "--ops-to-quantize", "conv2d")],
    ids=["defaults", "options"],
)
def test_it_makes_what_ptq_and_convert_make(
    given: tuple[Path, Path], options: tuple[str, ...], call: Call, tmp_path: Path
) -> None:
    model, data = given
    few = ("--batch-size", 8, "--batch-num", 2)
    code, out, err = call(
        "quantize", model, "--calibration", data, "--output", tmp_path / "both", *few, *options, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert call("ptq", "--model", model, "--data", data, "--output", tmp_path / "quant", *few, *options)[0] == 0
    paths = ("--quant-model-path", tmp_path / "quant", "--int8-model-save-path", tmp_path / "int8")
    code, out, err = call("convert", *paths, "--json")
    assert code == 0, err
    due = json.loads(out)
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"quant", "int8"}
    for name in ("quant", "int8"):
        assert files(tmp_path / "both" / name) == files(tmp_path / name)
    for key in ("int8", "fp32", "int8_mac_share", "crossings"):
        assert found[key] == due[key]
    assert found["samples"] == 16
    assert found["models"] == {name: str(tmp_path / "both" / name) for name in ("quant", "int8")}
    assert list(found["bytes"]) == ["fp32", "quant", "int8"]
    assert found["bytes"]["int8"] == due["bytes"]["int8"]
    if options:
        assert "op_ids_to_skip" in " ".join(kept["reason"] for kept in found["kept"])


def test_the_summary_says_what_became_of_it_and_what_to_do_next(place: Path, call: Call, tmp_path: Path) -> None:
    (output := tmp_path / "my models").mkdir()
    data = ("--calibration", place / "data.npz", "--batch-num", 1, "--batch-size", 32)
    code, out, err = call("quantize", place / "fp32", *data, "--output", output, "--op-ids-to-skip", "0")
    assert (code, err) == (0, "")
    told, int8, fp32, *reasons, size, written, compare, bench = out.splitlines()
    assert told == f"{place / 'fp32'}: calibrated on 32 samples (mse)"
    assert int8.startswith("INT8: ") and " of multiply-accumulates" in int8
    assert fp32 == "FP32: 2 ops (conv2d 1, pool2d 1)"
    assert any(line.startswith("  conv2d 1: ") and "op_ids_to_skip" in line for line in reasons)
    assert any(line.startswith("  pool2d 1: ") for line in reasons) and len(reasons) == 2
    assert " bytes fp32, " in size and " bytes quant, " in size and " bytes int8 (" in size
    assert written == f"written: {output}/quant (simulation), {output}/int8 (INT8)"
    for step in (compare, bench):
        [[program, *words]] = commands_in(step.removeprefix("next: "))
        assert program == "quant"
        parse_quant(words)
    assert call(*words, "--json")[0] == 0


def small(root: Path) -> Path:
    """A model without anything to quantize."""
    net = Net()
    root.mkdir()
    save_dir(net.graph(net.act("x")), root)
    return root


def test_bad_input_is_told_in_one_line_and_nothing_is_left(
    place: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    data, output, empty = place / "data.npz", tmp_path / "out", small(tmp_path / "relu")

    def line(model: Path, calibration: Path, *more: object) -> str:
        told = refused("quantize", model, "--calibration", calibration, "--output", output, *more)
        assert [path.name for path in tmp_path.iterdir()] == ["relu"]
        assert ".making" not in told
        return told

    assert str(tmp_path / "nowhere") in line(tmp_path / "nowhere", data)
    assert str(tmp_path / "none.npz") in line(place / "fp32", tmp_path / "none.npz")
    assert str(empty) in line(empty, data)
    assert str(place / "quant") in line(place / "quant", data)
    assert "'KLL'" in line(place / "fp32", data, "--algo", "KLL")
    assert "99" in line(place / "fp32", data, "--op-ids-to-skip", "99")
    assert "avx9" in line(place / "fp32", data, "--target", "avx9")


def test_what_is_there_stays(place: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for output in (tmp_path / "out", tmp_path / "out" / "mine"):
        told = refused("quantize", place / "fp32", "--calibration", place / "data.npz", "--output", output)
        assert str(output) in told
    assert files(tmp_path) == {"out/mine": b"mine"}


def test_a_conversion_that_fails_leaves_nothing_and_names_the_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quant.errors import ConversionError
    from quant.suites import commands

    def fail(*args: object, **more: object) -> None:
        raise ConversionError("no op became INT8: a reason")

    monkeypatch.setattr(commands, "convert", fail)
    model = str(place / "fp32")
    with pytest.raises(ConversionError) as caught:
        commands.quantize(model, str(place / "data.npz"), str(tmp_path / "out"), batch_num=1)
    assert str(caught.value) == f"{model}: no op became INT8: a reason"
    assert list(tmp_path.iterdir()) == []
