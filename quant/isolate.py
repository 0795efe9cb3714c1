"""Run a job in a child process: its own environment, a time limit, and a crash that becomes an error.

Paddle can end the process on a bad model (SIGSEGV, SIGFPE, abort), and oneDNN's ISA cap, its verbose log and the
OpenMP threads are settled when the libraries load. So a job is named as "module:function", takes and returns JSON,
and runs in a fresh interpreter. Arrays go through files that the job is told of.
"""

import collections
import contextlib
import ctypes
import json
import os
import pkgutil
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from quant import errors
from quant.cpu import isa_environment
from quant.errors import ChildError, QuantError

__all__ = ["Child", "Steps", "call", "end_all", "report_event", "report_progress", "requests"]

_MARK = "\x1equant "  # begins a line that is a message, not log

Progress = Callable[[str, int, int], None]
_running: set[subprocess.Popen[str]] = set()


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


def requests() -> Iterator[Any]:
    """In a job: what the parent sends by `Child.tell`, until it says that nothing more comes, or is gone."""
    for line in sys.stdin:
        yield json.loads(line)


class Child:
    """A job in a process of its own, which can be told more while it runs; leaving the context ends the process.

    `job` is "module:function", its keyword arguments and its result are JSON. `isa` caps oneDNN, `threads` are
    OpenMP's, `cpus` is what the process is pinned to before anything loads, `environment` comes on top. `log` is
    given each line that the child prints; what it raises is raised by `hear`.
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
        if threads is not None:
            extra["OMP_NUM_THREADS"] = str(threads)
        search = os.pathsep.join(path for path in sys.path if path)
        self._arguments, self._log = arguments, log
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._tail: collections.deque[str] = collections.deque(maxlen=20)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quant.isolate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": search, **extra, **(environment or {})},
            start_new_session=True,  # so that a hung child goes with all it started
        )
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

    def hear(self, timeout_s: float) -> Mapping[str, Any]:
        """The child's next message: {"progress": [what, done, total]}, {"event": ...} or, at its end, {"result": ...}.

        The job's own QuantErrors are raised here as they were there. Raises ChildError when the child dies, or says
        nothing for `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        answer: dict[str, Any] | None = None
        try:
            while (line := self._lines.get(timeout=max(deadline - time.monotonic(), 0))) is not None:
                if not line.startswith(_MARK):
                    self._tail.append(line)
                    if self._log:
                        self._log(line)
                    continue
                message: dict[str, Any] = json.loads(line.removeprefix(_MARK))
                if "progress" in message or "event" in message:
                    return message
                answer, deadline = message, time.monotonic() + timeout_s
            self._process.wait(max(deadline - time.monotonic(), 1))
        except (queue.Empty, subprocess.TimeoutExpired):
            silent = f"the child process exceeded {timeout_s:.0f} s without progress and was ended"
            raise ChildError(f"{_told(self._arguments)}{silent}") from None
        if answer is None:
            code = self._process.returncode
            raise ChildError(f"{_told(self._arguments)}{_death(code)}{_last_words(self._tail)}")
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.end_requests()
        _running.discard(self._process)


def call(
    job: str,
    arguments: Mapping[str, Any],
    *,
    isa: str | None = None,
    threads: int | None = None,
    timeout_s: float = 3600,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
    heard: Callable[[Mapping[str, Any]], None] | None = None,
) -> Any:
    """Run `job` ("module:function", keyword arguments and result as JSON) and return its result.

    `log` is given each line that the child prints, `heard` its events; what these raise ends the child and is raised
    here. The job's own QuantErrors are raised here as they were there. Raises ChildError when the child dies, is
    silent about why, or says nothing of its progress for `timeout_s`.
    """
    with Child(job, arguments, isa=isa, threads=threads, log=log) as child:
        child.end_requests()
        while "result" not in (message := child.hear(timeout_s)):
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


def _told(arguments: Mapping[str, Any]) -> str:
    """The model, or models, that a failed job was about, for the message."""
    subjects = list(dict.fromkeys(_models(arguments)))
    return f"{' or '.join(subjects)}: " if subjects else ""


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


def _death(code: int) -> str:
    if code < 0:
        return f"Paddle crashed on this model ({signal.Signals(-code).name})"
    return f"the child process ended with exit code {code}"


def _last_words(tail: collections.deque[str]) -> str:
    told = [line.strip() for line in tail if "Error" in line]
    return f": {told[-1][:200]}" if told else ""


def _send(message: Mapping[str, Any]) -> None:
    ctypes.CDLL(None).fflush(None)  # what C code printed before comes before
    print(f"\n{_MARK}{json.dumps(message)}", flush=True)


def _main() -> None:
    request = json.loads(sys.stdin.readline())
    if request["cpus"]:
        os.sched_setaffinity(0, request["cpus"])
    try:
        result = pkgutil.resolve_name(request["job"])(**request["arguments"])
    except QuantError as error:
        _send({"error": type(error).__name__, "message": str(error)})
    except MemoryError:
        _send({"error": "ChildError", "message": "out of memory"})
    else:
        _send({"result": result})
    ctypes.CDLL(None).fflush(None)
    sys.stdout.flush()
    os._exit(0)  # Paddle's teardown at interpreter exit can crash after all work is done


if __name__ == "__main__":
    _main()
