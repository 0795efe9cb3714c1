"""Workers, their protocol and their turns, with an engine that does nothing."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers import compare, results
from bench.peers.compare import Cell, Load, take_turns
from bench.peers.contenders import CONTENDERS, Contender, Engine, contenders_of, twins_of
from bench.peers.models import Artefacts, Built
from bench.peers.protocol import Worker, WorkerError, thread_environment
from quant.errors import ModelError
from quant.evaluation.parts import unpack
from quant.suites.registry import MODELS, ModelSpec, find

ENGINE = "tests.peers.fake_engine"


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """Five samples of two values, the first of which is the sample's number."""
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    values[:, 0] = np.arange(5)
    np.savez(tmp_path / "data.npz", x=values)
    return {"path": str(tmp_path / "data.npz"), "format": "npz", "signature": {"x": [[2], "float32"]}}


def load(name: str, data: dict[str, Any], batch: int = 5, **arguments: Any) -> Load:
    return Load(name, thread_environment(1), ENGINE, {"name": name, **arguments}, {"data": data, "batch": batch})


def test_a_worker_loads_takes_turns_and_gives_outputs(data: dict[str, Any], tmp_path: Path) -> None:
    worker, answer = load("a", data, batch=2).start()
    with worker:
        assert answer["batches"] == 3 and answer["facts"] == {"int8": [1, 2], "name": "a"} and answer["seconds"] > 0
        assert 0 < worker.ask(turn={"repeat": 3, "warm": True})["seconds"] < 1
        file = tmp_path / "outputs.npz"
        assert worker.ask(outputs={"data": data, "file": str(file)}) == {"count": 1}
        [column] = unpack(file.read_bytes(), 1)[0]
        assert np.array_equal(column, 2 * np.load(data["path"])["x"])
        assert worker.ask(quit={}) == {}
        assert worker.child.wait(10) == 0


def test_a_turn_runs_each_batch_untimed_and_then_several_times_in_a_row(data: dict[str, Any], tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    worker, _ = load("a", data, batch=2, diary=str(diary)).start()
    with worker:
        diary.unlink()
        worker.ask(turn={"repeat": 2, "warm": True})
        assert diary.read_text().split("\n")[:-1] == ["a 0", "a 2", "a 4", *["a 0"] * 2, *["a 2"] * 2, *["a 4"] * 2]


def test_only_the_first_samples_are_timed(data: dict[str, Any]) -> None:
    worker, answer = load("a", {**data, "samples": 3}, batch=1).start()
    with worker:
        assert answer["batches"] == 3


def test_an_error_is_one_line_and_the_worker_lives_on(data: dict[str, Any]) -> None:
    worker, _ = load("a", data, **{"raise": 4}).start()
    with worker:
        with pytest.raises(WorkerError, match=r"^ValueError: no memory left$"):
            worker.ask(turn={"repeat": 1, "warm": False})
        assert worker.ask(turn={"repeat": 1, "warm": False})["seconds"] > 0


def test_a_crash_is_an_error_that_names_the_signal(data: dict[str, Any]) -> None:
    worker, _ = load("a", data, crash=4).start()
    with worker, pytest.raises(WorkerError, match=r"^crashed \(SIGSEGV\)"):
        worker.ask(turn={"repeat": 1, "warm": False})


def test_a_worker_that_dies_before_it_is_asked_is_an_error() -> None:
    with Worker({}) as worker:
        worker.child.kill()
        worker.child.wait(30)
        with pytest.raises(WorkerError, match=r"^crashed \(SIGKILL\)$"):
            worker.ask(load={})


def test_silence_ends_the_worker(data: dict[str, Any]) -> None:
    worker, _ = load("a", data, silent=4).start()
    worker.timeout_s = 0.3
    with worker, pytest.raises(WorkerError, match="no answer in 0 s"):
        worker.ask(turn={"repeat": 1, "warm": False})
    assert worker.child.poll() is not None


def test_threads_neither_spin_nor_multiply() -> None:
    environment = thread_environment(2)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and environment["KMP_BLOCKTIME"] == "0"


def test_each_contender_follows_each_other_equally_often(data: dict[str, Any], tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    names = ("a", "b", "c")
    timed = take_turns([load(name, data, diary=str(diary)) for name in names], budget_s=0, repeat=1)
    assert [len(timed[name].seconds) for name in names] == [12] * 3  # whole cycles, and 8 rounds at least
    runs = [line.split()[0] for line in diary.read_text().splitlines()]
    turns = runs[3 * 3 :]  # behind the three laps in which each finds its pace
    assert turns[::2] == turns[1::2]  # each runs once untimed, and once
    order = turns[::2]
    assert [sorted(order[begin : begin + 3]) for begin in range(0, 36, 3)] == [["a", "b", "c"]] * 12
    behind = Counter(pairwise(order))
    assert set(behind) == set(permutations(names, 2))  # so nobody follows itself
    assert max(behind.values()) - min(behind.values()) <= 1


@pytest.mark.parametrize(
    ("affordable", "contenders", "rounds"),
    [(0, 1, 8), (0, 2, 8), (0, 3, 12), (0, 8, 16), (29, 3, 24), (31, 8, 16), (1e9, 8, 48), (1e9, 1, 60)],
)
def test_rounds_are_whole_cycles(affordable: float, contenders: int, rounds: int) -> None:
    assert compare._rounds(affordable, contenders) == rounds


def test_failures_are_cells_and_the_others_go_on(data: dict[str, Any]) -> None:
    loads = [
        load("fine", data),
        load("refuses", data, load=1),
        load("crashes", data, crash=9),
        load("raises", data, **{"raise": 6}),
    ]
    timed = take_turns(loads, budget_s=0, repeat=1, parallel=2)
    assert list(timed) == ["fine", "refuses", "crashes", "raises"]
    assert len(timed["fine"].seconds) == 12 and timed["fine"].error == ""
    assert timed["refuses"].error == "ValueError: unsupported op 'zeta'"
    assert timed["crashes"].error.startswith("crashed (SIGSEGV)")
    assert timed["raises"].error == "ValueError: no memory left"
    assert all(not timed[name].seconds for name in ("refuses", "crashes", "raises"))


def test_nothing_to_time_is_no_error(data: dict[str, Any]) -> None:
    assert take_turns([], budget_s=1, repeat=None) == {}
    assert list(take_turns([load("a", data, load=1)], budget_s=1, repeat=None)) == ["a"]


def test_the_budget_decides_how_many_rounds(data: dict[str, Any]) -> None:
    start = time.monotonic()
    timed = take_turns([load("a", data)], budget_s=1000, repeat=1)
    assert len(timed["a"].seconds) == 60 and time.monotonic() - start < 60


def artefacts(data: dict[str, Any], **models: Built) -> Artefacts:
    return Artefacts(Path("fp32"), models, data, data, data, 1)


def test_a_row_that_can_not_be_built_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row's own model can't be built, the second's can't be judged."""
    first, second, third = MODELS[:3]

    def build(spec: ModelSpec, chosen: Sequence[Contender], isa: str | None, *, full: bool) -> Artefacts:
        if spec is first:
            raise ModelError("no such\nweights")
        return artefacts({})

    def judge(spec: ModelSpec, *_: Any) -> compare.Outcomes:
        if spec is second:
            raise WorkerError("crashed (SIGSEGV)")
        return {"ours-int8": Cell(outcomes={"top1": ("1", "1")})}, {"top1": ("1", "1")}

    monkeypatch.setattr(compare, "artefacts_of", build)
    monkeypatch.setattr(compare, "judge", judge)
    monkeypatch.setattr(compare, "measure", lambda *_: {c.key: Cell((0.1,), {"int8": [1, 1]}) for c in CONTENDERS})
    rows = compare.compare(MODELS[:3], CONTENDERS, isa=None, threads=1, budget_s=1, tell=lambda _: None)
    assert [row.model for row in rows] == [first.name, second.name, third.name]
    assert {cell.error for cell in rows[0].cells.values()} == {"no such weights"}
    assert {cell.error for cell in rows[1].cells.values()} == {"crashed (SIGSEGV)"}
    assert rows[2].cells["ours-int8"] == Cell((0.1,), {"int8": [1, 1]}, "", {"top1": ("1", "1")})
    assert rows[2].reference == {"top1": ("1", "1")}
    assert not results.complete(rows) and results.complete(rows[2:])
    assert "crashed (SIGSEGV)" in results.tables(rows)[0].rows[1][1]


def test_what_was_not_built_is_not_timed(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("fake", "fake", (), ENGINE, "ours")
    chosen = [Contender("fake", "int8", "fake", {"name": "a", "load": 1}), Contender("fake", "int8", "", variant="b")]
    monkeypatch.setattr(compare, "engine_of", lambda _: engine)
    built = {chosen[0].key: Built("somewhere"), chosen[1].key: Built(error="not installed: fake")}
    timed = compare.measure(find("resnet50"), chosen, artefacts(data, **built), None, 1, 0.1)
    assert list(timed) == ["fake-int8", "fake-b-int8"]
    assert timed["fake-int8"].error == "ValueError: unsupported op 'zeta'"
    assert timed["fake-b-int8"].error == "not installed: fake"


def test_twins_run_the_same_model_alike_and_are_not_judged(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Paddle runs FP32 fastest by is looked for once, though two contenders ask for it."""
    pairs = twins_of("int8", "fp32")
    assert [(one.key, twin.key) for one, twin in pairs] == [
        ("ours-int8", "ours-again-int8"),
        ("openvino-int8", "openvino-again-int8"),
        ("paddle-fp32", "paddle-again-fp32"),
    ]
    started: list[Load] = []

    def take(loads: Sequence[Load], **_: Any) -> dict[str, Cell]:
        started.extend(loads)
        return {one.key: Cell((0.1,)) for one in loads}

    ways = iter([{"onednn": True}, {"onednn": False}])
    monkeypatch.setattr(compare, "take_turns", take)
    monkeypatch.setattr(compare, "_fastest", lambda *_: next(ways))
    monkeypatch.setattr(compare, "_lacks", lambda *_: "")
    built = {contender.key: Built(contender.twin_of or contender.key) for contender in CONTENDERS}
    assert {*compare.measure(find("resnet50"), CONTENDERS, artefacts(data, **built), None, 1, 0.1)} == {*built}
    loads = {one.key: one for one in started}
    for one, twin in pairs:
        assert replace(loads[twin.key], key=one.key) == loads[one.key]
    judged: list[str] = []
    monkeypatch.setattr(compare, "artefacts_of", lambda *_, **__: artefacts(data, **built))
    monkeypatch.setattr(compare, "measure", lambda *_: dict.fromkeys(built, Cell()))

    def judge(spec: ModelSpec, chosen: Sequence[Contender], *_: Any) -> compare.Outcomes:
        judged.extend(contender.key for contender in chosen)
        return {}, {}

    monkeypatch.setattr(compare, "judge", judge)
    compare.compare(MODELS[:1], CONTENDERS, isa=None, threads=1, budget_s=1, tell=lambda _: None)
    assert judged == [contender.key for contender in contenders_of("int8")]


def test_a_cell_without_times_has_no_median() -> None:
    assert Cell().milliseconds is None
    assert Cell((0.001, 0.003, 0.002)).milliseconds == pytest.approx(2)
