"""quant --help: every command in a group, each with a whole sentence, also on a narrow terminal."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import typer

from quant.cli.needs import GROUPS
from quant.cli.shared import app

Call = Callable[..., tuple[int, str, str]]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_is_in_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_lists_each_command_with_a_whole_sentence(columns: int, call: Call, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert all(len(line) <= columns for line in out.splitlines()), out
    assert "..." not in out.partition("\n\n")[2]
    for title, names in GROUPS.items():
        section = out.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        entries = dict(re.findall(r"^  (\w+) +(.*(?:\n    .*)*)", section, re.MULTILINE))
        assert tuple(entries) == names
        for name, text in entries.items():
            told = " ".join(text.split())
            assert re.fullmatch(r"[A-Z].{20,}[^.]\.", told), (name, told)
            assert "".join(COMMANDS[name].help.split()).startswith("".join(text.split()))  # lines break behind hyphens
