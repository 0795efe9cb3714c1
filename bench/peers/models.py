"""A row -> what every contender runs: models, inputs, data; built once, and kept in the project's cache."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.peers.contenders import Contender, engine_of
from quant import cpu
from quant.errors import QuantError
from quant.ir.numerics import SIGNED
from quant.process import isolate
from quant.quantization import targets
from quant.results.target import Case
from quant.storage.cache import cached
from quant.suites import embedded
from quant.suites.registry import ModelSpec

__all__ = ["Artefacts", "Built", "artefacts_of", "case_of"]

_TEXT_BATCH = 50
_TIMED_SAMPLES = 300  # of a row that is timed on its data, as quant.suites.embedded.speed does it
_HERE = Path(__file__).parent
_PACKAGES = {"openvino": ("openvino", "nncf"), "onnxruntime": ("onnxruntime",)}


@dataclass(frozen=True)
class Built:
    """A model directory, or why there is none. `facts` as of protocol.Session."""

    path: str = ""
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Artefacts:
    """What is run of a row in one size.

    `models`: contender key -> its model. `data`: what is calibrated on, what accuracy is measured on, what is timed,
    each as protocol.opened reads it; None where a size isn't used for that. `fp32`: our FP32 model directory.
    """

    fp32: Path
    models: Mapping[str, Built]
    calibration: Mapping[str, Any]
    test: Mapping[str, Any] | None
    timing: Mapping[str, Any] | None
    batch: int


def case_of(spec: ModelSpec) -> Case:
    """The case that is compared: batch 1, or 50 for rows that are timed on sentences and records."""
    batch = 1 if spec.full else _TEXT_BATCH
    return next(case for case in spec.cases if case.batch == batch and case.repeat == 1 and not case.by_length)


def artefacts_of(spec: ModelSpec, contenders: Sequence[Contender], isa: str | None, *, full: bool) -> Artefacts:
    """The full-size row, which is timed, or the trained one, whose accuracy is measured; text rows have one size.

    What can't be built is told in its `Built`. Raises QuantError when our own models can't be built.
    """
    generated = full and bool(spec.full)
    base = embedded.full_of(spec) if full else embedded.small_of(spec)
    about_dir = _described(spec, base, generated)
    about = json.loads((about_dir / "about.json").read_text(encoding="utf-8"))

    def data(path: Path, format: str) -> dict[str, Any]:
        return {"path": str(path), "format": format, "signature": about["signature"]}

    if generated:
        calibration, test = data(about_dir / "calibration.npz", "npz"), None
        timing = data(about_dir / "timing.npz", "npz")
    else:
        calibration = data(embedded.data_of(spec, spec.calibration), spec.format)
        test = data(embedded.data_of(spec, spec.test), spec.format)
        timing = {**test, "samples": _TIMED_SAMPLES}
    maker = _Maker(spec, base, calibration, about, isa, generated)
    models = {contender.key: maker.of(contender) for contender in contenders}
    return Artefacts(base / "fp32", models, calibration, test, timing, case_of(spec).batch)


def _sources(*modules: str) -> list[str | bytes | Path]:
    return [_HERE / f"{module}.py" for module in modules]


def _described(spec: ModelSpec, base: Path, generated: bool) -> Path:
    arguments = {"model": str(base / "fp32"), "generated": generated, "full_input": spec.full_input}

    def build(staging: Path) -> None:
        isolate.call("bench.peers.export:describe", {**arguments, "output": str(staging)})

    return cached(f"{spec.name}-peers-about", [str(arguments), *_sources("export")], build)


@dataclass(frozen=True)
class _Maker:
    spec: ModelSpec
    base: Path
    calibration: Mapping[str, Any]
    about: Mapping[str, Any]  # of export.describe
    isa: str | None
    generated: bool

    def of(self, contender: Contender) -> Built:
        if missing := engine_of(contender).missing():
            return Built(error=f"not installed: {', '.join(missing)}")
        form = engine_of(contender).form if contender.precision == "int8" else _FLOAT_FORMS[engine_of(contender).form]
        try:
            path = _FORMS[form](self)
        except QuantError as error:
            return Built(error=str(error).removeprefix(f"{self.base / 'fp32'}: "))
        facts = path / "facts.json"
        return Built(str(path), facts=json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {})

    @property
    def levels(self) -> int:
        return targets.weight_levels(self.isa)

    @property
    def suffix(self) -> str:
        """Which of our models a tier runs; a full-size one only where it has another."""
        own = not self.generated or self.spec.differs_below_vnni
        return "-7bit" if own and not cpu.tier_of(self.isa).vnni else ""

    def kept(self, what: str, parts: list[str | bytes | Path], *steps: tuple[str, Mapping[str, Any]]) -> Path:
        """A directory that jobs build, one after the other; each gets it as its argument `output`."""

        def build(staging: Path) -> None:
            for job, arguments in steps:
                result = isolate.call(job, {**arguments, "output": str(staging)})
                if result:
                    (staging / "facts.json").write_text(json.dumps(result), encoding="utf-8")

        name = f"{self.spec.name}-peers-{what}"
        return cached(name, [str(self.base), repr([*map(repr, steps)]), *parts], build)

    def fp32(self) -> Path:
        return self.base / "fp32"

    def int8(self) -> Path:
        return self.base / f"int8{self.suffix}"

    def qdq(self) -> Path:
        """Our simulation, which for a full-size row is calibrated as quant.suites.commands.prepare does it."""
        simulated = self.base / f"quant{'' if self.levels == SIGNED else '-7bit'}"
        if self.generated:
            given = {"model": str(self.fp32()), "data": self.calibration["path"], "format": "npz"}
            step = ("quant.suites.commands:ptq", {**given, "algo": "abs_max", "weight_levels": self.levels})
            simulated = self.kept("quant", [], step)
        narrow = ("bench.peers.paddle_engine:write_as_8_bits", {"model": str(simulated)})
        return self.kept("quant-8-bits", _sources("paddle_engine"), narrow)

    def own(self) -> Path:
        function = self.spec.full if self.generated else self.spec.small
        given = {"function": function, "name": self.spec.name, "data": self.calibration}
        return self.kept("own", _sources("paddle_engine"), ("bench.peers.paddle_engine:build_own", given))

    def onnx(self, masked: bool = False) -> Path:
        step = ("bench.peers.export:export_onnx", {"model": str(self.fp32()), "masked": masked})
        return self.kept("onnx", [version("paddle2onnx"), *_sources("export", "recurrent")], step)

    def masked_onnx(self) -> Path:
        return self.onnx(masked=self.about["recurrent"])

    def quantized(self, engine: str, onnx: Path) -> Path:
        arguments = {"model": str(onnx), "data": self.calibration, "transformer": self.about["transformer"]}
        parts = [*map(version, _PACKAGES[engine]), *_sources(f"{engine}_engine", "onnx_inputs")]
        return self.kept(engine, parts, (f"bench.peers.{engine}_engine:build_int8", arguments))

    def openvino(self) -> Path:
        return self.quantized("openvino", self.onnx())

    def onnxruntime(self) -> Path:
        return self.quantized("onnxruntime", self.masked_onnx())


_FORMS: Mapping[str, Callable[[_Maker], Path]] = {
    "fp32": _Maker.fp32,
    "ours": _Maker.int8,
    "qdq": _Maker.qdq,
    "own": _Maker.own,
    "onnx": _Maker.onnx,
    "masked_onnx": _Maker.masked_onnx,
    "openvino": _Maker.openvino,
    "onnxruntime": _Maker.onnxruntime,
}
# What an engine runs at other precisions than INT8.
_FLOAT_FORMS = {"ours": "fp32", "qdq": "fp32", "own": "fp32", "openvino": "onnx", "onnxruntime": "masked_onnx"}
