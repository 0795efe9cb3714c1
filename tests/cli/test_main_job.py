"""The main job as a person does it: FP32 model in, INT8 model out, proof that it is accurate and faster."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle.inference as engine
import pytest

from fixtures import digits, models
from quant.ir.graph import load_dir, save_dir
from quant.suites.registry import ModelSpec, find

ROOT = Path(__file__).parents[2]


def quant(*args: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "quant", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr or done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 model in an old layout, calibration and test data: what a user brings."""
    place = tmp_path_factory.mktemp("main")
    (place / "exported").mkdir()
    models.export_small("mobilenet_v1", place / "exported")
    (place / "fp32").mkdir()
    save_dir(load_dir(place / "exported"), place / "fp32", "separate")
    digits.write_images("calibration", 200, place / "calibration.bin")
    digits.write_images("test", 600, place / "test.bin")
    return place


def test_from_fp32_to_proven_int8(workplace: Path) -> None:
    spec: ModelSpec = find("mobilenet_v1")
    test, simulated, int8 = workplace / "test.bin", workplace / "quant", workplace / "int8"
    fp32, calibration = workplace / "fp32", workplace / "calibration.bin"
    quant("ptq", "--model", fp32, "--data", calibration, "--output", simulated, "--algo", "mse")
    # The seeds' spelling of the options: underscores, and values behind an equals sign.
    spelled = [f"--quant_model_path={simulated}", f"--int8_model_save_path={int8}"]
    assert "conv2d" in quant("convert", *spelled, "--debug", workplace / "dots")
    drawn = sorted(path.name for path in (workplace / "dots").glob("*.dot"))
    assert drawn[0] == "01_lift_quantizers.dot"
    assert drawn[-1].endswith("emit_int8.dot")
    assert "conv2d(0)" in (workplace / "dots" / drawn[-2]).read_text()

    saving = ["--save-outputs", workplace / "outputs.npz"]
    scored = json.loads(quant("eval", "--model", int8, "--precision", "int8", "--data", test, *saving, "--json"))
    assert scored["samples"] == 600
    assert scored["metrics"]["top1"] > spec.floor
    assert scored["int8_mac_share"] >= spec.min_int8_share
    assert scored["int8_ops"] > 25
    assert scored["fp32_ops"] == 0
    assert scored["overhead"] < 0.15  # 3 ms a batch of tiny images; at full size the bound is 5%
    assert {"model", "precision", "isa", "latency_ms"} <= scored.keys()

    dirs = ["--fp32-model", fp32, "--quant-model", simulated, "--int8-model", int8]
    compared = json.loads(quant("compare", *dirs, "--data", test, "--json"))
    assert compared["on_point"] is True
    assert abs(compared["engine_drop"]["drop"]) <= spec.max_engine_gap

    sizes = ["--threads", "1", "--batch-size", "1,4"]
    timed = json.loads(quant("bench", "--model", int8, "--against", fp32, *sizes, "--json"))["results"]
    assert [(row["threads"], row["batch"]) for row in timed] == [(1, 1), (1, 4)]
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in timed)

    timed = json.loads(quant("bench", "--model", int8, "--threads", "1,2", "--json"))["results"]
    assert [row["threads"] for row in timed] == [1, 2]
    assert (timed[0]["speedup"], timed[0]["efficiency"]) == (1.0, 1.0)
    assert timed[1]["speedup_low"] <= timed[1]["speedup"] <= timed[1]["speedup_high"]
    assert timed[1]["efficiency"] == timed[1]["speedup"] / 2

    served = json.loads(quant("bench", "--model", int8, "--instances", "1", "--seconds", "2", "--json"))["results"]
    [at_once] = served
    assert len(at_once["instances"]) == 1 and at_once["samples_per_s"] > 0
    assert at_once["scaling_low"] <= at_once["scaling"] <= at_once["scaling_high"]
    assert 0 < at_once["latency_ms"]["p50"] <= at_once["latency_ms"]["p90"]
    assert len(at_once["instances"][0]["latency_s"]) > 100
    with np.load(workplace / "outputs.npz") as stored:
        [name] = stored.files
        saved = stored[name]

    # The deployed model, under a plain Paddle configuration: oneDNN on, and nothing else.
    config = engine.Config(
        str(workplace / "int8" / "inference.pdmodel"), str(workplace / "int8" / "inference.pdiparams")
    )
    config.disable_gpu()
    config.enable_onednn()
    predictor = engine.create_predictor(config)
    pixels, _ = next(digits.images("test", 10))
    handle = predictor.get_input_handle("image")
    handle.copy_from_cpu(digits.normalise(pixels))
    predictor.run()
    plain = predictor.get_output_handle(name).copy_to_cpu()
    assert np.array_equal(plain.argmax(1), saved[:10].argmax(1))


def test_drawings_are_made_where_graphviz_is(workplace: Path, tmp_path: Path) -> None:
    """With a `dot` that works, with one that doesn't, and without: the conversion is the same."""
    for name, script in (("good", 'echo "<svg/>" > "$3"'), ("bad", "echo no fonts >&2; exit 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dot").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name / "dot").chmod(0o755)
    told = {}
    for name in ("good", "bad", "absent"):
        command = [
            "convert",
            "--quant-model-path",
            workplace / "quant",
            "--int8-model-save-path",
            tmp_path / f"{name}8",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "quant", *map(str, command), "--debug", str(tmp_path / f"{name}-dots"), "--json"],
            cwd=ROOT,
            env={**os.environ, "PATH": str(tmp_path / name)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert json.loads(done.stdout)["int8"]
        told[name] = done.stderr.splitlines()
    drawn = {name: sorted(path.suffix for path in (tmp_path / f"{name}-dots").iterdir()) for name in told}
    steps = len(drawn["absent"])
    assert drawn["good"] == [".dot"] * steps + [".svg"] * steps
    assert drawn["bad"] == drawn["absent"] == [".dot"] * steps
    assert told["good"] == []
    assert len(told["bad"]) == steps
    assert all(line.startswith("warning: ") and line.endswith("not drawn: dot: no fonts") for line in told["bad"])
    [line] = told["absent"]
    assert "only .dot was written" in line


def test_a_drop_beyond_the_threshold_is_exit_code_1(workplace: Path, tmp_path: Path) -> None:
    """A model that is not the FP32 one with rounding, but another one: the gate must see it."""
    (tmp_path / "other").mkdir()
    graph = load_dir(workplace / "int8")
    name = next(name for name in graph.params if graph.params[name].ndim == 2)
    broken = {**graph.params, name: np.roll(graph.params[name], 1, axis=1)}
    save_dir(replace(graph, params=broken), tmp_path / "other")
    dirs = ["--fp32-model", workplace / "fp32", "--int8-model", tmp_path / "other"]
    quant("compare", *dirs, "--data", workplace / "test.bin", code=1)


def test_a_float_model_called_int8_is_exit_code_1(workplace: Path) -> None:
    """No drop at all, and still no pass: nothing ran in INT8."""
    dirs = ["--fp32-model", workplace / "fp32", "--int8-model", workplace / "exported"]
    quant("compare", *dirs, "--data", workplace / "test.bin", code=1)


def test_every_tier_agrees_on_the_machine(workplace: Path) -> None:
    shown = json.loads(quant("cpu", "--json"))
    assert shown["tier"] == shown["reachable"][0]
    model = ["--model", workplace / "fp32", "--data", workplace / "test.bin"]
    for tier in shown["reachable"]:
        assert json.loads(quant("eval", *model, "--isa", tier, "--batch-num", "2", "--json"))["isa"] == tier
