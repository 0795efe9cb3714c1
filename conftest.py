"""Options of the suite, and the rows as parameters: the one place where cases come from the tables."""

import os
from operator import attrgetter

import pytest

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before any test imports Paddle

from quant import cpu
from quant.errors import QuantError
from quant.registry import MODELS, find


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quant", "INT8 rows")
    group.addoption("--isa", default=None, help="cap oneDNN to one ISA: avx2, avx512_core, avx512_core_vnni, ...")
    group.addoption("--threads", default="1,2", help="thread counts of the speed cases (default 1,2)")
    group.addoption("--batch-sizes", default="1", help="batch sizes of the speed cases (default 1)")
    group.addoption("--model", action="append", default=None, help="only this row (repeatable)")
    group.addoption("--full", action="store_true", help="accuracy on 50,000 images instead of 2,000")


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    if "spec" in metafunc.fixturenames:
        specs = [find(name) for name in option("--model")] if option("--model") else list(MODELS)
        metafunc.parametrize("spec", specs, ids=attrgetter("name"), scope="session")
    if "tier" in metafunc.fixturenames:
        capped = option("--isa")
        tiers = [cpu.tier_of(capped)] if capped else list(reversed(cpu.TIERS))
        reachable = cpu.reachable()

        def case(tier: cpu.Tier) -> object:
            why = f"this CPU lacks {', '.join(sorted(tier.flags))}"
            return pytest.param(tier, id=tier.name, marks=[] if tier in reachable else pytest.mark.skip(reason=why))

        metafunc.parametrize("tier", [case(tier) for tier in tiers], scope="session")
    if "threads" in metafunc.fixturenames:

        def threaded(count: int) -> object:
            few = pytest.mark.skip(reason=f"{count} threads, but only {cpu.cores()} cores")
            return pytest.param(count, id=f"{count}t", marks=[few] if count > cpu.cores() else [])

        metafunc.parametrize("threads", [threaded(int(part)) for part in option("--threads").split(",")])
    if "batch" in metafunc.fixturenames:
        sizes = [int(part) for part in option("--batch-sizes").split(",")]
        metafunc.parametrize("batch", sizes, ids=[f"b{size}" for size in sizes])
