"""A user's repository with a manifest: small models, data, and functions of the user's own."""

import shutil
from pathlib import Path

import numpy as np

from quant.cpu import TIERS

__all__ = ["ANY_SPEED", "CRASHES", "HANGS", "SAMPLES", "write_repository"]

SAMPLES, CALIBRATION = 600, 100
# Small models are not what INT8 is fast for.
ANY_SPEED = "thresholds.speedup = { " + ", ".join(f"{tier.name} = 0.01" for tier in TIERS) + " }"

CRASHES = """
[[model]]
name = "crashes"
fp32 = "models/fp32"
int8 = "models/int8"
reader = "own.readers:crash"
metric = "top1"
data = "test.npz"
"""

HANGS = CRASHES.replace("crashes", "hangs").replace("crash", "hang")

METRICS = '''
"""Metrics of the user's own."""


def hits(outputs, labels):
    return (outputs[0].argmax(1) == labels).astype(float)
'''

READERS = '''
"""Readers of the user's own."""

import os
import signal
import time

import numpy as np


def read(path):
    found = np.load(path)
    return {"x": found["x"]}, found["label"] if "label" in found else None


def crash(path):
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path):
    print("about to hang", flush=True)
    time.sleep(600)
'''


def write_repository(place: Path, root: Path) -> Path:
    """`root` with models/ (as tests.models makes them), test.npz and calibration.npz, apart, and the package `own`."""
    root.mkdir(exist_ok=True)
    for name in ("fp32", "quant", "int8", "other"):
        shutil.copytree(place / name, root / "models" / name)
    with np.load(place / "data.npz") as data:
        images, labels = data["x"], data["label"]
    rest = slice(CALIBRATION, CALIBRATION + SAMPLES)
    np.savez(root / "calibration.npz", x=images[:CALIBRATION])
    np.savez(root / "test.npz", x=images[rest], label=labels[rest])
    np.savez(root / "leaks.npz", x=images[CALIBRATION - 1 : CALIBRATION + 9])
    (root / "own").mkdir()
    (root / "own" / "metrics.py").write_text(METRICS)
    (root / "own" / "readers.py").write_text(READERS)
    return root
