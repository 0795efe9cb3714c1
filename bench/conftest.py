"""What all timed cases need before the first one is timed, and what is stored with them."""

from typing import Any

import pytest

from quant import benchmark_files, pipeline


@pytest.fixture(scope="session", autouse=True)
def models(request: pytest.FixtureRequest) -> None:
    """The full-size models of all cases, built on all cores."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    named = [found[key] for found in params for key in ("spec", "measured") if key in found]
    specs = [*named, *(found["timing"][0] for found in params if "timing" in found)]
    pipeline.each(list(dict.fromkeys(specs)), pipeline.full_of)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.update(benchmark_files.machine_info())
