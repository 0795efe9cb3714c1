"""What all timed cases need before the first one is timed, and what is stored with them."""

from contextlib import suppress
from typing import Any

import pytest

from quant.errors import QuantError
from quant.process import parallel
from quant.results import benchmark_files
from quant.suites import embedded
from quant.suites.registry import ModelSpec


@pytest.fixture(scope="session", autouse=True)
def models(request: pytest.FixtureRequest) -> None:
    """The full-size models of all cases, built on all cores. One that can't be built fails its own cases."""

    def build(spec: ModelSpec) -> None:
        with suppress(QuantError):
            embedded.full_of(spec)

    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    named = [found[key] for found in params for key in ("spec", "measured") if key in found]
    specs = [*named, *(found["timing"][0] for found in params if "timing" in found)]
    parallel.each(list(dict.fromkeys(specs)), build)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.update(benchmark_files.machine_info())
