"""`quant suite --manifest` in a user's own directory: what is measured, and what is wrong with one model of several."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant.errors import ModelError
from quant.ir.graph import load_dir, save_dir
from quant.process import isolate
from quant.results import history
from quant.results.record import Failure, Run
from quant.storage.cache import cache_root
from quant.suites import embedded, saving
from quant.suites.entries import models_of, speed
from quant.suites.manifest.schema import read
from quant.timing import side_by_side
from tests.manifests import CRASHES, SAMPLES, write_repository
from tests.nets import Net
from tests.runs import suite_run

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]

GOOD = """
[[model]]
name = "made"
title = "Made here"
fp32 = "models/fp32"
calibration = "calibration.npz"
reader = "own.readers:read"
metric = ["own.metrics:hits", "top1"]
data = "test.npz"
batch_sizes = [1, 4]
threads = [1, 64]
thresholds = { drop = { "own.metrics:hits" = 0.05, top1 = 0.06 }, floor = 0.8, int8_share = 0.9 }

[[model]]
name = "given"
quant = "models/quant"
data = "test.npz"
calibration = "calibration.npz"
thresholds.drop = 0.05
op_ids_to_skip = [0]
"""

BAD = (
    CRASHES
    + """
[[model]]
name = "leaks"
fp32 = "models/fp32"
calibration = "leaks.npz"
data = "test.npz"

[[model]]
name = "another"
fp32 = "models/fp32"
int8 = "models/int8-of-another"
data = "test.npz"

[[model]]
name = "misnamed"
quant = "models/fp32"
data = "test.npz"

[[model]]
name = "float"
fp32 = "models/fp32"
int8 = "models/fp32"
data = "test.npz"

[[model]]
name = "short"
fp32 = "models/fp32"
int8 = "models/int8"
data = "test.npz"
batch_sizes = [4000]
thresholds.drop = 0.05
"""
)


@pytest.fixture(scope="module")
def repository(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(place, tmp_path_factory.mktemp("own") / "repository")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def four_times_as_fast(contenders: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> list[dict[str, Any]]:
    """In place of side_by_side.bench: timing has tests of its own."""
    assert options["samples"] % options["batch"] == 0 and Path(options["data"]).is_file()
    both = zip(contenders, (0.04, 0.01), strict=True)
    return [{"run": dict(runs[0]), "seconds": [seconds] * 20} for runs, seconds in both]


@pytest.fixture
def suite(
    monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path, call: Call
) -> Callable[..., tuple[int, str, Run]]:
    """`quant suite` on a manifest's text: exit code, what was printed, the run."""
    monkeypatch.setattr(side_by_side, "bench", four_times_as_fast)
    monkeypatch.chdir(tmp_path)

    def run(text: str, *args: str) -> tuple[int, str, Run]:
        (repository / "quant.toml").write_text(text)
        code, out, err = call("suite", "--manifest", repository / "quant.toml", *args)
        assert "Traceback" not in err
        report = Run.from_json((tmp_path / "out" / "report.json").read_text())
        [*_, (_, kept)] = history.runs(tmp_path / ".quant")
        assert kept.to_json() == report.to_json()
        return code, out, report

    return run


def test_a_manifest_is_measured(suite: Callable[..., tuple[int, str, Run]], repository: Path, tmp_path: Path) -> None:
    code, out, run = suite(GOOD)
    assert code == 0, out
    assert "Made here: not timed: 64 threads, but only" in out
    assert all(len(line) <= 100 for line in out.partition("not timed")[0].splitlines()[:-1])  # the tables
    assert out.splitlines()[-1] == "all columns, charts and history: out/report.html, out/report.md"
    assert (run.passed, run.missed, run.kind) == (True, (), "suite")
    assert run.command == f"quant suite --manifest {repository}/quant.toml"
    assert [(record.model, record.precision) for record in run.exact] == [
        (name, precision) for name in ("made", "given") for precision in ("fp32", "quant", "int8")
    ]
    assert {record.samples for record in run.exact} == {SAMPLES}
    assert len({record.data for record in run.exact}) == 2  # the reader is part of what one model's data are
    assert all(record.data for record in run.exact)
    made, given = (
        {record.precision: record for record in run.exact if record.model == name} for name in ("made", "given")
    )
    assert made["int8"].score("own.metrics:hits") == made["int8"].score("top1") > 0.8
    assert made["int8"].int8_share == 1.0
    assert made["int8"].sqnr_db["quant"] > 40
    assert given["fp32"].variant == "weights on their grid"  # no FP32 model was given
    assert 0.5 < (given["int8"].int8_share or 0) < 1.0  # one op stays FP32
    assert [(r.model, r.batch, r.threads) for r in run.timed if r.precision == "int8"] == [
        ("made", 1, 1),
        ("made", 4, 1),
        ("given", 1, 1),
    ]
    assert run.rows["made"].max_drop == {"own.metrics:hits": 0.05, "top1": 0.06}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| Made here | own.metrics:hits |" in report and "All thresholds reached." in report

    code, out, run = suite(GOOD, "--model", "given")
    assert code == 0, out
    assert {record.model for record in run.records} == {"given"}

    tight = GOOD.replace("floor = 0.8", "floor = 0.99").replace("top1 = 0.06", "top1 = 0.0")
    code, out, run = suite(tight, "--model", "made")
    assert (code, run.passed) == (1, False)
    assert "missed: Made here own.metrics:hits on " in out and "is below its floor 99%" in out
    assert "missed: Made here top1 on " in out and "limit 0.00" in out


def test_one_that_cannot_be_measured_ends_no_other(
    suite: Callable[..., tuple[int, str, Run]], repository: Path
) -> None:
    """Each in one line, and the exit code is 1."""
    net = Net()
    (repository / "models" / "int8-of-another").mkdir()
    save_dir(net.graph(net.head(net.conv("x", 8), classes=7)), repository / "models" / "int8-of-another")
    code, out, run = suite(BAD)
    assert (code, run.passed) == (1, False)
    lines = {
        "leaks: could not be measured: ": "leaks.npz: sample 1 is also in ",
        "crashes: could not be measured: ": "Paddle crashed on this model (SIGSEGV)",
        "another: could not be measured: ": "models/fp32: gives out float32[6], but ",
        "misnamed: could not be measured: ": "models/fp32: should be a fake-quantized model, but has no quantizers",
        "float top1 on ": "not one INT8 kernel ran",
        "short: could not be measured: ": f"test.npz: {SAMPLES} samples, too few for a batch of 4000",
    }
    told = [*run.missed, *map(str, run.failures)]
    assert {failure.title for failure in run.failures} == {line.partition(":")[0] for line in lines if "could" in line}
    for begin, inside in lines.items():
        [line] = [line for line in told if line.startswith(begin)]
        assert inside in line and "\n" not in line
        assert f"{'failed' if 'could' in begin else 'missed'}: {line}" in out
    assert str(cache_root()) not in " ".join(told)  # a person knows the models that were given, not the cache
    assert {record.model for record in run.exact} == {"float", "short"}
    assert {record.model for record in run.timed} == {"float"}


def test_errors_name_what_was_given(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that were made lie in the cache, under names that say nothing."""
    (repository / "quant.toml").write_text(GOOD)
    entry = read(repository / "quant.toml").models[1]
    models = models_of(entry)

    def fails(contenders: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> None:
        raise ModelError(" and ".join(runs[0]["model"] for runs in contenders) + ": broken")

    monkeypatch.setattr(side_by_side, "bench", fails)
    given = f"{repository}/models/quant"
    with pytest.raises(ModelError, match=f"^FP32 of {given} and INT8 of {given}: broken$"):
        speed(entry, models, 1, 1, samples=SAMPLES)


def test_models_are_made_once_for_what_they_are_made_of(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "quant.toml").write_text(GOOD)
    entry = read(repository / "quant.toml").models[1]
    first = models_of(entry)
    jobs: list[str] = []
    call = isolate.call
    monkeypatch.setattr(isolate, "call", lambda job, *args, **more: (jobs.append(job), call(job, *args, **more))[1])
    assert models_of(replace(entry, name="renamed")) == first
    assert jobs == []
    other = models_of(replace(entry, op_ids_to_skip=(1,)))
    assert other != first and "quant.suites.commands:convert_model" in jobs
    assert load_dir(other.int8).op_counts() != load_dir(first.int8).op_counts()


def test_bad_input_is_exit_code_2(refused: Refused, repository: Path, tmp_path: Path) -> None:
    place = repository / "quant.toml"
    place.write_text(GOOD)
    rest = ("--output-dir", tmp_path / "out", "--history", tmp_path / "history")
    assert "unknown model in" in refused("suite", "--manifest", place, "--model", "maid", *rest)
    assert "did you mean 'made'?" in refused("suite", "--manifest", place, "--model", "maid", *rest)
    assert "give --zoo or --manifest, not both" in refused("suite", "--manifest", place, "--zoo", tmp_path, *rest)
    assert "none.toml: can't be read" in refused("suite", "--manifest", tmp_path / "none.toml", *rest)
    place.write_text(GOOD.replace("models/quant", "models/quand"))
    assert f"{place}:" in (line := refused("suite", "--manifest", place, *rest))
    assert "model 'given', key quant: " in line and "models/quand: no such directory" in line
    assert list(tmp_path.iterdir()) == []  # nothing was written


SAVED = """
[[model]]
name = "mym:one"
fp32 = "models/fp32"
calibration = "calibration.npz"
data = "test.npz"
thresholds.drop = 0.06

[[model]]
name = "given"
fp32 = "models/fp32"
int8 = "models/int8"
data = "test.npz"
thresholds.drop = 0.06
"""


def contents(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_what_passed_is_saved(
    suite: Callable[..., tuple[int, str, Run]], repository: Path, tmp_path: Path, refused: Refused, call: Call
) -> None:
    models = tmp_path / "deploy"
    text = SAVED + SAVED.replace("given", "worse").replace("0.06", "0.0\nthresholds.floor = 0.999").split("\n\n")[1]
    code, out, run = suite(text, "--save", str(models))
    assert code == 1 and not run.passed
    assert f"saved: mym:one: {models / 'mym:one' / 'int8'} (" in out
    assert "not saved: worse: it missed its limits (worse top1 on " in out and "floor" in out
    assert sorted(path.name for path in models.iterdir()) == ["given", "mym:one"]
    made = models_of(read(repository / "quant.toml").models[0])
    assert contents(models / "mym:one" / "int8") == contents(made.int8)
    assert made.quant and contents(models / "mym:one" / "quant") == contents(made.quant)
    assert contents(models / "given" / "int8") == contents(repository / "models" / "int8")
    told = json.loads((models / "mym:one" / "saved.json").read_text())
    assert told["scores"]["top1"]["limit"] == 0.06 and told["scores"]["top1"]["samples"] == SAMPLES
    assert told["command"] == run.command and told["speed"][0]["ratio"] == pytest.approx(4)

    # What was saved is replaced; what somebody changed, or put there, isn't, and nothing is measured.
    (models / "given" / "int8" / "inference.pdiparams").write_bytes(b"another")
    line = refused("suite", "--manifest", repository / "quant.toml", "--save", models)
    assert f"{models / 'given'}: is nothing that was saved there, or was changed since" in line
    shutil.rmtree(models / "given")
    code, out, _ = suite(SAVED, "--save", str(models))
    assert code == 0 and "not saved" not in out
    assert sorted(path.name for path in models.iterdir()) == ["given", "mym:one"]  # nothing of the way there is left
    code, out, _ = suite(SAVED.replace("0.06", "0.0\nthresholds.floor = 0.999"), "--save", str(models))
    assert code == 1 and f"; {models / 'given'} is an earlier run's" in out
    assert contents(models / "given" / "int8") == contents(repository / "models" / "int8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("suite", "--save", "deploy"), "--save: saves the models of a manifest; give --manifest"),
        (("gate", "--save", "deploy"), "--save: saves the models of a manifest; give --manifest"),
        (("gate", "--run", "run.json", "--save", "deploy"), "--run: compares what was measured; no"),
    ],
)
def test_only_models_of_a_manifest_are_saved(
    arguments: tuple[str, ...], told: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(*arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", ".."])
def test_a_name_that_no_directory_can_have(name: str, repository: Path, tmp_path: Path, refused: Refused) -> None:
    (repository / "quant.toml").write_text(SAVED.replace("given", name))
    assert f"model {name!r}" in refused("suite", "--manifest", repository / "quant.toml", "--save", tmp_path / "deploy")


def test_a_gate_saves_what_did_not_regress(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    def fresh(contenders: Sequence[Sequence[Mapping[str, Any]]], **_: Any) -> list[dict[str, Any]]:
        return [{"run": dict(runs[0]), "seconds": [0.01] * 96} for runs in contenders]

    monkeypatch.setattr(embedded.turns, "in_fresh_processes", fresh)
    monkeypatch.chdir(tmp_path)
    (repository / "quant.toml").write_text(SAVED)
    code, out, err = call("gate", "--manifest", repository / "quant.toml", "--save", "deploy", "--json")
    assert code == 0, err
    assert json.loads(out)["passed"] and "saved: mym:one: deploy/mym:one/int8" in err
    assert sorted(path.name for path in (tmp_path / "deploy").iterdir()) == ["given", "mym:one"]


def test_what_regressed_or_was_not_measured_is_unfit() -> None:
    run = suite_run(["resnet50"])
    [first] = run.rows
    assert saving.unfit(run, [first]) == {}
    assert saving.unfit(run, [first], regressed=[first]) == {first: "it regressed"}
    lost = replace(run, failures=(Failure(run.rows[first].title, "crashed"),))
    assert saving.unfit(lost, [first, "absent"]) == dict.fromkeys([first, "absent"], "it couldn't be measured")
