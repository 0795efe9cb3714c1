"""The fenced blocks of Markdown documents: commands that a reader types, Python, and files that a reader writes.

- `bash`, `sh`, `console`: commands, one a line. Words in capital letters (`FP32_DIR`) are the reader's own names.
- `python`: a program of its own. Names that it neither defines nor imports are the reader's own values.
- Any block whose first line is a comment with nothing but a path (`# my_pkg/metrics.py`) is that file.
- `toml`, `text` and the like otherwise: shown, not run; `text` may not hold commands.
"""

import ast
import builtins
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from quant.cli import _spelled
from quant.cli.shared import app

__all__ = ["PLAIN", "SHELL", "Block", "blocks", "commands_in", "names_read", "options_of", "parse_quant", "substituted"]

SHELL = ("bash", "sh", "console")
PLAIN = ("text", "toml", "json", "yaml")
_PROGRAMS = ("quant", "pytest", "make", "pip", "python", ".venv/bin/quant", "dask", "git")
_FILE = re.compile(r"#\s+([\w./-]+/)?[\w-]+\.\w+")
_PLACEHOLDER = re.compile(r"(?<![\w$./{-])[A-Z][A-Z0-9]*(_[A-Z0-9]+)*(?![\w=])")
_ASSIGNED = re.compile(r"[A-Za-z_]\w*=.*")


@dataclass(frozen=True)
class Block:
    document: Path
    line: int  # of its first line of text, from 1
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def file(self) -> str | None:
        """The path of the file that this block is, if it is one."""
        first = self.text.partition("\n")[0]
        return first.lstrip("# ") if _FILE.fullmatch(first) and self.language not in SHELL else None

    def lines(self) -> list[str]:
        """A shell block's command lines; of a `console` block those behind its prompts."""
        found = [line.strip() for line in self.text.replace("\\\n", " ").splitlines()]
        if self.language == "console":
            found = [line.removeprefix("$ ") for line in found if line.startswith("$ ")]
        return [line for line in found if line and not line.startswith("#")]


def blocks(document: Path) -> list[Block]:
    """A document's fenced blocks. Raises ValueError for a language that isn't known, and commands shown as text."""
    found: list[Block] = []
    language: str | None = None
    begin, indent, text = 0, "", [""]
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if not line.lstrip().startswith("```"):
            text.append(line.removeprefix(indent) if language is not None else "")
        elif language is None:
            indent = line[: len(line) - len(line.lstrip())]
            language, begin, text = line.strip().removeprefix("```"), number + 1, []
        else:
            found.append(Block(document, begin, language, "\n".join(text) + "\n"))
            language = None
    if language is not None:
        raise ValueError(f"{document.name}:{begin}: a block without an end")
    for block in found:
        if block.language not in (*SHELL, *PLAIN, "python"):
            raise ValueError(f"{block.place}: a block of language {block.language!r}")
        shown = block.text.splitlines() if block.language == "text" else []
        if any(line.split()[:1] == [program] for line in shown for program in _PROGRAMS):
            raise ValueError(f"{block.place}: commands in a block of text, which nothing runs")
    return found


def substituted(line: str, own: Mapping[str, str]) -> str:
    """A command line with the reader's own names for the placeholders. Raises KeyError for one that has none."""
    command = line.partition(" #")[0].rstrip()
    return _PLACEHOLDER.sub(lambda found: own[found.group()], command)


def commands_in(line: str) -> list[list[str]]:
    """The words of each command of a line, without assignments to the environment in front."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set(";&|"):
            found.append([])
        elif found[-1] or not _ASSIGNED.fullmatch(word):
            found[-1].append(word)
    return [command for command in found if command]


def parse_quant(arguments: Sequence[str]) -> None:
    """Raise what the command line would for options that don't exist, lack a value or exclude one another."""
    group = typer.main.get_command(app)
    name, *rest = _spelled(arguments)
    with group.context_class(group, info_name="quant") as context:
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        if command is None:
            raise ValueError(f"quant has no command {name!r}")
        command.make_context(name, rest, parent=context)


def options_of(arguments: Iterable[str]) -> list[str]:
    return [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]


def names_read(text: str) -> set[str]:
    """The names that a program reads and nowhere defines or imports."""
    read, defined = set(), set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.alias(name=name, asname=other):
                defined.add(other or name.partition(".")[0])
    return read - defined - set(dir(builtins))
