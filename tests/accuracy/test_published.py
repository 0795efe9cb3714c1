"""Accuracy of the published models (--zoo DIR): within the seeds' limits, on INT8 kernels?"""

from collections.abc import Callable
from functools import cache

import pytest

from quant.reports.published import Line, lines
from quant.suites.published import located
from quant.suites.published.catalogue import ZooRow

Measured = Callable[[ZooRow], list[Line]]


@pytest.fixture(scope="session")
def lines_of(request: pytest.FixtureRequest) -> Measured:
    """A row's INT8 record against its simulation and its FP32, by metric; measured once."""
    option = request.config.getoption

    @cache
    def lines_of(row: ZooRow) -> list[Line]:
        found = located.located(row, option("--zoo"))
        models = located.models_of(found, isa=option("--isa"))
        return lines(located.accuracy(found, models, isa=option("--isa"), full=option("--full")))

    return lines_of


def test_published_int8_is_within_the_seeds_limits(zoo_row: ZooRow, lines_of: Measured) -> None:
    judged = [line for line in lines_of(zoo_row) if line.limit is not None]
    assert {line.metric for line in judged} == set(zoo_row.max_drop)
    assert [text for line in judged for text in line.missed()] == []


def test_int8_kernels_did_the_published_models_work(zoo_row: ZooRow, lines_of: Measured) -> None:
    by_kind = {line.before.precision: line for line in lines_of(zoo_row)}
    int8 = by_kind["quant"].int8
    assert int8.int8_share is not None and int8.int8_share >= zoo_row.min_int8_share
    assert {kind: line.before.int8_share for kind, line in by_kind.items()} == {"fp32": 0.0, "quant": 0.0}
    families = {isa.partition("_")[0] for isa in int8.kernel_isas}
    assert families in ([{"avx2", "jit"}, {"jit"}] if int8.isa == "avx2" else [{"avx512"}])
