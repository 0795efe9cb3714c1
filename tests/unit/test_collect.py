"""What is run, what is kept and what is enough: with children and workers that only pretend to run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import cpu
from quant.errors import ChildError, ClusterError, DataError, OptionError
from quant.evaluation import collect
from quant.evaluation.cluster import _check_data, _check_versions, _place
from quant.evaluation.collect import Evaluated, Task, evaluate
from quant.evaluation.parts import About, Part, Store, pack, parts_of, versions
from quant.process import isolate

TOTAL = 3300
RUNS = [{"model": "fp32", "precision": "fp32"}, {"model": "int8", "precision": "int8"}]
STARTS = [0, 1000, 2000, 3000]


def scores(number: int, part: range) -> np.ndarray:
    """What run `number` puts out for these samples."""
    return np.stack([np.arange(part.start, part.stop), np.full(len(part), number)], 1).astype(np.float32)


def made(number: int, part: range) -> tuple[About, bytes]:
    proof = {"share": 1.0, "isas": ("avx2",), "int8_kernels": 1, "fp32_kernels": 0} if part.start == 0 else None
    about = About(part.start, len(part), TOTAL, ("y",), (0.1,), 0.2, 1, 0, proof=proof)
    return about.stamped(), pack([scores(number, part)], np.array(part))


class Child:
    """Stands in for isolate.call: runs what quant.evaluation.worker would, and notes the (model, part) that it ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.dies_before: tuple[str, int] | None = None

    def __call__(self, job: str, arguments: Mapping[str, Any], **named: Any) -> Any:
        if job == "quant.evaluation.worker:count_samples":
            return TOTAL
        json.dumps(arguments)
        parts = parts_of(TOTAL, arguments["batch_size"], arguments["batch_num"])
        order = [(part, number) for number in range(len(arguments["runs"])) for part in parts]
        if arguments["together"]:
            order.sort(key=lambda entry: entry[0].start)
        for part, place in order:
            run = arguments["runs"][place]
            if part.start in run["skip"]:
                continue
            heard = named["heard"]
            heard({"model": run["model"]})
            if (run["model"], part.start) == self.dies_before:
                raise ChildError("it died")
            if part.start == 0:
                heard({"kernels": True})
                named["log"]("onednn_verbose,...")
                heard({"kernels": False})
            about, blob = made([each["model"] for each in RUNS].index(Path(run["model"]).name), part)
            file = Path(arguments["outputs"]) / f"{place}.{part.start}.npz"
            file.write_bytes(blob)
            heard({"part": {"run": place, "file": str(file), "about": asdict(about), "macs": {}}})
            self.ran.append((Path(run["model"]).name, part.start))
        return None


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    found = Child()
    monkeypatch.setattr(isolate, "call", found)
    return found


Ask = Callable[..., list[Evaluated]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """An evaluation of both runs, with files that make up keys."""
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for run in RUNS:
        Path(run["model"]).mkdir()
        (Path(run["model"]) / "inference.pdmodel").write_text(run["model"])
    Path("data.npz").write_text("data")

    def ask(**options: Any) -> list[Evaluated]:
        return evaluate(RUNS, Path("data.npz"), **options)

    return ask


def whole(found: Sequence[Evaluated], count: int = TOTAL) -> bool:
    """Whether each run's outputs and labels are those of the first `count` samples, in order."""
    return all(
        np.array_equal(run.outputs[0], scores(number, range(count))) and np.array_equal(run.labels, np.arange(count))
        for number, run in enumerate(found)
    )


BOTH = [(run["model"], start) for run in RUNS for start in STARTS]


def test_without_a_store_all_is_run_each_time_and_nothing_is_kept(child: Child, ask: Ask, tmp_path: Path) -> None:
    assert whole(ask()) and whole(ask())
    assert child.ran == BOTH + BOTH
    assert not (tmp_path / "cache").exists()


def test_with_a_store_what_is_missing_is_run(child: Child, ask: Ask, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    child.dies_before = ("int8", 2000)
    with pytest.raises(ChildError, match=r"^int8: it died$"):
        ask(store=store)
    assert child.ran == [("fp32", start) for start in STARTS] + [("int8", 0), ("int8", 1000)]
    child.dies_before, child.ran = None, []
    found = ask(store=store)
    assert whole(found)
    assert child.ran == [("int8", 2000), ("int8", 3000)]
    assert [run.result["stored_samples"] for run in found] == [TOTAL, 2000]
    child.ran = []
    assert whole(ask(store=store)) and child.ran == []
    assert whole(ask(store=store, batch_num=30), 1500) and child.ran == []
    again = ask(store=Store(tmp_path / "store", fresh=True))
    assert whole(again) and child.ran == BOTH
    assert [run.result["stored_samples"] for run in again] == [0, 0]


def test_what_decides_the_outputs_is_run_anew(child: Child, ask: Ask, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    options: list[dict[str, Any]] = [{}, {"batch_size": 20}, {"threads": 2}, {"isa": "avx2"}]
    for other in options:
        child.ran = []
        assert whole(ask(store=store, **other))
        assert child.ran == [(run["model"], part.start) for run in RUNS for part in parts_of(TOTAL, 50)], other
    for change in (Path("data.npz"), Path("fp32") / "inference.pdmodel"):
        child.ran = []
        change.write_text("other")
        ask(store=store)
        assert child.ran == (BOTH if change.name == "data.npz" else BOTH[:4])


def test_a_first_part_without_its_proof_is_run_again(child: Child, ask: Ask, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ask(store=store)
    for shelf in (path for path in store.root.iterdir() if (path / "about.json").exists()):
        (shelf / "00000000.json").unlink()
    child.ran = []
    found = ask(store=store)
    assert whole(found) and child.ran == [("fp32", 0), ("int8", 0)]
    assert found[0].proof.int8_kernels == 0  # of this log


class After:
    """Says that it is enough after some parts."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.told: list[int] = []

    def __call__(self, parts: Sequence[Part], planned: Sequence[range]) -> bool:
        assert [samples.start for samples in planned] == STARTS
        assert {part.about.start for part in parts} == {STARTS[len(self.told)]} and len(parts) == len(RUNS)
        self.told.append(parts[0].about.start)
        return len(self.told) == self.count


def test_until_it_is_enough(child: Child, ask: Ask, tmp_path: Path) -> None:
    """All models run part by part; a plain evaluation goes on from there; parts beyond are not looked at."""
    store = Store(tmp_path / "store")
    until = After(2)
    found = ask(store=store, until=until)
    assert whole(found, 2000) and until.told == [0, 1000]
    assert child.ran == [("fp32", 0), ("int8", 0), ("fp32", 1000)]  # the fourth ended it
    child.ran = []
    assert whole(ask(store=store))
    assert child.ran == [(run["model"], start) for run in RUNS for start in (2000, 3000)]
    child.ran, until = [], After(1)
    found = ask(store=store, until=until)
    assert whole(found, 1000) and child.ran == [] and until.told == [0]
    assert [run.result["stored_samples"] for run in found] == [1000, 1000]
    assert whole(ask(until=After(9)))


class Workers:
    """Stands in for a cluster: the last parts come first; after some of them it breaks."""

    def __init__(self, breaks_after: int = 99) -> None:
        self.breaks_after = breaks_after
        self.tasks: list[Task] = []

    def run(self, tasks: Callable[[], Sequence[Task]], arrived: collect.Arrived) -> None:
        self.tasks = list(tasks())
        for count, task in enumerate(sorted(self.tasks, key=lambda task: -task.start)):
            if count == self.breaks_after:
                raise ClusterError("worker x: no")
            sent = json.loads(json.dumps(asdict(task)))
            [part] = [part for part in parts_of(TOTAL, sent["shared"]["batch_size"]) if part.start == sent["start"]]
            arrived(task.number, *made(task.number, part))


def test_parts_from_elsewhere(child: Child, ask: Ask, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    seen: list[tuple[object, ...]] = []
    workers = Workers(breaks_after=3)
    with pytest.raises(ClusterError, match="worker x: no"):
        ask(store=store, remote=workers, progress=lambda *step: seen.append(step))
    assert [(task.number, task.start) for task in workers.tasks] == [(n, s) for n in (0, 1) for s in STARTS]
    task = workers.tasks[0]
    assert task.isa == cpu.detect().cap.lower()
    assert Path(task.run["model"]) == tmp_path / "fp32" and Path(task.shared["data"]) == tmp_path / "data.npz"
    assert task.key.versions == versions()
    done = [step[1] for step in seen]
    assert seen[0] == ("on the cluster", 0, 2 * TOTAL) and done == sorted(done) and len(done) == 4
    workers = Workers()
    found = ask(store=store, remote=workers, progress=lambda *step: seen.append(step))
    assert whole(found) and len(workers.tasks) == 5 and child.ran == []
    assert [run.result["stored_samples"] for run in found] == [1300, 300]
    assert seen[-1] == ("on the cluster", 2 * TOTAL, 2 * TOTAL)
    assert whole(ask(remote=Workers()))  # a store is no condition


def test_enough_from_elsewhere(child: Child, ask: Ask) -> None:
    workers, until = Workers(), After(1)
    assert whole(ask(remote=workers, until=until), 1000)
    assert [(task.start, task.number) for task in workers.tasks] == [(s, n) for s in STARTS for n in (0, 1)]


# --- what a worker checks


def test_files_lie_below_the_workers_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _place("/home/me/r50/int8", "QUANT_MODEL_DIR") == Path("/home/me/r50/int8")
    monkeypatch.setenv("QUANT_MODEL_DIR", str(tmp_path))
    assert _place("/home/me/r50/int8", "QUANT_MODEL_DIR") == tmp_path / "int8"  # told when it is not there
    for known in ("int8", "r50/int8", "home/me/r50/int8"):  # the longest that is there
        (tmp_path / known).mkdir(parents=True)
        assert _place("/home/me/r50/int8", "QUANT_MODEL_DIR") == tmp_path / known
    assert _place("/../../etc/int8", "QUANT_MODEL_DIR") == tmp_path / "int8"


def test_versions_and_files_are_the_clients(tmp_path: Path) -> None:
    _check_versions(versions())
    with pytest.raises(OptionError, match=r"has numpy .*, not 1\.0"):
        _check_versions({**versions(), "numpy": "1.0"})
    with pytest.raises(OptionError, match="has other source files of quant"):
        _check_versions({**versions(), "code": "0"})
    data = tmp_path / "d.tsv"
    for name in ("d.tsv", "word.dic"):
        (tmp_path / name).write_text(name)
    files = {"data": data, "word.dic": tmp_path / "word.dic"}
    with pytest.raises(DataError, match=r"d\.tsv: is not the client's: its content differs"):
        _check_data(data, files, {"data": "0", "word.dic": "0"}, tmp_path)
    with pytest.raises(DataError, match=r"d\.tsv: the client's has 'tag\.dic' beside it, here there is none"):
        _check_data(data, files, {"tag.dic": "0"}, tmp_path)


def test_the_cap_that_settles_which_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    own = cpu.detect()
    assert cpu.settled_isa(None, {"int8"}) == own.cap.lower() or "avx_vnni" in cpu.flags()
    assert cpu.settled_isa(None, {"bf16"}) is None
    assert cpu.settled_isa("avx512_vnni", {"bf16"}) == "avx512_core_vnni"
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"avx2", "avx_vnni"}))
    assert cpu.settled_isa(None, {"int8"}) is None  # its kernels are better than the tier's
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"avx2"}))
    assert cpu.settled_isa(None, {"int8"}) == "avx2"
