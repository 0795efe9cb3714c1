"""Calibration tables: what a file may hold, and that a table gives a model the thresholds that calibration gave it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import ConversionError, DataError, OptionError, OutputError
from quant.ir.graph import Graph, Op, load_dir, save_dir
from quant.ir.passes import lift_quantizers, lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.calibration_table import apply_table, read_table, table_of, write_table
from quant.quantization.conversion import convert
from tests.nets import NETS, Net, data, inception_net, residual_net, vgg_net
from tests.unit.test_attention import batch as tokens
from tests.unit.test_attention import encoder
from tests.unit.test_foreign_models import paddles_own_ptq
from tests.unit.test_recurrent import layers, sequences

BAD = {
    "empty": (b"", "empty"),
    "blank line": (b"a 1\n\nb 1\n", "line 2: '' is not"),
    "one field": (b"a 1\nb\n", "line 2: 'b' is not"),
    "three fields": (b"a 1 2\n", "line 1: 'a 1 2' is not"),
    "two spaces": (b"a  1\n", "line 1"),
    "a tab": (b"a\t1\n", "line 1"),
    "no name": (b" 1\n", "line 1"),
    "a word": (b"a 1\nb one\n", "line 2: 'b': 'one' is not a number"),
    "a list": (b"a [1.0]\n", "not a number"),
    "underscores": (b"a 1_0\n", "not a number"),
    "other digits": ("a \u0661\n".encode(), "not a number"),
    "hexadecimal": (b"a 0x1p3\n", "not a number"),
    "zero": (b"a 1\nb 0.0\n", "line 2: 'b': the threshold is 0.0"),
    "zero as float32": (b"a 1e-60\n", "line 1: 'a': the threshold is 1e-60"),
    "negative": (b"a -1\n", "line 1: 'a': the threshold is -1"),
    "nan": (b"a nan\n", "the threshold is nan"),
    "inf": (b"a inf\n", "the threshold is inf"),
    "inf as float32": (b"a 1e39\n", "the threshold is 1e39"),
    "twice": (b"a 1\nb 2\na 1\n", "line 3: a second entry of 'a'"),
    "not text": (b"a 1\nb\xff 2\n", "line 2: not UTF-8"),
    "zeros": (b"\0" * 100, "line 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_table_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    content, told = BAD[case]
    path = tmp_path / "table.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.txt", "."])
def test_what_is_no_file_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_table(tmp_path / name)


def test_a_table_as_paddleslim_writes_it(tmp_path: Path) -> None:
    """Python's shortest digits of float32 and float64 numbers; also with another system's line ends."""
    path = tmp_path / "table.txt"
    path.write_bytes(b"batch_norm_0.tmp_2 7.0641465187072754\r\nrelu_0.tmp_0 6.5e-05\r\npool2d_0.tmp_0 12")
    assert read_table(path) == {
        "batch_norm_0.tmp_2": 7.0641465187072754,
        "relu_0.tmp_0": float(np.float32(6.5e-05)),
        "pool2d_0.tmp_0": 12.0,
    }


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \r\n"), min_size=1)
THRESHOLDS = st.floats(min_value=0, exclude_min=True, allow_infinity=False, width=32)


@given(table=st.dictionaries(NAMES, THRESHOLDS, min_size=1))
def test_a_table_survives_a_round_trip(table: dict[str, float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "table.txt"
    write_table(path, table)
    assert list(read_table(path).items()) == list(table.items())
    assert [entry.name for entry in path.parent.iterdir()] == ["table.txt"]


def test_no_empty_table_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be empty"):
        write_table(tmp_path / "table.txt", {})


@pytest.mark.parametrize("table", [{"a b": 1.0}, {"a\n": 1.0}, {"": 1.0}, {"a": 0.0}, {"a": math.nan}, {"a": 1e60}])
def test_what_a_table_could_not_hold_is_not_written(table: dict[str, float], tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("kept 1\n")
    with pytest.raises(OutputError, match="can't stand in a calibration table"):
        write_table(path, table)
    assert read_table(path) == {"kept": 1.0}
    with pytest.raises(OutputError, match="can't be written"):
        write_table(tmp_path / "absent" / "table.txt", {"a": 1.0})
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.txt"]


# --- onto models

MODELS: dict[str, tuple[Callable[[], Graph], Callable[[Graph], list]]] = {
    **{name: (build, data) for name, build in NETS.items()},
    "encoder": (encoder, lambda graph: [tokens()]),
    "gru": (lambda: layers("gru"), lambda graph: [sequences()]),
    "lstm": (lambda: layers("lstm"), lambda graph: [sequences()]),
    "gru of words": (lambda: layers("gru", words=50), lambda graph: [sequences(words=50)]),
}


def told(op: Op) -> tuple:
    attrs = {key: attr for key, attr in op.attrs.items() if key != "algorithm"}
    return op.type, dict(op.inputs), dict(op.outputs), attrs


def assert_same(one: Graph, other: Graph) -> None:
    """The same ops, thresholds, levels and weights, bit by bit; only where a threshold comes from may differ."""
    assert [told(op) for op in one.ops] == [told(op) for op in other.ops]
    assert one.params.keys() == other.params.keys()
    assert all(np.array_equal(one.params[name], other.params[name]) for name in one.params)
    assert (one.vars, one.feeds, one.fetches) == (other.vars, other.feeds, other.fetches)


def thresholds(graph: Graph) -> dict[str, float]:
    return {op.input("X"): op.attr("threshold") for op in graph.ops if op.type == "fake_quant"}


@pytest.mark.parametrize("levels", [127, 63])
@pytest.mark.parametrize("name", MODELS)
def test_calibrations_own_table_gives_the_same_simulation(name: str, levels: int, tmp_path: Path) -> None:
    build, batches = MODELS[name]
    graph = build()
    simulated = calibrate(graph, batches(graph), algo="mse", weight_levels=levels)
    write_table(tmp_path / "table.txt", table_of(graph, simulated))
    table = read_table(tmp_path / "table.txt")
    assert table.keys() <= graph.vars.keys()
    applied = apply_table(graph, table, weight_levels=levels)
    assert_same(applied.graph, simulated)
    assert (applied.missing, applied.was_fp32) == ((), True)
    # What no data settles: the state of recurrent layers.
    known = {op.input("X") for op in simulated.ops if op.attr("algorithm") == "known"}
    assert known.isdisjoint(applied.used)
    assert set(applied.unused) <= known
    assert set(applied.used) | set(applied.unused) == set(table)


@pytest.mark.parametrize("name", MODELS)
def test_calibrations_own_table_changes_nothing_in_its_fake_quantized_model(name: str) -> None:
    build, batches = MODELS[name]
    graph = build()
    simulated = calibrate(graph, batches(graph), algo="mse")
    stored = lower_quantizers(simulated)
    applied = apply_table(stored, {k: v for k, v in table_of(graph, simulated).items() if k in stored.vars})
    assert_same(applied.graph, lift_quantizers(stored))
    assert not applied.was_fp32


def test_skipped_ops_and_types_are_those_of_calibration() -> None:
    graph = residual_net()
    table = table_of(graph, calibrate(graph, data(graph), algo="abs_max"))
    choice = {"ops_to_quantize": ["conv2d"], "op_ids_to_skip": [1]}
    expected = calibrate(graph, data(graph), algo="abs_max", **choice)
    assert_same(apply_table(graph, table, **choice).graph, expected)
    with pytest.raises(OptionError, match="unknown op id 99"):
        apply_table(graph, table, op_ids_to_skip=[99])


def test_a_tensor_without_an_entry_keeps_its_reader_in_float() -> None:
    """And the rest is rounded as if that reader had been skipped."""
    graph = residual_net()
    table = table_of(graph, calibrate(graph, data(graph), algo="abs_max"))
    del table["x"]  # PaddleSlim's tables have outputs of ops only
    applied = apply_table(graph, table)
    assert applied.missing == ("x",)
    assert_same(applied.graph, calibrate(graph, data(graph), algo="abs_max", op_ids_to_skip=[0]))
    _, coverage = convert(applied.graph)
    assert (coverage.int8["conv2d"], coverage.fp32["conv2d"]) == (4, 1)


def test_an_addition_whose_other_operand_has_no_entry_stays_float() -> None:
    graph = residual_net()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    table = table_of(graph, simulated)
    writers = graph.writers()
    [shortcut] = [name for name in table if name in writers and writers[name].type == "batch_norm"]
    del table[shortcut]
    applied = apply_table(graph, table)
    assert applied.missing == (shortcut,)
    assert shortcut not in thresholds(applied.graph)
    _, coverage = convert(applied.graph)
    assert (coverage.int8["conv2d"], coverage.fp32["conv2d"]) == (4, 1)


def test_tensors_that_share_a_grid_get_the_largest_entry() -> None:
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8, 3)))
    joined = net.concat(net.act(net.bias(net.conv(stem, 8))), stem)
    shared = net.graph(net.head(net.pool(net.act(net.bias(net.conv(joined, 8))))))
    table = table_of(shared, calibrate(shared, data(shared), algo="abs_max"))
    assert table[stem] == table[joined]
    for changed, largest in (({stem: 3.0, joined: 7.0}, 7.0), ({stem: 9.0, joined: 7.0}, 9.0)):
        applied = apply_table(shared, table | changed)
        assert thresholds(applied.graph)[stem] == thresholds(applied.graph)[joined] == largest
        stored = apply_table(lower_quantizers(applied.graph), {stem: 1.0, joined: 2.0})
        assert thresholds(stored.graph)[stem] == thresholds(stored.graph)[joined] == 2.0


def test_an_entry_counts_for_what_carries_its_values_on() -> None:
    """Pooling, dropout: where the reader's tensor has no entry of its own."""
    graph = vgg_net()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    table = table_of(graph, simulated)
    writers = graph.writers()
    before = {}
    for name in table:
        source = name
        while source in writers and writers[source].type in ("pool2d", "flatten_contiguous_range", "dropout"):
            source = writers[source].input("X")
        before[source] = table[name]
    assert set(before) != set(table)
    applied = apply_table(graph, before)
    assert_same(applied.graph, simulated)
    assert set(applied.used) == set(before)


def test_a_concat_needs_entries_of_all_that_it_joins() -> None:
    graph = inception_net()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    table, writers = table_of(graph, simulated), graph.writers()
    [joined] = [name for name in table if name in writers and writers[name].type == "concat"]
    threshold = table.pop(joined)
    one, other = writers[joined].inputs["X"]
    assert apply_table(graph, {**table, one: threshold}).missing == (joined,)
    applied = apply_table(graph, {**table, one: threshold, other: threshold / 2})
    assert_same(applied.graph, simulated)


def test_a_folded_multiplication_counts_in_what_stands_before_it() -> None:
    """Names of the exported model stand for its values, though normalising scales the weights instead."""
    graph = encoder()
    simulated = calibrate(graph, [tokens()], algo="abs_max")
    table, writers = table_of(graph, simulated), graph.writers()
    [scaled] = [name for name in table if name in writers and writers[name].type == "scale"]
    threshold = table.pop(scaled)
    unscaled, factor = writers[scaled].input("X"), writers[scaled].attr("scale")
    exact = float(np.float32(threshold / factor))
    applied = apply_table(graph, {**table, unscaled: exact})
    assert applied.missing == ()
    assert thresholds(applied.graph)[unscaled] == pytest.approx(threshold, rel=1e-6)


def test_an_embedding_that_normalising_rescales_has_no_entry() -> None:
    """The exported table's range says nothing of the rescaled one's, if the layer behind it isn't quantised."""
    graph = layers("gru", words=50)
    [lookup] = [op.output("Out") for op in graph.ops if op.type == "lookup_table"]
    table = table_of(graph, calibrate(graph, [sequences(words=50)], algo="abs_max"))
    assert lookup not in table
    applied = apply_table(graph, {**table, lookup: 100.0})
    assert lookup in applied.unused
    alone = calibrate(graph, [sequences(words=50)], algo="abs_max", ops_to_quantize=["mul"])
    assert lookup in thresholds(alone)
    assert lookup not in table_of(graph, alone)
    applied = apply_table(graph, {**table, lookup: 100.0}, ops_to_quantize=["mul"])
    assert (lookup in applied.missing, lookup in thresholds(applied.graph)) == (True, False)


def test_entries_of_a_fake_quantized_model_replace_thresholds_and_leave_weights() -> None:
    graph = residual_net()
    simulated = calibrate(graph, data(graph), algo="abs_max")
    stored = lower_quantizers(simulated)
    table = {name: float(np.float32(threshold * 1.25)) for name, threshold in table_of(graph, simulated).items()}
    first = next(iter(table))
    kept = table.pop(first)
    weight = next(name for name in stored.params if name.endswith(".int8"))
    integer = next(op.output("Y") for op in stored.ops if op.type == "quantize_linear")
    applied = apply_table(stored, {**table, weight: 5.0, integer: 5.0})
    assert applied.missing == (first,)
    assert set(applied.unused) == {weight, integer}
    assert set(applied.used) == set(table)
    before, after = lift_quantizers(stored), applied.graph
    assert thresholds(after) == {**table, first: thresholds(before)[first]}
    assert thresholds(after)[first] == pytest.approx(kept / 1.25, rel=1e-6)
    assert all(np.array_equal(before.params[name], after.params[name]) for name in before.params)
    grids = [
        [op.attr("weight_thresholds") for op in found.ops if op.attr("weight_thresholds")] for found in (before, after)
    ]
    assert grids[0] == grids[1]
    int8, coverage = convert(after)
    assert coverage.int8["conv2d"] == 5
    scales = {op.attr("levels") / op.attr("threshold") for op in after.ops if op.type == "fake_quant"}
    assert {op.attr("Scale") for op in int8.ops if op.type == "quantize"} <= scales


@pytest.mark.parametrize("name", NETS)
def test_a_table_as_paddleslim_makes_it_beside_paddles_own_qdq_model(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are what quantize_linear calls Scale, an abs-max; it names outputs of ops, so never the input."""
    graph, source, target = NETS[name](), tmp_path / "source", tmp_path / "target"
    source.mkdir()
    save_dir(replace(graph, ops=tuple(op.with_attrs(op_role=0) for op in graph.ops)), source)
    scales = paddles_own_ptq(source, target, data(graph), onnx_format=True, per_channel=True)
    lines = [f"{tensor} {found['scale']}\n" for tensor, found in scales.items()]  # paddleslim/quant/quanter.py
    (target / "calibration_table.txt").write_text("".join(lines))
    table, quantized = read_table(target / "calibration_table.txt"), load_dir(target)
    applied = apply_table(quantized, table)
    assert (applied.missing, applied.was_fp32) == (("x",), False)
    assert len(applied.used) == len(thresholds(applied.graph)) - 1
    assert thresholds(applied.graph) == thresholds(lift_quantizers(quantized))
    from_fp32 = apply_table(graph, table)
    assert (from_fp32.missing, from_fp32.was_fp32) == (("x",), True)
    assert set(from_fp32.used) >= set(applied.used) - {"x"}
    _, coverage = convert(from_fp32.graph)
    assert sum(coverage.fp32[kind] for kind in ("conv2d", "matmul_v2", "mul")) == 1


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrent_layers_keep_the_grid_that_their_weights_were_made_for(kind: str) -> None:
    graph = layers(kind)
    stored = lower_quantizers(calibrate(graph, [sequences()], algo="abs_max"))
    before = lift_quantizers(stored)
    table = dict.fromkeys(thresholds(before), 50.0)
    applied = apply_table(stored, table)
    after = thresholds(applied.graph)
    read = {op.input("X") for op in before.ops if op.type == "fake_quant"}
    assert "x" in read
    assert after == thresholds(before)
    assert applied.used == ()


def test_names_that_the_model_does_not_have_are_refused_with_a_hint() -> None:
    graph = residual_net()
    table = table_of(graph, calibrate(graph, data(graph), algo="abs_max"))
    wrong = {**table, "t3O": 1.0}
    with pytest.raises(
        DataError, match=rf"^mine\.txt: line {len(wrong)}: the model has no tensor 't3O'; did you mean 't3"
    ):
        apply_table(graph, wrong, source="mine.txt")
    stored = lower_quantizers(calibrate(graph, data(graph), algo="abs_max"))
    with pytest.raises(DataError, match=r"no tensor 'zzzzzzzzzzz'$"):
        apply_table(stored, {"zzzzzzzzzzz": 1.0})


def test_a_table_that_rounds_nothing_is_an_error() -> None:
    graph = residual_net()
    with pytest.raises(ConversionError, match="nothing would be rounded: no entry for 'x'"):
        apply_table(graph, {graph.fetches[0]: 1.0})
    net = Net()
    bare = net.graph(net.act("x"))
    with pytest.raises(ConversionError, match="the model has no op to quantise"):
        apply_table(bare, {"x": 1.0})


def test_a_program_that_assigns_a_tensor_to_itself_is_no_trap() -> None:
    graph = residual_net()
    loop = Op.make("assign", {"X": "t0"}, {"Out": "t0"})
    looped = replace(graph, ops=(graph.ops[0], loop, *graph.ops[1:]))
    with pytest.raises(ConversionError, match="nothing would be rounded"):
        apply_table(looped, {"t0": 1.0})
