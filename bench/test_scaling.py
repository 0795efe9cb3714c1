"""Threads and instances: what a second core brings. Ratios are asserted, absolute figures recorded."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from quant import cpu
from quant.metrics.scores import ratio_interval
from quant.results.record import Record
from quant.results.speed_ratio import confirmed
from quant.results.target import Case
from quant.suites import embedded
from quant.suites.registry import ModelSpec
from quant.timing import instances

CORES = len(cpu.physical_cores())
needs_two_cores = pytest.mark.skipif(CORES < 2, reason="two threads or instances, but only one physical core")


def gains(records: list[Record]) -> NDArray[np.float64]:
    """One thread's latency over two threads', in each round; a round of new processes counts once."""
    one, two = (np.reshape(record.latency_s, (record.processes, -1)) for record in records)
    return np.ravel(one / two) if len(one) == 1 else np.median(one / two, axis=1)


@needs_two_cores
@pytest.mark.parametrize("size", [1, 16, 50], ids=lambda size: f"b{size}")
def test_two_threads_are_not_slower_than_one(
    benchmark: BenchmarkFixture, measured: ModelSpec, size: int, request: pytest.FixtureRequest
) -> None:
    """INT8, each number of threads in a process of its own, round by round.

    A model that runs on one thread whatever it may use is as fast with two, but for how its process came to lie in
    memory, a percent or so. So a miss is measured again, in eight rounds of new processes. It counts if all of them
    lose: where both are the same, chance does that once in 256 times.
    """
    isa = request.config.getoption("--isa")

    def measure() -> tuple[list[Record], bool]:
        records = embedded.scaling(measured, size, isa=isa, budget_s=3.0)
        if ratio_interval(*(np.array(record.latency_s) for record in records))[2] >= 1.0:
            return records, False
        records = embedded.scaling(measured, size, isa=isa)
        return records, bool(gains(records).max() < 1.0)

    records, lost = benchmark.pedantic(measure, rounds=1)
    gain = float(np.median(gains(records)))
    seconds = {f"threads_{record.threads}_s": list(record.latency_s) for record in records}
    benchmark.extra_info.update(model=measured.name, batch=size, speedup=gain, **seconds)
    assert not lost, f"two threads are {gain:.3f} times as fast as one, and slower in every process: {gains(records)}"


@needs_two_cores
def test_instances_on_all_cores_do_more_than_one(
    benchmark: BenchmarkFixture, measured: ModelSpec, request: pytest.FixtureRequest
) -> None:
    """An instance a core against one alone: throughput; half of what the cores could do at best is the least."""
    isa = request.config.getoption("--isa")
    runs = [{"model": str(embedded.int8_of(measured, isa)), "precision": "int8"}]

    def measure(seconds: float) -> instances.Throughput:
        feed = embedded.feed_of(measured, Case())
        return instances.measure(runs, CORES, seconds=seconds, isa=isa, **feed)

    found = benchmark.pedantic(confirmed, (measure, lambda one: one.scaling()[2] >= CORES / 2, 4.0), rounds=1)
    scaling, low, high = found.scaling()
    told = {f"p{100 * share:.0f}_s": instances.percentile(found.latency_s, share) for share in (0.5, 0.9, 0.99)}
    rates = {"samples_per_s": float(found.rates.mean()), "alone_samples_per_s": float(np.mean(found.alone))}
    benchmark.extra_info.update(model=measured.name, scaling=scaling, low=low, high=high, **rates, **told)
    assert high >= CORES / 2, f"{CORES} instances do {scaling:.2f} [{low:.2f}, {high:.2f}] times the work of one"
