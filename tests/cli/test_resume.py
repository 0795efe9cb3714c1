"""Evaluations that were cut off go on where they stopped, what was run is scored again unrun, and some stop early."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.cli import main
from quant.metrics import scores as metrics
from quant.process import isolate
from tests.interrupts import heard
from tests.models import SAMPLES

ROOT = Path(__file__).parents[2]
PARTS = 5
Run = Callable[..., Any]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; JSON when asked for, otherwise what it prints."""

    def run(*args: object, code: int = 0) -> Any:
        capfd.readouterr()
        assert main([str(arg) for arg in args]) == code
        out, err = capfd.readouterr()
        return json.loads(out) if "--json" in args else out + err

    return run


def parts(store: Path) -> dict[Path, int]:
    """The parts that are stored, and when each was written, ns."""
    return {path: path.stat().st_mtime_ns for path in store.glob("*/????????.json")}


def start(*args: object, limit: int | None = None) -> subprocess.Popen[str]:
    """A command as a process; `limit`: the size of files it can write, as on a full disk.

    It gives way to this process, which has to see what is stored before the command ends.
    """

    def cap() -> None:
        heard()
        os.nice(10)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "quant", *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=cap
    )


def outputs(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


# --- cut off


def test_a_run_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(
    place: Path, cache: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once by Ctrl-C, once by SIGKILL. Samples one by one, so that a part takes a while."""
    command = ["eval", "--model", place / "int8", "--precision", "int8", "--data", place / "data.npz"]
    command += ["--batch-size", "1"]
    done: dict[Path, int] = {}
    for sent in (signal.SIGINT, signal.SIGKILL):
        process = start(*command)
        while len(parts(cache)) <= len(done) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert out == "" and "Traceback" not in err
        assert process.returncode in ((2, 130) if sent == signal.SIGINT else (-sent,))
        now = parts(cache)
        assert len(done) < len(now) < PARTS
        assert {path: now[path] for path in done} == done  # those of the first run weren't run again
        done = now

    resumed = run(*command, "--save-outputs", tmp_path / "resumed.npz", "--json")
    assert resumed["stored_samples"] == 1000 * len(done)
    assert {path: parts(cache)[path] for path in done} == done
    assert resumed["int8_mac_share"] > 0.9  # seen by the first run, whose log is gone
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "another"))
    whole = run(*command, "--save-outputs", tmp_path / "whole.npz", "--json")
    assert whole["stored_samples"] == 0
    same = ("samples", "metrics", "int8_ops", "fp32_ops", "int8_mac_share", "kernel_isas", "isa")
    assert {name: resumed[name] for name in same} == {name: whole[name] for name in same}
    before, after = outputs(tmp_path / "resumed.npz"), outputs(tmp_path / "whole.npz")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert sum(map(len, before.values())) == SAMPLES


# --- run once


def refuse(*args: object, **named: object) -> None:
    raise AssertionError("a child was started")


def test_what_was_run_is_scored_again_unrun_and_what_is_damaged_or_fresh_is_run(
    place: Path, cache: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", "--model", place / "int8", "--precision", "int8", "--data", place / "data.npz"]
    assert run(*command, "--batch-num", "30", "--json")["samples"] == 1500
    first = run(*command, "--json")
    assert (first["samples"], first["stored_samples"]) == (SAMPLES, 1000)  # the other 500 were but half a part
    assert len(parts(cache)) == PARTS
    with monkeypatch.context() as alone:
        alone.setattr(isolate, "call", refuse)
        again = run(*command, "--save-outputs", tmp_path / "out.npz", "--json")
        assert again == {**first, "stored_samples": SAMPLES}  # latency and its time, proof, all
        [scores] = outputs(tmp_path / "out.npz").values()
        with np.load(place / "data.npz") as data:
            counts = metrics.METRICS["top1"].counts([scores], data["label"])
        assert first["metrics"]["top1"] == counts[:, 0].mean() > 0.85
        assert run(*command, "--metric", "top5", "--json")["metrics"].keys() == {"top5"}
        told = run(*command)
        assert "4,500 of 4,500 samples from an earlier run: 20" in told
        # Fewer batches are a part of what is there.
        head = run(*command, "--batch-num", "25", "--json")
        assert (head["samples"], head["stored_samples"]) == (1250, 1250)

    [second] = cache.glob("*/00001000.npz")
    second.write_bytes(second.read_bytes()[:-1])
    [fourth] = cache.glob("*/00003000.npz")
    content = bytearray(fourth.read_bytes())
    content[5000] ^= 4
    fourth.write_bytes(content)
    before = parts(cache)
    mended = run(*command, "--json")
    assert (mended["stored_samples"], mended["metrics"]) == (SAMPLES - 2000, first["metrics"])
    changed = {path.name for path, written in parts(cache).items() if before[path] != written}
    assert changed == {"00001000.json", "00003000.json"}

    before = parts(cache)
    fresh = run(*command, "--fresh", "--json")
    assert fresh["stored_samples"] == 0
    assert before.keys() == parts(cache).keys() and not set(before.items()) & set(parts(cache).items())


# --- sequential


def test_a_sequential_comparison_stops_and_a_plain_one_goes_on(
    place: Path, cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ["--fp32-model", place / "fp32", "--int8-model", place / "int8", "--quant-model", place / "quant"]
    command = ["compare", *models, "--data", place / "data.npz", "--acc-diff-threshold", "0.1"]
    found = run(*command, "--sequential", "--json")
    looked = found["sequential"]
    assert found["verdict"] == "PASS"
    assert looked["samples"] == found["drop"]["samples"] == 1000 * looked["look"] < SAMPLES
    assert (looked["of"], looked["looks"]) == (SAMPLES, PARTS)
    assert found["drop"]["confidence"] == looked["confidence"] > 0.99
    assert found["drop"]["high"] <= 0.1
    kept = parts(cache)
    assert looked["look"] * 3 <= len(kept) <= looked["look"] * 3 + 2  # a part may have been on its way

    with monkeypatch.context() as alone:
        alone.setattr(isolate, "call", refuse)
        again = run(*command, "--sequential")
        assert f"sequential: {looked['samples']:,} of 4,500 samples were needed" in again
        assert f"{looked['samples']:,} of {looked['samples']:,} samples from an earlier run" in again
        misfit = run(*command, "--metric", "f1", "--sequential", code=2)
        assert misfit.count("\n") == 1 and "tag.dic: no such file" in misfit

    whole = run(*command, "--json")
    assert whole["sequential"] is None and whole["drop"]["confidence"] == 0.95
    assert whole["drop"]["samples"] == SAMPLES
    assert set(whole["stored_samples"].values()) <= {looked["samples"], looked["samples"] + 1000}
    assert {path: parts(cache)[path] for path in kept} == kept

    # Half of a point can't be proven with so few: all are looked at, and the last look is not a plain interval.
    unsure = run(*command[:-1], abs(whole["drop"]["drop"]) + 1e-4, "--sequential", "--json")
    assert unsure["verdict"] == "INCONCLUSIVE"
    assert unsure["sequential"]["samples"] == SAMPLES
    assert 0.95 < unsure["drop"]["confidence"] < 0.97
    for name in ("drop", "samples", "lost", "won"):
        assert unsure["drop"][name] == whole["drop"][name]


def test_a_sequential_comparison_fails_early(place: Path, cache: Path, run: Run) -> None:
    models = ["--fp32-model", place / "fp32", "--int8-model", place / "other"]
    found = run("compare", *models, "--data", place / "data.npz", "--sequential", "--json", code=1)
    assert (found["verdict"], found["sequential"]["samples"]) == ("FAIL", 1000)
    assert found["drop"]["low"] > 0.01


# --- what can't be written


def test_a_store_that_can_not_be_written(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "call", refuse)
    monkeypatch.setenv("QUANT_CACHE", "/proc/nothing")
    told = run("eval", "--model", place / "fp32", "--data", place / "data.npz", code=2)
    assert told.startswith("quant: /proc/nothing/outcomes/") and told.count("\n") == 1
    assert "QUANT_CACHE names another place" in told


def test_a_full_disk(place: Path, cache: Path) -> None:
    """No file may grow beyond 16 KB: a part's arrays take 30."""
    process = start("eval", "--model", place / "fp32", "--data", place / "data.npz", limit=1 << 14)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("quant: ") and "can't be written (File too large)" in err
    assert parts(cache) == {}
