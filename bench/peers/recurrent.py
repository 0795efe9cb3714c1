"""Legacy recurrent programs as ONNX graphs over padded batches, and the decoding that ONNX has no op for.

paddle2onnx knows neither the legacy recurrent ops nor sequences (LoD), so these graphs are written from our FP32 graph,
op by op. Sequences are time x batch: float32 or int64 [T, N, ...], and int32 lengths [N].

What lies behind a sequence's end must not reach what lies before it, which only the backward direction could let it.
So there are two forms of a graph. `masked`: the recurrent ops read the lengths. Or not: the backward direction runs
forward over sequences that `ReverseSequence` turned around. ONNX Runtime is 7% faster with the first. OpenVINO 2026.4
ignores lengths where shapes are open (outputs at 23 dB SQNR), and runs a loop, not its recurrent kernels, where shapes
are fixed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.datasets.columns import Array, Column, Ragged

__all__ = ["LENGTHS", "Decoder", "aligned", "export_recurrent", "viterbi"]

LENGTHS = "lengths"
_IR, _OPSET = 8, 17


# --- decoding


def viterbi(emissions: NDArray[np.float32], transition: NDArray[np.float32]) -> NDArray[np.int64]:
    """Emissions [T, K], transition [K + 2, K] (first rows: start and end weights) -> the best path, [T].

    As Paddle's op crf_decoding without labels (paddle/phi/kernels/cpu/crf_decoding_kernel.cc).
    """
    start, end, between = transition[0], transition[1], transition[2:]
    score = start + emissions[0]
    back = np.zeros(emissions.shape, np.int64)
    for step in range(1, len(emissions)):
        total = score[:, None] + between
        back[step] = total.argmax(0)
        score = total.max(0) + emissions[step]
    path = np.empty(len(emissions), np.int64)
    path[-1] = (score + end).argmax()
    for step in range(len(emissions) - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path


def aligned(scores: NDArray[np.float32], blank: int) -> NDArray[np.int64]:
    """Scores of symbols [T, K] -> the likeliest symbols, repeats merged, blanks dropped; -1 where nothing is left."""
    best = scores.argmax(1)
    kept = best[np.concatenate([[True], best[1:] != best[:-1]]) & (best != blank)]
    return kept if kept.size else np.full(1, -1, np.int64)


class Decoder:
    """What follows a graph, from its outputs to the model's: a step is an output as it is, its sequences, or decoded.

    `steps`: (kind, output of the graph, number) for each output of the model; `arrays`: of `crf` steps, by output.
    """

    def __init__(self, steps: list[tuple[str, str, int]], arrays: Mapping[str, Array]) -> None:
        self.steps, self.arrays = steps, arrays

    def __call__(self, outputs: Mapping[str, Array], lengths: Array) -> list[Column]:
        return [self._column(kind, outputs[name], lengths, name, number) for kind, name, number in self.steps]

    def _column(self, kind: str, values: Array, lengths: Array, name: str, number: int) -> Column:
        if kind == "dense":
            return np.array(values)
        sequences = [values[:length, place] for place, length in enumerate(lengths)]
        if kind == "crf":
            sequences = [viterbi(sequence, self.arrays[name])[:, None] for sequence in sequences]
        elif kind == "ctc":
            sequences = [aligned(sequence, number)[:, None] for sequence in sequences]
        return Ragged.of(sequences)

    def write(self, file: Path) -> None:
        stored: dict[str, Any] = {f"step {place}": np.array(step) for place, step in enumerate(self.steps)}
        stored |= {f"array {name}": value for name, value in self.arrays.items()}
        np.savez(file, **stored)

    @staticmethod
    def read(file: Path) -> "Decoder":
        with np.load(file, allow_pickle=False) as stored:
            count = sum(name.startswith("step ") for name in stored.files)
            rows = [stored[f"step {place}"].tolist() for place in range(count)]
            arrays = {name.removeprefix("array "): stored[name] for name in stored.files if name.startswith("array ")}
        return Decoder([(kind, name, int(number)) for kind, name, number in rows], arrays)


# --- the graph


def export_recurrent(graph: Any, output: Path, *, masked: bool) -> None:
    """quant.ir.graph.Graph -> model.onnx and decoder.npz. Raises ModelError for an op that no row has."""
    writer = _Writer(graph, masked)
    for op in graph.ops:
        writer.visit(op)
    writer.save(output)


class _Writer:
    """Writes ONNX nodes for legacy ops; a tensor keeps its name."""

    def __init__(self, graph: Any, masked: bool) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self.graph, self.masked = graph, masked
        self.types, self.helper, self.numpy_helper = TensorProto, helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.writers = graph.writers()
        self.decoded: dict[str, tuple[str, str, int]] = {}
        self.transitions: dict[str, Array] = {}
        self.node("Cast", [LENGTHS], "lengths.int64", to=TensorProto.INT64)

    def node(self, kind: str, inputs: list[str], output: str, **attrs: Any) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, [output], **attrs))
        return output

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def param(self, name: str) -> Array:
        return np.asarray(self.graph.params[name])

    def visit(self, op: Any) -> None:
        from quant.errors import ModelError

        write = getattr(self, f"_{op.type}", None)
        if write is None:
            raise ModelError(f"op {op.type!r} (output {op.writes[0]!r}) has no ONNX form here")
        write(op)

    def _lookup_table(self, op: Any) -> None:
        ids = op.input("Ids")
        flat = self.node("Squeeze", [ids, self.constant("last", np.array([2], np.int64))], f"{ids}.flat")
        self.node("Gather", [self.constant(op.input("W"), self.param(op.input("W"))), flat], op.output("Out"))

    def _mul(self, op: Any) -> None:
        """A product in front of a recurrent op is that op's own in ONNX; it is written there."""
        if not self._feeds_cell(op):
            weight = self.constant(op.input("Y"), self.param(op.input("Y")))
            self.node("MatMul", [op.input("X"), weight], op.output("Out"))

    def _elementwise_add(self, op: Any) -> None:
        if not self._feeds_cell(op):
            bias = self.constant(op.input("Y"), self.param(op.input("Y")))
            self.node("Add", [op.input("X"), bias], op.output("Out"))

    def _feeds_cell(self, op: Any) -> bool:
        readers = self.graph.readers()[op.output("Out")]
        return all(reader.type in ("gru", "lstm") or self._feeds_cell(reader) for reader in readers) and bool(readers)

    def _gru(self, op: Any) -> None:
        """Paddle: gates update, reset, candidate; h = (1 - u) h' + u c. ONNX: z, r, h; h = (1 - z) c + z h'."""
        x, weight, bias = self._projection(op)
        hidden = bias.size // 3
        stored = self.param(op.input("Weight")).reshape(-1)  # [H, 2 H] of both gates, then [H, H] of the candidate
        gates, candidate = np.split(stored, [2 * hidden * hidden])
        state = np.concatenate([gates.reshape(hidden, 2 * hidden), candidate.reshape(hidden, hidden)], 1)
        bias = bias + (self.param(op.input("Bias")).reshape(-1) if op.input("Bias") else 0)
        signs = np.ones(3 * hidden, np.float32)
        if not op.attr("origin_mode", False):
            signs[:hidden] = -1  # z = 1 - u, and sigmoid(-x) = 1 - sigmoid(x)
        self._cell("GRU", op, x, weight * signs, state * signs, bias * signs, linear_before_reset=0)

    def _lstm(self, op: Any) -> None:
        """Paddle's gates: candidate, input, forget, output; ONNX's: input, output, forget, candidate."""
        x, weight, bias = self._projection(op)
        hidden = bias.size // 4
        bias = bias + self.param(op.input("Bias")).reshape(-1)[: 4 * hidden]
        order = np.concatenate([np.arange(hidden) + gate * hidden for gate in (1, 3, 2, 0)])
        self._cell("LSTM", op, x, weight[:, order], self.param(op.input("Weight"))[:, order], bias[order])

    def _projection(self, op: Any) -> tuple[str, Array, Array]:
        """What a recurrent op's gates are made of: (input, weight [I, G H], bias [G H])."""
        add = self.writers[op.input("Input")]
        product = self.writers[add.input("X")]
        return product.input("X"), self.param(product.input("Y")), self.param(add.input("Y")).reshape(-1)

    def _cell(self, kind: str, op: Any, x: str, weight: Array, state: Array, bias: Array, **attrs: Any) -> None:
        """`weight` [I, G H], `state` [H, G H], `bias` [G H], gates in ONNX's order."""
        out, reverse = op.output("Hidden"), bool(op.attr("is_reverse", False))
        both = np.concatenate([bias, np.zeros_like(bias)])[None]
        values = {"w": weight.T[None], "r": state.T[None], "b": both}
        weights = [self.constant(f"{out}.{key}", np.ascontiguousarray(value)) for key, value in values.items()]
        turned = reverse and not self.masked
        read = self._turn(x, f"{out}.turned") if turned else x
        direction = "reverse" if reverse and self.masked else "forward"
        lengths = [LENGTHS] if self.masked else []
        hidden = {"hidden_size": len(state), "direction": direction}
        self.node(kind, [read, *weights, *lengths], f"{out}.directions", **hidden, **attrs)
        squeezed = f"{out}.states" if turned else out
        self.node("Squeeze", [f"{out}.directions", self.constant("second", np.array([1], np.int64))], squeezed)
        if turned:
            self._turn(squeezed, out)

    def _turn(self, x: str, output: str) -> str:
        return self.node("ReverseSequence", [x, "lengths.int64"], output, time_axis=0, batch_axis=1)

    def _concat(self, op: Any) -> None:
        self.node("Concat", list(op.inputs["X"]), op.output("Out"), axis=-1)

    def _sequence_pool(self, op: Any) -> None:
        """The largest of each feature over a sequence's steps."""
        x, out = op.input("X"), op.output("Out")
        zero, one = (self.constant(name, np.array(value, np.int64)) for name, value in (("zero", 0), ("one", 1)))
        shape = self.node("Shape", [x], f"{out}.shape")
        steps = self.node("Range", [zero, self.node("Gather", [shape, zero], f"{out}.steps"), one], f"{out}.step")
        column = self.node("Unsqueeze", [steps, self.constant("second", np.array([1], np.int64))], f"{out}.column")
        inside = self.node("Less", [column, "lengths.int64"], f"{out}.inside")
        mask = self.node("Unsqueeze", [inside, self.constant("last", np.array([2], np.int64))], f"{out}.mask")
        least = self.constant("least", np.array(np.finfo(np.float32).min))
        held = self.node("Where", [mask, x, least], f"{out}.held")
        self.node("ReduceMax", [held], out, axes=[0], keepdims=0)

    def _top_k(self, op: Any) -> None:
        """With ctc_align behind it; both are decoding."""

    def _ctc_align(self, op: Any) -> None:
        scores = self.writers[op.input("Input")].input("X")
        self.decoded[op.output("Output")] = ("ctc", scores, op.attr("blank"))

    def _crf_decoding(self, op: Any) -> None:
        emissions = op.input("Emission")
        self.decoded[op.output("ViterbiPath")] = ("crf", emissions, 0)
        self.transitions[emissions] = self.param(op.input("Transition"))

    def save(self, output: Path) -> None:
        import onnx

        steps = []
        for name in self.graph.fetches:
            kind = "sequences" if self.graph.vars[name].lod_level else "dense"
            steps.append(self.decoded.get(name, (kind, name, 0)))
        Decoder(steps, self.transitions).write(output / "decoder.npz")

        def described(name: str, dims: list[Any], kind: str) -> Any:
            types = {"float32": self.types.FLOAT, "int64": self.types.INT64, "int32": self.types.INT32}
            return self.helper.make_tensor_value_info(name, types[kind], dims)

        inputs = [described(LENGTHS, ["N"], "int32")]
        for name in self.graph.feeds:
            var = self.graph.vars[name]
            inputs.append(described(name, ["T", "N", *var.shape[1:]], var.dtype))
        outputs = []
        for kind, name, _ in dict.fromkeys((kind == "dense", name, 0) for kind, name, _ in steps):
            outputs.append(
                described(
                    name, ["N" if kind else "T", *([] if kind else ["N"]), self.graph.vars[name].shape[-1]], "float32"
                )
            )
        initial = [self.numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        made = self.helper.make_graph(self.nodes, "model", inputs, outputs, initial)
        opset = [self.helper.make_opsetid("", _OPSET)]
        model = self.helper.make_model(made, opset_imports=opset, ir_version=_IR)
        onnx.checker.check_model(model)
        onnx.save(model, str(output / "model.onnx"))
