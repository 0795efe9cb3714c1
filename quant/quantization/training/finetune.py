"""Fine-tune an FP32 inference graph with fake quantisation in it: the training loop behind `quant qat`.

The inference graph itself is trained, batch norm folded: short fine-tuning keeps its statistics anyway (Jacob et al.
2017, section 3.2, freezes them), and what is trained is then what is deployed. The loss is the relative squared error
of each output against the FP32 model's (distillation), plus cross entropy where the data has one label a sample.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("FLAGS_enable_pir_api", "0")

import paddle
from paddle.base.core import DenseTensor
from paddle.base.framework import Parameter

from quant.datasets.columns import DAMAGE, Column, Ragged
from quant.datasets.readers import Dataset, batches, take
from quant.errors import DataError, ModelError
from quant.ir.fusion import LOOKUPS
from quant.ir.graph import Graph, Var, program_bytes, run_passes, save_dir
from quant.ir.paddle_errors import reason
from quant.ir.passes import NORMALISE
from quant.quantization.calibration import calibrate
from quant.quantization.training.program import (
    Config,
    freeze,
    quant_aware,
    scheme_of,
    thresholds_in,
    with_weight_thresholds,
)
from quant.runtime.predictor import Predictor, Settings, nameless
from quant.storage.checkpoint import Tell, goes_on
from quant.storage.digests import digest
from quant.storage.files import fresh_file, writable_dir

__all__ = ["Training", "fine_tune"]

Progress = Callable[[str, int, int], None]

# Ops that decide: gradients start before them.
_DECISIONS = ("softmax", "top_k", "top_k_v2", "arg_max", "ctc_align", "assign")
# Op type -> slots whose parameters are trained.
_TRAINED = {
    **dict.fromkeys(LOOKUPS, ("W",)),
    **dict.fromkeys(("conv2d", "depthwise_conv2d"), ("Filter",)),
    **dict.fromkeys(("mul", "matmul", "matmul_v2", "elementwise_add"), ("Y",)),
    "fc": ("W", "Bias"),
    "layer_norm": ("Scale", "Bias"),
    **dict.fromkeys(("lstm", "gru"), ("Weight", "Bias")),
}
# Inputs that may be absent, but not unmentioned, for gradients; outputs that inference programs leave out.
_MENTIONED = {"lstm": ("H0", "C0"), "gru": ("H0",)}
_KEPT_FOR_GRADIENTS = {
    **dict.fromkeys(
        ("reshape2", "transpose2", "squeeze2", "unsqueeze2", "flatten2", "flatten_contiguous_range"), ("XShape",)
    ),
    "layer_norm": ("Mean", "Variance"),
    "lstm": ("Cell", "BatchGate", "BatchCellPreAct"),
    "gru": ("BatchGate", "BatchResetHiddenPrev", "BatchHidden"),
    "sequence_pool": ("MaxIndex",),
}
_ALSO = {"softmax_with_cross_entropy": ("Softmax",)}  # further outputs of the loss's ops
_ON_ONEDNN = ("conv2d", "depthwise_conv2d")  # 2.5 times as fast there; other ops would only add reorders
_CALIBRATION_BATCHES = 4  # where thresholds start


@dataclass(frozen=True)
class Training:
    """`steps` of `batch` samples each with Adam, whose rate falls from `rate` to 0 along a cosine; `seed` shuffles."""

    steps: int = 200
    batch: int = 64
    rate: float = 1e-4
    seed: int = 0


_CONFIG, _TRAINING = Config(), Training()


def fine_tune(
    graph: Graph,
    data: Dataset,
    config: Config = _CONFIG,
    training: Training = _TRAINING,
    *,
    checkpoint: Path | None = None,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    fresh: bool = False,
    tell: Tell | None = None,
    every: int = 50,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[Graph, list[float]]:
    """The fake-quantized graph of a trained model, and the loss of each step that this call ran.

    `checkpoint` names a file: written every `every` steps, and gone on from by the rule of storage.checkpoint, for
    which are
    `fresh` and `tell`; who has kept the result removes it. `inputs`: name -> what else decides the result, for JSON.
    Raises ModelError when the graph can't be trained; OptionError for a checkpoint of other inputs, or damaged;
    DataError when there is too little data, OutputError when the checkpoint can't be written.
    """
    if len(data) < training.batch:
        raise DataError(f"{data.path}: {len(data)} samples, but a batch takes {training.batch}")
    graph = run_passes(graph, NORMALISE)
    heads = _heads(graph)
    labels = _one_class_each(data.labels) if len(graph.vars[heads[0]].shape) == 2 else None
    paddle.enable_static()
    with _paddle_may_refuse():
        scope, program, start = paddle.static.Scope(), _trainable(graph), paddle.static.Program()
    counting = paddle.utils.unique_name.guard()  # from 0, so that a checkpoint's names are those of the next run
    with counting, paddle.static.scope_guard(scope), paddle.static.program_guard(program, start):
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(training.rate, training.steps)
        with _paddle_may_refuse():
            loss, targets = _loss(program, graph, heads, labels is not None)
            paddle.optimizer.Adam(schedule).minimize(loss)
        thresholds = _first_thresholds(graph, data, training.batch, threads)
        program = quant_aware(program, config, scope=scope, thresholds=thresholds)
        executor = paddle.static.Executor(paddle.CPUPlace())
        executor.run(start)
        for name, value in graph.params.items():
            scope.var(name).get_tensor().set(np.ascontiguousarray(value), paddle.CPUPlace())
        saved = _Checkpoint(checkpoint, program, scope, {**_identity(graph, config, training), **inputs})
        first, losses = saved.load(fresh, tell), []
        with _Teacher(graph, heads, threads) as teacher:
            order = _order(len(data), training, first)
            for step in range(first, training.steps):
                chosen = next(order)
                batch = next(batches(take(data, chosen), training.batch))
                wanted = teacher(batch)
                feed: dict[str, Any] = {name: _tensor(column) for name, column in batch.items()}
                feed |= {name: _tensor(wanted[head]) for name, head in zip(targets, heads, strict=True)}
                if labels is not None:
                    feed["training.label"] = np.asarray(labels[chosen], np.int64)[:, None]
                schedule.step(step)
                with _paddle_may_refuse():
                    value, scores = executor.run(program, feed=feed, fetch_list=[loss, heads[0]], return_numpy=False)
                losses.append(float(np.array(value).reshape(-1)[0]))
                if not np.isfinite(losses[-1]):
                    raise ModelError(f"the loss is {losses[-1]} at step {step + 1}: lower the learning rate")
                if progress:
                    right = _right(np.array(scores), wanted[heads[0]], None if labels is None else labels[chosen])
                    progress(f"loss {losses[-1]:.4f} {right}", step + 1, training.steps)
                if (step + 1) % every == 0 or step + 1 == training.steps:
                    saved.store(step + 1)

        def value_of(name: str) -> NDArray[Any] | None:
            found = scope.find_var(name)
            return None if found is None else np.array(found.get_tensor())

        trained = {name: value_of(name) for name in graph.params}
        params = {name: value for name, value in trained.items() if value is not None}
        scheme = scheme_of(with_weight_thresholds(replace(graph, params=params), config), config)
        return freeze(scheme, thresholds_in(scheme, value_of), config), losses


@contextmanager
def _paddle_may_refuse() -> Iterator[None]:
    """What Paddle raises of a model becomes a ModelError, of the one line of many that says why."""
    try:
        yield
    except Exception as error:  # Paddle's own error types are plain Exceptions
        raise ModelError(f"can't be trained: {reason(error)}") from error


def _heads(graph: Graph) -> tuple[str, ...]:
    """The real-valued tensors behind the model's outputs, before a decision is taken."""
    writers = graph.writers()
    found = []
    for name in graph.fetches:
        while (op := writers.get(name)) is not None and (
            op.type in _DECISIONS or graph.vars[name].dtype not in ("float32", "float64")
        ):
            name = op.input("X") or op.input("Input")
        if name in writers and name not in found:
            found.append(name)
    if not found:
        raise ModelError("can't be trained: none of its outputs is computed from real numbers")
    return tuple(found)


def _trainable(graph: Graph) -> Any:
    """A training program's forward part: the graph's ops, its weights as trainable parameters."""
    ops, described, names = [], {}, graph.names()
    for op in graph.ops:
        for slot in _KEPT_FOR_GRADIENTS.get(op.type, ()):
            if not op.output(slot):
                name = names.fresh(f"{op.writes[0]}.{slot}")
                op, described[name] = replace(op, outputs={**op.outputs, slot: (name,)}), Var((-1,))
        if op.type in _KEPT_FOR_GRADIENTS and "is_test" in op.attrs:
            op = op.with_attrs(is_test=False)
        op = replace(op, inputs={**dict.fromkeys(_MENTIONED.get(op.type, ()), ()), **op.inputs})
        # What Paddle strips from inference programs, and append_backward reads.
        op = op.with_attrs(op_role=0, op_device="", op_namescope=op.attr("op_namescope", "/"))
        ops.append(op.with_attrs(use_mkldnn=True) if op.type in _ON_ONEDNN else op)
    program = paddle.static.Program.parse_from_string(program_bytes(graph.evolve(ops, described)))
    block = program.global_block()
    for place in reversed(range(len(block.ops))):
        if block.ops[place].type in ("feed", "fetch"):
            block._remove_op(place)
    for op in block.ops:
        op.desc.check_attrs()  # fills in the defaults of attributes that old programs don't have
    for name in _trained(graph):
        var = block.var(name)
        block.vars[name] = Parameter(block, shape=list(graph.params[name].shape), dtype=var.dtype, name=name)
    for var in block.vars.values():
        if not isinstance(var, Parameter):
            var.stop_gradient = var.persistable or var.name in graph.feeds
    return program


def _trained(graph: Graph) -> set[str]:
    read = (op.input(slot) for op in graph.ops for slot in _TRAINED.get(op.type, ()))
    return {name for name in read if name in graph.params and graph.params[name].dtype == np.float32}


def _loss(program: Any, graph: Graph, heads: tuple[str, ...], labelled: bool) -> tuple[Any, list[str]]:
    """The loss variable, and for each head the name of the variable that its target is fed as.

    Written op by op, because Paddle's functions would give out names (tmp_3) that the model may have.
    """
    block, count = program.global_block(), itertools.count()

    def op(kind: str, inputs: Mapping[str, Any], slot: str = "Out", **attrs: Any) -> Any:
        outputs = {
            name: block.create_var(name=f"training.{next(count)}", dtype="float32")
            for name in (slot, *_ALSO.get(kind, ()))
        }
        block.append_op(type=kind, inputs=dict(inputs), outputs=outputs, attrs=attrs)
        return outputs[slot]

    def mean_square(of: Any) -> Any:
        return op("mean", {"X": op("square", {"X": of})})

    parts: list[Any] = []
    targets: list[str] = []
    for head in heads:
        var = block.var(head)
        target = block.create_var(
            name=f"training.target{len(targets)}", shape=var.shape, dtype="float32", lod_level=var.lod_level,
            is_data=True, stop_gradient=True,
        )  # fmt: skip
        targets.append(target.name)
        error = mean_square(op("elementwise_sub", {"X": var, "Y": target}))
        power = op("scale", {"X": mean_square(target)}, scale=1.0, bias=1e-6)
        parts.append(op("elementwise_div", {"X": error, "Y": power}))
    if labelled:
        label = block.create_var(name="training.label", shape=[-1, 1], dtype="int64", is_data=True, stop_gradient=True)
        entropy = op("softmax_with_cross_entropy", {"Logits": block.var(heads[0]), "Label": label}, slot="Loss")
        parts.append(op("mean", {"X": entropy}))
    return op("sum", {"X": parts}), targets


def _first_thresholds(graph: Graph, data: Dataset, batch: int, threads: int) -> dict[str, float]:
    """Tensor -> threshold, calibrated on the first batches."""
    simulated = calibrate(graph, batches(data, batch, _CALIBRATION_BATCHES), threads=threads)
    return {op.input("X"): op.attr("threshold") for op in simulated.ops if op.type == "fake_quant"}


class _Teacher:
    """The FP32 model's heads on a batch, from a predictor."""

    def __init__(self, graph: Graph, heads: tuple[str, ...], threads: int) -> None:
        self.heads = heads
        self.scratch = tempfile.TemporaryDirectory(prefix="quant-teacher-")
        headed = replace(graph, fetches=heads)
        save_dir(headed.evolve(headed.ops), Path(self.scratch.name))
        with nameless(Path(self.scratch.name)):
            self.predictor = Predictor(Path(self.scratch.name), Settings(threads=threads))

    def __enter__(self) -> "_Teacher":
        return self

    def __exit__(self, *_: object) -> None:
        self.predictor.close()
        self.scratch.cleanup()

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        with nameless(Path(self.scratch.name)):
            return dict(zip(self.heads, self.predictor(batch).values(), strict=True))


def _order(count: int, training: Training, first: int) -> Iterator[NDArray[np.int64]]:
    """The samples of each step from step `first` on: every epoch shuffled anew, by its number alone."""
    each = count // training.batch
    for epoch in range(first // each, training.steps // each + 1):
        places = np.random.default_rng([training.seed, epoch]).permutation(count)
        for number in range(first % each if epoch == first // each else 0, each):
            yield places[number * training.batch : (number + 1) * training.batch]


def _tensor(column: Column) -> Any:
    tensor = DenseTensor()
    if isinstance(column, Ragged):
        tensor.set(np.ascontiguousarray(column.values), paddle.CPUPlace())
        tensor.set_lod([column.offsets.tolist()])
    else:
        tensor.set(np.ascontiguousarray(column), paddle.CPUPlace())
    return tensor


def _one_class_each(labels: Column | None) -> NDArray[Any] | None:
    """Labels [N] of one class a sample; None where there are none, or others."""
    whole = (
        isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.shape in ((n := len(labels),), (n, 1))
    )
    return np.asarray(labels).reshape(-1) if whole else None


def _right(scores: NDArray[Any], wanted: Column, labels: Any) -> str:
    """How often the first head's largest score is the label's, or the FP32 model's where there is no label."""
    gold = np.asarray(wanted.values if isinstance(wanted, Ragged) else wanted).argmax(-1) if labels is None else labels
    share = float((scores.argmax(-1) == gold).mean())
    return f"{'agreement' if labels is None else 'accuracy'} {100 * share:.1f}%"


# --- checkpoints


def _identity(graph: Graph, config: Config, training: Training) -> dict[str, Any]:
    """What a checkpoint belongs to, for JSON: a digest of the model, what it is trained with."""
    params = (part for name in sorted(graph.params) for part in (name, graph.params[name].tobytes()))
    found = {
        "model": digest([program_bytes(graph), *params]),
        "configuration": asdict(config),
        "training": asdict(training),
    }
    content: dict[str, Any] = json.loads(json.dumps(found))
    return content


class _Checkpoint:
    """All persistable variables of a training program, and the step, in one .npz."""

    def __init__(self, path: Path | None, program: Any, scope: Any, identity: Mapping[str, Any]) -> None:
        self.path, self.scope, self.identity = path, scope, identity
        # feed and fetch are persistable too, but no tensors
        self.names = [var.name for var in program.list_vars() if var.persistable and var.name not in ("feed", "fetch")]

    def load(self, fresh: bool, tell: Tell | None) -> int:
        """Take the variables over from the file, if there is one to go on with; the number of steps done."""
        if self.path is None:
            return 0
        step = 0
        if self.path.exists():
            values = {} if fresh else self._stored()
            step, was = int(values.pop("step", 0)), values.pop("identity", None)
            kept = "" if was is not None and not step else f"{step} steps"
            if goes_on(self.path, was, self.identity, fresh=fresh, kept=kept, tell=tell):
                for name in self.names:
                    self.scope.var(name).get_tensor().set(values[name], paddle.CPUPlace())
                return step
        self.store(0)  # a place that can't be written is told now, not after the first hour
        return 0

    def _stored(self) -> dict[str, Any]:
        """The file's variables, `step` and `identity`; nothing where it is damaged, or of another version."""
        assert self.path
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files}
            identity, step = json.loads(str(found.pop("quant.identity"))), int(found.pop("quant.step"))
        except (OSError, MemoryError, KeyError, TypeError, RecursionError, *DAMAGE):
            return {}
        for name in self.names:
            tensor = self.scope.var(name).get_tensor()
            now = np.array(tensor) if tensor._is_initialized() else None
            value = found.get(name)
            same = value is not None and (now is None or (value.shape, value.dtype) == (now.shape, now.dtype))
            if isinstance(identity, dict) and identity == self.identity and not same:
                return {}
        return {**found, "identity": identity, "step": step} if isinstance(identity, dict) else {}

    def store(self, step: int) -> None:
        if self.path is None:
            return
        tensors = {name: self.scope.find_var(name) for name in self.names}
        values: Any = {name: np.array(found.get_tensor()) for name, found in tensors.items() if found is not None}
        about: Any = {"quant.identity": np.array(json.dumps(self.identity)), "quant.step": np.array(step)}
        writable_dir(self.path.parent)
        with fresh_file(self.path) as staging, staging.open("wb") as file:
            np.savez(file, **values, **about)
