"""The direct executor: what it gives is what Paddle's gives; what it can't run, Paddle's runs.

That no bit differs is also checked wherever a test runs an INT8 graph (tests.nets.run) and on every row (the battery).
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.errors import DataError, ModelError, UnsupportedError
from quant.ir.graph import Graph, Op, Var, run_passes, save_dir
from quant.ir.passes import NORMALISE, fuse_kernels
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.runtime.direct import onednn, primitives
from quant.runtime.direct.emit import _viewable
from quant.runtime.direct.program import Plan, Program
from quant.runtime.predictor import Predictor, Settings
from tests.nets import Net, inception_net, inverted_net, mixed_net, residual_net, run, vgg_net

DIRECT = Settings("int8", executor="direct")
PADDLE = Settings("int8", executor="paddle")


def dense_net() -> Graph:
    """DenseNet's layer: batch normalisation that no convolution can take over, before one that reads a concat."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8, 3)))
    joined = net.concat(stem, net.bias(net.conv(stem, 8)))
    again = net.concat(joined, net.bias(net.conv(net.act(net.norm(joined)), 8, 3)))
    head = net.op("dropout", {"X": net.norm(again)}, dropout_prob=0.25, is_test=True)  # scales when it doesn't train
    return net.graph(net.head(net.pool(head, "avg")))


NETS = [residual_net, inverted_net, inception_net, vgg_net, mixed_net, dense_net]


def int8_of(graph: Graph) -> Graph:
    batches = [{"x": batch["x"]} for batch in Net(*graph.vars["x"].shape[1:3], seed=3).batches()]
    return convert(calibrate(run_passes(graph, NORMALISE), batches, algo="abs_max"))[0]


def images(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((batch, 8, 8, 8)).astype(np.float32)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_dir(int8_of(residual_net()), tmp_path)
    return tmp_path


@pytest.mark.parametrize("net", NETS)
def test_both_executors_give_the_same_bits(net: Callable[[], Graph], tmp_path: Path) -> None:
    save_dir(int8_of(net()), tmp_path)
    with Predictor(tmp_path, DIRECT) as direct, Predictor(tmp_path, PADDLE) as paddle:
        assert (direct.executor, paddle.executor) == ("direct", "paddle")
        assert direct.inputs == paddle.inputs and direct.outputs == paddle.outputs
        for batch in (1, 5, 1):
            for name, values in direct(images(batch, batch)).items():
                np.testing.assert_array_equal(values, paddle(images(batch, batch))[name])


@pytest.mark.parametrize("net", NETS)
def test_float32_graphs_run_as_well(net: Callable[[], Graph], tmp_path: Path) -> None:
    graph = net()
    [expected] = run(graph, images(4), tmp_path)
    program = Program(run_passes(graph, (*NORMALISE, fuse_kernels)))
    plan = program.plan(images(4))
    plan.feed(images(4))
    plan.run()
    [found] = plan.outputs.values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_residual_is_still_there_when_it_is_read_again(tmp_path: Path) -> None:
    """A sum is taken in place only where nobody reads its second operand afterwards."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8)))
    once = net.act(net.add(net.bias(net.conv(stem, 8)), stem))
    twice = net.act(net.add(net.bias(net.conv(once, 8)), stem))  # the stem is read here again
    graph = int8_of(net.graph(net.head(twice), net.head(once)))
    assert sum(bool(op.input("ResidualData")) for op in graph.ops) == 2
    run(graph, images(3), tmp_path)  # compares


def test_a_model_is_run_again_and_on_other_arrays(saved: Path) -> None:
    with Predictor(saved, DIRECT) as predictor:
        [first] = predictor(images(2)).values()
        kept = first.copy()
        [other] = predictor(images(2, seed=1)).values()
        assert not np.array_equal(first, other)
        assert np.array_equal(first, kept)  # outputs are new arrays
        for _ in range(50):
            predictor.run()
        assert np.array_equal(next(iter(predictor.read().values())), other)
        assert np.array_equal(next(iter(predictor(images(2)).values())), kept)


def test_plans_of_other_shapes_are_dropped(tmp_path: Path) -> None:
    program = Program(int8_of(residual_net()), capacity=2)
    plans = [program.plan(images(batch)) for batch in (1, 2, 1, 3)]
    assert plans[0] is plans[2]
    assert program.plan(images(1)) is plans[0]  # used later than that of 2
    assert program.plan(images(2)) is not plans[1]


def test_weights_are_packed_once_for_all_shapes() -> None:
    program = Program(int8_of(vgg_net()))
    program.plan(images(1))
    before = {name: list(memories) for name, memories in program.constants.packed.items()}
    program.plan(images(1))
    program.plan(images(6))
    for name, memories in program.constants.packed.items():
        assert memories[: len(before[name])] == before[name]


def test_memory_is_used_again() -> None:
    """Twenty layers in a row need the memory of two or three."""
    net = Net()
    x = "x"
    for _ in range(20):
        x = net.act(net.bias(net.conv(x, 8)))
    plan = Program(int8_of(net.graph(net.head(x)))).plan(images(64))
    blocks = {id(block): block.bytes.size for block in plan.work.blocks.values()}
    assert sum(blocks.values()) < 5 * images(64)["x"].nbytes / 4


def test_two_threads_give_the_same_bits(saved: Path) -> None:
    with Predictor(saved, DIRECT) as one, Predictor(saved, replace(DIRECT, threads=2)) as two:
        for name, values in one(images(7)).items():
            assert np.array_equal(values, two(images(7))[name])


def odd_net(type: str) -> Graph:
    net = Net()
    x = net.act(net.bias(net.conv("x", 8)))
    return net.graph(net.head(net.act(net.bias(net.conv(net.op(type, {"X": x}), 8)))))


def test_what_it_does_not_know_runs_on_paddles_executor(tmp_path: Path) -> None:
    save_dir(int8_of(odd_net("exp")), tmp_path)
    with Predictor(tmp_path, Settings("int8")) as predictor:
        assert predictor.executor == "paddle"
        assert np.isfinite(next(iter(predictor(images(2)).values()))).all()
    with pytest.raises(UnsupportedError, match=r"can't be run directly: op 'exp'"):
        Predictor(tmp_path, DIRECT)


def test_an_input_of_another_type_is_paddles_to_refuse(saved: Path) -> None:
    wrong = {"x": images(2)["x"].astype(np.float64)}
    with Predictor(saved, Settings("int8")) as predictor, pytest.raises((ModelError, DataError)):
        predictor(wrong)
    with Predictor(saved, DIRECT) as predictor, pytest.raises(UnsupportedError, match="is float64, not float32"):
        predictor(wrong)


def lookup_graph(padding: int = -1) -> Graph:
    random = np.random.default_rng(0)
    table = random.standard_normal((10, 4)).astype(np.float32)
    op = Op.make("lookup_table_v2", {"Ids": "ids", "W": "table"}, {"Out": "out"}, padding_idx=padding)
    described = {"ids": Var((-1, 3), "int64"), "table": Var((10, 4)), "out": Var((-1, 3, 4))}
    return Graph((op,), described, {"table": table}, ("ids",), ("out",))


def looked_up(plan: Plan, ids: list[int]) -> np.ndarray:
    plan.feed({"ids": np.array([ids])})
    plan.run()
    return plan.outputs["out"]


@pytest.mark.parametrize(
    ("type", "attrs", "shape"),
    [
        ("assign", {}, (-1, 8, 8, 8)),
        ("dropout", {"dropout_implementation": "upscale_in_train", "is_test": True}, (-1, 8, 8, 8)),
        ("transpose2", {"axis": [0, 2, 3, 1]}, (-1, 8, 8, 8)),
        ("flatten_contiguous_range", {"start_axis": 1, "stop_axis": -1}, (-1, 512)),
    ],
)
def test_an_input_is_given_out_as_it_came(type: str, attrs: dict, shape: tuple[int, ...], tmp_path: Path) -> None:
    net = Net()
    save_dir(net.graph(net.op(type, {"X": "x"}, shape=shape, **attrs), net.act("x")), tmp_path)
    with Predictor(tmp_path, DIRECT) as direct, Predictor(tmp_path, PADDLE) as paddle:
        for seed in range(3):
            batch = images(2, seed)
            for mine, its in zip(direct(batch).values(), paddle(batch).values(), strict=True):
                np.testing.assert_array_equal(mine, its)


def test_ids_are_looked_up_anew_at_each_run() -> None:
    graph = lookup_graph()
    plan = Program(graph).plan({"ids": np.array([[0, 0, 0]])})
    for ids in ([1, 9, 3], [0, 2, 2]):
        assert np.array_equal(looked_up(plan, ids)[0], graph.params["table"][ids])


def test_the_padding_id_gives_zeros(tmp_path: Path) -> None:
    graph, ids = lookup_graph(padding=3), np.array([[3, 1, 3]])
    plan = Program(graph).plan({"ids": ids})
    assert np.array_equal(looked_up(plan, [3, 1, 3]), run(graph, {"ids": ids}, tmp_path)[0])


def test_sizes_that_do_not_fit_are_paddles_to_refuse(saved: Path) -> None:
    wrong = {"x": np.zeros((2, 8, 8, 7), np.float32)}
    with Predictor(saved, DIRECT) as predictor, pytest.raises(UnsupportedError, match="can't be run directly"):
        predictor(wrong)


@pytest.mark.parametrize("bad", [10, -1])
def test_an_id_that_is_not_in_the_table_is_told(bad: int) -> None:
    plan = Program(lookup_graph()).plan({"ids": np.array([[0, 0, 0]])})
    with pytest.raises(DataError, match=f"not in the embedding table.*{bad}"):
        looked_up(plan, [1, bad, 3])


def test_the_ops_of_a_run_can_be_watched(saved: Path) -> None:
    seen: list[str] = []
    with Predictor(saved, DIRECT) as predictor:
        predictor.feed(images(1))
        predictor.watch(lambda type, variable: seen.append(type))
        predictor.run()
    assert seen[0] == "quantize" and seen.count("fused_conv2d") == 5 and seen[-1] == "fc"


def test_the_values_of_a_run_can_be_traced(saved: Path) -> None:
    """On both executors, and the same: what lies in memory that is used again, and in oneDNN's layouts."""
    found: list[dict[str, np.ndarray]] = []
    for settings in (DIRECT, PADDLE):
        with Predictor(saved, settings) as predictor:
            for batch in (3, 1, 3):
                predictor.feed(images(batch))
                found.append({})
                predictor.trace(lambda type, variable, values, into=found[-1]: into.update({variable: values}))
            [out] = predictor.read().values()
            np.testing.assert_array_equal(found[-1][predictor.outputs[0]], out)
            assert predictor(images(3))[predictor.outputs[0]].tolist() == out.tolist(), "and is run as before"
    direct, paddle = found[:3], found[3:]
    for mine, its in zip(direct, paddle, strict=True):
        shared = mine.keys() & its.keys()
        assert len(shared) > 9
        for name in shared:
            np.testing.assert_array_equal(mine[name], its[name], name)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 3, 2)])
@pytest.mark.parametrize("shape", [(4, 6, 2, 3), (4, 36), (24, 6), (4, 2, 3, 6), (4, 1, 6, 6), (4, 6, 6)])
def test_what_can_be_looked_at_in_another_shape(order: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Whatever lies around the array in memory: a layout that needs a copy and got none was read uninitialised."""
    dense = np.zeros([(4, 6, 2, 3)[dim] for dim in order], np.uint8)
    array = dense.transpose(np.argsort(order))
    looked_at = array.view()
    try:
        looked_at.shape = shape
        expected = True
    except AttributeError:
        expected = False
    assert all(_viewable(array, shape) == expected for _ in range(50))


def test_a_kernel_reads_no_constant_beyond_its_end() -> None:
    """A bias or scales for other channels than there are: oneDNN would read on behind them."""
    net = Net()
    simulated = calibrate(net.graph(net.act(net.bias(net.conv("x", 8, 3)))), net.batches(1), algo="abs_max")
    graph, _ = convert(simulated)
    [conv] = [op for op in graph.ops if op.type == "fused_conv2d"]

    def refused(changed: Graph, told: str) -> None:
        with pytest.raises(UnsupportedError, match=told):
            Program(changed).plan({"x": np.zeros((1, 8, 8, 8), np.float32)})

    scaled = conv.with_attrs(Scale_weights=conv.attr("Scale_weights")[:3])
    refused(replace(graph, ops=tuple(scaled if op is conv else op for op in graph.ops)), "3 scales for 8 channels")
    bias = conv.input("Bias")
    short = {**graph.params, bias: graph.params[bias][:3]}
    refused(replace(graph, params=short), f"'{bias}' holds 3 values, not 8")


def test_attributes_that_make_no_sense_are_paddles_to_refuse() -> None:
    net = Net()
    graph = net.graph(net.pool(net.act("x")))
    pool = graph.ops[-1]
    for changed in (pool.with_attrs(strides=[0, 0]), pool.with_attrs(ksize=[2]), replace(pool, attrs={})):
        program = Program(replace(graph, ops=(*graph.ops[:-1], changed)))
        with pytest.raises(UnsupportedError, match="op 'pool2d'"):
            program.plan({"x": np.zeros((1, 8, 8, 8), np.float32)})


@pytest.mark.parametrize("what", ["memory", "kernel", "library"])
def test_a_handle_that_could_not_be_made_is_not_destroyed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would print "Exception ignored in" for each, among a user's own output."""
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: ignored.append(found.exc_value))
    layout = onednn.layout_of(np.zeros(4, np.float32))
    if what == "memory":

        def refuse(name: str, *arguments: object) -> None:
            raise onednn.RefusedError(name)

        monkeypatch.setattr(onednn, "made", refuse)
        with pytest.raises(onednn.RefusedError):
            onednn.Memory(layout, np.zeros(4, np.float32))
    elif what == "kernel":
        with pytest.raises(onednn.RefusedError):
            primitives.binary("elementwise_add", layout, onednn.layout_of(np.zeros((2, 3), np.float32)), layout)
    else:
        with pytest.raises(AttributeError):
            onednn.Owned(ctypes.c_void_p(1), "dnnl_no_such_function")
    gc.collect()
    assert ignored == []
