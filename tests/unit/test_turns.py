"""Processes that take turns or run at once: who waits takes no core, what was done in a window, who dies."""

import os
import signal
import time
from collections import Counter
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import cpu
from quant.errors import ChildError, DataError, OptionError
from quant.ir.graph import save_dir
from quant.process import isolate
from quant.results.record import Record
from quant.results.speed_ratio import settled
from quant.results.target import Case
from quant.suites.registry import BY_NAME
from quant.timing import instances, side_by_side, worker
from quant.timing import rounds as turns
from quant.timing.instances import percentile, work_done
from tests.nets import Net

HERE = "tests.unit.test_turns"


# --- jobs, run in children


def collect() -> list[int]:
    found = []
    for request in isolate.requests():
        if request == "wrong":
            raise DataError("file.bin: is wrong")
        found.append(request)
        isolate.report_event({"so far": sum(found)})
    return found


def tell_who(contenders: list[list[Any]], threads: int, cpus: list[int], batch: int) -> None:
    """As quant.timing.worker.take_turns: takes the last variant, and for seconds the process's number."""
    isolate.report_event({"runs": [contenders[0][-1]], "cost_s": 0.0})
    for _ in isolate.requests():
        isolate.report_event({"seconds": [float(os.getpid())]})


def pinned(run: dict[str, Any], cpus: list[int]) -> list[list[int]]:
    """Where all threads may run, after a model took its turns."""
    worker.take_turns([[run]], threads=2, cpus=cpus, batch=4)
    return [sorted(os.sched_getaffinity(int(task.name))) for task in Path("/proc/self/task").iterdir()]


def where() -> list[int]:
    return sorted(os.sched_getaffinity(0))


# --- tests


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Large enough for two threads."""
    net = Net(channels=32, side=28)
    out = net.head(net.act(net.conv(net.act(net.conv("x", 32, 3)), 32, 3)))
    directory = tmp_path_factory.mktemp("model")
    save_dir(net.graph(out), directory)
    return str(directory)


def seconds_of_children() -> float:
    """CPU time of the children that run now. /proc/PID/stat, fields 14 and 15, from behind the name's bracket."""
    total = 0
    for child in isolate._running:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def test_a_child_is_told_more_while_it_runs() -> None:
    with isolate.Child(f"{HERE}:collect", {}) as child:
        for number, total in ((1, 1), (2, 3)):
            child.tell(number)
            assert child.hear() == {"event": {"so far": total}}
        child.end_requests()
        assert child.hear() == {"result": [1, 2]}


def test_what_a_child_cannot_do_is_raised_where_it_was_asked() -> None:
    with isolate.Child(f"{HERE}:collect", {}) as child:
        child.tell("wrong")
        with pytest.raises(DataError, match=r"^file\.bin: is wrong$"):
            child.hear()
        child.tell("nobody is there any more")
    with isolate.Child(f"{HERE}:collect", {"model": "/m"}) as child, pytest.raises(ChildError, match=r"^/m: "):
        child.hear()


def test_a_child_is_pinned_before_anything_loads() -> None:
    last = max(os.sched_getaffinity(0))
    with isolate.Child(f"{HERE}:where", {}, cpus=[last]) as child:
        assert child.hear() == {"result": [last]}


def test_who_waits_takes_no_core(model: str) -> None:
    """OpenMP's threads wait for more work in a loop, by default for 0.2 s: the next in turn would share its cores."""
    waited = []

    def look(what: str, done: int, total: int) -> None:
        before = seconds_of_children()
        time.sleep(0.15)
        waited.append(seconds_of_children() - before)

    runs = [{"model": model, "precision": "fp32", "executor": "paddle"}]
    found = turns.bench([runs], (1, 2), budget_s=0.2, progress=look, batch=4)
    assert np.median(waited) <= 0.03
    assert [entry["run"] for [entry] in found] == [{**runs[0], "threads": count} for count in (1, 2)]
    rounds = {len(entry["seconds"]) for [entry] in found}
    assert len(rounds) == 1 and rounds.pop() == len(waited) >= 8


@pytest.mark.parametrize("count", range(1, 13))
def test_everyone_comes_first_and_behind_each_other_equally_often(count: int) -> None:
    places: Counter[tuple[int, int]] = Counter()
    behind: Counter[tuple[int, int]] = Counter()
    for number in range(3 * turns.cycle(count)):
        order = turns.in_turn(count, number)
        assert sorted(order) == list(range(count))
        places.update(enumerate(order))
        behind.update(pairwise(order))
    assert places == dict.fromkeys(product(range(count), repeat=2), 6)
    assert behind == dict.fromkeys(permutations(range(count), 2), 6)


@pytest.mark.parametrize("count", range(3, 13))
def test_borders_of_rounds_favour_nobody(count: int) -> None:
    """Over any number of rounds that is run, counting also who begins behind a round's last."""
    behind: Counter[tuple[int, int]] = Counter()
    whole = [place for number in range(60) for place in turns.in_turn(count, number)]
    for step, pair in enumerate(pairwise(whole), start=1):
        behind[pair] += 1
        if step % count == 0:
            often = [behind[first, second] for first, second in permutations(range(count), 2)]
            assert max(often) - min(often) <= 5
    assert all(first != second for first, second in behind)


def test_two_take_turns() -> None:
    assert [turns.in_turn(2, number) for number in range(4)] == [(0, 1), (0, 1), (1, 0), (1, 0)]


def test_the_budget_decides_how_many_rounds() -> None:
    assert [turns.rounds_in(2.0, cost_s) for cost_s in (0.001, 0.1, 100.0)] == [60, 20, 8]


def test_each_round_has_new_processes_and_the_variant_that_was_the_fastest() -> None:
    told = []
    contenders = [[{"model": "a"}, {"model": "b"}], [{"model": "c"}]]
    found = turns.in_fresh_processes(
        contenders,
        rounds=3,
        laps=2,
        job=f"{HERE}:tell_who",
        progress=lambda *how: told.append(how),
        batch=4,
    )
    assert [entry["run"]["model"] for entry in found] == ["b", "c"]  # the last of those that were given
    pids = [entry["seconds"] for entry in found]
    assert all(len(one) == 6 and one[0::2] == one[1::2] and len(set(one)) == 3 for one in pids)
    assert len({*pids[0], *pids[1]}) == 6
    assert told == [("processes", number, 3) for number in (1, 2, 3)]


def test_all_threads_are_pinned_once_the_models_are_loaded(model: str) -> None:
    run = {"model": model, "precision": "fp32", "executor": "paddle"}
    records = side_by_side.in_processes("row", Path(model), Path(model), {"batch": 4}, Case(4), rounds=2, laps=3)
    fp32, int8 = records
    assert (fp32.processes, int8.processes) == (2, 2)
    assert len(fp32.latency_s) == len(int8.latency_s) == len(int8.twin_s) == 6
    core = cpu.physical_cores()[:1]
    with isolate.Child(f"{HERE}:pinned", {"run": run, "cpus": core}, threads=2) as child:
        child.end_requests()
        assert "runs" in child.hear_event()
        places = child.hear()["result"]
    assert len(places) > 1 and all(place == core for place in places)


def test_loading_is_timed_in_new_processes(model: str) -> None:
    [found] = turns.loads([{"model": model, "precision": "fp32"}], 2, batch=1)
    assert len(found) == 2
    assert all(0 < one["load_s"] < 60 and 0 < one["answer_s"] < 60 for one in found)


@pytest.mark.parametrize(("share", "enough"), [(0.5, 20), (0.9, 100), (0.99, 1000)])
def test_a_percentile_takes_ten_batches_above_it(share: float, enough: int) -> None:
    latency = np.arange(1.0, enough + 1)
    assert percentile(latency[1:], share) is None
    assert percentile(latency, share) == pytest.approx(np.quantile(latency, share))
    assert percentile([], share) is None


def test_work_in_a_window_counts_by_the_share_of_time_inside() -> None:
    begun, ended, samples = np.array([0.0, 1.0, 3.0]), np.array([1.0, 3.0, 5.0]), np.array([4, 4, 2])
    assert work_done(begun, ended, samples, 0.0, 5.0) == pytest.approx(10)
    assert work_done(begun, ended, samples, 0.5, 4.0) == pytest.approx(2 + 4 + 1)
    assert work_done(begun, ended, samples, 6.0, 7.0) == 0.0


def test_instances_at_once_and_one_alone(model: str) -> None:
    count = min(2, len(cpu.physical_cores()))
    found = instances.measure([{"model": model, "precision": "fp32"}], count, seconds=0.8, batch=4)
    assert [one.cpu for one in found.instances] == cpu.physical_cores()[:count]
    assert len(found.alone) == len(found.rates) == len(found.instances[0].rates) >= 2
    assert found.window_s * len(found.alone) == pytest.approx(0.8)
    for one in found.instances:
        busy = sum(one.latency_s)
        assert 0 < busy <= 0.8
        assert 4 * len(one.latency_s) / 0.8 <= np.mean(one.rates) * 1.01  # whole batches, and parts at the end
    low, high = found.scaling()[1:]
    assert 0 < low <= high


def test_more_instances_than_cores(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(cpu.physical_cores())
    runs = [{"model": model, "precision": "fp32"}]
    with pytest.raises(OptionError, match=f"--instances: {cores + 1}, but .* {cores} physical cores"):
        instances.measure(runs, cores + 1)
    monkeypatch.setattr(cpu, "quota", lambda: 0.5)
    with pytest.raises(OptionError, match=r"--instances: 1, but the control group allows 0\.5 CPUs"):
        instances.measure(runs, 1)


def test_an_instance_that_dies_ends_all(model: str) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if what == "bench" and done == 1:
            os.kill(next(iter(isolate._running)).pid, signal.SIGSEGV)

    count = min(2, len(cpu.physical_cores()))
    with pytest.raises(ChildError, match=rf"^{model}: Paddle crashed on this model \(SIGSEGV\)"):
        instances.measure([{"model": model, "precision": "fp32"}], count, seconds=0.8, progress=kill)
    assert not isolate._running


def test_one_cpu_of_each_core(tmp_path: Path) -> None:
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cpu.physical_cores(tmp_path, range(4)) == [0, 1]
    assert cpu.physical_cores(tmp_path, {1, 2, 3}) == [1, 2]
    assert cpu.physical_cores(tmp_path / "absent", {4, 7}) == [4, 7]


def test_control_groups_limit_time(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert cpu.quota(root, own) is None
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cpu.quota(root, own) is None
    (root / "a" / "cpu.max").write_text("150000 100000\n")
    assert cpu.quota(root, own) == 1.5
    own.write_text("5:memory:/m\n3:cpu,cpuacct:/c\n0::/\n")
    assert cpu.quota(root, own) is None
    (root / "cpu" / "c").mkdir(parents=True)
    (root / "cpu" / "c" / "cpu.cfs_quota_us").write_text("200000\n")
    (root / "cpu" / "c" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu.quota(root, own) == 2.0
    (root / "cpu" / "c" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu.quota(root, own) is None
    assert cpu.quota(root, tmp_path / "absent") is None


def records(ratio: float) -> list[Record]:
    both = {"fp32": ratio, "int8": 1.0}
    return [Record("resnet50", name, "avx512_vnni", 1, 1, latency_s=(ms,) * 9) for name, ms in both.items()]


@pytest.mark.parametrize(
    ("ratios", "budgets", "kept"),
    [((3.5, 1.0), [2.5], 3.5), ((2.9, 3.1), [2.5, 5.0], 3.1), ((2.0, 1.9), [2.5, 5.0], 1.9)],
)
def test_a_miss_is_measured_again_with_a_doubled_budget(
    ratios: tuple[float, float], budgets: list[float], kept: float
) -> None:
    asked: list[float] = []

    def measure(budget_s: float) -> list[Record]:
        asked.append(budget_s)
        return records(ratios[len(asked) - 1])

    assert settled(BY_NAME["resnet50"], measure)[0].latency_s[0] == kept
    assert asked == budgets
