"""Quantization-aware training of dygraph layers (`paddle.nn.Layer`): the twin of `training.program` for eager users.

The layer is traced once, to learn what its kernels will round; then the sublayers that own a quantised weight round
their input and weight whenever they run. The user's training loop, optimiser and checkpoints stay as they are:
thresholds are buffers of the sublayers.

A tensor that no sublayer with a weight reads (the second operand of an addition, both factors of attention's products)
can't be reached that way. It gets its threshold on freezing, from calibration batches; without such batches it stays
unrounded, and its reader reads float32.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before Paddle loads: legacy programs only

import paddle
from paddle import _C_ops

from quant.datasets.columns import Column
from quant.errors import ConversionError
from quant.ir.graph import Graph, load_dir
from quant.ir.numerics import bits_of
from quant.ir.passes.quantizers import WEIGHT_SLOT
from quant.quantization.calibration import calibrate
from quant.quantization.training.program import Config, Scheme, freeze, scheme_of, with_weight_thresholds

__all__ = ["convert_layer", "quant_aware_layer"]

_PARTS = ("quant_scale", "quant_state", "quant_accum")  # buffers of a sublayer: its input's threshold, its moving sums
_DEFAULT = Config()


class _Rounding:
    """The hooks of one sublayer: before it runs, its input and weight are rounded; afterwards its weight is back."""

    def __init__(self, levels: int, axis: int, config: Config) -> None:
        self.levels, self.axis, self.config = levels, axis, config
        self.on = True
        self.weight: Any = None

    def before(self, layer: Any, inputs: tuple[Any, ...]) -> Any:
        if not self.on:
            return None
        scale, state, accum = (getattr(layer, part) for part in _PARTS)
        rounded, *moved = _C_ops.fake_quantize_dequantize_moving_average_abs_max(
            inputs[0], scale, accum, state, self.config.moving_rate, bits_of(self.levels), not layer.training, 0
        )
        if layer.training:
            for buffer, value in zip((scale, state, accum), moved, strict=True):
                buffer.set_value(value.detach())
        bits = self.config.weight_bits
        self.weight = layer._parameters.pop("weight")
        if self.config.per_channel:
            layer.weight = _C_ops.fake_channel_wise_quantize_dequantize_abs_max(self.weight, bits, 0, self.axis)[0]
        else:
            layer.weight = _C_ops.fake_quantize_dequantize_abs_max(self.weight, bits, 0)[0]
        return (rounded, *inputs[1:])

    def after(self, layer: Any, inputs: Any, output: Any) -> None:
        if self.weight is not None:
            del layer.weight
            layer._parameters["weight"], self.weight = self.weight, None


def quant_aware_layer(layer: Any, input_spec: Sequence[Any], config: Config = _DEFAULT) -> Any:
    """Put fake quantisation into `layer`, in place; returns it.

    `input_spec`: `paddle.static.InputSpec` of each input, as `paddle.jit.save` takes them. Train as before, in as many
    steps as it takes; then `convert_layer`. Raises ConversionError when there is nothing to quantise, or the layer
    has been through here already.
    """
    if _roundings(layer):
        raise ConversionError(f"{type(layer).__name__} is quantised already")
    graph = _traced(layer, input_spec)
    scheme = scheme_of(graph, config)
    owners = {sublayer.weight.name: sublayer for sublayer in layer.sublayers(True) if _has_weight(sublayer)}
    reached = 0
    for weight, group, axis in _weights(graph, scheme):
        if weight not in owners:
            continue
        rounding = _Rounding(scheme.plan.levels[group], axis, config)
        owner = owners[weight]
        for part in _PARTS:
            owner.register_buffer(part, paddle.zeros([1]))
        owner.quant_rounding = rounding
        owner.register_forward_pre_hook(rounding.before)
        owner.register_forward_post_hook(rounding.after)
        reached += 1
    if not reached:
        raise ConversionError(f"nothing to quantise: no sublayer of {type(layer).__name__} owns a quantizable weight")
    return layer


def convert_layer(
    layer: Any,
    input_spec: Sequence[Any],
    config: Config = _DEFAULT,
    batches: Iterable[Mapping[str, Column]] = (),
) -> Graph:
    """Freeze a trained layer: a fake-quantized graph.

    `config` is that of `quant_aware_layer`. `batches` (input name -> array) calibrate what training can't reach; see
    the module's docstring. Raises ConversionError when the layer was never quantised or trained.
    """
    roundings = _roundings(layer)
    if not roundings:
        raise ConversionError(f"{type(layer).__name__} has no fake quantisation in it: quant_aware_layer comes first")
    for _, rounding in roundings:
        rounding.on = False
    try:
        graph = _traced(layer, input_spec)
    finally:
        for _, rounding in roundings:
            rounding.on = True
    scheme = scheme_of(with_weight_thresholds(graph, config), config)
    owners = {owner.weight.name: owner for owner, _ in roundings}
    trained: dict[str, float] = {}
    for weight, group, _ in _weights(graph, scheme):
        if weight in owners:  # readers of one tensor saw the same values, up to where their averages started
            trained[group] = max(trained.get(group, 0.0), float(owners[weight].quant_scale.numpy()[0]))
    if unused := [group for group, threshold in trained.items() if threshold <= 0]:
        raise ConversionError(f"tensor {unused[0]!r} has no threshold: was the quantised layer trained?")
    if given := list(batches):
        simulated = calibrate(scheme.view, given, weight_levels=config.weight_levels)
        seen = {op.input("X"): float(op.attr("threshold")) for op in simulated.ops if op.type == "fake_quant"}
        calibrated = {of: seen[name] for name, of in scheme.plan.group.items() if name in seen}
        trained = {**calibrated, **trained}
    return freeze(scheme.only(trained), trained, config)


def _has_weight(layer: Any) -> bool:
    return isinstance(getattr(layer, "weight", None), paddle.Tensor)


def _roundings(layer: Any) -> list[tuple[Any, _Rounding]]:
    found = ((sublayer, getattr(sublayer, "quant_rounding", None)) for sublayer in layer.sublayers(True))
    return [(sublayer, rounding) for sublayer, rounding in found if isinstance(rounding, _Rounding)]


def _weights(graph: Graph, scheme: Scheme) -> list[tuple[str, str, int]]:
    """Of each chain with a constant weight: the weight's name in the layer, its input's group, its channels' axis."""
    original = {op.writes[0]: op for op in graph.ops}
    found = []
    for op, chain in scheme.chains.items():
        if chain.weight:
            slot, axis = WEIGHT_SLOT[op.type]
            found.append((original[op.writes[0]].input(slot), scheme.plan.group[chain.data], axis))
    return found


def _traced(layer: Any, input_spec: Sequence[Any]) -> Graph:
    """The layer's inference graph, its parameters under their own names."""
    training = layer.training
    layer.eval()
    try:
        with tempfile.TemporaryDirectory(prefix="quant-trace-") as scratch:
            traced = paddle.jit.to_static(layer, full_graph=True, input_spec=list(input_spec))
            try:
                paddle.jit.save(traced, str(Path(scratch) / "inference"))
            finally:
                layer.forward.rollback()
            graph = load_dir(Path(scratch))
            return replace(graph, params={name: value.copy() for name, value in graph.params.items()})
    finally:
        if training:
            layer.train()
