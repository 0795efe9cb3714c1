"""Runs on disk: a directory of them, one file each, and the one that another is to be compared with.

    .quant/20261121T215709Z-19e416a-suite.json     started, commit, kind

A file is whole or absent, and never changed. pytest-benchmark's own files can be read too: what the plugin's timed
cases store there is the same records.
"""

from pathlib import Path

from quant.errors import DataError
from quant.places import writable_dir, write_text
from quant.record import Run

__all__ = ["DEFAULT", "append", "load", "name_of"]

DEFAULT = Path(".quant")


def name_of(run: Run) -> str:
    """A file name that sorts by time."""
    moment = run.started.partition("+")[0].replace("-", "").replace(":", "") + "Z"
    return "-".join(filter(None, (moment, run.commit[:7], run.kind))) + ".json"


def append(directory: Path, run: Run) -> Path:
    """Write a run; gives its file. Never replaces another one. Raises OutputError."""
    target = writable_dir(directory) / name_of(run)
    stem = target.stem
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{stem}-{number}.json")
    write_text(target, run.to_json())
    return target


def load(path: Path) -> Run:
    """One run. Raises DataError naming the file and what is wrong."""
    try:
        return Run.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
