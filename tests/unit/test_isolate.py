"""Children: results, errors, crashes, hangs; the cache under two processes; outputs whole or absent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quant import isolate, places
from quant.errors import ChildError, DataError, OptionError, OutputError

HERE = "tests.unit.test_isolate"


# --- jobs, run in children


def add(left: int, right: int) -> int:
    return left + right


def refuse() -> None:
    raise DataError("file.bin: is wrong")


def crash(model: str) -> None:
    print("some log line\nInvalidArgumentError: what Paddle said last", flush=True)
    os.kill(os.getpid(), 11)


def hang(model: str) -> None:
    time.sleep(60)


def talk() -> str:
    isolate.report_progress("reading", 0, 3)
    print("onednn_verbose,hello", flush=True)
    isolate.report_progress("reading", 1, 3)
    isolate.report_progress("reading", 3, 3)
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "") + os.environ["OMP_NUM_THREADS"]


def work_on(rounds: int) -> str:
    """Half a second a round, and a word after each."""
    for done in range(rounds):
        time.sleep(0.5)
        isolate.report_event({"done": done})
    return "done"


def build_slowly(log: str) -> str:
    def build(staging: Path) -> None:
        with open(log, "a") as file:
            file.write("built\n")
        (staging / "a").write_text("first half ")
        time.sleep(0.5)
        with (staging / "a").open("a") as file:
            file.write("second half")

    return (places.cached("thing", ["key"], build) / "a").read_text()


# --- tests


def test_a_result_comes_back() -> None:
    assert isolate.call(f"{HERE}:add", {"left": 2, "right": 3}) == 5


def test_the_librarys_own_errors_come_back_as_they_were() -> None:
    with pytest.raises(DataError, match=r"^file\.bin: is wrong$"):
        isolate.call(f"{HERE}:refuse", {})


def test_a_crash_is_an_error_with_model_signal_and_last_words() -> None:
    with pytest.raises(ChildError, match=r"^/m: Paddle crashed on this model \(SIGSEGV\): InvalidArgumentError: what"):
        isolate.call(f"{HERE}:crash", {"model": "/m"})


def test_a_hang_is_ended() -> None:
    begin = time.monotonic()
    with pytest.raises(ChildError, match="exceeded 1 s"):
        isolate.call(f"{HERE}:hang", {"model": "/m"}, timeout_s=1)
    assert time.monotonic() - begin < 10


def test_progress_log_isa_and_threads() -> None:
    seen: list[object] = []
    isa = isolate.call(
        f"{HERE}:talk", {}, isa="avx2", threads=2, log=seen.append, progress=lambda *step: seen.append(step)
    )
    assert isa == "AVX22"
    told = [entry for entry in seen if entry]
    assert told == [("reading", 0, 3), "onednn_verbose,hello", ("reading", 1, 3), ("reading", 3, 3)]


def test_a_child_may_take_its_time_while_it_makes_progress() -> None:
    heard: list[object] = []
    assert isolate.call(f"{HERE}:work_on", {"rounds": 4}, timeout_s=1.5, heard=heard.append) == "done"
    assert heard == [{"done": done} for done in range(4)]


def test_who_hears_of_an_event_may_end_the_child() -> None:
    def enough(event: object) -> None:
        raise ZeroDivisionError

    begin = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        isolate.call(f"{HERE}:work_on", {"rounds": 100}, heard=enough)
    assert time.monotonic() - begin < 20


def test_an_isa_beyond_this_cpu_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown ISA 'sse9'"):
        isolate.call(f"{HERE}:talk", {}, isa="sse9")


def test_two_processes_build_a_cached_thing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "cache"))
    log = tmp_path / "log"
    script = f"import sys; from {HERE} import build_slowly; print(build_slowly(sys.argv[1]))"
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(log)], cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == ["first half second half"] * 2
    assert log.read_text() == "built\n"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path))

    def build(staging: Path) -> None:
        (staging / "half").touch()
        raise DataError("no")

    with pytest.raises(DataError):
        places.cached("thing", ["key"], build)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_outputs_never_overwrite(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("full", "file"):
        with pytest.raises(OutputError, match="not an empty directory"), places.fresh_dir(tmp_path / name):
            pass
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    with places.fresh_dir(tmp_path / "empty") as staging:
        (staging / "a").touch()
    assert (tmp_path / "empty" / "a").exists()


def test_what_went_in_decides_the_name(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    first = places.digest(["a", file])
    assert first == places.digest(["a", file]) != places.digest(["af", ""])
    file.write_text("two")
    assert places.digest(["a", file]) != first
