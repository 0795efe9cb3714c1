"""The models that the suite knows, one row each, with the seeds' published figures. Nothing else names a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from quant.errors import check_choice

__all__ = ["MODELS", "ModelSpec", "Published", "find"]


@dataclass(frozen=True)
class Published:
    """The seeds' figures on a Xeon Gold 6271 (VNNI): top-1 in percent, and INT8 / FP32 images per second, 1 core."""

    fp32_top1: float | None = None
    int8_top1: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """One row.

    `small` and `full` name functions (name, directory) that write the trained small model and the full-size one;
    `data` names a function (split, count, path) that writes labelled images. Calibration and test data are two
    columns, so sharing one would show here. `algo` is the calibration algorithm; `max_drop` the accepted loss of
    `metric`, FP32 to INT8; `max_engine_gap` that between simulation and INT8; `floor` what FP32 must reach;
    `min_int8_share` of the multiply-accumulates; `min_ratio`: tier -> FP32 / INT8 latency to reach, full size,
    batch 1, one thread.
    """

    name: str
    title: str
    published: Published
    min_ratio: Mapping[str, float]
    small: str = "fixtures.models:export_small"
    full: str = "fixtures.models:export_full"
    data: str = "fixtures.digits:write_images"
    calibration: tuple[str, int] = ("calibration", 500)
    test: tuple[str, int] = ("test", 2000)
    algo: str = "mse"
    metric: str = "top1"
    max_drop: float = 0.005
    max_engine_gap: float = 0.003
    floor: float = 0.75
    min_int8_share: float = 0.98


def _floors(vnni: float) -> dict[str, float]:
    """Never slower than FP32 anywhere; with VNNI at least `vnni` times as fast, and with AMX no less."""
    return {"avx2": 1.0, "avx512_core": 1.0, "avx512_vnni": vnni, "amx": vnni}


# Figures: seeds "X86 CPU deployment" (accuracy and performance on Xeon Gold 6271); GoogLeNet from "SLIM QAT on INT8
# MKL-DNN", which gives fake-quantized and INT8 accuracy only, and no speed.
MODELS: tuple[ModelSpec, ...] = (
    ModelSpec("resnet50", "ResNet-50", Published(76.63, 76.50, 3.78), _floors(3.0)),
    ModelSpec("resnet101", "ResNet-101", Published(77.50, 77.60, 3.68), _floors(3.0)),
    ModelSpec("mobilenet_v1", "MobileNet-V1", Published(70.78, 70.74, 2.92), _floors(2.8)),
    ModelSpec("mobilenet_v2", "MobileNet-V2", Published(71.90, 72.21, 2.32), _floors(1.4)),
    ModelSpec("vgg16", "VGG16", Published(72.08, 71.74, 3.07), _floors(2.8)),
    ModelSpec("vgg19", "VGG19", Published(72.57, 72.12, 3.21), _floors(2.8)),
    ModelSpec("googlenet", "GoogLeNet", Published(70.40, 70.39, None), _floors(2.5)),
)


def find(name: str) -> ModelSpec:
    """The row of that name. Raises OptionError with the nearest name."""
    check_choice("model", name, (spec.name for spec in MODELS))
    return next(spec for spec in MODELS if spec.name == name)
