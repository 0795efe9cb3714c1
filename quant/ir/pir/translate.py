"""A PIR program -> the legacy ops that compute the same.

What legacy programs say in attributes or, where it is computed, by tensors (shapes, axes, bounds, sizes), PIR always
gives as operands, mostly of ops that make constants. So constants are looked through, become attributes, and vanish
when nothing else reads them. The path of an op's layer (`struct_name`) is kept in `op_namescope`, the attribute of
legacy ops for it.

Two oracles test this (tests/pir): Paddle's own translator of legacy programs gives back the program that was read, and
Paddle's outputs of both are the same bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paddle.base.proto import framework_pb2 as proto

from quant.errors import ModelError
from quant.ir.ops.schema import attribute_kinds, defaults_of
from quant.ir.pir.reader import DType, PirOp, Program, Value
from quant.ir.pir.table import TABLE, Attribute, Row

__all__ = ["LAYER", "Emitted", "Translator", "constant", "dtype_number", "translated"]

LAYER = "op_namescope"

_WHOLE, _REAL = {proto.INT, proto.LONG}, {proto.FLOAT, proto.FLOAT64}
_LISTS: Mapping[int, Callable[[Any], Any]] = {
    proto.INTS: int,
    proto.LONGS: int,
    proto.FLOATS: float,
    proto.FLOAT64S: float,
    proto.BOOLEANS: bool,
    proto.STRINGS: str,
}
_DTYPE_NUMBERS = {
    "Undefined(ALL_DTYPE)": -1,
    "bool": proto.VarType.BOOL,
    "int8": proto.VarType.INT8,
    "uint8": proto.VarType.UINT8,
    "int16": proto.VarType.INT16,
    "int32": proto.VarType.INT32,
    "int64": proto.VarType.INT64,
    "float16": proto.VarType.FP16,
    "bfloat16": proto.VarType.BF16,
    "uint16": proto.VarType.BF16,
    "float32": proto.VarType.FP32,
    "float64": proto.VarType.FP64,
}

Slots = dict[str, tuple[str, ...]]


class Emitted:
    """A legacy op: slots of variable names, and attributes as (AttrType, value)."""

    def __init__(self, type: str, inputs: Slots, outputs: Slots, attrs: dict[str, tuple[int, Any]]) -> None:
        self.type, self.inputs, self.outputs, self.attrs = type, inputs, outputs, attrs


def dtype_number(name: str) -> int:
    """Paddle's number of a data type. Raises ValueError."""
    if name not in _DTYPE_NUMBERS:
        raise ValueError(f"the unknown data type {name!r}")
    return int(_DTYPE_NUMBERS[name])


def constant(value: Value | None) -> list[Any] | None:
    """The numbers of a value that is known when the program is read, flat; None of one that is computed."""
    if value is None or value.op is None:
        return None
    op = value.op
    if op.name == "full_int_array":
        return list(op.attrs["value"])
    if op.name == "full":
        return [op.attrs["value"]] * math.prod(op.attrs["shape"] or [1])
    if op.name == "assign_value" and "values" in op.attrs:
        return list(op.attrs["values"])
    if op.name in ("builtin.combine", "stack", "concat"):
        inputs: Sequence[Value | None] = op.inputs
        if op.name != "builtin.combine":
            first = op.inputs[0]
            inputs = first.op.inputs if first and first.op and first.op.name == "builtin.combine" else op.inputs[:1]
        parts = [constant(one) for one in inputs]
        return None if any(part is None for part in parts) else [number for part in parts for number in part or ()]
    return constant(op.inputs[0]) if op.name == "cast" and op.outputs[0].dtype.startswith("int") else None


class Translator:
    """Emits legacy ops for the ops of one program, in order."""

    def __init__(self, program: Program, path: Path) -> None:
        self.program, self.path = program, path
        self.ops: list[Emitted] = []
        self.vars: dict[str, tuple[tuple[int, ...], str]] = {}  # variable -> shape, dtype
        self.params: dict[str, tuple[tuple[int, ...], str]] = {}  # those that the parameter file holds
        self.feeds: list[str] = []
        self.fetches: dict[int, str] = {}
        self.variable: dict[Value, str] = {}  # value -> the legacy variable that it is
        self.layer = ""
        self._count = 0

    # --- names

    def fresh(self, stem: str, shape: tuple[int, ...], dtype: str) -> str:
        """A new variable."""
        while True:
            self._count += 1
            name = f"{stem}_{self._count}.tmp_0"
            if name not in self.vars:
                self.vars[name] = (shape, dtype)
                return name

    def names(self, value: Value | None) -> tuple[str, ...]:
        """The variables of an operand: none of an absent one, several of an array."""
        if value is None or value.absent:
            return ()
        if value.parts is not None:
            combined = value.op is not None and value.op.name == "builtin.combine"
            parts = value.op.inputs if combined and value.op else value.parts
            return tuple(name for one in parts for name in self.names(one))
        return (self.variable[value],)

    def numbers(self, value: Value, op: PirOp) -> tuple[str, ...]:
        """A variable for each number of a computed list, which some slots want: what was stacked to make it."""
        if value.parts is None and math.prod(value.shape) != 1:
            if value.op is None or value.op.name not in ("stack", "concat"):
                raise ModelError(
                    f"{self.path}: {op.told()}: a computed list of numbers, where one tensor a number is due"
                )
            return self.names(value.op.inputs[0])
        return self.names(value)

    def result(self, op: PirOp, value: Value) -> tuple[str, ...]:
        """The variables that an op writes for a result."""
        if value.parts is not None:
            return tuple(name for one in value.parts for name in self.result(op, one))
        if value.absent:
            return ()
        if value not in self.variable:
            self.variable[value] = self.fresh(op.name, value.shape, value.dtype)
        name = self.variable[value]
        self.vars[name] = (value.shape, value.dtype)
        return (name,)

    def alias(self, value: Value, name: str) -> None:
        """A result that is another variable; a copy where it is fetched under a name of its own."""
        if self.variable.setdefault(value, name) != name:
            self.vars[self.variable[value]] = (value.shape, value.dtype)
            self.emit("assign", {"X": (name,)}, {"Out": (self.variable[value],)}, {})

    # --- ops

    def emit(self, type: str, inputs: Slots, outputs: Slots, attrs: Mapping[str, Any]) -> None:
        """Append a legacy op. Attributes of None are left out; defaults are written."""
        kinds = attribute_kinds(type)
        if kinds is None:
            raise ValueError(f"Paddle has no op {type!r}")
        given = {name: value for name, value in attrs.items() if value is not None}
        typed = {name: (kinds[name][0], _typed(kinds[name][0], value)) for name, value in given.items()}
        typed = {**defaults_of(type), **typed}
        if self.layer.strip("/"):
            typed[LAYER] = (proto.STRING, self.layer)
        read, written = ({slot: names for slot, names in side.items() if names} for side in (inputs, outputs))
        self.ops.append(Emitted(type, read, written, typed))

    def generic(self, op: PirOp, row: Row | None = None, **attrs: Any) -> None:
        """An op whose legacy form is another name for it; `attrs` come first."""
        row = row or TABLE[op.name]
        inputs: Slots = {}
        for operand, value in zip(row.operands, op.inputs, strict=False):
            if isinstance(operand, Attribute):
                self._attribute(op, row, operand, value, inputs, attrs)
            elif operand:
                inputs[operand] = (*inputs.get(operand, ()), *self.names(value))
        kinds = attribute_kinds(row.type) or {}
        for name, value in op.attrs.items():
            legacy = row.renamed.get(name, name)
            if legacy in kinds:
                attrs.setdefault(legacy, value)
        outputs = {slot: self.result(op, value) for slot, value in zip(row.results, op.outputs, strict=False)}
        self.emit(row.type, inputs, outputs, attrs)

    def _attribute(
        self, op: PirOp, row: Row, operand: Attribute, value: Value | None, inputs: Slots, attrs: dict[str, Any]
    ) -> None:
        if value is None or value.absent:
            return
        kind = (attribute_kinds(row.type) or {}).get(operand.name, (None, False))[0]
        known = constant(value)
        if known is not None and kind is not None:
            several = kind in _LISTS or kind == proto.SCALARS
            attrs.setdefault(operand.name, known if several else known[0])
            return
        if operand.tensors and (value.parts is not None or not operand.tensor):
            inputs[operand.tensors] = self.names(value) if value.parts is not None else self.numbers(value, op)
        elif operand.tensor:
            inputs[operand.tensor] = self.names(value)
        else:
            raise ModelError(
                f"{self.path}: {op.told()}: its {operand.name!r} is computed while the model runs, "
                f"which the legacy op {row.type!r} can't take"
            )
        if kind in _LISTS:  # passes of a predictor read the attribute all the same
            count = len(value.parts) if value.parts is not None else max(1, math.prod(value.shape))
            open_sizes = list(op.outputs[0].shape) if operand.name == "shape" else [-1] * count
            attrs.setdefault(operand.name, open_sizes)


def _typed(kind: int, value: Any) -> Any:
    """An attribute's value in the type that a legacy op has for it."""
    if kind in _LISTS:
        values = value if isinstance(value, list) else [value]
        return [_LISTS[kind](dtype_number(one) if isinstance(one, DType) else one) for one in values]
    if kind == proto.SCALARS:
        return [_scalar(one) for one in value]
    if isinstance(value, DType):
        value = dtype_number(value)
    if isinstance(value, list):
        (value,) = value
    if kind in _WHOLE:
        return int(value)
    if kind in _REAL:
        return float(value)
    if kind == proto.BOOLEAN:
        return bool(value)
    if kind == proto.STRING:
        return str(value)
    if kind == proto.SCALAR:
        return _scalar(value)
    raise ValueError(f"an attribute of the unknown type {kind}")


def _scalar(value: Any) -> Any:
    made = proto.Scalar()
    if isinstance(value, bool):
        made.type, made.b = proto.Scalar.BOOLEAN, value
    elif isinstance(value, int):
        made.type, made.i = proto.Scalar.LONG, value
    else:
        made.type, made.r = proto.Scalar.FLOAT64, float(value)
    return made


def translated(program: Program, path: Path) -> Translator:
    """The legacy form of a program; `path` is named in errors.

    Raises ModelError, naming op and layer, for an op without a legacy form, and for what is damaged.
    """
    from quant.ir.pir.special import SPECIAL

    translator = Translator(program, path)
    _name_outputs(translator)
    for op in program.ops:
        translator.layer = op.layer
        try:
            if op.name in SPECIAL:
                SPECIAL[op.name](translator, op)
            elif op.name in TABLE:
                translator.generic(op)
            else:
                raise ModelError(f"{path}: {op.told()} has no legacy form that is known")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise ModelError(f"{path}: {op.told()} is damaged, or of another version ({error})") from error
    if not translator.fetches:
        raise ModelError(f"{path}: has no fetch op: not an inference program")
    translator.ops = _needed(translator)
    return translator


def _name_outputs(translator: Translator) -> None:
    """Give what is fetched its name from the beginning, where it has no other one."""
    inputs = ("builtin.parameter", "data", "feed", "builtin.split", "builtin.slice", "builtin.combine")
    taken = {
        op.attrs.get("parameter_name") or op.attrs.get("name") for op in translator.program.ops if op.name in inputs
    }
    for op in translator.program.ops:
        if op.name == "fetch" and op.inputs and (value := op.inputs[0]) is not None and value.op is not None:
            name = op.attrs.get("name")
            if value.op.name not in inputs and value not in translator.variable and name not in taken and name:
                translator.variable[value] = str(name)
                taken.add(name)


def _needed(translator: Translator) -> list[Emitted]:
    """The ops that outputs need: constants that became attributes go."""
    needed, kept = set(translator.fetches.values()), []
    for op in reversed(translator.ops):
        written = {name for names in op.outputs.values() for name in names}
        if needed & written - translator.params.keys():
            kept.append(op)
            needed.update(name for names in op.inputs.values() for name in names)
    return kept[::-1]
