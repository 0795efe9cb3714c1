"""What a run takes beside its kernels. The ratio is asserted; absolute times are recorded."""

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from quant.diagnosis import profile
from quant.diagnosis.kernel_table import Sums
from quant.results.speed_ratio import confirmed
from quant.suites import diagnosed
from quant.suites.registry import ModelSpec

_SHORT_MS = 5.0
_DUE_LONG, _DUE_SHORT = 1.15, 1.5
_BROKEN = 2  # times what is due


def due(sums: Sums) -> float:
    """Wall over kernel time that is accepted: an op's share of a short run is larger."""
    return _DUE_LONG if sums.wall_ms > _SHORT_MS else _DUE_SHORT


def test_framework_overhead(benchmark: BenchmarkFixture, measured: ModelSpec, request: pytest.FixtureRequest) -> None:
    """A row's INT8 model on one thread, at the batch that its goals are for.

    A miss is measured twice; then it is an expected failure, with its figures.
    """
    isa = request.config.getoption("--isa")
    subject = replace(diagnosed.to_profile(measured.name, isa), fp32=None)
    batch = max(case.batch for case in measured.cases)

    def measure(_: float) -> profile.Profile:
        return profile.profile(subject, isa=isa, batch=batch)

    found = benchmark.pedantic(confirmed, (measure, lambda one: one.sums.ratio <= due(one.sums), 1), rounds=1)
    sums, limit = found.sums, due(found.sums)
    benchmark.extra_info.update(
        model=measured.name, executor=found.executor, wall_ms=sums.wall_ms, kernel_ms=sums.kernel_ms, ratio=sums.ratio
    )
    told = f"wall {sums.wall_ms:.2f} ms / kernels {sums.kernel_ms:.2f} ms is {sums.ratio:.2f}, due {limit}"
    assert sums.kernel_ms > 0
    if found.interrupted == 1.0:
        pytest.skip("other processes took the CPU away in every run: kernels' times are not theirs")
    assert sums.ratio <= _BROKEN * limit, told
    if sums.ratio > limit:
        pytest.xfail(told)
