"""Drawings: hostile names stay inside their labels; `dot` is used where it is there, and its failures are warnings."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.ir.drawing import draw_all, quoted
from quant.ir.graph import Graph, Op, Var
from quant.suites.commands import dot

# A quoted string of Graphviz's language, in which only \" is an escape: lang.html, "any double-quoted string".
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
NODE = re.compile(r"  n\d+ \[label=STRING\];")
EDGE = re.compile(r"  n\d+ -> n\d+ \[label=STRING\];")
HOSTILE = [
    'a"]; evil [label="b',
    "back\\",
    "two\nlines\r\n",
    "nul\0nul",
    '\\"',
    "&lt;b&gt;",
    "<<b>html</b>>",
    "\\N\\G\\T",
    "层_0.tmp_0",
    "]; }",
    "\u2028",
    "",
]


def shown(label: str) -> str:
    """What a label shows on one line: an escString read back."""
    return label.replace("&amp;", "&").replace("\\\\", "\\").replace('\\"', '"')


def chain_of(types: list[str], names: list[str]) -> Graph:
    """Ops of these types, one behind the other, through tensors of these names."""
    ops = [
        Op.make(kind, {"X": source}, {"Out": target})
        for kind, source, target in zip(types, names, names[1:], strict=False)
    ]
    return Graph(tuple(ops), {name: Var((1,)) for name in names}, {}, (names[0],), (names[-1],))


@given(st.text())
def test_a_label_ends_where_it_should_and_shows_its_text(text: str) -> None:
    label = quoted(text)
    found = STRING.fullmatch(label)
    assert found
    assert label.isprintable()
    if text.isprintable() and "\\" not in text:
        assert shown(found[1]) == text
    # No backslash is left that means something else to a label than itself or a quote.
    assert set(re.findall(r"\\(.)", found[1])) <= {"\\", '"'}


def test_labels_of_several_lines() -> None:
    assert quoted("conv2d(0)", "int8") == r'"conv2d(0)\nint8"'
    assert quoted("a\nb") == r'"a\\nb"'
    assert quoted('a"b\\c&d') == r'"a\"b\\c&amp;d"'


@pytest.mark.parametrize("text", HOSTILE)
def test_names_from_a_file_add_nothing_to_a_drawing(text: str) -> None:
    graph = chain_of(["relu", text, "relu"], ["x", text + "1", text + "2", "y"])
    lines = STRING.sub("STRING", dot(graph)).splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("digraph model {", "  node [shape=box];", "}")
    assert [bool(NODE.fullmatch(line)) for line in lines[2:5]] == [True] * 3
    assert [bool(EDGE.fullmatch(line)) for line in lines[5:7]] == [True] * 2
    assert len(lines) == 8


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    place = tmp_path / "drawings"
    place.mkdir()
    for number, name in enumerate(("lift", "emit")):
        (place / f"0{number}_{name}.dot").write_text(f"digraph {name} {{\n}}\n")
    return place


def fake_dot(place: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `dot` on PATH: called as dot -Tsvg -o TARGET SOURCE."""
    place.mkdir()
    (place / "dot").write_text(f"#!/bin/sh\n{script}\n")
    (place / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")


def test_every_drawing_becomes_an_svg(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dot(tmp_path / "bin", monkeypatch, '[ "$1$2" = "-Tsvg-o" ] && echo "<svg from=$(basename "$4")/>" > "$3"')
    told: list[tuple[int, int]] = []
    assert draw_all(drawings, progress=lambda _, done, total: told.append((done, total))) == []
    assert told == [(0, 2), (1, 2)]
    assert sorted(path.name for path in drawings.iterdir()) == [
        "00_lift.dot",
        "00_lift.svg",
        "01_emit.dot",
        "01_emit.svg",
    ]
    assert (drawings / "01_emit.svg").read_text() == "<svg from=01_emit.dot/>\n"


def test_a_step_that_changed_nothing_is_drawn_once(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(drawings / "00_lift.dot", drawings / "02_again.dot")
    fake_dot(tmp_path / "bin", monkeypatch, 'echo "$4" > "$3"')
    assert draw_all(drawings) == []
    assert [(drawings / f"{name}.svg").read_text().strip() for name in ("00_lift", "01_emit", "02_again")] == [
        str(drawings / "00_lift.dot"),
        str(drawings / "01_emit.dot"),
        str(drawings / "00_lift.dot"),
    ]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('echo half > "$3"; echo first >&2; printf "syntax\\033[31m error\\n" >&2; exit 1', "syntax?[31m error"),
        ('echo half > "$3"; exit 3', "exit code 3"),
        ('echo half > "$3"; kill -SEGV $$', "exit code -11"),
        ("exit 0", "it wrote nothing"),
    ],
)
def test_a_failure_of_dot_is_a_line_and_leaves_no_svg(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    fake_dot(tmp_path / "bin", monkeypatch, script)
    assert draw_all(drawings) == [
        f"{drawings}/00_lift.dot: not drawn: dot: {why}",
        f"{drawings}/01_emit.dot: not drawn: dot: {why}",
    ]
    assert sorted(path.name for path in drawings.iterdir()) == ["00_lift.dot", "01_emit.dot"]


def test_a_dot_that_hangs_is_ended_with_what_it_started(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (drawings / "01_emit.dot").unlink()
    pid = tmp_path / "pid"
    fake_dot(tmp_path / "bin", monkeypatch, f'echo half > "$3"; sleep 600 & echo $! > {pid}; wait')
    begin = time.monotonic()
    [line] = draw_all(drawings, time_limit_s=1)
    assert line.endswith("not drawn: dot: took longer than 1 s")
    assert time.monotonic() - begin < 20
    assert [path.name for path in drawings.iterdir()] == ["00_lift.dot"]
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    for _ in range(100):  # killed, but perhaps not yet gone
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("what dot started is still running")


def test_a_dot_that_is_no_program_is_a_line(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dot(tmp_path / "bin", monkeypatch, "")
    (tmp_path / "bin" / "dot").write_bytes(b"\x00\x01not a program")
    assert all("not drawn: dot: Exec format error" in line for line in draw_all(drawings))


def test_without_graphviz_one_line_says_so(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    [line] = draw_all(drawings)
    assert "only .dot was written" in line
    assert sorted(path.name for path in drawings.iterdir()) == ["00_lift.dot", "01_emit.dot"]


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's 'dot' is not on PATH")
def test_graphviz_itself_draws_hostile_names(tmp_path: Path) -> None:
    for number, text in enumerate(HOSTILE):
        (tmp_path / f"{number}.dot").write_text(dot(chain_of(["relu", text], ["x", text, "y"])), encoding="utf-8")
    assert draw_all(tmp_path) == []
    for number, text in enumerate(HOSTILE):
        svg = (tmp_path / f"{number}.svg").read_text(encoding="utf-8")
        assert "evil" not in re.sub(r"<!--.*?-->|<text.*?</text>|<title.*?</title>", "", svg, flags=re.DOTALL)
        assert svg.count('class="node"') == 2, text
