"""What several files of command-line tests run on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quant.cli import main
from tests.models import write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data of tests.models."""
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; where evaluations are kept in it."""
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "outcomes"


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line: exit code, stdout, stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(call: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """A command line that ends with exit code 2 and nothing but one line, which is given."""

    def run(*args: object) -> str:
        code, out, err = call(*args)
        assert (code, out) == (2, ""), err
        assert err.startswith("quant: ") and err.count("\n") == 1, err
        return err

    return run
