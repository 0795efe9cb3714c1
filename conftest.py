"""Options of the suite, and the rows as parameters: the one place where cases come from the tables."""

import os
from operator import attrgetter

import pytest

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before any test imports Paddle

from quant import cpu
from quant.errors import QuantError
from quant.registry import MODELS, Case, find


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quant", "INT8 rows")
    group.addoption("--isa", default=None, help="cap oneDNN to one ISA: avx2, avx512_core, avx512_core_vnni, ...")
    group.addoption("--threads", default="1,2", help="thread counts of the speed cases (default 1,2)")
    group.addoption("--batch-sizes", default="1", help="batch sizes of the speed cases (default 1)")
    group.addoption("--model", action="append", default=None, help="only this row (repeatable)")
    group.addoption("--full", action="store_true", help="accuracy on all data (50,000 images) instead of 2,000")


def pytest_configure(config: pytest.Config) -> None:
    try:
        for name in config.getoption("--model") or []:
            find(name)
        cpu.isa_environment(config.getoption("--isa"))
    except QuantError as error:
        raise pytest.UsageError(str(error)) from error
    for option in ("--threads", "--batch-sizes"):
        if not all(part.isdecimal() and int(part) for part in config.getoption(option).split(",")):
            raise pytest.UsageError(f"{option}: not a list of numbers above 0")


def _case_id(case: Case) -> str:
    return f"b{case.batch}" + (f"x{case.repeat}" if case.repeat > 1 else "") + "-by-length" * case.by_length


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    specs = [find(name) for name in option("--model")] if option("--model") else list(MODELS)
    if "spec" in metafunc.fixturenames:
        metafunc.parametrize("spec", specs, ids=attrgetter("name"), scope="session")
    capped = option("--isa")
    tiers = [cpu.tier_of(capped)] if capped else list(reversed(cpu.TIERS))
    best = cpu.tier_of(capped)

    def on(tier: cpu.Tier, value: object, name: str) -> object:
        why = f"this CPU lacks {', '.join(sorted(tier.flags))}"
        marks = [] if tier in cpu.reachable() else [pytest.mark.skip(reason=why)]
        return pytest.param(value, id=name, marks=marks)

    if "tier" in metafunc.fixturenames:
        metafunc.parametrize("tier", [on(tier, tier, tier.name) for tier in tiers], scope="session")
    if "timing" in metafunc.fixturenames:  # a row's first case on every tier, its others on the best
        metafunc.parametrize(
            "timing",
            [
                on(tier, (spec, case, tier), f"{spec.name}-{_case_id(case)}-{tier.name}")
                for spec in specs
                for case in spec.cases
                for tier in tiers
                if case is spec.cases[0] or tier is best
            ],
        )
    if "threads" in metafunc.fixturenames:

        def threaded(count: int) -> object:
            few = pytest.mark.skip(reason=f"{count} threads, but only {cpu.cores()} cores")
            return pytest.param(count, id=f"{count}t", marks=[few] if count > cpu.cores() else [])

        metafunc.parametrize("threads", [threaded(int(part)) for part in option("--threads").split(",")])
    if "batch" in metafunc.fixturenames:
        sizes = [int(part) for part in option("--batch-sizes").split(",")]
        metafunc.parametrize("batch", sizes, ids=[f"b{size}" for size in sizes])
