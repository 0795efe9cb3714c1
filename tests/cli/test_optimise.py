"""`quant convert --optimize speed`: what is written, printed and refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quant.ir.graph import load_dir
from quant.ir.int8_regions import int8_op

ROOT = Path(__file__).parents[2]


def quant(*args: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "quant", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def convert(place: Path, output: Path, *options: object) -> "subprocess.CompletedProcess[str]":
    return quant("convert", "--quant-model-path", place / "quant", "--int8-model-save-path", output, *options)


SPEED = ("--optimize", "speed", "--time-budget", "3")


def test_the_directory_holds_the_model_and_what_was_decided(place: Path, tmp_path: Path) -> None:
    done = convert(place, tmp_path / "int8", *SPEED, "--batch-size", "4", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    written = json.loads((tmp_path / "int8" / "decisions.json").read_text())
    assert result["decisions"] == written
    assert written["schema"] == 1
    assert written["budget_s"] == 3.0
    assert written["cpu"]["batch"] == 4
    assert written["choice"] in ("optimised", "int8", "fp32")
    found = any(int8_op(op) for op in load_dir(tmp_path / "int8").ops)
    assert found == (written["choice"] != "fp32") == bool(result["int8"])
    assert sorted(result["bytes"]) == (["int8", "quant"] if found else ["fp32", "quant"])


def test_the_terminal_tells_what_was_chosen_and_for_which_cpu(place: Path, tmp_path: Path) -> None:
    done = convert(place, tmp_path / "int8", *SPEED, "--isa", "avx2")
    assert done.returncode == 0, done.stderr
    assert "as fast as FP32" in done.stdout
    assert "of 3 s on avx2, 1 thread, batch 1" in done.stdout
    written = json.loads((tmp_path / "int8" / "decisions.json").read_text())
    assert written["cpu"]["tier"] == written["cpu"]["isa"] == "avx2"
    assert ("the FP32 model was written" in done.stdout) == (written["choice"] == "fp32")
    for entry in written["left_in_fp32"]:
        assert f"FP32: {entry['op_type']}({entry['op_id']})" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--optimize", "size"), "unknown optimization 'size'"),
        (("--time-budget", 10), "--time-budget: only with --optimize"),
        (("--isa", "avx2"), "--isa: only with --optimize"),
        (("--input-shape", "x=1,8,8,8"), "--input-shape: only with --optimize"),
        ((*SPEED, "--debug", "dots"), "--debug: not with --optimize"),
        ((*SPEED, "--input-shape", "x=1,zero"), "--input-shape: 'x=1,zero' is not name=1,3,224,224"),
        ((*SPEED, "--op-ids-to-skip", "999"), "unknown op id 999"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    place: Path, tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    done = convert(place, tmp_path / "int8", *options)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
