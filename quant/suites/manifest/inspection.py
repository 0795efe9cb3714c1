"""What lies in a directory of models, without running any of them: jobs."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quant.errors import ConversionError, ModelError
from quant.ir.fusion import PRODUCTS, RECURRENT
from quant.ir.graph import Graph, Var, files_of, load_dir, model_size, run_passes
from quant.ir.passes import CALIBRATE, drop_judges, lift_quantizers
from quant.process.isolate import report_progress
from quant.quantization.conversion import Coverage, convert
from quant.quantization.observers import Choice
from quant.quantization.plan import plan_of, roundable, simulate
from quant.quantization.reasons import all_faults
from quant.runtime.inputs import vocabularies

__all__ = ["survey"]

Json = dict[str, Any]

_DEPTH = 3  # of directories below the one that is looked through


def survey(directory: str, weight_levels: int) -> list[Json]:
    """The models in a directory, itself or any below it; `weight_levels` as quant.quantization.plan takes them.

    Each is JSON: path, and either error, or kind ("fp32", "quant", "int8"), bytes, inputs and outputs (name, shape,
    dtype, lod_level; inputs also rows, of the table that ids index), ops (type -> count), int8 and fp32 (quantizable
    ops that are or would be so, type -> count), kept (op_type, reason, count of those that stay float32 though they
    could be INT8) and why (not one would be INT8, or "").
    Raises ModelError when there is no model.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    places = list(_places(root, _DEPTH))
    if not places:
        files_of(root)  # says what is missing
    found: list[Json] = []
    for number, place in enumerate(places):
        report_progress(f"inspect {place.name}", number, len(places))
        try:
            found.append({"path": str(place), **_inspected(place, weight_levels)})
        except ModelError as error:
            found.append({"path": str(place), "error": str(error)})
    report_progress("inspect", len(places), len(places))
    return found


def _places(directory: Path, depth: int) -> Iterator[Path]:
    """Directories with a program in them, however damaged; nothing below such a one."""
    if _has_program(directory):
        yield directory
    elif depth:
        try:
            inside = sorted(Path(entry.path) for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
        except OSError as error:
            raise ModelError(f"{directory}: can't be read ({error.strerror})") from error
        for place in inside:
            if not place.name.startswith("."):
                yield from _places(place, depth - 1)


def _has_program(directory: Path) -> bool:
    try:
        files_of(directory)
    except ModelError as error:
        return "more than one program" in str(error)
    return True


def _inspected(place: Path, weight_levels: int) -> Json:
    graph = drop_judges(load_dir(place))
    lifted = lift_quantizers(graph)
    kind = "quant" if any(op.type == "fake_quant" for op in lifted.ops) else "int8" if _is_int8(graph) else "fp32"
    int8, fp32, kept, why = _planned(graph, kind, weight_levels)
    rows = vocabularies(graph)
    return {
        "kind": kind,
        "bytes": model_size(place),
        "inputs": [{**_described(name, graph.vars[name]), "rows": rows.get(name)} for name in graph.feeds],
        "outputs": [_described(name, graph.vars[name]) for name in graph.fetches],
        "ops": dict(graph.op_counts().most_common()),
        "int8": int8,
        "fp32": fp32,
        "kept": kept,
        "why": why,
    }


def _described(name: str, var: Var) -> Json:
    return {"name": name, "shape": list(var.shape), "dtype": var.dtype, "lod_level": var.lod_level}


def _is_int8(graph: Graph) -> bool:
    return any(op.attr("mkldnn_data_type") == "int8" or op.type == "quantize" for op in graph.ops)


def _planned(graph: Graph, kind: str, weight_levels: int) -> tuple[Json, Json, list[Json], str]:
    """(INT8 op types, FP32 op types, what is kept, why nothing is INT8)."""
    if kind == "int8":
        int8 = Counter(op.type for op in graph.ops if op.attr("mkldnn_data_type") == "int8")
        left = Counter(op.type for op in graph.ops if op.type in (*PRODUCTS, *RECURRENT, "conv2d", "fused_conv2d"))
        return dict(int8), dict(left - int8), [], ""
    try:
        done = convert(graph)[1] if kind == "quant" else _as_calibrated(graph, weight_levels)
    except ConversionError as error:
        return {}, {}, [], str(error)
    kept = Counter((entry.op_type, entry.reason) for entry in done.kept)
    told = [{"op_type": of, "reason": reason, "count": count} for (of, reason), count in kept.most_common()]
    return dict(done.int8.most_common()), dict(done.fp32.most_common()), told, ""


def _as_calibrated(graph: Graph, weight_levels: int) -> Coverage:
    """What would become of an FP32 model: thresholds of calibration decide how it rounds, and not what is INT8."""
    graph = run_passes(graph, CALIBRATE)
    chains = roundable(graph, (), (), weight_levels)
    if not chains:
        raise ConversionError(all_faults(graph) or "it has no convolution or product with a constant weight")
    plan = plan_of(graph, chains)
    chosen = {group: Choice("", plan.known.get(group, 1.0)) for group in plan.group.values()}
    return convert(simulate(graph, chains, plan, chosen, weight_levels))[1]
