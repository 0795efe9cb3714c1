"""The file format of PIR programs (inference.json) as values; pure Python, nothing of Paddle is loaded.

One JSON document: {"base_code": {"magic": "pir", "version": N}, "program": {"regions": [{"blocks": [{"ops": [..]}]}]}}.
An op is {"#": "dialect.name", "I": [{"%": id}], "O": [{"%": id, "TT": type}], "A": [{"N": name, "AT": attribute}]}; a
parameter is {"#": "p", "A": [.., .., .., name], "O": result, "OA": [persistable, ..]}. Each id is written once, 0 is an
absent operand. Versions 0 to 4 differ only in the types of numbers and in a few attributes with defaults.
Sources: paddle/fluid/pir/serialize_deserialize (schema.h, ir_serialize.cc, serialize_utils.h, patch/*.yaml).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.errors import ModelError

__all__ = ["DType", "PirOp", "Program", "Value", "read_program"]

_VERSIONS = range(5)
_DIALECTS = {"0": "builtin", "1": "pd_op", "2": "cf", "3": "custom_op", "4": "pd_dist"}
_DTYPES = {
    "t_bool": "bool",
    "t_i8": "int8",
    "t_ui8": "uint8",
    "t_i16": "int16",
    "t_i32": "int32",
    "t_i64": "int64",
    "t_f16": "float16",
    "t_bf16": "uint16",
    "t_f32": "float32",
    "t_f64": "float64",
}
_SPECIAL_NUMBERS = {"NaN": math.nan, "INF": math.inf, "-INF": -math.inf}
_MOST_DIMENSIONS = 9  # phi::DDim::kMaxRank


class DType(str):
    """The value of an attribute that names a data type: "float32", "Undefined(ALL_DTYPE)"."""


@dataclass(eq=False)
class Value:
    """What an op writes: a tensor, an array of tensors (`parts`), or nothing (`dtype` "")."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    parts: "list[Value] | None" = None
    op: "PirOp | None" = field(default=None, repr=False)

    @property
    def absent(self) -> bool:
        return self.parts is None and not self.dtype


@dataclass(eq=False)
class PirOp:
    """An op. `name` is without its dialect for pd_op, and without the underscore of ops that work in place."""

    name: str
    full_name: str
    inputs: "list[Value | None]"
    outputs: list[Value]
    attrs: dict[str, Any]

    @property
    def layer(self) -> str:
        """The path of the layer that it belongs to, "/ResNet_0/Conv2D_2/"; "" where the program doesn't say."""
        found = self.attrs.get("struct_name", "")
        return found if isinstance(found, str) else ""

    def told(self) -> str:
        """The op and its layer, in words."""
        return f"op {self.full_name!r}" + (f" of layer {self.layer!r}" if self.layer.strip("/") else "")


@dataclass(frozen=True)
class Program:
    """A PIR program of one block, in order. `version`: of the file format."""

    ops: tuple[PirOp, ...]
    version: int


def read_program(path: Path) -> Program:
    """Read a program. Raises ModelError, naming the file, for what can't be read, isn't PIR, or has control flow."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not a PIR program (it isn't UTF-8)") from error
    except RecursionError as error:
        raise ModelError(f"{path}: not a PIR program (nested too deeply)") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a PIR program, or truncated ({error})") from error
    try:
        return _program(path, document)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not a PIR program, or damaged ({type(error).__name__}: {error})") from error


def _program(path: Path, document: Mapping[str, Any]) -> Program:
    code = document.get("base_code") if isinstance(document, dict) else None
    if not isinstance(code, dict) or code.get("magic") != "pir":
        raise ModelError(f"{path}: not a PIR program (no base_code with the magic 'pir')")
    if code["version"] not in _VERSIONS:
        raise ModelError(
            f"{path}: PIR format version {code['version']!r}; {_VERSIONS[0]} to {_VERSIONS[-1]} are supported"
        )
    blocks = [block for region in document["program"]["regions"] for block in region["blocks"]]
    if len(blocks) != 1:
        raise ModelError(f"{path}: {len(blocks)} blocks of ops instead of one")
    if blocks[0].get("args"):
        raise ModelError(f"{path}: its block has arguments, which only control flow has")
    values: dict[int, Value | None] = {0: None}
    ops = []
    for node in blocks[0]["ops"]:
        op, results = _op(node, values, path)
        for given, value in zip(results, op.outputs, strict=True):
            value.op = op
            if given["%"] in values:
                raise ModelError(f"{path}: value {given['%']} is written twice")
            values[given["%"]] = value
        ops.append(op)
    return Program(tuple(ops), code["version"])


def _op(
    node: Mapping[str, Any], values: Mapping[int, Value | None], path: Path
) -> tuple[PirOp, list[Mapping[str, Any]]]:
    if node["#"] == "p":
        results = [node["O"]]
        attrs = {"parameter_name": str(node["A"][3]), "persistable": bool((node.get("OA") or [1])[0])}
        return PirOp("builtin.parameter", "builtin.parameter", [], [_type(node["O"]["TT"], path)], attrs), results
    dialect, _, bare = node["#"].partition(".")
    full_name = f"{_DIALECTS.get(dialect, dialect)}.{bare}"
    attrs = {one["N"]: _attribute(one["AT"]) for one in node.get("A", ())}
    op = PirOp(full_name.removeprefix("pd_op.").rstrip("_"), full_name, [], [], attrs)
    if node.get("regions"):
        raise ModelError(
            f"{path}: {op.told()} is control flow, which is not supported; export the part of the network without it"
        )
    if lost := [one["%"] for one in node.get("I", ()) if one["%"] not in values]:
        raise ModelError(f"{path}: {op.told()} reads value {lost[0]}, which nothing wrote before")
    op.inputs = [values[one["%"]] for one in node.get("I", ())]
    op.outputs = [_type(one["TT"], path) for one in node["O"]]
    return op, node["O"]


def _attribute(node: Mapping[str, Any]) -> Any:
    kind = node["#"].rpartition(".")[2]
    if "VD" in node:
        return _SPECIAL_NUMBERS[node["VD"]]
    data = node.get("D")
    if kind == "a_array":
        return [_attribute(one) for one in data or ()]
    if kind == "a_dtype":
        return DType(data)
    if kind == "a_scalar" and data is not None:
        _, value = data  # its type, and the number
        return value
    return None if kind == "a_place" else data


def _type(node: Mapping[str, Any], path: Path) -> Value:
    kind, data = node["#"].rpartition(".")[2], node.get("D")
    if kind == "NULL":
        return Value()
    if kind == "t_vec" and data is not None:
        return Value(parts=[_type(one, path) for one in data])
    if kind != "t_dtensor" or data is None:
        raise ModelError(f"{path}: holds a value of type {kind!r} (a tensor array, or sparse), which is not supported")
    name, dims = data[0]["#"].rpartition(".")[2], tuple(data[1])
    if name not in _DTYPES:
        raise ModelError(f"{path}: holds a tensor of the unknown data type {name!r}")
    if len(dims) > _MOST_DIMENSIONS or not all(isinstance(dim, int) and abs(dim) < 2**31 for dim in dims):
        raise ModelError(f"{path}: holds a tensor of the impossible shape {str(dims)[:60]}")
    return Value(tuple(max(dim, -1) for dim in dims), _DTYPES[name])  # products of open dimensions are below -1
