"""Paddle's own translator as an oracle: a legacy program, put through it, must be the PIR program that was read."""

import os
from pathlib import Path
from typing import Any

from quant.ir.graph import Graph, program_bytes
from quant.ir.pir import read_program
from quant.ir.pir.reader import PirOp, Program, Value
from quant.ir.pir.translate import constant

# What both programs may say in two ways.
_SAME = {"shape64": "shape"}
_REDUCTIONS = ("max", "min", "sum", "mean", "prod", "amax", "amin", "all", "any", "logsumexp")  # no axis: all of them
_PARTS, _FEEDS = ("builtin.split", "builtin.slice"), ("data", "feed")
_IGNORED = {"struct_name", "op_namescope", "place", "op_callstack", "seed", "fix_seed", "sparse", "stop_gradient"}


def translated_back(graph: Graph, scratch: Path) -> Program:
    """The PIR program that Paddle's translator makes of a graph."""
    import paddle
    from paddle.base import core

    path = scratch / "back.json"
    core.serialize_pir_program(
        paddle.pir.translate_to_pir(core.ProgramDesc(program_bytes(graph))), os.fspath(path), True, False, True
    )
    return read_program(path)


def differences(original: Program, back: Program) -> list[str]:
    """What differs between two programs, walked together from their outputs."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    ends = [{op.attrs["col"]: op for op in program.ops if op.name == "fetch"} for program in (original, back)]
    if ends[0].keys() != ends[1].keys():
        return [f"outputs {sorted(ends[0])} became {sorted(ends[1])}"]
    todo = [(ends[0][col].inputs[0], ends[1][col].inputs[0], "fetch") for col in ends[0]]
    while todo:
        one, other, where = todo.pop()
        one, other = _plain(one), _plain(other)
        if one is None or other is None:
            if one is not other:
                found.append(f"{where}: an operand on one side only")
            continue
        if (id(one), id(other)) in seen:
            continue
        seen.add((id(one), id(other)))
        numbers = constant(one), constant(other)
        if numbers[0] is not None and numbers[1] is not None:
            if [*map(_number, numbers[0])] != [*map(_number, numbers[1])] and not _all_axes(where, numbers[0]):
                found.append(f"{where}: constants {numbers[0][:4]} became {numbers[1][:4]}")
            continue
        found += _unlike(one, other, where)
        mine, its = one.op, other.op
        assert mine is not None and its is not None
        if mine.name == "rnn":  # inference doesn't read the state of its dropout, which isn't in the parameter file
            mine.inputs, its.inputs = mine.inputs[:4], its.inputs[:4]
        if mine.name in _PARTS and its.name in _PARTS:
            todo.append((mine.inputs[0], its.inputs[0], where))
        elif mine.name == "shape64" and its.name == "cast":
            shape = its.inputs[0]
            assert shape is not None and shape.op is not None
            todo.append((mine.inputs[0], shape.op.inputs[0], where))
        elif mine.name == its.name and len(mine.inputs) == len(its.inputs):
            todo += [(a, b, f"{mine.name}[{n}]") for n, (a, b) in enumerate(zip(mine.inputs, its.inputs, strict=True))]
    return found


def _plain(value: Value | None) -> Value | None:
    """An array of one tensor is that tensor, a copy what was copied, and what is absent None."""
    if value is None or value.absent or value.op is None:
        return None
    single = value.op.name in ("assign", "share_data") or (
        value.op.name == "builtin.combine" and len(value.op.inputs) == 1
    )
    return _plain(value.op.inputs[0]) if single else value


def _unlike(one: Value, other: Value, where: str) -> list[str]:
    mine, its = one.op, other.op
    assert mine is not None and its is not None
    if mine.name in _PARTS and its.name in _PARTS:
        return [] if _part(mine, one) == _part(its, other) else [f"{where}: another part of an array"]
    if mine.name in _FEEDS and its.name in _FEEDS:
        return [] if mine.attrs["name"] == its.attrs["name"] else [f"{where}: another input"]
    if mine.name == "shape64" and its.name == "cast":
        return []
    if mine.name != its.name and _SAME.get(mine.name) != its.name:
        return [f"{where}: {mine.name} became {its.name}"]
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return [f"{mine.name}: {one.dtype}{list(one.shape)} became {other.dtype}{list(other.shape)}"]
    if len(mine.inputs) != len(its.inputs):
        return [f"{mine.name}: {len(mine.inputs)} operands became {len(its.inputs)}"]
    names = ({*mine.attrs} | {*its.attrs}) - _IGNORED
    pairs = {name: (mine.attrs.get(name), its.attrs.get(name)) for name in names}
    unlike = {name: pair for name, pair in pairs.items() if _value(pair[0]) != _value(pair[1])}
    if "axis" in unlike and _all_axes(mine.name, unlike["axis"][0]):
        del unlike["axis"]
    return [f"{mine.name}.{name}: {a!r} became {b!r}" for name, (a, b) in unlike.items()]


def _all_axes(where: str, numbers: Any) -> bool:
    """Whether a reduction has no axes, which legacy programs write as all of them."""
    return where.partition("[")[0] in _REDUCTIONS and not numbers


def _part(op: PirOp, value: Value) -> int:
    if op.name == "builtin.slice":
        return int(op.attrs["index"])
    return next(place for place, one in enumerate(op.outputs) if one is value)


def _number(value: Any) -> Any:
    return float(f"{float(value):.6g}") if isinstance(value, (bool, int, float)) else value


def _value(value: Any) -> Any:
    return [_value(one) for one in value] if isinstance(value, list) else _number(value)
