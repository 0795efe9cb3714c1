"""INT8 models that passed, left where a user asks: what was judged is what is deployed, and nobody converts again.

DIR/NAME/int8        the INT8 model
DIR/NAME/quant       its simulation, where that was made here
DIR/NAME/saved.json  what it was judged by, and the digests of the files: only what these vouch for is replaced
"""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quant.errors import OptionError, OutputError
from quant.results.comparison import comparisons, misses, passed
from quant.results.record import Record, Run
from quant.results.speed_ratio import pairs
from quant.storage.digests import digest
from quant.storage.files import fresh_dir, writable_dir
from quant.suites.entries import models_of
from quant.suites.manifest.schema import Entry

__all__ = ["MARK", "check_places", "hand_over", "unfit"]

MARK, SCHEMA = "saved.json", 1


def check_places(directory: Path, names: Sequence[str]) -> None:
    """Raise before anything is measured: OptionError for a model whose name can't be a directory's, OutputError where
    something is that no earlier run saved, or nothing can be written.
    """
    writable_dir(directory)
    for name in names:
        if "/" in name or name in (".", "..") or len(name.encode()) > 200:
            raise OptionError(f"--save: model {name!r} is to be saved by its name, which no directory can have")
        if not _replaceable(directory / name):
            raise OutputError(
                f"{directory / name}: is nothing that was saved there, or was changed since; not replaced"
            )


def unfit(run: Run, names: Sequence[str], regressed: Collection[str] = ()) -> dict[str, str]:
    """Model -> why it isn't saved, of those that didn't pass."""
    found: dict[str, str] = {}
    for name in names:
        exact, timed = ([one for one in records if one.model == name] for records in (run.exact, run.timed))
        rows = {name: run.rows[name]} if name in run.rows else {}
        if not exact or any(failure.title == rows[name].title for failure in run.failures):
            found[name] = "it couldn't be measured"
        elif not passed(exact, timed, rows):
            found[name] = f"it missed its limits ({'; '.join(misses(exact, timed, rows))})"
        elif name in regressed:
            found[name] = "it regressed"
    return found


def hand_over(directory: Path, entries: Sequence[Entry], run: Run, why_not: Mapping[str, str]) -> Iterator[str]:
    """Save the models that passed, those without a reason in `why_not`; a line for each model. Raises OutputError."""
    for entry in entries:
        place = directory / entry.name
        if entry.name in why_not:
            older = f"; {place} is an earlier run's" if place.exists() else ""
            yield f"not saved: {entry.title}: {why_not[entry.name]}{older}"
        else:
            megabytes = _save(place, entry, run) / 1e6
            yield f"saved: {entry.title}: {place / 'int8'} ({megabytes:.1f} MB)"


def _save(place: Path, entry: Entry, run: Run) -> int:
    """The size of the INT8 model in bytes. What was made is found in the cache, or made once more by the same code."""
    models = models_of(entry)
    parts = {"int8": models.int8, **({"quant": models.quant} if models.quant and not entry.quant else {})}
    if not _replaceable(place):
        raise OutputError(f"{place}: was changed while models were measured; not replaced")
    with fresh_dir(place, replace=True) as staging:
        for name, source in parts.items():
            shutil.copytree(source, staging / name)
        told = {**_judged(entry, run), "weights": models.weights or "8bit", "files": _digests(staging)}
        (staging / MARK).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in (place / "int8").rglob("*"))


def _judged(entry: Entry, run: Run) -> dict[str, Any]:
    """By what a model passed, for people and programs."""
    rows = {entry.name: entry.row()}

    def own(records: Sequence[Record]) -> list[Record]:
        return [record for record in records if record.model == entry.name]

    scores = {
        one.metric: {
            "fp32": one.fp32.score(one.metric),
            "int8": one.int8.score(one.metric),
            "samples": one.drop.samples,
            "limit": one.row.max_drop[one.metric],
        }
        for one in comparisons(own(run.exact), rows)
    }
    speed = [
        {"tier": pair.int8.isa, "batch": pair.int8.batch, "threads": pair.int8.threads, "ratio": pair.ratio}
        for pair in pairs(own(run.timed), rows)
    ]
    about = {"command": run.command, "started": run.started, "commit": run.commit, "tier": run.machine.tier}
    return {"schema": SCHEMA, "model": entry.name, **about, "scores": scores, "speed": speed}


def _digests(place: Path) -> dict[str, str]:
    files = sorted(path for path in place.rglob("*") if path.is_file() and path != place / MARK)
    return {str(path.relative_to(place)): digest([path]) for path in files}


def _replaceable(place: Path) -> bool:
    """Whether nothing is there, or exactly what was saved."""
    if not place.exists() and not place.is_symlink():
        return True
    if place.is_symlink() or not place.is_dir():
        return False
    try:
        if not any(place.iterdir()):
            return True
        told = json.loads((place / MARK).read_text(encoding="utf-8"))
        return isinstance(told, dict) and told.get("files") == _digests(place)
    except (OSError, ValueError):
        return False
