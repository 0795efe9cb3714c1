"""Every command on programs whose ops write what they read: walks over a graph end, and values aren't mixed up."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.ir.graph import Graph, Op, load_dir, save_dir
from tests.manifests import ANY_SPEED
from tests.nets import CONV, NATIVE, Net, run

Call = Callable[..., tuple[int, str, str]]
SAMPLES = 64


def norm_stays_net() -> Graph:
    """A batch norm behind a transposed convolution with a bias: it can't be folded, and writes the mean it reads."""
    net = Net()
    x = net.act(net.norm(net.conv("x", 8, 3)))
    attrs = {**CONV, "strides": [2, 2], "output_padding": [], "output_size": []}
    y = net.op("conv2d_transpose", {"Input": x, "Filter": net.param(8, 8, 2, 2)}, "Output", (-1, 8, 16, 16), **attrs)
    y = net.act(net.norm(net.bias(y)))
    return net.graph(net.head(net.pool(net.conv(y, 8), "avg")))


def overwriting_net(*, feed: bool = False) -> Graph:
    """Activations are written over what was read, as memory-optimized programs do; with `feed`, the input too."""
    net = Net()
    x = net.op("scale", {"X": "x"}, scale=0.5, bias=0.0, bias_after_scale=True)
    y = net.act(net.norm(net.conv(x, 8, 3)))
    z = net.act(net.bias(net.conv(y, 8)))
    graph = net.graph(net.head(net.act(net.add(z, y))))
    return over(
        graph, ({x: "x"} if feed else {}) | {op.output("Out"): op.input("X") for op in graph.ops if op.type == "relu"}
    )


def over(graph: Graph, names: dict[str, str]) -> Graph:
    """The graph with variables renamed, so that ops write others' variables."""

    def last(name: str) -> str:
        while name in names:
            name = names[name]
        return name

    def renamed(op: Op) -> Op:
        outputs = {slot: tuple(map(last, old)) for slot, old in op.outputs.items()}
        return replace(op.rewired({name: last(name) for name in op.reads}), outputs=outputs)

    ops = tuple(map(renamed, graph.ops))
    used = {name for op in ops for name in (*op.reads, *op.writes)}
    return replace(graph, ops=ops, vars={name: var for name, var in graph.vars.items() if name in used})


NETS = {"a norm that stays": norm_stays_net, "written over": overwriting_net}


@pytest.fixture(scope="module", params=NETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 and data of it, quant, int8."""
    root = tmp_path_factory.mktemp("made")
    graph = NETS[request.param]()
    (root / "fp32").mkdir()
    save_dir(graph, root / "fp32")
    images = np.random.default_rng(0).standard_normal((2 * SAMPLES, 8, 8, 8)).astype(np.float32)
    [scores] = run(graph, {"x": images}, root, NATIVE)
    np.savez(root / "calibration.npz", x=images[:SAMPLES])
    np.savez(root / "test.npz", x=images[SAMPLES:], label=scores[SAMPLES:].argmax(1))
    return root


@pytest.fixture
def converted(made: Path, call: Call, cache: Path) -> Path:
    if not (made / "int8").exists():
        ptq = ("--model", made / "fp32", "--data", made / "calibration.npz", "--output", made / "quant")
        assert call("ptq", *ptq)[0] == 0
        both = ("--quant-model-path", made / "quant", "--int8-model-save-path", made / "int8")
        assert call("convert", *both, "--debug", made / "drawn")[0] == 0
    return made


def test_each_value_gets_a_name_and_the_same_numbers_come_out(tmp_path: Path) -> None:
    given = overwriting_net(feed=True)
    assert sum(name == "x" for op in given.ops for name in op.writes) == 1
    (tmp_path / "model").mkdir()
    save_dir(given, tmp_path / "model")
    graph = load_dir(tmp_path / "model")
    written = [name for op in graph.ops for name in op.writes if name not in graph.params]
    assert len(written) == len(set(written)) and "x" not in written
    assert (graph.feeds, graph.fetches) == (given.feeds, given.fetches)
    assert all(name in graph.vars for name in written)
    batch = {"x": np.random.default_rng(1).standard_normal((4, 8, 8, 8)).astype(np.float32)}
    [expected] = run(given, {"x": batch["x"].copy()}, tmp_path, NATIVE)
    np.testing.assert_array_equal(run(graph, batch, tmp_path, NATIVE)[0], expected)


def test_no_op_writes_a_parameter_as_far_as_walks_are_concerned() -> None:
    graph = norm_stays_net()
    assert any(name in graph.params for op in graph.ops for name in op.writes)
    assert not graph.writers().keys() & graph.params.keys()


@pytest.mark.timeout(120)
def test_they_convert_and_agree(converted: Path, call: Call) -> None:
    both = (
        "--fp32-model",
        converted / "fp32",
        "--quant-model",
        converted / "quant",
        "--int8-model",
        converted / "int8",
    )
    code, out, err = call("compare", *both, "--data", converted / "test.npz", "--json")
    assert code in (0, 1) and not err.startswith("quant: "), err
    assert json.loads(out)["top1"]["int8"] > 0.8


@pytest.mark.timeout(60)
@pytest.mark.parametrize("model", ["fp32", "int8"])
def test_a_profile_ends(converted: Path, call: Call, model: str) -> None:
    code, out, err = call("profile", converted / model, "--json")
    assert code == 0 and '"findings"' in out, err


@pytest.mark.timeout(60)
def test_an_analysis_ends(converted: Path, call: Call) -> None:
    models = ("--fp32-model", converted / "fp32", "--quant-model", converted / "quant")
    code, out, err = call("analyze", converted / "int8", *models, "--data", converted / "test.npz", "--json")
    assert code == 0 and '"ops"' in out, err


@pytest.mark.timeout(120)
def test_tuning_ends(converted: Path, call: Call, tmp_path: Path) -> None:
    data = ("--calibration", converted / "calibration.npz", "--data", converted / "test.npz")
    told = ("--output", tmp_path / "tuned", "--max-drop", 0.5, "--time-budget", 20)
    code, _, err = call("tune", "--fp32-model", converted / "fp32", *data, *told)
    assert code == 0, err


@pytest.mark.timeout(240)
def test_a_suite_ends_and_tells_what_the_model_consists_of(
    converted: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (converted / "quant.toml").write_text(
        f"""
[[model]]
name = "in-place"
fp32 = "fp32"
calibration = "calibration.npz"
data = "test.npz"
metric = "top1"
batch_sizes = [1]
threads = [1]
thresholds.drop = 0.5
{ANY_SPEED}
"""
    )
    code, out, err = call("suite", "--manifest", converted / "quant.toml")
    assert code in (0, 1) and "not told what it consists of" not in out + err, out + err
