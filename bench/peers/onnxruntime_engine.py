"""What a worker runs with ONNX Runtime, and its static quantization as a job."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from bench.peers.onnx_inputs import arrays_of, copy_decoder, decoder_in, outputs_of
from bench.peers.protocol import Feed, Session, opened
from quant import cpu
from quant.datasets.columns import Array, Column
from quant.datasets.readers import batches as batches_of

__all__ = ["build_int8", "load"]

# Ops of an optimized graph that multiply by weights, or two activations: INT8, and not.
_INT8 = {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger",
         "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention"}  # fmt: skip
_FLOAT = {"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "GRU", "LSTM", "Attention"}


def load(
    model: str, precision: str, threads: int, form: str, batches: Sequence[Mapping[str, Column]], **settings: str
) -> Session:
    """The model in a directory, model.onnx. `settings`: entries of ONNX Runtime's session configuration."""
    return _Session(Path(model), threads, settings, counted=precision == "int8")


class _Session:
    def __init__(self, directory: Path, threads: int, settings: Mapping[str, str], counted: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="quant-peers-") as scratch:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 3
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            for name, value in settings.items():
                options.add_session_config_entry(name, value)
            optimized = Path(scratch) / "optimized.onnx"
            if counted:
                options.optimized_model_filepath = str(optimized)
            file = str(directory / "model.onnx")
            self.native = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            self.facts: dict[str, Any] = {}
            if counted:
                self.facts["int8"] = int8_layers(onnx.load(str(optimized), load_external_data=False))
        self.decoder = decoder_in(directory)
        self.inputs = {value.name for value in self.native.get_inputs()}
        self.outputs = [value.name for value in self.native.get_outputs()]

    def batch(self, inputs: Mapping[str, Column]) -> Feed:
        return _Feed(self, arrays_of(inputs))


class _Feed:
    def __init__(self, session: _Session, arrays: Mapping[str, Array]) -> None:
        self.session, self.arrays = session, arrays
        self.binding = session.native.io_binding()
        for name in session.inputs:
            self.binding.bind_cpu_input(name, arrays[name])
        for name in session.outputs:
            self.binding.bind_output(name)

    def feed(self) -> None:
        """Nothing to do: the inputs are bound to this feed's arrays."""

    def run(self) -> None:
        self.session.native.run_with_iobinding(self.binding)

    def read(self) -> list[Column]:
        found = self.binding.copy_outputs_to_cpu()
        return outputs_of(self.session.decoder, self.session.outputs, found, self.arrays)


def int8_layers(optimized: Any) -> list[int]:
    """[INT8, all] nodes of an optimized graph that multiply."""
    types = [node.op_type for node in optimized.graph.node]
    int8 = sum(kind in _INT8 for kind in types)
    return [int8, int8 + sum(kind in _FLOAT for kind in types)]


def build_int8(model: str, data: Mapping[str, Any], transformer: bool, output: str) -> None:
    """An exported model directory -> one with its QDQ model, calibrated (MinMax) on all of `data`, sample by sample."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[dict[str, Array]] = map(arrays_of, batches_of(opened(data), 1))

        def get_next(self) -> dict[str, Array] | None:
            return next(self.samples, None)

    with tempfile.TemporaryDirectory(prefix="quant-peers-") as scratch:
        prepared = f"{scratch}/prepared.onnx"
        quant_pre_process(f"{model}/model.onnx", prepared)
        quantization.quantize_static(
            prepared,
            f"{output}/model.onnx",
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # Its default, signed activations, takes 2.4 times as long on ResNet-50, 1.6 times on MobileNet-V2.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            reduce_range=not cpu.detect().vnni,  # as its manual recommends where 16-bit sums could saturate
        )
    copy_decoder(Path(model), Path(output))
