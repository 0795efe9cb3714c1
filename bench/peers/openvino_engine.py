"""What a worker runs with OpenVINO, and NNCF's post-training quantization as a job."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from bench.peers.onnx_inputs import arrays_of, copy_decoder, decoder_in, outputs_of
from bench.peers.protocol import Feed, Session, opened
from bench.peers.recurrent import Decoder
from quant.datasets.columns import Array, Column
from quant.datasets.readers import batches as batches_of

__all__ = ["build_int8", "load"]

_HINTS = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}, "int8": {}}
_CAP = "ONEDNN_MAX_CPU_ISA"
# Layers of an executed graph that multiply by weights, or two activations, and the types that make one INT8.
_WEIGHTED = {"Convolution", "FullyConnected", "MatMul", "RNNSeq", "TensorIterator", "ScaledDotProductAttention"}
_INT8 = {"u8", "i8"}
_LAPS = 3


def load(
    model: str, precision: str, threads: int, form: str, batches: Sequence[Mapping[str, Column]], **settings: str
) -> Session:
    """The model in a directory: model.xml, or else model.onnx.

    It is compiled for the shapes of `batches`: where they differ, once for each of them or once for all, whichever is
    faster in a trial.
    """
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision == "int8" and _without_bf16(os.environ.get(_CAP, "")):
        hints |= _HINTS["fp32"]
    compiler = _Compiler(Path(model), {**hints, **_HINTS[precision], **settings})
    shapes = {_key(arrays_of(batch)) for batch in batches}
    if len(shapes) == 1:
        return _Session(compiler, decoder_in(Path(model)), each=True)
    open_ = _Session(compiler, decoder_in(Path(model)), each=False)
    if not batches:
        return open_
    return min((_Session(compiler, decoder_in(Path(model)), each=True), open_), key=lambda one: _trial(one, batches))


def _without_bf16(cap: str) -> bool:
    """Whether a CPU of that ISA has no BF16.

    The cap is oneDNN's: OpenVINO doesn't look at it when it chooses BF16 for what isn't INT8, which oneDNN would then
    emulate (VNNI) or refuse (AVX2). A CPU of that class gets FP32 from it.
    """
    return bool(cap) and not any(cap.endswith(last) for last in ("BF16", "FP16", "AMX"))


def _trial(session: "_Session", batches: Sequence[Mapping[str, Column]]) -> float:
    """Seconds of the quickest of a few laps; the first one builds kernels."""
    feeds, laps = [session.batch(batch) for batch in batches], []
    for _ in range(_LAPS):
        lap = 0.0
        for feed in feeds:
            feed.feed()
            start = time.perf_counter()
            feed.run()
            lap += time.perf_counter() - start
        laps.append(lap)
    return min(laps)


def _key(arrays: Mapping[str, Array]) -> str:
    return json.dumps({name: array.shape for name, array in sorted(arrays.items())})


@dataclass(frozen=True)
class _Compiler:
    directory: Path
    config: Mapping[str, Any]

    def __call__(self, arrays: Mapping[str, Array]) -> Any:
        """A request of the model compiled for the shapes of `arrays`, or, without any, for all shapes."""
        core = ov.Core()
        files = (self.directory / "model.xml", self.directory / "model.onnx")
        model = core.read_model(next(file for file in files if file.is_file()))
        if arrays:
            model.reshape({name: list(array.shape) for name, array in arrays.items()})
        return core.compile_model(model, "CPU", dict(self.config)).create_infer_request()


class _Session:
    """`each`: compiles the model for every shape that comes, when it comes; else once for all, now."""

    def __init__(self, compiler: _Compiler, decoder: Decoder | None, each: bool) -> None:
        self.compiler, self.decoder, self.each = compiler, decoder, each
        self.facts: dict[str, Any] = {}
        self.requests: dict[str, Any] = {}
        if not each:
            self._request({})

    def _request(self, arrays: Mapping[str, Array]) -> Any:
        """The request for these arrays."""
        key = _key(arrays) if self.each else ""
        if key not in self.requests:
            self.requests[key] = self.compiler(arrays)
            self.facts["int8"] = int8_layers(self.requests[key].get_compiled_model().get_runtime_model())
            compiled = f"compiled for {len(self.requests)} {'shapes' if len(self.requests) > 1 else 'shape'}"
            self.facts["shapes"] = compiled if self.each else "compiled for all shapes"
        return self.requests[key]

    def batch(self, inputs: Mapping[str, Column]) -> Feed:
        arrays = arrays_of(inputs)
        return _Feed(self, self._request(arrays), arrays)


class _Feed:
    def __init__(self, session: _Session, request: Any, arrays: Mapping[str, Array]) -> None:
        self.session, self.request, self.arrays = session, request, arrays
        self.tensors = {name: ov.Tensor(array, shared_memory=True) for name, array in arrays.items()}

    def feed(self) -> None:
        self.request.set_tensors(self.tensors)

    def run(self) -> None:
        self.request.infer(share_outputs=True)

    def read(self) -> list[Column]:
        compiled = self.request.get_compiled_model()
        names = [port.any_name for port in compiled.outputs]
        found = [self.request.get_tensor(port).data for port in compiled.outputs]
        return outputs_of(self.session.decoder, names, found, self.arrays)


def int8_layers(executed: Any) -> list[int]:
    """[INT8, all] layers of an executed graph that multiply."""
    layers = []
    for node in executed.get_ordered_ops():
        about = node.get_rt_info()
        if about["layerType"].value in _WEIGHTED:
            layers.append(about["runtimePrecision"].value in _INT8)
    return [sum(layers), len(layers)]


def build_int8(model: str, data: Mapping[str, Any], transformer: bool, output: str) -> None:
    """An exported model directory -> one with NNCF's INT8 model, calibrated on all of `data`, a sample at a time.

    As NNCF recommends: for transformers the model type of that name and the mixed preset (activations may be
    asymmetric), for all others the performance preset. Recurrent layers stay as they are: quantized, NNCF 3.4 with
    OpenVINO 2026.4 doesn't compile an LSTM ("expects Constant for port 5") and gives a GRU's outputs at 3.5 dB SQNR.
    """
    import nncf

    samples = [arrays_of(batch) for batch in batches_of(opened(data), 1)]
    recommended: dict[str, Any] = {"preset": nncf.QuantizationPreset.PERFORMANCE}
    if transformer:
        recommended = {"preset": nncf.QuantizationPreset.MIXED, "model_type": nncf.ModelType.TRANSFORMER}
    float32 = ov.Core().read_model(f"{model}/model.onnx")
    ignored = nncf.IgnoredScope(types=["GRUSequence", "LSTMSequence"], validate=False)
    dataset = nncf.Dataset(samples)
    quantized = nncf.quantize(float32, dataset, subset_size=len(samples), ignored_scope=ignored, **recommended)
    ov.save_model(quantized, f"{output}/model.xml", compress_to_fp16=False)
    copy_decoder(Path(model), Path(output))
