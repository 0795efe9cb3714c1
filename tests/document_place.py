"""What a reader of the documents has: a directory with models and data, and values in a program."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from PIL import Image

from quant.datasets.readers import write_bin
from quant.ir.graph import load_dir, run_passes, save_dir
from quant.ir.passes import NORMALISE
from quant.runtime.predictor import Predictor

__all__ = ["VALUES", "Small", "write_images", "write_model", "write_place"]

_SIDE = 32
_AUTHOR = ("-c", "user.name=Reader", "-c", "user.email=reader@localhost")


class Small(nn.Layer):  # type: ignore[misc]
    """Reads images of any size from 16 x 16, and is quick."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2D(3, 16, 7, 8, 3), nn.Conv2D(16, 16, 3, 2, 1)
        self.last = nn.Linear(16, 10)

    def forward(self, image: object) -> object:
        x = nn.functional.relu(self.conv(nn.functional.relu(self.stem(image))))
        return self.last(paddle.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def write_model(directory: Path, side: int, exported: Path) -> None:
    """An FP32 model of one input, `image` [N, 3, side, side]; `exported`: where Paddle's own export may lie."""
    paddle.disable_static()
    paddle.seed(0)
    layer = Small()
    layer.eval()
    spec = [paddle.static.InputSpec([None, 3, side, side], "float32", "image")]
    exported.mkdir()
    paddle.jit.save(paddle.jit.to_static(layer, full_graph=True, input_spec=spec), str(exported / "inference"))
    directory.mkdir(parents=True)
    save_dir(run_passes(load_dir(exported), NORMALISE), directory)


def write_images(directory: Path, count: int = 12) -> list[str]:
    """ImageNet's layout: directory/val/*.jpg, and val_list.txt with a line `path label` an image; the paths."""
    (directory / "val").mkdir(parents=True)
    random, names = np.random.default_rng(0), []
    for number in range(count):
        names.append(f"val/ILSVRC2012_val_{number + 1:08d}.jpg")
        pixels = np.kron(random.integers(0, 256, (8, 10, 3)), np.ones((32, 32, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(directory / names[-1])
    lines = [f"{name} {number % 10}\n" for number, name in enumerate(names)]
    (directory / "val_list.txt").write_text("".join(lines))
    return names


def write_place(root: Path, exported: Path) -> None:
    """fp32/ and models/resnet50, one small network; train.bin, val.bin (also below data/), labelled as FP32 says;
    classes/ (one .npy a class), imagenet_user/, config.json; all in a git repository with the branch origin/main."""
    write_model(root / "fp32", _SIDE, exported)
    (root / "models").mkdir()
    save_dir(load_dir(root / "fp32"), _made(root / "models" / "resnet50"))
    (root / "data").mkdir()
    (root / "classes").mkdir()
    random = np.random.default_rng(0)
    with Predictor(root / "fp32") as predictor:
        for name in ("train", "val"):
            images = random.standard_normal((400, 3, _SIDE, _SIDE)).astype(np.float32)
            [scores] = predictor({"image": images}).values()
            ahead = np.diff(np.sort(scores)[:, -2:])[:, 0]  # of the second class
            clear = np.argsort(ahead)[-96:]  # what INT8 can't mistake
            images, scores = images[clear], scores[clear]
            for file in (root / f"{name}.bin", root / "data" / f"{name}.bin"):
                write_bin(file, iter([(images, scores.argmax(1))]), len(images))
    for label in (0, 1):
        np.save(root / "classes" / f"{label}.npy", images[label::2])
    write_images(root / "imagenet_user")
    for command in (
        "init --quiet",
        "commit --quiet --allow-empty --message first",
        "update-ref refs/remotes/origin/main HEAD",
    ):
        subprocess.run(["git", *_AUTHOR, *command.split()], cwd=root, check=True)
    (root / "config.json").write_text(json.dumps({"weight_bits": 8, "quantize_op_types": ["conv2d", "mul"]}))


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


class _Programs:
    """A training program, and its test twin, as a reader has them."""

    def __init__(self) -> None:
        paddle.enable_static()
        self.train, self.start = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(self.train, self.start):
            self.image = paddle.static.data("image", [-1, 3, _SIDE, _SIDE])
            label = paddle.static.data("label", [-1, 1], "int64")
            hidden = nn.functional.relu(paddle.static.nn.conv2d(self.image, 8, 3))
            self.logits = paddle.static.nn.fc(hidden, 10)
            self.loss = paddle.mean(nn.functional.cross_entropy(self.logits, label))
            self.test = self.train.clone(for_test=True)
            paddle.optimizer.SGD(0.01).minimize(self.loss)
        self.engine = paddle.static.Executor()
        self.engine.run(self.start)


_programs: list[_Programs] = []


def _program() -> _Programs:
    if not _programs:
        _programs.append(_Programs())
    return _programs[0]


def _images(count: int = 8) -> Any:
    return np.random.default_rng(1).standard_normal((count, 3, _SIDE, _SIDE)).astype(np.float32)


def _layer() -> Any:
    paddle.disable_static()
    return Small()


def _fit(model: Any) -> None:
    """Two steps of training, of a program or a layer."""
    labels = np.arange(8).reshape(8, 1) % 10
    if isinstance(model, nn.Layer):
        optimizer = paddle.optimizer.SGD(0.01, parameters=model.parameters())
        for _ in range(2):
            nn.functional.cross_entropy(model(paddle.to_tensor(_images())), paddle.to_tensor(labels)).backward()
            optimizer.step()
            optimizer.clear_grad()
        return
    for _ in range(2):
        feed = {"image": _images(), "label": labels}
        _program().engine.run(model, feed=feed, fetch_list=[_program().loss.name])


# The values that documents' programs read without making them.
VALUES: dict[str, Callable[[], Any]] = {
    "batches": lambda: [{"image": _images()}, {"image": _images()}],
    "images": _images,
    "train_program": lambda: _program().train,
    "test_program": lambda: _program().test,
    "image": lambda: _program().image,
    "logits": lambda: _program().logits,
    "layer": _layer,
    "fit": lambda: _fit,
}
