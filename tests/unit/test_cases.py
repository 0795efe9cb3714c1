"""Models measured one by one: what fails ends nothing else, and what was done before a run was cut off counts."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from quant.errors import ChildError, DataError, OptionError, OutputError
from quant.results.record import Anatomy, Record
from quant.results.target import Case
from quant.storage.checkpoint import Journal
from quant.suites.measure import Measured, Subject, Timing, measure
from tests import runs

TIMINGS = (Timing(Case(1), 1, "avx2"), Timing(Case(8), 2, "avx2"))


class Canned:
    """A subject that counts what is asked of it, and fails where it should."""

    def __init__(self, name: str, fails_at: str = "", error: Exception | None = None) -> None:
        self.name, self.fails_at = name, fails_at
        self.error = error or ChildError("crashed (SIGSEGV)")
        self.asked: list[str] = []

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what == self.fails_at:
            raise self.error

    def subject(self) -> Subject:
        def accuracy(_: object) -> list[Record]:
            self._ask("accuracy")
            return runs.accuracy(self.name, samples=10)

        def speed(timing: Timing, _: object) -> list[Record]:
            self._ask(str(timing))
            return runs.speed(self.name, 3.0, batch=timing.case.batch, threads=timing.threads, isa=timing.isa)

        def anatomy(_: object) -> Anatomy:
            self._ask("anatomy")
            return runs.anatomy()

        row = runs.run(runs.accuracy(self.name, samples=10)).rows[self.name]
        return Subject(row, accuracy, speed, TIMINGS, lambda _: self._ask("prepare"), anatomy)


def measured(*canned: Canned, **more: Any) -> Measured:
    values: dict[str, Any] = {"at_once": False, "tell": lambda _: None, "progress": lambda *_: None, **more}
    return measure([one.subject() for one in canned], **values)


ALL = ["prepare", "accuracy", "speed avx2, batch 1, 1 thread(s)", "speed avx2, batch 8, 2 thread(s)", "anatomy"]


@pytest.mark.parametrize("at_once", [False, True])
def test_everything_is_measured_in_order(at_once: bool) -> None:
    one, other = Canned("a"), Canned("b")
    found = measured(one, other, at_once=at_once)
    assert one.asked == other.asked == ALL
    assert [record.model for record in found.exact] == ["a"] * 3 + ["b"] * 3
    assert [(record.model, record.batch) for record in found.timed[::2]] == [("a", 1), ("a", 8), ("b", 1), ("b", 8)]
    assert found.anatomy == {"a": runs.anatomy(), "b": runs.anatomy()}
    assert found.failed == ()


@pytest.mark.parametrize("place", range(len(ALL) - 1))
def test_what_fails_is_left_alone_and_the_others_go_on(place: int) -> None:
    broken, sound = Canned("a", ALL[place]), Canned("b")
    found = measured(broken, sound)
    assert broken.asked == ALL[: place + 1] and sound.asked == ALL
    assert list(map(str, found.failed)) == ["a: could not be measured: crashed (SIGSEGV)"]
    assert {record.model for record in (*found.exact, *found.timed)} >= {"b"}


def test_what_a_model_consists_of_is_no_verdict() -> None:
    found = measured(Canned("a", "anatomy"), Canned("b"))
    assert found.failed == () and list(found.anatomy) == ["b"]
    assert found.untold == ("a: not told what it consists of: crashed (SIGSEGV)",)


def test_nothing_but_errors_is_an_error() -> None:
    broken = [Canned("a", "prepare", DataError("first")), Canned("b", "accuracy", DataError("second"))]
    with pytest.raises(DataError, match="first"):
        measured(*broken)


def test_a_crash_is_kept_though_nothing_else_was_measured() -> None:
    found = measured(Canned("a", "prepare", DataError("first")), Canned("b", "accuracy"))
    assert [failure.title for failure in found.failed] == ["a", "b"] and found.exact == found.timed == ()


def test_a_second_measurement_loses_no_first_one() -> None:
    speed = ALL[3]
    found = measured(Canned("a", speed, DataError("gone")), only=lambda name, timing: timing is TIMINGS[1])
    assert list(map(str, found.failed)) == ["a: could not be measured: gone"] and found.timed == ()


def test_a_place_that_cannot_be_written_ends_all_of_it() -> None:
    with pytest.raises(OutputError, match="no space left"):
        measured(Canned("a", "accuracy", OutputError("no space left")), Canned("b"))


def test_only_some_timings() -> None:
    one = Canned("a")
    found = measured(one, only=lambda name, timing: timing is TIMINGS[1])
    assert one.asked == ALL[3:4] and found.exact == () and len(found.timed) == 2


# --- the journal


ABOUT = {"command": "quant suite", "versions": {"numpy": "2"}, "state": [["a", 1]]}


def journal(place: Path, fresh: bool = False, told: list[str] | None = None, **more: object) -> Journal:
    return Journal(place / "j.jsonl", {**ABOUT, **more}, fresh=fresh, tell=None if told is None else told.append)


def cut_off(place: Path, *canned: Canned) -> None:
    """A run that ends by an error which isn't one of a model's."""
    with pytest.raises(KeyboardInterrupt), journal(place) as kept:
        measured(*canned, journal=kept)


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    plain = measured(Canned("a"), Canned("b"))
    cut_off(tmp_path, Canned("a"), Canned("b", ALL[2], KeyboardInterrupt()))  # type: ignore[arg-type]
    one, other = Canned("a"), Canned("b")
    told: list[str] = []
    with journal(tmp_path, told=told) as kept:
        found = measured(one, other, journal=kept)
    assert told == [f"{tmp_path}/j.jsonl: 4 results of a run that was cut off are reused; --fresh starts anew"]
    assert (one.asked, other.asked) == (["prepare", "anatomy"], ["prepare", *ALL[2:]])
    assert found == plain
    assert list(tmp_path.iterdir()) == []  # done


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    cut_off(tmp_path, Canned("a", ALL[3], KeyboardInterrupt()))  # type: ignore[arg-type]
    file = tmp_path / "j.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    one = Canned("a")
    with journal(tmp_path) as kept:
        measured(one, journal=kept)
    assert one.asked == ["prepare", *ALL[2:]]


def test_a_damaged_line_is_measured_again(tmp_path: Path) -> None:
    cut_off(tmp_path, Canned("a"), Canned("b", ALL[3], KeyboardInterrupt()))  # type: ignore[arg-type]
    file = tmp_path / "j.jsonl"
    file.write_text(file.read_text().replace('"origin": ""', '"origin": []', 1))
    one = Canned("a")
    with journal(tmp_path) as kept:
        measured(one, journal=kept)
    assert one.asked == ["prepare", ALL[1], ALL[4]]  # the anatomy hadn't been reached


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    cut_off(tmp_path, Canned("a", ALL[2], KeyboardInterrupt()))  # type: ignore[arg-type]
    kept, left = tmp_path / "j.jsonl", "left by a run that was cut off"
    before = kept.read_bytes()
    for other, words in (
        ({"state": [["a", 2]]}, "state"),
        ({"command": "quant gate"}, r"command \(quant suite, now quant gate\)"),
        ({"versions": {"numpy": "3"}, "more": 1}, r"versions numpy \(2, now 3\), more"),
    ):
        with pytest.raises(OptionError, match=rf"j\.jsonl: {left}, with other inputs: {words}; --fresh starts anew"):
            journal(tmp_path, **other)
        assert kept.read_bytes() == before
    kept.write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(OptionError, match=rf"{left}, whose inputs can't be read; --fresh starts anew"):
        journal(tmp_path)
    for again in range(2):
        one, told = Canned("a"), list[str]()
        with journal(tmp_path, fresh=not again, told=told, state=[["a", 2]]) as found:
            measured(one, journal=found)
        assert (one.asked, told, list(tmp_path.iterdir())) == (ALL, [], [])


def test_fresh_starts_anew_with_the_same_inputs_too(tmp_path: Path) -> None:
    cut_off(tmp_path, Canned("a", ALL[3], KeyboardInterrupt()))  # type: ignore[arg-type]
    one = Canned("a")
    with journal(tmp_path, fresh=True) as kept:
        measured(one, journal=kept)
    assert one.asked == ALL


def test_two_runs_at_one_place(tmp_path: Path) -> None:
    with journal(tmp_path), pytest.raises(OutputError, match="another run is writing there"):
        journal(tmp_path)
    with journal(tmp_path):
        pass


def _until_killed(place: Path) -> None:
    with journal(place) as kept:
        kept.kept("first", lambda: {"value": 1.5})
        kept.kept("second", lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_kill_loses_only_what_was_being_measured(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_until_killed, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL

    def again() -> dict[str, float]:
        raise DataError("was done already")

    with journal(tmp_path) as kept:
        assert kept.kept("first", again) == {"value": 1.5}
        assert kept.kept("second", lambda: [2]) == [2]


def test_a_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with journal(tmp_path) as kept:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"j\.jsonl: can't be written \(No space left on device\)"):
            kept.kept("first", lambda: 1)
