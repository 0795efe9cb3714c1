"""`quant tune` on a network with planted outlier channels: plain PTQ misses the target, few ops in FP32 meet it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from quant.evaluation.parts import model_digest
from quant.ir.graph import load_dir, save_dir
from quant.ir.int8_regions import int8_op
from quant.reports.page.sections import section_of
from quant.runtime.predictor import Predictor
from quant.suites import commands
from quant.suites.manifest import schema
from tests.interrupts import heard
from tests.outliers import planted_net

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
MAX_DROP = 0.003
TEST, CALIBRATION = 2000, 100
BUDGET = ("--time-budget", 100)  # the search takes a quarter of it, a tenth of it is for timing


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32: six convolutions, what the third and the fifth read has outliers; test.npz, calibration.npz."""
    root = tmp_path_factory.mktemp("planted")
    plain, graph, _ = planted_net()
    random = np.random.default_rng(0)
    images = random.standard_normal((TEST + CALIBRATION, 8, 8, 8)).astype(np.float32)
    scores = []
    for name, model in (("plain", plain), ("fp32", graph)):
        (root / name).mkdir()
        save_dir(model, root / name)
        with Predictor(root / name) as predictor:
            scores.append(next(iter(predictor({"x": images}).values())))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-3)  # planting changes nothing in FP32
    labels = scores[0].argmax(1)
    np.savez(root / "test.npz", x=images[:TEST], label=labels[:TEST])
    np.savez(root / "calibration.npz", x=images[TEST:], label=labels[TEST:])
    return root


def options(planted: Path, output: Path, *more: object) -> list[object]:
    paths = ("--fp32-model", planted / "fp32", "--calibration", planted / "calibration.npz")
    rest = ("--data", planted / "test.npz", "--output", output, "--max-drop", MAX_DROP, "--algo", "abs_max")
    return ["tune", *paths, *rest, *more]


def tuned(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "tuning.json").read_text())
    return content


def chosen(found: dict[str, Any]) -> dict[str, Any]:
    [point] = [point for point in found["points"] if point["chosen"]]
    return {key: point[key] for key in ("algo", "op_ids", "tensors", "drop")}


def measured(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(trial["kind"], trial["key"], trial["focus"]) for trial in found["trials"]]


@pytest.fixture(scope="module")
def whole(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run wrote."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run(options(planted, output, "--json", *BUDGET), output.parent / "cache").communicate(timeout=300)
    assert json.loads(done[0]) == tuned(output)
    return output


def run(arguments: Sequence[object], cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "quant", *map(str, arguments)]
    environment = {**os.environ, "QUANT_CACHE": str(cache)}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard
    )


def test_plain_ptq_misses_the_target_and_at_most_three_ops_in_fp32_meet_it(planted: Path, whole: Path) -> None:
    found = tuned(whole)
    plain = found["points"][0]
    assert (plain["algo"], plain["op_ids"]) == ("abs_max", [])
    assert plain["drop"] > 0.01, "several points"
    assert not plain["met"]
    [point] = [point for point in found["points"] if point["chosen"]]
    assert point["met"] and found["met"] and found["finished"]
    assert 1 <= len(point["op_ids"]) <= 3
    assert point["drop"] <= MAX_DROP
    assert found["samples"] == TEST
    assert all(point["median_ms"] and point["speedup"]["ratio"] > 0 for point in found["points"])
    assert not whole.with_name("out.part").exists()
    float_ops = [op for op in load_dir(whole / "int8").ops if op.type == "conv2d" and not int8_op(op)]
    assert len(float_ops) == len(point["op_ids"])


def test_the_chart_and_the_part_of_a_report(planted: Path, whole: Path) -> None:
    section = section_of(whole / "tuning.json")
    assert (section.topic, section.model) == ("Accuracy and latency", str(planted / "fp32"))
    title = ElementTree.parse(whole / "pareto.svg").getroot().find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text and title.text.startswith("Drop over speed of ")
    assert {path.name for path in whole.iterdir()} == {"int8", "quant", "quant.toml", "tuning.json", "pareto.svg"}


def test_what_is_written_is_as_good_as_the_table_says_and_equals_its_simulation(
    planted: Path, whole: Path, cache: Path, call: Call
) -> None:
    """Scored by another command, on the whole set, run anew."""
    told = chosen(tuned(whole))
    scores = {}
    for name in ("fp32", "quant", "int8"):
        model = planted / "fp32" if name == "fp32" else whole / name
        code, out, err = call(
            "eval", "--model", model, "--precision", name, "--data", planted / "test.npz", "--metric", "top1", "--json"
        )
        assert code == 0, err
        scores[name] = json.loads(out)["metrics"]["top1"]
    assert scores["fp32"] - scores["int8"] == pytest.approx(told["drop"], abs=1e-9)
    assert abs(scores["quant"] - scores["int8"]) <= 2 / TEST


def test_the_written_manifest_makes_the_same_model(planted: Path, whole: Path, tmp_path: Path) -> None:
    [entry] = schema.read(whole / "quant.toml").models
    assert entry.max_drop["top1"] == MAX_DROP
    told = chosen(tuned(whole))
    if told["tensors"]:
        assert entry.quant == whole / "quant"
        return
    assert (entry.algo, list(entry.op_ids_to_skip)) == (told["algo"], told["op_ids"])
    assert entry.fp32 and entry.calibration
    commands.ptq(
        str(entry.fp32),
        str(entry.calibration),
        str(tmp_path / "quant"),
        algo=entry.algo,
        op_ids_to_skip=entry.op_ids_to_skip,
    )
    assert model_digest(tmp_path / "quant", tmp_path) == model_digest(whole / "quant", tmp_path)


def sent_after(process: "subprocess.Popen[str]", state: Path, trials: int, sent: signal.Signals) -> None:
    """A signal, when so many trials are done."""
    deadline = time.monotonic() + 120
    while not state.exists() or len(json.loads(state.read_text())["trials"]) < trials:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)


def test_ctrl_c_writes_the_best_so_far_and_resuming_needs_no_time_for_it(
    planted: Path, whole: Path, tmp_path: Path
) -> None:
    output, part = tmp_path / "out", tmp_path / "out.part"
    points = [number for number, trial in enumerate(tuned(whole)["trials"], 1) if trial["kind"] == "point"]
    process = run(options(planted, output, *BUDGET), tmp_path / "cache")
    sent_after(process, part / "state.json", points[1] + 1, signal.SIGINT)  # the second point, and a guess
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, "quant: interrupted: the best model so far is written\n")
    assert "the search was interrupted: the same command goes on" in out
    found = tuned(output)
    assert found["interrupted"] and not found["finished"] and len(found["points"]) == 2
    assert chosen(found)["drop"] == min(point["drop"] for point in found["points"])
    assert any(int8_op(op) for op in load_dir(output / "int8").ops)
    again = run(options(planted, output, "--time-budget", 1), tmp_path / "cache")
    again.communicate(timeout=60)
    gone_on = tuned(output)  # the time is up at once, but for a last run over the whole set of what was guessed
    assert gone_on["trials"][: len(found["trials"])] == found["trials"]
    assert len(gone_on["trials"]) <= len(found["trials"]) + 1
    assert chosen(gone_on)["drop"] <= chosen(found)["drop"]
    run(options(planted, output, *BUDGET), tmp_path / "cache").communicate(timeout=300)
    assert chosen(tuned(output)) == chosen(tuned(whole)) and not part.exists()


def test_a_run_that_was_killed_goes_on_to_the_same_result(planted: Path, whole: Path, tmp_path: Path) -> None:
    output, state = tmp_path / "out", tmp_path / "out.part" / "state.json"
    process = run(options(planted, output, *BUDGET), tmp_path / "cache")
    sent_after(process, state, 4, signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    kept = json.loads(state.read_text())["trials"]
    again = run(options(planted, output, *BUDGET), tmp_path / "cache")
    again.communicate(timeout=300)
    assert again.returncode == 0
    found = tuned(output)
    assert found["trials"][: len(kept)] == kept, "not measured a second time"
    assert measured(found) == measured(tuned(whole))
    assert chosen(found) == chosen(tuned(whole))


def test_out_of_time_there_is_a_model_and_the_table_and_it_can_go_on(
    planted: Path, whole: Path, tmp_path: Path, cache: Path, call: Call, refused: Callable[..., str]
) -> None:
    output = tmp_path / "out"
    code, out, err = call(*options(planted, output, "--time-budget", 1))
    assert code == 1, err
    assert "Accuracy and latency" in out and "the same command goes on" in out
    assert "the one with the smallest drop is written" in err
    found = tuned(output)
    assert not found["finished"] and not found["met"]
    assert len(found["points"]) == 1 and found["points"][0]["chosen"]
    assert any(int8_op(op) for op in load_dir(output / "int8").ops)
    part = tmp_path / "out.part"
    told = refused(*options(planted, output, "--batch-size", 25))
    assert told.strip().endswith(
        ": left by a run that was cut off, with other inputs: options batch_size (50, now 25); --fresh starts anew"
    )
    state, kept = part / "state.json", (part / "state.json").read_text()
    state.write_text(kept[:-20])
    assert f"{part}: left by a run that was cut off, whose inputs can't be read; --fresh" in refused(
        *options(planted, output, *BUDGET)
    )
    code, _, err = call(*options(planted, output, "--fresh", "--time-budget", 1))
    assert (code, len(json.loads(state.read_text())["trials"])) == (1, len(found["trials"])), err
    assert "are reused" not in err
    code, out, err = call(*options(planted, output, *BUDGET))
    assert code == 0, err
    assert f"{part}: {len(found['trials'])} trial" in err and "are reused; --fresh starts anew" in err
    assert chosen(tuned(output)) == chosen(tuned(whole))
    assert not (tmp_path / "out.part").exists()


def test_bad_input_is_one_line_and_nothing_is_left(
    planted: Path, tmp_path: Path, cache: Path, refused: Callable[..., str]
) -> None:
    output = tmp_path / "out"
    assert "--calibration is missing" in refused("tune", "--fp32-model", planted / "fp32", "--output", output)
    assert "--model: only with --manifest" in refused(*options(planted, output, "--model", "x"))
    assert "did you mean 'abs_max'" in refused(*options(planted, output, "--algo", "absmax"))
    shared = options(planted, output, "--calibration", planted / "test.npz")
    assert "a model isn't tested on what it was calibrated with" in refused(*shared)
    assert "unknown op id 99" in refused(*options(planted, output, "--op-ids-to-skip", "99"))
    assert list(tmp_path.glob("out*")) == []
    output.mkdir()
    (output / "mine").touch()
    assert "is not an empty directory" in refused(*options(planted, output))


def test_a_manifest_s_entry_is_tuned_and_stays_as_it_is(
    planted: Path, tmp_path: Path, cache: Path, refused: Callable[..., str], call: Call
) -> None:
    text = f"""
[[model]]
name = "planted"
fp32 = "{planted / "fp32"}"
calibration = "{planted / "calibration.npz"}"
data = "{planted / "test.npz"}"
algo = "abs_max"
metric = "top1"
[model.thresholds]
drop = 0.2
speedup = {{ avx512_vnni = 1.5 }}
"""
    file = tmp_path / "quant.toml"
    file.write_text(text)
    output = tmp_path / "out"
    assert "--algo: the entry in" in refused("tune", "--manifest", file, "--output", output, "--algo", "mse")
    code, _, err = call("tune", "--manifest", file, "--output", output, "--time-budget", 1)
    assert code == 0, err  # 20 points are lost by nobody
    assert file.read_text() == text
    [entry] = schema.read(output / "quant.toml").models
    assert entry.name == "planted" and dict(entry.speedup) == {"avx512_vnni": 1.5}
    assert entry.max_drop["top1"] == 0.2


def accuracy(outputs: list[Any], labels: Any) -> Any:
    """A user's metric, which ends the child that it counts in the third time: what a crash of Paddle looks like."""
    if os.environ.get("QUANT_CHILD"):
        calls = Path(os.environ["COUNTED"])
        calls.write_text(calls.read_text() + ".")
        if calls.read_text() == "...":
            os.kill(os.getpid(), signal.SIGSEGV)
    return outputs[0].argmax(1) == labels


def test_a_trial_that_ends_its_process_has_failed_and_the_search_goes_on(
    planted: Path, tmp_path: Path, cache: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counted").touch()
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    output = tmp_path / "out"
    code, out, err = call(*options(planted, output, "--metric", "tests.cli.test_tune:accuracy", "--time-budget", 60))
    assert code == 0, err
    assert "1 of them failed" in out
    [failed] = [trial for trial in tuned(output)["trials"] if trial["failed"]]
    assert failed["kind"] == "guess" and "SIGSEGV" in failed["failed"]
    assert tuned(output)["met"]
