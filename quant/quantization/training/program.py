"""Quantization-aware training: fake quantisation in a user's training program, and the frozen model that comes of it.

The steps and the names of the options are PaddleSlim's (`paddleslim.quant.quant_aware`, `convert`): insert into the
training program and its test twin, train as before, freeze. What is rounded is decided where calibration decides it
(`quant.quantization.plan`), so a trained model converts to the same kernels as a calibrated one.

Rounding is transparent to gradients (straight-through estimator, Bengio et al. 2013; Jacob et al. 2017, section 3).
Ops may be inserted before or after the backward pass exists: grad ops of a quantised op read the rounded values and
write the gradient of the unrounded ones.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before Paddle loads: legacy programs only

import paddle

from quant.errors import ConversionError, OptionError, check_choice
from quant.ir.fusion import QUANTIZABLE, Chain, numbered
from quant.ir.graph import Graph, Op, as_today, forward_of, is_forward, run_passes
from quant.ir.numerics import STATE_THRESHOLD, bits_of, levels_of, usable
from quant.ir.passes import JOIN
from quant.ir.passes.quantizers import WEIGHT_SLOT
from quant.quantization.observers import Choice
from quant.quantization.plan import Plan, plan_of, roundable, simulate

__all__ = [
    "Config",
    "Scheme",
    "convert",
    "freeze",
    "quant_aware",
    "scheme_of",
    "thresholds_in",
    "with_weight_thresholds",
]

ValueOf = Callable[[str], NDArray[Any] | None]  # a variable's name -> what it holds, None when nothing

_MARK = ".qat"  # in the names of all that is inserted
_WEIGHT_TYPES = ("channel_wise_abs_max", "abs_max")
_ACTIVATION_TYPES = ("moving_average_abs_max", "range_abs_max")
# Rounded as part of the convolution that takes the addition over; accepted, because the seeds' configurations name it.
_WITH_THEIR_CHAIN = ("elementwise_add",)
_DEFAULT_OPS = ("conv2d", "depthwise_conv2d", "mul", "matmul", "gru", "lstm")


@dataclass(frozen=True)
class Config:
    """How to quantise while training; the keys are those of PaddleSlim's `quant_aware`.

    `weight_quantize_type`: one scale an output channel, or one a tensor. `activation_quantize_type`: the threshold is
    a moving average of each batch's abs-max (`moving_rate`), or the largest of the last `window_size` batches.
    `weight_bits`: 8, fewer for coarser weights (7 for CPUs without VNNI). `activation_bits`: kernels know 8 only.
    `quantize_op_types`: of the seeds' list. `not_quant_pattern`: ops whose name scope (paddle.static.name_scope)
    contains one of these stay unquantised.
    """

    weight_quantize_type: str = "channel_wise_abs_max"
    activation_quantize_type: str = "moving_average_abs_max"
    weight_bits: int = 8
    activation_bits: int = 8
    quantize_op_types: tuple[str, ...] = _DEFAULT_OPS
    not_quant_pattern: tuple[str, ...] = ("skip_quant",)
    window_size: int = 10_000
    moving_rate: float = 0.9

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Config":
        """A configuration from a mapping, as from JSON. Raises OptionError, with the nearest valid name."""
        names = [field.name for field in fields(Config)]
        for key in values:
            check_choice("configuration key", str(key), names)
        lists = {"quantize_op_types", "not_quant_pattern"}
        kept = {}
        for key, value in values.items():
            if key in lists:
                value = (value,) if isinstance(value, str) else value
                if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
                    raise OptionError(f"{key}: {value!r} is not a list of names")
                value = tuple(value)
            kept[key] = value
        return Config(**kept)

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_number("weight_bits", 2, 8, int)
        self._check_number("activation_bits", 8, 8, int)
        self._check_number("window_size", 1, 1 << 31, int)
        self._check_number("moving_rate", 0.0, 1.0, float)
        if not 0 < self.moving_rate < 1:
            raise OptionError(f"moving_rate: {self.moving_rate!r} is not between 0 and 1")

    def _check_choices(self) -> None:
        for key, valid in (("weight_quantize_type", _WEIGHT_TYPES), ("activation_quantize_type", _ACTIVATION_TYPES)):
            value = getattr(self, key)
            if not isinstance(value, str):
                raise OptionError(f"{key}: {value!r} is not a name")
            if key == "activation_quantize_type" and value == "abs_max":
                raise OptionError(f"{key}: abs_max computes its scale anew at each run, which INT8 kernels can't")
            check_choice(key, value, valid)
        for name in self.quantize_op_types:
            check_choice("quantize_op_types entry", name, (*QUANTIZABLE, *_WITH_THEIR_CHAIN))

    def _check_number(self, key: str, low: float, high: float, kind: type) -> None:
        value = getattr(self, key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (kind is int and not isinstance(value, int)) or not low <= value <= high:
            raise OptionError(
                f"{key}: {value!r} is not {'a whole number' if kind is int else 'a number'} {low}..{high}"
            )

    @property
    def weight_levels(self) -> int:
        return levels_of(self.weight_bits)

    @property
    def per_channel(self) -> bool:
        return self.weight_quantize_type == "channel_wise_abs_max"


# --- what is rounded


@dataclass(frozen=True)
class Scheme:
    """A program's forward ops as conversion will see them, joined into chains, and what is rounded of them."""

    view: Graph
    chains: Mapping[Op, Chain]
    plan: Plan

    def is_state(self, group: str) -> bool:
        """Whether a group is a recurrent layer's output, whose grid is known without data."""
        return any(self.plan.group.get(name) == group for name in self.plan.states)

    def only(self, groups: Collection[str]) -> "Scheme":
        """The scheme without the tensors whose group has no threshold; what reads those stays float32."""
        have = {*groups, *(self.plan.group[name] for name in self.plan.states)}

        def rounded(name: str) -> bool:
            return self.plan.group.get(name) in have

        chains = {op: chain for op, chain in self.chains.items() if all(map(rounded, chain.operands))}
        residual = {chain for chain in chains.values() if chain in self.plan.residual and rounded(chain.residual)}
        group = {name: of for name, of in self.plan.group.items() if of in have}
        return replace(self, chains=chains, plan=replace(self.plan, residual=residual, group=group))


def scheme_of(graph: Graph, config: Config) -> Scheme:
    """Raises ConversionError when nothing can be quantised."""
    # Joining needs shapes, not values: a program can be rewritten before its parameters exist.
    params = graph.params
    if any(value.shape != graph.vars[name].shape for name, value in params.items()):
        params = {name: np.broadcast_to(np.float32(1), graph.vars[name].shape) for name in params}
    ops = tuple(op.with_attrs(is_test=True) if op.type == "batch_norm" else op for op in graph.ops)
    view = run_passes(replace(graph, ops=ops, params=params), (as_today, *JOIN))
    types = [name for name in config.quantize_op_types if name in QUANTIZABLE]
    left_out = [number for op, number in numbered(view).items() if _left_out(op, config)]
    chains = roundable(view, types, left_out, config.weight_levels)
    if not chains:
        raise ConversionError("nothing to quantise: no op of the chosen types with a constant weight")
    return Scheme(view, chains, plan_of(view, chains))


def _left_out(op: Op, config: Config) -> bool:
    scope = op.attr("op_namescope", "")
    return any(pattern in scope for pattern in config.not_quant_pattern)


def _rounded_reads(scheme: Scheme) -> dict[str, set[str]]:
    """First output of an op -> the tensors that it reads rounded."""
    reads: dict[str, set[str]] = {}
    for op, chain in scheme.chains.items():
        reads.setdefault(op.writes[0], set()).update(chain.operands)
        if chain in scheme.plan.residual:
            add = next(link for link in chain.ops[1:] if chain.residual in link.reads)
            reads.setdefault(add.writes[0], set()).add(chain.residual)
    for op in scheme.view.ops:
        if states := set(op.reads).intersection(scheme.plan.states):
            reads.setdefault(op.writes[0], set()).update(states)
    return reads


def _state_names(group: str) -> dict[str, str]:
    return {part: f"{group}{_MARK}.{part}" for part in ("scale", "accum", "state", "window", "step")}


# --- inserting


def quant_aware(
    program: Any,
    config: Config = Config(),
    *,
    for_test: bool = False,
    scope: Any = None,
    thresholds: Mapping[str, float] | None = None,
) -> Any:
    """A copy of a `paddle.static.Program` with fake quantisation in it.

    `program` is the training program, with or without its backward and optimiser ops, or (`for_test`) its test twin
    (`program.clone(for_test=True)`); both share their thresholds through variables in `scope` (default: the global
    one). `thresholds`: tensor -> where its threshold starts; without, the first batch sets it.
    Raises OptionError for what `config` can't be, ConversionError when nothing can be quantised, ModelError for
    control flow.
    """
    graph = forward_of(program.desc.serialize_to_string())
    scheme = scheme_of(graph, config)
    copy = program.clone()
    _Insertion(copy, graph, scheme, config, for_test, scope or paddle.static.global_scope()).run(thresholds or {})
    return copy


class _Insertion:
    def __init__(self, program: Any, graph: Graph, scheme: Scheme, config: Config, for_test: bool, scope: Any) -> None:
        self.block = program.global_block()
        self.graph, self.scheme, self.config = graph, scheme, config
        self.for_test, self.scope = for_test, scope
        self.writers = graph.writers()
        self.seen = {name for op in scheme.view.ops for name in (*op.reads, *op.writes)}
        places = [place for place, op in enumerate(self.block.ops) if is_forward(op.type, op.attr("op_role"))]
        self.index = {op.writes[0]: place for op, place in zip(graph.ops, places, strict=True)}
        self.forward = {op.writes[0]: op for op in graph.ops}
        self.names = graph.names()
        self.twins: dict[tuple[str, str], str] = {}  # tensor, what it is rounded by -> its rounded twin
        self.inserts: list[tuple[int, dict[str, Any]]] = []  # (place, op), in the order of writing

    def run(self, thresholds: Mapping[str, float]) -> None:
        plan = self.scheme.plan
        for group in dict.fromkeys(plan.group.values()):
            start = max((thresholds.get(name, 0.0) for name, of in plan.group.items() if of == group), default=0.0)
            self.state(group, STATE_THRESHOLD if self.scheme.is_state(group) else start)
        renames: dict[str, dict[str, str]] = {}  # first output of an op -> its input -> that input's twin
        for out, wanted in _rounded_reads(self.scheme).items():
            op = self.forward[out]
            for name in op.reads:
                if (source := self.origin(name)) in wanted:
                    renames.setdefault(out, {})[name] = self.activation(name, plan.group[source])
        for op, chain in self.scheme.chains.items():
            if chain.cell:
                self.cell(chain, renames)
            elif chain.weight:
                original = self.forward[op.writes[0]]
                name = original.input(WEIGHT_SLOT[original.type][0])
                renames.setdefault(op.writes[0], {})[name] = self.weight(name, WEIGHT_SLOT[original.type][1])
        self.rename(renames)
        for _, (place, spec) in sorted(
            enumerate(self.inserts), key=lambda entry: (entry[1][0], entry[0]), reverse=True
        ):
            self.block._insert_op(place, **spec)

    def origin(self, name: str) -> str:
        """A tensor of the program -> the one that stands for it in the joined view: ops that went lie in between."""
        while name not in self.seen and (op := self.writers.get(name)) is not None and op.input("X"):
            name = op.input("X")
        return name

    def rename(self, renames: Mapping[str, Mapping[str, str]]) -> None:
        """Make ops, and their grad ops, read the twins."""
        ops = list(self.block.ops)
        grads = {name: op for op in ops if op.type.endswith("_grad") for name in op.input_arg_names}
        for out, names in renames.items():
            op = ops[self.index[out]]
            grad = next((grads[of] for of in (f"{name}@GRAD" for name in op.output_arg_names) if of in grads), None)
            for old, new in names.items():
                op._rename_input(old, new)
                if grad is not None and grad.type == f"{op.type}_grad":
                    grad._rename_input(old, new)

    # --- variables

    def state(self, group: str, start: float) -> None:
        """The variables of a group's threshold, shared by the training program and its twin."""
        names = _state_names(group)
        values: dict[str, NDArray[Any]] = {
            "scale": np.full(1, start, np.float32),
            "accum": np.full(1, start, np.float32),
            "state": np.full(1, float(start > 0), np.float32),
        }
        if self.config.activation_quantize_type == "range_abs_max":
            values["window"] = np.zeros(self.config.window_size, np.float32)
            values["step"] = np.zeros(1, np.int64)
        for part, value in values.items():
            self.block.create_var(
                name=names[part], shape=value.shape, dtype=str(value.dtype), persistable=True, stop_gradient=True
            )
            tensor = self.scope.var(names[part]).get_tensor()
            if not tensor._is_initialized():
                tensor.set(value, paddle.CPUPlace())

    def like(self, name: str, suffix: str = "") -> str:
        """A new variable described as `name`; the name of it."""
        var, twin = self.block.var(name), self.names.fresh(f"{name}{_MARK}{suffix}")
        self.block.create_var(name=twin, shape=var.shape, dtype=var.dtype, lod_level=var.lod_level)
        return twin

    def made(self, name: str, shape: Sequence[int]) -> str:
        self.block.create_var(name=name, shape=list(shape), dtype="float32")
        return name

    # --- ops

    def insert(
        self, place: int, kind: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], **attrs: Any
    ) -> None:
        spec = {"type": kind, "inputs": dict(inputs), "outputs": dict(outputs), "attrs": {**attrs, "op_role": 0}}
        self.inserts.append((place, spec))

    def activation(self, name: str, group: str) -> str:
        """The rounded twin of an activation, made behind the op that writes it."""
        if (name, group) in self.twins:
            return self.twins[name, group]
        twin = self.twins[name, group] = self.like(name)
        names, levels = _state_names(group), self.scheme.plan.levels[group]
        writer = self.writers.get(name)
        place = 0 if writer is None else self.index[writer.writes[0]] + 1
        frozen = self.for_test or self.scheme.is_state(group)
        if frozen or self.config.activation_quantize_type == "moving_average_abs_max":
            moving = {} if frozen else {"InAccum": names["accum"], "InState": names["state"]}
            moved = {} if frozen else {"OutAccum": names["accum"], "OutState": names["state"]}
            self.insert(
                place,
                "fake_quantize_dequantize_moving_average_abs_max",
                {"X": name, "InScale": names["scale"], **moving},
                {"Out": twin, "OutScale": names["scale"], **moved},
                moving_rate=self.config.moving_rate,
                bit_length=bits_of(levels),
                round_type=0,
                is_test=frozen,
            )
            return twin
        integers = self.like(name, ".integers")
        self.insert(
            place,
            "fake_quantize_range_abs_max",
            {"X": name, "InScale": names["scale"], "Iter": names["step"]},
            {"Out": integers, "OutScale": names["scale"], "OutScales": names["window"]},
            window_size=self.config.window_size,
            bit_length=bits_of(levels),
            round_type=0,
            is_test=False,
        )
        self.insert(place, "increment", {"X": names["step"]}, {"Out": names["step"]}, step=1.0)
        self.insert(
            place,
            "fake_dequantize_max_abs",
            {"X": integers, "Scale": names["scale"]},
            {"Out": twin},
            max_range=float(levels),
        )
        return twin

    def weight(self, name: str, axis: int, place: int = 0) -> str:
        """The rounded twin of a parameter; its thresholds follow it as it is trained."""
        if (name, f"axis {axis}") in self.twins:
            return self.twins[name, f"axis {axis}"]
        twin = self.twins[name, f"axis {axis}"] = self.like(name)
        channels = self.block.var(name).shape[axis]
        attrs = {"bit_length": self.config.weight_bits, "round_type": 0}
        if self.config.per_channel:
            scale = self.made(f"{twin}.scale", [channels])
            kind, attrs = "fake_channel_wise_quantize_dequantize_abs_max", {**attrs, "quant_axis": axis}
        else:
            scale, kind = self.made(f"{twin}.scale", [1]), "fake_quantize_dequantize_abs_max"
        self.insert(place, kind, {"X": name}, {"Out": twin, "OutScale": scale}, **attrs)
        return twin

    def cell(self, chain: Chain, renames: dict[str, dict[str, str]]) -> None:
        """Round both weights of a recurrent layer with one scale a channel, as its kernel does
        (quant.quantization.plan).

        That of the input counts in units of the input's threshold. gru packs its weight in two parts
        (quant.ir.fusion.state_matrix), which are laid side by side and back.
        """
        assert chain.cell is not None
        product, cell = self.forward[chain.op.writes[0]], self.forward[chain.cell.writes[0]]
        wide, state = product.input(WEIGHT_SLOT[product.type][0]), cell.input("Weight")
        place = self.index[product.writes[0]]
        rows, columns = self.block.var(wide).shape
        hidden = self.block.var(state).shape[0]
        scale = _state_names(self.scheme.plan.group[chain.data])["scale"]
        stem = self.names.fresh(f"{state}{_MARK}")

        def step(part: str, size: Sequence[int], kind: str, inputs: Mapping[str, Any], **attrs: Any) -> str:
            out = self.made(f"{stem}.{part}", size)
            also = {"XShape": self.made(f"{out}.xshape", [0, *size])} if kind == "reshape2" else {}
            self.insert(place, kind, inputs, {"Out": out, **also}, **attrs)
            return out

        def cut(part: str, of: str, shapes: Sequence[Sequence[int]], axis: int) -> list[str]:
            outs = [self.made(f"{stem}.{part}{number}", shape) for number, shape in enumerate(shapes)]
            self.insert(
                place, "split", {"X": of}, {"Out": outs}, sections=[shape[axis] for shape in shapes], axis=axis, num=0
            )
            return outs

        matrix = state
        if cell.type == "gru":
            flat = step("flat", [3 * hidden * hidden], "reshape2", {"X": state}, shape=[-1])
            gates, candidate = cut("flat", flat, [[2 * hidden * hidden], [hidden * hidden]], 0)
            gates = step("gates", [hidden, 2 * hidden], "reshape2", {"X": gates}, shape=[hidden, 2 * hidden])
            candidate = step("candidate", [hidden, hidden], "reshape2", {"X": candidate}, shape=[hidden, hidden])
            matrix = step("matrix", [hidden, columns], "concat", {"X": [gates, candidate]}, axis=1)
        scaled = step("scaled", [rows, columns], "elementwise_mul", {"X": wide, "Y": scale}, axis=-1)
        joint = step("joint", [rows + hidden, columns], "concat", {"X": [scaled, matrix]}, axis=0)
        rounded = self.made(f"{stem}.rounded", [rows + hidden, columns])
        self.insert(
            place,
            "fake_channel_wise_quantize_dequantize_abs_max",
            {"X": joint},
            {"Out": rounded, "OutScale": self.made(f"{stem}.joint.scale", [columns])},
            bit_length=self.config.weight_bits,
            round_type=0,
            quant_axis=1,
        )
        upper, lower = cut("part", rounded, [[rows, columns], [hidden, columns]], 0)
        twin = self.like(wide)
        self.insert(place, "elementwise_div", {"X": upper, "Y": scale}, {"Out": twin}, axis=-1)
        if cell.type == "gru":
            gates, candidate = cut("rounded", lower, [[hidden, 2 * hidden], [hidden, hidden]], 1)
            gates = step("gates.flat", [2 * hidden * hidden], "reshape2", {"X": gates}, shape=[-1])
            candidate = step("candidate.flat", [hidden * hidden], "reshape2", {"X": candidate}, shape=[-1])
            flat = step("packed.flat", [3 * hidden * hidden], "concat", {"X": [gates, candidate]}, axis=0)
            lower = step("packed", [hidden, columns], "reshape2", {"X": flat}, shape=[hidden, columns])
        renames.setdefault(product.writes[0], {})[wide] = twin
        renames.setdefault(cell.writes[0], {})[state] = lower


# --- freezing


def convert(
    program: Any,
    feed_vars: Sequence[Any],
    fetch_vars: Sequence[Any],
    config: Config = Config(),
    *,
    scope: Any = None,
) -> Graph:
    """Freeze a trained test program (from `quant_aware(..., for_test=True)`): a fake-quantized graph.

    `feed_vars`, `fetch_vars`: the inputs and outputs of inference, as `paddle.static.save_inference_model` takes them.
    Save it with `save_dir(lower_quantizers(graph), directory)`; its weights are int8.
    Raises ConversionError when a tensor has no threshold yet, or none was trained.
    """
    scope = scope or paddle.static.global_scope()
    normal = paddle.static.normalize_program(program, list(feed_vars), list(fetch_vars))
    graph = forward_of(normal.desc.serialize_to_string())
    graph = replace(graph, feeds=tuple(var.name for var in feed_vars), fetches=tuple(var.name for var in fetch_vars))

    def value(name: str) -> NDArray[Any] | None:
        found = scope.find_var(name)
        return None if found is None or not found.get_tensor()._is_initialized() else np.array(found.get_tensor())

    scheme = scheme_of(with_weight_thresholds(without_rounding(graph, value), config), config)
    return freeze(scheme, thresholds_in(scheme, value), config)


def without_rounding(graph: Graph, value: ValueOf) -> Graph:
    """The graph as it was before `quant_aware`, with parameters: `value(name)` -> array."""
    inserted = {
        name for op in graph.ops for name in op.writes if _MARK in name and all(_MARK in other for other in op.writes)
    }
    names = {name: name.partition(_MARK)[0] for name in inserted}
    ops = [op.rewired(names) for op in graph.ops if not inserted.issuperset(op.writes)]
    params = {}
    for name in {name for op in ops for name in op.reads if name in graph.params}:
        found = value(name)
        if found is None:
            raise ConversionError(f"parameter {name!r} has no value: was the startup program run?")
        params[name] = found
    described = {name: graph.vars[name] for name in graph.vars if name not in graph.params or name in params}
    return replace(graph, params=params, vars=described).evolve(ops)


def with_weight_thresholds(graph: Graph, config: Config) -> Graph:
    """A trained graph that tells the thresholds of its weights where those don't follow from each channel alone.

    One scale a tensor becomes one a channel when batch norm or a scale is folded into the weight afterwards.
    """
    if config.per_channel:
        return graph

    def told(op: Op) -> Op:
        if op.type not in WEIGHT_SLOT or (name := op.input(WEIGHT_SLOT[op.type][0])) not in graph.params:
            return op
        weight = graph.params[name]
        channels = weight.shape[WEIGHT_SLOT[op.type][1]]
        return op.with_attrs(weight_thresholds=[float(usable(np.abs(weight).max())[0])] * channels)

    return replace(graph, ops=tuple(map(told, graph.ops)))


def thresholds_in(scheme: Scheme, value: ValueOf) -> dict[str, float]:
    """Group -> threshold, from the variables of a trained program."""
    found = {group: value(_state_names(group)["scale"]) for group in scheme.plan.group.values()}
    return {group: float(scale.reshape(-1)[0]) for group, scale in found.items() if scale is not None}


def freeze(scheme: Scheme, thresholds: Mapping[str, float], config: Config) -> Graph:
    """The fake-quantized graph with trained `thresholds`, group -> threshold.

    Raises ConversionError for a tensor without one.
    """
    chosen = {}
    for group in dict.fromkeys(scheme.plan.group.values()):
        threshold = thresholds.get(group, STATE_THRESHOLD if scheme.is_state(group) else 0.0)
        if not np.isfinite(threshold) or threshold <= 0:
            raise ConversionError(f"tensor {group!r} has no threshold: was the quantised program trained?")
        chosen[group] = Choice("trained", threshold)
    return simulate(scheme.view, scheme.chains, scheme.plan, chosen, config.weight_levels)
