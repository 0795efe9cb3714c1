"""Parts on the workers of a dask cluster (the extra `cluster`): https://distributed.dask.org

A task is one part: a function of this module by name, and JSON. A worker runs it in a child process of its own
(`quant.process.isolate`), on its own files:

- Model and data lie on a worker where they lie on the client; or, where QUANT_MODEL_DIR or QUANT_DATA_DIR is set in
  the worker's environment, below that directory, at the longest tail of the client's path that is there
  (/home/me/resnet50/int8 may be $QUANT_MODEL_DIR/resnet50/int8, or just $QUANT_MODEL_DIR/int8).
- A worker works only with the client's versions of the packages that compute, with files of the client's content, and
  capped to the client's ISA. So the outputs are those of one process, whichever worker a part falls to. (What Paddle
  computes outside oneDNN may differ in the last bit between unlike CPUs.)
- A worker that can't do its part ends the evaluation, with a message that names it. One that dies doesn't: dask gives
  its part to another. What had arrived was kept, so a second try goes on from there.

dask itself moves Python objects by pickle and runs what it is sent: a scheduler belongs into a trusted network, or
behind TLS (tls:// and dask's own settings).
"""

import json
import logging
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quant import cpu
from quant.datasets.readers import files_behind
from quant.errors import ClusterError, DataError, ModelError, OptionError, QuantError
from quant.evaluation.collect import Arrived, Task, run_child
from quant.evaluation.parts import About, Store, data_digests, default_root, model_digest, versions

__all__ = ["Cluster", "run_part"]

_ADDRESS = re.compile(r"(tcp|tls)://([^\s/:@\[\]]+|\[[0-9a-fA-F:.]+\]):\d{1,5}/?")
_POLL_S = 1.0


# --- the worker's side


def run_part(task: str) -> tuple[str, bytes]:
    """Run one part on this machine: a task as JSON -> ({"about"} or {"error"} as JSON, the part's arrays as .npz)."""
    try:
        about, blob = _run(json.loads(task))
    except QuantError as error:
        return json.dumps({"error": f"worker {_me()}: {error}"}), b""
    return json.dumps({"about": asdict(about)}), blob


def _run(task: Mapping[str, Any]) -> tuple[About, bytes]:
    _check_versions(task["key"]["versions"])
    cpu.isa_environment(task["isa"])
    shared, run = dict(task["shared"]), dict(task["run"])
    data, labels = _place(shared["data"], "QUANT_DATA_DIR"), shared["labels"]
    labels = None if labels is None else _place(labels, "QUANT_DATA_DIR")
    model = _place(run["model"], "QUANT_MODEL_DIR")
    notes = Store(default_root()).notes
    _check_data(data, files_behind(data, shared["format"], labels), task["key"]["data"], notes)
    if model_digest(model, notes) != task["key"]["model"]:
        raise ModelError(f"{model}: is not the client's model {run['model']}: its files differ")
    found: list[tuple[About, bytes]] = []
    shared |= {"data": str(data), "labels": None if labels is None else str(labels)}
    run_child(
        [{**run, "model": str(model)}],
        shared,
        lambda _, about, blob: found.append((about, blob)),
        isa=task["isa"],
        only=task["start"],
    )
    return found[0]


def _check_versions(wanted: Mapping[str, str]) -> None:
    for name, here in versions().items():
        if here != wanted.get(name):
            what = "other source files of quant" if name == "code" else f"{name} {here}, not {wanted.get(name)}"
            raise OptionError(f"has {what}: its outputs may differ from the client's")


def _check_data(data: Path, files: Mapping[str, Path], wanted: Mapping[str, str], notes: Path) -> None:
    found = data_digests(files, notes)
    for role in {**wanted, **found}:
        if role not in found:
            raise DataError(f"{data}: the client's has {role!r} beside it, here there is none")
        if found[role] != wanted.get(role):
            raise DataError(f"{files[role]}: is not the client's: its content differs")


def _place(path: str, variable: str) -> Path:
    """Where a client's file or directory lies on this worker; see above. If nowhere, where it was looked for last."""
    root = os.environ.get(variable)
    if not root:
        return Path(path)
    names = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    tails = [Path(root, *names[first:]) for first in range(len(names))]
    return next((tail for tail in tails if tail.exists()), tails[-1])


def _me() -> str:
    """This worker, for messages."""
    from distributed import get_worker

    try:
        return f"{get_worker().address} ({platform.node()})"
    except ValueError:  # not called by a worker
        return platform.node()


# --- the client's side


@dataclass(frozen=True)
class Cluster:
    """A scheduler's address; and how long to wait for it, and then for a worker, in seconds."""

    address: str
    wait_s: float = 30.0

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.address):
            raise OptionError(f"--cluster: {self.address!r} is not tcp://host:port or tls://host:port")

    def run(self, tasks: Callable[[], Sequence[Task]], arrived: Arrived) -> None:
        """Run all tasks, those in front first, and call `arrived` for each part, in the order in which they come.

        Raises ClusterError when the scheduler can't be reached or is lost, when there is no worker for `wait_s`, and
        when a worker can't do its part.
        """
        distributed = _library()
        with _connected(self, distributed) as client:
            wanted = tasks()
            texts = [json.dumps(asdict(task)) for task in wanted]
            futures = client.map(run_part, texts, pure=False, key="quant-part")
            numbers = {future.key: task.number for future, task in zip(futures, wanted, strict=True)}
            waiting = set(futures)
            del futures  # what is done is forgotten, and its memory on the workers with it
            idle_since = time.monotonic()
            try:
                while waiting:
                    done = _done(waiting, self, distributed)
                    waiting -= done
                    refused = [self._take(future, numbers[future.key], arrived) for future in done]
                    if any(refused):
                        raise ClusterError(next(filter(None, refused)))
                    if done or _workers(client, self):
                        idle_since = time.monotonic()
                    elif time.monotonic() - idle_since > self.wait_s:
                        raise self.deserted()
            finally:
                with suppress(Exception):  # the scheduler may be gone, and something else be on its way up
                    client.cancel(list(waiting))

    def deserted(self) -> ClusterError:
        return ClusterError(f"{self.address}: no worker for {self.wait_s:g} s")

    def lost(self) -> ClusterError:
        return ClusterError(f"{self.address}: the connection to the scheduler was lost; what had arrived is kept")

    def _take(self, future: Any, number: int, arrived: Arrived) -> str:
        """Hand a finished part over. The reason when there is none."""
        try:
            if future.status == "error":
                error = future.exception()
                return f"{self.address}: {type(error).__name__}: {error}"
            text, blob = future.result()
        except (CancelledError, OSError) as error:
            raise self.lost() from error
        answer = json.loads(text)
        if "error" in answer:
            return str(answer["error"])
        arrived(number, About.of(answer["about"]), blob)
        return ""


def _library() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise OptionError("--cluster needs dask: pip install 'quant-onednn[cluster]'") from error
    return distributed


@contextmanager
def _connected(cluster: Cluster, distributed: Any) -> Iterator[Any]:
    """A client of the scheduler; what dask would log or warn of meanwhile is not shown, but raised where it matters."""
    shown = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unlike versions of dask: those that count are checked by each worker
            try:
                client = distributed.Client(cluster.address, timeout=cluster.wait_s)
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).partition("\n")[0]
                raise ClusterError(f"{cluster.address}: no scheduler answers ({reason})") from error
            try:
                try:
                    client.wait_for_workers(1, timeout=cluster.wait_s)
                except TimeoutError as error:
                    raise cluster.deserted() from error
                yield client
            finally:
                client.close(timeout=_POLL_S)
    finally:
        logging.disable(shown)


def _done(waiting: set[Any], cluster: Cluster, distributed: Any) -> set[Any]:
    """The futures that are done, or have failed, by now or within a moment."""
    try:
        found = distributed.wait(list(waiting), timeout=_POLL_S, return_when="FIRST_COMPLETED")
    except TimeoutError:
        return set()
    except CancelledError as error:
        raise cluster.lost() from error
    return set(found.done)


def _workers(client: Any, cluster: Cluster) -> int:
    """How many workers there are."""
    try:
        return len(client.sync(client.scheduler.ncores, callback_timeout=cluster.wait_s))
    except (OSError, TimeoutError):
        return 0
