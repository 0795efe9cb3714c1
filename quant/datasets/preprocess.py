"""A folder of images with a list of labels -> the image binary that evaluation reads.

Steps and constants of the seeds' full_ILSVRC2012_val_preprocess.py: shorter side to 256 (Lanczos), centre crop, RGB,
0..1, minus mean, over standard deviation, CHW. Its list format: `val/name.jpg LABEL` a line.

Images are decoded in parallel and appended in order to a part file:

    OUTPUT.part        the binary, as far as it has come
    OUTPUT.part.json   what it is made of (quant.storage.checkpoint): list, options, code; the images so far, by sizes
    and times

A run that was cut off goes on where the part file ends, by the rule of `quant.storage.checkpoint`.
"""

import json
import multiprocessing
import os
import signal
import struct
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quant.cpu import cores
from quant.errors import ChildError, DataError, OutputError, unwritable
from quant.storage.checkpoint import Beside, Journal, Tell, refusal
from quant.storage.digests import digest

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
    data_dir: Path,
    label_list: Path,
    output: Path,
    side: int = 224,
    progress: Callable[[int, int], None] | None = None,
    *,
    fresh: bool = False,
    tell: Tell | None = None,
) -> int:
    """Write `output` and return its number of images.

    `fresh` starts anew, whatever a run that was cut off has left; `tell` hears of what is gone on with. Raises
    DataError for a bad list or image, OptionError for what was left by a run over other images or with other options,
    OutputError when `output` exists or can't be written.
    """
    if output.exists():
        raise OutputError(f"{output}: exists already; nothing was written")
    entries = read_list(data_dir, label_list)
    part = output.with_name(f"{output.name}.part")
    plan = _Plan(data_dir, entries, part, side)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = Beside(plan.left, plan.there, plan.discard)
        with (
            Journal(plan.noted, plan.about(), fresh=fresh, tell=tell, beside=beside) as journal,
            part.open("r+b" if part.exists() else "w+b") as file,
            ProcessPoolExecutor(cores(), initializer=_end_with_parent) as pool,
        ):
            done = plan.images(journal.done)
            file.write(struct.pack("<q", len(entries)))
            file.truncate(8 + done * plan.image_bytes)
            file.seek(0, os.SEEK_END)
            while done < len(entries):
                chunk = [path for path, _ in entries[done : done + _CHUNK]]
                state = plan.state(done)
                for image in pool.map(partial(_load, side=side), chunk):
                    file.write(image.tobytes())
                file.flush()
                os.fsync(file.fileno())
                journal.add(str(done), state)
                done += len(chunk)
                if progress:
                    progress(done, len(entries))
            file.write(np.array([label for _, label in entries], "<i8").tobytes())
            file.flush()
            part.rename(output)
    except BrokenProcessPool as error:
        raise ChildError("a process that decoded images was killed; where nobody did that, memory ran out") from error
    except OSError as error:
        raise unwritable(output, error) from error
    return len(entries)


class _Plan:
    """What is to be made, and what of it is there; `images` are counted from the first, `_CHUNK` at a time."""

    def __init__(self, data_dir: Path, entries: Sequence[tuple[Path, int]], part: Path, side: int) -> None:
        self.data_dir, self.entries, self.part, self.side = data_dir, entries, part, side
        self.noted = part.with_name(f"{part.name}.json")
        self.image_bytes = 3 * side * side * 4

    def about(self) -> dict[str, Any]:
        """What decides every byte, beside the images."""
        names = [(str(path.relative_to(self.data_dir)), label) for path, label in self.entries]
        return {
            "--data-dim": self.side,
            "--label-list": digest([json.dumps(names)]),
            "mean": MEAN.ravel().tolist(),
            "deviation": DEVIATION.ravel().tolist(),
            "shorter side": SHORT_SIDE,
            "code": digest([Path(__file__)]),
            "Pillow": version("pillow"),
        }

    def state(self, first: int) -> str:
        """Of a chunk's images: what stays the same while they do."""
        found = [path.stat() for path, _ in self.entries[first : first + _CHUNK]]
        return digest([json.dumps([(one.st_size, one.st_mtime_ns) for one in found])])

    def images(self, done: Mapping[str, Any]) -> int:
        """How many images are there, of those that a journal knows."""
        size = self.part.stat().st_size - 8 if self.part.exists() else 0
        stored = min(max(size, 0) // self.image_bytes, len(self.entries))
        noted = (start for start in range(0, len(self.entries), _CHUNK) if str(start) not in done)
        return min(stored if stored == len(self.entries) else stored // _CHUNK * _CHUNK, next(noted, stored))

    def left(self, done: Mapping[str, Any]) -> str:
        count = self.images(done)
        if any(done[str(start)] != self.state(start) for start in range(0, count, _CHUNK)):
            raise refusal(self.noted, ["images"])
        return f"{count:,} images" if count else ""

    def there(self) -> bool:
        return self.part.exists() and self.part.stat().st_size > 0

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)


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
