"""`quant cache`: what is kept of earlier runs, and room for more."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from quant.cli.needs import App
from quant.cli.shared import Json, app, out, print_json
from quant.errors import check_choice
from quant.reports import tables
from quant.storage import cache
from quant.storage.cache import Entry

__all__ = ["cache_clear", "cache_command"]

_DAY_S = 86400.0
_app = App(rich_markup_mode=None)
app.add_typer(_app, name="cache")


@_app.callback(invoke_without_command=True)
def cache_command(context: typer.Context, as_json: Json = False) -> None:
    """What the cache holds, by kind: embedded models and data, what was made of users' models, outcomes of eval.

    QUANT_CACHE names another place; QUANT_CACHE_LIMIT is the bound in gigabytes, 20 by default.
    """
    if context.invoked_subcommand is not None:
        return
    kinds, limit = _by_kind(cache.entries()), cache.limit_bytes()
    total = sum(entry.bytes for found in kinds.values() for entry in found)
    if as_json:
        told = [
            {
                "name": kind,
                "entries": len(found),
                "bytes": sum(entry.bytes for entry in found),
                "last_use": _moment(found),
            }
            for kind, found in kinds.items()
        ]
        print_json({"place": str(cache.cache_root()), "bytes": total, "limit": limit, "kinds": told})
        return
    rows = [
        (kind, str(len(found)), _megabytes(sum(entry.bytes for entry in found)), _moment(found))
        for kind, found in kinds.items()
    ]
    if rows:
        out.print(tables.rich_table(tables.Table("Cache", ("Name", "Entries", "MB", "Last use, UTC"), tuple(rows))))
    out.print(f"{cache.cache_root()}: {_megabytes(total)} MB; least recently used goes beyond {_megabytes(limit)} MB")


@_app.command("clear")
def cache_clear(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Kinds that `quant cache` lists; default: all.")
    ] = None,
    older_than: Annotated[float | None, typer.Option(min=0.0, help="Only what wasn't used for this many days.")] = None,
) -> None:
    """Remove what the cache holds, but for what a running process uses."""
    kinds = _by_kind(cache.entries())
    for name in names or []:
        check_choice("name in the cache", name, kinds)
    before = time.time() - older_than * _DAY_S if older_than is not None else None
    chosen = [
        entry
        for kind, found in kinds.items()
        for entry in found
        if (not names or kind in names) and (before is None or entry.used < before)
    ]
    gone = [entry for entry in chosen if cache.remove(entry)]
    left = f"; {len(chosen) - len(gone)} in use" if len(gone) < len(chosen) else ""
    out.print(f"{cache.cache_root()}: {len(gone)} removed, {_megabytes(sum(one.bytes for one in gone))} MB{left}")


def _by_kind(found: list[Entry]) -> dict[str, list[Entry]]:
    kinds: dict[str, list[Entry]] = {}
    for entry in found:
        kinds.setdefault(entry.kind, []).append(entry)
    return dict(sorted(kinds.items()))


def _moment(found: list[Entry]) -> str:
    return datetime.fromtimestamp(max(entry.used for entry in found), UTC).strftime("%Y-%m-%d %H:%M")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
