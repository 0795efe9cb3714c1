"""Jobs that turn a row's FP32 model into what other engines start from."""

import json
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.recurrent import export_recurrent
from quant.datasets.columns import values_of
from quant.errors import ModelError
from quant.ir.fusion import RECURRENT
from quant.ir.graph import files_of, load_dir
from quant.runtime.inputs import sample_input, signature

__all__ = ["describe", "export_onnx"]

_OPSET = 17  # the first with LayerNormalization, the last that paddle2onnx's converters were written for


def describe(model: str, output: str, *, generated: bool, full_input: str) -> None:
    """Write what is to be known of a model to quantize and feed it: about.json.

    With `generated`, also the input that a full-size model is timed on (timing.npz, one sample) and the one that
    quant.suites.commands.prepare calibrates it on (calibration.npz, two samples).
    """
    graph = load_dir(Path(model))
    types = {op.type for op in graph.ops}
    about = {
        "signature": signature(graph),
        "transformer": "layer_norm" in types,
        "recurrent": not types.isdisjoint(RECURRENT),
    }
    (Path(output) / "about.json").write_text(json.dumps(about), encoding="utf-8")
    for name, samples in (("timing", 1), ("calibration", 2)) if generated else ():
        made = pkgutil.resolve_name(full_input)(samples) if full_input else sample_input(graph, samples, {})
        arrays: dict[str, Any] = {key: values_of(column) for key, column in made.items()}
        np.savez(Path(output) / f"{name}.npz", **arrays)


def export_onnx(model: str, output: str, *, masked: bool) -> None:
    """Write model.onnx; of a recurrent model also decoder.npz, and how its lengths are respected is `masked`.

    See bench.peers.recurrent for that.
    """
    graph = load_dir(Path(model))
    if not {op.type for op in graph.ops}.isdisjoint(RECURRENT):
        export_recurrent(graph, Path(output), masked=masked)
        return
    import paddle2onnx

    files = files_of(Path(model))
    try:
        paddle2onnx.export(str(files.program), str(files.params), f"{output}/model.onnx", opset_version=_OPSET)
    except SystemExit as error:  # its way to say that it can't
        raise ModelError("paddle2onnx doesn't export this model") from error
