"""Calibration tables as a person uses them: `quant ptq` writes one, `quant convert` reads one beside a model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fixtures import digits, models
from quant.ir.graph import load_dir, model_size, save_dir
from quant.ir.passes import lift_quantizers
from quant.quantization.calibration_table import read_table, write_table
from quant.suites.registry import find

ROOT = Path(__file__).parents[2]
SPEC = find("mobilenet_v1")


def quant(*args: object, code: int = 0) -> str:
    """stdout of a command; of one that fails, its line on stderr."""
    command = [sys.executable, "-m", "quant", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr or done.stdout
    if not code:
        return done.stdout
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("warning: tier")]
    return line


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The row as a user would have it: fp32/, quant/ with calibration_table.txt beside the model, int8/, test data."""
    place = tmp_path_factory.mktemp("table")
    (place / "fp32").mkdir()
    models.export_small(SPEC.name, place / "fp32")
    digits.write_images("calibration", 100, place / "calibration.bin")
    digits.write_images("test", 200, place / "test.bin")
    given = ["--model", place / "fp32", "--data", place / "calibration.bin", "--output", place / "quant"]
    told = quant("ptq", *given, "--algo", "mse", "--save-calibration-table", place / "quant" / "calibration_table.txt")
    sizes = model_size(place / "fp32"), model_size(place / "quant")
    assert f"on disk: {sizes[0]:,} bytes fp32, {sizes[1]:,} bytes quant ({100 * sizes[1] / sizes[0]:.1f}%)" in told
    convert(place / "quant", place / "int8")
    return place


def convert(source: Path, target: Path, *args: object) -> dict:
    command = ["convert", "--quant-model-path", source, "--int8-model-save-path", target, *args, "--json"]
    return json.loads(quant(*command))


def outputs(model: Path, place: Path) -> np.ndarray:
    saved = place / "outputs.npz"
    quant("eval", "--model", model, "--precision", "int8", "--data", place / "test.bin", "--save-outputs", saved)
    with np.load(saved) as stored:
        [name] = stored.files
        return stored[name]


def test_an_fp32_model_and_a_table_give_the_int8_model_of_ptq(workplace: Path, tmp_path: Path) -> None:
    """Data once, and from then on the table is enough: bit by bit the same outputs."""
    table = workplace / "quant" / "calibration_table.txt"
    entries = read_table(table)
    assert entries.keys() <= load_dir(workplace / "fp32").vars.keys()
    assert {path.name for path in (workplace / "quant").iterdir()} == {
        "inference.pdmodel",
        "inference.pdiparams",
        "calibration_table.txt",
        "sample.json",
    }
    result = convert(workplace / "fp32", tmp_path / "int8", "--calibration-file", table)
    assert result["table"] == {"used": len(entries), "unused": 0, "missing": []}
    assert result["bytes"] == {"fp32": model_size(workplace / "fp32"), "int8": model_size(tmp_path / "int8")}
    assert result["bytes"]["int8"] <= 0.30 * result["bytes"]["fp32"]
    assert np.array_equal(outputs(tmp_path / "int8", workplace), outputs(workplace / "int8", workplace))


def test_a_target_below_vnni_gives_an_fp32_model_7_bit_weights(workplace: Path, tmp_path: Path) -> None:
    table = ["--calibration-file", workplace / "quant" / "calibration_table.txt"]
    for target, levels in (("avx2", 63), ("avx512_core_vnni", 127)):
        convert(workplace / "fp32", tmp_path / target, *table, "--target", target)
        stored = [value.astype(int) for value in load_dir(tmp_path / target).params.values() if value.dtype == np.int8]
        # With 7 bits, weights that meet a signed input (the image) are stored doubled: see docs/architecture.md.
        steps = [value // 2 if levels == 63 and not (value % 2).any() else value for value in stored]
        assert {int(np.abs(value).max()) for value in steps} == {levels}


def test_a_qdq_model_in_the_layout_of_resnet50_vd_qat(workplace: Path, tmp_path: Path) -> None:
    """The seeds' infer_resnet.py: --model_file inference.pdmodel --calibration_file calibration_table.txt."""
    (tmp_path / "qat").mkdir()
    quantized = load_dir(workplace / "quant")
    save_dir(quantized, tmp_path / "qat")
    table = tmp_path / "qat" / "calibration_table.txt"
    before = {op.input("X"): op.attr("threshold") for op in lift_quantizers(quantized).ops if op.type == "fake_quant"}
    entries = read_table(workplace / "quant" / "calibration_table.txt")
    entries = {name: value for name, value in entries.items() if name in quantized.vars}
    assert len(entries) > 25
    spelled = [f"--quant_model_path={tmp_path / 'qat'}", f"--calibration_file={table}"]

    # The model's own thresholds: nothing changes.
    write_table(table, entries)
    told = quant("convert", *spelled, f"--int8_model_save_path={tmp_path / 'same'}")
    assert f"{table}: {len(entries)} entries used, 0 not needed" in told
    sizes = model_size(tmp_path / "qat"), model_size(tmp_path / "same")
    assert f"on disk: {sizes[0]:,} bytes quant, {sizes[1]:,} bytes int8 ({100 * sizes[1] / sizes[0]:.1f}%)" in told
    expected = outputs(workplace / "int8", workplace)
    assert np.array_equal(outputs(tmp_path / "same", workplace), expected)

    # Others: the kernels get them. PaddleSlim's tables also have outputs that nothing rounds, and no model input.
    changed = {name: 2 * value for name, value in entries.items() if name not in quantized.feeds}
    unread = next(name for name in quantized.vars if name not in before)
    write_table(table, {unread: 1.0, **changed})
    result = convert(tmp_path / "qat", tmp_path / "other", "--calibration-file", table)
    assert result["table"] == {"used": len(changed), "unused": 1, "missing": list(quantized.feeds)}
    assert result["bytes"] == {"quant": model_size(tmp_path / "qat"), "int8": model_size(tmp_path / "other")}
    scales = {float(np.float32(op.attr("Scale_in"))) for op in load_dir(tmp_path / "other").ops if op.attr("Scale_in")}
    wanted = {levels / (2 * before[name]) for name in changed for levels in (127, 255)}
    [image] = scales - {float(np.float32(value)) for value in wanted}
    assert image == pytest.approx(127 / before[quantized.feeds[0]])
    coarser = outputs(tmp_path / "other", workplace)
    assert not np.array_equal(coarser, expected)
    assert (coarser.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_what_has_no_entry_is_named(workplace: Path, tmp_path: Path) -> None:
    entries = read_table(workplace / "quant" / "calibration_table.txt")
    [image] = load_dir(workplace / "fp32").feeds
    del entries[image]
    write_table(tmp_path / "table.txt", entries)
    command = ["convert", "--quant-model-path", workplace / "fp32", "--calibration-file", tmp_path / "table.txt"]
    told = quant(*command, "--int8-model-save-path", tmp_path / "int8")
    assert f"no entry for 1 rounded tensors, the ops that read them stay FP32: {image}" in told
    assert "FP32: conv2d(0)" in told


def test_bad_tables_and_options(workplace: Path, tmp_path: Path) -> None:
    """Exit code 2, one line that names file and line, and nothing written."""
    entries = read_table(workplace / "quant" / "calibration_table.txt")
    name, table = list(entries)[-1], tmp_path / "table.txt"
    command = ["convert", "--int8-model-save-path", tmp_path / "int8", "--quant-model-path"]
    for model, text, told in (
        ("fp32", f"{name} 1 2\n", f"line 1: '{name} 1 2' is not"),
        ("quant", f"{name} 1\n{name}x 1\n", f"line 2: the model has no tensor '{name}x'; did you mean '{name}'?"),
        ("fp32", f"{load_dir(workplace / 'fp32').fetches[0]} 1\n", "nothing would be rounded"),
    ):
        table.write_text(text)
        line = quant(*command, workplace / model, "--calibration-file", table, code=2)
        assert line.startswith(f"quant: {table}: ")
        assert told in line
    good = ["--calibration-file", workplace / "quant" / "calibration_table.txt"]
    line = quant(*command, workplace / "quant", *good, "--target", "avx2", code=2)
    assert "--target" in line and "quantized already" in line
    assert "--calibration-file" in quant(*command, workplace / "quant", "--target", "avx2", code=2)
    given = ["--model", workplace / "fp32", "--data", workplace / "calibration.bin", "--output", tmp_path / "quant"]
    place = tmp_path / "absent" / "table.txt"
    line = quant("ptq", *given, "--save-calibration-table", place, code=2)
    assert line.startswith(f"quant: {place}: can't be written")
    assert {path.name for path in tmp_path.iterdir()} == {"table.txt"}
