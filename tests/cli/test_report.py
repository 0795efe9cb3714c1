"""`quant report`: which run it takes, what it writes, what it refuses, and what happens without a browser."""

import json
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant.results import history
from tests import found, runs

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
        (("odd.json",), "odd.json: not a run: 1 speed records: one was timed against no other"),
        (("rowless.json",), "rowless.json: not a run: a record of 'resnet50', fp32: no such row"),
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


# --- what analyze and tune found


def test_what_analyze_and_tune_found_goes_into_the_page(here: Path, call: Call) -> None:
    Path("run.json").write_text(RUN.to_json())
    Path("why.json").write_text(found.analysis_json("One"))
    Path("tuning.json").write_text(found.tuning_json("Two"))
    assert call("report", "run.json", "--with", "why.json", "--with", "tuning.json") == (0, "out/report.html\n", "")
    page = Path("out/report.html").read_text()
    why, tuned = (page.index(f"{topic}: <bdi>") for topic in ("Why accuracy drops", "Accuracy and latency"))
    assert why < tuned and "<bdi>One</bdi></h2>" in page and "<bdi>Two</bdi></h2>" in page


def changed(text: str, *keys: str | int, to: Any) -> str:
    """A JSON text in which one value is another; `...`: the key is gone."""
    content = part = json.loads(text)
    for key in keys[:-1]:
        part = part[key]
    if to is ...:
        del part[keys[-1]]
    else:
        part[keys[-1]] = to
    return json.dumps(content)


WHY, TUNED = found.analysis_json(), found.tuning_json()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "with.json: "),
        ("# a report", "with.json: expected value"),
        (WHY[:-1], "with.json: EOF while parsing an object"),
        ("[" * 100_000, "with.json: "),
        ("[1]", "neither an analysis"),
        ("{}", "neither an analysis of `quant analyze --output` nor a tuning.json of `quant tune`"),
        (RUN.to_json(), "neither an analysis"),
        (changed(WHY, "schema", to=9), "with.json: schema 9, this version reads 2"),
        (changed(TUNED, "schema", to=1), "with.json: schema 1, this version reads 3"),
        (changed(WHY, "title", to=...), "with.json: title: field required"),
        (changed(WHY, "ops", 2, "types", to="conv2d"), "with.json: ops.2.types: input should be a valid"),
        (changed(WHY, "ops", 2, "low", to="0"), "with.json: ops.2.low: input should be a valid number"),
        (changed(WHY, "ops", 2, "high", to=float("nan")), "with.json: ops.2.high: input should be a finite number"),
        (changed(WHY, "ops", 2, "quant_db", to=1e300), "with.json: ops: SQNR must be from -1000 to 150 dB"),
        (changed(WHY, "ops", 2, "types", to=[]), "with.json: ops: figures that no analysis has"),
        (changed(WHY, "ops", 2, "grid", to=[0.0, 255]), "with.json: ops: figures that no analysis has"),
        (changed(WHY, "ops", 2, "scales", 0, "due", to=0), "with.json: ops: figures that no analysis has"),
        (changed(WHY, "ops", 2, "variable", to="conv_1.int8"), "with.json: ops: two of them write the same variable"),
        (changed(TUNED, "points", 0, "chosen", to=True), "with.json: points: not exactly one is chosen"),
        (changed(TUNED, "points", to=[]), "with.json: points: not exactly one is chosen"),
        (changed(TUNED, "points", 1, "drop", to=None), "with.json: points.1.drop: input should be a valid number"),
        (changed(TUNED, "points", 1, "speedup", "low", to=float("inf")), "points.1.speedup.low: input should be a fin"),
        (changed(TUNED, "max_drop", to=1e12), "with.json: max_drop: input should be less than or equal to"),
        (changed(TUNED, "fp32", to=3), "with.json: fp32: input should be "),
        (
            changed(TUNED, "points", 1, "tensors", to={"a\nb": 3}),
            "points.1.tensors.a b: input should be a valid string",
        ),
        (TUNED.replace('"top1"', '"\\ud800"'), "with.json: "),
    ],
)
def test_faults_in_what_analyze_and_tune_found(here: Path, refused: Callable[..., str], text: str, told: str) -> None:
    Path("run.json").write_text(RUN.to_json())
    Path("with.json").write_text(text)
    assert told in refused("report", "run.json", "--with", "with.json")
    assert not list(here.rglob("*.html"))


def test_files_that_are_not_there(here: Path, refused: Callable[..., str]) -> None:
    Path("run.json").write_text(RUN.to_json())
    Path("latin.json").write_bytes(b'{"ops": "\xe9"}')
    assert "none.json: can't be read (No such file" in refused("report", "run.json", "--with", "none.json")
    assert "latin.json: " in refused("report", "run.json", "--with", "latin.json")
    assert "can't be read (Is a directory)" in refused("report", "run.json", "--with", here)
