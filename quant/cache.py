"""A cache of built artefacts, named by what went in.

QUANT_CACHE overrides the place (default: $XDG_CACHE_HOME/quant-onednn, or ~/.cache/quant-onednn).
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.digests import digest
from quant.errors import OutputError, unwritable
from quant.places import fresh_dir, taken

__all__ = ["cache_root", "cached", "giving_up", "locked"]

_POLL_S = 0.1
_given_up = threading.Event()


def cache_root() -> Path:
    if named := os.environ.get("QUANT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quant-onednn"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time is inside, of all that use this cache. Raises OutputError when it can't be written."""
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise OutputError(f"{unwritable(root, error)}; QUANT_CACHE names another place") from error
    with lock:
        while not taken(lock):
            if _given_up.wait(_POLL_S):
                raise OutputError(f"{root / name}: gave up waiting for another process that makes it")
        yield


@contextmanager
def giving_up() -> Iterator[None]:
    """Meanwhile no thread waits for another process: Ctrl-C reaches the main thread alone."""
    _given_up.set()
    try:
        yield
    finally:
        _given_up.clear()


def cached(name: str, parts: Iterable[str | bytes | Path], build: Callable[[Path], None]) -> Path:
    """The directory `name`-HASH, built by `build(directory)` unless it is there already.

    It appears by one rename, so it is whole or absent; a lock keeps two processes from building it twice.
    """
    target = cache_root() / f"{name}-{digest(parts)}"
    if target.exists():
        return target
    with locked(target.name):
        if not target.exists():
            with fresh_dir(target) as staging:
                build(staging)
    return target
