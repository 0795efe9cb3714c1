"""Quantization-aware training: of static programs, of dygraph layers, and the loop behind `quant qat`."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from quant.datasets.columns import Ragged
from quant.datasets.readers import Dataset
from quant.errors import ConversionError, DataError, ModelError, OptionError
from quant.ir.fusion import state_matrix
from quant.ir.graph import Attr, Graph, Op, Var, load_dir, save_dir
from quant.ir.passes import lower_quantizers
from quant.ir.passes.quantizers import WEIGHT_SLOT
from quant.metrics.scores import sqnr
from quant.quantization.conversion import convert as to_int8
from quant.quantization.training import finetune
from quant.quantization.training.finetune import Training, fine_tune
from quant.quantization.training.layers import convert_layer, quant_aware_layer
from quant.quantization.training.program import Config, convert, quant_aware
from quant.runtime.predictor import Predictor, Settings

random = np.random.default_rng(0)
IMAGES = random.standard_normal((32, 3, 16, 16)).astype(np.float32)
DEFAULT = Config()
LABELS = random.integers(0, 5, 32)


@pytest.fixture(autouse=True)
def _modes() -> Iterator[None]:
    yield
    paddle.disable_static()


def run_graph(graph: Graph, directory: Path, feed: dict[str, Any], precision: str = "quant") -> list[Any]:
    directory.mkdir()
    save_dir(graph, directory)
    with Predictor(directory, Settings(precision=precision)) as predictor:  # type: ignore[arg-type]
        return list(predictor(feed).values())


# --- configuration


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"quantize_op_types": ["conv2d", "elmentwise_add"]}, "did you mean 'elementwise_add'"),  # the seeds' own typo
        ({"weight_quantize_type": "channel_wise_absmax"}, "did you mean 'channel_wise_abs_max'"),
        ({"activation_quantize_type": "moving_avg_abs_max"}, "did you mean 'moving_average_abs_max'"),
        ({"activation_quantize_type": "abs_max"}, "computes its scale anew"),
        ({"weight_bit": 8}, "did you mean 'weight_bits'"),
        ({"weight_bits": 16}, "weight_bits: 16"),
        ({"weight_bits": True}, "weight_bits: True"),
        ({"weight_bits": 7.5}, "weight_bits: 7.5"),
        ({"activation_bits": 4}, "activation_bits: 4"),
        ({"moving_rate": 1.0}, "moving_rate: 1.0"),
        ({"moving_rate": "fast"}, "moving_rate: 'fast'"),
        ({"window_size": 0}, "window_size: 0"),
        ({"quantize_op_types": 3}, "quantize_op_types: 3"),
        ({"not_quant_pattern": [1]}, "not_quant_pattern"),
        ({"weight_quantize_type": 8}, "weight_quantize_type: 8"),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told.replace("(", r"\(")):
        Config.of(values)


def test_the_seeds_configuration_is_taken_with_its_typo_mended() -> None:
    config = Config.of(
        {
            "weight_quantize_type": "channel_wise_abs_max",
            "activation_quantize_type": "moving_average_abs_max",
            "quantize_op_types": ["depthwise_conv2d", "mul", "conv2d", "elementwise_add", "pool2d"],
            "not_quant_pattern": "yolo_output",
        }
    )
    assert config.not_quant_pattern == ("yolo_output",)
    assert dataclasses.replace(config, weight_bits=7).weight_levels == 63


# --- static programs


class Static:
    """A residual network with batch norm and dropout as its users write it, before and after `minimize`."""

    def __init__(self, *, backward: bool, scoped: bool = False) -> None:
        paddle.enable_static()
        self.scope = paddle.static.Scope()
        self.main, self.start = paddle.static.Program(), paddle.static.Program()
        self.main.random_seed = self.start.random_seed = 1
        with paddle.utils.unique_name.guard(), paddle.static.program_guard(self.main, self.start):
            self.image = paddle.static.data("image", [None, 3, 16, 16], "float32")
            label = paddle.static.data("label", [None, 1], "int64")
            x = paddle.static.nn.conv2d(self.image, 8, 3, padding=1, bias_attr=False)
            x = paddle.static.nn.batch_norm(x, act="relu")
            with paddle.static.name_scope("skip_quant" if scoped else "main"):
                y = paddle.static.nn.conv2d(x, 8, 3, padding=1)
            x = nn.functional.relu(paddle.static.nn.batch_norm(y) + x)
            x = nn.functional.dropout(nn.functional.max_pool2d(x, 2), 0.1)
            self.logits = paddle.static.nn.fc(x, 5)
            loss = nn.functional.softmax_with_cross_entropy(self.logits, label)
            self.loss = paddle.mean(loss)
            self.twin = self.main.clone(for_test=True)
            self.optimiser = paddle.optimizer.Momentum(0.02)
            if backward:
                self.optimiser.minimize(self.loss)

    def train(self, config: Config = DEFAULT, steps: int = 25) -> tuple[Any, list[float]]:
        """The quantised test program, and the losses."""
        with paddle.static.scope_guard(self.scope):
            train = quant_aware(self.main, config)
            test = quant_aware(self.twin, config, for_test=True)
            if not any(op.type.endswith("_grad") for op in train.global_block().ops):
                with paddle.static.program_guard(train, self.start):
                    self.optimiser.minimize(train.global_block().var(self.loss.name))
            executor = paddle.static.Executor(paddle.CPUPlace())
            executor.run(self.start)
            feed = {"image": IMAGES, "label": LABELS[:, None]}
            losses = [float(executor.run(train, feed, [self.loss.name])[0]) for _ in range(steps)]
            return test, losses

    def simulated(self, test: Any) -> Any:
        with paddle.static.scope_guard(self.scope):
            pruned = paddle.static.normalize_program(test, [self.image], [test.global_block().var(self.logits.name)])
            return paddle.static.Executor(paddle.CPUPlace()).run(pruned, {"image": IMAGES}, [self.logits.name])[0]

    def frozen(self, test: Any, config: Config = DEFAULT) -> Graph:
        with paddle.static.scope_guard(self.scope):
            return convert(test, [self.image], [test.global_block().var(self.logits.name)], config)


@pytest.mark.parametrize("backward", [True, False], ids=["after minimize", "before minimize"])
def test_a_static_program_trains_and_its_int8_is_what_was_trained(backward: bool, tmp_path: Path) -> None:
    net = Static(backward=backward)
    test, losses = net.train()
    assert losses[-1] < 0.5 * losses[0]
    simulated = net.simulated(test)
    graph = net.frozen(test)
    [frozen] = run_graph(lower_quantizers(graph), tmp_path / "quant", {"image": IMAGES})
    assert sqnr(simulated, frozen) > 60  # batch norm is folded in between, so not bit for bit
    int8, coverage = to_int8(graph)
    assert coverage.fp32.total() == 0 and coverage.int8["conv2d"] == 2
    assert any(op.input("ResidualData") for op in int8.ops)  # rounded in training, so added by the kernel on int8
    [exact] = run_graph(int8, tmp_path / "int8", {"image": IMAGES}, "int8")
    assert sqnr(frozen, exact) > 35


def test_weights_and_thresholds_are_those_of_the_trained_program() -> None:
    net = Static(backward=True)
    test, _ = net.train(steps=3)
    graph = net.frozen(test)
    for op in graph.ops:
        if op.type in WEIGHT_SLOT:
            slot, axis = WEIGHT_SLOT[op.type]
            steps = np.array(op.attr("weight_thresholds")) / 127
            shape = [-1 if place == axis else 1 for place in range(graph.params[op.input(slot)].ndim)]
            integers = graph.params[op.input(slot)] / steps.reshape(shape)
            assert np.abs(integers - np.rint(integers)).max() < 1e-3 and np.abs(integers).max() < 127.5
    image = next(op for op in graph.ops if op.type == "fake_quant" and op.input("X") == "image")
    assert image.attr("threshold") == pytest.approx(np.abs(IMAGES).max(), rel=1e-5)  # the same batch in every step


def test_grad_ops_read_rounded_values_and_write_gradients_of_the_originals() -> None:
    net = Static(backward=True)
    with paddle.static.scope_guard(net.scope):
        program = quant_aware(net.main)
    grads = [op for op in program.global_block().ops if op.type == "conv2d_grad"]
    assert len(grads) == 2
    for op in grads:
        assert op.input("Input")[0].endswith(".qat") and op.input("Filter")[0].endswith(".qat")
        assert not any(".qat" in name for name in op.output_arg_names)


def test_the_users_program_is_left_as_it_was() -> None:
    net = Static(backward=True)
    before = net.main.desc.serialize_to_string()
    net.train(steps=1)
    assert net.main.desc.serialize_to_string() == before


def test_a_name_scope_keeps_an_op_unquantised() -> None:
    net = Static(backward=True, scoped=True)
    test, _ = net.train(steps=2)
    graph = net.frozen(test)
    assert to_int8(graph)[1].fp32["conv2d"] == 1


@pytest.mark.parametrize(
    ("values", "check"),
    [
        (
            {"weight_quantize_type": "abs_max"},
            lambda op: op.type != "mul" or len(set(op.attr("weight_thresholds"))) == 1,
        ),
        ({"weight_bits": 7}, lambda op: op.attr("weight_levels") == 63),
        ({"activation_quantize_type": "range_abs_max", "window_size": 4}, lambda op: True),
    ],
    ids=["one scale a tensor", "7 bits", "range_abs_max"],
)
def test_options_reach_the_frozen_model(values: dict[str, Any], check: Any, tmp_path: Path) -> None:
    net, config = Static(backward=True), Config.of(values)
    test, losses = net.train(config, steps=12)
    assert losses[-1] < losses[0]
    graph = net.frozen(test, config)
    weighted = [op for op in graph.ops if op.attr("weight_thresholds")]
    assert len(weighted) == 3 and all(map(check, weighted))
    [frozen] = run_graph(lower_quantizers(graph), tmp_path / "quant", {"image": IMAGES})
    assert sqnr(net.simulated(test), frozen) > 60


def test_only_the_chosen_op_types_are_quantised() -> None:
    net, config = Static(backward=True), Config.of({"quantize_op_types": ["conv2d"]})
    test, _ = net.train(config, steps=2)
    coverage = to_int8(net.frozen(test, config))[1]
    assert coverage.int8["conv2d"] == 2 and coverage.fp32["mul"] == 1


def test_freezing_what_was_never_trained_is_refused() -> None:
    net = Static(backward=True)
    with paddle.static.scope_guard(net.scope):
        test = quant_aware(net.twin, for_test=True)
        with pytest.raises(ConversionError, match="no value"):
            net.frozen(test)
        paddle.static.Executor(paddle.CPUPlace()).run(net.start)
        with pytest.raises(ConversionError, match="no threshold"):
            net.frozen(test)


# --- dygraph layers


class Residual(nn.Layer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2D(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2D(8)
        self.side = nn.Conv2D(3, 8, 1)
        self.two = nn.Conv2D(8, 8, 3, padding=1, bias_attr=False)
        self.last = nn.Linear(8 * 64, 5)

    def forward(self, image: Any) -> Any:
        x = nn.functional.relu(self.norm(self.one(image)))
        x = nn.functional.relu(self.side(image) + self.two(x))
        return self.last(paddle.flatten(nn.functional.max_pool2d(x, 2), 1))


SPEC = [paddle.static.InputSpec([None, 3, 16, 16], "float32", "image")]


def train_layer(layer: Any, steps: int = 25) -> list[float]:
    optimiser = paddle.optimizer.Momentum(0.02, parameters=layer.parameters())
    layer.train()
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(layer(paddle.to_tensor(IMAGES)), paddle.to_tensor(LABELS))
        loss.backward()
        optimiser.step()
        optimiser.clear_grad()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("calibrated", [True, False], ids=["with batches", "without batches"])
def test_a_layer_trains_and_its_int8_is_what_was_trained(calibrated: bool, tmp_path: Path) -> None:
    paddle.seed(1)
    layer = quant_aware_layer(Residual(), SPEC)
    losses = train_layer(layer)
    assert losses[-1] < 0.5 * losses[0]
    assert {name for name, _ in layer.named_parameters()} == {name for name, _ in Residual().named_parameters()}
    layer.eval()
    trained = layer(paddle.to_tensor(IMAGES)).numpy()
    graph = convert_layer(layer, SPEC, batches=[{"image": IMAGES}] if calibrated else [])
    [frozen] = run_graph(lower_quantizers(graph), tmp_path / "quant", {"image": IMAGES})
    assert sqnr(trained, frozen) > (30 if calibrated else 60)  # the residual is rounded on freezing only
    int8, coverage = to_int8(graph)
    # A sum over a signed residual can't be pooled on int8 (docs/paddle-faults.md), so that goes on in float32.
    assert set(coverage.fp32) == ({"pool2d", "flatten_contiguous_range"} if calibrated else set())
    on_int8 = [op for op in int8.ops if op.input("ResidualData") and op.attr("Scale_in_eltwise") != 1.0]
    assert len(on_int8) == int(calibrated)
    [exact] = run_graph(int8, tmp_path / "int8", {"image": IMAGES}, "int8")
    assert sqnr(frozen, exact) > 35


def test_a_layers_checkpoint_holds_its_thresholds() -> None:
    layer = quant_aware_layer(Residual(), SPEC)
    train_layer(layer, 3)
    other = quant_aware_layer(Residual(), SPEC)
    other.set_state_dict(layer.state_dict())
    for one, two in ((layer, other), (other, layer)):
        one.eval()
        two.eval()
    assert np.array_equal(layer(paddle.to_tensor(IMAGES)).numpy(), other(paddle.to_tensor(IMAGES)).numpy())


def test_misuse_of_layers_is_told() -> None:
    layer = Residual()
    with pytest.raises(ConversionError, match="quant_aware_layer comes first"):
        convert_layer(layer, SPEC)
    quant_aware_layer(layer, SPEC)
    with pytest.raises(ConversionError, match="already"):
        quant_aware_layer(layer, SPEC)
    with pytest.raises(ConversionError, match="no threshold"):
        convert_layer(layer, SPEC)
    with pytest.raises(ConversionError, match="nothing to quantise"):
        quant_aware_layer(nn.Sequential(nn.ReLU()), SPEC)


# --- the training loop


def small_model(directory: Path) -> Graph:
    paddle.disable_static()
    paddle.seed(3)
    layer = Residual()
    layer.eval()
    paddle.jit.save(paddle.jit.to_static(layer, full_graph=True, input_spec=SPEC), str(directory / "inference"))
    return load_dir(directory)


def dataset(labels: Any = LABELS) -> Dataset:
    return Dataset(Path("images"), {"image": IMAGES}, labels)


TRAINING = Training(steps=6, batch=8, rate=1e-3)


def test_a_resumed_run_gives_the_same_losses(tmp_path: Path) -> None:
    graph = small_model(tmp_path)
    whole, losses = fine_tune(graph, dataset(), training=TRAINING)
    point = tmp_path / "checkpoint.npz"

    class CutError(Exception):
        pass

    def cut(what: str, done: int, total: int) -> None:
        if done == 5:
            raise CutError

    with pytest.raises(CutError):
        fine_tune(graph, dataset(), training=TRAINING, checkpoint=point, every=3, progress=cut)
    resumed, rest = fine_tune(graph, dataset(), training=TRAINING, checkpoint=point, every=3)
    assert rest == losses[3:]
    assert whole.params.keys() == resumed.params.keys()
    assert all(np.array_equal(whole.params[name], resumed.params[name]) for name in whole.params)


def test_a_checkpoint_of_other_inputs_is_refused(tmp_path: Path) -> None:
    graph, point, data = small_model(tmp_path), tmp_path / "checkpoint.npz", {"data": "1" * 16}
    fine_tune(graph, dataset(), training=TRAINING, checkpoint=point, inputs=data)
    other = dataclasses.replace(graph, params={name: value * 2 for name, value in graph.params.items()})
    left = "checkpoint.npz: left by a run that was cut off, with other inputs: "
    with pytest.raises(OptionError, match=f"{left}model; --fresh starts anew"):
        fine_tune(other, dataset(), training=TRAINING, checkpoint=point, inputs=data)
    faster = dataclasses.replace(TRAINING, rate=1.0)
    with pytest.raises(OptionError, match=rf"{left}training rate \(0.001, now 1.0\); --fresh"):
        fine_tune(graph, dataset(), training=faster, checkpoint=point, inputs=data)
    with pytest.raises(OptionError, match=f"{left}data; --fresh"):
        fine_tune(graph, dataset(), training=TRAINING, checkpoint=point, inputs={"data": "2" * 16})
    point.write_bytes(point.read_bytes()[:1000])
    with pytest.raises(OptionError, match="whose inputs can't be read; --fresh"):
        fine_tune(graph, dataset(), training=TRAINING, checkpoint=point, inputs=data)
    _, losses = fine_tune(graph, dataset(), training=faster, checkpoint=point, inputs=data, fresh=True)
    assert len(losses) == 6
    told: list[str] = []
    _, losses = fine_tune(graph, dataset(), training=faster, checkpoint=point, inputs=data, tell=told.append)
    assert losses == []
    assert told == [f"{point}: 6 steps of a run that was cut off are reused; --fresh starts anew"]


def test_without_labels_the_fp32_model_is_the_teacher(tmp_path: Path) -> None:
    told: list[str] = []
    _, losses = fine_tune(
        small_model(tmp_path),
        dataset(None),
        training=Training(steps=10, batch=8, rate=1e-5),
        progress=lambda what, done, total: told.append(what),
    )
    assert max(losses) < 0.01 and "agreement" in told[-1]  # cross entropy of 5 classes would be above 1


def test_too_little_data_and_a_loss_that_explodes_are_told(tmp_path: Path) -> None:
    graph = small_model(tmp_path)
    with pytest.raises(DataError, match="32 samples, but a batch takes 64"):
        fine_tune(graph, dataset(), training=Training(batch=64))
    with pytest.raises(ModelError, match="lower the learning rate"):
        fine_tune(graph, dataset(), training=Training(steps=20, batch=8, rate=1e30))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_layer_trains_on_the_joint_grid_of_its_kernel(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From thresholds that clip half of each range: as calibration gives them there is little left to learn."""
    first = finetune._first_thresholds
    monkeypatch.setattr(finetune, "_first_thresholds", lambda *of: {k: v / 2 for k, v in first(*of).items()})
    graph = recurrent(kind)
    lengths = [5, 3, 7, 4, 6, 2, 8, 5]
    rows = [random.standard_normal((length, 6)).astype(np.float32) for length in lengths]
    data = Dataset(Path("rows"), {"x": Ragged.of(rows)}, None)
    trained, losses = fine_tune(graph, data, training=Training(steps=12, batch=4, rate=1e-3))
    assert losses[-1] < losses[0]
    cell = next(op for op in trained.ops if op.type == kind)
    steps = np.array(cell.attr("weight_thresholds")) / 127
    integers = state_matrix(cell, trained.params[cell.input("Weight")]) / steps
    assert np.abs(integers - np.rint(integers)).max() < 1e-3
    feed = {"x": data.inputs["x"]}
    [simulated] = run_graph(lower_quantizers(trained), tmp_path / "quant", feed)
    [exact] = run_graph(to_int8(trained)[0], tmp_path / "int8", feed, "int8")
    assert sqnr(simulated.values, exact.values) > 35


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_layers_that_share_their_weights_train_on_a_grid_each(kind: str, tmp_path: Path) -> None:
    """As their twin does, in which each layer has weights of its own: the inputs of the two are of unlike ranges."""
    graph = recurrent(kind)
    shared, twin = twice(graph, apart=False), twice(graph, apart=True)
    assert len(shared.params) < len(twin.params)
    rows = [random.standard_normal((length, 6)).astype(np.float32) for length in (5, 3, 7, 4)]
    data = Dataset(Path("rows"), {"x": Ragged.of(rows)}, None)
    standing = Training(steps=3, batch=4, rate=1e-12)
    (one, losses), (other, due) = (fine_tune(graph, data, training=standing) for graph in (shared, twin))
    np.testing.assert_allclose(losses, due, rtol=1e-4)
    for mine, its in zip(one.ops, other.ops, strict=True):
        assert mine.type == its.type
        if mine.attr("weight_thresholds"):
            np.testing.assert_allclose(mine.attr("weight_thresholds"), its.attr("weight_thresholds"), rtol=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_shared_weight_learns_from_each_layer_what_its_own_would(kind: str) -> None:
    graph = recurrent(kind)
    rows = Ragged.of([random.standard_normal((length, 6)).astype(np.float32) for length in (5, 3, 7, 4)])
    learnt = [one_step(twice(graph, apart), {"x": rows}) for apart in (False, True)]
    for name in graph.params:
        before, both = graph.params[name], (learnt[1][name], learnt[1][f"{name}.again"])
        assert np.abs(learnt[0][name] - before).max() > 0
        due = sum(own - before for own in both)
        np.testing.assert_allclose(learnt[0][name] - before, due, rtol=1e-3, atol=1e-3 * np.abs(due).max())


def one_step(graph: Graph, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """The parameters after one step of gradient descent of the quantised training program, towards outputs of 1."""
    paddle.enable_static()
    scope, program, start = paddle.static.Scope(), finetune._trainable(graph), paddle.static.Program()
    with paddle.static.scope_guard(scope), paddle.static.program_guard(program, start):
        loss, targets = finetune._loss(program, graph, graph.fetches, False)
        paddle.optimizer.SGD(1.0).minimize(loss)
        program = quant_aware(program, Config(weight_bits=3), scope=scope)  # coarse, so that each layer's grid counts
        executor = paddle.static.Executor(paddle.CPUPlace())
        executor.run(start)
        for name, value in graph.params.items():
            scope.var(name).get_tensor().set(np.ascontiguousarray(value), paddle.CPUPlace())
        feed = {name: finetune._tensor(column) for name, column in batch.items()}
        wanted = Ragged(np.ones((len(batch["x"].values), 3), np.float32), batch["x"].offsets)
        executor.run(program, feed=feed | {name: finetune._tensor(wanted) for name in targets})
    return {name: np.array(scope.find_var(name).get_tensor()) for name in graph.params}


def twice(graph: Graph, apart: bool) -> Graph:
    """A graph with one input, and again of that input's square."""
    ops = [Op.make("square", {"X": "x"}, {"Out": "large"}), *graph.ops]
    kept = () if apart else graph.params
    described, params = {**graph.vars, "large": graph.vars["x"]}, dict(graph.params)
    names = {name: f"{name}.again" for name in graph.vars if name not in kept} | {"x": "large"}
    for name, new in names.items():
        described[new] = graph.vars[name]
        if name in params:
            params[new] = params[name]
    for op in graph.ops:
        outputs = {slot: tuple(names[name] for name in written) for slot, written in op.outputs.items()}
        ops.append(dataclasses.replace(op.rewired(names), outputs=outputs))
    return Graph(tuple(ops), described, params, ("x",), ("y", "y.again"))


def recurrent(kind: str) -> Graph:
    """mul, bias, gru or lstm, mul over sequences of 6 features."""
    gates = {"gru": 3, "lstm": 4}[kind]
    sizes = {"wx": (6, gates * 8), "b": (1, gates * 8), "wh": (8, gates * 8), "out": (8, 3)}
    params = {name: (0.4 * random.standard_normal(size)).astype(np.float32) for name, size in sizes.items()}
    params["b0"] = np.zeros(gates * 8, np.float32)
    wide, narrow = Var((-1, gates * 8), lod_level=1), Var((-1, 8), lod_level=1)
    scratch = {
        "gru": {"BatchGate": wide, "BatchResetHiddenPrev": narrow, "BatchHidden": narrow},
        "lstm": {"Cell": narrow, "BatchGate": wide, "BatchCellPreAct": narrow},
    }[kind]
    attrs: dict[str, Any] = {"gate_activation": "sigmoid", "is_reverse": False, "is_test": True}
    attrs |= (
        {"activation": "tanh", "origin_mode": False}
        if kind == "gru"
        else {"cell_activation": "tanh", "candidate_activation": "tanh", "use_peepholes": False}
    )
    columns = {"x_num_col_dims": 1, "y_num_col_dims": 1}
    outputs = {"Hidden": ("hidden",), **{slot: (f"hidden.{slot}",) for slot in scratch}}
    ops = (
        Op.make("mul", {"X": "x", "Y": "wx"}, {"Out": "g"}, **columns),
        Op.make("elementwise_add", {"X": "g", "Y": "b0"}, {"Out": "gb"}, axis=1),
        Op(
            kind,
            {"Input": ("gb",), "Weight": ("wh",), "Bias": ("b",)},
            outputs,
            {key: Attr.of(value) for key, value in attrs.items()},
        ),
        Op.make("mul", {"X": "hidden", "Y": "out"}, {"Out": "y"}, **columns),
    )
    described = {
        "x": Var((-1, 6), lod_level=1),
        "g": wide,
        "gb": wide,
        "hidden": narrow,
        "y": Var((-1, 3), lod_level=1),
        **{f"hidden.{slot}": var for slot, var in scratch.items()},
        **{name: Var(value.shape) for name, value in params.items()},
    }
    return Graph(ops, described, params, ("x",), ("y",))
