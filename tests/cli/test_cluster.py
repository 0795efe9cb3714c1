"""Parts on a real dask scheduler and its workers: deaths, refusals, silence; results as those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import cpu
from quant.cli import main

pytest.importorskip("distributed")
ROOT = Path(__file__).parents[2]
USED, PARTS = 3000, 3  # samples
Run = Callable[..., Any]


@contextmanager
def started(module: str, log: Path, *args: object, **environment: object) -> Iterator[subprocess.Popen[bytes]]:
    """One of dask's own commands, ended with the block."""
    command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *map(str, args)]
    known = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    with log.open("wb") as file, subprocess.Popen(command, cwd=ROOT, env=known, stdout=file, stderr=file) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def scheduler(place: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler at a free port: its address."""
    found = place / "scheduler.json"
    with started(
        "dask_scheduler", place / "scheduler.log", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", found
    ) as process:
        deadline = time.monotonic() + 60
        while not found.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.05)  # the file is written in place
        yield json.loads(found.read_text())["address"], process


@contextmanager
def worker(address: str, place: Path, **environment: object) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with a cache of its own."""
    place.mkdir()
    options = ["--nthreads", 1, "--no-nanny", "--local-directory", place]
    known = {"QUANT_CACHE": place / "cache", **environment}
    with started("dask_worker", place / "log", address, *options, **known) as process:
        yield process


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object, code: int = 0) -> Any:
        capfd.readouterr()
        assert main([str(arg) for arg in args]) == code
        out, err = capfd.readouterr()
        if code == 2:
            assert out == "" and err.count("\n") == 1 and err.startswith("quant: "), err
        return json.loads(out) if "--json" in args and code == 0 else out + err

    return run


def parts(store: Path) -> set[Path]:
    return set(store.glob("*/????????.json"))


def wait_for(count: int, store: Path, process: subprocess.Popen[str]) -> None:
    while len(parts(store)) < count and process.poll() is None:
        time.sleep(0.002)


def client(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quant", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def evaluation(place: Path, model: str, *args: object) -> list[object]:
    named = ["--model", place / model, "--precision", model, "--data", place / "data.npz"]
    return ["eval", *named, "--batch-num", USED // 50, *args, "--json"]


def test_dead_workers_and_a_dead_scheduler(
    place: Path, cache: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers one is killed halfway, and nothing is missing. The other has its files at another place."""
    moved = tmp_path / "moved"
    (moved / "models").mkdir(parents=True)
    (moved / "models" / "int8").symlink_to(place / "int8")
    (moved / "models" / "fp32").symlink_to(place / "fp32")
    os.link(place / "data.npz", moved / "data.npz")
    elsewhere = {"QUANT_MODEL_DIR": moved / "models", "QUANT_DATA_DIR": moved}
    saved = ["--save-outputs", tmp_path / "cluster.npz"]
    with ExitStack() as stack:
        address, master = stack.enter_context(scheduler(tmp_path))
        doomed = stack.enter_context(worker(address, tmp_path / "doomed"))
        stack.enter_context(worker(address, tmp_path / "other", **elsewhere))
        process = client(*evaluation(place, "int8", "--cluster", address, *saved))
        wait_for(1, cache, process)
        doomed.send_signal(signal.SIGKILL)
        assert len(parts(cache)) < PARTS
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), err
        found = json.loads(out)
        assert (found["samples"], found["stored_samples"], len(parts(cache))) == (USED, 0, PARTS)

        process = client(*evaluation(place, "fp32", "--cluster", address))
        wait_for(PARTS + 1, cache, process)
        begin = time.monotonic()
        master.kill()
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (2, "")
        assert err == f"quant: {address}: the connection to the scheduler was lost; what had arrived is kept\n"
        assert PARTS < len(parts(cache)) < 2 * PARTS
        assert time.monotonic() - begin < 60

    # What the workers did serves one process, and is what it would have done.
    here = run(*evaluation(place, "int8"))
    assert here == {**found, "stored_samples": USED}
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "alone"))
    alone = run(*evaluation(place, "int8", "--save-outputs", tmp_path / "alone.npz"))
    assert alone["stored_samples"] == 0
    for name in ("metrics", "int8_mac_share", "kernel_isas", "int8_ops", "fp32_ops"):
        assert alone[name] == found[name]
    with np.load(tmp_path / "alone.npz") as one, np.load(tmp_path / "cluster.npz") as other:
        assert one.files == other.files
        assert all(one[name].tobytes() == other[name].tobytes() for name in one.files)


def test_what_workers_refuse(place: Path, cache: Path, tmp_path: Path, run: Run) -> None:
    with scheduler(tmp_path) as (address, _):
        where = ["--cluster", address, "--cluster-wait"]
        begin = time.monotonic()
        assert f"{address}: no worker for 1 s" in run(*evaluation(place, "int8", *where, 1), code=2)
        assert time.monotonic() - begin < 20

        files, models = tmp_path / "files", tmp_path / "models"
        files.mkdir(), models.mkdir()
        (models / "int8").symlink_to(place / "other")
        with worker(address, tmp_path / "worker", QUANT_DATA_DIR=files, QUANT_MODEL_DIR=models):
            told = run(*evaluation(place, "int8", *where, 60), code=2)
            assert told.startswith("quant: worker tcp://127.0.0.1:")
            assert told.endswith(f"): {files}/data.npz: no such data file\n")
            if cpu.TIERS[-1] not in cpu.reachable():
                told = run(*evaluation(place, "int8", *where, 60, "--isa", "avx512_core_amx"), code=2)
                assert "worker tcp://" in told and "this CPU doesn't reach avx512_core_amx" in told
            (files / "data.npz").write_bytes(b"other data")
            told = run(*evaluation(place, "int8", *where, 60), code=2)
            assert told.endswith(f"): {files}/data.npz: is not the client's: its content differs\n")
            (files / "data.npz").unlink()
            os.link(place / "data.npz", files / "data.npz")
            told = run(*evaluation(place, "int8", *where, 60), code=2)
            assert f"{models}/int8: is not the client's model {place}/int8" in told
    assert parts(cache) == set()


def test_nobody_listens(place: Path, cache: Path, run: Run) -> None:
    begin = time.monotonic()
    told = run(*evaluation(place, "int8", "--cluster", "tcp://127.0.0.1:9", "--cluster-wait", "1"), code=2)
    assert "tcp://127.0.0.1:9: no scheduler answers" in told
    assert time.monotonic() - begin < 20
    for address in ("127.0.0.1:8786", "http://host:8786", "tcp://host", "tcp://a b:1", "inproc://x"):
        told = run(*evaluation(place, "int8", "--cluster", address), code=2)
        assert f"--cluster: '{address}' is not tcp://host:port" in told
