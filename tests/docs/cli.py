"""The reference of the command line, from its own definitions: `python -m tests.docs.cli > docs/cli.md`.

Read from the commands' parameters, not from the printed help, so that it depends on no terminal.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from quant.cli import app

__all__ = ["reference"]

_HEAD = """# Command line

Written by `python -m tests.docs.cli`; do not edit. Exit codes: 0 done; 1 a gate or limit failed; 2 bad input, one line
on stderr.
"""
_MARKUP = re.compile(r"\[/?(?:bold|dim|italic|red|green|yellow|cyan)[^\]]*\]")


def _plain(text: str | None) -> str:
    """Help on one line, without rich's markup, fit for a cell of a table."""
    return _MARKUP.sub("", " ".join(inspect.cleandoc(text or "").split())).replace("\b ", "").replace("|", "\\|")


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or callable(value) or isinstance(value, bool) or value in ((), [], ""):
        return ""
    return f"`{getattr(value, 'value', value)}`"


def _lines() -> Iterator[str]:
    yield _HEAD
    group: Any = typer.main.get_command(app)
    commands = {name: command for name, command in sorted(group.commands.items()) if not command.hidden}
    yield "".join(f"- [`quant {name}`](#quant-{name})\n" for name in commands)
    for name, command in commands.items():
        yield f"## quant {name}\n"
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            yield f"{_plain(paragraph)}\n"
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        rows = [f"| {_names(one)} | {_default(one)} | {_plain(getattr(one, 'help', None))} |" for one in shown]
        if rows:
            yield "\n".join(["| Option | Default | Meaning |", "| --- | --- | --- |", *rows, ""])


def reference() -> str:
    """docs/cli.md as it should be."""
    return "\n".join(_lines()).rstrip() + "\n"


if __name__ == "__main__":
    print(reference(), end="")
