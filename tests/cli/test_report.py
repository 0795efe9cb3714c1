"""`quant report`: which run it takes, what it writes, what it refuses, and what happens without a browser."""

import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quant import history
from tests import runs

Call = Callable[..., tuple[int, str, str]]
RUN = runs.run(runs.accuracy("resnet50"), runs.speed("resnet50", 3.3))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_takes_the_last_suite_then_the_newest_run(here: Path, call: Call) -> None:
    history.append(Path(".quant"), replace(RUN, commit="1" * 40, started="2026-11-01T00:00:00+00:00"))
    history.append(Path(".quant"), replace(RUN, commit="2" * 40, started="2026-11-02T00:00:00+00:00"))
    code, out, err = call("report")
    assert (code, out, err) == (0, "out/report.html\n", "")
    page = Path("out/report.html").read_text()
    assert "2222222222" in page and "1 earlier run on this CPU" in page
    Path("out/report.json").write_text(replace(RUN, commit="3" * 40).to_json())
    assert call("report", "--output", "elsewhere/page.html")[0] == 0
    assert "3333333333" in Path("elsewhere/page.html").read_text()
    [first, _] = sorted(Path(".quant").iterdir())
    assert call("report", first)[0] == 0
    assert "1111111111" in Path("out/report.html").read_text()


def test_files_of_the_history_that_are_no_runs_are_left_out(here: Path, call: Call) -> None:
    Path("run.json").write_text(RUN.to_json())
    Path("past").mkdir()
    Path("past/old.json").write_text('{"schema": 1}')
    code, _, err = call("report", "run.json", "--history", "past")
    assert code == 0 and err.count("\n") == 1 and "past/old.json: schema 1" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), ".quant: no runs"),
        (("none.json",), "none.json: can't be read (No such file or directory)"),
        (("old.json",), "old.json: schema 3, this version reads"),
        (("text.json",), "text.json: "),
        (("broken.json",), "broken.json: not a run: "),
        (("odd.json",), "odd.json: timings of resnet50 that nothing was timed against"),
        (("rowless.json",), "rowless.json: no row for the model 'resnet50'"),
        (("run.json", "--history", "none"), "none: no such directory"),
        (("run.json", "--output", "run.json/page.html"), "run.json: can't be written"),
        (("run.json", "--output", "."), ".: is a directory"),
        (("run.json", "--outputt", "x"), "No such option"),
    ],
)
def test_what_it_refuses(here: Path, refused: Callable[..., str], arguments: tuple[str, ...], told: str) -> None:
    contents = {
        "run": RUN.to_json(),
        "old": '{"schema": 3}',
        "text": "# INT8 report",
        "broken": RUN.to_json().replace('"machine"', '"machines"'),
        "odd": replace(RUN, records=RUN.records[:-1]).to_json(),
        "rowless": replace(RUN, rows={}).to_json(),
    }
    for name, text in contents.items():
        Path(f"{name}.json").write_text(text)
    assert told in refused("report", *arguments)
    assert not list(here.rglob("*.html"))


@pytest.mark.parametrize("found", [True, False])
def test_opening_it(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or found)
    Path("run.json").write_text(RUN.to_json())
    code, out, err = call("report", "run.json", "--open")
    assert (code, out, opened) == (0, "out/report.html\n", [(here / "out/report.html").as_uri()])
    assert err == ("" if found else "no browser could be opened here; open out/report.html yourself\n")
