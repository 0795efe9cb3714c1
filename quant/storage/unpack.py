"""An archive of unknown origin -> files in a directory. .tar, .tar.gz and .zip, told by content and not by name.

Only plain files and directories come out, with the user's own permissions and the present time. Refused are: names that
lead out of the directory, links of both kinds (followed later they would lead out of it too), devices, a name that
comes twice, and archives that unpack to more than was allowed. Bytes are counted as they are written, because what an
archive says of itself may be a lie.
"""

import gzip
import hashlib
import io
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple, TypeVar, cast

from quant.errors import FetchError, OutputError

__all__ = ["MAX_BYTES", "MAX_MEMBERS", "unpack"]

MAX_BYTES = 20 * 10**9
MAX_MEMBERS = 10_000  # a model of the seeds' time has a file a parameter: a few hundred
_CHUNK = 1 << 20

# What the readers raise on damaged files: tarfile, zipfile and zlib let some of the general ones through.
_DAMAGE = (
    gzip.BadGzipFile,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    ValueError,
)
_T = TypeVar("_T")


class _Member(NamedTuple):
    """A file or directory: `size` is what the archive says; `chunks` are the contents, None for a directory."""

    name: str
    size: int
    chunks: Iterator[bytes] | None


class _Metered(io.BufferedIOBase):
    """A file for tarfile that refuses to give much at once.

    Contents are read in chunks, so only a header that claims to be gigabytes long asks for more, and tarfile would hold
    all of it in memory.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int | None = -1, /) -> bytes:
        if count is None or not 0 <= count <= _CHUNK:
            raise tarfile.TarError("a header of more than a megabyte")
        return self._file.read(count)

    def seek(self, position: int, whence: int = 0, /) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()


def unpack(
    archive: Path,
    directory: Path,
    source: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Unpack into `directory`, which exists and is empty: relative path -> SHA-256 of each file, in hex.

    `source` is the archive's name for messages; `progress` is told how many of the archive's bytes are done, and all.
    Raises FetchError when the archive is damaged or refused, OutputError when the disk has no room for it, OSError when
    the directory can't be written. What was written until then stays there: the caller discards the directory.
    """
    room, total = shutil.disk_usage(directory).free, archive.stat().st_size
    sums: dict[str, str] = {}
    directories: set[PurePosixPath] = set()
    written = 0

    def check_room(more: int) -> None:
        if written + more > max_bytes:
            raise FetchError(f"{source}: refused, it unpacks to more than {max_bytes:,} bytes")
        if written + more > room:
            raise OutputError(f"{directory.parent}: disk full: {source} unpacks to more than the {room:,} bytes free")

    with archive.open("rb") as file:
        for number, member in enumerate(_told(_members(file, source, max_bytes), source), 1):
            if number > max_members:
                raise FetchError(f"{source}: refused, it holds more than {max_members:,} files")
            path, is_file = _inner_path(member.name, source), member.chunks is not None
            if any(str(place) in sums for place in (path, *path.parents)) or (is_file and path in directories):
                raise FetchError(f"{source}: refused, {member.name!r} comes twice")
            directories |= {*path.parents} if is_file else {path, *path.parents}
            if member.chunks is None:
                (directory / path).mkdir(parents=True, exist_ok=True)
                continue
            check_room(member.size)  # before anything of it is written
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with (directory / path).open("xb") as output:
                for chunk in _told(member.chunks, source):
                    check_room(len(chunk))
                    output.write(chunk)
                    digest.update(chunk)
                    written += len(chunk)
                    if progress:
                        progress(min(file.tell(), total), total)
            sums[str(path)] = digest.hexdigest()
    if not sums:
        raise FetchError(f"{source}: holds no file")
    return sums


def _told(items: Iterable[_T], source: str) -> Iterator[_T]:
    """The items; what their reader raises on damage becomes one FetchError."""
    try:
        yield from items
    except _DAMAGE as error:
        told = str(error).strip() or type(error).__name__
        raise FetchError(f"{source}: damaged, or not a tar, tar.gz or zip archive ({told})") from error


def _inner_path(name: str, source: str) -> PurePosixPath:
    """The path below the directory that a member's name stands for. Raises FetchError when it would be outside."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise FetchError(f"{source}: refused, {name!r} leads out of the archive")
    return path


def _members(file: BinaryIO, source: str, max_bytes: int) -> Iterator[_Member]:
    """The archive's members in order; each is to be read before the next is asked for."""
    magic = file.read(2)
    file.seek(0)
    if magic == b"PK":
        yield from _zip_members(file, source)
    elif magic == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=file) as plain:
            yield from _tar_members(cast(IO[bytes], plain), source, max_bytes)
    else:
        yield from _tar_members(file, source, max_bytes)


def _tar_members(file: IO[bytes], source: str, max_bytes: int) -> Iterator[_Member]:
    with tarfile.open(fileobj=_Metered(file), mode="r:") as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()):
                raise FetchError(f"{source}: refused, {member.name!r} is {_kind(member)}")
            if member.size < 0:
                raise tarfile.TarError(f"{member.name!r} has a negative size")
            yield _Member(member.name, member.size, _tar_chunks(archive, member) if member.isreg() else None)
    rest = 0  # to the end, where gzip has its checksum
    while chunk := file.read(_CHUNK):
        rest += len(chunk)
        if rest > max_bytes:
            raise tarfile.TarError("padded without end")


def _tar_chunks(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    content = archive.extractfile(member)
    assert content is not None  # as it is for other kinds than files
    while chunk := content.read(_CHUNK):
        yield chunk


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    return "a device or pipe" if member.isdev() else "neither file nor directory"


def _zip_members(file: BinaryIO, source: str) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 when made on a system without modes
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise FetchError(f"{source}: refused, {info.filename!r} is a link or device")
            yield _Member(info.filename, info.file_size, None if info.is_dir() else _zip_chunks(archive, info))


def _zip_chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as content:
        while chunk := content.read(_CHUNK):
            yield chunk
