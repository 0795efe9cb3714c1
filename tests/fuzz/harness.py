"""Runs the command line on a mutated file, in a process of its own, and says what is wrong with how it ended.

A command with its children takes seconds, most of them for Python and Paddle to load. So this process loads them once,
runs nothing of them, and forks: for each mutation, and there again in place of each child that `quant.process.isolate`
starts.
All else is as in a real command: pipes, messages, time limits, signals, exit codes.

It is single-threaded and has used neither OpenMP nor oneDNN when it forks; what they set up doesn't survive that. So
this module is for `python -m tests.fuzz` alone, which imports it in a process of its own.
"""

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import quant.cli
import quant.cpu
import quant.evaluation.parts
import quant.process.isolate
import quant.quantization.training.finetune
import quant.runtime.predictor
import quant.storage.checkpoint
import quant.timing.worker
from tests.fuzz.cases import Ending
from tests.fuzz.corpus import copy, listing, write_corpus

__all__ = ["Harness"]

WALL_S = 20.0
_CPU_S = 60
_MEMORY = 8 << 30
_ESCAPED = 70  # exit code for an exception that no command may let through


class _ForkedChild:
    """What quant.process.isolate needs of subprocess.Popen: the same child, forked instead of loaded anew."""

    def __init__(
        self, arguments: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int] = (), **_: Any
    ) -> None:
        assert list(arguments[1:4]) == ["-P", "-m", "quant.process.isolate"]
        self.returncode: int | None = None
        requests, answers = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _end_as(lambda: _serve(requests[0], answers[1], arguments, env, pass_fds))
        os.close(requests[0])
        os.close(answers[1])
        self.stdin: TextIO = os.fdopen(requests[1], "w")
        self.stdout: TextIO = os.fdopen(answers[0], errors="replace")

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 1e9) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise quant.process.isolate.subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.001)
        assert self.returncode is not None
        return self.returncode


def _serve(
    requests: int, answers: int, arguments: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int]
) -> int:
    os.setpgid(0, 0)  # a child is ended with all it started
    for number, place in enumerate((requests, answers, answers)):
        os.dup2(place, number)
    for begin, end in pairwise([2, *sorted(pass_fds), 1024]):
        os.closerange(begin + 1, end)
    sys.stdin = os.fdopen(0)
    sys.argv = list(arguments[3:])
    os.environ.clear()
    os.environ.update(env)
    quant.process.isolate._main()
    return 0


def _end_as(work: Callable[[], int]) -> None:
    """Ends this process with the exit code that `work` gives, a traceback on stderr where it raises."""
    code = 1
    try:
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = _ESCAPED if os.environ.get("QUANT_CHILD") is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Harness:
    """A corpus, and the working directory that it is copied to for each mutation: always the same, since what a
    command keeps may name its files by their absolute paths.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.corpus, self.place = root, root / "corpus", root / "case"
        self.place.mkdir(parents=True)
        for cached in (
            quant.cpu.flags,
            quant.cpu.brand,
            quant.evaluation.parts.versions,
        ):  # what each process would find out
            cached()
        write_corpus(self.place, self._job, self._command)
        self.place.rename(self.corpus)

    def _job(self, name: str, arguments: Mapping[str, Any]) -> None:
        def work() -> int:
            quant.process.isolate.call(name, arguments)
            return 0

        ended = self._forked(work)
        assert ended.code == 0, ended.err

    def _command(self, *argv: str) -> None:
        """A command whose journal and checkpoint stay, as if it had been cut off at its end."""
        unlink = Path.unlink

        def keeping(path: Path, missing_ok: bool = False) -> None:
            if path.name != "checkpoint.npz":
                unlink(path, missing_ok)

        def work() -> int:
            Path.unlink = keeping  # type: ignore[method-assign, assignment]
            quant.storage.checkpoint.Journal.__exit__ = lambda *_: None  # type: ignore[method-assign, assignment]
            return quant.cli.main(argv)

        ended = self._forked(work)
        assert ended.code in (0, 1), f"{argv}: {ended.err}"

    def run(self, damage: Callable[[Path], None], argv: Sequence[str]) -> Ending:
        """Run a command on a copy of the corpus that `damage` has changed."""
        shutil.rmtree(self.place, ignore_errors=True)
        copy(self.corpus, self.place)
        damage(self.place)
        before = listing(self.place)
        ended = self._forked(lambda: quant.cli.main(argv))
        return Ending(**{**vars(ended), "left": tuple(sorted(listing(self.place) - before))})

    def _forked(self, work: Callable[[], int]) -> Ending:
        begin = time.monotonic()
        streams = [self.root / name for name in ("stdout", "stderr")]
        pid = os.fork()
        if pid == 0:
            _end_as(lambda: self._prepared(streams, work))
        code: int | None = None
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() - begin > WALL_S:
                _kill_session(pid)
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        out, err = (path.read_text(errors="replace") for path in streams)
        return Ending(code, out, err, time.monotonic() - begin, ())

    def _prepared(self, streams: Sequence[Path], work: Callable[[], int]) -> int:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(self.place)
        os.environ["QUANT_CACHE"] = str(self.place / "cache")
        os.environ["TMPDIR"] = str(self.root)
        stand_in = {
            name: getattr(quant.process.isolate.subprocess, name) for name in ("PIPE", "STDOUT", "TimeoutExpired")
        }
        quant.process.isolate.subprocess = SimpleNamespace(Popen=_ForkedChild, **stand_in)  # type: ignore[assignment]
        quant.timing.worker.rounds_in = lambda *_: 2  # type: ignore[assignment]
        return work()


def _kill_session(leader: int) -> None:
    """End a command and all that it started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
            except (OSError, ValueError, IndexError):
                continue
            if session == leader:
                os.kill(int(entry.name), signal.SIGKILL)
