"""Read both of Paddle's fake-quantized dialects into one form; write that form as a program plain Paddle runs.

The form, which exists only between these two passes:
- `fake_quant` (X -> Out; threshold, levels): round X to its grid and back, as in `quant.numerics`.
- a weighted op with attributes `weight_thresholds` (one, or one per output channel) and `weight_levels`: its weight
  parameter is float32 and already lies on that grid. A recurrent op (gru, lstm) keeps this form in saved programs,
  because the channels of gru's packed weight are no axis that QDQ could name.

The dialects (paddle/phi/kernels/impl/{quantize_linear,fake_quantize}_kernel*.h,
python/paddle/static/quantization/quantization_pass.py):
- QDQ ("onnx_format"): quantize_linear -> dequantize_linear around activations; int8 weights -> dequantize_linear.
- classic: fake_quantize_* before the op, integer-valued float32 weights, fake_*dequantize_max_abs behind the op.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import ConversionError, ModelError
from quant.graph import Attr, Graph, Op, Var
from quant.numerics import SIGNED, bits_of, channel_thresholds, dequantise, levels_of, quantise, usable

__all__ = [
    "WEIGHT_SLOT",
    "lift_quantizers",
    "lower_quantizers",
    "peaks_of",
    "without_quantizers",
]

# Ops with a constant weight that can be quantised: type -> (weight's slot, axis of the output channels).
WEIGHT_SLOT = {
    "conv2d": ("Filter", 0),
    "depthwise_conv2d": ("Filter", 0),
    "mul": ("Y", 1),
    "matmul": ("Y", 1),
    "matmul_v2": ("Y", 1),
    "fc": ("W", 1),
}

_PADDLES_OWN = ("fake_quantize_", "fake_dequantize_", "fake_channel_wise_", "quantize_linear", "dequantize_linear")
_CLASSIC_STATIC = ("fake_quantize_moving_average_abs_max", "fake_quantize_range_abs_max")
_CLASSIC_BOTH = ("fake_quantize_dequantize_moving_average_abs_max",)
_DYNAMIC = ("fake_quantize_abs_max", "fake_quantize_dequantize_abs_max", "fake_channel_wise_quantize_abs_max")


def peaks_of(name: str, values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """abs-max of each slice of a parameter along `axis`. Raises ModelError where there is none, or it isn't finite."""
    if not values.size or values.dtype.kind != "f":
        raise ModelError(f"parameter {name!r} is {values.dtype}{list(values.shape)}: it can't be rounded to integers")
    if not np.isfinite(values).all():
        raise ModelError(f"parameter {name!r} holds NaN or Inf: it can't be rounded to integers")
    return channel_thresholds(values, axis)


def lift_quantizers(graph: Graph) -> Graph:
    """Both dialects -> `fake_quant` ops and weight attributes. ConversionError for a scale that isn't constant."""
    if not any(op.type.startswith(_PADDLES_OWN) for op in graph.ops):
        return graph
    lifted = _Lift(graph)
    for op in graph.ops:
        lifted.visit(op.rewired(lifted.names))
    ops = [op.with_attrs(**lifted.grids[name]) if (name := _weight_of(op)) in lifted.grids else op for op in lifted.ops]
    return graph.evolve(ops, params=lifted.params)


def _weight_of(op: Op) -> str:
    return op.input(WEIGHT_SLOT[op.type][0]) if op.type in WEIGHT_SLOT else ""


class _Lift:
    """One walk over the ops: what is emitted, which names stand for which, what became of the weights."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writers = graph.writers()
        self.ops: list[Op] = []
        self.names: dict[str, str] = {}
        self.params: dict[str, NDArray[Any]] = {}
        self.grids: dict[str, dict[str, Any]] = {}  # weight parameter -> attributes of the op that reads it
        self.quantised_linear: dict[str, Op] = {}
        self.new = graph.names()
        self.dequantized: dict[tuple[str, bytes, int, int], str] = {}  # weight, grid -> its float parameter

    def constant(self, op: Op, slot: str) -> NDArray[np.float64]:
        name = op.input(slot)
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
        else:
            self.names[target] = source

    def weight(self, op: Op, source: str, target: str, thresholds: NDArray[np.float64], levels: int, axis: int) -> None:
        """Integer-valued parameter `source` becomes the float parameter `target`."""
        shape = self.graph.params[source].shape
        where = f"op {op.type!r} (output {op.writes[0]!r})"
        if not np.isfinite(thresholds).all() or (thresholds < 0).any():
            wrong = thresholds[~(np.isfinite(thresholds) & (thresholds >= 0))][0]
            raise ConversionError(f"{where}: the scale of weight {source!r} is {wrong}: not calibrated?")
        if thresholds.size != 1 and (axis >= len(shape) or thresholds.size != shape[axis]):
            raise ConversionError(
                f"{where}: weight {source!r} of shape {list(shape)} has {thresholds.size} scales along axis {axis}"
            )
        if levels < 1:
            raise ConversionError(f"{where}: weight {source!r} has {levels} levels")
        self.params[target] = dequantise(self.graph.params[source], thresholds, levels, axis)
        self.grids[target] = {"weight_thresholds": usable(thresholds).tolist(), "weight_levels": levels}

    def visit(self, op: Op) -> None:
        if op.type in _DYNAMIC:
            raise ConversionError(f"op {op.type!r} (output {op.output('Out')!r}) computes its scale anew at each run")
        if op.attr("only_observer", False):  # it recorded a scale, and passes values on unchanged
            self.pass_through(op.input("X"), op.output("Y"))
        elif op.type == "quantize_linear":
            self.quantised_linear[op.output("Y")] = op
        elif op.type == "dequantize_linear":
            self._dequantize_linear(op)
        elif op.type in _CLASSIC_BOTH or op.type in _CLASSIC_STATIC:
            levels = levels_of(op.attr("bit_length", 8))
            self.fake_quant(op, op.input("X"), op.output("Out"), float(self.constant(op, "InScale")[0]), levels)
        elif op.type in ("fake_dequantize_max_abs", "fake_channel_wise_dequantize_max_abs"):
            self._classic_dequantize(op)
        elif op.type.startswith(_PADDLES_OWN):
            raise ConversionError(f"op {op.type!r} (output {op.writes[0]!r}) is not supported")
        else:
            self.ops.append(op)

    def _dequantize_linear(self, op: Op) -> None:
        levels, source, target = op.attr("qmax", SIGNED), op.input("X"), op.output("Y")
        scale = self.constant(op, "Scale")
        if source in self.graph.params:
            self.weight(op, source, target, scale, levels, max(op.attr("quant_axis", 0), 0))
        elif source in self.quantised_linear and scale.size == 1:
            self.fake_quant(op, self.quantised_linear[source].input("X"), target, float(scale[0]), levels)
        else:
            raise ConversionError(f"op {op.type!r} (output {target!r}) doesn't follow a weight or a quantize_linear")

    def _classic_dequantize(self, op: Op) -> None:
        behind = self.writers.get(op.input("X"))
        if behind is None or _weight_of(behind) not in self.graph.params:
            raise ConversionError(f"op {op.type!r} (output {op.output('Out')!r}) doesn't follow an op with a weight")
        name, axis = _weight_of(behind), WEIGHT_SLOT[behind.type][1]
        if op.type == "fake_dequantize_max_abs":  # max_range = SIGNED * SIGNED / weight threshold
            thresholds = np.array([SIGNED * SIGNED / op.attr("max_range")])
        else:
            thresholds = self.graph.params[op.inputs["Scales"][0]].astype(np.float64).reshape(-1)
        levels = levels_of((op.attr("quant_bits") or [8])[0])
        key = (name, thresholds.tobytes(), levels, axis)
        if key not in self.dequantized:
            self.dequantized[key] = self.new.fresh(f"{name}.dequantized")
            self.weight(op, name, self.dequantized[key], thresholds, levels, axis)
        target = self.dequantized[key]
        self.ops = [o.rewired({name: target}) if o.writes == behind.writes else o for o in self.ops]
        self.pass_through(op.input("X"), op.output("Out"))


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
