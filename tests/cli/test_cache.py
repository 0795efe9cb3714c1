"""`quant cache` as a person uses it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models of one row, one of another, and outcomes."""
    monkeypatch.setenv("QUANT_CACHE", str(tmp_path))
    monkeypatch.setenv("QUANT_CACHE_LIMIT", "3")
    now = time.time()
    for name, days in (
        ("resnet50-small-" + "0" * 16, 9),
        ("resnet50-small-" + "1" * 16, 1),
        ("gru-full-" + "a" * 16, 3),
        ("outcomes/" + "b" * 32, 5),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(bytes(2_000_000))
        os.utime(tmp_path / name, (now - 86400 * days, now - 86400 * days))
    return tmp_path


def kinds(call: Call) -> dict[str, int]:
    code, out, _ = call("cache", "--json")
    assert code == 0
    return {kind["name"]: kind["entries"] for kind in json.loads(out)["kinds"]}


def test_it_tells_what_there_is(place: Path, call: Call) -> None:
    code, out, err = call("cache")
    assert (code, err) == (0, "")
    rows = [[part for part in line.split() if part.isascii()] for line in out.splitlines()]
    assert ["resnet50-small", "2", "4.0"] in [row[:3] for row in rows]
    assert f"{place}: 8.0 MB; least recently used goes beyond 3,000.0 MB" in out
    told = json.loads(call("cache", "--json")[1])
    assert (told["bytes"], told["limit"]) == (8_000_000, 3_000_000_000)
    assert kinds(call) == {"gru-full": 1, "outcomes": 1, "resnet50-small": 2}


def test_clear_by_name_and_age(place: Path, call: Call) -> None:
    assert call("cache", "clear", "resnet50-small", "--older-than", "4")[1] == f"{place}: 1 removed, 2.0 MB\n"
    assert kinds(call) == {"gru-full": 1, "outcomes": 1, "resnet50-small": 1}
    assert call("cache", "clear", "--older-than", "4")[1] == f"{place}: 1 removed, 2.0 MB\n"
    assert kinds(call) == {"gru-full": 1, "resnet50-small": 1}
    code, out, err = call("cache", "clear", "gru-ful")
    assert (code, out, err) == (2, "", "quant: unknown name in the cache 'gru-ful'; did you mean 'gru-full'?\n")
    assert call("cache", "clear")[1] == f"{place}: 2 removed, 4.0 MB\n"
    assert kinds(call) == {}


def test_an_empty_cache(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_CACHE", str(place / "none"))
    assert call("cache") == (0, f"{place}/none: 0.0 MB; least recently used goes beyond 3,000.0 MB\n", "")
    assert call("cache", "clear") == (0, f"{place}/none: 0 removed, 0.0 MB\n", "")


def test_bad_input_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_CACHE_LIMIT", "much")
    code, out, err = call("cache")
    assert (code, out, err) == (2, "", "quant: QUANT_CACHE_LIMIT: 'much' is not a number of gigabytes\n")
