"""A worker is a process that holds one model and does what it is told, a JSON line at a time.

    {"load": {"module", "arguments", "batches"}}      -> {"facts", "batches": their number, "seconds": a batch, at best}
    {"turn": {"repeat": 3, "warm": true}}             -> {"seconds": 0.0123}
    {"outputs": {"data": {...}, "file": "x.npz"}}     -> {"count": 2}
    {"quit": {}}                                      -> {}

An error is answered with {"error": "one line"}. Requests come on stdin and answers leave by what was stdout; whatever
engines print goes to stderr, of which the parent keeps the end, to tell why a worker died.
"""

import collections
import gc
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from quant.datasets.columns import Column, joined
from quant.datasets.readers import Dataset, batches, head, open_data
from quant.errors import QuantError
from quant.evaluation.parts import pack

__all__ = ["Feed", "Session", "Worker", "WorkerError", "opened", "thread_environment"]

Json = dict[str, Any]
_TRIAL = 3
_PLACES = ("Exception from ", "Check '")  # where in OpenVINO it was raised, which comes before what is wrong
_BATCH = 50  # samples at a time where nothing is timed


class Feed(Protocol):
    """One batch of input, ready to be run on."""

    def feed(self) -> None:
        """Point the model at this batch; not timed."""

    def run(self) -> None:
        """The inference call: what is timed."""

    def read(self) -> Sequence[Column]:
        """The outputs of the last run, in the order of the FP32 model, decoded where the engine can't; not timed."""


class Session(Protocol):
    """A loaded model. `facts` are told in the report: which variant was the fastest, how much of it is INT8."""

    facts: dict[str, Any]

    def batch(self, inputs: Mapping[str, Column]) -> Feed: ...


class WorkerError(QuantError):
    """A worker refused, died or said nothing; the message is a table's cell."""


def thread_environment(threads: int) -> dict[str, str]:
    """Threads of every library, none of which spins while it waits: another worker is being timed then."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**counts, "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}


def opened(data: Mapping[str, Any]) -> Dataset:
    """{"path", "format", "signature": {input: [shape, dtype]}, "samples"} -> the data."""
    signature = {name: (tuple(shape), dtype) for name, (shape, dtype) in data["signature"].items()}
    dataset = open_data(Path(data["path"]), signature, data["format"])
    return head(dataset, data["samples"]) if data.get("samples") else dataset


# --- the parent's side


class Worker:
    """A child process; a context manager that ends it. Each request raises WorkerError when it isn't answered."""

    def __init__(self, environment: Mapping[str, str], timeout_s: float = 300) -> None:
        search = os.pathsep.join(path or os.getcwd() for path in sys.path)
        fixed = {"FLAGS_enable_pir_api": "0", "GLOG_minloglevel": "2", "PYTHONPATH": search}
        self.timeout_s = timeout_s
        self.child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **fixed, **environment},
            start_new_session=True,
        )
        self.answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.tail: collections.deque[str] = collections.deque(maxlen=40)
        assert self.child.stdout and self.child.stderr
        readers = ((self.child.stdout, self.answers.put), (self.child.stderr, self.tail.append))
        self.threads = [threading.Thread(target=self._read, args=reader, daemon=True) for reader in readers]
        for thread in self.threads:
            thread.start()

    def _read(self, stream: Any, put: Any) -> None:
        for line in stream:
            put(line)
        if put == self.answers.put:
            put(None)

    def ask(self, **request: Any) -> Json:
        assert self.child.stdin
        try:
            self.child.stdin.write(json.dumps(request) + "\n")
            self.child.stdin.flush()
            line = self.answers.get(timeout=self.timeout_s)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self.close()
            raise WorkerError(f"no answer in {self.timeout_s:.0f} s") from None
        if line is None:
            raise WorkerError(self._death())
        answer: Json = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _death(self) -> str:
        code = self.child.wait()
        self.threads[1].join(timeout=5)
        told = [line.strip() for line in self.tail if "Error" in line]
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {told[-1]}" if told else how

    def close(self) -> None:
        """End it and all that it started. It holds nothing that is lost by that."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# --- the child's side


class _Holder:
    """What a worker knows between requests."""

    session: Session
    feeds: list[Feed]

    def load(self, module: str, arguments: Json, batches_of: Json | None) -> Json:
        """`batches_of`: {"data", "batch"}: what is timed; without it only `outputs` can follow."""
        given = list(batches(opened(batches_of["data"]), batches_of["batch"])) if batches_of else []
        self.session = importlib.import_module(module).load(**arguments, batches=given)
        self.feeds = [self.session.batch(batch) for batch in given]
        gc.collect()
        gc.disable()  # as timeit does
        laps = [self.turn(1, False)["seconds"] for _ in range(_TRIAL)] if given else [0.0]
        return {"facts": dict(self.session.facts), "seconds": min(laps), "batches": len(given)}

    def turn(self, repeat: int, warm: bool) -> Json:
        """Seconds a batch: for each batch the median of `repeat` runs in a row; `warm`: all of them once before."""
        if warm:
            for feed in self.feeds:
                feed.feed()
                feed.run()
        total = 0.0
        for feed in self.feeds:
            feed.feed()
            runs = []
            for _ in range(repeat):
                start = time.perf_counter()
                feed.run()
                runs.append(time.perf_counter() - start)
            total += float(np.median(runs))
        return {"seconds": total / len(self.feeds)}

    def outputs(self, data: Json, file: str) -> Json:
        """Run a whole dataset; its outputs go to a file as quant.evaluation.parts.pack writes them."""
        collected: list[list[Column]] = []
        for batch in batches(opened(data), _BATCH):
            feed = self.session.batch(batch)
            feed.feed()
            feed.run()
            collected.append(list(feed.read()))
        columns = [joined(parts) for parts in zip(*collected, strict=True)]
        Path(file).write_bytes(pack(columns, np.zeros(0, np.int64)))
        return {"count": len(columns)}


def _answer(holder: _Holder, request: Json) -> Json:
    [(what, arguments)] = request.items()
    if what == "load":
        return holder.load(arguments["module"], arguments["arguments"], arguments.get("batches"))
    if what == "turn":
        return holder.turn(arguments["repeat"], arguments["warm"])
    return holder.outputs(arguments["data"], arguments["file"])


def _serve() -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        holder = _Holder()
        for line in sys.stdin:
            request = json.loads(line)
            if "quit" in request:
                break
            try:
                answer = _answer(holder, request)
            except Exception as error:  # whatever an engine raises is an answer
                answer = {"error": _one_line(error)}
            print(json.dumps(answer), file=answers, flush=True)
        print("{}", file=answers, flush=True)
        os._exit(0)  # engines may crash in their teardown


def _one_line(error: Exception) -> str:
    """The line that says what is wrong; engines' messages begin or end with a page of traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(_PLACES)]
    told = [line for line in said if "Error: (" in line] or said or lines or ["no message"]
    return f"{type(error).__name__}: {told[0][:200]}"


if __name__ == "__main__":
    _serve()
