"""Data of another size than a model declares."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures.programs import Program
from quant.datasets.columns import Dataset
from quant.datasets.data_shapes import check_taken, resized
from quant.errors import DataError
from quant.ir.graph import Graph, Var
from tests.resizable import CLASSES, convolutional, flattened, images, reshaped


def data(**inputs: np.ndarray) -> Dataset:
    return Dataset(Path("some.npz"), inputs, None)


def test_a_net_that_takes_any_size_is_told_of_once(capfd: pytest.CaptureFixture[str]) -> None:
    path = Path("told-once.npz")
    for _ in range(2):
        check_taken(convolutional(), Dataset(path, {"x": images(2, 24, 32)}, None))
    assert capfd.readouterr().err == (
        "note: told-once.npz: input 'x' is declared [-1, 4, 16, 16]; the data are [4, 24, 32], which is what the model "
        "is run with\n"
    )


def test_of_the_declared_size_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    graph, given = flattened(), {"x": images(2, 16, 16)}
    check_taken(graph, data(**given))
    assert resized(graph, given) is graph
    assert capfd.readouterr().err == ""


def test_the_graph_as_if_it_declared_the_data() -> None:
    graph = convolutional()
    wide = resized(graph, {"x": images(2, 24, 32)})
    assert {name: var.shape for name, var in wide.vars.items() if name not in graph.params} == {
        "x": (-1, 4, 24, 32),
        **dict.fromkeys(("t0", "t1", "t2"), (-1, 8, 24, 32)),
        **dict.fromkeys(("t3", "t4"), (-1, CLASSES, 24, 32)),
        "t5": (-1, CLASSES),
    }
    assert wide.ops == graph.ops and wide.params is graph.params
    assert {name: wide.vars[name] for name in wide.params} == {name: graph.vars[name] for name in graph.params}


LAYER = r"its op 'matmul_v2' \(t4\) can't take those: .*6144"
CHANNELS = r"its op 'conv2d' \(t0\) can't take those: it gets 5 channels, its weight is for 4"


@pytest.mark.parametrize(
    ("graph", "given", "told"),
    [
        (flattened(), images(2, 24, 32), LAYER),
        (reshaped(), images(2, 32, 32), "its output 't3' would have 8 rows for 2 samples"),
        (convolutional(), images(2, 16, 16, channels=5), CHANNELS),
        (convolutional(), images(2, 0, 16), "samples are not empty"),
    ],
    ids=["layer", "rows", "channels", "empty"],
)
def test_what_a_program_cannot_take(
    graph: Graph, given: np.ndarray, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shapes = rf"holds samples of \[{', '.join(map(str, given.shape[1:]))}\], the model reads \[4, 16, 16\]"
    with pytest.raises(DataError, match=rf"^some\.npz: array 'x' {shapes}, and {told}"):
        check_taken(graph, data(x=given))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("features", [5, 3])
def test_a_recurrent_layer_has_a_number_of_features(features: int) -> None:
    """Paddle's shape function doesn't say so."""
    program = Program({"x": Var((6, 2, 4)), "h": Var((1, 2, 5)), "c": Var((1, 2, 5))})
    shapes = ((20, 4), (20, 5), (20,), (20,))
    weights = [program.param(f"w{place}", np.zeros(shape, "f")) for place, shape in enumerate(shapes)]
    scratch = Var((1, 2, 5))
    out = program.op(
        "rnn",
        {"Input": "x", "PreState": ("h", "c"), "WeightList": weights},
        {"Out": Var((6, 2, 5)), "DropoutState": scratch, "Reserve": scratch, "State": scratch},
        mode="LSTM",
        hidden_size=5,
        input_size=4,
        num_layers=1,
        is_bidirec=False,
        dropout_prob=0.0,
        is_test=True,
        seed=0,
    )
    program.vars["last"] = scratch
    last = program.ops[-1]
    program.ops[-1] = replace(last, outputs={**last.outputs, "State": (*last.outputs["State"], "last")})
    state = np.zeros((1, 2, 5), np.float32)
    with pytest.raises(DataError, match=rf"op 'rnn' .* it gets {features} features, its weight is for 4"):
        check_taken(program.graph([out]), data(x=np.zeros((6, 2, features), np.float32), h=state, c=state))


def test_sequences_have_the_size_that_is_declared() -> None:
    graph = Program({"x": Var((-1, 4), lod_level=1)}).graph([])
    with pytest.raises(DataError, match=r"of \[5\], the model reads \[4\], and input 'x' takes sequences"):
        check_taken(graph, data(x=np.zeros((2, 5), np.float32)))
