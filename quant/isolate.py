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
from collections.abc import Callable, Mapping
from typing import Any

from quant import errors
from quant.cpu import isa_environment
from quant.errors import ChildError, QuantError

__all__ = ["call", "end_all", "report_event", "report_progress"]

_MARK = "\x1equant "  # begins a line that is a message, not log

Progress = Callable[[str, int, int], None]
_running: set[subprocess.Popen[str]] = set()


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
    extra = {"QUANT_CHILD": "1", "FLAGS_enable_pir_api": "0", "GLOG_minloglevel": "2", **isa_environment(isa)}
    if threads is not None:
        extra["OMP_NUM_THREADS"] = str(threads)
    search = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(
        [sys.executable, "-m", "quant.isolate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": search, **extra},
        start_new_session=True,  # so that a hung child goes with all it started
    )
    assert child.stdin and child.stdout
    _running.add(child)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    stdout = child.stdout

    def read() -> None:
        for line in stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    tail: collections.deque[str] = collections.deque(maxlen=20)
    answer: dict[str, Any] | None = None
    deadline = time.monotonic() + timeout_s
    try:
        with child.stdin:
            child.stdin.write(json.dumps({"job": job, "arguments": dict(arguments)}))
        while (line := lines.get(timeout=max(deadline - time.monotonic(), 0))) is not None:
            if not line.startswith(_MARK):
                tail.append(line)
                if log:
                    log(line)
                continue
            message = json.loads(line.removeprefix(_MARK))
            deadline = time.monotonic() + timeout_s
            if "progress" in message:
                if progress:
                    progress(*message["progress"])
            elif "event" in message:
                if heard:
                    heard(message["event"])
            else:
                answer = message
        child.wait(max(deadline - time.monotonic(), 1))
    except (queue.Empty, subprocess.TimeoutExpired):
        silent = f"the child process exceeded {timeout_s:.0f} s without progress and was ended"
        raise ChildError(f"{_told(arguments)}{silent}") from None
    except BrokenPipeError:
        child.wait()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        stdout.close()
        _running.discard(child)
    if answer is None:
        raise ChildError(f"{_told(arguments)}{_death(child.returncode)}{_last_words(tail)}")
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return answer["result"]


def end_all() -> None:
    """End the children of every thread's calls; each of those then raises ChildError."""
    for child in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _told(arguments: Mapping[str, Any]) -> str:
    """The model that a failed job was about, for the message."""
    subject = arguments.get("model") or arguments.get("quant_model_path")
    return f"{subject}: " if subject else ""


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
    request = json.loads(sys.stdin.read())
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
