"""What a worker runs with Paddle: our models by our predictor, and fake-quantized models by Paddle's own INT8."""

import pkgutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle.inference as engine
from paddle import CPUPlace
from paddle.base.core import DenseTensor

from bench.peers.protocol import Feed, Session, opened
from quant.datasets.columns import Column, Ragged, values_of
from quant.datasets.readers import batches
from quant.errors import ModelError
from quant.ir.fusion import CONVS, PRODUCTS, RECURRENT
from quant.ir.graph import Graph, files_of, forward_of, load_dir, save_dir
from quant.ir.numerics import SIGNED, bits_of
from quant.runtime.predictor import RECURRENT as RECURRENT_KERNELS
from quant.runtime.predictor import Predictor, Settings

__all__ = ["as_8_bits", "build_own", "int8_layers", "load", "write_as_8_bits"]

_WEIGHTED = {*CONVS, *PRODUCTS, *RECURRENT, *RECURRENT_KERNELS, "fused_conv2d", "fused_matmul"}
_CALIBRATION_BATCH = 50  # as quant.suites.commands.prepare


def load(
    model: str, precision: str, threads: int, form: str, batches: Sequence[Mapping[str, Column]], **settings: Any
) -> Session:
    """A model directory; fake-quantized ones at int8 are Paddle's own to run, all else goes through runtime.predictor.

    `settings` are fields of quant.runtime.predictor.Settings.
    """
    if form in ("qdq", "own") and precision == "int8":
        return _AsItComes(Path(model), threads)
    return _Ours(Path(model), Settings(precision=precision, threads=threads, **settings))  # type: ignore[arg-type]


class _Ours:
    def __init__(self, directory: Path, settings: Settings) -> None:
        self.predictor = Predictor(directory, settings)
        self.known = {"int8": int8_layers(load_dir(directory))} if settings.precision == "int8" else {}

    @property
    def facts(self) -> dict[str, Any]:
        """The executor is that of the last batch."""
        return {"executor": self.predictor.executor, **self.known}

    def batch(self, inputs: Mapping[str, Column]) -> Feed:
        return _OurFeed(self.predictor, inputs)


class _OurFeed:
    def __init__(self, predictor: Predictor, inputs: Mapping[str, Column]) -> None:
        self.predictor, self.inputs = predictor, inputs
        self.run = predictor.run

    def feed(self) -> None:
        self.predictor.feed(self.inputs)

    def read(self) -> list[Column]:
        return list(self.predictor.read().values())


class _AsItComes:
    """paddle.inference with `enable_onednn_int8`, and nothing else set."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.native = engine.create_predictor(_config(directory, threads))
        self.facts: dict[str, Any] = {}

    def batch(self, inputs: Mapping[str, Column]) -> Feed:
        return _PlainFeed(self.native, inputs)


def _config(directory: Path, threads: int) -> Any:
    files = files_of(directory)
    config = engine.Config(str(files.program), str(files.params))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    config.enable_onednn()
    config.enable_onednn_int8()
    return config


class _PlainFeed:
    def __init__(self, native: Any, inputs: Mapping[str, Column]) -> None:
        self.native, self.inputs = native, inputs
        self.run = native.run
        self.held: list[DenseTensor] = []

    def feed(self) -> None:
        """As our predictor does it: the input is shared, not copied."""
        for name in self.native.get_input_names():
            column, tensor = self.inputs[name], DenseTensor()
            tensor.set(np.ascontiguousarray(values_of(column)), CPUPlace(), True)
            handle = self.native.get_input_handle(name)
            handle.share_external_data(tensor)
            if isinstance(column, Ragged):
                handle.set_lod([column.offsets.tolist()])
            self.held.append(tensor)

    def read(self) -> list[Column]:
        found: list[Column] = []
        for name in self.native.get_output_names():
            handle = self.native.get_output_handle(name)
            values, lod = handle.copy_to_cpu(), handle.lod()
            found.append(Ragged(values, np.array(lod[-1], np.int64)) if lod else values)
        return found


def int8_layers(graph: Graph) -> list[int]:
    """[INT8, all] layers that multiply by weights, or two activations."""
    layers = [op for op in graph.ops if op.type in _WEIGHTED]
    # One float32 op of several products, which Paddle makes of VGG's FC layers, quantized or not.
    hidden = sum(len(op.inputs["W"]) for op in graph.ops if op.type == "fusion_repeated_fc_relu")
    return [sum(op.attr("mkldnn_data_type") == "int8" for op in layers), len(layers) + hidden]


def as_8_bits(graph: Graph) -> Graph:
    """A simulation of ours with every quantizer declared as 8 bits, signed.

    Paddle's INT8 refuses the 255 levels of tensors that are never negative, and takes a threshold only: it finds out
    by itself what it can store as uint8.
    """
    narrow = {"bit_length": bits_of(SIGNED), "qmin": -SIGNED - 1, "qmax": SIGNED}
    return graph.evolve(
        op.with_attrs(**narrow) if op.attr("bit_length", 0) > bits_of(SIGNED) else op for op in graph.ops
    )


def write_as_8_bits(model: str, output: str) -> dict[str, Any]:
    """A fake-quantized model directory of ours -> one that Paddle's INT8 accepts; facts of it."""
    save_dir(as_8_bits(load_dir(Path(model))), Path(output))
    return {"int8": _executed(Path(output))}


def build_own(function: str, name: str, data: Mapping[str, Any], output: str) -> dict[str, Any]:
    """A row as it is exported -> fake-quantized by Paddle's own calibration ("avg"), without a pass of ours; facts.

    Raises ModelError for a model of sequences, which that calibration can't feed.
    """
    import paddle
    from paddle.static.quantization import PostTrainingQuantization

    with tempfile.TemporaryDirectory(prefix="quant-peers-") as exported:
        pkgutil.resolve_name(function)(name, Path(exported))
        graph = load_dir(Path(exported))
        if any(graph.vars[feed].lod_level for feed in graph.feeds):
            raise ModelError("Paddle's own calibration takes no sequences")
        samples = [{key: np.array(values_of(column)) for key, column in batch.items()} for batch in _batches(data)]
        names = {"model_filename": "inference.pdmodel", "params_filename": "inference.pdiparams"}
        paddle.enable_static()
        quantizer = PostTrainingQuantization(
            executor=paddle.static.Executor(CPUPlace()),
            model_dir=exported,
            **names,
            data_loader=lambda: samples,
            batch_nums=len(samples),
            algo="avg",
            quantizable_op_type=[*CONVS, "mul", "matmul", "matmul_v2"],
            weight_quantize_type="channel_wise_abs_max",
            onnx_format=True,
            is_full_quantize=False,
        )
        quantizer.quantize()
        quantizer.save_quantized_model(output, **names)
    return {"int8": _executed(Path(output))}


def _batches(data: Mapping[str, Any]) -> Iterator[Mapping[str, Column]]:
    return batches(opened(data), _CALIBRATION_BATCH)


def _executed(directory: Path) -> list[int]:
    """[INT8, all] layers of the program that Paddle makes of a fake-quantized model."""
    with tempfile.TemporaryDirectory(prefix="quant-peers-") as scratch:
        config = _config(directory, 1)
        config.set_optim_cache_dir(scratch)
        config.enable_save_optim_model(True)
        engine.create_predictor(config)
        written = list(Path(scratch).rglob("*.pdmodel"))
        if not written:
            raise ModelError(f"{directory}: Paddle wrote no optimised program")
        # Its weights are float32 and declared as int8, so it can't be loaded as a model.
        return int8_layers(forward_of(written[0].read_bytes()))
