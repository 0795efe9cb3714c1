"""Run a job in a child process: its own environment, a time limit, and a crash that becomes an error.

Paddle can end the process on a bad model (SIGSEGV, SIGFPE, abort), and oneDNN's ISA cap, its verbose log and the
OpenMP threads are settled when the libraries load. So a job is named as "module:function", takes and returns JSON,
and runs in a fresh interpreter. Arrays go through files that the job is told of.

A child that tells nothing for `patience_s()` hangs, and is ended. One whose parent is gone, however that ended, is
ended by the kernel.
"""

import collections
import contextlib
import ctypes
import fcntl
import json
import math
import os
import pkgutil
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from quant import errors
from quant.cpu import cores, isa_environment
from quant.errors import ChildError, OptionError, QuantError, file_error
from quant.storage.files import scratch_dir, sweep

__all__ = [
    "KERNELS",
    "Child",
    "Steps",
    "call",
    "end_all",
    "patience_s",
    "report_event",
    "report_kernels",
    "report_line",
    "report_progress",
    "requests",
]

KERNELS = "QUANT_KERNELS"  # in a child's environment: the kernels that references run on, "plain" or "onednn", unasked

_MARK = "\x1equant "  # begins a line that is a message, not log
_PATIENCE_S = 600.0
_LOG_LINES, _LOG_WIDTH = 20, 300
_OUTPUTS = ("output", "debug", "save_table", "checkpoint")  # arguments that name what a job writes
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # what colours text in a terminal
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS, signal.SIGTRAP, signal.SIGSYS}

Progress = Callable[[str, int, int], None]
_running: set[subprocess.Popen[str]] = set()


def patience_s() -> float:
    """How long a child may be silent, in seconds: QUANT_TIMEOUT, or 600. Raises OptionError.

    The longest honest silence is one batch of a large model on one slow core, or an op's calibration: a minute or two.
    An environment variable, because it is a machine's property: pytest, dask's workers and all commands go by it.
    """
    text = os.environ.get("QUANT_TIMEOUT", "")
    try:
        value = float(text) if text else _PATIENCE_S
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise OptionError(f"QUANT_TIMEOUT: {text!r} is not a number of seconds above 0")
    return value


class Steps:
    """Progress of several steps, [3/12] before what each tells; it is a `Progress` itself."""

    def __init__(self, count: int, progress: Progress | None) -> None:
        self.step, self.count, self.progress = 0, count, progress

    def begin(self) -> None:
        """The next step."""
        self.step += 1

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(f"[{self.step}/{self.count}] {what}", done, total)


class _Last:
    """When this process last reported, and whether what it reported was a beginning."""

    at = 0.0
    began = False


class _Told:
    """The lines that this process has printed for its user: each job on the same data has the same to say."""

    lock = threading.Lock()
    lines: ClassVar[set[str]] = set()


def report_progress(what: str, done: int, total: int) -> None:
    """Tell the parent, if there is one, how far a job is: the beginning, the first step, the end, and now and then."""
    if not os.environ.get("QUANT_CHILD"):
        return
    now = time.monotonic()
    if done == 0 or _Last.began or done == total or now - _Last.at > 0.2:
        _Last.at, _Last.began = now, done == 0
        _send({"progress": [what, done, total]})


def report_event(event: Mapping[str, Any]) -> None:
    """Tell the parent, if there is one, something that it can't wait for the result with, as JSON."""
    if os.environ.get("QUANT_CHILD"):
        _send({"event": event})


def report_kernels(way: str) -> None:
    """Tell the parent, if there is one, on which kernels a reference runs from now on: "plain" or "onednn"."""
    if os.environ.get("QUANT_CHILD"):
        _send({"way": way})


def report_line(text: str) -> None:
    """Print a line for the user on stderr, once in a process; in a child, have the parent do so. Thread-safe."""
    if os.environ.get("QUANT_CHILD"):
        _send({"line": text})
        return
    with _Told.lock:
        new = text not in _Told.lines
        _Told.lines.add(text)
    if new:
        print(f"note: {text}", file=sys.stderr, flush=True)


def requests() -> Iterator[Any]:
    """In a job: what the parent sends by `Child.tell`, until it says that nothing more comes, or is gone."""
    for line in sys.stdin:
        yield json.loads(line)


class Child:
    """A job in a process of its own, which can be told more while it runs; leaving the context ends the process.

    `job` is "module:function", its keyword arguments and its result are JSON. `isa` caps oneDNN, `threads` are
    OpenMP's (by default as many as this process may use), `cpus` is what the process is pinned to before anything
    loads, `environment` comes on top. `log` is given each line that the child prints; what it raises is raised by
    `hear`.
    """

    def __init__(
        self,
        job: str,
        arguments: Mapping[str, Any],
        *,
        isa: str | None = None,
        threads: int | None = None,
        cpus: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        extra = {"QUANT_CHILD": "1", "FLAGS_enable_pir_api": "0", "GLOG_minloglevel": "2", **isa_environment(isa)}
        # Paddle warns of it whenever it is imported, which would be the first lines of each log.
        extra["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:No ccache found"]))
        # OpenMP would start a thread for each CPU, whatever part of their time a container may have.
        extra["OMP_NUM_THREADS"] = str(threads or os.environ.get("OMP_NUM_THREADS") or cores())
        if threads is not None:
            # NumPy's BLAS would start as many threads, for nothing. With a second thread in a process, each count of a
            # shared pointer's users is an atomic operation: small recurrent models lose 1% by that.
            extra["OPENBLAS_NUM_THREADS"] = "1"
        extra["PYTHONPATH"] = os.pathsep.join(_search_path())
        self._arguments, self._log = arguments, log
        self._patience_s = patience_s()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._tail: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._oom_kills = _oom_kills()
        self.way = ""  # what `report_kernels` told last
        self._scratch = contextlib.ExitStack()  # its temporary files: one that dies leaves copies of models behind
        extra["TMPDIR"] = str(self._scratch.enter_context(scratch_dir("quant-child")))
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "quant.process.isolate", str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **extra, **(environment or {})},
                pass_fds=[lifeline],
                start_new_session=True,  # so that a hung child goes with all it started
            )
        except OSError as error:
            os.close(self._lifeline)
            self._scratch.close()
            raise ChildError(f"can't start a child process ({error.strerror})", (), _subject(arguments)) from error
        finally:
            os.close(lifeline)
        _running.add(self._process)
        threading.Thread(target=self._read, daemon=True).start()
        self.tell({"job": job, "arguments": dict(arguments), "cpus": list(cpus)})

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def tell(self, request: Any) -> None:
        """Send JSON, which the job gets from `requests`. That a child is dead is for `hear` to say, and why."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def end_requests(self) -> None:
        """Tell the job that nothing more will come."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def hear(self, extra_s: float = 0.0) -> Mapping[str, Any]:
        """The child's next message: {"progress": [what, done, total]}, {"event": ...} or, at its end, {"result": ...}.

        The job's own QuantErrors are raised here as they were there. Raises ChildError when the child dies, or says
        nothing for `patience_s()`, and `extra_s` where it is known to be busy that long.
        """
        timeout_s = self._patience_s + extra_s
        deadline = time.monotonic() + timeout_s
        answer: dict[str, Any] | None = None
        try:
            while (line := self._lines.get(timeout=max(deadline - time.monotonic(), 0))) is not None:
                message = _message(line)
                if message is None:
                    self._print(line)
                elif "way" in message:
                    self.way = message["way"]
                elif "line" in message:
                    report_line(message["line"])
                elif "progress" in message or "event" in message:
                    return message
                else:
                    answer, deadline = message, time.monotonic() + timeout_s
            self._process.wait(max(deadline - time.monotonic(), 1))
        except (queue.Empty, subprocess.TimeoutExpired):
            silent = f"the child process hung: it exceeded {timeout_s:g} s without progress and was ended"
            raise self._error(f"{silent} (QUANT_TIMEOUT)") from None
        if answer is None:
            raise self._error(_death(self._process.returncode, self._oom_kills) + _last_words(self._tail))
        if answer.get("error") == ChildError.__name__:
            raise self._error(answer["message"])
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def hear_event(self, extra_s: float = 0.0, progress: Progress | None = None) -> Any:
        """The content of the child's next event; `progress` hears what it tells of before. Otherwise as `hear`."""
        while "event" not in (message := self.hear(extra_s)):
            if progress and "progress" in message:
                progress(*message["progress"])
        return message["event"]

    def _print(self, line: str) -> None:
        if shown := _shown(line):
            self._tail.append(shown)
        if self._log:
            self._log(line)

    def _error(self, what: str) -> ChildError:
        return ChildError(what, self._tail, _subject(self._arguments))

    @property
    def crashed(self) -> bool:
        """Whether native code ended the process."""
        return -(self._process.poll() or 0) in _CRASHES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.end_requests()
        os.close(self._lifeline)
        self._scratch.close()
        for output in filter(None, map(self._arguments.get, _OUTPUTS)):  # what it was making when it ended
            sweep(Path(output))
        _running.discard(self._process)


def call(
    job: str,
    arguments: Mapping[str, Any],
    *,
    isa: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
    heard: Callable[[Mapping[str, Any]], None] | None = None,
) -> Any:
    """Run `job` ("module:function", keyword arguments and result as JSON) and return its result.

    `log` is given each line that the child prints, `heard` its events; what these raise ends the child and is raised
    here. The job's own QuantErrors are raised here as they were there. Raises ChildError when the child dies, is
    silent about why, or says nothing of its progress for `patience_s()`.
    Where Paddle crashes on one of the two kinds of kernels that a reference may run on (`runtime.reference`), the job
    is
    run once more, on the other kind; its events come again then.
    """
    environment: Mapping[str, str] = {}
    while True:
        with Child(job, arguments, isa=isa, threads=threads, log=log, environment=environment) as child:
            try:
                return _result(child, progress, heard)
            except ChildError:
                if not child.way or environment or not child.crashed:
                    raise
                environment = {KERNELS: "onednn" if child.way == "plain" else "plain"}


def _result(child: Child, progress: Progress | None, heard: Callable[[Mapping[str, Any]], None] | None) -> Any:
    child.end_requests()
    while "result" not in (message := child.hear()):
        if "progress" in message:
            if progress:
                progress(*message["progress"])
        elif heard:
            heard(message["event"])
    return message["result"]


def end_all() -> None:
    """End the children of every thread's calls; each of those then raises ChildError."""
    for child in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _search_path() -> list[str]:
    """Where a child looks for modules: where this process does, but in the standard library first.

    PYTHONPATH comes before a child's own standard library, so without that any random.py or queue.py in the working
    directory, beside a script or beside a manifest would be imported in its place, by all that needs it.
    """
    own = Path(os.__file__).parent
    standard = {str(own), str(own / "lib-dynload")}
    given = [path or os.getcwd() for path in sys.path]
    return sorted(dict.fromkeys(given), key=lambda path: path not in standard)


def _subject(arguments: Mapping[str, Any]) -> str:
    """The model, or models, that a job is about, for a message."""
    return " or ".join(dict.fromkeys(_models(arguments)))


def _models(value: Any) -> Iterator[str]:
    """What the keys "model" and "quant_model_path" hold, however deep."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("model", "quant_model_path") and isinstance(inner, str):
                yield inner
            else:
                yield from _models(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _models(inner)


def _message(line: str) -> dict[str, Any] | None:
    """What a line tells; None for log, also where native code printed into the middle of a message."""
    if line.startswith(_MARK):
        with contextlib.suppress(ValueError):
            found = json.loads(line.removeprefix(_MARK))
            return found if isinstance(found, dict) else None
    return None


def _shown(line: str) -> str:
    """A line of log as it is shown to a person: no control characters, not endless."""
    printable = "".join(char if char.isprintable() else " " for char in _ESCAPES.sub("", line)).rstrip()
    return printable if len(printable) <= _LOG_WIDTH else f"{printable[: _LOG_WIDTH - 4]} ..."


def _death(code: int, oom_kills: int | None) -> str:
    """What became of a child without a result; `oom_kills`: how often memory had run out when it began."""
    if code >= 0:
        return f"the child process ended with exit code {code}"
    number = -code
    name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
    if number in _CRASHES:
        return f"Paddle crashed on this model ({name})"
    if number != signal.SIGKILL:
        return f"the child process was ended from outside ({name})"
    now = _oom_kills()
    if oom_kills is not None and now is not None and now > oom_kills:
        return f"the child process was killed ({name}) because memory ran out"
    return f"the child process was killed ({name}); where nobody did that, memory ran out"


def _oom_kills() -> int | None:
    """How many processes of this one's control group the kernel has killed for want of memory; None: not told.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.events) and cgroup-v1/memory.rst (oom_control). In a
    container the group's path is the host's, and its files lie at the mount's root.
    """
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except (OSError, ValueError):
        return None
    for _, kinds, group in groups:
        root, file = Path("/sys/fs/cgroup"), "memory.events"
        if "memory" in kinds.split(","):
            root, file = root / "memory", "memory.oom_control"
        elif kinds:
            continue
        for place in (root / group.lstrip("/"), root):
            with contextlib.suppress(OSError, ValueError, KeyError):
                return int(dict(line.split() for line in (place / file).read_text().splitlines())["oom_kill"])
    return None


def _last_words(tail: collections.deque[str]) -> str:
    told = [line.strip() for line in tail if "Error" in line]
    return f": {told[-1][:200]}" if told else ""


def _send(message: Mapping[str, Any]) -> None:
    ctypes.CDLL(None).fflush(None)  # what C code printed before comes before
    print(f"\n{_MARK}{json.dumps(message)}", flush=True)


def _end_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process, and what it starts, when the other end of a pipe closes: the parent is gone.

    A signal of its own (fcntl(2), O_ASYNC and F_SETSIG), because a thread that watched the pipe would wait for the GIL
    while native code holds it. PR_SET_PDEATHSIG is about the parent's thread, and here a pool's thread starts children.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it closed before
        os.killpg(0, signal.SIGKILL)


def _main() -> None:
    _end_with_parent(int(sys.argv[1]))
    request = json.loads(sys.stdin.readline())
    if request["cpus"]:
        os.sched_setaffinity(0, request["cpus"])
    try:
        result = pkgutil.resolve_name(request["job"])(**request["arguments"])
    except QuantError as error:
        _send({"error": type(error).__name__, "message": str(error)})
    except MemoryError:
        traceback.print_exc()
        _send({"error": "ChildError", "message": "out of memory"})
    except OSError as error:
        told = file_error(error, request["arguments"].get("output") or tempfile.gettempdir())
        if told is None:
            raise
        _send({"error": type(told).__name__, "message": str(told)})
    else:
        _send({"result": result})
    ctypes.CDLL(None).fflush(None)
    sys.stdout.flush()
    os._exit(0)  # Paddle's teardown at interpreter exit can crash after all work is done


if __name__ == "__main__":
    _main()
