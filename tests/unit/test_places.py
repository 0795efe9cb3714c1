"""The cache: one process at a time where it matters, and a place that can't be written is told in one line."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from quant.errors import OutputError
from quant.storage.cache import cached, giving_up, locked
from quant.storage.files import fresh_dir, fresh_file, scratch_dir, write_text


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


def test_whoever_gives_up_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while another process makes what a thread waits for."""
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path))
    told: list[str] = []

    def other() -> None:
        try:
            with locked("a"):
                told.append("inside")
        except OutputError as error:
            told.append(str(error))

    waiting = threading.Thread(target=other)
    with locked("a"):
        waiting.start()
        with giving_up():
            waiting.join(10)
    assert told == [f"{tmp_path}/a: gave up waiting for another process that makes it"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in ("first", "second"):
        write_text(file, text)
        assert file.read_text() == text
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half\ud800")
    assert file.read_text() == "second" and list(tmp_path.iterdir()) == [file]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OutputError, match=r"can't be written \(it exists and is no file\)"):
            write_text(place, "text")
    assert (tmp_path / "pipe").is_fifo()


def test_what_is_being_made_stays_and_what_killed_processes_left_goes(tmp_path: Path) -> None:
    name = "new [1]*"  # a pattern, if it were read as one
    with fresh_file(tmp_path / name) as mine:
        mark = mine.name[: -len("00000000")]
    (tmp_path / name).unlink()
    left = [tmp_path / f"{mark}{number:08x}" for number in range(2)]
    left[0].mkdir()
    (left[0] / "half").touch()
    left[1].touch()
    elsewhere = f".{name}.making-{'0' * 8}-00000000"  # by another machine, whose locks may not be seen here
    others = [tmp_path / other for other in (elsewhere, f".{name}.making-", f"{name}.part", "mine")]
    for other in others:
        other.touch()
    with fresh_file(tmp_path / name) as mine:
        assert sorted(tmp_path.iterdir()) == sorted([*others, mine])
        with fresh_file(tmp_path / name) as beside:
            assert mine.exists() and beside != mine
            beside.write_text("first")
        mine.write_text("second")
    assert (tmp_path / name).read_text() == "second"
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / name])


@pytest.mark.parametrize("make", [fresh_file, scratch_dir])
def test_many_at_once_do_not_sweep_each_other(
    make: Callable[[Any], AbstractContextManager[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work(number: int) -> None:
        for _ in range(100):
            with make(tmp_path / "name") as place:
                assert place.exists()
                if place.is_file():
                    place.write_text(f"{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [path.name for path in tmp_path.iterdir()] == (["name"] if make is fresh_file else [])


def test_a_place_is_told_by_the_name_that_it_was_to_get(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=f"^{tmp_path}/new/int8: can't be written$"),
        fresh_dir(tmp_path / "new") as staging,
    ):
        raise OutputError(f"{staging}/int8: can't be written")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        OutputError, match=r"file/cache: can't be written \(Not a directory\); QUANT_CACHE names another"
    ):
        cached("net", ["part"], lambda staging: None)
