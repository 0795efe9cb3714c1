"""Sequences run directly: one at a time gives what Paddle's executor gives, several at once are left to it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.programs import Program as Written
from quant.datasets.columns import Column, values_of
from quant.datasets.readers import Ragged
from quant.errors import UnsupportedError
from quant.ir.graph import Graph, Var, run_passes, save_dir
from quant.ir.passes import NORMALISE, fuse_kernels, lower_quantizers
from quant.process import isolate
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.direct.program import Program
from quant.runtime.predictor import Predictor, Settings
from tests.unit.test_recurrent import NATIVE, WIDTH, layers, sequences

DIRECT = Settings("int8", executor="direct")
PADDLE = Settings("int8", executor="paddle")
Batch = dict[str, Ragged]


def int8_of(graph: Graph, words: int = 0) -> Graph:
    return convert(lower_quantizers(calibrate(graph, [sequences(words=words)], algo="abs_max")))[0]


def with_attr(graph: Graph, kind: str, **attrs: Any) -> Graph:
    return graph.evolve(op.with_attrs(**attrs) if op.type == kind else op for op in graph.ops)


def same(found: dict[str, Column], expected: dict[str, Column]) -> None:
    assert found.keys() == expected.keys()
    for name, column in found.items():
        other = expected[name]
        assert isinstance(column, Ragged) == isinstance(other, Ragged)
        np.testing.assert_array_equal(values_of(column), values_of(other))
        if isinstance(column, Ragged) and isinstance(other, Ragged):
            assert column.offsets.tolist() == other.offsets.tolist()


@pytest.mark.parametrize("words", [0, 50])
@pytest.mark.parametrize(("kind", "origin"), [("gru", False), ("gru", True), ("lstm", False)])
def test_both_executors_give_the_same_bits(kind: str, origin: bool, words: int, tmp_path: Path) -> None:
    """At several lengths, also when one was met before; a plan is made for each."""
    graph = layers(kind, words=words)
    save_dir(int8_of(with_attr(graph, "gru", origin_mode=True) if origin else graph, words), tmp_path)
    with Predictor(tmp_path, DIRECT) as direct, Predictor(tmp_path, PADDLE) as paddle:
        for number, length in enumerate((5, 1, 9, 5, 40)):
            batch = sequences((length,), words, seed=number)
            same(direct(batch), paddle(batch))
        assert (direct.executor, paddle.executor) == ("direct", "paddle")


def test_several_sequences_run_on_paddles_executor_and_one_directly_again(tmp_path: Path) -> None:
    save_dir(int8_of(layers("gru")), tmp_path)
    used = []
    with Predictor(tmp_path, Settings("int8")) as predictor, Predictor(tmp_path, PADDLE) as paddle:
        for lengths in ((4,), (4, 2), (6,), (3, 3)):
            same(predictor(sequences(lengths)), paddle(sequences(lengths)))
            used.append(predictor.executor)
    assert used == ["direct", "paddle", "direct", "paddle"]
    with Predictor(tmp_path, DIRECT) as insisting, pytest.raises(UnsupportedError, match="several sequences"):
        insisting(sequences((4, 2)))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_float32_layers_run_as_well(kind: str, tmp_path: Path) -> None:
    """So that the FP32 baseline may have the faster executor, too."""
    graph, batch = layers(kind), sequences((7,))
    save_dir(graph, tmp_path)
    with (
        Predictor(tmp_path, NATIVE) as native,
        Predictor(tmp_path, Settings(executor="direct")) as direct,
    ):
        [expected], [found] = native(batch).values(), direct(batch).values()
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-5)
    assert found.offsets.tolist() == [0, 7]


def head(*, pool: str = "", blank: int | None = None, tags: int = 0, merge: bool = True) -> Graph:
    """A product of each step, and what the rows' models do with such."""
    random = np.random.default_rng(0)
    program = Written({"x": Var((-1, WIDTH), lod_level=1)})
    weight = program.param("w", random.standard_normal((WIDTH, tags or 5)).astype(np.float32))
    bias = np.zeros(tags or 5, np.float32)
    bias[blank or 0] = 0.0 if blank is None else 0.5
    steps = program.linear("x", weight, program.param("b", bias))
    if pool:
        pooled = {"Out": Var((-1, 5)), "MaxIndex": Var((-1, 5), "int32")}
        out = program.op("sequence_pool", {"X": steps}, pooled, pooltype=pool, is_test=True)
    elif tags:
        moves = program.param("crfw", random.standard_normal((tags + 2, tags)).astype(np.float32))
        given = {"Emission": steps, "Transition": moves}
        out = program.op("crf_decoding", given, {"ViterbiPath": Var((-1, 1), "int64", 1)})
    else:
        found = {"Indices": Var((-1, 1), "int64", 1), "Out": Var((-1, 1), lod_level=1)}
        best = program.op("top_k", {"X": steps}, found, k=1)
        align = {"Output": Var((-1, 1), "int64", 1)}
        out = program.op("ctc_align", {"Input": best}, align, blank=blank, merge_repeated=merge)
    return program.graph([out])


def fused(graph: Graph) -> Graph:
    return run_passes(graph, (*NORMALISE, fuse_kernels))


HEADS = {
    "largest": head(pool="MAX"),
    "first": head(pool="FIRST"),
    "last": head(pool="LAST"),
    "merged": head(blank=4),
    "repeated": head(blank=4, merge=False),
    "tags": head(tags=7),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_give_what_paddles_give(name: str, tmp_path: Path) -> None:
    save_dir(HEADS[name], tmp_path)
    with (
        Predictor(tmp_path, NATIVE) as paddle,
        Predictor(tmp_path, Settings(executor="direct")) as direct,
    ):
        for number, length in enumerate((1, 2, 6, 30, 6)):
            batch = sequences((length,), seed=number)
            found, expected = direct(batch), paddle(batch)
            if name in ("largest", "first", "last"):  # float32 sums
                [a], [b] = found.values(), expected.values()
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            else:
                same(found, expected)


def tags_in_static_mode(model: str) -> list[list[list[int]]]:
    """Run in a child: tags of a program that builds static graphs, whose mode is afterwards as it was."""
    import paddle

    paddle.enable_static()
    found = []
    for executor in ("direct", "paddle"):
        with Predictor(Path(model), Settings(executor=executor)) as predictor:
            found.append(predictor(sequences((9,)))[predictor.outputs[0]].values.tolist())
    assert not paddle.in_dynamic_mode()
    return found


def test_in_a_program_that_builds_static_graphs(tmp_path: Path) -> None:
    """Where Paddle's op that finds the best tags can't be called as it is: the process would end."""
    save_dir(HEADS["tags"], tmp_path)
    direct, paddle = isolate.call(f"{__name__}:tags_in_static_mode", {"model": str(tmp_path)})
    assert direct == paddle and len(direct) == 9


def test_nothing_but_blanks_is_an_empty_sequence(tmp_path: Path) -> None:
    save_dir(head(blank=0), tmp_path)
    batch = {"x": Ragged.of([np.zeros((3, WIDTH), np.float32)])}  # the bias decides: blank
    with (
        Predictor(tmp_path, NATIVE) as paddle,
        Predictor(tmp_path, Settings(executor="direct")) as direct,
    ):
        same(direct(batch), paddle(batch))
        assert len(direct(batch)) == 1


def fed_to_numpy() -> Graph:
    """The input itself is pooled: not by a kernel, which would be told its place, but by a step in NumPy."""
    program = Written({"x": Var((-1, WIDTH), lod_level=1)})
    out = program.op("sequence_pool", {"X": "x"}, {"Out": Var((-1, WIDTH))}, pooltype="LAST", is_test=True)
    return program.graph([out])


def test_what_numpy_reads_of_an_input_is_what_was_fed_last() -> None:
    program = Program(fed_to_numpy())
    for seed in (0, 1):
        values = sequences((4,), seed=seed)["x"].values
        plan = program.plan({"x": values}, ["x"])
        plan.feed({"x": values})
        plan.run()
        [found] = plan.read().values()
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, values[-1:])


def with_first_state(graph: Graph) -> Graph:
    first = next(op for op in graph.ops if op.type == "fusion_gru")
    given = replace(first, inputs={**first.inputs, "H0": graph.feeds})
    return graph.evolve(given if op is first else op for op in graph.ops)


UNKNOWN = {
    "sequence_pool AVERAGE": lambda: fused(head(pool="AVERAGE")),
    "top_k of more than one": lambda: with_attr(fused(head(blank=4)), "top_k", k=2),
    "a state to begin with": lambda: with_first_state(fused(layers("gru"))),
    "with peepholes": lambda: with_attr(fused(layers("lstm")), "fusion_lstm", use_peepholes=True),
    "1 scales for 48 outputs": lambda: with_attr(int8_of(layers("gru")), "fusion_gru", Scale_weights=[1.0]),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_what_is_not_known_is_left_to_paddle(why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        Program(UNKNOWN[why]()).plan({"x": sequences((3,))["x"].values}, ["x"])


@pytest.mark.parametrize("shape", [[0, 5], [1, -1]])
def test_what_an_op_makes_of_steps_must_be_known(shape: list[int]) -> None:
    """Other shapes or orders may be no sequence any more, even of as many rows."""
    program = Written({"x": Var((-1, 5), lod_level=1)})
    out = program.op("reshape2", {"X": "x"}, {"Out": Var((-1, 5))}, shape=shape)
    with pytest.raises(UnsupportedError, match="reshape2 of a sequence"):
        Program(program.graph([out])).plan({"x": np.zeros((1, 5), np.float32)}, ["x"])


def test_steps_of_no_sequence_are_left_to_paddle() -> None:
    with pytest.raises(UnsupportedError, match="no sequence"):
        Program(int8_of(layers("gru"))).plan({"x": sequences((3,))["x"].values})
