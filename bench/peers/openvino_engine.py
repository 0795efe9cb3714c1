"""What a worker runs with OpenVINO, and NNCF's post-training quantization as a job."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from bench.peers.onnx_inputs import arrays_of, copy_decoder, decoder_in, outputs_of
from bench.peers.protocol import Feed, Session, opened
from quant.readers import batches as batches_of
from quant.sequences import Array, Column

__all__ = ["build_int8", "load"]

_HINTS = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}, "int8": {}}
# Layers of an executed graph that multiply by weights, or two activations, and the types that make one INT8.
_WEIGHTED = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell", "MHA"}
_WEIGHTED_TOO = {"ScaledDotProductAttention", "TensorIterator"}  # INT8 never, so far
_INT8 = {"u8", "i8"}
_LAPS = 3


def load(
    model: str, precision: str, threads: int, form: str, batches: Sequence[Mapping[str, Column]], **settings: str
) -> Session:
    """The model in a directory: model.xml, or else model.onnx.

    It is compiled for the shapes of `batches`: where they differ, once for each of them or once for all, whichever is
    faster in a trial. Without batches for all shapes.
    """
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **_HINTS[precision], **settings}
    given = [arrays_of(batch) for batch in batches]
    if not given:
        return _Session(Path(model), config, None)
    fixed = _Session(Path(model), config, given)
    if len(fixed.compiled) == 1:
        return fixed
    open_ = _Session(Path(model), config, None)
    fixed.facts["shapes"], open_.facts["shapes"] = "one compiled model a shape", "one compiled model for all shapes"
    return min((fixed, open_), key=lambda session: _trial(session, batches))


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


class _Session:
    def __init__(self, directory: Path, config: Mapping[str, Any], given: Sequence[Mapping[str, Array]] | None) -> None:
        core = ov.Core()
        file = next(file for file in (directory / "model.xml", directory / "model.onnx") if file.is_file())
        self.compiled: dict[str, Any] = {}
        for arrays in given or [{}]:
            if _key(arrays) not in self.compiled:
                model = core.read_model(file)
                if arrays:
                    model.reshape({name: list(array.shape) for name, array in arrays.items()})
                self.compiled[_key(arrays)] = core.compile_model(model, "CPU", dict(config)).create_infer_request()
        self.decoder = decoder_in(directory)
        request = next(iter(self.compiled.values()))
        self.facts: dict[str, Any] = {"int8": int8_layers(request.get_compiled_model().get_runtime_model())}

    def batch(self, inputs: Mapping[str, Column]) -> Feed:
        arrays = arrays_of(inputs)
        return _Feed(self, self.compiled.get(_key(arrays)) or self.compiled[_key({})], arrays)


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
        if about["layerType"].value in _WEIGHTED | _WEIGHTED_TOO:
            layers.append(about["runtimePrecision"].value in _INT8)
    return [sum(layers), len(layers)]


def build_int8(model: str, data: Mapping[str, Any], transformer: bool, output: str) -> None:
    """An exported model directory -> one with NNCF's INT8 model, calibrated on all of `data`, a sample at a time.

    As NNCF recommends: for transformers the model type of that name and the mixed preset (activations may be
    asymmetric), for all others the performance preset.
    """
    import nncf

    samples = [arrays_of(batch) for batch in batches_of(opened(data), 1)]
    recommended: dict[str, Any] = {"preset": nncf.QuantizationPreset.PERFORMANCE}
    if transformer:
        recommended = {"preset": nncf.QuantizationPreset.MIXED, "model_type": nncf.ModelType.TRANSFORMER}
    float32 = ov.Core().read_model(f"{model}/model.onnx")
    quantized = nncf.quantize(float32, nncf.Dataset(samples), subset_size=len(samples), **recommended)
    ov.save_model(quantized, f"{output}/model.xml", compress_to_fp16=False)
    copy_decoder(Path(model), Path(output))
