"""What several files of command-line tests run on."""

from pathlib import Path

import pytest

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
