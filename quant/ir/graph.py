"""Legacy Paddle programs as values, and the only code that knows their file formats.

A `Graph` is one block of ops with its parameters in NumPy. It is never changed in place: passes build new ones.
Programs and parameters are parsed here in Python rather than by Paddle's loader, because Paddle ends the whole
process on a damaged file.

Formats: paddle/fluid/framework/framework.proto (ProgramDesc) and paddle/phi/core/framework/dense_tensor_tostream.cc
(one parameter: uint32 version | uint64 LoD levels, each uint64 bytes + data | uint32 version | int32 length of a
TensorDesc | TensorDesc | raw data; a combined file is these in the order of the sorted names).
"""

import itertools
import math
import mmap
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.errors import ModelError, unwritable
from quant.ir.names import Names

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before Paddle loads: the INT8 tooling is legacy-format only

from google.protobuf.message import DecodeError
from paddle.base import core
from paddle.base.proto import framework_pb2 as proto

from quant.ir.old_programs import FUSED, STALE, today
from quant.ir.ops.schema import fault_of
from quant.ir.pir import read_program, translated

__all__ = [
    "DTYPE_NUMBERS",
    "Attr",
    "Graph",
    "Op",
    "Pass",
    "Var",
    "as_today",
    "files_of",
    "forward_of",
    "is_forward",
    "is_pir",
    "layouts_of",
    "load_dir",
    "model_size",
    "op_types",
    "program_bytes",
    "read_tensor",
    "run_passes",
    "save_dir",
    "sequences_of",
]

Array = NDArray[Any]

_DTYPES = {
    proto.VarType.BOOL: "bool",
    proto.VarType.INT16: "int16",
    proto.VarType.INT32: "int32",
    proto.VarType.INT64: "int64",
    proto.VarType.FP16: "float16",
    proto.VarType.FP32: "float32",
    proto.VarType.FP64: "float64",
    proto.VarType.UINT8: "uint8",
    proto.VarType.INT8: "int8",
    proto.VarType.BF16: "uint16",
}
DTYPE_NUMBERS = {name: number for number, name in _DTYPES.items()}

_PIR = ("inference.json", "model.json")
_ABSENT = ("", "@EMPTY@")  # stand for a variable that isn't there

_LAYOUTS = ("data_format", "data_layout")  # attributes that name one

_NOT_FORWARD = 1 | 2 | 16  # bits of the attribute op_role: backward, optimiser, learning rate

# AttrType number -> the field of OpDesc.Attr that carries it. Blocks are absent: control flow is refused on load.
_ATTR_FIELDS = {
    proto.INT: "i",
    proto.FLOAT: "f",
    proto.STRING: "s",
    proto.INTS: "ints",
    proto.FLOATS: "floats",
    proto.STRINGS: "strings",
    proto.BOOLEAN: "b",
    proto.BOOLEANS: "bools",
    proto.LONG: "l",
    proto.LONGS: "longs",
    proto.FLOAT64S: "float64s",
    proto.VAR: "var_name",
    proto.VARS: "vars_name",
    proto.FLOAT64: "float64",
    proto.SCALAR: "scalar",
    proto.SCALARS: "scalars",
}


class Attr(NamedTuple):
    """An attribute's value and its AttrType number, which Paddle checks."""

    kind: int
    value: Any

    @staticmethod
    def of(value: Any) -> "Attr":
        """The attribute for a Python value: bool, int, float, str, or a list of ints, floats or strings."""
        if isinstance(value, bool):
            return Attr(proto.BOOLEAN, value)
        if isinstance(value, int):
            return Attr(proto.INT, value)
        if isinstance(value, float):
            return Attr(proto.FLOAT, value)
        if isinstance(value, str):
            return Attr(proto.STRING, value)
        if isinstance(value, list) and value and isinstance(value[0], float):
            return Attr(proto.FLOATS, value)
        if isinstance(value, list) and value and isinstance(value[0], str):
            return Attr(proto.STRINGS, value)
        if isinstance(value, list):
            return Attr(proto.INTS, value)
        raise TypeError(f"no attribute type for {value!r}")


@dataclass(frozen=True, eq=False)
class Op:
    """One op. Slots map to tuples of variable names; two ops are equal only when they are the same object."""

    type: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]
    attrs: Mapping[str, Attr] = field(default_factory=dict)

    @staticmethod
    def make(type: str, inputs: Mapping[str, str], outputs: Mapping[str, str], **attrs: Any) -> "Op":
        """An op with one variable a slot and plain Python attribute values."""
        return Op(
            type,
            {slot: (name,) for slot, name in inputs.items()},
            {slot: (name,) for slot, name in outputs.items()},
            {name: Attr.of(value) for name, value in attrs.items()},
        )

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs[name].value if name in self.attrs else default

    def input(self, slot: str) -> str:
        """The only variable of an input slot, or "" when the slot is empty."""
        return (self.inputs.get(slot) or ("",))[0]

    def output(self, slot: str) -> str:
        return (self.outputs.get(slot) or ("",))[0]

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for names in self.inputs.values() for name in names)

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(name for names in self.outputs.values() for name in names)

    def with_attrs(self, **attrs: Any) -> "Op":
        return replace(self, attrs={**self.attrs, **{name: Attr.of(value) for name, value in attrs.items()}})

    def rewired(self, names: Mapping[str, str]) -> "Op":
        """The op with its input variables renamed; the same object when none is concerned."""
        if not any(name in names for name in self.reads):
            return self
        inputs = {slot: tuple(names.get(name, name) for name in old) for slot, old in self.inputs.items()}
        return replace(self, inputs=inputs)


class Var(NamedTuple):
    """A tensor's description; -1 in `shape` is an open dimension."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    lod_level: int = 0


@dataclass(frozen=True, eq=False)
class Graph:
    """One block of a legacy program. No op writes what another one writes, or what is fed (`_assigned_once`).

    `vars` describes every tensor, parameters included; `params` holds the values of the parameters. An op may write a
    parameter, as a batch norm does with its mean; at inference that changes nothing.
    `version` is the serialised ProgramDesc without blocks: program version and op versions.
    """

    ops: tuple[Op, ...]
    vars: Mapping[str, Var]
    params: Mapping[str, Array]
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    version: bytes = b""

    def writers(self) -> dict[str, Op]:
        """Variable -> the op that computes it. A parameter is computed by none, so going back from writer to writer
        ends."""
        return {name: op for op in self.ops for name in op.writes if name not in self.params}

    def readers(self) -> dict[str, list[Op]]:
        """Variable -> the ops that read it, in order, an op once a reading slot."""
        table: defaultdict[str, list[Op]] = defaultdict(list)
        for op in self.ops:
            for name in op.reads:
                table[name].append(op)
        return table

    def names(self) -> Names:
        """What one rewrite takes its new names from: it gives none that this graph has, and none twice."""
        return Names({*self.vars, *self.params, *(name for op in self.ops for name in (*op.reads, *op.writes))})

    def evolve(
        self,
        ops: Iterable[Op],
        vars: Mapping[str, Var] | None = None,
        params: Mapping[str, Array] | None = None,
    ) -> "Graph":
        """The graph with other ops, plus new variables and parameters; what nothing uses any more is dropped.

        Raises ValueError for a new parameter that has the name of an old one, whose readers would get other values.
        """
        if lost := self.params.keys() & (params or {}).keys():
            raise ValueError(f"the parameter {min(lost)!r} would be overwritten")
        ops = tuple(ops)
        used = {name for op in ops for name in (*op.reads, *op.writes)} | {*self.feeds, *self.fetches}
        all_params = {**self.params, **(params or {})}
        described = {name: Var(value.shape, str(value.dtype)) for name, value in (params or {}).items()}
        all_vars = {**self.vars, **described, **(vars or {})}
        return replace(
            self,
            ops=ops,
            vars={name: var for name, var in all_vars.items() if name in used},
            params={name: value for name, value in all_params.items() if name in used},
        )

    def op_counts(self) -> Counter[str]:
        return Counter(op.type for op in self.ops)


Pass = Callable[[Graph], Graph]


def run_passes(graph: Graph, passes: Sequence[Pass], seen: Callable[[str, Graph], None] | None = None) -> Graph:
    """Apply `passes` in order; `seen(name, graph)` is told of each result."""
    for rewrite in passes:
        graph = rewrite(graph)
        if seen:
            seen(rewrite.__name__, graph)
    return graph


# --- directories -------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """Where a model lies: its program, and one combined parameter file or None for a file a parameter."""

    program: Path
    params: Path | None


def files_of(directory: Path) -> Files:
    """Find the program and parameters of a model directory, in any layout that Paddle has used.

    A PIR program (.json) counts where there is no legacy one. Raises ModelError when there is no such directory, no
    program in it, or more than one.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    programs = sorted(directory.glob("*.pdmodel"))
    if preferred := [path for path in programs if path.name == "inference.pdmodel"]:
        programs = preferred
    if len(programs) > 1:
        raise ModelError(f"{directory}: more than one program ({', '.join(path.name for path in programs)})")
    if programs:
        params = programs[0].with_suffix(".pdiparams")
        return Files(programs[0], params if params.exists() else None)
    for name in ("__model__", "model"):
        if (directory / name).is_file():
            combined = [directory / other for other in ("__params__", "params") if (directory / other).is_file()]
            return Files(directory / name, combined[0] if combined else None)
    found = [directory / name for name in _PIR if (directory / name).is_file()]
    if found:
        params = found[0].with_suffix(".pdiparams")
        return Files(found[0], params if params.exists() else None)
    raise ModelError(
        f"{directory}: no program (inference.pdmodel, inference.json, model or __model__) in this directory"
    )


def is_pir(program: Path) -> bool:
    """Whether a program file is in Paddle 3's format."""
    return program.suffix == ".json"


def op_types(program: Path) -> set[str]:
    """The op types in a program file. Raises ModelError when it can't be parsed."""
    if is_pir(program):
        return {op.type for op in translated(read_program(program), program).ops}
    return {op.type for block in _read_program(program).blocks for op in block.ops}


def layouts_of(program: Path) -> set[str]:
    """The layouts of tensors ("NCHW") that ops of a program file name. Raises ModelError when it can't be parsed."""
    if is_pir(program):
        ops = translated(read_program(program), program).ops
        return {str(op.attrs[name][1]) for op in ops for name in _LAYOUTS if name in op.attrs}
    described = (op for block in _read_program(program).blocks for op in block.ops)
    return {attr.s for op in described for attr in op.attrs if attr.name in _LAYOUTS}


def sequences_of(program: Path) -> set[str]:
    """The variables of a program file that are declared to hold sequences of unequal length. Raises ModelError."""
    if is_pir(program):
        return set()  # PIR has no sequences
    return {var.name for var in _read_program(program).blocks[0].vars if var.type.dense_tensor.legacy_lod_level}


def model_size(directory: Path) -> int:
    """Bytes of a model's program and parameters on disk; what else lies in the directory doesn't count.

    Raises ModelError.
    """
    files = files_of(directory)
    if files.params is not None:
        params = [files.params]
    else:
        params = [_separate(files.program, directory, name) for name in _parse_program(files.program).params]
    return sum(path.stat().st_size for path in (files.program, *params))


def load_dir(directory: Path) -> Graph:
    """Read a model directory, in either of Paddle's formats. Raises ModelError, naming the file, for unusable ones."""
    files = files_of(directory)
    graph = _translated_program(files.program) if is_pir(files.program) else _parse_program(files.program)
    wanted = sorted(name for name in graph.params)
    if files.params is None and wanted and is_pir(files.program):
        raise ModelError(f"{files.program.with_suffix('.pdiparams')}: no such file, but the program has parameters")
    if files.params is not None:
        params = dict(zip(wanted, _read_combined(files.params, wanted), strict=True))
    else:
        params = {name: read_tensor(_separate(files.program, directory, name)) for name in wanted}
    described = dict(graph.vars)
    for name, value in params.items():
        var = graph.vars[name]
        # Paddle's own quantizer stores int8 weights, and scales with other dimensions of 1, than its program says.
        if (str(value.dtype), var.dtype) == ("int8", "float32"):
            described[name] = var = var._replace(dtype="int8")
        if [size for size in value.shape if size != 1] == [size for size in var.shape if size != 1]:
            params[name] = value = value.reshape(var.shape)
        if value.shape != var.shape or str(value.dtype) != var.dtype:
            where = files.params or directory / name
            raise ModelError(
                f"{where}: parameter {name!r} is {value.dtype}{list(value.shape)}, but the program "
                f"{files.program.name} declares {var.dtype}{list(var.shape)}: parameters of another model?"
            )
    return as_today(_assigned_once(replace(graph, params=params, vars=described)))


def as_today(graph: Graph) -> Graph:
    """The same computation as today's Paddle writes it (quant.ir.old_programs): with all attributes, on loading.

    Which library an op was to run on counts only in models that were made for oneDNN: with its INT8 or fused ops.
    """
    for_onednn = any(op.attr("mkldnn_data_type") == "int8" or op.type.startswith(FUSED) for op in graph.ops)
    names, ops, described = graph.names(), [], dict[str, Var]()
    for op in graph.ops:
        type, attrs, scratch = today(
            op.type, {name: attr for name, attr in op.attrs.items() if for_onednn or name not in STALE}
        )
        outputs = op.outputs
        if scratch and not op.output(scratch):
            outputs = {**outputs, scratch: (names.fresh(f"{op.writes[0]}.{scratch}"),)}
            described[outputs[scratch][0]] = Var((0, *graph.vars[op.input("X")].shape))
        same = type == op.type and attrs == op.attrs and outputs is op.outputs
        ops.append(op if same else Op(type, op.inputs, outputs, {name: Attr(*given) for name, given in attrs.items()}))
    return graph if tuple(ops) == graph.ops else replace(graph, ops=tuple(ops), vars={**graph.vars, **described})


def _assigned_once(graph: Graph) -> Graph:
    """The same computation with a name for each value: programs may write a variable twice, or over what they read.

    What is fed keeps its name; of others the last value does, so that outputs keep theirs. Parameters aren't renamed:
    Paddle insists that a batch norm writes the very mean that it reads.
    """
    writes = Counter(name for op in graph.ops for name in dict.fromkeys(op.writes))
    fed = {*graph.feeds}
    again = {name for name, count in writes.items() if count > 1 or name in fed} - {*graph.params, *_ABSENT}
    if not again:
        return graph
    described, now, ops = dict(graph.vars), dict[str, str](), []
    for op in graph.ops:
        rewired = op.rewired(now)
        for name in again.intersection(op.writes):
            writes[name] -= 1
            now[name] = name
            if writes[name] or name in fed:
                now[name] = next(new for n in itertools.count() if (new := f"{name}.{n}") not in described)
                described[now[name]] = graph.vars[name]
        outputs = {slot: tuple(now.get(name, name) for name in names) for slot, names in op.outputs.items()}
        ops.append(replace(rewired, outputs=outputs))
    fetches = tuple(now.get(name, name) for name in graph.fetches)
    return replace(graph, ops=tuple(ops), vars=described, fetches=fetches)


def save_dir(graph: Graph, directory: Path, layout: str = "inference") -> None:
    """Write a model into `directory`, which exists and is empty.

    `layout`: "inference" (inference.pdmodel/.pdiparams), "model" (model, params), "combined" (__model__,
    __params__), or "separate" (__model__ and a file a parameter). All attributes are kept. Raises OutputError.
    """
    names = {
        "inference": ("inference.pdmodel", "inference.pdiparams"),
        "model": ("model", "params"),
        "combined": ("__model__", "__params__"),
        "separate": ("__model__", None),
    }
    program, combined = names[layout]
    try:
        (directory / program).write_bytes(program_bytes(graph))
        if combined is not None:
            with (directory / combined).open("wb") as file:
                for name in sorted(graph.params):
                    file.writelines(_tensor_bytes(graph.params[name]))
        else:
            for name, value in graph.params.items():
                (directory / name).write_bytes(b"".join(_tensor_bytes(value)))
    except OSError as error:
        raise unwritable(directory, error) from error


# --- programs ----------------------------------------------------------------------------------------------------


def _read_program(path: Path) -> Any:
    program = proto.ProgramDesc()
    try:
        program.ParseFromString(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from error
    except DecodeError as error:
        raise ModelError(f"{path}: not a Paddle program, or truncated") from error
    if not program.blocks or not program.blocks[0].ops:
        raise ModelError(f"{path}: not a Paddle program (it holds no ops)")
    return program


def _parse_program(path: Path) -> Graph:
    """The graph of a program file; `params` maps each parameter's name to an empty array until they are read."""
    program = _read_program(path)
    parsed = _parse_block(program, path)
    _check_order(path, parsed)
    feeds = {op.attr("col", 0): op.output("Out") for op in parsed.ops if op.type == "feed"}
    fetches = {op.attr("col", 0): op.input("X") for op in parsed.ops if op.type == "fetch"}
    if not feeds or not fetches:
        raise ModelError(f"{path}: has no {'feed' if not feeds else 'fetch'} op: not an inference program")
    ops = tuple(op for op in parsed.ops if op.type not in ("feed", "fetch"))
    ends = (*(feeds[col] for col in sorted(feeds)), *(fetches[col] for col in sorted(fetches)))
    if missing := [name for name in ends if name not in parsed.vars]:
        raise ModelError(f"{path}: feeds or fetches the undeclared variable {missing[0]!r}")
    used = {name for op in ops for name in (*op.reads, *op.writes)} | set(ends)
    version = proto.ProgramDesc()
    version.CopyFrom(program)
    version.ClearField("blocks")
    return Graph(
        ops=ops,
        vars={name: var for name, var in parsed.vars.items() if name in used or name in parsed.params},
        params=parsed.params,
        feeds=tuple(feeds[col] for col in sorted(feeds)),
        fetches=tuple(fetches[col] for col in sorted(fetches)),
        version=version.SerializeToString(),
    )


def _translated_program(path: Path) -> Graph:
    """The graph of a PIR program; `params` maps each parameter's name to an empty array until they are read."""
    found = translated(read_program(path), path)
    ops = [
        Op(op.type, op.inputs, op.outputs, {name: Attr(*attr) for name, attr in op.attrs.items()}) for op in found.ops
    ]
    described = {name: Var(shape, dtype) for name, (shape, dtype) in found.vars.items()}
    params = {name: np.empty(0, dtype) for name, (_, dtype) in found.params.items()}
    fetches = tuple(found.fetches[column] for column in sorted(found.fetches))
    _check_order(path, _Parsed(ops, described, {**dict.fromkeys(found.feeds, np.empty(0)), **params}, frozenset()))
    used = {name for op in ops for name in (*op.reads, *op.writes)} | {*found.feeds, *fetches, *params}
    return Graph(
        ops=tuple(ops),
        vars={name: var for name, var in described.items() if name in used},
        params=params,
        feeds=tuple(found.feeds),
        fetches=fetches,
        version=_current_version(),
    )


def _current_version() -> bytes:
    """What this Paddle writes as the versions of program and ops: without it ops are taken for those of Paddle 1.x."""
    version = proto.ProgramDesc.FromString(core.ProgramDesc().serialize_to_string())
    version.ClearField("blocks")
    return bytes(version.SerializeToString())


def _check_order(path: Path, parsed: "_Parsed") -> None:
    """Raise ModelError unless each op is well formed, and what it reads is declared and there by then."""
    declared = {*parsed.vars, *parsed.others, *_ABSENT}
    known = {*parsed.params, *parsed.others, *_ABSENT}
    for op in parsed.ops:
        where = f"{path}: op {op.type!r} (output {next(iter(op.writes), '')!r})"
        if not all(isinstance(name, str) for name in (op.type, *op.inputs, *op.outputs, *op.attrs)):
            raise ModelError(f"{where}: damaged: a name in it isn't UTF-8")
        if fault := fault_of(op.type, op.inputs, op.outputs, op.attrs):
            raise ModelError(f"{where}: {fault}")
        for name in (*op.reads, *op.writes):
            if name not in declared:
                raise ModelError(f"{where} reads or writes the undeclared variable {name!r}")
        if lost := [name for name in op.reads if name not in known]:
            raise ModelError(f"{where} reads {lost[0]!r}, which nothing wrote before")
        known.update(op.writes)


def forward_of(serialized: bytes) -> Graph:
    """The forward ops of a training program (a serialised ProgramDesc), loss included, as a graph without fetches.

    Its feeds are the tensors that nothing writes; `params` maps persistable names to empty arrays. Raises ModelError
    when there is control flow.
    """
    program = proto.ProgramDesc()
    program.ParseFromString(serialized)
    parsed = _parse_block(program, "the training program")
    ops = tuple(
        op for op in parsed.ops if op.type not in ("feed", "fetch") and not op.attr("op_role", 0) & _NOT_FORWARD
    )
    writes = Counter(name for op in ops for name in dict.fromkeys(op.writes) if name not in parsed.params)
    if twice := [name for name, count in writes.items() if count > 1 and name not in _ABSENT]:
        raise ModelError(f"the training program writes the variable {twice[0]!r} twice: ops in place can't be trained")
    written = {*writes}
    feeds = dict.fromkeys(name for op in ops for name in op.reads if name in parsed.vars and name not in written)
    return Graph(
        ops=ops,
        vars=parsed.vars,
        params=parsed.params,
        feeds=tuple(name for name in feeds if name not in parsed.params),
        fetches=(),
    )


def is_forward(type: str, role: int) -> bool:
    """Whether an op of a training program computes the model or its loss. `role`: its attribute op_role."""
    return type not in ("feed", "fetch") and not role & _NOT_FORWARD


class _Parsed(NamedTuple):
    ops: list[Op]
    vars: dict[str, Var]
    params: dict[str, Array]
    others: frozenset[str]  # variables that are no tensors


def _parse_block(program: Any, where: Path | str) -> _Parsed:
    if len(program.blocks) > 1:
        raise ModelError(f"{where}: has control flow ({len(program.blocks)} blocks), which is not supported")
    block = program.blocks[0]
    variables: dict[str, Var] = {}
    params: dict[str, Array] = {}
    if not all(isinstance(var.name, str) for var in block.vars):
        raise ModelError(f"{where}: damaged: the name of a variable isn't UTF-8")
    others = frozenset(var.name for var in block.vars if var.type.type != proto.VarType.DENSE_TENSOR)
    for var in block.vars:
        if var.name in others:
            continue
        tensor = var.type.dense_tensor
        dtype = _DTYPES.get(tensor.tensor.data_type)
        if dtype is None:
            raise ModelError(f"{where}: variable {var.name!r} has the unknown data type {tensor.tensor.data_type}")
        variables[var.name] = Var(tuple(tensor.tensor.dims), dtype, tensor.legacy_lod_level)
        if var.persistable:
            params[var.name] = np.empty(0, dtype)
    return _Parsed([_parse_op(where, desc) for desc in block.ops], variables, params, others)


def _parse_op(where: Path | str, desc: Any) -> Op:
    attrs = {}
    for attr in desc.attrs:
        name = _ATTR_FIELDS.get(attr.type)
        if name is None:
            raise ModelError(f"{where}: op {desc.type!r} has control flow (attribute {attr.name!r}): not supported")
        value = getattr(attr, name)
        plain = isinstance(value, (bool, int, float, str, bytes))
        attrs[attr.name] = Attr(attr.type, _text(value) if plain or attr.type == proto.SCALAR else [*map(_text, value)])
    inputs, outputs = ({var.parameter: tuple(var.arguments) for var in side} for side in (desc.inputs, desc.outputs))
    return Op(desc.type, inputs, outputs, attrs)


def _text(value: Any) -> Any:
    """An attribute's value. protobuf gives text that isn't UTF-8 as bytes: paths in old programs' op_callstack."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def program_bytes(graph: Graph) -> bytes:
    """The serialised ProgramDesc of a graph, feed and fetch ops included."""
    program = proto.ProgramDesc()
    program.ParseFromString(graph.version)
    block = program.blocks.add(idx=0, parent_idx=-1)
    for name, kind in (("feed", proto.VarType.FEED_MINIBATCH), ("fetch", proto.VarType.FETCH_LIST)):
        var = block.vars.add(name=name, persistable=True)
        var.type.type = kind
    for name, described in sorted(graph.vars.items()):
        var = block.vars.add(name=name, persistable=name in graph.params, need_check_feed=name in graph.feeds)
        var.type.type = proto.VarType.DENSE_TENSOR
        var.type.dense_tensor.tensor.data_type = DTYPE_NUMBERS[described.dtype]
        var.type.dense_tensor.tensor.dims.extend(described.shape)
        var.type.dense_tensor.legacy_lod_level = described.lod_level
    feed = [Op.make("feed", {"X": "feed"}, {"Out": name}, col=col) for col, name in enumerate(graph.feeds)]
    fetch = [Op.make("fetch", {"X": name}, {"Out": "fetch"}, col=col) for col, name in enumerate(graph.fetches)]
    for op in (*feed, *graph.ops, *fetch):
        desc = block.ops.add(type=op.type)
        for slot, names in op.inputs.items():
            desc.inputs.add(parameter=slot, arguments=names)
        for slot, names in op.outputs.items():
            desc.outputs.add(parameter=slot, arguments=names)
        for name, attr in op.attrs.items():
            target = desc.attrs.add(name=name, type=attr.kind)
            key = _ATTR_FIELDS[attr.kind]
            if isinstance(attr.value, list):
                getattr(target, key).extend(attr.value)
            elif attr.kind == proto.SCALAR:
                target.scalar.CopyFrom(attr.value)
            else:
                setattr(target, key, attr.value)
    return bytes(program.SerializeToString())


# --- parameters --------------------------------------------------------------------------------------------------


def _read_combined(path: Path, names: Sequence[str]) -> Iterator[Array]:
    try:
        with path.open("rb") as file:  # mapped: a look at a large model costs no read of its weights
            empty = path.stat().st_size == 0
            data = memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from error
    offset = 0
    for name in names:
        value, offset = _parse_tensor(path, data, offset, name)
        yield value
    if offset != len(data):
        raise ModelError(f"{path}: holds {len(data) - offset} bytes more than the program's {len(names)} parameters")


def _separate(program: Path, directory: Path, name: str) -> Path:
    path = directory / name
    if Path(name).name != name or not path.is_file():
        raise ModelError(f"{directory}: no file for parameter {name!r} of {program.name}, and no combined file")
    return path


def read_tensor(path: Path) -> Array:
    """The one parameter in a file. Raises ModelError, naming the file."""
    return next(_read_combined(path, [path.name]))


def _parse_tensor(path: Path, data: memoryview, offset: int, name: str) -> tuple[Array, int]:
    def take(size: int) -> memoryview:
        nonlocal offset
        if size < 0 or offset + size > len(data):
            raise ModelError(f"{path}: truncated, or of another model, at parameter {name!r}")
        offset += size
        return data[offset - size : offset]

    def number(code: str) -> int:
        return int(struct.unpack(code, take(struct.calcsize(code)))[0])

    bad = ModelError(f"{path}: not a Paddle parameter file, or of another model (at parameter {name!r})")
    if number("<I") != 0:
        raise bad
    for _ in range(number("<Q")):
        take(number("<Q"))  # LoD of a parameter: meaningless at inference
    if number("<I") != 0:
        raise bad
    desc = proto.VarType.TensorDesc()
    try:
        desc.ParseFromString(bytes(take(number("<i"))))
    except DecodeError as error:
        raise bad from error
    dtype = _DTYPES.get(desc.data_type)
    if dtype is None or any(dim < 0 for dim in desc.dims):
        raise bad
    raw = take(math.prod(desc.dims) * np.dtype(dtype).itemsize)
    return np.frombuffer(raw, dtype).reshape(desc.dims), offset


def _tensor_bytes(value: Array) -> tuple[bytes, ...]:
    desc = proto.VarType.TensorDesc(data_type=DTYPE_NUMBERS[str(value.dtype)], dims=value.shape).SerializeToString()
    return (struct.pack("<IQIi", 0, 0, 0, len(desc)), desc, np.ascontiguousarray(value).tobytes())
