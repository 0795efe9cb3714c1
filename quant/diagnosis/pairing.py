"""What stands for each op of a converted graph in its simulation and in the FP32 model. Pure functions on graphs.

Names lead: converting calls a tensor's stored form by the tensor's name and a suffix, and normalising keeps names. A
name without a counterpart has none; nothing is paired by shape, order or values.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quant.ir.fusion import is_carrier
from quant.ir.graph import Graph, Op, Var
from quant.ir.int8_regions import int8_op
from quant.ir.passes import lower_quantizers
from quant.quantization.int8_attributes import Grid

__all__ = [
    "SCALES",
    "WRITTEN",
    "Form",
    "Twin",
    "apart",
    "forms_of",
    "grids_of",
    "read_scales",
    "stem",
    "steps_to_a_unit",
    "twins_of",
]

# What the INT8 emitter puts behind a variable's name (quant.quantization.conversion), and quant.ir.names behind that.
_STORED = re.compile(r"\.(flat\.int8|int8|u8)(\.\d+)?$")
# The name of a rounded tensor (quant.quantization.plan, quant.ir.passes.hoist_quantizers), which a model without
# quantizers lacks.
_ROUNDED = re.compile(r"(\.quantized|\.above\..+)(\.\d+)?$")

# Op type -> slot of an int8 input -> the attribute that says what a unit of its integers is, levels / threshold.
SCALES: Mapping[str, Mapping[str, str]] = {
    "fused_conv2d": {"Input": "Scale_in", "ResidualData": "Scale_in_eltwise"},
    "fc": {"Input": "Scale_in"},
    "fused_matmul": {"X": "Scale_x", "Y": "Scale_y"},
    "dequantize": {"Input": "Scale"},
}
# Op type -> the attribute that says so of its output.
WRITTEN: Mapping[str, str] = {
    "fused_conv2d": "Scale_out",
    "fc": "Scale_out",
    "fused_matmul": "Scale_out",
    "quantize": "Scale",
}
_INTEGERS = ("int8", "uint8")
_CELLS = ("fusion_gru", "fusion_lstm", "multi_gru")


@dataclass(frozen=True)
class Form:
    """How an op stores its output: integers to a unit, and the integer that means 0."""

    scale: float
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Twin:
    """What runs as one op of a converted graph: `ops`, the last of which names it.

    `variable`: what it writes; `inputs`: the variables that it reads, constants apart; `residual`: one of them, or "".
    `name`: the simulation's name of what it writes ("": none), `inner`: the simulation's ops that it does, None where
    they don't lie between its inputs and its output. `grid`: what the simulation rounds its output to. `fp32`: the FP32
    model's name ("": none), and `sources` the types of the FP32 model's ops that it does.
    """

    ops: tuple[Op, ...]
    variable: str
    inputs: tuple[str, ...]
    residual: str
    name: str
    inner: tuple[Op, ...] | None
    grid: Grid | None
    fp32: str
    sources: tuple[str, ...]

    @property
    def op(self) -> Op:
        return self.ops[-1]


def _constants_of(graph: Graph) -> set[str]:
    """Parameters, and what ops compute from those alone."""
    found = set(graph.params)
    for op in graph.ops:
        if op.reads and all(name in found for name in op.reads if name):
            found.update(op.writes)
    return found


def stem(variable: str, names: Collection[str]) -> str:
    """The tensor whose stored form a variable is; "" if there is none of that name."""
    bare = _STORED.sub("", variable)
    return next((name for name in (variable, bare, _ROUNDED.sub("", bare)) if name in names), "")


def forms_of(graph: Graph) -> dict[str, Form]:
    """Variable of a converted graph that holds int8 or uint8 -> how its op stores it."""
    found: dict[str, Form] = {}
    for op in graph.ops:
        form = None
        if op.type in WRITTEN:
            form = Form(float(op.attr(WRITTEN[op.type], 1.0)), int(op.attr("Shift", 0.0)))
        elif op.type in _CELLS:
            form = Form(float(op.attr("Scale_data", 1.0)), int(op.attr("Shift_data", 0.0)))
        elif int8_op(op) and op.input("X") in found:  # it only carries values
            form = found[op.input("X")]
        stored = [name for name in op.writes if _dtype(graph, name) in _INTEGERS]
        found.update(dict.fromkeys(stored, form) if form else {})
    return found


def read_scales(graph: Graph) -> dict[str, dict[str, float]]:
    """Variable -> what the ops that read it take a unit of its integers for, "output: attribute" -> scale.

    Ops that only carry values hand on what their own readers take it for.
    """
    found: dict[str, dict[str, float]] = {}
    for op in reversed(graph.ops):
        for slot, attribute in SCALES.get(op.type, {}).items():
            name = op.input(slot)
            if _dtype(graph, name) in _INTEGERS:
                found.setdefault(name, {})[f"{op.writes[0]}: {attribute}"] = float(op.attr(attribute, 1.0))
        if op.type not in SCALES and op.type not in _CELLS and int8_op(op):
            behind = {key: scale for name in op.writes for key, scale in found.get(name, {}).items()}
            for name in op.inputs.get("X", ()):
                found.setdefault(name, {}).update(behind)
    return found


def grids_of(placed: Graph) -> dict[str, Grid]:
    """Tensor of a placed graph (quant.ir.passes.PLACE) -> the grid that its values lie on, or that all readers round
    to.

    Ops that only carry values hand a grid on.
    """
    readers = placed.readers()
    found: dict[str, Grid] = {}
    for op in placed.ops:
        if op.type == "fake_quant":
            found[op.output("Out")] = (op.attr("threshold"), op.attr("levels"))
        for name in op.writes if op.type != "fake_quant" else ():
            behind = readers.get(name, [])
            rounded = behind and all(reader.type == "fake_quant" for reader in behind) and name not in placed.fetches
            grids = {(reader.attr("threshold"), reader.attr("levels")) for reader in behind} if rounded else set()
            if not grids and is_carrier(op) and all(source in found for source in op.inputs["X"]):
                grids = {found[source] for source in op.inputs["X"]}
            if len(grids) == 1:
                found[name] = grids.pop()
    return found


def _between(graph: Graph, writers: Mapping[str, Op], goal: str, inputs: Collection[str]) -> tuple[Op, ...] | None:
    """The ops of a graph that make `goal` from `inputs` and constants, in order; None when it takes more than those."""
    found: set[Op] = set()
    todo = [goal]
    while todo:
        name = todo.pop()
        if not name or name in inputs or name in graph.params:
            continue
        if name not in writers:
            return None
        if writers[name] not in found:
            found.add(writers[name])
            todo.extend(writers[name].reads)
    return tuple(op for op in graph.ops if op in found)


def twins_of(
    converted: Graph, placed: Graph, normal: Graph, exported: Graph, seen: Collection[str]
) -> tuple[Twin, ...]:
    """A twin for each variable in `seen` that an op of a converted graph writes, constants apart.

    An input that isn't seen lies inside a kernel: then its op belongs to the twin. `placed`: the fake-quantized graph
    after quant.ir.passes.PLACE, or `normal` where there is none; `exported`: the FP32 model, and `normal`: that after
    quant.ir.passes.NORMALISE.
    """
    constants, writers = _constants_of(converted), converted.writers()
    grids, names = grids_of(placed), set(placed.vars) - set(placed.params)
    inside, before = placed.writers(), exported.writers()
    settled = _constants_of(exported)
    used = {*(name for op in converted.ops for name in op.reads), *converted.fetches}  # not what is only scratch memory

    def visible(name: str) -> tuple[tuple[str, ...], tuple[Op, ...]]:
        """What is seen of an input: itself, or what its op reads; and the ops between."""
        if name in seen or name in converted.feeds or name not in writers:
            return (name,), ()
        found = [visible(other) for other in writers[name].reads if other and other not in constants]
        return sum((some for some, _ in found), ()), (*sum((ops for _, ops in found), ()), writers[name])

    def in_fp32(name: str) -> str:
        while name in inside and inside[name].type == "fake_quant":
            name = inside[name].input("X")
        return name if name in normal.vars and name not in normal.params else ""

    def sources_of(name: str, inputs: Sequence[str]) -> tuple[str, ...]:
        if not name or not all(inputs) or name not in exported.vars:
            return ()
        ops = _between(exported, before, name, set(inputs)) or ()
        return tuple(op.type for op in ops if not settled.issuperset(op.writes))

    found = []
    for op in converted.ops:
        behind = [visible(name) for name in op.reads if name and name not in constants]
        inputs = tuple(dict.fromkeys(sum((some for some, _ in behind), ())))
        ops = (*dict.fromkeys(sum((some for _, some in behind), ())), op)
        if not inputs:
            continue
        stems = [stem(name, names) for name in inputs]
        own = {name: stem(name, names) for name in op.writes if name in seen and name in used}
        for variable, name in own.items():
            inner = _between(placed, inside, name, set(stems)) if name and all(stems) else None
            fp32 = in_fp32(name)
            found.append(
                Twin(
                    ops=ops,
                    variable=variable,
                    inputs=inputs,
                    residual=op.input("ResidualData"),
                    name=name,
                    inner=None if inner is None else _as_converted(converted, ops, inner, names),
                    grid=grids.get(name),
                    fp32=fp32,
                    sources=sources_of(fp32, [in_fp32(stem) for stem in stems]),
                )
            )
    return tuple(found)


def _as_converted(converted: Graph, ops: Sequence[Op], inner: tuple[Op, ...], names: Collection[str]) -> tuple[Op, ...]:
    """The simulation's ops of a twin; where an op that stayed float32 reads float32, without the rounding of that.

    Converting leaves it out where only such ops read it.
    """
    if any(int8_op(op) or op.type == "quantize" for op in ops):
        return inner
    plain = {stem(name, names) for op in ops for name in op.reads if _dtype(converted, name) == "float32"}
    return tuple(
        replace(op, type="assign", attrs={}) if op.type == "fake_quant" and op.input("X") in plain else op
        for op in inner
    )


def _dtype(graph: Graph, name: str) -> str:
    return graph.vars[name].dtype if name in graph.vars else ""


def apart(placed: Graph, twins: Iterable[Twin]) -> tuple[Graph, dict[str, str], dict[str, str]]:
    """The simulation cut at every tensor: what it makes of each op's own inputs. A program in the QDQ dialect.

    Returns also its inputs, variable of the converted graph -> name of the program's input, and its outputs, variable
    -> name. Twins whose op passes a value on unchanged have no output.
    """
    names = set(placed.vars) - set(placed.params)
    ops: list[Op] = []
    described: dict[str, Var] = {}
    feeds: dict[str, str] = {}
    fetches: dict[str, str] = {}
    for number, twin in enumerate(twins):
        if not twin.inner:
            continue
        renamed: dict[str, str] = {}
        for variable in twin.inputs:
            name = stem(variable, names)
            renamed[name] = feeds.setdefault(variable, f"fed.{len(feeds)}")
            described[renamed[name]] = placed.vars[name]
        for op in twin.inner:
            written = {name: f"{number}.{name}" for name in op.writes if name not in placed.params}
            outputs = {slot: tuple(written.get(name, name) for name in old) for slot, old in op.outputs.items()}
            ops.append(replace(op.rewired(renamed), outputs=outputs))
            # An op's own inputs stay what was fed, whatever else writes a tensor of that name.
            renamed |= {name: new for name, new in written.items() if name not in renamed}
            described |= {new: placed.vars[name] for name, new in written.items() if name in placed.vars}
        fetches[twin.variable] = f"{number}.{twin.name}"
    used = {name for op in ops for name in op.reads}
    feeds = {variable: name for variable, name in feeds.items() if name in used}
    empty = replace(placed, ops=(), feeds=tuple(feeds.values()), fetches=tuple(fetches.values()))
    return lower_quantizers(empty.evolve(ops, {**described})), feeds, fetches


def steps_to_a_unit(form: Form, grid: Grid | None, read: Sequence[float]) -> float:
    """What a stored tensor's integers mean, as levels / threshold.

    That of the op that wrote them if all that read them agree, else what the simulation rounds to: so an op that goes
    by another scale than its neighbours is the one that looks wrong.
    """
    if grid is None or (read and np.allclose(read, form.scale, rtol=1e-3)):
        return form.scale
    return grid[1] / grid[0]
