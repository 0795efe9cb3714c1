"""Hashes of values and of files' contents: SHA-256, in hex. Files are read piece by piece, whatever their size.

What was hashed of a large file can be noted, in a directory of small files that holds for as long as size and times of
the file stay what they were:

    NOTES/HASH.json   {"file": {"path", "size", "mtime_ns", "ctime_ns"}, "sha256": ...}
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from quant.errors import OutputError
from quant.storage.files import write_text

__all__ = ["digest", "full_digest", "sha256_of", "sums_of"]

Part = str | bytes | Path
Progress = Callable[[str, int, int], None]
_LARGE = 1 << 20  # bytes of a file whose digest is worth a note
_RACY_NS = 2_000_000_000  # a file that changed this recently may change again within one tick of its clock
_CHUNK = 1 << 20


def full_digest(parts: Iterable[Part], notes: Path | None = None) -> str:
    """64 hex digits of strings, bytes and files' contents, in order; `notes` as for `sha256_of`. Raises OSError."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = f"file {sha256_of(part, notes)}"
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return total.hexdigest()


def digest(parts: Iterable[Part], notes: Path | None = None) -> str:
    """The first 16 digits of `full_digest`: for names and keys."""
    return full_digest(parts, notes)[:16]


def sha256_of(path: Path, notes: Path | None = None, progress: Progress | None = None) -> str:
    """A file's own SHA-256. With a directory `notes`, a large file's is noted there, and read from there.

    Raises OSError, also for a file that changes while it is read.
    """
    path = path.resolve()
    mark = _mark(path)
    large = int(mark["size"]) >= _LARGE
    note = notes / f"{digest([str(path)])}.json" if notes and large else None
    known = _noted(note) if note else {}
    if known.get("file") == mark:
        return str(known["sha256"])

    def tell(done: int, total: int) -> None:
        if progress and large:
            progress(f"reading {path.name} [MB]", done >> 20, total >> 20)

    with path.open("rb") as file:
        _, sums = sums_of(file, ("sha256",), tell)
    if _mark(path) != mark:
        raise OSError(0, "it changes while it is read", str(path))
    if note and time.time_ns() - max(int(mark["mtime_ns"]), int(mark["ctime_ns"])) > _RACY_NS:
        with contextlib.suppress(OSError, OutputError):  # then it is read again the next time
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps({"file": mark, "sha256": sums["sha256"]}))
    return sums["sha256"]


def sums_of(
    file: BinaryIO, names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> tuple[int, dict[str, str]]:
    """An open file's size in bytes, and algorithm -> sum, as hashlib names them; `progress`: bytes done, all bytes."""
    sums = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    total, done = file.seek(0, 2), 0
    file.seek(0)
    while chunk := file.read(_CHUNK):
        for sum_ in sums.values():
            sum_.update(chunk)
        done += len(chunk)
        if progress:
            progress(done, total)
    return done, {name: sum_.hexdigest() for name, sum_ in sums.items()}


def _mark(path: Path) -> dict[str, str | int]:
    """What stays the same while a file does. Its ctime too: rsync and cp -p set the mtime to an older file's."""
    found = path.stat()
    return {"path": str(path), "size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}


def _noted(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("sha256"), str) else {}
