"""Calibration: one default for all, batches that memory holds, thresholds that don't depend on them."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from quant.datasets.columns import Column
from quant.ir.graph import Graph
from quant.quantization import batch_memory, calibration
from quant.quantization.calibration import calibrate
from quant.quantization.observers import ALGORITHMS, BATCH_SIZE, BEST, DEFAULT
from quant.suites import commands
from quant.suites.manifest.schema import ModelKeys
from quant.suites.prepare import Given
from quant.suites.registry import MODELS, ModelSpec
from tests.nets import residual_net

GIB = 1 << 30


def images(count: int) -> Column:
    shape = residual_net().vars["x"].shape[1:]
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def thresholds(graph: Graph) -> dict[str, float]:
    return {op.input("X"): op.attr("threshold") for op in graph.ops if op.type == "fake_quant"}


def cut(values: Column, size: int) -> list[dict[str, Column]]:
    return [{"x": values[start : start + size]} for start in range(0, len(values), size)]


def test_the_default_is_one_for_all() -> None:
    for function in (calibrate, commands.ptq):
        assert inspect.signature(function).parameters["algo"].default == DEFAULT
    assert inspect.signature(commands.ptq).parameters["batch_size"].default == BATCH_SIZE
    assert ModelKeys.model_fields["algo"].default == Given.algo == ModelSpec.algo == DEFAULT
    assert {spec.name: spec.algo for spec in MODELS if spec.algo != DEFAULT} == {"ernie": BEST}


@pytest.mark.parametrize("algo", [*ALGORITHMS, BEST])
def test_thresholds_do_not_depend_on_the_batch(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for float32: a kernel may sum in another order for another batch."""
    graph, values = residual_net(), images(12)
    whole = thresholds(calibrate(graph, cut(values, 12), algo=algo))
    assert whole and all(value > 0 for value in whole.values())
    assert thresholds(calibrate(graph, cut(values, 5), algo=algo)) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(calibration, "available", lambda: 1)
    assert thresholds(calibrate(graph, cut(values, 12), algo=algo)) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("left", "sizes"),
    [(None, [1, 31]), (100 * GIB, [1, 31]), (80 * 10**6, [1, 10, 10, 10, 1]), (1, [1] * 32), (0, [1] * 32)],
)
def test_batches_are_as_large_as_memory_holds(
    left: int | None, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of 1 MB of observed tensors, four times that at the peak, in half of what is left."""
    monkeypatch.setattr(calibration, "available", lambda: left)
    parts, seen = calibration._Parts(residual_net()), []
    for part in parts.of({"x": np.zeros((32, 3), np.float32)}):
        parts.saw([np.zeros((len(part["x"]), 250_000), np.float32)], len(part["x"]))
        seen.append(len(part["x"]))
    assert seen == sizes


def test_what_cannot_be_cut_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "available", lambda: 1)
    unlike: Mapping[str, Column] = {"x": np.zeros((4, 3)), "scale": np.zeros((1, 2))}
    assert list(calibration._Parts(residual_net()).of(unlike)) == [unlike]


def test_memory_that_is_left(tmp_path: Path) -> None:
    meminfo, own, groups = tmp_path / "meminfo", tmp_path / "own", tmp_path / "cgroup"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    4000 kB\n")
    own.write_text("0::/a/b\n")
    (groups / "a" / "b").mkdir(parents=True)
    assert batch_memory.available(meminfo, groups, own) == 4_096_000
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    (groups / "a" / "b" / "memory.current").write_text("1000\n")
    assert batch_memory.available(meminfo, groups, own) == 4_096_000
    (groups / "a" / "memory.max").write_text("5000\n")
    (groups / "a" / "memory.current").write_text("2000\n")
    assert batch_memory.available(meminfo, groups, own) == 3000
    (groups / "a" / "memory.current").write_text("9000\n")
    assert batch_memory.available(meminfo, groups, own) == 0
    own.write_text("5:cpu:/c\n9:memory:/m\n\n")
    (groups / "memory" / "m").mkdir(parents=True)
    (groups / "memory" / "m" / "memory.limit_in_bytes").write_text("700\n")
    (groups / "memory" / "m" / "memory.usage_in_bytes").write_text("100\n")
    assert batch_memory.available(meminfo, groups, own) == 600
    assert batch_memory.available(tmp_path / "absent", groups, tmp_path / "absent") is None
