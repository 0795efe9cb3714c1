"""Two runs compared: what is chance, what is noise, what regressed. And which run another one is compared with."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.errors import DataError, OptionError
from quant.reports import gate as gate_report
from quant.results import gate, history
from quant.results.gate import Change
from quant.results.history import Baseline
from quant.results.record import Load, Record, Run
from tests import runs

PROCESSES = 8


def speed(
    name: str = "resnet50", ratio: float = 3.0, *, seed: int = 0, spread: float = 0.01, twin: float = 1.0
) -> list[Record]:
    """FP32 and INT8 with a twin, in fresh processes: each has its own luck, of this standard deviation."""
    fp32, int8 = runs.speed(name, ratio, 0.005, PROCESSES, seed=seed)
    random = np.random.default_rng([seed, 77])
    rounds = len(int8.latency_s) // PROCESSES

    def lucky(seconds: Sequence[float]) -> tuple[float, ...]:
        luck = np.repeat(np.exp(spread * random.standard_normal(PROCESSES)), rounds)
        return tuple((np.array(seconds) * luck).tolist())

    twins = tuple(twin * value for value in lucky(int8.latency_s))
    return [
        replace(fp32, latency_s=lucky(fp32.latency_s)),
        replace(int8, latency_s=lucky(int8.latency_s), twin_s=twins),
    ]


def timed(ratio: float = 3.0, **more: object) -> Run:
    return runs.run([], speed(ratio=ratio, **more), kind="gate")  # type: ignore[arg-type]


def only(changes: Sequence[Change], what: str = "speed") -> Change:
    [found] = [change for change in changes if change.key.what.startswith(what)]
    return found


def test_the_same_code_is_the_same_and_a_tenth_slower_is_not() -> None:
    same = [only(gate.compare(timed(), timed(seed=seed))) for seed in range(1, 41)]
    assert {change.result for change in same} == {"same"}
    slower = [only(gate.compare(timed(), timed(3.0 / 1.1, seed=seed))) for seed in range(1, 41)]
    assert {change.result for change in slower} == {"REGRESSED"}
    assert np.median([change.loss for change in slower]) == pytest.approx(1 / 11, abs=0.01)
    assert all(change.low < change.loss < change.high for change in slower)
    assert only(gate.compare(timed(), timed(3.3))).result == "better"


def test_a_loss_too_small_to_matter_does_not_count_however_certain() -> None:
    change = only(gate.compare(timed(spread=0.001), timed(2.9, spread=0.001, seed=1)))
    assert change.p_value < 0.001 and change.result == "same" and change.least == gate.LEAST_LOSS


def test_noise_that_the_twin_shows_makes_a_loss_invalid() -> None:
    """The model and its twin differ by 8%: on such a machine a loss of 9% says nothing."""
    before, after = timed(twin=1.08), timed(3.0 / 1.1, seed=1)
    change = only(gate.compare(before, after))
    assert change.result == "INVALID" and change.least > 0.15
    assert "INVALID: resnet50, speed" in "\n".join(gate_report.verdict([change], [], None))
    assert gate_report.outcome(True, [change]) == "INVALID where said so; passed elsewhere"
    assert gate_report.outcome(False, [change]) == "FAILED"
    assert gate_report.outcome(True, gate.compare(before, before)) == "passed"
    assert gate_report.outcome(True, gate.compare(None, before)) == "recorded"


def test_stolen_time_makes_a_loss_invalid_and_leaves_the_rest_alone() -> None:
    stolen = replace(timed(3.0 / 1.1, seed=1), load=Load(0.1, 0.12, 3))
    change = only(gate.compare(timed(), stolen))
    assert change.result == "INVALID" and change.note == "12% of the CPU time was stolen"
    assert only(gate.compare(timed(), replace(timed(seed=1), load=Load(0.1, 0.12, 3)))).result == "same"


def test_a_loss_has_to_be_found_twice() -> None:
    before, once, sound = timed(), timed(3.0 / 1.1, seed=1), timed(seed=2)
    changes = gate.compare(before, once)
    assert [key.what for key in gate.suspects(changes)] == ["speed"]
    assert only(gate.confirmed(changes, before, sound)).result == "same"
    assert only(gate.confirmed(changes, before, sound)).note.startswith("not confirmed; measured again: ")
    again = only(gate.confirmed(changes, before, timed(3.0 / 1.1, seed=3)))
    assert again.result == "REGRESSED" and again.note.startswith("measured again: +")
    noisy = only(gate.confirmed(changes, before, timed(3.0 / 1.1, seed=3, twin=1.1)))
    assert noisy.result == "INVALID"


def test_what_was_timed_in_one_process_is_not_compared() -> None:
    plain = runs.run([], runs.speed("resnet50", 3.0))
    assert gate.compare(plain, plain) == []
    assert only(gate.compare(plain, timed())).result == "recorded"


def test_a_drop_of_a_point_is_found_and_other_data_is_not_compared() -> None:
    before = runs.run(runs.accuracy("resnet50", lost=10, won=10))
    point = runs.run(runs.accuracy("resnet50", lost=34, won=14))
    found = only(gate.compare(before, point), "accuracy")
    assert (found.result, round(100 * found.loss, 6)) == ("REGRESSED", 1.0)
    assert gate.suspects([found]) == []  # outcomes are exact: measuring them again says the same
    assert only(gate.compare(before, before), "accuracy").result == "same"
    assert only(gate.compare(before, runs.run(runs.accuracy("resnet50", lost=8, won=10))), "accuracy").result == "same"
    other = runs.run(runs.accuracy("resnet50", lost=34, won=14, data="d1"))
    assert only(gate.compare(before, other), "accuracy").note == "other data"
    fewer = runs.run(runs.accuracy("resnet50", lost=34, won=14, samples=1000))
    assert only(gate.compare(before, fewer), "accuracy").result == "recorded"


def test_int8_that_runs_in_fp32_is_a_regression() -> None:
    before, after = (runs.run(runs.accuracy("resnet50", share=share)) for share in (1.0, 0.97))
    assert only(gate.compare(before, after), "INT8 share").result == "REGRESSED"
    assert only(gate.compare(after, before), "INT8 share").result == "better"


def test_a_share_of_less_than_before_is_no_equal_share() -> None:
    whole = runs.run(runs.accuracy("resnet50"))
    partial = replace(
        whole,
        records=tuple(replace(r, uncounted=("custom",)) if r.precision == "int8" else r for r in whole.records),
    )
    found = only(gate.compare(whole, partial), "INT8 share")
    assert (found.result, found.note) == ("REGRESSED", "not counted any more: custom")
    assert gate.suspects([found]) == []
    found = only(gate.compare(partial, whole), "INT8 share")
    assert (found.result, found.note) == ("recorded", "counted now: custom")
    assert only(gate.compare(partial, partial), "INT8 share").result == "same"


def test_many_cases_that_changed_are_held_to_more() -> None:
    """A p-value of 0.04 convinces alone, and beside models that answer as before, but not among others that changed."""
    alone = runs.accuracy("resnet50", lost=22, won=14)
    before = runs.accuracy("resnet50", lost=10, won=10)
    assert only(gate.compare(runs.run(before), runs.run(alone)), "accuracy").result == "REGRESSED"
    rest = [record for spec in list(runs.BY_NAME)[1:] for record in runs.accuracy(spec)]
    changes = gate.compare(runs.run([*before, *rest]), runs.run([*alone, *rest]))
    assert [change.key.model for change in changes if change.result == "REGRESSED"] == ["resnet50"]
    images = list(runs.BY_NAME)[1:8]
    old, new = ([r for name in images for r in runs.accuracy(name, lost=3, won=won)] for won in (2, 3))
    changes = gate.compare(runs.run([*before, *old]), runs.run([*alone, *new]))
    assert {change.result for change in changes} == {"same"}


def test_without_a_baseline_everything_is_recorded() -> None:
    run = runs.run(runs.accuracy("gru"), speed("gru"))
    changes = gate.compare(None, run)
    assert {change.result for change in changes} == {"recorded"}
    assert len(changes) == 3 + 1 + 1  # three metrics, the share, the speed
    assert gate_report.verdict(changes, [], None) == ["recorded: there is no comparable run to compare with"]


def test_tables_json_and_markdown() -> None:
    hostile = "a|b<script>`c`"
    records = [*runs.accuracy(hostile), *speed(hostile, 3.0 / 1.1, seed=1)]
    before = runs.run([*runs.accuracy(hostile), *speed(hostile)])
    after = runs.run(records)
    changes = gate.compare(before, after)
    table = gate_report.table(changes)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [row[-1] for row in table.rows] == ["REGRESSED", "same", "same"]
    found = Baseline(Path("h/x.json"), before, ("CPU other",))
    lines = gate_report.verdict(changes, ["a limit"], found)
    assert lines[0].startswith("compared with h/x.json, 2026-11-21T21:57:09+00:00, commit 19e416a0c5 (CPU other)")
    assert lines[1] == "limit: a limit" and lines[2].startswith("REGRESSED: a|b<script>`c`, speed avx512_vnni, batch 1")
    assert gate_report.next_steps(after, changes) == ["next: quant profile 'a|b<script>`c`'"]
    text = gate_report.summary(False, lines, changes)
    assert text.startswith("# INT8 gate: FAILED") and "<script>" not in text and "a\\|b&lt;script>\\`c\\`" in text
    told = json.loads(json.dumps(gate_report.as_json(False, found, ["a limit"], changes)))
    assert (told["passed"], told["baseline"], told["unlike"]) == (False, "h/x.json", ["CPU other"])
    assert {change["key"]["what"] for change in told["changes"]} == {"accuracy top1", "INT8 share", "speed"}


# --- the history


def commit(directory: Path, message: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for arguments in (("commit", "-q", "--allow-empty", "-m", message),):
        subprocess.run(["git", *who, *arguments], cwd=directory, check=True)
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=directory, check=True, capture_output=True, text=True)
    return found.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three commits, oldest first; the current directory."""
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return [commit(tmp_path, name) for name in "abc"]


def recorded(hour: int, commit: str = "", **more: object) -> Run:
    values = {"kind": "gate", "commit": commit, "started": f"2026-11-21T{hour:02d}:00:00+00:00", **more}
    return runs.run(runs.accuracy("resnet50"), speed(), **values)


NOW = recorded(23)


def test_runs_are_kept_and_never_replaced(tmp_path: Path) -> None:
    files = [history.append(tmp_path / "h", recorded(3, "abcdef012")) for _ in range(3)]
    assert [file.name for file in files] == [f"20261121T030000Z-abcdef0-gate{end}.json" for end in ("", "_2", "_3")]
    assert {run.to_json() for _, run in history.runs(tmp_path / "h")} == {recorded(3, "abcdef012").to_json()}
    later = history.append(tmp_path / "h", recorded(4, "0bcdef012"))
    assert history.newest(tmp_path / "h") == later


def test_damaged_and_foreign_files_are_told_and_left_out(tmp_path: Path) -> None:
    history.append(tmp_path, recorded(3))
    (tmp_path / "a.json").write_text('{"schema": 1}')
    (tmp_path / "b.json").write_text("{")
    told: list[str] = []
    assert len(list(history.runs(tmp_path, told.append))) == 1
    assert len(told) == 2 and "a.json: schema 1, this version reads" in told[0] and "b.json" in told[1]
    with pytest.raises(DataError, match=r"a.json: schema 1"):
        history.load(tmp_path / "a.json")
    with pytest.raises(DataError, match="no such directory"):
        list(history.runs(tmp_path / "none"))


def test_the_nearest_comparable_run_is_chosen(tmp_path: Path) -> None:
    """Each run is nearer than those before it, though they are newer."""
    new = {"cpu": "another CPU"}
    far = [
        recorded(20, machine=runs.machine("avx2")),  # other instructions: never
        recorded(19, passed=False),  # what regressed: never
        recorded(18, kind="suite"),
        recorded(17, machine=runs.machine(**new)),  # type: ignore[arg-type]
        recorded(16, machine=runs.machine(cores=8)),
        recorded(15, machine=runs.machine(packages={"paddlepaddle": "3.3.0"})),
        recorded(14),
        recorded(13),
    ]
    for place, run in enumerate(far):
        history.append(tmp_path / "h", run)
        found = history.baseline(tmp_path / "h", None, NOW)
        expected = None if place < 2 else run if place < 7 else far[6]
        assert (found and found.run.started) == (expected and expected.started)
    assert history.differences(far[3], NOW) == ("CPU another CPU",)
    assert history.differences(far[4], NOW) == ("8 cores, now 2",)
    assert "paddlepaddle 3.3.0, now 3.3.1" in history.differences(far[5], NOW)
    assert history.baseline(tmp_path / "none", None, NOW) is None
    other = runs.run(runs.accuracy("vgg16"))
    assert history.baseline(tmp_path / "h", None, other) is None  # none of them measured that model


def test_a_run_of_the_history_is_compared_with_what_was_before_it(tmp_path: Path) -> None:
    files = [history.append(tmp_path, recorded(hour)) for hour in (1, 2, 3)]
    found = [history.baseline(tmp_path, None, history.load(file)) for file in files]
    assert [baseline and baseline.path for baseline in found] == [None, *files[:2]]


def test_a_commit_means_its_run_or_that_of_the_nearest_ancestor(repository: list[str], tmp_path: Path) -> None:
    first, second, third = repository
    history.append(tmp_path / "h", recorded(1, first))
    history.append(tmp_path / "h", recorded(2, third))
    history.append(tmp_path / "h", recorded(3, second, dirty=True))  # that is not the commit

    def chosen(reference: str) -> str:
        found = history.baseline(tmp_path / "h", reference, NOW)
        assert found is not None
        return found.run.commit

    assert chosen("main") == chosen(third[:8]) == third
    assert chosen("main~1") == chosen(first) == first
    with pytest.raises(OptionError, match=r"--baseline: 'nonsense' is no file, and no commit, branch or tag"):
        history.baseline(tmp_path / "h", "nonsense", NOW)
    with pytest.raises(OptionError, match=r"--baseline: '--all'"):
        history.baseline(tmp_path / "h", "--all", NOW)
    file = history.append(tmp_path / "elsewhere", recorded(4, "x", passed=False))
    named = history.baseline(tmp_path / "h", str(file), NOW)
    assert named is not None and named.run.commit == "x"
