"""The cache stays within its bound: the least recently used goes, and never what a running process uses."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quant.errors import OptionError
from quant.evaluation.parts import About, Key, Store, default_root, pack
from quant.storage import cache
from quant.storage.cache import Entry, cache_root, cached, entries, held, limit_bytes, remove, trim

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
USER = """
import sys
from pathlib import Path
from quant.storage.cache import cached
made = cached("net", [sys.argv[1]], lambda place: (place / "a").write_bytes(bytes(600_000)) and None)
print(made, flush=True)
sys.stdin.read()
assert (made / "a").stat().st_size == 600_000
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path))
    monkeypatch.setenv("QUANT_CACHE_LIMIT", "1")
    yield
    leave()


def leave() -> None:
    """As if this process had ended."""
    for place in cache._in_use.values():
        os.close(place)
    cache._in_use.clear()


def made(name: str, kilobytes: int = 400, used: int | None = None) -> Path:
    """An artefact that no running process uses, last used at second `used`."""
    place = cached(name, ["part"], lambda staging: (staging / "a").write_bytes(bytes(1000 * kilobytes)) and None)
    leave()
    if used is not None:
        os.utime(place, (used, used))
    return place


def names() -> list[str]:
    return [entry.kind for entry in entries()]


def test_the_least_recently_used_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    for second, name in enumerate(("one", "two", "three"), 1):
        made(name, used=second)
    made("one")  # used again
    leave()
    assert names() == ["two", "three", "one"]
    monkeypatch.setenv("QUANT_CACHE_LIMIT", "0.0013")
    made("four")
    assert names() == ["three", "one", "four"]
    trim(0)
    assert names() == []


def test_what_this_process_uses_stays() -> None:
    place = cached("net", ["part"], lambda staging: (staging / "a").write_bytes(bytes(1000)) and None)
    [entry] = entries()
    trim(0)
    assert not remove(entry) and (place / "a").exists()
    leave()
    trim(0)
    assert not place.exists()


def test_what_another_process_uses_stays_until_it_ends() -> None:
    user = subprocess.Popen(
        [sys.executable, "-c", USER, "part"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert user.stdin and user.stdout
    place = Path(user.stdout.readline().strip())
    made("other", 600)
    trim(0)
    assert names() == ["net"] and (place / "a").exists()
    user.kill()
    user.wait(30)
    trim(0)
    assert names() == []


def test_processes_that_add_at_once_each_keep_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound, too: each asserts that its own is whole."""
    monkeypatch.setenv("QUANT_CACHE_LIMIT", "0.001")
    users = [
        subprocess.Popen(
            [sys.executable, "-c", USER, str(number % 3)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(6)
    ]  # fmt: skip
    for user in users:
        assert user.stdout and user.stdout.readline()
    for user in users:
        user.communicate("", timeout=60)
    assert [user.returncode for user in users] == [0] * 6
    trim(limit_bytes())
    assert len(entries()) == 1


def test_what_goes_while_somebody_asks_for_it_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many times over: an artefact is taken away again and again while this process asks for it."""
    stop, kept = threading.Event(), cache._in_use

    def take_away() -> None:
        while not stop.is_set():
            for entry in entries():
                remove(entry)

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        for number in range(200):
            place = cached("net", [str(number % 2)], lambda staging: (staging / "a").write_bytes(b"whole") and None)
            assert (place / "a").read_bytes() == b"whole"
            leave()
    finally:
        stop.set()
        thread.join()
    assert kept == {}


def stored(store: Store, key: Key) -> None:
    shelf = store.shelf(key, {})
    shelf.put(About(0, 3, 3, ("out",), (0.1,), 0.2, 1, 0), pack([], [1, 2, 3]))  # type: ignore[arg-type]


def test_outcomes_count_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = default_root() / "0123"
    shelf.mkdir(parents=True)
    (shelf / "00000000.npz").write_bytes(bytes(500_000))
    os.utime(shelf, (1, 1))
    assert names() == ["outcomes"]
    monkeypatch.setenv("QUANT_CACHE_LIMIT", "0.0006")
    made("net")
    assert names() == ["net"]
    assert held(shelf) is False


def test_what_a_killed_process_was_removing_goes() -> None:
    made("net")
    going = cache_root() / ".net-0.going-1-2"
    going.mkdir()
    trim(limit_bytes())
    assert not going.exists() and names() == ["net"]


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_the_bound_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_CACHE_LIMIT", text)
    with pytest.raises(OptionError, match=f"QUANT_CACHE_LIMIT: '{text}' is not a number of gigabytes"):
        limit_bytes()
    monkeypatch.delenv("QUANT_CACHE_LIMIT")
    assert limit_bytes() == 20_000_000_000


def test_an_entry_that_is_gone_is_removed(tmp_path: Path) -> None:
    assert remove(Entry(tmp_path / "none", "none", 0, 0.0))
