"""What is compared, as data: engines, contenders (an engine at a precision), and the goals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from quant import cpu

__all__ = [
    "CONTENDERS",
    "ENGINES",
    "GOALS",
    "Contender",
    "Engine",
    "Goal",
    "contenders_of",
    "engine_of",
    "ours",
    "twins_of",
]

Precision = Literal["int8", "fp32", "bf16"]


@dataclass(frozen=True)
class Engine:
    """Something that runs models.

    `packages`: distributions that it needs, whose versions the report names. `module` has `load` (see
    protocol.Session). `form`: what of a row it runs, see models.Artefacts. `capped_by`: the environment variable that
    caps its instruction set, or None where it has none, so that it runs uncapped. `notes` go into the report.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    module: str
    form: Literal["ours", "qdq", "own", "openvino", "onnxruntime"]
    capped_by: str | None = None
    notes: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Packages that aren't installed."""
        return [name for name in self.packages if _version(name) is None]

    def versions(self) -> dict[str, str]:
        return {name: _version(name) or "not installed" for name in self.packages}

    def environment(self, isa: str | None) -> dict[str, str]:
        """What caps it to an ISA. Every engine's name for that is oneDNN's."""
        settings = cpu.isa_environment(isa)
        return {self.capped_by: next(iter(settings.values()))} if self.capped_by and settings else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Contender:
    """An engine at a precision. `settings` go to the engine's `load`; `needs`: CPU flags of which one must be there.

    `judged`: whether it is ours, and so is what the goals are about. `twin_of`: the key of a contender that this one is
    over again, in a process of its own: how far apart the two are is what this measurement can't tell apart.
    """

    engine: str
    precision: Precision
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    judged: bool = False
    variant: str = ""  # tells contenders of one engine and precision apart
    twin_of: str = ""

    @property
    def key(self) -> str:
        return "-".join(part for part in (self.engine, self.variant, self.precision) if part)


@dataclass(frozen=True)
class Goal:
    """Our INT8 latency / a peer's: at most `each` on every row, and `mean` as geometric mean of the rows."""

    peer: str
    each: float
    mean: float


ENGINES: tuple[Engine, ...] = (
    Engine("ours", "ours", ("quant-onednn", "paddlepaddle"), "bench.peers.paddle_engine", "ours", "ONEDNN_MAX_CPU_ISA"),
    Engine(
        "paddle",
        "Paddle on our simulation",
        ("paddlepaddle",),
        "bench.peers.paddle_engine",
        "qdq",
        "ONEDNN_MAX_CPU_ISA",
        (
            "INT8: `enable_onednn_int8` on our fake-quantized model, so with our graph and thresholds, which flatters "
            "it; unsigned thresholds are declared as 8 bits, because Paddle refuses the 9 that they are",
            "FP32: the fastest of Paddle's own ways to run our FP32 model",
        ),
    ),
    Engine(
        "paddle-own",
        "Paddle alone",
        ("paddlepaddle",),
        "bench.peers.paddle_engine",
        "own",
        "ONEDNN_MAX_CPU_ISA",
        ("INT8: the model as it is exported, calibrated by Paddle's own tool (QDQ, avg), run by `enable_onednn_int8`",),
    ),
    Engine(
        "openvino",
        "OpenVINO",
        ("openvino", "nncf", "paddle2onnx"),
        "bench.peers.openvino_engine",
        "openvino",
        "ONEDNN_MAX_CPU_ISA",  # its own copy of oneDNN obeys it, and its own kernels ask that copy
        (
            "INT8: NNCF's post-training quantization, which leaves out recurrent layers, because OpenVINO doesn't "
            "compile its quantized LSTM and gives wrong outputs for its quantized GRU",
            "What isn't INT8 there runs in BF16 on CPUs that have it, as is OpenVINO's default, and in FP32 where it "
            "is capped to an ISA without; FP32 is forced",
        ),
    ),
    Engine(
        "onnxruntime",
        "ONNX Runtime",
        ("onnxruntime", "onnx", "paddle2onnx"),
        "bench.peers.onnxruntime_engine",
        "onnxruntime",
        None,
        ("INT8: QDQ, per channel, MinMax, after `quant_pre_process`",),
    ),
)

_BF16 = frozenset({"avx512_bf16", "amx_bf16"})

# Which of them are timed against each other, in the order of the tables' columns; twins have columns of their own.
CONTENDERS: tuple[Contender, ...] = (
    Contender("ours", "int8", "ours", judged=True),
    Contender("ours", "int8", "ours, Paddle's executor", {"executor": "paddle"}, variant="paddle"),
    Contender("paddle", "int8", "Paddle on our simulation"),
    Contender("paddle-own", "int8", "Paddle alone"),
    Contender("openvino", "int8", "OpenVINO"),
    Contender("onnxruntime", "int8", "ONNX Runtime"),
    Contender("paddle", "fp32", "ours and Paddle"),
    Contender("openvino", "fp32", "OpenVINO"),
    Contender("onnxruntime", "fp32", "ONNX Runtime"),
    Contender("paddle", "bf16", "ours and Paddle", needs=_BF16),
    Contender("openvino", "bf16", "OpenVINO", needs=_BF16),
    Contender("ours", "int8", "ours", variant="again", twin_of="ours-int8"),
    Contender("openvino", "int8", "OpenVINO", variant="again", twin_of="openvino-int8"),
    Contender("paddle", "fp32", "ours and Paddle", variant="again", twin_of="paddle-fp32"),
)

# Issue "INT8 faster than OpenVINO and ONNX Runtime": batch 1 (text rows: 50), one thread, same machine, same run.
GOALS: tuple[Goal, ...] = (
    Goal("openvino", each=1.0, mean=0.9),
    Goal("onnxruntime", each=1.0, mean=0.6),
    Goal("paddle", each=1.0, mean=0.7),
    Goal("paddle-own", each=1.0, mean=0.7),
)


def engine_of(contender: Contender) -> Engine:
    return next(engine for engine in ENGINES if engine.name == contender.engine)


def contenders_of(*precisions: Precision) -> list[Contender]:
    """Those that are compared, in the order of the tables' columns; no twins."""
    return [contender for contender in CONTENDERS if contender.precision in precisions and not contender.twin_of]


def twins_of(*precisions: Precision) -> list[tuple[Contender, Contender]]:
    """(a contender, itself over again)."""
    keyed = {contender.key: contender for contender in CONTENDERS}
    return [(keyed[twin.twin_of], twin) for twin in CONTENDERS if twin.twin_of and twin.precision in precisions]


def ours() -> list[Contender]:
    return [contender for contender in CONTENDERS if contender.judged]
