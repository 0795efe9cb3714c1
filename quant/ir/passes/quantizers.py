"""Read Paddle's fake-quantized dialects into one form; write that form as a program plain Paddle runs.

The form, which exists only between these two passes:
- `fake_quant` (X -> Out; threshold, levels): round X to its grid and back, as in `quant.ir.numerics`.
- a weighted op with attributes `weight_thresholds` (one, or one per output channel) and `weight_levels`: its weight
  parameter is float32 and already lies on that grid. A recurrent op (gru, lstm) keeps this form in saved programs,
  because the channels of gru's packed weight are no axis that QDQ could name. `weight_fault` instead: why not.

The dialects (paddle/phi/kernels/impl/{quantize_linear,fake_quantize}_kernel*.h,
python/paddle/static/quantization/quantization_pass.py, python/paddle/nn/quant/quant_layers.py):
- QDQ ("onnx_format"): quantize_linear -> dequantize_linear around activations; int8 weights -> dequantize_linear.
- classic: fake_quantize_* before the op, integer-valued float32 weights, fake_*dequantize_max_abs behind the op.
- as trained (dygraph's QAT, PaddleSlim's and PaddleNLP's; a static program that wasn't frozen):
  fake_quantize_dequantize_*, or fake_quantize_* and its dequantizer, on activations and on float32 weights, whose
  scales are computed at run time (quant.ir.passes.weight_quantizers).
- integers in the weights, scales in attributes (`WeightQuantization`): weights alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import ConversionError, ModelError
from quant.ir.constants import shape_of
from quant.ir.graph import Attr, Graph, Op, Var
from quant.ir.numerics import SIGNED, bits_of, channel_thresholds, levels_of, quantise
from quant.ir.passes.fold_parameters import fold_parameters
from quant.ir.passes.weight_quantizers import (
    ABS_MAX,
    WEIGHT_SLOT,
    Rounded,
    attrs_for,
    axis_behind,
    rounded_by_abs_max,
    rounded_to,
    stored_in_attributes,
    weight_of,
)

__all__ = [
    "WEIGHT_SLOT",
    "lift_quantizers",
    "lift_weights",
    "lower_quantizers",
    "peaks_of",
    "scales_elsewhere",
    "without_quantizers",
]

_PADDLES_OWN = ("fake_quantize_", "fake_dequantize_", "fake_channel_wise_", "quantize_linear", "dequantize_linear")
_OBSERVERS = ("moving_average_abs_max_scale",)  # record a scale, and pass values on unchanged
_CLASSIC_STATIC = ("fake_quantize_moving_average_abs_max", "fake_quantize_range_abs_max")
_CLASSIC_BOTH = ("fake_quantize_dequantize_moving_average_abs_max",)
_DEQUANTIZERS = ("fake_dequantize_max_abs", "fake_channel_wise_dequantize_max_abs")

# Op type -> who writes such models, and what to do with one.
_NOT_READ = {
    **dict.fromkeys(
        ("weight_only_linear", "llm_int8_linear", "weight_dequantize"),
        "PaddleNLP's weight-only quantization for GPUs (paddle.nn.quant) wrote it, with weights in the order of a "
        "GPU's kernel: export the float32 model, and calibrate that (quant ptq)",
    ),
    **dict.fromkeys(
        ("dequantize_abs_max", "dequantize_log", "lookup_table_dequant"),
        "PaddleSlim's quant_embedding wrote it: export the model without it, and calibrate that (quant ptq)",
    ),
}
_DYNAMIC = (
    "computes the scale of an activation anew at each run (activation_quantize_type 'abs_max' of PaddleSlim's or "
    "Paddle's training), and INT8 kernels need a constant one: train with moving_average_abs_max, or calibrate the "
    "float32 model (quant ptq)"
)


def peaks_of(name: str, values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """abs-max of each slice of a parameter along `axis`. Raises ModelError where there is none, or it isn't finite."""
    if not values.size or values.dtype.kind != "f":
        raise ModelError(f"parameter {name!r} is {values.dtype}{list(values.shape)}: it can't be rounded to integers")
    if not np.isfinite(values).all():
        raise ModelError(f"parameter {name!r} holds NaN or Inf: it can't be rounded to integers")
    return channel_thresholds(values, axis)


def lift_quantizers(graph: Graph) -> Graph:
    """All dialects -> `fake_quant` ops and weight attributes; the same object when there is no quantizer.

    Raises ConversionError for a scale that isn't constant, and for a quantizer of another kind: it names who wrote it.
    """
    for op in graph.ops:
        if op.type in _NOT_READ:
            raise ConversionError(f"op {op.type!r} (output {op.writes[0]!r}) can't be read: {_NOT_READ[op.type]}")
    if not any(_is_quantizer(graph, op) for op in graph.ops):
        return graph
    lifted = _Lift(fold_parameters(graph))
    for op in lifted.graph.ops:
        lifted.visit(op.rewired(lifted.names))
    grids = lifted.grids
    ops = [op.with_attrs(**attrs_for(op, grids[name])) if (name := weight_of(op)) in grids else op for op in lifted.ops]
    return lifted.graph.evolve(ops, params=lifted.params)


def lift_weights(graph: Graph) -> Graph:
    """A model of which only the weights are quantized, as one that can be calibrated: float32 weights on their grid.

    Not touched: a model without quantizers. Raises ConversionError for one that rounds activations too.
    """
    lifted = lift_quantizers(graph)
    if lifted is not graph and any(op.type == "fake_quant" for op in lifted.ops):
        raise ConversionError(
            "the model is fake-quantized already: convert it (quant convert), or calibrate the float32 model that it "
            "was made from"
        )
    return lifted


def scales_elsewhere(graph: Graph) -> str:
    """Why a model without `fake_quant` ops has none, though something has quantized it; or ""."""
    if any(op.attr("weight_thresholds") or op.attr("weight_fault") for op in graph.ops):
        return "only its weights are quantized: calibrate it as it is (quant ptq), which rounds its activations too"
    if any(name == "out_threshold" or name.endswith("_threshold") for op in graph.ops for name in op.attrs):
        return (
            "its scales are attributes of its ops only (out_threshold), as Paddle's and PaddleSlim's quantization "
            "writes them for other engines, and its weights aren't rounded: calibrate it (quant ptq)"
        )
    return ""


def _is_quantizer(graph: Graph, op: Op) -> bool:
    named = op.type.startswith(_PADDLES_OWN) or op.type in _OBSERVERS
    return named or stored_in_attributes(graph, op) is not None


class _Lift:
    """One walk over the ops: what is emitted, which names stand for which, what became of the weights."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writers = graph.writers()
        self.ops: list[Op] = []
        self.names: dict[str, str] = {}
        self.params: dict[str, NDArray[Any]] = {}
        self.grids: dict[str, Rounded] = {}  # float parameter that lies on a grid
        self.integers: dict[str, Rounded] = {}  # variable that holds a weight's integers
        self.scales: dict[str, NDArray[np.float64]] = {}  # variable that holds scales computed from a weight
        self.quantised: dict[str, Op] = {}  # variable that holds an activation's integers
        self.new = graph.names()
        self.dequantized: dict[tuple[str, bytes, int, int], str] = {}  # weight, grid -> its float parameter

    def constant(self, op: Op, name: str) -> NDArray[np.float64]:
        if name in self.scales:
            return self.scales[name]
        if name not in self.graph.params:
            raise ConversionError(f"op {op.type!r} (output {op.writes[0]!r}): its scale {name!r} is not a constant")
        return self.graph.params[name].astype(np.float64).reshape(-1)

    def fake_quant(self, op: Op, source: str, target: str, threshold: float, levels: int) -> None:
        if not np.isfinite(threshold) or threshold <= 0:
            raise ConversionError(f"op {op.type!r} (output {target!r}): its scale is {threshold}: not calibrated?")
        if levels < 1:
            raise ConversionError(f"op {op.type!r} (output {target!r}) has {levels} levels")
        self.ops.append(
            Op.make("fake_quant", {"X": source}, {"Out": target}, threshold=float(threshold), levels=levels)
        )

    def pass_through(self, source: str, target: str) -> None:
        if target in self.graph.fetches:
            self.ops.append(Op.make("assign", {"X": source}, {"Out": target}))
        elif target:
            self.names[target] = source

    def weight(self, op: Op, name: str, target: str, weight: Rounded) -> None:
        """The parameter `name`, on a grid, becomes the float parameter `target`."""
        shape, thresholds, axis = weight.integers.shape, weight.thresholds, weight.axis
        where = f"op {op.type!r} (output {op.writes[0]!r})"
        if not np.isfinite(thresholds).all() or (thresholds < 0).any():
            wrong = thresholds[~(np.isfinite(thresholds) & (thresholds >= 0))][0]
            raise ConversionError(f"{where}: the scale of weight {name!r} is {wrong}: not calibrated?")
        if thresholds.size != 1 and (axis >= len(shape) or thresholds.size != shape[axis]):
            raise ConversionError(
                f"{where}: weight {name!r} of shape {list(shape)} has {thresholds.size} scales along axis {axis}"
            )
        if weight.levels < 1:
            raise ConversionError(f"{where}: weight {name!r} has {weight.levels} levels")
        self.params[target] = weight.values
        self.grids[target] = weight

    def floats_of(self, op: Op, name: str, weight: Rounded) -> str:
        """The float parameter that stands for one of integers: one for all readers on the same grid."""
        key = (name, weight.thresholds.tobytes(), weight.levels, weight.axis)
        if key not in self.dequantized:
            self.dequantized[key] = self.new.fresh(f"{name}.dequantized")
            self.weight(op, name, self.dequantized[key], weight)
        return self.dequantized[key]

    def visit(self, op: Op) -> None:
        if op.type in ABS_MAX:
            self._abs_max(op)
        elif op.attr("only_observer", False) or op.type in _OBSERVERS:
            self.pass_through(op.input("X"), op.output("Y") or op.output("Out"))
        elif op.type == "quantize_linear":
            self._quantize_linear(op)
        elif op.type == "dequantize_linear":
            self._dequantize_linear(op)
        elif op.type in (*_CLASSIC_BOTH, *_CLASSIC_STATIC):
            self._classic_quantize(op)
        elif op.type in _DEQUANTIZERS:
            self._classic_dequantize(op)
        elif op.type.startswith(_PADDLES_OWN):
            raise ConversionError(
                f"op {op.type!r} (output {op.writes[0]!r}) is not supported: Paddle's or PaddleSlim's quantization "
                "wrote it; export the float32 model, and calibrate that (quant ptq)"
            )
        else:
            self._other(op)

    def _other(self, op: Op) -> None:
        if (stored := stored_in_attributes(self.graph, op)) is not None:
            op = op.rewired({weight_of(op): self.floats_of(op, weight_of(op), stored)})
        source = None if op.output("Out") in self.graph.fetches else self.grids.get(op.input("X"))
        if source is not None and (axis := axis_behind(op, source.integers.shape, source.axis)) is not None:
            x, moved = source.integers, op.type
            shaped = x.transpose(op.attr("axis")) if moved == "transpose2" else x
            shaped = shaped if moved in ("transpose2", "assign") else x.reshape(shape_of(op, x.shape))
            self.weight(op, op.input("X"), op.output("Out"), replace(source, integers=shaped, axis=axis))
            return
        self.ops.append(op)

    def _abs_max(self, op: Op) -> None:
        source, out = op.input("X"), op.output("Out")
        if source not in self.graph.params:
            raise ConversionError(f"op {op.type!r} (output {out!r}) {_DYNAMIC}")
        weight = rounded_by_abs_max(op, self.graph.params[source])
        if "dequantize" in op.type:
            self.weight(op, source, out, weight)
        else:
            self.integers[out] = weight
        self.scales[op.output("OutScale")] = weight.thresholds

    def _classic_quantize(self, op: Op) -> None:
        levels, source, out = levels_of(op.attr("bit_length", 8)), op.input("X"), op.output("Out")
        scale = self.constant(op, op.input("InScale"))
        if source in self.graph.params:
            weight = rounded_to(op, self.graph.params[source], scale[:1], levels, 0, op.attr("round_type", 1))
            if op.type in _CLASSIC_BOTH:
                self.weight(op, source, out, weight)
            else:
                self.integers[out] = weight
        else:
            self.fake_quant(op, source, out, float(scale[0]), levels)
            if op.type in _CLASSIC_STATIC:
                self.quantised[out] = op
        self.scales[op.output("OutScale")] = scale

    def _quantize_linear(self, op: Op) -> None:
        source, out = op.input("X"), op.output("Y")
        if source in self.graph.params:
            scale, axis = self.constant(op, op.input("Scale")), max(op.attr("quant_axis", 0), 0)
            levels, how = op.attr("qmax", SIGNED), op.attr("round_type", 0)
            self.integers[out] = rounded_to(op, self.graph.params[source], scale, levels, axis, how)
        else:
            self.quantised[out] = op

    def _dequantize_linear(self, op: Op) -> None:
        levels, source, target = op.attr("qmax", SIGNED), op.input("X"), op.output("Y")
        scale = self.constant(op, op.input("Scale"))
        if source in self.graph.params or source in self.integers:
            integers = self.graph.params[source] if source in self.graph.params else self.integers[source].integers
            self.weight(op, source, target, Rounded(integers, scale, levels, max(op.attr("quant_axis", 0), 0)))
        elif source in self.quantised and scale.size == 1:
            self.fake_quant(op, self.quantised[source].input("X"), target, float(scale[0]), levels)
        else:
            raise ConversionError(f"op {op.type!r} (output {target!r}) doesn't follow a weight or a quantize_linear")

    def _classic_dequantize(self, op: Op) -> None:
        source, out = op.input("X"), op.output("Out")
        if source in self.integers:
            self.weight(op, source, out, self.integers[source])
            return
        if source in self.quantised:  # its quantizer became one that also gives float32 back
            self.pass_through(source, out)
            return
        behind = self.writers.get(source)
        if behind is None or weight_of(behind) not in self.graph.params:
            raise ConversionError(f"op {op.type!r} (output {out!r}) doesn't follow an op with a weight")
        name, axis = weight_of(behind), WEIGHT_SLOT[behind.type][1]
        if op.type == "fake_dequantize_max_abs":  # max_range = SIGNED * SIGNED / weight threshold
            thresholds = np.array([SIGNED * SIGNED / op.attr("max_range")])
        else:
            thresholds = self.constant(op, op.inputs["Scales"][0])
        levels = levels_of((op.attr("quant_bits") or [8])[0])
        target = self.floats_of(op, name, Rounded(self.graph.params[name], thresholds, levels, axis))
        self.ops = [o.rewired({name: target}) if o.writes == behind.writes else o for o in self.ops]
        self.pass_through(source, out)


def lower_quantizers(graph: Graph) -> Graph:
    """`fake_quant` ops and weight attributes -> the QDQ dialect, with int8 weights."""
    if not any(op.type == "fake_quant" or _has_grid(op) for op in graph.ops):
        return graph
    names = graph.names()
    described: dict[str, Var] = {}
    floats: dict[tuple[str, str, int], str] = {}  # integers, scales, levels -> the variable of a weight's float values
    zero = names.param("quantizer.zero_point", np.zeros(1, np.float32))
    ops = []
    for op in graph.ops:
        if op.type == "fake_quant":
            source, target = op.input("X"), op.output("Out")
            scale = names.param(f"{target}.scale", np.array([op.attr("threshold")], np.float32))
            between = names.fresh(f"{target}.integer")
            described[between] = described[target] = graph.vars[source]
            attrs = _linear_attrs(-1, op.attr("levels"))
            inputs = {"Scale": (scale,), "ZeroPoint": (zero,)}
            ops.append(Op("quantize_linear", {"X": (source,), **inputs}, {"Y": (between,)}, attrs))
            ops.append(Op("dequantize_linear", {"X": (between,), **inputs}, {"Y": (target,)}, attrs))
        elif _has_grid(op):
            thresholds, levels = op.attr("weight_thresholds"), op.attr("weight_levels")
            slot, axis = WEIGHT_SLOT[op.type]
            name = op.input(slot)
            stored = names.param(f"{name}.int8", quantise(graph.params[name], thresholds, levels, axis).astype(np.int8))
            scale = names.param(f"{name}.scale", np.array(thresholds, np.float32))
            if (stored, scale, levels) not in floats:
                floats[stored, scale, levels] = target = names.fresh(f"{name}.float")
                described[target] = graph.vars[name]
                attrs = _linear_attrs(axis if len(thresholds) > 1 else -1, levels)
                inputs = {"X": (stored,), "Scale": (scale,), "ZeroPoint": (zero,)}
                ops.append(Op("dequantize_linear", inputs, {"Y": (target,)}, attrs))
            plain = {key: attr for key, attr in op.attrs.items() if not key.startswith("weight_")}
            ops.append(replace(op, inputs={**op.inputs, slot: (floats[stored, scale, levels],)}, attrs=plain))
        else:
            ops.append(op)
    return graph.evolve(ops, described, names.params)


def _has_grid(op: Op) -> bool:
    """Whether an op's weight lies on a grid that the QDQ dialect can name."""
    return bool(op.attr("weight_thresholds")) and op.type in WEIGHT_SLOT


def without_quantizers(graph: Graph) -> Graph:
    """The network that a fake-quantized graph of either dialect simulates, its weights where they are on their grid.

    The same object when there is nothing to take out.
    """
    lifted = lift_quantizers(graph)
    sources: dict[str, str] = {}
    kept = []
    for op in lifted.ops:
        op = op.rewired(sources)
        if op.type == "fake_quant" and op.output("Out") not in lifted.fetches:
            sources[op.output("Out")] = op.input("X")
            continue
        if op.type == "fake_quant":
            op = replace(op, type="assign", attrs={})
        plain = {name: attr for name, attr in op.attrs.items() if not name.startswith("weight_")}
        kept.append(replace(op, attrs=plain) if len(plain) < len(op.attrs) else op)
    return graph if lifted is graph and tuple(kept) == graph.ops else lifted.evolve(kept)


def _linear_attrs(axis: int, levels: int) -> Mapping[str, Attr]:
    # The kernels go by qmin and qmax and ignore bit_length; round_type 0 is to nearest, ties to even.
    values = {
        "quant_axis": axis,
        "bit_length": bits_of(levels),
        "qmin": -levels - 1,
        "qmax": levels,
        "round_type": 0,
        "is_test": True,
        "only_observer": False,
    }
    return {name: Attr.of(value) for name, value in values.items()}
