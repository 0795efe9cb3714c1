"""The cache: one process at a time where it matters, and a place that can't be written is told in one line."""

import threading
from pathlib import Path

import pytest

from quant.errors import OutputError
from quant.places import cached, locked


def test_one_at_a_time_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "cache"))
    seen: list[str] = []

    def other() -> None:
        with locked("a"):
            seen.append("other")

    waiting = threading.Thread(target=other)
    with locked("a"):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        seen.append("first")
        with locked("b"):  # another name
            seen.append("first, inside")
    waiting.join(10)
    assert seen == ["first", "first, inside", "other"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        OutputError, match=r"file/cache: can't be written \(Not a directory\); QUANT_CACHE names another"
    ):
        cached("net", ["part"], lambda staging: None)
