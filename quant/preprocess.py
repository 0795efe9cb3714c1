"""A folder of images with a list of labels -> the image binary that evaluation reads.

Steps and constants of the seeds' full_ILSVRC2012_val_preprocess.py: shorter side to 256 (Lanczos), centre crop, RGB,
0..1, minus mean, over standard deviation, CHW. Its list format: `val/name.jpg LABEL` a line.

Images are decoded in parallel and appended in order to a part file. A run that is cut off goes on where the part
file ends, as long as list and size are the same.
"""

import itertools
import multiprocessing
import os
import signal
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quant.cpu import cores
from quant.errors import ChildError, DataError, OutputError, unwritable
from quant.places import taken

__all__ = ["preprocess", "read_list"]

SHORT_SIDE = 256
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
_CHUNK = 64
_DIGITS = 18  # of a label, which is stored as int64


def read_list(data_dir: Path, label_list: Path) -> list[tuple[Path, int]]:
    """The images and labels of a list. Raises DataError naming the file and line."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such image directory")
    try:
        lines = label_list.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{label_list}: can't be read as a list of images ({error})") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal() or len(label) > _DIGITS:
            raise DataError(f"{label_list}:{number}: not 'path label' with a label of 0 or more: {line.strip()[:80]!r}")
        path = data_dir / name.strip()
        if not os.path.isfile(path):  # false also for what no file could be called
            raise DataError(f"{label_list}:{number}: no such image {str(path)[:200]}")
        entries.append((path, int(label)))
    if not entries:
        raise DataError(f"{label_list}: lists no image")
    return entries


def _load(path: Path, side: int) -> NDArray[np.float32]:
    """One image, float32 [3, side, side]."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:  # Pillow's, of what it then refuses
            scale = SHORT_SIDE / min(image.size)
            # A side beyond 256 (--data-dim 299, say) needs a larger shorter side; the ratio stays 256 : 224.
            scale *= max(1.0, side / 224)
            resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
            left, top = round((resized.width - side) / 2), round((resized.height - side) / 2)
            pixels = np.asarray(resized.crop((left, top, left + side, top + side)).convert("RGB"), np.float32)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({str(error).splitlines()[0]})") from error
    return (pixels.transpose(2, 0, 1) / np.float32(255) - MEAN) / DEVIATION


def preprocess(
    data_dir: Path, label_list: Path, output: Path, side: int = 224, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write `output` and return its number of images.

    Raises DataError for a bad list or image, OutputError when `output` exists or can't be written.
    """
    if output.exists():
        raise OutputError(f"{output}: exists already; nothing was written")
    entries = read_list(data_dir, label_list)
    part = output.with_name(f"{output.name}.part")
    image_bytes = 3 * side * side * 4
    head = struct.pack("<q", len(entries))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            part.open("r+b" if part.exists() else "w+b") as file,
            ProcessPoolExecutor(cores(), initializer=_end_with_parent) as pool,
        ):
            if not taken(file):
                raise OutputError(f"{part}: another run is writing there")
            done = _resumable(part, head, image_bytes, len(entries), label_list)
            file.write(head)
            file.truncate(8 + done * image_bytes)
            file.seek(0, os.SEEK_END)
            paths = (path for path, _ in entries[done:])
            for chunk in _chunks(paths):
                for image in pool.map(partial(_load, side=side), chunk):
                    file.write(image.tobytes())
                    done += 1
                file.flush()
                if progress:
                    progress(done, len(entries))
            file.write(np.array([label for _, label in entries], "<i8").tobytes())
        part.rename(output)
    except BrokenProcessPool as error:
        raise ChildError("a process that decoded images was killed; where nobody did that, memory ran out") from error
    except OSError as error:
        raise unwritable(output, error) from error
    return len(entries)


def _end_with_parent() -> None:
    """In a process that decodes: Ctrl-C is the parent's affair, and its end is this one's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _chunks(paths: Iterator[Path]) -> Iterator[list[Path]]:
    while chunk := list(itertools.islice(paths, _CHUNK)):
        yield chunk


def _resumable(part: Path, head: bytes, image_bytes: int, count: int, label_list: Path) -> int:
    """How many images of an earlier run can be kept: none when the list is newer or of another length."""
    if not part.exists() or part.stat().st_mtime < label_list.stat().st_mtime:
        return 0
    with part.open("rb") as file:
        if file.read(8) != head:
            return 0
    return min((part.stat().st_size - 8) // image_bytes, count)
