"""What can become of a file: seeded damage to bytes, to text and to programs. Nothing here reads or writes a file.

Damaged bytes mostly die in a parser. A program that is damaged as a graph and written again gets past that, to the
passes, the conversion and the kernels.
"""

import io
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quant.ir.graph import Attr, Graph, Op, Var

__all__ = ["PROGRAM_MUTATIONS", "mutate_arrays", "mutate_bytes", "mutate_graph", "mutate_json", "mutate_text"]

Random = np.random.Generator

NASTY_NUMBERS = (0, 1, -1, 2, 127, -128, 255, 65_535, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1)
NASTY_TOKENS = (
    *("", "0", "-1", "1.5", "nan", "NaN", "inf", "-Infinity", "1e400", "1_0", "0x10", "9" * 30, "9" * 5000),
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        "'",
        '"',
        "\\",
        "\\u0000",
        "=",
        "[[",
        "]",
        "\x00",
        "\x02",
        "\t",
        "\r",
        "\x1b[31m",
    ),
    *("é", "日本", "\u202e", "\ufeff", "\ud7ff", "𝟙", "٣", "../..", "/dev/null", "%s", "{0}", "<script>", "A" * 20_000),
    *("[" * 3000, "{" * 3000, '{"a":' * 3000, "a." * 1000 + "a"),
)


def _span(random: Random, size: int, most: int = 400) -> tuple[int, int]:
    """Begin and end of a piece, empty only where nothing is left."""
    begin = int(random.integers(0, max(size, 1)))
    return begin, min(size, begin + 1 + int(random.integers(0, most)))


# --- bytes


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        changed[int(random.integers(0, len(changed)))] ^= 1 << int(random.integers(0, 8))
    return bytes(changed)


def _fill(content: bytes, random: Random) -> bytes:
    begin, end = _span(random, len(content))
    return content[:begin] + bytes([int(random.choice([0x00, 0xFF, 0x7F, 0x80]))]) * (end - begin) + content[end:]


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(0, len(content)))]


def _insert(content: bytes, random: Random) -> bytes:
    begin, _ = _span(random, len(content))
    return content[:begin] + random.bytes(int(random.integers(1, 64))) + content[begin:]


def _remove(content: bytes, random: Random) -> bytes:
    begin, end = _span(random, len(content))
    return content[:begin] + content[end:]


def _double(content: bytes, random: Random) -> bytes:
    begin, end = _span(random, len(content))
    return content[:end] + content[begin:end] + content[end:]


def _swap(content: bytes, random: Random) -> bytes:
    places = sorted(random.integers(0, len(content) + 1, 4).tolist())
    a, b, c, d = places
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _field(content: bytes, random: Random) -> bytes:
    """A little-endian number replaced: mostly one near the beginning, where formats keep their counts."""
    code = str(random.choice(["<i", "<q", "<f"]))
    size = struct.calcsize(code)
    last = max(len(content) - size, 1)
    place = int(random.integers(0, min(last, 64) if random.random() < 0.6 else last))
    if code == "<f":
        value = struct.pack(code, random.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, 1e-45]))
    else:
        bits = 8 * size
        value = ((NASTY_NUMBERS[int(random.integers(len(NASTY_NUMBERS)))]) & (2**bits - 1)).to_bytes(size, "little")
    return content[:place] + value + content[place + size :]


_BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_flip, _fill, _truncate, _insert, _remove, _double, _swap, _field),
)


def mutate_bytes(content: bytes, random: Random) -> tuple[bytes, str]:
    """Other bytes, and what was done; empty content gets some."""
    if not content:
        return random.bytes(16), "insert"
    while True:
        mutation = _BYTES[int(random.integers(len(_BYTES)))]
        if (changed := mutation(content, random)) != content:
            return changed, mutation.__name__.removeprefix("_")


# --- text


def _replace_token(text: str, random: Random) -> str:
    """A word, number or sign replaced."""
    places = [place for place in range(len(text)) if place == 0 or text[place].isalnum() != text[place - 1].isalnum()]
    number = int(random.integers(len(places)))
    end = places[number + 1] if number + 1 < len(places) else len(text)
    return text[: places[number]] + NASTY_TOKENS[int(random.integers(len(NASTY_TOKENS)))] + text[end:]


def _replace_number(text: str, random: Random) -> str:
    """A number replaced by another: what is told of it is right, and it may still be wrong."""
    found = list(re.finditer(r"[0-9]+(?:\.[0-9]+)?", text))
    if not found:
        return _replace_token(text, random)
    match = found[int(random.integers(len(found)))]
    return (
        text[: match.start()] + str(random.choice(["0", "1", "2", "3", "7", "64", "0.5", "1e-3"])) + text[match.end() :]
    )


def _lines(text: str, random: Random) -> str:
    """A line dropped, doubled, or in another one's place."""
    lines = text.split("\n")
    one, other = random.integers(0, len(lines), 2).tolist()
    match int(random.integers(3)):
        case 0:
            del lines[one]
        case 1:
            lines.insert(one, lines[one])
        case _:
            lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines)


def mutate_text(content: bytes, random: Random) -> tuple[bytes, str]:
    """Other bytes of a text file, and what was done: mostly as text, so that most of it stays what it was."""
    if random.random() < 0.2 or not content:
        return mutate_bytes(content, random)
    text = content.decode("utf-8", "surrogateescape")
    while True:
        mutation = (_replace_token, _replace_number, _lines)[int(random.integers(3))]
        if (changed := mutation(text, random)) != text:
            return changed.encode("utf-8", "surrogateescape"), mutation.__name__.removeprefix("_")


# --- text and archives of a known structure

NASTY_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "-1",
        "nan",
        "1 2 x",
        "<script>",
        "\x00",
        "é日本\u202e",
        "A" * 20_000,
        [],
        [[]],
        {},
        [None],
        {"a": {}},
        {"": 1},
    ),
)


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as (container, key)."""
    found: list[tuple[Any, Any]] = []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *_nodes(value[key])]
    return found


def mutate_json(content: bytes, random: Random) -> tuple[bytes, str]:
    """Other bytes of JSON: mostly one value changed, and the rest as it was."""
    if random.random() < 0.3:
        return mutate_text(content, random)
    whole = [json.loads(content)]
    container, key = _pick(random, _nodes(whole))
    match int(random.integers(5)):
        case 0 if isinstance(container, dict) or len(container) > 1:
            del container[key]
        case 1 if isinstance(container, list) and container is not whole:
            container.append(container[key])
        case 2 if isinstance(container, dict):
            container["unheard of"] = container[key]
        case _:
            container[key] = _pick(random, NASTY_VALUES)
    return json.dumps(whole[0]).encode(), f"value at {key}"


def mutate_arrays(content: bytes, random: Random) -> tuple[bytes, str]:
    """Other bytes of an .npz: mostly another array in it, since an archive's own sums find other damage."""
    if random.random() < 0.3:
        return mutate_bytes(content, random)
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = _pick(random, sorted(arrays))
    value = arrays.pop(name)
    number = value.dtype.kind in "fiub"
    match int(random.integers(7)):
        case 0:
            pass
        case 1:
            arrays[f"{name}.more"] = value
        case 2:
            arrays[name] = value[: len(value) // 2] if value.ndim else value.reshape(1)
        case 3:
            arrays[name] = value.reshape(-1)
        case 4 if number:
            arrays[name] = value.astype(_pick(random, (*DTYPES, "complex64", "S4", "U4", ">f4")))
        case 5 if number:
            arrays[name] = _other_value(value, random)
        case _:
            arrays[name] = np.array(_pick(random, (0, -1, 2**62, 1.5, "x", [], [[1]])))
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue(), f"array {name}"


# --- programs

ATTRIBUTES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 99, -99, 2**31 - 1, -(2**31), True, False, "", "SAME", "NHWC", "nonsense"),
    *(0.0, -1.0, 1e-45, 3e38, float("nan"), float("inf")),
    *([], [0], [1], [-1], [0, 0], [-1, -1], [2, 2], [99, 99], [1, 1, 1], [2**31 - 1] * 2, [0] * 4, [3, 1, 2, 0]),
    *([0.0], [float("nan"), float("inf")], ["a", "b"]),
)
SHAPES: tuple[tuple[int, ...], ...] = (
    *((), (0,), (1,), (-1,), (-1, -1), (0, 0), (-1, 3, -1, -1), (1, 1, 1, 1), (2**31,), (2**40, 2**40), (7, 5, 3)),
    *((-2, 8), (-1, 2**62), (1,) * 9),
)
DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "uint16")


def _pick(random: Random, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


def _other_op(graph: Graph, random: Random, change: Callable[[Op], Op]) -> tuple[Graph, str]:
    place = int(random.integers(len(graph.ops)))
    op = graph.ops[place]
    return replace(graph, ops=(*graph.ops[:place], change(op), *graph.ops[place + 1 :])), f"op {place} {op.type}"


def _slots(op: Op, random: Random, change: Callable[[dict[str, tuple[str, ...]], str], None]) -> Op:
    """An op with a slot of its inputs or outputs changed, if it has any."""
    side = "inputs" if random.random() < 0.7 else "outputs"
    slots = dict(getattr(op, side))
    if slots:
        change(slots, _pick(random, sorted(slots)))
    return replace(op, **{side: slots})


def drop_slot(graph: Graph, random: Random) -> tuple[Graph, str]:
    return _other_op(graph, random, lambda op: _slots(op, random, lambda slots, slot: slots.pop(slot)))


def empty_slot(graph: Graph, random: Random) -> tuple[Graph, str]:
    return _other_op(graph, random, lambda op: _slots(op, random, lambda slots, slot: slots.update({slot: ()})))


def double_slot(graph: Graph, random: Random) -> tuple[Graph, str]:
    return _other_op(
        graph, random, lambda op: _slots(op, random, lambda slots, slot: slots.update({slot: slots[slot] * 2}))
    )


def rewire(graph: Graph, random: Random) -> tuple[Graph, str]:
    """An op that reads or writes another variable of the graph."""
    name = _pick(random, sorted(graph.vars))
    return _other_op(graph, random, lambda op: _slots(op, random, lambda slots, slot: slots.update({slot: (name,)})))


def change_attribute(graph: Graph, random: Random) -> tuple[Graph, str]:
    """Another value: of the attribute's own type, or of any."""

    def change(op: Op) -> Op:
        if not op.attrs:
            return op
        name = _pick(random, sorted(op.attrs))
        value = _pick(random, ATTRIBUTES)
        kind = Attr.of(value).kind
        if random.random() < 0.7:
            alike = [other for other in ATTRIBUTES if Attr.of(other).kind == op.attrs[name].kind]
            value, kind = (_pick(random, alike), op.attrs[name].kind) if alike else (value, kind)
        return replace(op, attrs={**op.attrs, name: Attr(kind, value)})

    return _other_op(graph, random, change)


def drop_attribute(graph: Graph, random: Random) -> tuple[Graph, str]:
    def change(op: Op) -> Op:
        gone = _pick(random, sorted(op.attrs)) if op.attrs else ""
        return replace(op, attrs={name: attr for name, attr in op.attrs.items() if name != gone})

    return _other_op(graph, random, change)


def change_type(graph: Graph, random: Random) -> tuple[Graph, str]:
    """An op of another type that the graph has, or of none that there is."""
    types = [*sorted(graph.op_counts()), "nonsense", "while", "", "feed", "fetch"]
    return _other_op(graph, random, lambda op: replace(op, type=_pick(random, types)))


def drop_op(graph: Graph, random: Random) -> tuple[Graph, str]:
    place = int(random.integers(len(graph.ops)))
    return replace(graph, ops=graph.ops[:place] + graph.ops[place + 1 :]), f"op {place} {graph.ops[place].type}"


def double_op(graph: Graph, random: Random) -> tuple[Graph, str]:
    place = int(random.integers(len(graph.ops)))
    return replace(graph, ops=graph.ops[: place + 1] + graph.ops[place:]), f"op {place} {graph.ops[place].type}"


def move_op(graph: Graph, random: Random) -> tuple[Graph, str]:
    ops = list(graph.ops)
    begin, end = random.integers(0, len(ops), 2).tolist()
    ops.insert(end, ops.pop(begin))
    return replace(graph, ops=tuple(ops)), f"op {begin} to {end}"


def change_variable(graph: Graph, random: Random) -> tuple[Graph, str]:
    name = _pick(random, [*graph.feeds, *graph.fetches] if random.random() < 0.4 else sorted(graph.vars))
    var = graph.vars[name]
    changed = _pick(
        random,
        (
            Var(_pick(random, SHAPES), var.dtype, var.lod_level),
            Var(var.shape, _pick(random, DTYPES), var.lod_level),
            Var(var.shape, var.dtype, int(random.integers(0, 4))),
            Var(tuple(_pick(random, (size, 1, 0, -1)) for size in var.shape), var.dtype, var.lod_level),
        ),
    )
    return replace(graph, vars={**graph.vars, name: changed}), f"variable {name}"


def drop_variable(graph: Graph, random: Random) -> tuple[Graph, str]:
    name = _pick(random, sorted(graph.vars))
    gone = {key: var for key, var in graph.vars.items() if key != name}
    return replace(graph, vars=gone, params={key: graph.params[key] for key in graph.params if key != name}), name


def _other_value(value: np.ndarray, random: Random) -> np.ndarray:
    """A parameter's value, as extreme as its type allows."""
    floats = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 3e38)
    wanted: Any = _pick(random, floats if value.dtype.kind == "f" else (0, 1, 127))
    if random.random() < 0.5 or not value.size:
        return np.full_like(value, wanted)
    changed = value.copy()
    changed.reshape(-1)[random.integers(0, value.size, 3)] = wanted
    return changed


def change_parameter(graph: Graph, random: Random) -> tuple[Graph, str]:
    name = _pick(random, sorted(graph.params))
    return replace(graph, params={**graph.params, name: _other_value(graph.params[name], random)}), f"values of {name}"


def reshape_parameter(graph: Graph, random: Random) -> tuple[Graph, str]:
    """A parameter of another shape or type, and so declared."""
    name = _pick(random, sorted(graph.params))
    value = graph.params[name]
    changed: np.ndarray = _pick(
        random,
        (
            value.reshape(-1),
            value.T,
            value[:0],
            value[: len(value) // 2] if value.ndim else value,
            np.concatenate([value.reshape(-1), value.reshape(-1)]),
            value.reshape(*value.shape, 1),
            value.astype(_pick(random, DTYPES)),
        ),
    )
    changed = np.ascontiguousarray(changed)
    described = {**graph.vars, name: Var(changed.shape, str(changed.dtype))}
    return replace(graph, vars=described, params={**graph.params, name: changed}), f"shape or type of {name}"


def change_scale(graph: Graph, random: Random) -> tuple[Graph, str]:
    """A quantizer's scale: the parameter that it reads, or an attribute of an INT8 op."""
    scales = {name for op in graph.ops for slot in op.inputs if "scale" in slot.lower() for name in op.inputs[slot]}
    named = sorted(scales & graph.params.keys())
    if named and random.random() < 0.7:
        name = _pick(random, named)
        return replace(graph, params={**graph.params, name: _other_value(graph.params[name], random)}), f"scale {name}"
    scaled = [
        (place, key)
        for place, op in enumerate(graph.ops)
        for key, attr in op.attrs.items()
        if "scale" in key.lower() and isinstance(attr.value, (float, list))
    ]
    if not scaled:
        return change_parameter(graph, random)
    place, key = _pick(random, scaled)
    op = graph.ops[place]
    wanted = float(_pick(random, (0.0, -1.0, np.nan, np.inf, 1e-45, 3e38)))
    old = op.attrs[key]
    value = [wanted] * int(random.integers(0, len(old.value) + 2)) if isinstance(old.value, list) else wanted
    changed = replace(op, attrs={**op.attrs, key: Attr(old.kind, value)})
    return replace(graph, ops=(*graph.ops[:place], changed, *graph.ops[place + 1 :])), f"op {place} {op.type} {key}"


def change_ends(graph: Graph, random: Random) -> tuple[Graph, str]:
    """Other feeds or fetches: one fewer, one twice, one that was inside."""
    side = str(random.choice(["feeds", "fetches"]))
    names = getattr(graph, side)
    changed = _pick(random, (names[1:], names * 2, (*names, _pick(random, sorted(graph.vars))), names[::-1]))
    return replace(graph, **{side: changed}), side


PROGRAM_MUTATIONS: Mapping[str, Callable[[Graph, Random], tuple[Graph, str]]] = {
    mutation.__name__: mutation
    for mutation in (
        *(drop_slot, empty_slot, double_slot, rewire, change_attribute, change_attribute, drop_attribute, change_type),
        *(drop_op, double_op, move_op, change_variable, drop_variable, change_parameter, reshape_parameter),
        *(change_scale, change_ends),
    )
}


def mutate_graph(graph: Graph, random: Random) -> tuple[Graph, str]:
    """Another graph, and what was done. It may be one that can't be written: then AttributeError, TypeError, ..."""
    name = _pick(random, sorted(PROGRAM_MUTATIONS))
    changed, told = PROGRAM_MUTATIONS[name](graph, random)
    return changed, f"{name}: {told}"
