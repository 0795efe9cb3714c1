"""The PIR ops whose legacy form is more than another name: a function each."""

from collections.abc import Callable, Mapping
from typing import Any

from quant.ir.pir.reader import DType, PirOp, Value
from quant.ir.pir.table import TABLE
from quant.ir.pir.translate import Translator, constant, dtype_number

__all__ = ["SPECIAL"]


def _parameter(t: Translator, op: PirOp) -> None:
    """Those that aren't persistable aren't in the file: the dropout state of nn.LSTM, which inference doesn't read."""
    (value,), name = op.outputs, op.attrs["parameter_name"]
    t.variable[value] = name
    t.vars[name] = (value.shape, value.dtype)
    if op.attrs["persistable"]:
        t.params[name] = t.vars[name]


def _feed(t: Translator, op: PirOp) -> None:
    (value,), name = op.outputs, str(op.attrs["name"])
    t.variable[value] = name
    t.vars[name] = (value.shape, value.dtype)
    t.feeds.append(name)


def _fetch(t: Translator, op: PirOp) -> None:
    (source,), (name, column) = t.names(op.inputs[0]), (str(op.attrs["name"]), int(op.attrs["col"]))
    if source != name:  # a feed, a parameter, or what is fetched twice
        value = op.inputs[0]
        assert value is not None
        t.vars[name] = (value.shape, value.dtype)
        t.emit("assign", {"X": (source,)}, {"Out": (name,)}, {})
    t.fetches[column] = name


def _combine(t: Translator, op: PirOp) -> None:
    """`Translator.names` looks through it."""


def _split_array(t: Translator, op: PirOp) -> None:
    for value, name in zip(op.outputs, t.names(op.inputs[0]), strict=True):
        t.alias(value, name)


def _slice_array(t: Translator, op: PirOp) -> None:
    t.alias(op.outputs[0], t.names(op.inputs[0])[op.attrs["index"]])


def _full(t: Translator, op: PirOp) -> None:
    value, dtype = op.attrs["value"], op.outputs[0].dtype
    whole = isinstance(value, (bool, int)) or dtype.startswith(("int", "uint", "bool"))
    text = str(int(value)) if whole else None  # a float has no room for large integers
    attrs = {"shape": op.attrs["shape"], "value": float(value), "dtype": op.attrs["dtype"], "str_value": text}
    t.emit("fill_constant", {}, {"Out": t.result(op, op.outputs[0])}, attrs)


def _full_with_tensor(t: Translator, op: PirOp) -> None:
    value, shape = op.inputs
    assert value is not None and shape is not None
    number, sizes = constant(value), constant(shape)
    inputs = {} if sizes else {"ShapeTensorList" if shape.parts is not None else "ShapeTensor": t.names(shape)}
    if number is None:
        inputs["ValueTensor"] = t.names(value)
    attrs = {
        "shape": sizes or [-1] * len(op.outputs[0].shape),
        "value": float(number[0]) if number else 0.0,
        "dtype": op.attrs["dtype"],
    }
    t.emit("fill_constant", inputs, {"Out": t.result(op, op.outputs[0])}, attrs)


def _full_int_array(t: Translator, op: PirOp) -> None:
    numbers = [int(number) for number in op.attrs["value"]]
    attrs = {"shape": [len(numbers)], "dtype": op.attrs["dtype"], "values": numbers}
    t.emit("assign_value", {}, {"Out": t.result(op, op.outputs[0])}, attrs)


def _assign_value(t: Translator, op: PirOp) -> None:
    attrs = {name: op.attrs[name] for name in ("shape", "dtype", "values")}
    t.emit("assign_value", {}, {"Out": t.result(op, op.outputs[0])}, attrs)


def _shape(t: Translator, op: PirOp) -> None:
    """Legacy `shape` gives int32 only."""
    (out,) = op.outputs
    if out.dtype == "int32":
        t.generic(op, TABLE["shape"])
        return
    narrow = t.fresh("shape", out.shape, "int32")
    t.emit("shape", {"Input": t.names(op.inputs[0])}, {"Out": (narrow,)}, {})
    _cast_to(t, narrow, "int32", t.result(op, out)[0], out.dtype)


def _cast_to(t: Translator, name: str, dtype: str, out: str, wanted: str) -> None:
    attrs = {"in_dtype": dtype_number(dtype), "out_dtype": dtype_number(wanted)}
    t.emit("cast", {"X": (name,)}, {"Out": (out,)}, attrs)


def _cast(t: Translator, op: PirOp) -> None:
    (source,) = op.inputs
    assert source is not None
    attrs = {"in_dtype": DType(source.dtype), "out_dtype": op.attrs["dtype"]}
    t.emit("cast", {"X": t.names(source)}, {"Out": t.result(op, op.outputs[0])}, attrs)


def _batch_norm(t: Translator, op: PirOp) -> None:
    """The running statistics that it gives out are the variables that it reads."""
    slots = ("X", "Mean", "Variance", "Scale", "Bias")
    inputs = {slot: t.names(value) for slot, value in zip(slots, op.inputs, strict=True)}
    outputs = {"Y": t.result(op, op.outputs[0]), "MeanOut": inputs["Mean"], "VarianceOut": inputs["Variance"]}
    for place, slot in ((3, "SavedMean"), (4, "SavedVariance")):
        outputs[slot] = t.result(op, op.outputs[place])
    t.emit("batch_norm", inputs, outputs, _given(op, {"data_format": "data_layout"}, _BATCH_NORM))


_BATCH_NORM = ("is_test", "momentum", "epsilon", "data_layout", "use_global_stats", "trainable_statistics")


def _given(op: PirOp, renamed: Mapping[str, str], wanted: tuple[str, ...]) -> dict[str, Any]:
    attrs = {renamed.get(name, name): value for name, value in op.attrs.items()}
    return {name: attrs[name] for name in wanted if name in attrs}


def _split(t: Translator, op: PirOp) -> None:
    axis = constant(op.inputs[-1])
    inputs = {"X": t.names(op.inputs[0])}
    if axis is None:
        inputs["AxisTensor"] = t.names(op.inputs[-1])
    attrs: dict[str, Any] = {"axis": axis[0] if axis else None, "num": 0}
    if op.name == "split_with_num":
        attrs["num"] = op.attrs["num"]
    else:
        attrs["sections"] = constant(op.inputs[1])
        if attrs["sections"] is None and op.inputs[1] is not None:
            inputs["SectionsTensorList"] = t.numbers(op.inputs[1], op)
            attrs["sections"] = [-1] * len(inputs["SectionsTensorList"])
    t.emit("split", inputs, {"Out": t.result(op, op.outputs[0])}, attrs)


def _reduce(t: Translator, op: PirOp) -> None:
    """No axis is all of them, which legacy ops say in an attribute of its own."""
    found = op.attrs["axis"] if "axis" in op.attrs else constant(op.inputs[1])
    if found is None:
        raise ValueError("its axis is computed")
    axes = found if isinstance(found, list) else [found]
    source, row = op.inputs[0], TABLE[op.name]
    assert source is not None
    name = "axis" if row.type == "logsumexp" else "dim"
    reduce_all = not axes or len(axes) == len(source.shape)
    axes = axes or list(range(len(source.shape)))  # not every kernel looks at reduce_all
    # The axes are said here: neither the operand nor the attribute is to come in once more.
    bare = PirOp(op.name, op.full_name, op.inputs[:1], op.outputs, {k: v for k, v in op.attrs.items() if k != "axis"})
    t.generic(bare, row, **{name: axes, "reduce_all": reduce_all})


def _strided_slice(t: Translator, op: PirOp) -> None:
    """Without a flag an axis its kernel reads beyond the list: SIGSEGV."""
    t.generic(op, infer_flags=[1] * len(op.attrs["axes"]))


def _set_value(t: Translator, op: PirOp) -> None:
    row = TABLE["set_value"]
    if op.name == "set_value_with_tensor":
        row = row._replace(operands=(row.operands[0], "ValueTensor", *row.operands[1:]))
    t.generic(op, row, dtype=dtype_number(op.outputs[0].dtype))


def _arange(t: Translator, op: PirOp) -> None:
    """Legacy `range` computes in the type of its operands, PIR in one that it is told."""
    (out,), inputs = op.outputs, {}
    for slot, value in zip(("Start", "End", "Step"), op.inputs, strict=True):
        inputs[slot] = _as_type(t, value, out.dtype)
    t.emit("range", inputs, {"Out": t.result(op, out)}, {})


def _as_type(t: Translator, value: Value | None, dtype: str) -> tuple[str, ...]:
    assert value is not None
    if value.dtype == dtype:
        return t.names(value)
    name, known = t.fresh("range", value.shape, dtype), constant(value)
    if known is None:
        _cast_to(t, t.names(value)[0], value.dtype, name, dtype)
    else:
        attrs = {"shape": list(value.shape), "value": float(known[0]), "dtype": dtype_number(dtype)}
        t.emit("fill_constant", {}, {"Out": (name,)}, attrs)
    return (name,)


def _copy(t: Translator, op: PirOp) -> None:
    t.emit("assign", {"X": t.names(op.inputs[0])}, {"Out": t.result(op, op.outputs[0])}, {})


def _triangle(t: Translator, op: PirOp) -> None:
    attrs = {"diagonal": op.attrs["diagonal"], "lower": op.name == "tril"}
    t.emit("tril_triu", {"X": t.names(op.inputs[0])}, {"Out": t.result(op, op.outputs[0])}, attrs)


SPECIAL: Mapping[str, Callable[[Translator, PirOp], None]] = {
    "builtin.parameter": _parameter,
    "data": _feed,
    "fetch": _fetch,
    "builtin.combine": _combine,
    "builtin.split": _split_array,
    "builtin.slice": _slice_array,
    "full": _full,
    "full_with_tensor": _full_with_tensor,
    "full_int_array": _full_int_array,
    "assign_value": _assign_value,
    "shape": _shape,
    "shape64": _shape,
    "cast": _cast,
    "batch_norm": _batch_norm,
    "split": _split,
    "split_with_num": _split,
    **dict.fromkeys(("max", "min", "sum", "mean", "prod", "amax", "amin", "all", "any", "logsumexp"), _reduce),
    "strided_slice": _strided_slice,
    "set_value": _set_value,
    "set_value_with_tensor": _set_value,
    "arange": _arange,
    "share_data": _copy,
    "tril": _triangle,
    "triu": _triangle,
}
