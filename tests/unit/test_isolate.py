"""Children: results, errors, crashes, hangs; the cache under two processes; outputs whole or absent."""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from quant.errors import ChildError, DataError, OptionError, OutputError, log_of
from quant.process import isolate
from quant.storage import cache, digests, files

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
    print("about to hang", flush=True)
    time.sleep(60)


def die(how: int) -> None:
    os.kill(os.getpid(), how)


def chatter() -> None:
    """More than is kept, and what would do something to a terminal."""
    print("\n".join(f"line {number}" for number in range(30)))
    print("\x1b[31mred\x1b[0m\x07 \x1b]0;title\x07\ttab\r", "", "x" * 1000, "\x1equant {broken", sep="\n", flush=True)
    raise KeyError("what went wrong")


def fill_memory() -> None:
    raise MemoryError


def fill_disk(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    Path(path).write_bytes(bytes(1000))


def start_others() -> None:
    """Hang, in native code that holds the GIL; beside a child of one's own, and a process that is none."""
    others = [subprocess.Popen(["sleep", "60"]).pid]
    with isolate.Child(f"{HERE}:tell_and_hang", {}) as child:
        others.append(child.hear_event()["pid"])
        isolate.report_event({"pids": [os.getpid(), *others]})
        ctypes.PyDLL(None).sleep(60)


def crash_over_files() -> None:
    Path(tempfile.mkdtemp(), "model").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGSEGV)


def tell_and_hang() -> None:
    isolate.report_event({"pid": os.getpid()})
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

    return (cache.cached("thing", ["key"], build) / "a").read_text()


# --- tests


def test_a_result_comes_back() -> None:
    assert isolate.call(f"{HERE}:add", {"left": 2, "right": 3}) == 5


def test_the_librarys_own_errors_come_back_as_they_were() -> None:
    with pytest.raises(DataError, match=r"^file\.bin: is wrong$"):
        isolate.call(f"{HERE}:refuse", {})


def failure(job: str, **arguments: object) -> ChildError:
    """What a job's call raises; its message is one line."""
    with pytest.raises(ChildError) as caught:
        isolate.call(f"{HERE}:{job}", arguments)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_crash_is_an_error_with_model_signal_last_words_and_log() -> None:
    error = failure("crash", model="/m")
    assert str(error).startswith("/m: Paddle crashed on this model (SIGSEGV): InvalidArgumentError: what")
    assert error.log == ("some log line", "InvalidArgumentError: what Paddle said last")


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_TIMEOUT", "1.5")
    begin = time.monotonic()
    error = failure("hang", model="/m")
    assert str(error) == (
        "/m: the child process hung: it exceeded 1.5 s without progress and was ended (QUANT_TIMEOUT)"
    )
    assert error.log == ("about to hang",)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_TIMEOUT", text)
    with pytest.raises(OptionError, match=f"^QUANT_TIMEOUT: '{text}' is not a number of seconds above 0$"):
        isolate.call(f"{HERE}:add", {"left": 2, "right": 3})


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (signal.SIGABRT, "Paddle crashed on this model (SIGABRT)"),
        (signal.SIGTERM, "the child process was ended from outside (SIGTERM)"),
        (signal.SIGRTMIN + 3, f"the child process was ended from outside (signal {signal.SIGRTMIN + 3})"),
        (signal.SIGKILL, "the child process was killed (SIGKILL); where nobody did that, memory ran out"),
    ],
)
def test_what_ended_a_child_is_told_apart(sent: int, told: str) -> None:
    assert str(failure("die", how=sent)) == told


def test_the_kernel_tells_when_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([3, 4])
    monkeypatch.setattr(isolate, "_oom_kills", lambda: next(kills))
    assert str(failure("die", how=signal.SIGKILL)) == ("the child process was killed (SIGKILL) because memory ran out")


def test_memory_that_a_child_is_refused() -> None:
    error = failure("fill_memory")
    assert str(error) == "out of memory" and error.log[-1] == "MemoryError"


def test_a_full_disk_in_a_child_is_its_place_and_reason(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r": can't be written \(File too large\)$"):
        isolate.call(f"{HERE}:fill_disk", {"path": str(tmp_path / "file")})


def test_a_crash_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failure("crash_over_files")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(
        OutputError, match=r"temporary files \(TMPDIR\): can't be written \(No such file or directory\)"
    ):
        isolate.call(f"{HERE}:add", {"left": 2, "right": 3})


def test_the_log_is_short_and_does_nothing_to_a_terminal() -> None:
    error = failure("chatter")
    assert str(error) == "the child process ended with exit code 1: KeyError: 'what went wrong'"
    assert len(error.log) == 20 and error.log[-1] == "KeyError: 'what went wrong'"
    assert "red   ]0;title  tab" in error.log and " quant {broken" in error.log
    assert "x" * 296 + " ..." in error.log and max(map(len, error.log)) == 300
    assert all(line.isprintable() for line in error.log)


def test_the_log_outlasts_what_an_error_is_raised_as() -> None:
    told = DataError("the same, told in other words")
    told.__cause__ = failure("crash", model="/m")
    assert log_of(told) == ("some log line", "InvalidArgumentError: what Paddle said last")
    assert log_of(DataError("about no child")) == ()


SHADOWS = ("random", "types", "queue", "json", "tempfile", "numpy")


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A user's directory, in which modules are called as Python's own and installed ones are."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the directory')")
    (tmp_path / "quant.toml").write_text("")
    return tmp_path


@pytest.mark.parametrize("before", ["", "sys.path.insert(0, '')", "sys.path.insert(0, os.getcwd())"])
def test_no_module_beside_a_manifest_or_a_script_stands_for_pythons_own(before: str, shadows: Path) -> None:
    script = (
        "import os, sys, pathlib; from quant.datasets import user_functions; from quant.process import isolate\n"
        "user_functions.importable(pathlib.Path.cwd())\n"
        f"{before}\n"
        "print(isolate.call('quant.cpu:cores', {}))"
    )
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=shadows, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr


@pytest.mark.parametrize("way", ["script", "module"])
def test_the_command_line_and_its_children_run_beside_such_modules(way: str, shadows: Path) -> None:
    if way == "module":
        (shadows / "types.py").unlink()  # what runs modules imports it itself, before anything of ours
    start = [sys.executable, "-m", "quant"] if way == "module" else [str(Path(sys.executable).parent / "quant")]
    done = subprocess.run(
        [*start, "init", "absent", "--output", "x.toml"], cwd=shadows, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "quant: absent: no such model directory\n"


def test_nothing_outlives_a_parent_that_is_killed() -> None:
    """Neither a child that holds the GIL, nor what it started."""
    script = (
        f"import os, threading; from quant.process import isolate; from {HERE} import HERE\n"
        "def heard(event): print(*event['pids'], flush=True)\n"
        "call = lambda: isolate.call(f'{HERE}:start_others', {}, heard=heard)\n"
        "threading.Thread(target=call).start()"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3 and all(Path(f"/proc/{pid}").exists() for pid in pids)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 3
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(pids) == []


def running(pids: Sequence[int]) -> list[int]:
    """Those that aren't dead; one that nobody has waited for yet is."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


def test_a_thread_that_ends_takes_no_child_with_it() -> None:
    """A pool's threads start children, and may end before these do."""
    started: list[isolate.Child] = []
    thread = threading.Thread(target=lambda: started.append(isolate.Child(f"{HERE}:work_on", {"rounds": 1})))
    thread.start()
    thread.join()
    with started[0] as child:
        assert child.hear_event() == {"done": 0}
        assert child.hear() == {"result": "done"}


def test_progress_log_isa_and_threads() -> None:
    seen: list[object] = []
    isa = isolate.call(
        f"{HERE}:talk", {}, isa="avx2", threads=2, log=seen.append, progress=lambda *step: seen.append(step)
    )
    assert isa == "AVX22"
    told = [entry for entry in seen if entry]
    assert told == [("reading", 0, 3), "onednn_verbose,hello", ("reading", 1, 3), ("reading", 3, 3)]


def test_a_child_may_take_its_time_while_it_makes_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_TIMEOUT", "1.5")
    heard: list[object] = []
    assert isolate.call(f"{HERE}:work_on", {"rounds": 4}, heard=heard.append) == "done"
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
        cache.cached("thing", ["key"], build)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_outputs_never_overwrite(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("full", "file"):
        with pytest.raises(OutputError, match="not an empty directory"), files.fresh_dir(tmp_path / name):
            pass
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    with files.fresh_dir(tmp_path / "empty") as staging:
        (staging / "a").touch()
    assert (tmp_path / "empty" / "a").exists()


def test_what_went_in_decides_the_name(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    first = digests.digest(["a", file])
    assert first == digests.digest(["a", file]) != digests.digest(["af", ""])
    file.write_text("two")
    assert digests.digest(["a", file]) != first
