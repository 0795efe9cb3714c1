"""Built artefacts under the user's cache directory, named by the hash of all that went in.

QUANT_CACHE overrides the place (default: $XDG_CACHE_HOME/quant-onednn, or ~/.cache/quant-onednn).
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from quant.graph import fresh_dir

__all__ = ["cache_root", "cached", "digest"]


def cache_root() -> Path:
    if named := os.environ.get("QUANT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quant-onednn"


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """A short hash of strings and of files' contents, in order."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()[:16]


def cached(name: str, parts: Iterable[str | bytes | Path], build: Callable[[Path], None]) -> Path:
    """The directory `name`-HASH, built by `build(directory)` unless it is there already.

    It appears by one rename, so it is whole or absent; a lock keeps two processes from building it twice.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}-{digest(parts)}"
    if target.exists():
        return target
    with (root / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with fresh_dir(target) as staging:
                build(staging)
    return target
