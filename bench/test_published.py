"""Speed of the published models (--zoo DIR), as the seeds' documents time them."""

from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.test_speed import check_ratio
from quant.suites.published import located
from quant.suites.published.catalogue import Timing, ZooRow


def test_published_int8_against_fp32(
    benchmark: BenchmarkFixture, zoo_timing: tuple[ZooRow, Timing], request: pytest.FixtureRequest
) -> None:
    """FP32 (its fastest variant) and INT8 alternate in a child; the ratio against what is due."""
    (row, timing), isa = zoo_timing, request.config.getoption("--isa")
    found = located.located(row, request.config.getoption("--zoo"))
    models = located.models_of(found, isa=isa)
    check_ratio(benchmark, found.spec, partial(located.speed, found, models, timing, isa=isa))
