"""File formats: every layout round-trips; every damaged or foreign file is one clear ModelError."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.errors import ModelError
from quant.ir.graph import Attr, Graph, Op, as_today, files_of, load_dir, model_size, save_dir
from tests.nets import Net, data, residual_net, run

LAYOUTS = ["inference", "model", "combined", "separate"]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return residual_net()


@pytest.fixture
def saved(graph: Graph, tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    save_dir(graph, directory)
    return directory


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_round_trips_and_runs(graph: Graph, layout: str, tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    save_dir(graph, place, layout)
    again = load_dir(place)
    assert (again.feeds, again.fetches, again.op_counts()) == (graph.feeds, graph.fetches, graph.op_counts())
    assert all(np.array_equal(again.params[name], value) for name, value in graph.params.items())
    assert [op.attrs.keys() for op in again.ops] == [op.attrs.keys() for op in as_today(graph).ops]
    [batch] = data(graph, 1)
    np.testing.assert_array_equal(run(again, batch, tmp_path)[0], run(graph, batch, tmp_path)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_size_of_a_model_is_that_of_its_program_and_parameters(graph: Graph, layout: str, tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    save_dir(graph, place, layout)
    written = sum(path.stat().st_size for path in place.iterdir())
    (place / "calibration_table.txt").write_text("x 1.0\n" * 100)
    assert model_size(place) == written > sum(value.nbytes for value in graph.params.values())


def test_the_size_of_no_model_and_of_half_a_model_is_an_error(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no program"):
        model_size(tmp_path)
    save_dir(graph, tmp_path, "separate")
    (tmp_path / "p0").unlink()
    with pytest.raises(ModelError, match="no file for parameter 'p0'"):
        model_size(tmp_path)


ATTRS = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=20),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ATTRS)
def test_attributes_survive_a_round_trip(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    net = Net()
    net.act("x")
    graph = net.graph("t0")
    graph = replace(graph, ops=(replace(graph.ops[0], attrs={"probe": Attr.of(value)}),))
    place = tmp_path_factory.mktemp("attr")
    save_dir(graph, place)
    assert load_dir(place).ops[0].attr("probe") == value


def test_evolve_drops_what_nothing_uses(graph: Graph) -> None:
    short = graph.evolve(graph.ops[:1])
    assert short.params.keys() == {graph.ops[0].input("Filter")}
    assert set(short.vars) == {*graph.ops[0].reads, *graph.ops[0].writes, *graph.fetches}


def test_missing_and_empty_directories(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        load_dir(tmp_path / "absent")
    with pytest.raises(ModelError, match="no program"):
        load_dir(tmp_path)


def test_a_legacy_program_comes_before_a_pir_one(tmp_path: Path) -> None:
    for name in ("inference.json", "inference.pdmodel"):
        (tmp_path / name).write_text("{}")
        assert files_of(tmp_path).program.name == name


@pytest.mark.parametrize("name", ["inference.pdmodel", "inference.pdiparams"])
@pytest.mark.parametrize("kind", ["truncated", "random", "empty", "longer"])
def test_damaged_files_are_named(saved: Path, name: str, kind: str) -> None:
    path = saved / name
    content = path.read_bytes()
    noise = np.random.default_rng(0).bytes(2000)
    damaged = {"truncated": content[: len(content) // 2], "random": noise, "empty": b"", "longer": content + noise}
    path.write_bytes(damaged[kind])
    with pytest.raises(ModelError) as caught:
        load_dir(saved)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_of_another_model(saved: Path, tmp_path: Path) -> None:
    net = Net()
    other = tmp_path / "other"
    other.mkdir()
    save_dir(net.graph(net.conv(net.conv("x", 4), 3)), other)
    (saved / "inference.pdiparams").write_bytes((other / "inference.pdiparams").read_bytes())
    with pytest.raises(ModelError, match=r"inference\.pdiparams"):
        load_dir(saved)


def test_a_missing_separate_parameter_is_named(graph: Graph, tmp_path: Path) -> None:
    save_dir(graph, tmp_path, "separate")
    (tmp_path / "p0").unlink()
    with pytest.raises(ModelError, match="'p0'"):
        load_dir(tmp_path)


def test_a_parameter_name_cannot_leave_the_directory(graph: Graph, tmp_path: Path) -> None:
    name = graph.ops[0].input("Filter")
    evil = "../../etc/passwd"
    moved = replace(
        graph,
        ops=(graph.ops[0].rewired({name: evil}), *graph.ops[1:]),
        vars={evil if key == name else key: var for key, var in graph.vars.items()},
        params={evil if key == name else key: value for key, value in graph.params.items()},
    )
    save_dir(moved, tmp_path)
    (tmp_path / "inference.pdmodel").rename(tmp_path / "__model__")
    (tmp_path / "inference.pdiparams").unlink()
    with pytest.raises(ModelError, match="no file for parameter"):
        load_dir(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_flipped_byte_never_does_worse_than_an_error(
    graph: Graph, tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    place = tmp_path_factory.mktemp("flip")
    save_dir(graph, place)
    path = place / "inference.pdmodel"
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(bytes(content))
    with contextlib.suppress(ModelError):  # anything else fails the test; Paddle itself would end the process
        load_dir(place)


def test_op_input_and_output_of_empty_slots() -> None:
    op = Op("x", {"A": ()}, {})
    assert op.input("A") == op.input("B") == op.output("C") == ""


# --- programs that Paddle's own description of ops doesn't allow


def _first(graph: Graph, change: Callable[[Op], Op]) -> Graph:
    """The graph with its first op changed: a convolution."""
    assert graph.ops[0].type == "conv2d"
    return replace(graph, ops=(change(graph.ops[0]), *graph.ops[1:]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda op: replace(op, inputs={"Input": op.inputs["Input"]}), "its input 'Filter' is missing"),
        (lambda op: replace(op, inputs={**op.inputs, "Filter": ("",)}), "its input 'Filter' is missing"),
        (lambda op: replace(op, outputs={}), "its output 'Output' is missing"),
        (lambda op: replace(op, inputs={**op.inputs, "Input": ("x", "x")}), "its 'Input' is 2 variables instead of"),
        (lambda op: op.with_attrs(strides=1), "its attribute 'strides' is 1, not a list of whole numbers"),
        (lambda op: op.with_attrs(groups="one"), "its attribute 'groups' is 'one', not a whole number"),
        (lambda op: op.with_attrs(data_format=["NCHW"]), "its attribute 'data_format' is ['NCHW'], not text"),
        (lambda op: op.with_attrs(Scale_in=float("nan")), "its attribute 'Scale_in' is nan"),
    ],
)
def test_an_op_is_what_paddle_says_such_ops_are(change: Callable[[Op], Op], told: str, tmp_path: Path) -> None:
    save_dir(_first(residual_net(), change), tmp_path)
    with pytest.raises(ModelError, match=r"inference\.pdmodel: op 'conv2d' \(output '.*'\): ") as error:
        load_dir(tmp_path)
    assert told in str(error.value)


def test_what_paddle_does_not_describe_is_let_pass(tmp_path: Path) -> None:
    graph = _first(residual_net(), lambda op: op.with_attrs(of_mine="x", strides=[]))
    other = replace(graph.ops[-1], type="of_my_own", attrs={})
    save_dir(replace(graph, ops=(*graph.ops[:-1], other)), tmp_path)
    assert load_dir(tmp_path).op_counts()["of_my_own"] == 1


def test_ops_in_another_order_are_told(tmp_path: Path) -> None:
    graph = residual_net()
    save_dir(replace(graph, ops=(*graph.ops[1:], graph.ops[0])), tmp_path)
    with pytest.raises(
        ModelError, match=r"op 'elementwise_add' \(output 't1'\) reads 't0', which nothing wrote before"
    ):
        load_dir(tmp_path)


@pytest.mark.parametrize("name", [b"strides", b"conv2d", b"Filter", b"p0"])
def test_names_that_are_no_text_are_told(name: bytes, tmp_path: Path) -> None:
    save_dir(residual_net(), tmp_path)
    program = tmp_path / "inference.pdmodel"
    program.write_bytes(program.read_bytes().replace(name, b"\xff" * len(name)))
    with pytest.raises(ModelError, match=r"inference\.pdmodel: "):
        load_dir(tmp_path)


def test_text_that_is_no_utf8_can_be_written_again(tmp_path: Path) -> None:
    """Programs of Paddle 1.x keep the paths of the Python files that made them."""
    path = Attr(Attr.of("").kind, "D:/xxxx/net.py")
    (tmp_path / "again").mkdir()
    save_dir(_first(residual_net(), lambda op: replace(op, attrs={**op.attrs, "of_mine": path})), tmp_path)
    program = tmp_path / "inference.pdmodel"
    program.write_bytes(program.read_bytes().replace(b"xxxx", "模型".encode("gbk")))
    save_dir(load_dir(tmp_path), tmp_path / "again")
    assert load_dir(tmp_path / "again").ops[0].attr("of_mine").endswith("/net.py")
