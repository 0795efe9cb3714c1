"""`quant gate` and `quant history` on runs that were stored, and the gate's own measuring with canned models."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quant import cpu
from quant.cli import gating as command
from quant.errors import ChildError
from quant.results import history
from quant.results.record import Load, Machine, Record, Run
from quant.results.target import Row
from quant.suites.measure import Subject, Timing
from quant.suites.registry import find
from tests import runs
from tests.unit.test_gate import speed

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]
TIER = cpu.detect().name


def stored(place: Path, name: str, **more: object) -> str:
    file = place / name
    file.write_text(runs.run(runs.accuracy("resnet50"), speed(**more), kind="gate").to_json())  # type: ignore[arg-type]
    return str(file)


def test_two_stored_runs(tmp_path: Path, call: Call) -> None:
    before, same = stored(tmp_path, "a.json"), stored(tmp_path, "b.json", seed=1)
    slower = stored(tmp_path, "c.json", ratio=3.4 / 1.15, seed=2)
    faster = stored(tmp_path, "d.json", ratio=3.4)
    code, out, _ = call("gate", "--run", same, "--baseline", before, "--history", str(tmp_path / "none"))
    assert code == 0 and "passed" in out and f"compared with {before}" in " ".join(out.split())
    summary = tmp_path / "summary.md"
    options = ("--baseline", faster, "--history", str(tmp_path / "none"), "--summary", str(summary))
    code, out, _ = call("gate", "--run", slower, *options, "--json")
    told = json.loads(out)
    assert code == 1 and not told["passed"]
    [change] = [change for change in told["changes"] if change["result"] == "REGRESSED"]
    assert change["key"]["what"] == "speed" and change["loss"] == pytest.approx(0.13, abs=0.02)
    assert summary.read_text().startswith("# INT8 gate: FAILED")
    call("gate", "--run", same, *options)
    assert summary.read_text().count("# INT8 gate") == 2  # as GitHub's step summary: appended
    assert list((tmp_path / "none").glob("*")) == []  # nothing was measured, so nothing is recorded


def test_a_missing_baseline_is_recorded(tmp_path: Path, call: Call) -> None:
    code, out, _ = call("gate", "--run", stored(tmp_path, "a.json"), "--history", str(tmp_path / "none"))
    assert code == 0 and "recorded: there is no comparable run to compare with" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--run", "{tmp}/none.json"), "none.json: can't be read (No such file or directory)"),
        (("--run", "{tmp}/broken.json"), "broken.json: schema None, this version reads"),
        (
            ("--run", "{tmp}/a.json", "--model", "gru"),
            "--run: compares what was measured; no --model, --manifest, --threads, --accept, --save or --fresh",
        ),
        (("--run", "{tmp}/a.json", "--baseline", "nonsense"), "--baseline: 'nonsense' is no file, and no commit"),
        (("--run", "{tmp}/a.json", "--summary", "{tmp}/no/s.md"), "no/s.md: can't be written: no such directory"),
        (("--model", "resnet51"), "did you mean 'resnet50'?"),
        (("--threads", "0"), "--threads: '0' is not a list of numbers above 0"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], told: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    stored(tmp_path, "a.json")
    (tmp_path / "broken.json").write_text("{}")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert told in refused("gate", "--history", str(tmp_path / "h"), *given)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing else runs: these figures are invented, and not this machine's."""
    monkeypatch.setattr("quant.results.environment.Watch.load", lambda _: Load(0.1, 0.0, 0))


class Canned:
    """A subject whose FP32 / INT8 is what comes next of a list."""

    def __init__(self, *ratios: float) -> None:
        self.ratios = list(ratios)
        self.asked = 0

    def __call__(self, *_: object) -> Subject:
        row = Row.of(find("resnet50"))

        def timed(*_: object) -> list[Record]:
            if self.asked == len(self.ratios):
                raise KeyboardInterrupt
            self.asked += 1
            return [replace(record, isa=TIER) for record in speed(ratio=self.ratios[self.asked - 1], seed=self.asked)]

        def exact(_: object) -> list[Record]:
            return runs.accuracy("resnet50", isas=(TIER,))

        return Subject(row, exact, timed, (Timing(row.cases[0], 1, TIER),))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("ratios", "codes", "asked", "told"),
    [
        ((3.4, 3.4), (0, 0), 2, "passed"),
        ((3.4, 3.0, 3.4), (0, 0), 3, "not confirmed; measured again"),
        ((3.4, 3.0, 3.0), (0, 1), 3, "REGRESSED: resnet50, speed"),
    ],
)
def test_a_loss_is_measured_once_more_before_it_fails(
    ratios: tuple[float, ...],
    codes: tuple[int, int],
    asked: int,
    told: str,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canned = Canned(*ratios)
    monkeypatch.setattr(command.subjects_of, "gated", canned)
    options = ("gate", "--model", "resnet50", "--history", str(tmp_path))
    assert call(*options)[0] == codes[0]
    code, out, err = call(*options)
    assert (code, canned.asked) == (codes[1], asked)
    assert told in " ".join(out.split())
    assert ("measured once more: resnet50, speed" in err) == (asked == 3)
    both = [found.passed for _, found in history.runs(tmp_path)]
    assert sorted(both) == sorted([True, codes[1] == 0])


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("reached", [1, 2])
def test_a_gate_that_was_cut_off_goes_on(
    reached: int, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it measured, and while it measured a loss once more: what was measured isn't measured again."""
    options = ("gate", "--model", "resnet50", "--history", str(tmp_path))
    monkeypatch.setattr(command.subjects_of, "gated", Canned(3.4))
    assert call(*options)[0] == 0
    canned = Canned(*[3.0, 3.0][: reached - 1])  # out of figures, somebody presses Ctrl-C
    monkeypatch.setattr(command.subjects_of, "gated", canned)
    code, _, err = call(*options)
    assert code == 2 and err.endswith("quant: interrupted\n")
    assert (tmp_path / ".gate.jsonl").exists() and len(list(history.runs(tmp_path))) == 1
    left = Canned(*[3.0, 3.0][reached - 1 :])
    monkeypatch.setattr(command.subjects_of, "gated", left)
    code, out, err = call(*options)
    assert f"{tmp_path}/.gate.jsonl: " in err and "of a run that was cut off are reused; --fresh starts anew" in err
    assert (code, left.asked) == (1, 3 - reached)
    assert "REGRESSED: resnet50, speed" in " ".join(out.split())
    assert not (tmp_path / ".gate.jsonl").exists() and len(list(history.runs(tmp_path))) == 2


@pytest.mark.usefixtures("quiet")
def test_a_model_that_crashes_while_it_is_measured_once_more_loses_nothing(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(found: Subject, canned: Canned) -> Subject:
        def timed(*given: object) -> list[Record]:
            if canned.asked:
                raise ChildError("Paddle crashed on this model (SIGSEGV)", ("its last line",))
            return found.speed(*given)  # type: ignore[arg-type]

        return replace(found, speed=timed)

    options = ("gate", "--model", "resnet50", "--history", str(tmp_path))
    monkeypatch.setattr(command.subjects_of, "gated", Canned(3.4))
    assert call(*options)[0] == 0
    canned = Canned(3.0)
    monkeypatch.setattr(command.subjects_of, "gated", lambda *given: crash(canned(*given), canned))
    code, out, _ = call(*options)
    assert code == 1
    assert "failed: ResNet-50: could not be measured: Paddle crashed on this model (SIGSEGV)\n    its last line" in out
    [_, (_, run)] = history.runs(tmp_path)
    assert (run.passed, [failure.log for failure in run.failures]) == (False, [("its last line",)])
    assert len(run.exact) == 3 and len(run.timed) == 2


@pytest.mark.usefixtures("quiet")
def test_what_is_meant_to_be_slower_becomes_the_baseline(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    canned = Canned(3.4, 3.0, 3.0, 3.0, 3.0, 3.0)
    monkeypatch.setattr(command.subjects_of, "gated", canned)
    options = ("gate", "--model", "resnet50", "--history", str(tmp_path))
    codes = [call(*options, *more)[0] for more in ((), (), ("--accept",))]
    assert codes == [0, 1, 0]
    newest = max(history.runs(tmp_path), key=lambda found: found[1].started)[1]
    assert isinstance(newest, Run) and newest.machine == Machine.here()
    assert call(*options)[0] == 0  # against the accepted one, though the first is there as well


def test_the_runs_and_the_course_of_a_model(tmp_path: Path, call: Call) -> None:
    place = tmp_path / "h"
    for day, slower in ((1, 1.0), (2, 1.3)):
        started = f"2026-11-0{day}T00:00:00+00:00"
        history.append(place, runs.suite_run(["resnet50", "gru"], started=started, commit=f"{day}cd", slower=slower))
    history.append(place, runs.run(runs.accuracy("vgg16"), started="2026-11-03T00:00:00+00:00", passed=False))
    (place / "broken.json").write_text("{")
    options = ("--history", str(place))
    code, out, err = call("history", *options, "--json")
    assert code == 0 and "left out: " in err and "broken.json" in err
    listed = json.loads(out)
    assert [row["Commit"] for row in listed] == ["1cd", "2cd", "19e416a"]
    assert [row["Models"] for row in listed] == ["2", "2", "1"]
    assert [row["Result"] for row in listed] == ["passed", "passed", "FAILED"]
    plot = tmp_path / "course.svg"
    code, out, _ = call("history", "gru", *options, "--plot", str(plot), "--json")
    first, second = json.loads(out)  # the third run didn't measure it
    case = "FP32 / INT8 batch 50, 1 thread(s)"
    assert float(first[case]) / float(second[case]) == pytest.approx(1.3, abs=0.02)
    assert first["Drop f1"].startswith("+") and "Drop tags" in first
    assert plot.read_text().startswith("<?xml") and "batch 50, 1 thread(s)" in plot.read_text()
    assert "Worst drop" in call("history", *options)[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--history", "{tmp}/none"), "none: no such directory; `quant suite` or `quant gate` makes it"),
        (("--history", "{tmp}/h", "--plot", "{tmp}/x.svg"), "--plot: only with a model, which it draws"),
        (("gruu", "--history", "{tmp}/h"), "gruu'; did you mean 'gru'?"),
        (("gru", "--history", "{tmp}/h", "--plot", "{tmp}/no/x.svg"), "x.svg: can't be written"),
    ],
)
def test_bad_input_of_history(
    arguments: tuple[str, ...], told: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    history.append(tmp_path / "h", runs.suite_run(["gru"]))
    assert told in refused("history", *[argument.format(tmp=tmp_path) for argument in arguments])
