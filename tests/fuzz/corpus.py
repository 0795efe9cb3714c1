"""The files that mutations start from: embedded models at three precisions, data in every format, and what this project
writes itself. Made anew for each harness, so that nothing here depends on what another test left.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quant.datasets.columns import Ragged
from quant.datasets.readers import open_data, write_bin
from quant.ir.graph import save_dir
from tests.nets import residual_net
from tests.runs import accuracy, run, speed

__all__ = ["MODELS", "QAT", "TUNE", "EmbeddedModel", "copy", "listing", "write_corpus"]

_LINKED = 1 << 16  # bytes from which a file is linked and not copied


@dataclass(frozen=True)
class EmbeddedModel:
    """A model of the corpus: who writes FP32, its data and their format, samples for calibration and for tests."""

    function: str
    row: str
    write: str
    format: str
    data: str
    samples: tuple[int, int] = (8, 4)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--data", f"data/{self.data}", "--format", self.format)


MODELS: Mapping[str, EmbeddedModel] = {
    "image": EmbeddedModel(
        "fixtures.models:export_small", "mobilenet_v1", "fixtures.digits:write_images", "images", "images.bin"
    ),
    "gru": EmbeddedModel("fixtures.lac:export", "gru", "fixtures.lac:write_sentences", "lac", "test.tsv"),
    "lstm": EmbeddedModel(
        "fixtures.handwriting_model:export",
        "lstm",
        "fixtures.handwriting_model:write_records",
        "handwriting",
        "records",
    ),
    "ernie": EmbeddedModel(
        "fixtures.ernie:export_small", "ernie", "fixtures.ernie:write_pairs_of", "pairs", "pairs.bs1"
    ),
}
_NET = 40  # samples of the network that most of the quick commands run on

MANIFEST = """# Two models, so that what is wrong with one can be told from what is wrong with both.
[[model]]
name = "made"
title = "Made here"
fp32 = "net/fp32"
calibration = "data/calibration.npz"
data = "data/test.npz"
metric = ["top1", "top5"]
algo = "avg"
batch_sizes = [1]
threads = 1
thresholds = { drop = { top1 = 0.5, top5 = 0.5 }, floor = 0.1 }
op_ids_to_skip = [0]

[[model]]
name = "given"
fp32 = "net/fp32"
quant = "net/quant"
int8 = "net/int8"
data = "data/test.npz"
format = "npz"
batch_size = 10
precisions = ["fp32", "quant", "int8"]

[model.thresholds]
drop = 0.5
int8_share = 0.5
speedup = { avx2 = 0.001, avx512_core = 0.001, avx512_vnni = 0.001, amx = 0.001 }
"""

Command = Callable[..., object]
Job = Callable[[str, Mapping[str, Any]], None]


def write_corpus(root: Path, job: Job, command: Command) -> None:
    """Write it into the working directory `root`. `job` runs a job of a child's, `command` the command line."""
    (root / "data").mkdir(parents=True)
    for name, model in MODELS.items():
        for split, count in zip(("calibration", "test"), model.samples, strict=True):
            place = root / "data" / (model.data if split == "test" else f"calibration-{model.data}")
            given = {"function": model.write, "split": split, "count": count, "output": str(place)}
            job("quant.suites.commands:write_data", given)
        (root / name).mkdir()
        how = {"format": model.format, "full_input": "", "algo": "avg", "weight_levels": {"": 127}}
        data = str(root / "data" / f"calibration-{model.data}")
        made = {"function": model.function, "name": model.row, "output": str(root / name), "data": data}
        job("quant.suites.commands:prepare", {**made, **how})
    _write_words(root / "data")
    _write_net(root)
    _write_photos(root / "photos")
    (root / "quant.toml").write_text(MANIFEST, encoding="utf-8")
    (root / "config.json").write_text(
        json.dumps({"weight_bits": 8, "moving_rate": 0.9, "quantize_op_types": ["conv2d"]})
    )
    _write_runs(root)
    net = ("--model", "net/fp32", "--data", "data/calibration.npz")
    made = (
        ("ptq", *net, "--output", "net/quant", "--save-calibration-table", "table.txt"),
        ("convert", "--quant-model-path", "net/quant", "--int8-model-save-path", "net/int8"),
        ("eval", "--model", "net/int8", "--precision", "int8", "--data", "data/test.npz"),
        ("qat", *net[:2], "--data", "data/test.npz", "--output", "trained", *QAT),
        ("tune", *TUNE),
        ("suite", "--manifest", "quant.toml", "--output-dir", "out", "--history", "measured"),
    )
    for argv in made:
        command(*argv)


QAT = ("--steps", "1", "--batch-size", "8", "--checkpoint", "checkpoint.npz")
TUNE = (
    *("--fp32-model", "net/fp32", "--calibration", "data/calibration.npz", "--data", "data/test.npz"),
    *("--output", "tuned", "--time-budget", "1", "--max-drop", "0"),
)


def _write_words(data: Path) -> None:
    """`GRU_eval_data`: the words of LAC's sentences as ids."""
    from quant.datasets.formats import write_lac_bin

    sentences = open_data(data / MODELS["gru"].data, {"words": ((), "int64")})
    words, tags = sentences.inputs["words"], sentences.labels
    assert isinstance(words, Ragged) and isinstance(tags, Ragged)
    write_lac_bin(data / "words", ((words.sequence(i), tags.sequence(i)) for i in range(len(words))))


def _write_net(root: Path) -> None:
    """A small residual network, with calibration and test data in two formats."""
    (root / "net" / "fp32").mkdir(parents=True)
    save_dir(residual_net(), root / "net" / "fp32")
    random = np.random.default_rng(0)
    images = random.standard_normal((2 * _NET, 8, 8, 8)).astype(np.float32)
    labels = random.integers(0, 6, 2 * _NET)
    np.savez(root / "data" / "calibration.npz", x=images[:_NET], label=labels[:_NET])
    np.savez(root / "data" / "test.npz", x=images[_NET:], label=labels[_NET:])
    write_bin(root / "data" / "test.bin", iter([(images[_NET:], labels[_NET:])]), _NET)


def _write_photos(place: Path) -> None:
    place.mkdir()
    random = np.random.default_rng(0)
    names = ("a.png", "b.jpg", "c.gif", "d.bmp", "e.tif")
    for name in names:
        Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(place / name)
    (place / "val_list.txt").write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))


def _write_runs(root: Path) -> None:
    """A history of two runs."""
    (root / "history").mkdir()
    for day, kind in (("20", "gate"), ("21", "suite")):
        records = [*accuracy("resnet50", samples=50), *accuracy("gru", samples=50)]
        timed = speed("resnet50", 3.5, rounds=6)
        found = run(records, timed, started=f"2026-11-{day}T21:57:09+00:00", kind=kind)
        (root / "history" / f"202611{day}T215709Z-19e416a-{kind}.json").write_text(found.to_json())
    shutil.copy(root / "history" / "20261121T215709Z-19e416a-suite.json", root / "report.json")


def copy(corpus: Path, place: Path) -> None:
    """The corpus as a working directory of its own; large files, which no command writes to, are linked."""

    def one(source: str, target: str) -> None:
        if os.stat(source).st_size >= _LINKED:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(corpus, place, copy_function=one)


def listing(place: Path) -> set[str]:
    """All that is below a directory."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}
