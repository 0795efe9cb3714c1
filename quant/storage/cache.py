"""A cache of built artefacts and of outcomes, named by what went in. It stays within a bound.

    ROOT/NAME-HASH/       an artefact: a directory that appeared by one rename
    ROOT/outcomes/HASH/   what a model put out, part by part (quant.evaluation.parts)
    ROOT/.NAME-HASH.lock  held by the process that makes it

QUANT_CACHE overrides the place (default: $XDG_CACHE_HOME/quant-onednn, or ~/.cache/quant-onednn), QUANT_CACHE_LIMIT the
bound in gigabytes (default: 20). When something is added beyond that, what was used least recently goes; the time of
last use is the directory's mtime. What a process uses it holds until it ends, by a shared lock on the directory, so
another one doesn't take it away; where a file system has no locks, nothing is taken away. Plain flock, because
filelock's lock of files is always exclusive.
"""

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from quant.errors import OptionError, OutputError, unwritable
from quant.storage.digests import digest
from quant.storage.files import fresh_dir, taken

__all__ = ["Entry", "cache_root", "cached", "entries", "giving_up", "held", "limit_bytes", "locked", "remove", "trim"]

OUTCOMES = "outcomes"
_POLL_S = 0.1
_LIMIT_GB = 20.0
_HASH = re.compile(r"-[0-9a-f]{16}$")
_given_up = threading.Event()
_in_use: dict[Path, int] = {}  # what this process uses -> a descriptor that holds the shared lock
_using = threading.Lock()


def cache_root() -> Path:
    if named := os.environ.get("QUANT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quant-onednn"


def limit_bytes() -> int:
    """What the cache may hold. Raises OptionError when QUANT_CACHE_LIMIT is no number of gigabytes."""
    text = os.environ.get("QUANT_CACHE_LIMIT", "").strip()
    try:
        found = float(text or _LIMIT_GB)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise OptionError(f"QUANT_CACHE_LIMIT: {text!r} is not a number of gigabytes")
    return int(found * 1e9)


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


def held(directory: Path) -> bool:
    """Whether a directory of the cache is there; then this process uses it from now on, until it ends. Thread-safe."""
    with _using:
        known = _in_use.get(directory)
        if known is not None and _is_at(known, directory):
            return True
        if known is not None:  # it was removed on purpose, with --fresh
            os.close(_in_use.pop(directory))
        try:
            place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with suppress(OSError):  # a file system without locks
            fcntl.flock(place, fcntl.LOCK_SH)  # waits only while it is renamed
        if not _is_at(place, directory):
            os.close(place)
            return False
        with suppress(OSError):  # somebody else's, or on a read-only place
            os.utime(place)
        _in_use[directory] = place
        return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def cached(name: str, parts: Iterable[str | bytes | Path], build: Callable[[Path], None]) -> Path:
    """The directory `name`-HASH, built by `build(directory)` unless it is there already; this process then uses it.

    It appears by one rename, so it is whole or absent; a lock keeps two processes from building it twice.
    """
    target = cache_root() / f"{name}-{digest(parts)}"
    limit = limit_bytes()
    made = False
    while not held(target):
        with locked(target.name):
            if not target.exists():
                with fresh_dir(target) as staging:
                    build(staging)
                made = True
    if made:
        trim(limit)
    return target


# --- what there is, and what goes


@dataclass(frozen=True)
class Entry:
    """Something in the cache. `kind`: its name without the hash; `used`: when, in seconds since 1970."""

    path: Path
    kind: str
    bytes: int
    used: float


def entries() -> list[Entry]:
    """All that was built or kept, the least recently used first; nothing that is just being made."""
    root = cache_root()
    found = [(path, _HASH.sub("", path.name)) for path in _directories(root) if path.name != OUTCOMES]
    found += [(path, OUTCOMES) for path in _directories(root / OUTCOMES) if path.name != "digests"]
    told = []
    for path, kind in found:
        with suppress(OSError):  # gone meanwhile
            told.append(Entry(path, kind, _size(path), path.stat().st_mtime))
    return sorted(told, key=lambda entry: (entry.used, entry.path))


def remove(entry: Entry) -> bool:
    """Remove an entry unless a process uses it; whether it is gone. Its name is free at once."""
    try:
        place = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(place, entry.path):
            return True
        going = entry.path.with_name(f".{entry.path.name}.going-{os.getpid()}-{time.monotonic_ns()}")
        entry.path.rename(going)
        shutil.rmtree(going, ignore_errors=True)
    except OSError:  # used, somebody else's, or on a read-only place or one without locks
        return False
    finally:
        os.close(place)
    return True


def trim(limit: int) -> None:
    """Bring the cache down to `limit` bytes: the least recently used goes first, and nothing that a process uses."""
    root = cache_root()
    with (root / ".trim.lock").open("w") as lock:
        if not taken(lock):
            return  # another process does it
        for left in (*root.glob(".*.going-*"), *(root / OUTCOMES).glob(".*.going-*")):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed; only the holder of the lock is here
        present = entries()
        total = sum(entry.bytes for entry in present)
        for entry in present:
            if total <= limit:
                break
            if remove(entry):
                total -= entry.bytes


def _directories(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def _size(place: Path) -> int:
    """Bytes of all files below a directory."""
    total = 0
    for directory, _, files in os.walk(place):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total
