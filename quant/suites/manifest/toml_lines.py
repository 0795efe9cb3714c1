"""On which line each key of a TOML text begins: for errors that name it."""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Location", "lines_of"]

Location = tuple[str | int, ...]  # keys and indexes, from the outermost


def lines_of(text: str) -> dict[Location, int]:
    """The line of every key of a text that is TOML.

    There is no parser here that tells lines. The text is cut into statements instead, each the fewest whole lines that
    are TOML by themselves: a header, or a key and its value.
    """
    found: dict[Location, int] = {}
    lines = text.split("\n")
    table: Location = ()  # which the keys below a header belong to
    tables: Counter[Location] = Counter()  # of each array of tables
    start = 0
    while start < len(lines):
        statement, stop = _statement(lines, start)
        if lines[start].lstrip().startswith("["):
            table = ()
            names, array = _header(statement)
            for number, name in enumerate(names, 1):
                table = (*table, name)
                tables[table] += array and number == len(names)
                found.setdefault(table, start + 1)
                if tables[table]:
                    table = (*table, tables[table] - 1)
                    found.setdefault(table, start + 1)
        else:
            for key in _keys_in(statement, table):
                found.setdefault(key, start + 1)
        start = stop
    return found


def _statement(lines: Sequence[str], start: int) -> tuple[dict[str, Any], int]:
    """The statement that begins in a line, and the line behind it."""
    for stop in range(start + 1, len(lines)):
        try:
            return tomllib.loads("\n".join(lines[start:stop]) + "\n"), stop
        except tomllib.TOMLDecodeError:
            continue
    return tomllib.loads("\n".join(lines[start:])), len(lines)


def _header(statement: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The names in a table's header, and whether it is one of an array of tables."""
    names: list[str] = []
    node: Any = statement
    while isinstance(node, dict) and node:
        [(name, node)] = node.items()
        names.append(name)
    return names, isinstance(node, list)


def _keys_in(value: Any, location: Location) -> Iterator[Location]:
    """Where everything in a value is."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*location, key)
        yield from _keys_in(inner, (*location, key))
