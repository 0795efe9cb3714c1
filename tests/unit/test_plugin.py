"""The installed pytest plugin, as a user has it: pytest in another repository, without any test code there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from quant import pytest_plugin
from quant.errors import DataError
from quant.ir.graph import save_dir
from quant.results import history
from quant.results.benchmark_files import extra_info, from_benchmark, machine_info
from quant.results.record import Record
from quant.results.speed_ratio import pairs
from quant.results.target import Case, Row
from tests.manifests import ANY_SPEED, CRASHES, HANGS, SAMPLES, write_repository
from tests.nets import residual_net

PASSING = f"""
[[model]]
name = "good"
fp32 = "models/fp32"
calibration = "calibration.npz"
data = "test.npz"
reader = "own.readers:read"
metric = "own.metrics:hits"
threads = [1, 512]
thresholds.drop = 0.05
{ANY_SPEED}
"""

FINE = """
[[model]]
name = "fine"
fp32 = "models/fp32"
int8 = "models/int8"
data = "test.npz"
thresholds.drop = 0.05
"""

FAILING = (
    CRASHES
    + """
[[model]]
name = "worse"
title = "Worse [than] it looks"
fp32 = "models/fp32"
quant = "models/quant"
int8 = "models/int8"
data = "test.npz"
thresholds = { drop = 0.0, floor = 0.99 }

[[model]]
name = "damaged"
fp32 = "models/damaged"
int8 = "models/int8"
data = "test.npz"
"""
    + FINE
)

Pytest = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's repository, and a test of the user's own in it."""
    from tests.models import write_place

    place = write_place(tmp_path_factory.mktemp("place"))
    root = write_repository(place, tmp_path_factory.mktemp("users") / "repository")
    (root / "models" / "damaged").mkdir()
    save_dir(residual_net(), root / "models" / "damaged")
    (root / "models" / "damaged" / "inference.pdiparams").write_bytes(b"no parameters")
    (root / "test_users_own.py").write_text(
        "import os, sys\n\n"
        "def test_nothing_was_touched():\n"
        "    assert not {name.partition('.')[0] for name in sys.modules} & {'quant', 'numpy', 'paddle'}\n"
        "    assert 'FLAGS_enable_pir_api' not in os.environ\n"
    )
    return root


@pytest.fixture(scope="module")
def run_pytest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Pytest:
    """pytest in that repository, in a process of its own: exit code, and what it printed."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*args: str) -> tuple[int, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "FLAGS_"))}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
            cwd=repository,
            env={**clean, "QUANT_CACHE": str(cache), "COLUMNS": "400"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def cases(text: str) -> list[str]:
    """The ids that --collect-only -q prints."""
    return [line for line in text.splitlines() if "::" in line]


def test_without_the_option_nothing_is_loaded(run_pytest: Pytest) -> None:
    code, out = run_pytest("-q")
    assert code == 0, out
    assert "1 passed" in out


def test_a_users_model_is_tested_without_test_code(run_pytest: Pytest, repository: Path, tmp_path: Path) -> None:
    (repository / "quant.toml").write_text(PASSING)
    code, out = run_pytest("--manifest", "quant.toml", "--collect-only", "-q", "quant.toml")
    assert code == 0, out
    judged = ("data", "drop[own.metrics:hits]", "simulation[own.metrics:hits]", "kernels")
    timed_at = [
        f"{kind}b1-{threads}t]" for threads in (1, 512) for kind in ("latency[fp32-", "latency[int8-", "ratio[")
    ]
    assert cases(out) == [f"quant.toml::good::{case}" for case in (*judged, *timed_at)]
    assert not (repository / ".quant").exists()  # nothing was measured

    stored, xml = tmp_path / "benchmark.json", tmp_path / "junit.xml"
    models = tmp_path / "deploy"
    args = ("--quant-history", str(tmp_path / "history"), f"--benchmark-json={stored}", f"--junitxml={xml}")
    args = (*args, "--quant-save", str(models))
    code, out = run_pytest("--manifest", "quant.toml", "quant.toml", "-raP", *args)
    assert code == 0, out
    assert f"\n{SAMPLES} samples; 6 of 6 classes, " in out
    assert "7 passed, 3 skipped" in out
    assert "512 threads, but only" in out
    assert f"quant: saved: good: {models / 'good' / 'int8'} (" in out
    assert {path.name for path in (models / "good").iterdir()} == {"int8", "quant", "saved.json"}

    [(path, run)] = history.runs(tmp_path / "history")
    assert f"quant: accuracy written to {path}" in out
    assert (run.kind, run.passed, run.missed) == ("pytest", True, ())
    assert run.command == "quant suite --manifest quant.toml"
    assert [(record.precision, record.samples) for record in run.records] == [
        (precision, SAMPLES) for precision in ("fp32", "quant", "int8")
    ]
    assert all(record.data and not record.latency_s for record in run.records)
    assert run.records[-1].score("own.metrics:hits") > 0.8
    assert list(run.rows) == ["good"]

    one = ("quant.toml::good::kernels", "--manifest", "quant.toml", "--quant-history", str(tmp_path))
    code, out = run_pytest(*one, "--quant-save", str(tmp_path / "another"))
    assert code == 0 and "1 passed" in out, out
    assert "quant: not saved: good: not run: data, drop[own.metrics:hits], simulation[own.metrics:hits]" in out
    assert not any((tmp_path / "another").iterdir())
    (models / "good" / "notes").write_text("mine")
    code, out = run_pytest(*one, "--quant-save", str(models))
    assert code == 4 and f"ERROR: {models / 'good'}: is nothing that was saved there, or was changed since" in out

    timed = history.load(stored)  # pytest-benchmark's own file
    assert (timed.kind, timed.passed, timed.machine) == ("pytest", True, run.machine)
    assert [(record.model, record.precision) for record in timed.timed] == [("good", "fp32"), ("good", "int8")]
    assert timed.rows["good"].cases[0].due_on("avx2") == 0.01
    entries = {entry["name"]: entry for entry in json.loads(stored.read_text())["benchmarks"]}
    assert set(entries) == {"latency[fp32-b1-1t]", "latency[int8-b1-1t]", "ratio[b1-1t]"}
    for precision, record in zip(("fp32", "int8"), timed.timed, strict=True):  # times of the child, not of calling it
        shown = entries[f"latency[{precision}-b1-1t]"]["stats"]
        assert shown["rounds"] == len(record.latency_s)
        assert shown["median"] == pytest.approx(float(np.median(record.latency_s)), rel=1e-6)

    found = [case.attrib["name"] for case in ElementTree.parse(xml).iter("testcase")]
    assert len(found) == 10 and "drop[own.metrics:hits]" in found


def test_each_failure_is_one_clear_message(run_pytest: Pytest, repository: Path, tmp_path: Path) -> None:
    """On two workers of xdist: nothing is timed, all else is judged."""
    (repository / "failing.toml").write_text(FAILING)
    kept = str(tmp_path / "history")
    xml = tmp_path / "junit.xml"
    args = ("--quant-history", kept, f"--junitxml={xml}", "-n", "2", "--dist", "loadscope")
    args = (*args, f"--quant-save={tmp_path / 'deploy'}")  # a directory that is a word of its own may be the root
    code, out = run_pytest("--manifest", "failing.toml", "failing.toml", "-ra", *args)
    assert code == 1
    assert '  File "' not in out and "plugin.py:1" not in out.partition("short test summary")[0]
    lines = out.splitlines()
    [drop] = [line for line in lines if line.startswith("Worse [than] it looks: top1 drops by ")]
    assert "], limit 0.00: FP32 " in drop and f"of {SAMPLES} samples; " in drop and drop.endswith(" won")
    assert "Worse [than] it looks, top1: FP32 " in out and "is below its floor 99%" in out
    told = [line for line in lines if line.startswith(("damaged: could", "crashes: could"))]
    assert any("models/damaged" in line for line in told)
    assert any("Paddle crashed on this model (SIGSEGV)" in line for line in told)
    assert "    about to crash" in lines
    assert "timed cases need the machine to themselves: run them without -n" in out
    failures = {
        f"{case.attrib['classname']}::{case.attrib['name']}"
        for case in ElementTree.parse(xml).iter("testcase")
        if case.find("failure") is not None
    }
    assert failures == {
        f"failing.toml.{case}" for case in ("worse::drop[top1]", "worse::floor", "damaged::data", "crashes::data")
    }
    [(_, run)] = history.runs(tmp_path / "history")
    assert not run.passed
    assert {record.model for record in run.records} == {"worse", "fine"}
    assert {failure.title for failure in run.failures} == {"damaged", "crashes"}
    assert [path.name for path in (tmp_path / "deploy").iterdir()] == ["fine"]
    assert "quant: not saved: Worse [than] it looks: failed: floor, drop[top1]" in lines
    assert "quant: not saved: damaged: failed: data" in lines
    assert {"about to crash" in failure.log for failure in run.failures if failure.title == "crashes"} == {True}
    assert [(record.model, record.precision) for record in run.records if record.model == "worse"] == [
        ("worse", precision) for precision in ("fp32", "quant", "int8")
    ]
    assert all("Worse [than] it looks top1 on" in line for line in run.missed) and len(run.missed) == 2


def test_a_hang_fails_its_model_and_the_others_go_on(
    run_pytest: Pytest, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "hanging.toml").write_text(HANGS + FINE)
    monkeypatch.setenv("QUANT_TIMEOUT", "8")
    kept = ("--quant-history", str(tmp_path / "history"))
    code, out = run_pytest("--manifest", "hanging.toml", "-k", "hanging and data", "-rA", *kept)
    assert code == 1, out
    assert "hangs: could not be measured: " in out and "exceeded 8 s without progress and was ended" in out
    assert "    about to hang" in out.splitlines()
    assert "1 failed, 1 passed" in out and "PASSED hanging.toml::fine::data" in out


def test_without_pytest_benchmark_nothing_is_timed(run_pytest: Pytest, repository: Path, tmp_path: Path) -> None:
    (repository / "failing.toml").write_text(FAILING)
    kept = ("--quant-history", str(tmp_path / "history"))
    code, out = run_pytest("--manifest", "failing.toml", "-p", "no:benchmark", "-k", "fine and latency", "-ra", *kept)
    assert code == 0 and "needs pytest-benchmark" in out, out
    assert "2 skipped" in out
    code, out = run_pytest("--manifest", "failing.toml", "--collect-only", "-q")
    assert "test_users_own.py::test_nothing_was_touched" in cases(out)  # the user's tests too
    assert len(cases(out)) == len(set(cases(out))) > 20


def test_a_wrong_manifest_is_one_line(run_pytest: Pytest, repository: Path) -> None:
    (repository / "wrong.toml").write_text('[[model]]\nname = "x"\ntreads = 2\n')
    code, out = run_pytest("--manifest", "wrong.toml")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: wrong.toml:1: model 'x'" in out or "ERROR: wrong.toml:3: model 'x'" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"plugin": False}, "needs pytest-benchmark"),
        ({"worker": True}, "timed cases need the machine to themselves: run them without -n"),
        ({"benchmark_disable": True}, "--benchmark-disable"),
        ({"benchmark_disable": True, "benchmark_enable": True}, ""),
        ({}, ""),
    ],
)
def test_it_says_why_nothing_is_timed(config: dict[str, bool], why: str) -> None:
    found = SimpleNamespace(
        pluginmanager=SimpleNamespace(has_plugin=lambda name: config.get("plugin", name == "benchmark")),
        getoption=lambda name: config.get(name, False),
        **({"workerinput": {}} if config.get("worker") else {}),
    )
    assert pytest_plugin._why_untimed(found) == why  # type: ignore[arg-type]


# --- ratios, with invented times


def timed(ratio: float, spread: float = 0.0) -> list[Record]:
    steady = np.linspace(1 - spread, 1 + spread, 40)
    common = {"model": "net", "isa": "avx512_vnni", "threads": 1, "batch": 1}
    return [
        Record(precision="fp32", latency_s=tuple(0.01 * ratio * steady), **common),  # type: ignore[arg-type]
        Record(precision="int8", latency_s=(0.01,) * 40, **common),  # type: ignore[arg-type]
    ]


ROW = Row("net", "Net", (Case(due={"avx512_vnni": 3.0}),), fails_below=1.0)


@pytest.mark.parametrize(
    ("ratio", "spread", "outcome"),
    [(3.2, 0.0, None), (2.5, 0.0, pytest.fail.Exception), (2.98, 0.3, pytest.xfail.Exception)],
)
def test_a_ratio_is_judged_by_its_interval(ratio: float, spread: float, outcome: type[BaseException] | None) -> None:
    [pair] = pairs(timed(ratio, spread), {"net": ROW})
    benchmark = SimpleNamespace(extra_info={}, pedantic=lambda once, rounds: [once() for _ in range(rounds)])
    subject: Any = SimpleNamespace(pair=lambda batch, threads: pair)
    clock = pytest_plugin._Clock()

    def judge() -> None:
        pytest_plugin._ratio(subject, 1, 1, clock, "quant suite", benchmark)

    if outcome is None:
        judge()
    else:
        with pytest.raises(
            outcome, match=r"Net: FP32 / INT8 is 2\.\d+ \[2\.\d+, .*\], due 3\.00 on avx512_vnni, batch 1"
        ):
            judge()
    assert clock() == pytest.approx(0.4)
    content = {
        "benchmarks": [{"extra_info": benchmark.extra_info}],
        "machine_info": machine_info(),
        "commit_info": {"id": "unversioned", "dirty": False},
        "datetime": "2026-11-21T23:59:59.123456+01:00",
    }
    run = from_benchmark(json.loads(json.dumps(content)))
    assert run.records == (pair.fp32, pair.int8)
    assert (run.commit, run.started) == ("", "2026-11-21T22:59:59+00:00")
    assert run.passed is (outcome is not pytest.fail.Exception)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"benchmarks": [{"extra_info": {}}]}, "without a case that timed FP32 and INT8"),
        ({"benchmarks": [3]}, "not a whole file of pytest-benchmark"),
        ({"machine_info": {}}, "not a whole file of pytest-benchmark"),
        ({"commit_info": None}, "not a whole file of pytest-benchmark"),
        ({"datetime": "yesterday"}, "yesterday"),
    ],
)
def test_files_that_hold_no_run(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    whole = {
        "benchmarks": [{"extra_info": extra_info(ROW, timed(3.0), "quant suite")}],
        "machine_info": machine_info(),
        "commit_info": {"id": "abc", "dirty": False},
        "datetime": "2026-11-21T22:00:00+00:00",
    }
    place = tmp_path / "0001.json"
    place.write_text(json.dumps(whole))
    assert history.load(place).commit == "abc"
    place.write_text(json.dumps({**whole, **change}))
    with pytest.raises(DataError, match=rf"0001\.json: .*{told}"):
        history.load(place)
