"""What the seeds publish -> a directory: download, compare, unpack, record. Whole or absent, and never other bytes.

Trust: sizes and SHA-256 of the published archives are unknown to this project. The first download is compared with the
MD5 that Paddle's own test build demands, where it has one (`quant/suites/published/catalogue.py`); else it is trusted,
as is one from a mirror
that the user names. Its SHA-256 is recorded, and whatever is downloaded later must have it. A user who knows the sum
gives it, and then only that counts.

`DIRECTORY/NAME/` is what was in the archive, `DIRECTORY/NAME.json` the record: address, size and sums of the archive,
SHA-256 of every file. The archive isn't kept; files that are there are compared with the record instead.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from quant.errors import FetchError, OptionError, OutputError
from quant.storage.checkpoint import Tell, goes_on
from quant.storage.digests import sha256_of, sums_of
from quant.storage.download import Patience, begun, download, mirrored, part_file, shown
from quant.storage.files import fresh_dir
from quant.storage.unpack import MAX_BYTES, unpack
from quant.suites.published.catalogue import Artefact

__all__ = ["Fetched", "fetch", "find", "is_there"]

_SCHEMA = 1

Progress = Callable[[str, int, int], None]  # what is going on, bytes done, bytes in all (0: unknown)


@dataclass(frozen=True)
class _Record:
    """NAME.json. `bytes`, `sha256` and `md5` are the archive's, `files` maps relative paths to SHA-256; sums in hex."""

    schema: int
    url: str
    bytes: int
    sha256: str
    md5: str
    files: dict[str, str]


@dataclass(frozen=True)
class Fetched:
    """`holds`: where what the artefact promises is. `bytes` and `sha256` are the archive's.

    `as_published`: whether its MD5 is the one that Paddle's own test build demands; None when that names none.
    """

    directory: Path
    holds: tuple[Path, ...]
    files: int
    bytes: int
    sha256: str
    was_there: bool
    as_published: bool | None


def fetch(
    artefact: Artefact,
    directory: Path,
    *,
    mirror: str | None = None,
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
    patience: Patience | None = None,
    fresh: bool = False,
    say: Tell | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Make `directory`/NAME hold what the artefact's archive holds, and check it when it is there already.

    `mirror` is another server, whose address comes before the published path. `sha256` is the archive's, if it is
    known. `max_bytes` bounds the archive and what it unpacks to. `fresh` throws away what a download that was cut off
    has left; `say` hears of what is gone on with.

    Raises OptionError for a bad mirror or sum, or a download that was begun from another address; OutputError for a
    place that can't be written or holds something else; FetchError when the server hasn't got it, when what came is
    damaged, hostile or not what was expected, and when files were changed since. Then nothing is unpacked; an
    interrupted download stays as NAME.part, and the next call goes on from it.
    """
    url, pinned, tell = mirrored(artefact.url, mirror), _pinned(sha256), progress or (lambda what, done, total: None)
    target, noted = directory / artefact.name, directory / f"{artefact.name}.json"
    record = _read_record(noted)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        return _there(artefact, target, noted, record, pinned, tell)
    part = directory / f"{artefact.name}.part"
    with part_file(part) as file:
        size = file.seek(0, os.SEEK_END)
        kept = f"{size:,} bytes" if size else ""
        if not goes_on(part, begun(part), {"address": shown(url)}, fresh=fresh, kept=kept, tell=say):
            file.truncate(0)
        download(url, part, file, max_bytes=max_bytes, patience=patience, progress=tell)
        try:
            size, sums = _archive_sums(file, tell)
            _check_archive(artefact, url, noted, sums, pinned or (record.sha256 if record else None), bool(mirror))
            with fresh_dir(target) as staging:
                files = unpack(
                    part,
                    staging,
                    shown(url),
                    max_bytes=max_bytes,
                    progress=lambda done, total: tell("unpack", done, total),
                )
                _located(artefact, staging, shown(url))
                made = _Record(_SCHEMA, shown(url), size, sums["sha256"], sums["md5"], files)
                _write_record(noted, made)  # first, so that no directory is without one
        except FetchError:
            file.truncate(0)  # these bytes are of no use; part_file removes what is empty
            raise
        except OutputError as error:
            raise OutputError(f"{error}; the download stays in {part}") from error
        file.truncate(0)
    return _fetched(artefact, target, made, was_there=False)


def is_there(artefact: Artefact, directory: Path) -> bool:
    """Whether `directory`/NAME holds anything. Not whether it holds what it should: that is `find`'s."""
    target = directory / artefact.name
    return target.is_dir() and any(target.iterdir())


def find(artefact: Artefact, directory: Path, progress: Progress | None = None) -> tuple[Path, ...]:
    """Where what the artefact promises is in `directory`/NAME, fetched or unpacked there by hand.

    Raises FetchError when some of it isn't there and, if it was fetched, when files were changed since.
    """
    target = directory / artefact.name
    if not is_there(artefact, directory):
        raise FetchError(f"{target}: not there, or empty; fetch {artefact.name}")
    record = _read_record(directory / f"{artefact.name}.json")
    if record is not None:
        _check_files(target, record, progress or (lambda what, done, total: None))
    try:
        return _located(artefact, target, str(target))
    except FetchError as error:
        raise FetchError(f"{error}; {_anew(target)}") from error


def _pinned(sha256: str | None) -> str | None:
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256.strip()):
        raise OptionError(f"--sha256: {sha256!r} is not 64 hexadecimal digits")
    return sha256.strip().lower() if sha256 else None


def _there(
    artefact: Artefact, target: Path, noted: Path, record: _Record | None, pinned: str | None, tell: Progress
) -> Fetched:
    """What was fetched before, when it is still what the record says."""
    if record is None:
        raise OutputError(f"{target}: exists, and there is no {noted.name} beside it: not fetched by this command")
    if pinned and pinned != record.sha256:
        raise FetchError(
            f"{target}: unpacked from an archive with SHA-256 {record.sha256}, not {pinned}; {_anew(target)}"
        )
    _check_files(target, record, tell)
    return _fetched(artefact, target, record, was_there=True)


def _anew(target: Path) -> str:
    return f"remove {target} and fetch it anew"


def _check_files(target: Path, record: _Record, tell: Progress) -> None:
    """Raise FetchError unless every file is there, and is what the record says."""
    done = 0
    for name, sum_ in record.files.items():
        try:
            same = sha256_of(target / name) == sum_
            done += (target / name).stat().st_size
        except OSError as error:
            raise FetchError(f"{target / name}: can't be read ({error.strerror}); {_anew(target)}") from error
        if not same:
            raise FetchError(f"{target / name}: changed since it was fetched; {_anew(target)}")
        tell("check files", done, 0)


def _fetched(artefact: Artefact, target: Path, record: _Record, was_there: bool) -> Fetched:
    as_published = None if artefact.md5 is None else artefact.md5 == record.md5
    holds = _located(artefact, target, record.url)
    return Fetched(target, holds, len(record.files), record.bytes, record.sha256, was_there, as_published)


def _archive_sums(file: BinaryIO, tell: Progress) -> tuple[int, dict[str, str]]:
    """Size in bytes, and name of the sum -> the sum in hex."""
    return sums_of(file, ("sha256", "md5"), partial(tell, "check download"))


def _check_archive(
    artefact: Artefact, url: str, noted: Path, sums: dict[str, str], expected: str | None, is_mirror: bool
) -> None:
    """Raise FetchError unless the archive is the one that is expected; the first one of a mirror is trusted."""
    if expected is None:
        if artefact.md5 not in (None, sums["md5"]) and not is_mirror:
            raise FetchError(
                f"{shown(url)}: came with MD5 {sums['md5']}, but Paddle's own tests demand {artefact.md5}; the "
                f"download was removed; --sha256 {sums['sha256']} would accept it"
            )
    elif expected != sums["sha256"]:
        raise FetchError(
            f"{shown(url)}: came with SHA-256 {sums['sha256']}, expected is {expected} (of --sha256, or recorded in "
            f"{noted} by the first download); the download was removed"
        )


def _located(artefact: Artefact, directory: Path, source: str) -> tuple[Path, ...]:
    """Where what the artefact promises is; archives differ in having the top folder, or one more.

    Raises FetchError telling what was expected and what is there.
    """
    wanted = [PurePosixPath(path) for path in artefact.holds]
    without_top = [PurePosixPath(*path.parts[1:]) for path in wanted]
    roots = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())]
    for paths in [wanted] + [without_top] * all(len(path.parts) > 1 for path in wanted):
        for root in roots:
            if all((root / path).exists() for path in paths):
                return tuple(root / path for path in paths)
    there = sorted(path.name for path in directory.iterdir())
    told = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    raise FetchError(f"{source}: should hold {', '.join(artefact.holds)}, but holds {told}")


def _read_record(noted: Path) -> _Record | None:
    try:
        content = json.loads(noted.read_text(encoding="utf-8"))
        if content["schema"] == _SCHEMA:
            return _Record(**content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise FetchError(
        f"{noted}: no record of this command that can be read; it knows the SHA-256 of what was fetched before"
    )


def _write_record(noted: Path, record: _Record) -> None:
    staging = noted.with_name(f".{noted.name}.part")
    try:
        staging.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        staging.replace(noted)
    finally:
        staging.unlink(missing_ok=True)
