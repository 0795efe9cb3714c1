"""Places on disk: outputs that are whole or absent, whoever else writes them, and nothing left of what was cut off."""

import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from quant.errors import OutputError, unwritable

__all__ = [
    "fresh_dir",
    "fresh_file",
    "scratch_dir",
    "sole_writer",
    "sweep",
    "taken",
    "writable_dir",
    "write_text",
]


def writable_dir(path: Path) -> Path:
    """A directory that files can be put into, made where it is missing. Raises OutputError before any work is done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise unwritable(path, error) from error


# --- what is being made, and isn't yet what it is to be


@cache
def _making_mark() -> str:
    """What stands in the name of what will be renamed, behind the name that it gets.

    It tells this running kernel from others: locks need not reach beyond it, where several machines share a directory.
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        kernel = "0" * 8
    return f".making-{kernel}-"


@contextmanager
def _making(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """What `make` makes beside `target`, gone when the block ends unless it has been renamed by then.

    Its maker holds a lock on it. Who comes later for the same target so knows what killed processes have left.
    """
    sweep(target)
    lock = -1
    while lock < 0:
        place = target.with_name(f".{target.name}{_making_mark()}{secrets.token_hex(4)}")
        try:
            make(place)
        except FileExistsError:
            continue
        lock = _hold(place)
    try:
        yield place
    finally:
        _remove(place)
        os.close(lock)


def _hold(place: Path) -> int:
    """A descriptor that holds the lock on a file or directory; -1 where somebody swept it before."""
    try:
        lock = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return -1
    with suppress(OSError):  # a file system without locks: nobody can sweep there
        fcntl.flock(lock, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(lock), place.stat()):
            return lock
    os.close(lock)
    return -1


def sweep(target: Path) -> None:
    """Remove what processes of this machine that are gone were making of `target`."""
    for name in glob.iglob(f".{glob.escape(target.name)}{_making_mark()}????????", root_dir=target.parent):
        with suppress(OSError):  # gone meanwhile, somebody else's, or held by its maker
            lock = os.open(target.parent / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(target.parent / name)
            finally:
                os.close(lock)


def _remove(place: Path) -> None:
    """A file or directory, where that can be done: on a read-only place, that there is nothing isn't what is told."""
    with suppress(OSError):
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink()


@contextmanager
def scratch_dir(name: str) -> Iterator[Path]:
    """A directory for temporary files, gone when the block ends. Raises OutputError when there can be none."""
    with ExitStack() as stack:
        try:
            making = _making(Path(tempfile.gettempdir(), name), partial(Path.mkdir, mode=0o700))
            place = stack.enter_context(making)
        except OSError as error:
            raise unwritable("the directory of temporary files (TMPDIR)", error) from error
        yield place


@contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """A place for a file that becomes `path` when the block ends well; what is there stays whole until then.

    The block writes to the empty file that is there. Nothing is left on an error. Several processes may do so at once:
    one of their files stays. Raises OutputError.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: can't be written (it exists and is no file)")
    try:
        with _making(path, partial(Path.touch, exist_ok=False)) as staging:
            yield staging
            staging.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a file that is whole or absent; one that is there is replaced at once. Raises OutputError."""
    with fresh_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Only one process at a time is inside, of all that ask for it: to find a free name in a directory, and take it."""
    place = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


@contextmanager
def fresh_dir(output: Path, *, replace: bool = False) -> Iterator[Path]:
    """A staging directory that becomes `output` when the block ends well; on an error nothing is left.

    With `replace` what is there is whole until then, and gone afterwards: two renames, between which it is neither.
    Raises OutputError when `output` is a file, isn't empty (without `replace`), or its parent can't be written.
    """
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not replace)):
        raise OutputError(f"{output}: exists and is not an empty directory; nothing was written")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _making(output, Path.mkdir) as staging:
            try:
                yield staging
            except OutputError as error:  # a person knows the place by the name it was to get
                raise OutputError(str(error).replace(str(staging), str(output))) from error
            if output.exists() and replace:
                with _making(output, Path.mkdir) as former:
                    output.rename(former / output.name)
                    try:
                        staging.rename(output)
                    except OSError:
                        (former / output.name).rename(output)
                        raise
            else:
                if output.exists():
                    output.rmdir()
                staging.rename(output)
    except OSError as error:
        raise unwritable(output, error) from error


def taken(file: IO[Any]) -> bool:
    """Whether an open file is this process's alone now, of all that ask; without locks in the file system it is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
