"""`quant suite --zoo` on what `quant fetch` brings from a server: archives as published, made of embedded models."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures import lac
from quant.cli import main
from quant.ir.graph import load_dir, save_dir
from quant.process import isolate
from quant.results.record import Run as Recorded
from quant.suites.published import catalogue, located
from quant.suites.registry import MODELS
from quant.timing import side_by_side
from tests.http_server import serving
from tests.published import IMAGE_ROW, SAMPLES, archives_of_models, files_of_data, publish, write_images

ROOT = Path(__file__).parents[2]
ROWS = (IMAGE_ROW, "ernie", "gru", "lstm")
Run = Callable[..., tuple[int, str, str]]
Fails = Callable[..., str]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A zoo directory, as `quant fetch` lays it out; what is made of it goes to a cache of its own."""
    root, scratch = tmp_path_factory.mktemp("zoo"), tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        patch.setenv("NO_PROXY", "127.0.0.1")
        archives = {**archives_of_models(scratch), **files_of_data(scratch)}
        publish(server, archives)
        assert main(["fetch", *archives, "--mirror", server.url, "--output", str(root)]) == 0
        write_images(root / "int8_full_val.bin")
        patch.setenv("QUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield root


def four_times_as_fast(contenders: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> list[dict[str, Any]]:
    """In place of its bench: timing has tests of its own, and small models don't reach what full-size ones do."""
    both = zip(contenders, (0.04, 0.01), strict=True)
    return [{"run": dict(runs[0]), "seconds": [seconds] * 20} for runs, seconds in both]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(side_by_side, "bench", four_times_as_fast)

    def call(directory: Path, *rows: str, output: Path = tmp_path / "out") -> tuple[int, str, str]:
        capfd.readouterr()
        chosen = [part for row in rows for part in ("--model", row)]
        places = ("--output-dir", str(output), "--history", str(output / "history"))
        code = main(["suite", "--zoo", str(directory), *chosen, *places])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def fails(run: Run) -> Fails:
    def call(directory: Path, *rows: str) -> str:
        code, out, err = run(directory, *rows)
        told = [line for line in err.splitlines() if not line.startswith(("warning: tier", "accuracy: ", "speed: "))]
        assert (code, out) == (2, ""), err
        assert len(told) == 1 and told[0].startswith("quant: "), err
        return told[0]

    return call


def table(report: str, title: str) -> list[dict[str, str]]:
    """The rows of a table of report.md, column -> cell."""
    _, _, text = report.partition(f"## {title}")
    head, _, *rows = (line.strip("| ").split(" | ") for line in text.split("\n\n")[1].splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_what_was_fetched_is_measured_and_the_rest_is_listed(run: Run, fetched: Path, tmp_path: Path) -> None:
    code, out, err = run(fetched)
    assert code == 0, out + err
    report = (tmp_path / "out" / "report.md").read_text()
    assert "All thresholds reached." in report
    images, text = (table(report, f"Published models: accuracy, {kind}") for kind in ("image", "text"))

    [against_sim, against_fp32, *_] = images
    assert (against_sim["Model"], against_sim["Metric"]) == ("MobileNet-V1", "top1")
    assert (against_sim["INT8 against"], against_sim["Limit"]) == ("fake QAT", "0.10")
    assert [against_sim[f"Seeds: {part}"] for part in ("before", "INT8", "drop")] == ["70.83", "70.84", "-0.01"]
    assert [against_fp32[f"Seeds: {part}"] for part in ("before", "INT8", "drop")] == ["70.78", "70.74", "+0.04"]
    assert (against_fp32["INT8 against"], against_fp32["Limit"]) == ("FP32, weights on their grid", "-")
    assert {row["Samples"] for row in images} == {str(SAMPLES["images"])}
    assert [row["Metric"] for row in images] == ["top1", "top1", "top5", "top5"]

    limits = {(row["Model"], row["Metric"]): row for row in text if row["Limit"] != "-"}
    assert set(limits) == {("ERNIE", "top1"), ("GRU (LAC)", "f1"), ("LSTM", "hx"), ("LSTM", "ctc")}
    assert {row["Limit"] for row in limits.values()} == {"1.00"}
    assert limits["LSTM", "hx"]["INT8 against"] == "FP32, published"
    assert {limits[key]["INT8 against"] for key in limits if key[0] != "LSTM"} == {"fake QAT"}
    for row in (*limits.values(), against_sim):
        assert row["Verdict"] == "PASS" or row["Verdict"].startswith("pass on the point")
        assert row["MACs in INT8 kernels"].startswith("100.0%")
    printed = [(row["Seeds"], row["Seeds: INT8"]) for row in text if row["Model"] == "ERNIE" and row["Seeds"] != "-"]
    assert printed == [("X86 CPU deployment", "79.44"), ("QAT of NLP models", "79.96"), ("ERNIE QAT INT8", "82.00")]

    speed = table(report, "Published models: speed, text")
    ratios = {(row["Model"], row["Batch"], row["Repeat"], row["Threads"]): row for row in speed}
    assert ratios["GRU (LAC)", "50", "10", "1"]["Seeds: ratio"] == "1.54"
    assert ratios["GRU (LAC)", "50", "10", "1"]["INT8"] == "5000.00"  # sentences a second
    assert ratios["ERNIE", "1", "1", "1"]["INT8"] == "10.00"  # ms
    assert ratios["ERNIE", "1", "1", "20"]["Seeds: ratio"] == "4.85"  # the last document's
    assert {row["Ratio [95%]"] for row in speed if row["Threads"] == "1"} == {"4.00 [4.00, 4.00]"}

    absent = table(report, "Absent")
    assert {row["Model"] for row in absent} == {spec.title for spec in MODELS if spec.name not in ROWS}
    assert absent[0]["How to get it"] == f"quant fetch resnet50-qat --output {fetched}"
    assert "Published models: accuracy, image classification" in out
    assert "resnet101-qat" in out

    # GRU is published as Paddle trains it, with layers that aren't rounded; its kernels are INT8 all the same.
    models = located.models_of(located.located(catalogue.row_of("gru"), fetched))
    assert load_dir(models.quant).params.keys() >= {"gru_0.w_0"}
    assert load_dir(models.int8).op_counts()["fusion_gru"] == 4

    records = Recorded.from_json((tmp_path / "out" / "report.json").read_text()).records
    exact, timed = ([r for r in records if bool(r.outcomes) is which] for which in (True, False))
    assert [(r.model, r.precision) for r in exact] == [(row, p) for row in ROWS for p in ("fp32", "quant", "int8")]
    assert {record.origin for record in records} == {"zoo"}
    assert min(record.int8_share or 0 for record in exact if record.precision == "int8") > 0.98
    assert [(r.model, r.batch, r.repeat) for r in timed if r.precision == "int8" and r.threads == 1] == [
        (IMAGE_ROW, 1, 1),
        ("ernie", 1, 1),
        ("gru", 1, 1),
        ("gru", 50, 1),
        ("gru", 50, 10),
        ("lstm", 1, 1),
    ]


def test_a_second_run_makes_no_model_again(run: Run, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(fetched, "gru")[0] == 0
    jobs: list[str] = []
    call = isolate.call
    monkeypatch.setattr(isolate, "call", lambda job, *args, **more: (jobs.append(job), call(job, *args, **more))[1])
    code, out, _ = run(fetched, "gru")
    assert code == 0 and "Absent" not in out
    assert jobs == []  # not even an evaluation: its parts are kept


def test_a_limit_that_is_not_held_fails(run: Run, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(replace(row, max_drop={"f1": -0.5}) if row.name == "gru" else row for row in catalogue.ROWS)
    monkeypatch.setattr(catalogue, "ROWS", rows)
    monkeypatch.setattr(located, "ROWS", rows)
    code, out, _ = run(fetched, "gru")
    assert code == 1
    assert "missed: GRU (LAC) f1: drop " in out and "limit -50.00" in out


def test_a_slow_int8_model_fails(run: Run, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "bench", lambda both, **more: four_times_as_fast(both[::-1])[::-1])
    code, out, _ = run(fetched, "gru")
    assert code == 1
    assert "missed: GRU (LAC), batch 1, 1 thread(s): FP32 / INT8 0.25, due" in out and "FAILED" in out


def test_int8_weights_that_are_damaged_fail(run: Run, fetched: Path, tmp_path: Path) -> None:
    """The simulation is as good as ever; the INT8 model that was made of it has lost its last layer."""
    int8 = located.models_of(located.located(catalogue.row_of("gru"), fetched)).int8
    whole = load_dir(int8)
    [last] = (name for name in whole.params if name.startswith("fc_4.w_0") and name.endswith(".stored"))
    damaged = replace(whole, params={**whole.params, last: np.zeros_like(whole.params[last])})
    shutil.move(int8, tmp_path / "int8")
    int8.mkdir()
    try:
        save_dir(damaged, int8)
        code, out, _ = run(fetched, "gru")
        report = (tmp_path / "out" / "report.md").read_text()
    finally:
        shutil.rmtree(int8)
        shutil.move(tmp_path / "int8", int8)
    assert code == 1
    assert "missed: GRU (LAC) f1: drop " in out
    first = table(report, "Published models: accuracy, text")[0]
    assert first["Verdict"].startswith("MISSED; drop ") and float(first["INT8"]) < 30 < float(first["Before"])


def test_pytest_runs_the_same_cases(fetched: Path) -> None:
    """Measured for real: LSTM's INT8 is well above what is due. What is absent is skipped with the command."""
    args = ["-m", "pytest", f"--zoo={fetched}", "--model", "lstm", "--model", "vgg16", "-q", "-p", "no:cacheprovider"]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}  # else nothing is timed
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=alone, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "vgg16-qat is missing: quant fetch vgg16-qat" in done.stdout
    assert "test_published_int8_against_fp32[lstm-b1-1t]" in done.stdout
    assert "3 passed, 4 skipped" in done.stdout or "2 passed, 4 skipped, 1 xfailed" in done.stdout


# --- bad input


def test_nothing_to_measure(fails: Fails, fetched: Path, tmp_path: Path) -> None:
    assert "no such directory; `quant fetch NAME --output" in fails(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    line = fails(tmp_path / "empty")
    assert "nothing of resnet50, resnet101" in line
    assert f"resnet50 needs: quant fetch resnet50-qat --output {tmp_path}/empty; and `quant preprocess" in line
    assert "vgg16 needs: quant fetch vgg16-qat" in fails(fetched, "vgg16")
    assert "did you mean 'vgg16'" in fails(fetched, "vgg-16")


@pytest.fixture
def by_hand(fetched: Path, tmp_path: Path) -> Path:
    """The same without the records of `quant fetch`: unpacked by hand, so only what is missing can be told."""
    shutil.copytree(fetched, tmp_path / "hand", ignore=shutil.ignore_patterns("*-*.json"))
    return tmp_path / "hand"


def test_artefacts_that_are_not_whole(fails: Fails, fetched: Path, by_hand: Path) -> None:
    (by_hand / "ernie-data" / "Ernie_dataset" / "label.xnli.dev").unlink()
    line = fails(by_hand, "ernie")
    assert "ernie-data: should hold Ernie_dataset/1.8w.bs1, Ernie_dataset/label.xnli.dev" in line
    assert "fetch it anew" in line
    parameter = next((by_hand / "gru-quant" / "GRU_quant_acc").glob("fc_2*.int8"))
    parameter.unlink()
    assert f"{parameter.parent}: no file for parameter {parameter.name!r}" in fails(by_hand, "gru")
    shutil.copy(fetched / "gru-quant.json", by_hand)
    assert f"{parameter}: can't be read" in fails(by_hand, "gru")
    parameter.write_bytes(b"other")
    assert f"{parameter}: changed since it was fetched" in fails(by_hand, "gru")
    shutil.rmtree(by_hand / "gru-quant" / "GRU_quant_acc")
    (by_hand / "gru-quant.json").unlink()
    (by_hand / "gru-quant" / "notes").write_text("")
    assert "should hold GRU_quant_acc, but holds notes" in fails(by_hand, "gru")


def test_data_that_do_not_fit(fails: Fails, by_hand: Path) -> None:
    shutil.copy(by_hand / "gru-data" / "GRU_eval_data.bin", by_hand / "lstm-data" / "quant_lstm_input_data")
    assert f"{by_hand}/lstm-data/quant_lstm_input_data: " in fails(by_hand, "lstm")
    shutil.rmtree(by_hand / "gru-data")
    (by_hand / "lac").mkdir()
    lac.write_sentences("test", 20, by_hand / "lac" / "test.tsv")
    (by_hand / "lac" / "tag.dic").unlink()
    assert f"{by_hand}/lac/tag.dic: no such file" in fails(by_hand, "gru")


def test_a_model_that_is_not_fake_quantized_is_calibrated_with_data_of_its_own(
    run: Run, fails: Fails, by_hand: Path, tmp_path: Path
) -> None:
    model, calibration = by_hand / "gru-quant" / "GRU_quant_acc", by_hand / "calibration" / "gru"
    shutil.rmtree(model)
    model.mkdir()
    lac.export("gru", model)
    line = fails(by_hand, "gru")
    assert f"{model}: isn't fake-quantized" in line and f"{calibration} (format lac_bin)" in line
    calibration.parent.mkdir()
    shutil.copy(by_hand / "gru-data" / "GRU_eval_data.bin", calibration)
    assert f"{calibration}: sample 0 is also in {by_hand}/gru-data/GRU_eval_data.bin" in fails(by_hand, "gru")
    shutil.rmtree(by_hand / "gru-data")  # LAC's own TSV instead
    (by_hand / "lac").mkdir()
    lac.write_sentences("test", 30, by_hand / "lac" / "test.tsv")
    for split, place in (("calibration", "calibration"), ("test", "lac")):
        lac.write_sentences(split, 30, by_hand / place / f"{split}.tsv")
    shutil.move(by_hand / "calibration" / "calibration.tsv", calibration)
    code, _, err = run(by_hand, "gru")
    assert code == 0, err
    first, second = table((tmp_path / "out" / "report.md").read_text(), "Published models: accuracy, text")
    assert (first["Samples"], second["INT8 against"]) == ("30", "FP32, published")
