"""Long runs survive: a kill loses the case in flight, and nothing of a killed run stays; a full disk, a read-only place
and two runs at once are a line, or no trouble at all.

Processes are killed when a file tells how far they are, never after a time.
"""

import contextlib
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quant.results import history
from quant.results.record import Run
from quant.storage.checkpoint import Journal
from tests import runs
from tests.interrupts import heard
from tests.manifests import write_repository

ROOT = Path(__file__).parents[2]
# On more threads than there are cores nothing is timed, which would take longest.
MODEL = """
[[model]]
name = "{name}"
fp32 = "models/fp32"
calibration = "calibration.npz"
data = "test.npz"
threads = [512]
algo = "{algo}"
thresholds.drop = 0.05
"""
Ended = tuple[int, str, str]


class Command:
    """`quant ...` as a process with a cache of its own, and all processes that come of it."""

    def __init__(self, work: Path, *args: object, limit: int | None = None) -> None:
        """`limit`: how large a file may get, as on a full disk."""
        value = f"{work}-{time.monotonic_ns()}"
        self.mark = f"QUANT_TEST_MARK={value}".encode()

        def cap() -> None:
            heard()
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        self.process = subprocess.Popen(
            [sys.executable, "-m", "quant", *map(str, args)],
            cwd=ROOT,
            env={**os.environ, "QUANT_CACHE": str(work / "cache"), "QUANT_TEST_MARK": value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=cap,
        )

    def end(self) -> Ended:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return self.process.returncode, out, err

    def alive(self) -> list[int]:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                dead = (place / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if not dead and self.mark in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found

    def kill_at(self, sign: Callable[[], bool], sent: signal.Signals) -> Ended:
        """Send a signal when `sign` says so and there are children; none of the processes outlives it for long."""
        while self.process.poll() is None and not (sign() and len(self.alive()) > 1):
            time.sleep(0.002)
        assert self.process.poll() is None, self.end()
        self.process.send_signal(sent)
        ended = self.end()
        deadline = time.monotonic() + 3
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.alive() == []
        return ended


def one_line(ended: Ended) -> str:
    code, out, err = ended
    assert (code, out) == (2, ""), err
    assert err.startswith("quant: ") and err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def repository(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_repository(place, tmp_path_factory.mktemp("users") / "repository")
    one, two = MODEL.format(name="one", algo="mse"), MODEL.format(name="two", algo="abs_max")
    (root / "one.toml").write_text(one)
    (root / "two.toml").write_text(one + two)
    (root / "timed.toml").write_text(one.replace("threads = [512]\n", ""))
    return root


def suite_of(manifest: Path, work: Path) -> tuple[object, ...]:
    return ("suite", "--manifest", manifest, "--output-dir", work / "out", "--history", work / "history")


# --- killed


def test_a_suite_that_is_killed_loses_the_case_in_flight(repository: Path, tmp_path: Path) -> None:
    """Once by Ctrl-C, once by SIGKILL."""
    journal = tmp_path / "out" / ".suite.jsonl"
    command = suite_of(repository / "two.toml", tmp_path)

    def kept() -> list[bytes]:
        lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
        return [line for line in lines if b'"key"' in line and line.endswith(b"\n")]

    ended = Command(tmp_path, *command).kill_at(lambda: len(kept()) == 1, signal.SIGINT)
    assert ended[0] == 2 and ended[2].endswith("quant: interrupted\n")
    first = kept()
    assert len(first) == 1 and list(journal.parent.iterdir()) == [journal]
    code, _, err = Command(tmp_path, *command).kill_at(lambda: len(kept()) == 2, signal.SIGKILL)
    assert code == -signal.SIGKILL and err.count("accuracy: ") == 2  # what is kept is told of, too
    second = kept()
    assert second[:1] == first and list(journal.parent.iterdir()) == [journal]

    code, out, err = Command(tmp_path, *command, "--model", "two").end()
    assert (code, out) == (2, "")
    left = f"{journal}: left by a run that was cut off"
    assert err == f"quant: {left}, with other inputs: cases one, models one; --fresh starts anew\n"
    assert kept() == second
    code, _, err = Command(tmp_path, *command).end()
    assert code == 0, err
    assert f"{journal}: 2 results of a run that was cut off are reused; --fresh starts anew\n" in err
    assert sorted(path.name for path in journal.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    run = Run.from_json((journal.parent / "report.json").read_text())
    assert [record.model for record in run.exact] == ["one"] * 3 + ["two"] * 3
    assert run.exact[0].outcomes["top1"][0].encode() in first[0] + second[-1]
    assert [kept.to_json() for _, kept in history.runs(tmp_path / "history")] == [run.to_json()]


def test_a_tuning_that_is_killed_leaves_no_process(place: Path, repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned"
    given = ("--fp32-model", place / "fp32", "--calibration", repository / "calibration.npz")
    given += ("--data", repository / "test.npz", "--output", output, "--max-drop", "0")
    state = tmp_path / "tuned.part" / "state.json"
    assert Command(tmp_path, "tune", *given).kill_at(state.exists, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not output.exists()


def measuring(place: Path, output: Path) -> tuple[object, ...]:
    """A command that takes long over a directory that it hasn't finished."""
    return ("convert", "--quant-model-path", place / "quant", "--int8-model-save-path", output, "--optimize", "speed")


def made_in(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if path.name != "cache"}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_run_that_is_asked_to_end_leaves_nothing_half_made(place: Path, tmp_path: Path, sent: signal.Signals) -> None:
    command = Command(tmp_path, *measuring(place, tmp_path / "new"))
    assert one_line(command.kill_at(lambda: made_in(tmp_path) != set(), sent)) == "quant: interrupted\n"
    assert made_in(tmp_path) == set()


def test_a_child_that_is_killed_leaves_nothing_half_made(place: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, *measuring(place, tmp_path / "new"))
    while not made_in(tmp_path):
        time.sleep(0.002)
    [child] = set(command.alive()) - {command.process.pid}
    os.kill(child, signal.SIGKILL)
    assert "the child process was killed (SIGKILL)" in one_line(command.end())
    assert made_in(tmp_path) == set()


def test_what_kill_9_leaves_half_made_goes_with_the_next_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of the output, and among temporary files."""
    scratch, output = tmp_path / "scratch", tmp_path / "made" / "new"
    for directory in (scratch, output.parent):
        directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    command = measuring(place, output)
    Command(tmp_path, *command).kill_at(lambda: made_in(output.parent) != set(), signal.SIGKILL)
    assert made_in(output.parent) and made_in(scratch)
    code, _, err = Command(tmp_path, *command, "--time-budget", "1").end()
    assert code == 0, err
    assert made_in(output.parent) == {"new"} and made_in(scratch) == set()


CRASHING = """
from quant.suites import embedded
from quant.errors import ChildError
from tests import runs


def accuracy(spec, **options):
    if spec.name == "lstm":
        raise ChildError("Paddle crashed on this model (SIGSEGV)", ["its last words"], spec.name)
    return runs.accuracy(spec.name, isas=["avx2"])


embedded.accuracy = accuracy
"""


def test_a_row_on_which_paddle_crashes_fails_its_own_cases(tmp_path: Path) -> None:
    """In pytest, where all rows are measured at once."""
    (tmp_path / "crashing.py").write_text(CRASHING)
    command = ("tests/accuracy/test_rows.py", "--model", "gru", "--model", "lstm", "--isa", "avx2", "-k", "drop")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "crashing", "-p", "no:cacheprovider", *command, "-v"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "test_drop_is_within_the_limit[gru-avx2] PASSED" in done.stdout
    assert "test_drop_is_within_the_limit[lstm-avx2] FAILED" in done.stdout
    assert re.search(r"failed: LSTM.*Paddle crashed on this model \(SIGSEGV\)\n    its last words\n", done.stdout)


# --- places that can't be written


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history of one run."""
    place = tmp_path_factory.mktemp("history")
    history.append(place, runs.suite_run())
    return place


COMMANDS = {
    "ptq": "ptq --model {place}/fp32 --data {users}/calibration.npz --output {out}/new",
    "convert": "convert --quant-model-path {place}/quant --int8-model-save-path {out}/new --debug {out}/steps",
    "qat": "qat --model {place}/fp32 --data {users}/test.npz --steps 2 --output {out}/new --checkpoint {out}/steps",
    "eval": "eval --model {place}/int8 --data {users}/test.npz --save-outputs {out}/file",
    "analyze": "analyze {place}/int8 --fp32-model {place}/fp32 --quant-model {place}/quant --data {users}/test.npz "
    "--samples 2 --chart {out}/file",
    "tune": "tune --fp32-model {place}/fp32 --calibration {users}/calibration.npz --data {users}/test.npz "
    "--output {out}/new",
    "suite": "suite --manifest {users}/one.toml --output-dir {out}/new --history {out}/history",
    "gate": "gate --manifest {users}/timed.toml --history {out}/history --summary {out}/summary",
    "init": "init {users}/models --output {out}/new",
    "report": "report --history {past} --output {out}/file",
    "history": "history resnet50 --history {past} --plot {out}/file",
}
# What a run that was cut off goes on with.
JOURNALS = {"new/.suite.jsonl", "history/.gate.jsonl"}


def given(name: str, **places: Path) -> list[str]:
    return shlex.split(COMMANDS[name].format(**places))


def files_in(place: Path) -> set[str]:
    """Below a directory, hidden ones too, but for the cache's locks and what it keeps of evaluations."""
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("cache/.", "cache/outcomes/"))}


@pytest.mark.parametrize(("name", "limit"), [*((name, 1500) for name in COMMANDS), ("suite", 60), ("gate", 60)])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    name: str, limit: int, place: Path, repository: Path, past: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("precious")
    command = given(name, place=place, users=repository, past=past, out=tmp_path)
    told = one_line(Command(tmp_path, *command, limit=limit).end())
    assert "can't be written (File too large)" in told
    assert files_in(tmp_path) - JOURNALS == {"file"}
    assert (tmp_path / "file").read_text() == "precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 kB, which can be made read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", place], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this process may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("name", ["ptq", "report"])
def test_a_disk_that_is_full_or_read_only(
    name: str, small_disk: Path, place: Path, repository: Path, past: Path, tmp_path: Path
) -> None:
    command = given(name, place=place, users=repository, past=past, out=small_disk)
    told = one_line(Command(tmp_path, *command).end())
    assert f"quant: {small_disk}" in told and "can't be written (No space left on device)" in told
    assert files_in(small_disk) == set()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    told = one_line(Command(tmp_path, *command).end())
    assert f"quant: {small_disk}" in told and "can't be written (Read-only file system)" in told


def test_stdout_on_a_full_disk() -> None:
    command = [sys.executable, "-m", "quant", "models"]
    for buffered in ("", "1"):
        with open("/dev/full", "w") as full:
            environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
            done = subprocess.run(
                command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
            )
        told = "quant: stdout: can't be written (No space left on device)\n"
        assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_failed_gate(buffered: str) -> None:
    """As in `quant gate | head -1`: Click's own exit code for it is 1."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    command = [sys.executable, "-m", "quant", "cpu"]
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert (done.returncode, done.stderr) == (2, "quant: stdout: closed before all was written\n")


# --- two at once


def test_two_suites_on_one_cache_both_end_well(repository: Path, tmp_path: Path) -> None:
    """They make the same models and the same outcomes."""
    works = [tmp_path / "a", tmp_path / "b"]
    both = [Command(tmp_path, *suite_of(repository / "one.toml", work)) for work in works]
    ended = [command.end() for command in both]
    assert [code for code, _, _ in ended] == [0, 0], ended
    first, second = (Run.from_json((work / "out" / "report.json").read_text()) for work in works)
    assert [record.outcomes for record in first.exact] == [record.outcomes for record in second.exact]
    assert len([path for path in (tmp_path / "cache").glob("*manifest-*") if path.is_dir()]) == 1


def test_two_suites_in_one_directory_are_told_so(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Journal(tmp_path / "out" / ".suite.jsonl", {}):
        told = one_line(Command(tmp_path, *suite_of(repository / "one.toml", tmp_path)).end())
    assert told == f"quant: {tmp_path}/out: another run is writing there\n"


def test_runs_that_end_at_once_each_have_a_file(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from quant.results import history; from tests import runs\n"
        "run = runs.suite_run()\n"
        "for _ in range(10): history.append(Path(sys.argv[1]), run)"
    )
    several = [subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=ROOT) for _ in range(3)]
    assert [process.wait(120) for process in several] == [0] * 3
    assert len(list(history.runs(tmp_path))) == 30
    assert files_in(tmp_path) == {path.name for path in tmp_path.glob("*.json")}
