"""What models put out, kept on disk part by part: an evaluation goes on where it stopped, and is scored again unrun.

A part is a whole number of batches, about 1,000 samples. It is kept for the content of the model's and the data's
files, the settings and the versions that made it (`Key`), under a directory that is named by a hash of these:

    outcomes/HASH/about.json               what it is of, for a person to read
    outcomes/HASH/00001000.npz and .json   the part that begins at sample 1000: outputs and labels; seconds, proof
    outcomes/digests/HASH.json             the SHA-256 of a large file (quant.storage.digests)

It lies in the cache (`storage.files`). All of it, or any directory in it, can be deleted at any time: what is missing
is
run again. So is what is damaged: a part's digest covers all that was stored. Nothing in it is ever unpickled.
"""

import io
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from quant.datasets.columns import DAMAGE, Column, Ragged
from quant.errors import DataError, ModelError, OutputError, unwritable
from quant.process.imports import code_of
from quant.storage.cache import cache_root, held, limit_bytes, trim
from quant.storage.digests import full_digest, sha256_of
from quant.storage.files import fresh_file

__all__ = [
    "About",
    "Key",
    "Part",
    "Shelf",
    "Store",
    "data_digests",
    "default_root",
    "model_digest",
    "pack",
    "parts_of",
    "unpack",
    "versions",
]

Progress = Callable[[str, int, int], None]
SCHEMA = 2
_PART = 1000  # samples, about
# What puts out a part, and what reads its kernels out of oneDNN's log; each with all that it imports.
_DECIDING = ("quant.evaluation.worker", "quant.runtime.verbose_log")


def default_root() -> Path:
    return cache_root() / "outcomes"


def parts_of(total: int, batch_size: int, batch_num: int | None = None) -> tuple[range, ...]:
    """The samples of each part. Its batches are those of an uninterrupted run.

    >>> parts_of(2500, 50)
    (range(0, 1000), range(1000, 2000), range(2000, 2500))
    >>> parts_of(2500, 300, 4)
    (range(0, 900), range(900, 1200))
    """
    used = min(total, batch_size * batch_num) if batch_num else total
    size = max(round(_PART / batch_size), 1) * batch_size
    return tuple(range(start, min(start + size, used)) for start in range(0, used, size))


# --- what a part is, in memory and as bytes


@dataclass(frozen=True)
class About:
    """What there is to say of a part beside its arrays."""

    start: int  # its first sample
    samples: int
    total: int  # of the data file
    outputs: tuple[str, ...]  # names, in the model's order
    run_s: tuple[float, ...]  # seconds in predictor.run, one a batch
    wall_s: float  # of all batches: reading, feeding, running, reading back
    int8_ops: int
    fp32_ops: int
    ended: str = ""  # UTC, ISO 8601
    host: str = ""
    executor: str = ""  # who called the kernels
    threads: int = 1  # that they ran on
    note: str = ""  # what there is to say of how a reference was run (quant.runtime.reference)
    instead: tuple[str, ...] = ()  # the model's outputs that some of `outputs` stand for (quant.ir.comparable)
    proof: Mapping[str, Any] | None = (
        None  # what oneDNN's log showed (quant.runtime.verbose_log.Proof); of the first part
    )

    @staticmethod
    def of(stored: Mapping[str, Any]) -> "About":
        """From JSON, which knows no tuples."""
        lists = {name: tuple(stored.get(name, ())) for name in ("outputs", "run_s", "instead")}
        return About(**{**stored, **lists})

    def stamped(self) -> "About":
        """With this time and this machine."""
        return replace(self, ended=datetime.now(UTC).isoformat(timespec="seconds"), host=platform.node())


@dataclass(frozen=True, eq=False)
class Part:
    """The outputs of consecutive samples, in the model's order, and their labels."""

    about: About
    outputs: tuple[Column, ...]
    labels: Column

    def head(self, count: int, batch_size: int) -> "Part":
        """The first `count` samples: whole batches, or all there are."""
        if count >= self.about.samples:
            return self
        run_s = self.about.run_s[: -(-count // batch_size)]
        wall_s = self.about.wall_s * sum(run_s) / sum(self.about.run_s)
        about = replace(self.about, samples=count, run_s=run_s, wall_s=wall_s)
        return Part(about, tuple(column[:count] for column in self.outputs), self.labels[:count])


def pack(outputs: Sequence[Column], labels: Column) -> bytes:
    """Columns as an .npz: `0`, `1`, ... and `labels`; sequences as their values, and `0.offsets`."""
    arrays: dict[str, Any] = {}
    for name, column in [*((str(place), column) for place, column in enumerate(outputs)), ("labels", labels)]:
        arrays[name] = column.values if isinstance(column, Ragged) else np.asarray(column)
        if isinstance(column, Ragged):
            arrays[f"{name}.offsets"] = column.offsets
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def unpack(blob: bytes, count: int) -> tuple[tuple[Column, ...], Column]:
    """The inverse of `pack`, for `count` outputs. Raises ValueError or OSError for anything else."""
    try:
        with np.load(io.BytesIO(blob), allow_pickle=False) as stored:
            columns = [
                Ragged(stored[name], stored[f"{name}.offsets"]) if f"{name}.offsets" in stored else stored[name]
                for name in [*map(str, range(count)), "labels"]
            ]
    except DAMAGE as error:
        raise ValueError(f"not a part's arrays: {error}") from error
    return tuple(columns[:-1]), columns[-1]


# --- what decides the outputs


@dataclass(frozen=True)
class Key:
    """All that decides a part's outputs, its labels and its batches."""

    model: str  # SHA-256 of its files
    data: Mapping[str, str]  # role -> SHA-256: data, labels, dictionaries
    format: str
    run: Mapping[str, Any]  # precision, and other settings of the predictor
    isa: str  # what oneDNN was capped to
    batch_size: int
    threads: int
    versions: Mapping[str, str]

    @property
    def name(self) -> str:
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True)
        return full_digest([text])[:32]


@cache
def versions() -> Mapping[str, str]:
    """Of the packages that compute, and a digest of this package's own code that does."""
    found = {"code": code_of(*_DECIDING)}
    for name in ("paddlepaddle", "numpy", "quant-onednn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def model_digest(directory: Path, notes: Path, progress: Progress | None = None) -> str:
    """Of all files below a model directory, names and contents. Raises ModelError when it isn't there."""
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    try:
        found = [(str(path.relative_to(directory)), sha256_of(path, notes, progress)) for path in files]
    except OSError as error:
        raise ModelError(f"{error.filename or directory}: can't be read ({error.strerror})") from error
    return full_digest([json.dumps(found)])


def data_digests(files: Mapping[str, Path], notes: Path, progress: Progress | None = None) -> dict[str, str]:
    """Role -> file, role -> SHA-256. Raises DataError for a file that isn't there or can't be read."""
    found = {}
    for role, path in files.items():
        if not path.is_file():
            raise DataError(f"{path}: no such data file")
        try:
            found[role] = sha256_of(path, notes, progress)
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror})") from error
    return found


# --- on disk


@dataclass(frozen=True)
class Store:
    """Where outcomes are kept. Thread-safe.

    `fresh` forgets what earlier runs kept of what is asked for, each key once: models may share one.
    """

    root: Path
    fresh: bool = False
    _asked: set[str] = field(default_factory=set, compare=False)
    _asking: Lock = field(default_factory=Lock, compare=False)

    @property
    def notes(self) -> Path:
        return self.root / "digests"

    def shelf(self, key: Key, about: Mapping[str, Any]) -> "Shelf":
        """The place of a key's parts, which can be written. Raises OutputError when it can't."""
        directory, limit = self.root / key.name, limit_bytes()
        try:
            with self._asking:
                if self.fresh and key.name not in self._asked and directory.exists():
                    shutil.rmtree(directory)
                self._asked.add(key.name)
            added = not directory.exists()
            while not held(directory):  # this process uses it now; another one may take it away just before
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _elsewhere(unwritable(directory, error)) from error
        told = directory / "about.json"
        if not told.exists():
            _write(told, json.dumps({**about, **asdict(key)}, indent=1).encode())
        if added and self.root == default_root():
            trim(limit)
        return Shelf(directory)


@dataclass(frozen=True)
class Shelf:
    """One key's parts."""

    directory: Path

    def starts(self) -> list[int]:
        """Where its parts begin, damaged ones too."""
        return sorted(int(path.stem) for path in self.directory.glob("*.json") if path.stem.isdecimal())

    def get(self, start: int) -> Part | None:
        """The part that begins at a sample; None when there is none, or only a damaged one."""
        try:
            note = json.loads(self._path(start, "json").read_bytes())
            blob = self._path(start, "npz").read_bytes()
            if note["about"]["start"] != start or note["sha256"] != self._digest(note["about"], blob):
                return None
            about = About.of(note["about"])
            return Part(about, *unpack(blob, len(about.outputs)))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, about: About, blob: bytes) -> None:
        """Keep a part, its arrays as `pack` made them. It is there when its .json is. OutputError when it can't be."""
        _write(self._path(about.start, "npz"), blob)
        content = json.loads(json.dumps(asdict(about)))  # as it is read back, for the digest
        note = {"about": content, "sha256": self._digest(content, blob)}
        _write(self._path(about.start, "json"), json.dumps(note).encode())

    def _path(self, start: int, suffix: str) -> Path:
        return self.directory / f"{start:08d}.{suffix}"

    def _digest(self, about: Mapping[str, Any], blob: bytes) -> str:
        """Also of the key, so that a part doesn't pass for another one's."""
        head = json.dumps([SCHEMA, self.directory.name, about], sort_keys=True)
        return full_digest([head, blob])


def _write(path: Path, content: bytes) -> None:
    """A file, whole or absent, whoever else writes it. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _elsewhere(unwritable(path, error)) from error
    try:
        with fresh_file(path) as staging:
            staging.write_bytes(content)
    except OutputError as error:
        raise _elsewhere(error) from error


def _elsewhere(error: OutputError) -> OutputError:
    return OutputError(f"{error}; QUANT_CACHE names another place for the cache")
