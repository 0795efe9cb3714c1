"""Whether the ops of a program are what Paddle says such ops are, told before anything relies on it.

Paddle describes each op that it has: inputs and outputs, which of them may be absent or be several, and the types of
attributes. Its executor finds out while it runs, at times by ending the process. What reads a graph here (passes,
calibration, conversion) takes a convolution's filter for granted.

Liberal where Paddle is: ops and attributes that it doesn't describe are let pass, and so are outputs that inference
has no use for. Source: paddle/fluid/framework/framework.proto (OpProto), attribute.h (ExtractAttribute).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from paddle.base import core
from paddle.base.proto import framework_pb2 as proto

__all__ = ["attribute_kinds", "defaults_of", "fault_of"]

_WHOLE = {proto.INT, proto.LONG, proto.BOOLEAN}
_NUMBERS = {*_WHOLE, proto.FLOAT, proto.FLOAT64, proto.SCALAR}
_LISTS = {proto.INTS, proto.LONGS, proto.BOOLEANS, proto.FLOATS, proto.FLOAT64S, proto.STRINGS, proto.SCALARS}
_BY_VARIABLE = {proto.VAR, proto.VARS}

# AttrType in Paddle's description -> (those that a program may give instead, what to call it). An empty list may be
# one of any kind.
_TYPES: Mapping[int, tuple[set[int], str]] = {
    proto.INT: (_WHOLE, "a whole number"),
    proto.LONG: (_WHOLE, "a whole number"),
    proto.BOOLEAN: (_WHOLE, "true or false"),
    proto.FLOAT: (_NUMBERS, "a number"),
    proto.FLOAT64: (_NUMBERS, "a number"),
    proto.SCALAR: (_NUMBERS, "a number"),
    proto.STRING: ({proto.STRING}, "text"),
    proto.INTS: ({proto.INTS, proto.LONGS}, "a list of whole numbers"),
    proto.LONGS: ({proto.INTS, proto.LONGS}, "a list of whole numbers"),
    proto.FLOATS: ({proto.FLOATS, proto.FLOAT64S}, "a list of numbers"),
    proto.FLOAT64S: ({proto.FLOATS, proto.FLOAT64S}, "a list of numbers"),
    proto.BOOLEANS: ({proto.BOOLEANS}, "a list of true or false"),
    proto.STRINGS: ({proto.STRINGS}, "a list of texts"),
}

# Attributes of oneDNN's INT8 ops, which Paddle keeps beside its descriptions.
_INT8_ATTRIBUTES: Mapping[str, int] = {
    **dict.fromkeys(("Scale", "Scale_in", "Scale_out", "Scale_in_eltwise", "Scale_x", "Scale_y"), proto.FLOAT),
    **dict.fromkeys(("Scale_data", "Shift_data", "fuse_alpha", "fuse_beta", "weight_levels"), proto.FLOAT),
    **dict.fromkeys(("Scale_weights", "weight_thresholds"), proto.FLOATS),
    **dict.fromkeys(("mkldnn_data_type", "fuse_activation"), proto.STRING),
}


# Attributes that Paddle's descriptions leave to its kernels, and without which these ops have no meaning.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("quantize", "dequantize"), ("Scale",)),
    **dict.fromkeys(("transpose2", "fused_transpose"), ("axis",)),
    "cast": ("in_dtype", "out_dtype"),
    "pool2d": ("pooling_type", "ksize"),
}


class _Described(NamedTuple):
    """What Paddle says of an op type."""

    needed: tuple[str, ...]  # inputs that can't be absent
    single: frozenset[str]  # inputs and outputs that are one variable at most
    gives: str  # the output that can't be absent: the first, for the others may be for training only
    attributes: Mapping[str, int]


@cache
def _described() -> Mapping[str, _Described]:
    found = {}
    for serialised in core.get_all_op_protos():
        op = proto.OpProto.FromString(serialised)
        needed = [one.name for one in op.inputs if not (one.dispensable or one.extra or one.intermediate)]
        given = [one.name for one in op.outputs if not (one.dispensable or one.extra or one.intermediate)]
        found[op.type] = _Described(
            tuple(needed),
            frozenset(one.name for one in (*op.inputs, *op.outputs) if not one.duplicable),
            next(iter(given), ""),
            {attr.name: attr.type for attr in op.attrs},
        )
    return found


@cache
def attribute_kinds(type: str) -> Mapping[str, tuple[int, bool]] | None:
    """An op type's attributes -> their AttrType, and whether they are for training, or of single kernels ("extra").

    None for a type that Paddle doesn't have.
    """
    return _attributes().get(type)


@cache
def _attributes() -> Mapping[str, Mapping[str, tuple[int, bool]]]:
    found = {}
    for serialised in core.get_all_op_protos():
        op = proto.OpProto.FromString(serialised)
        found[op.type] = {attr.name: (attr.type, attr.extra) for attr in op.attrs}
    return found


@cache
def defaults_of(type: str) -> Mapping[str, tuple[int, Any]]:
    """What an op's attributes are where a program doesn't say: name -> (AttrType, value); none of those "extra".

    Passes of a predictor, and Paddle's translator to its newer format, read them unchecked.
    """
    kinds = attribute_kinds(type) or {}
    given = core.get_op_attrs_default_value(type.encode()) if kinds else {}
    return {name: (kinds[name][0], value) for name, value in given.items() if name in kinds and not kinds[name][1]}


def fault_of(
    type: str,
    inputs: Mapping[str, tuple[str, ...]],
    outputs: Mapping[str, tuple[str, ...]],
    attrs: Mapping[str, tuple[int, Any]],
) -> str:
    """What is wrong with an op, in words; "" when nothing is. `attrs`: name -> (AttrType, value)."""
    described = _described().get(type)
    if described is None:
        return ""
    if lacking := [name for name in _NEEDED.get(type, ()) if name not in attrs]:
        return f"its attribute {lacking[0]!r} is missing"
    return next(_faults(described, inputs, outputs, attrs), "")


def _faults(
    described: _Described,
    inputs: Mapping[str, tuple[str, ...]],
    outputs: Mapping[str, tuple[str, ...]],
    attrs: Mapping[str, tuple[int, Any]],
) -> Iterator[str]:
    for slot in described.needed:
        if not any(inputs.get(slot, ())):
            yield f"its input {slot!r} is missing"
    if described.gives and not any(outputs.get(described.gives, ())):
        yield f"its output {described.gives!r} is missing"
    for slot, names in (*inputs.items(), *outputs.items()):
        if slot in described.single and len(names) > 1:
            yield f"its {slot!r} is {len(names)} variables instead of one"
    for name, (kind, value) in attrs.items():
        wanted = described.attributes.get(name, _INT8_ATTRIBUTES.get(name))
        if (
            wanted is not None
            and wanted in _TYPES
            and kind not in _BY_VARIABLE
            and not (kind in _LISTS and wanted in _LISTS and not value)
        ):
            kinds, told = _TYPES[wanted]
            if kind not in kinds:
                yield f"its attribute {name!r} is {_shown(value)}, not {told}"
                continue
        if (sensible := _SENSIBLE.get(name)) and kind not in _BY_VARIABLE and not sensible(value):
            yield f"its attribute {name!r} is {_shown(value)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _finite(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(math.isfinite(one) for one in values)


# Attribute -> whether a value makes sense in any op that has it. Not Scale_weights: Paddle's own conversion may write
# an infinite one for a channel of zeros.
_SENSIBLE: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("Scale", "Scale_in", "Scale_out", "Scale_in_eltwise", "Scale_x", "Scale_y"), _finite),
    **dict.fromkeys(("Scale_data", "Shift_data", "weight_thresholds"), _finite),
}
