"""How many threads there may be is decided in one place, asked by all, and told as what ran."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quant import cpu
from quant.cpu import detect
from quant.process import isolate
from quant.quantization import calibration
from quant.results.target import Case
from quant.runtime.predictor import Settings
from quant.timing import side_by_side
from tests.nets import data, residual_net

HERE = len(os.sched_getaffinity(0))
_MANY = 10 * HERE * 100_000


def groups(tmp_path: Path, **limits: str) -> tuple[Path, Path]:
    """A cgroup file system of version 2 with the process in /a/b; `limits`: cpu.max of root, a and b."""
    root, own = tmp_path / "cgroup", tmp_path / "own"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    for name, text in limits.items():
        (root / {"root": "", "a": "a", "b": "a/b"}[name] / "cpu.max").write_text(text)
    return root, own


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, HERE),
        ({"b": "max 100000\n"}, HERE),
        ({"b": f"{_MANY} 100000\n"}, HERE),
        ({"b": "100000 100000\n"}, 1),
        ({"b": "150000 100000\n"}, 1),
        ({"b": "199999 100000\n"}, 1),
        ({"b": "50000 100000\n"}, 1),
        ({"b": "1000 1000000\n"}, 1),
        ({"a": "100000 100000\n", "b": f"{_MANY} 100000\n"}, 1),
        ({"root": "100000 100000\n"}, 1),
    ],
)
def test_cores_are_the_affinity_mask_or_the_groups_quota_in_whole_cpus(
    limits: dict[str, str], count: int, tmp_path: Path
) -> None:
    assert cpu.cores(*groups(tmp_path, **limits)) == count


@pytest.mark.parametrize(
    "text", ["", "\n", "max", "max\n", "x y\n", "100000\n", "1 2 3\n", "0 0\n", "100000 0\n", "-1 5\n", "0 5\n"]
)
def test_what_is_no_limit_is_none(text: str, tmp_path: Path) -> None:
    root, own = groups(tmp_path, b=text)
    assert cpu.quota(root, own) is None and cpu.cores(root, own) == HERE
    (root / "a" / "cpu.max").write_text("100000 100000\n")
    assert cpu.quota(root, own) == 1.0


@pytest.mark.parametrize(
    ("quota", "period"), [("", "100000"), ("200000", ""), ("x", "y"), ("200000", "0"), ("-1", "100000")]
)
def test_what_is_no_limit_of_version_1_is_none(quota: str, period: str, tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    (root / "cpu").mkdir(parents=True)
    own.write_text("3:cpu,cpuacct:/docker/0123\n")  # the host's path, which isn't there in a container
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (root / "cpu" / "cpu.cfs_period_us").write_text(period)
    assert cpu.quota(root, own) is None


def test_a_process_that_is_pinned_has_as_many_cores() -> None:
    pinned = f"os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    script = f"import os; {pinned}; from quant import cpu; print(cpu.cores())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def openmp_threads() -> str:
    """Job: what OpenMP will start."""
    return os.environ["OMP_NUM_THREADS"]


def test_children_start_no_more_threads_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = "tests.unit.test_threads:openmp_threads"
    assert isolate.call(job, {}) == str(cpu.cores())
    assert isolate.call(job, {}, threads=3) == "3"
    monkeypatch.setattr(isolate, "cores", lambda: 7)
    assert isolate.call(job, {}) == "7"


def test_calibration_runs_on_what_is_asked_for_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    class Seen(calibration.Reference):
        def __init__(self, directory: Path, settings: Settings, *, unfused: bool = False) -> None:
            ran.append(settings.threads)
            super().__init__(directory, settings, unfused=unfused)

    monkeypatch.setattr(calibration, "Reference", Seen)
    graph = residual_net()
    for threads in (1, 3, None):
        calibration.calibrate(graph, data(graph, 1), algo="abs_max", threads=threads)
    assert ran == [1, 3, cpu.cores()]


def test_records_tell_what_was_asked_for_and_what_ran() -> None:
    run = {"model": "m", "precision": "int8", "executor": "direct"}
    timed = [{"run": {**run, "threads": count}, "seconds": [1.0]} for count in (1, 2)]
    few, all_ = side_by_side.timed_records("m", timed, Case(1), detect(), 2)
    assert (few.threads, few.ran_threads, few.variant) == (2, 1, "oneDNN direct, 1 thread")
    assert (all_.threads, all_.ran_threads, all_.variant) == (2, 2, "oneDNN direct")
