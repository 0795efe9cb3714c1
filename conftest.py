"""Options of the suite, and the rows as parameters: the one place where cases come from the tables."""

import os
from operator import attrgetter
from pathlib import Path

import pytest

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before any test imports Paddle

from quant import cpu
from quant.errors import QuantError
from quant.results.target import Case
from quant.suites.published.catalogue import Timing, ZooRow, row_of
from quant.suites.published.located import cases_of, missing
from quant.suites.registry import MODELS, find

ZOO_CASES = "test_published.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quant", "INT8 rows")
    group.addoption("--isa", default=None, help="cap oneDNN to one ISA: avx2, avx512_core, avx512_core_vnni, ...")
    group.addoption("--threads", default="1,2", help="thread counts of the speed cases (default 1,2)")
    group.addoption("--batch-sizes", default="1", help="batch sizes of the speed cases (default 1)")
    group.addoption("--model", action="append", default=None, help="only this row (repeatable)")
    group.addoption("--full", action="store_true", help="all data, all rows in all ways: hours; `make test-full`")
    group.addoption("--zoo", type=Path, help="the cases of the models that `quant fetch` put there, and no others")


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

    zoo = config.getoption("--zoo")
    if zoo is not None and not zoo.is_dir():
        raise pytest.UsageError(f"--zoo: {zoo}: no such directory; `quant fetch NAME --output {zoo}` makes it")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --zoo the cases of published models alone are collected, without it all others; what is named always is."""
    is_case = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    chosen = (collection_path.name == ZOO_CASES) == (config.getoption("--zoo") is not None)
    return True if is_case and not chosen else None


def _case_id(case: Case) -> str:
    return f"b{case.batch}" + (f"x{case.repeat}" if case.repeat > 1 else "") + "-by-length" * case.by_length


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    specs = [find(name) for name in option("--model")] if option("--model") else list(MODELS)
    if "spec" in metafunc.fixturenames:
        metafunc.parametrize("spec", specs, ids=attrgetter("name"), scope="session")
    _generate_zoo_cases(metafunc, [row_of(spec.name) for spec in specs])
    capped = option("--isa")
    tiers = [cpu.tier_of(capped)] if capped else list(reversed(cpu.TIERS))
    best = cpu.tier_of(capped)

    def on(tier: cpu.Tier, value: object, name: str) -> object:
        why = f"this CPU lacks {', '.join(sorted(tier.flags))}"
        marks = [] if tier in cpu.reachable() else [pytest.mark.skip(reason=why)]
        return pytest.param(value, id=name, marks=marks)

    every = option("--full") or option("--model")
    # One row of each kind of data is measured in all ways by default; the others on the best tier alone.
    some = specs if every else list({spec.format: spec for spec in specs[::-1]}.values())
    if "judged" in metafunc.fixturenames:
        metafunc.parametrize(
            "judged",
            [
                on(tier, (spec, tier), f"{spec.name}-{tier.name}")
                for spec in specs
                for tier in tiers
                if spec in some or tier is best
            ],
            scope="session",
        )
    if "timing" in metafunc.fixturenames:  # a row's first case on every tier, its others on the best
        metafunc.parametrize(
            "timing",
            [
                on(tier, (spec, case, tier), f"{spec.name}-{_case_id(case)}-{tier.name}")
                for spec in specs
                for case in spec.cases
                for tier in tiers
                if tier is best or (case is spec.cases[0] and spec in some)
            ],
        )
    if "measured" in metafunc.fixturenames:  # rows of what takes long
        chosen = [spec for spec in specs if spec in some]
        metafunc.parametrize("measured", chosen, ids=attrgetter("name"), scope="session")
    if "threads" in metafunc.fixturenames:

        def threaded(count: int) -> object:
            few = pytest.mark.skip(reason=f"{count} threads, but only {cpu.cores()} cores")
            return pytest.param(count, id=f"{count}t", marks=[few] if count > cpu.cores() else [])

        metafunc.parametrize("threads", [threaded(int(part)) for part in option("--threads").split(",")])
    if "batch" in metafunc.fixturenames:
        sizes = [int(part) for part in option("--batch-sizes").split(",")]
        metafunc.parametrize("batch", sizes, ids=[f"b{size}" for size in sizes])


def _generate_zoo_cases(metafunc: pytest.Metafunc, rows: list[ZooRow]) -> None:
    """`zoo_row` and `zoo_timing`; what --zoo hasn't got is skipped, with the command that gets it."""
    zoo = metafunc.config.getoption("--zoo")

    def absent(row: ZooRow) -> str:
        if zoo is None:
            return "no --zoo DIR"
        return "; ".join(f"{lack.what} is missing: {lack.how}" for lack in missing(row, zoo))

    def param(row: ZooRow, value: object, name: str, timing: Timing | None = None) -> object:
        few = timing is not None and timing.threads > cpu.cores()
        why = absent(row) or (f"{timing.threads} threads, but only {cpu.cores()} cores" if timing and few else "")
        return pytest.param(value, id=name, marks=[pytest.mark.skip(reason=why)] if why else [])

    if "zoo_row" in metafunc.fixturenames:
        metafunc.parametrize("zoo_row", [param(row, row, row.name) for row in rows], scope="session")
    if "zoo_timing" in metafunc.fixturenames:
        cases = [
            param(row, (row, timing), f"{row.name}-{_timing_id(timing)}", timing)
            for row in rows
            for timing in cases_of(row)
        ]
        metafunc.parametrize("zoo_timing", cases)


def _timing_id(timing: Timing) -> str:
    return f"{_case_id(Case(timing.batch, repeat=timing.repeat))}-{timing.threads}t"
