"""A file over HTTP, by as many requests as it takes: `PART` grows until it is whole, and is kept between runs.

A request for the rest names the version that was begun (If-Range with its ETag, or else its date), so a file that
changed meanwhile starts anew; so does one from a server that knows no ranges. `PART.json` tells which version it is.
Whether the bytes are the right ones is not decided here: the caller compares checksums.
"""

import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import httpx

from quant.errors import FetchError, OptionError, OutputError
from quant.storage.files import taken

__all__ = ["Patience", "begun", "download", "mirrored", "part_file", "shown"]

_LONGEST_WAIT_S = 60.0
_PASSING = frozenset({408, 425, 429})  # and 5xx: the server may do better in a while
_CAUSES: tuple[tuple[type[httpx.TransportError], str], ...] = (  # the first that fits
    (httpx.ReadTimeout, "nothing came for {timeout_s:g} s"),
    (httpx.TimeoutException, "no connection within {timeout_s:g} s"),
    (httpx.ConnectError, "no connection: {error}"),
    (httpx.ProxyError, "the proxy refuses: {error}"),
    (httpx.TransportError, "the connection was cut"),
)


@dataclass(frozen=True)
class Patience:
    """How long to try: `retries` in a row that bring nothing new, `timeout_s` without a byte, waits that double."""

    retries: int = 4
    timeout_s: float = 60.0
    first_wait_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class _Version:
    """What a part file is the beginning of. `total` in bytes; None is what the server didn't tell."""

    url: str
    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """For If-Range, which takes no weak ETags."""
        return self.modified if self.etag is None or self.etag.startswith("W/") else self.etag


class _StopError(Exception):
    """An attempt that another may go on from; `wait_s` is the server's wish."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class _ChangedError(Exception):
    """What is there can't be continued: begin at the first byte."""


def mirrored(url: str, mirror: str | None) -> str:
    """`url` with another server before its path. Raises OptionError unless `mirror` is http(s)://host[:port][/path]."""
    if mirror is None:
        return url
    try:
        base = httpx.URL(mirror)
        usable = base.scheme in ("http", "https") and bool(base.host) and not (base.query or base.fragment)
        usable = usable and (base.port or 80) < 65536
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise OptionError(f"--mirror: {mirror!r} is not http://host[:port][/path]")
    return mirror.rstrip("/") + httpx.URL(url).raw_path.decode()


def shown(url: str) -> str:
    """The address without a password that it may carry."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


@contextmanager
def part_file(part: Path) -> Iterator[BinaryIO]:
    """`part`, open for reading and writing and locked against a second download; when it is left empty, it goes.

    Unbuffered, so an interruption loses nothing. Raises OutputError when it can't be written or is in use.
    """
    parent_is_new = not part.parent.exists()
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab+", buffering=0)
    except OSError as error:
        raise OutputError(f"{part}: can't be written ({error.strerror})") from error
    with file:
        if not _lock(file, part):
            raise OutputError(f"{part}: another download is writing it")
        try:
            yield file
        except OSError as error:
            raise OutputError(f"{part}: can't be used ({error.strerror})") from error
        finally:
            if not file.seek(0, os.SEEK_END):
                part.unlink(missing_ok=True)
                _note(part).unlink(missing_ok=True)
                if parent_is_new:
                    with suppress(OSError):  # something else is in it
                        part.parent.rmdir()


def _lock(file: BinaryIO, part: Path) -> bool:
    """Whether `file` is now this process's own, and still the one at `part`: another may have just finished with it."""
    if not taken(file):
        return False
    try:
        return os.path.samestat(os.fstat(file.fileno()), part.stat())
    except FileNotFoundError:
        return False


def download(
    url: str,
    part: Path,
    file: BinaryIO,
    *,
    max_bytes: int,
    patience: Patience | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Make `file`, the open part file at `part`, the whole of `url`.

    `progress` is told what is going on, the bytes that are there, and all (0: the server doesn't tell). Raises
    FetchError when the server doesn't have it, or after `patience`; OutputError when the disk doesn't take it. Then,
    and on an interruption, the part stays and the next call goes on from it.
    """
    patience, tell = patience or Patience(), progress or (lambda what, done, total: None)
    failures, furthest = 0, file.seek(0, os.SEEK_END)
    with _client(patience.timeout_s) as client:
        while True:
            try:
                _attempt(client, url, part, file, max_bytes, tell)
            except _ChangedError:
                file.truncate(0)
            except (_StopError, httpx.TransportError) as error:
                size, why = file.seek(0, os.SEEK_END), _cause(error, patience.timeout_s)
                failures = 1 if size > furthest else failures + 1
                furthest = max(size, furthest)
                version = _read_note(part)
                total = (version.total if version else None) or 0
                if failures > patience.retries or isinstance(error, httpx.UnsupportedProtocol):
                    kept = f"; {size:,} bytes stay in {part}, the same command goes on from there" if size else ""
                    raise FetchError(f"{shown(url)}: {why}{kept}") from error
                wait = getattr(error, "wait_s", 0.0) or patience.first_wait_s * 2 ** (failures - 1)
                tell(f"{why}; trying again", size, total)
                patience.sleep(min(wait, _LONGEST_WAIT_S))
            except (httpx.HTTPError, httpx.InvalidURL) as error:  # too many redirects, say
                raise FetchError(f"{shown(url)}: {error}") from error
            except OSError as error:  # httpx has its own for the network's
                kept = "what was downloaded stays there, the same command goes on from it"
                raise OutputError(f"{part}: can't be written ({error.strerror}); {kept}") from error
            else:
                return


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # takes as long as a small download


def _client(timeout_s: float) -> httpx.Client:
    headers = {"Accept-Encoding": "identity"}  # an archive as it is, or ranges and lengths would count other bytes
    try:
        return httpx.Client(timeout=timeout_s, follow_redirects=True, headers=headers, verify=_certificates())
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise FetchError(f"the proxy that the environment names can't be used: {error}") from error


def _attempt(
    client: httpx.Client,
    url: str,
    part: Path,
    file: BinaryIO,
    max_bytes: int,
    tell: Callable[[str, int, int], None],
) -> None:
    """One request. Raises _StopError, _ChangedError or what httpx and the disk raise."""
    done, version = file.seek(0, os.SEEK_END), _read_note(part)
    if version is None or version.url != shown(url):
        version, done = _Version(shown(url)), 0
    if done and done == version.total:
        return
    headers = {"Range": f"bytes={done}-"} if done else {}
    if done and version.validator:
        headers["If-Range"] = version.validator
    with client.stream("GET", url, headers=headers) as response:
        if _is_whole(response, done):
            return
        begin, version = _beginning(response, done, version)
        total = version.total
        if max(total or 0, done) > max_bytes:
            raise FetchError(f"{version.url}: refused, it is larger than {max_bytes:,} bytes")
        if begin == 0:
            file.truncate(0)
            _note(part).write_text(json.dumps(asdict(version)))
        free = shutil.disk_usage(part.parent).free
        if total and total - begin > free:
            raise OutputError(f"{part}: disk full: {total - begin:,} more bytes are needed, {free:,} are free")
        done = begin
        tell("download", done, total or 0)
        for chunk in response.iter_raw():
            if done + len(chunk) > (max_bytes if total is None else total):
                file.truncate(0)
                raise FetchError(f"{version.url}: the server sends more than {total or max_bytes:,} bytes")
            _write(file, chunk)
            done += len(chunk)
            tell("download", done, total or 0)
    if total is not None and done != total:
        raise _StopError("the connection was cut")


def _is_whole(response: httpx.Response, done: int) -> bool:
    """Whether the server says that there is nothing after the bytes that are there."""
    return response.status_code == 416 and response.headers.get("Content-Range", "") == f"bytes */{done}"


def _beginning(response: httpx.Response, done: int, version: _Version) -> tuple[int, _Version]:
    """Where the body belongs, `done` or 0, and the version it is of.

    Raises _ChangedError when it continues something else, _StopError when another attempt may do better, FetchError
    when none will.
    """
    status, etag, modified = response.status_code, response.headers.get("ETag"), response.headers.get("Last-Modified")
    told = f"HTTP {status} {response.reason_phrase}".strip()
    if status == 200:
        return 0, _Version(version.url, etag, modified, _number(response.headers.get("Content-Length")))
    if status in (206, 416) and done:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        total = _number(found[2]) if found else None
        same = (
            status == 206
            and found is not None
            and int(found[1]) == done
            and version.total in (None, total)
            and etag in (None, version.etag)  # some servers heed Range and not If-Range
            and modified in (None, version.modified)
        )
        if not same:
            raise _ChangedError
        return done, version if version.total else _Version(version.url, version.etag, version.modified, total)
    if status in _PASSING or status >= 500:
        raise _StopError(told, float(_number(response.headers.get("Retry-After")) or 0))
    raise FetchError(f"{version.url}: {told}; --mirror asks another server for it")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _cause(error: Exception, timeout_s: float) -> str:
    for kind, told in _CAUSES:
        if isinstance(error, kind):
            return told.format(error=error, timeout_s=timeout_s)
    return str(error)


def _write(file: BinaryIO, chunk: bytes) -> None:
    """All of it: an unbuffered file may take a part, when the disk is nearly full."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def begun(part: Path) -> dict[str, str] | None:
    """What decides what a part file is the beginning of, for checkpoint.goes_on; None when that can't be read."""
    version = _read_note(part)
    return None if version is None else {"address": version.url}


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> _Version | None:
    try:
        return _Version(**json.loads(_note(part).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None  # none yet, or cut off: the part then starts anew
