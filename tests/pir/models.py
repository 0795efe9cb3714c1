"""Whole models exported by Paddle in its own format; run as a program it exports those named, with Paddle's outputs.

    python -m tests.pir.models DIRECTORY NAME...

As tests.pir.ops: DIRECTORY/NAME/ holds inference.json, inference.pdiparams and io.npz. Needs FLAGS_enable_pir_api=1.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.pir.ops import ran

Made = tuple[Any, list[list[int | None]], list[np.ndarray]]  # layer, declared shapes, inputs


def _image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _vision(name: str, side: int = 64, *, open_size: bool = False) -> Callable[[], Made]:
    def make() -> Made:
        from paddle.vision import models

        declared: list[int | None] = [None, 3, None, None] if open_size else [None, 3, side, side]
        return getattr(models, name)(pretrained=False, num_classes=10), [declared], [_image(2, 3, side, side)]

    return make


def _recurrent(name: str) -> Callable[[], Made]:
    def make() -> Made:
        import paddle

        class Net(paddle.nn.Layer):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layers = getattr(paddle.nn, name)(6, 8, num_layers=2, direction="bidirect")
                self.head = paddle.nn.Linear(16, 3)

            def forward(self, x: Any) -> Any:
                return self.head(self.layers(x)[0])

        return Net(), [[None, None, 6]], [_image(2, 5, 6)]

    return make


def _encoder() -> Made:
    import paddle

    layer = paddle.nn.TransformerEncoderLayer(16, 4, 32, 0.0)
    return paddle.nn.TransformerEncoder(layer, 2), [[None, 7, 16]], [_image(2, 7, 16)]


def _convolutions() -> Made:
    """A small network that converts: convolutions, batch norms, a residual, an upsampling, a head."""
    import paddle
    from paddle.nn import functional as F

    class Net(paddle.nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = paddle.nn.Sequential(
                paddle.nn.Conv2D(3, 8, 3, 2, 1), paddle.nn.BatchNorm2D(8), paddle.nn.ReLU()
            )
            self.block = paddle.nn.Sequential(paddle.nn.Conv2D(8, 8, 3, 1, 1), paddle.nn.BatchNorm2D(8))
            self.head = paddle.nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            y = self.stem(x)
            y = F.relu(self.block(y) + y)
            y = F.interpolate(y, scale_factor=2, mode="nearest")
            return self.head(paddle.flatten(F.adaptive_avg_pool2d(y, 1), 1))

    return Net(), [[None, 3, 16, 16]], [_image(2, 3, 16, 16)]


MODELS: Mapping[str, Callable[[], Made]] = {
    "convolutions": _convolutions,
    "resnet18": _vision("resnet18"),
    "resnet18_open": _vision("resnet18", open_size=True),
    "mobilenet_v1": _vision("mobilenet_v1"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "shufflenet_v2": _vision("shufflenet_v2_x0_25"),
    "squeezenet1_1": _vision("squeezenet1_1"),
    "densenet121": _vision("densenet121"),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "simple_rnn": _recurrent("SimpleRNN"),
    "encoder": _encoder,
}


def export(directory: Path, name: str) -> None:
    import paddle

    paddle.seed(1)
    layer, shapes, inputs = MODELS[name]()
    layer.eval()
    specs = [paddle.static.InputSpec(shape, "float32", f"x{number}") for number, shape in enumerate(shapes)]
    directory.mkdir(parents=True)
    paddle.jit.save(paddle.jit.to_static(layer, input_spec=specs, full_graph=True), str(directory / "inference"))
    np.savez(directory / "io.npz", **{f"x{n}": one for n, one in enumerate(inputs)}, **ran(directory, inputs))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        export(Path(sys.argv[1]) / name, name)
