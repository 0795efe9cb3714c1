"""Calibration tables: the thresholds of activations as a text file, one line a tensor: its name, a space, a number.

What PaddleSlim's automatic compression writes as calibration_table.txt beside a model. The number is a threshold, the
largest magnitude that is kept, in the tensor's own unit: neither its reciprocal nor the size of a step. Sources:
- the writer: paddleslim/quant/quanter.py, pull requests 1353 to 1425 (2022). Outputs of ops by name, each with the
  moving average of its abs-max (quantization-aware training) or its calibrated threshold (PostTrainingQuantization).
- the reader: Paddle's ir_analysis_pass.cc (`SetCalibrationFilePath`, 2022). It keeps 1 / number for a name, just as
  quant_dequant_mkldnn_pass.cc keeps 1 / Scale of a quantize_linear, whose Scale is an abs-max. Paddle 3 has neither.
- Paddle's PostTrainingQuantization, run here: its numbers for a table are the Scales in its model (see the tests).

Names are those of the model as it was exported. Calibration and conversion see it normalised, where some are gone and
some hold other values, so a tensor is looked up under what its readers read in the exported model.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quant.errors import ConversionError, DataError, OutputError
from quant.ir.fusion import LOOKUPS, RECURRENT, Chain, is_carrier
from quant.ir.graph import Graph, Op, Pass, run_passes
from quant.ir.numerics import SIGNED
from quant.ir.passes import CALIBRATE, NORMALISE, lift_quantizers
from quant.ir.passes.drop_identities import is_identity
from quant.quantization.observers import Choice
from quant.quantization.plan import Plan, plan_of, roundable, simulate
from quant.storage.files import fresh_file

__all__ = ["Applied", "apply_table", "read_table", "table_of", "write_table"]

# What Paddle's tools print: Python's float() also takes digits of other scripts and 1_000.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


class Applied(NamedTuple):
    """A fake-quantized graph with a table's thresholds.

    `used`, `unused`: entries that settled a threshold, and those that nothing rounded needed. `missing`: tensors that
    are rounded and have no entry: in an FP32 model their readers stay float32 (`was_fp32`), in a fake-quantized one
    they keep their threshold.
    """

    graph: Graph
    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    was_fp32: bool


# --- files


def read_table(path: Path) -> dict[str, float]:
    """Tensor name -> threshold, as float32 like Paddle's reader, in the order of the file (entry n is line n).

    Raises DataError, naming file and line, for what isn't a table: a line that isn't two fields, a number that isn't
    above 0 and finite, a second entry of a name, text that isn't UTF-8, an empty file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    try:
        lines = raw.decode().split("\n")
    except UnicodeDecodeError as error:
        place = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {place}: not UTF-8: not a calibration table") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: empty: a calibration table has a line 'name threshold' a tensor")
    table: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        where, fields = f"{path}: line {number}", line.removesuffix("\r").split(" ")
        if len(fields) != 2 or not all(fields):
            raise DataError(f"{where}: {line[:80]!r} is not 'name threshold', separated by one space")
        name, text = fields
        if name in table:
            raise DataError(f"{where}: a second entry of {name!r}")
        if not _NUMBER.fullmatch(text):
            raise DataError(f"{where}: {name!r}: {text[:80]!r} is not a number")
        if not _usable(float(text)):
            raise DataError(f"{where}: {name!r}: the threshold is {text[:80]}, but has to be above 0 and finite")
        table[name] = float(np.float32(text))
    return table


def write_table(path: Path, table: Mapping[str, float]) -> None:
    """Write a table, whole or not at all; an existing one is replaced.

    Raises OutputError when `path` can't be written, or a name or number can't stand in a table, or there is none.
    """
    if not table:
        raise OutputError(f"{path}: no threshold to write: a calibration table can't be empty")
    for name, threshold in table.items():
        if not name or any(char in name for char in " \r\n"):
            raise OutputError(f"{path}: the tensor name {name!r} can't stand in a calibration table")
        if not _usable(threshold):
            raise OutputError(f"{path}: {name!r}: a threshold of {threshold} can't stand in a calibration table")
    with fresh_file(path) as staging:
        staging.write_bytes("".join(f"{name} {np.float32(value)!s}\n" for name, value in table.items()).encode())


def _usable(threshold: float) -> bool:
    """Whether programs can store a threshold: above 0 and finite, also as float32."""
    with np.errstate(over="ignore", under="ignore"):
        return bool(0 < np.float32(threshold) < np.inf)


# --- from a calibrated model


def table_of(exported: Graph, simulated: Graph) -> dict[str, float]:
    """The thresholds that calibration of `exported` chose: `simulated` is what `calibrate` made of it."""
    quantisers = [op for op in simulated.ops if op.type == "fake_quant"]
    raw = {op.output("Out"): op.input("X") for op in quantisers}
    plain = simulated.evolve(op.rewired(raw) for op in simulated.ops if op.type != "fake_quant")
    names = _read_as(exported, plain)
    return {name: op.attr("threshold") for op in quantisers for name in names.get(op.input("X"), ())}


# --- onto a model


class _Entry(NamedTuple):
    """A threshold, and the entries that it comes from."""

    threshold: float
    names: frozenset[str]


def _largest(entries: Iterable[_Entry | None]) -> _Entry | None:
    """The largest threshold, with the names of all; None when one is None, or there is none."""
    found = list(entries)
    known = [entry for entry in found if entry is not None]
    if not known or len(known) < len(found):
        return None
    return _Entry(max(entry.threshold for entry in known), frozenset().union(*(entry.names for entry in known)))


def apply_table(
    graph: Graph,
    table: Mapping[str, float],
    *,
    source: str = "calibration table",
    weight_levels: int = SIGNED,
    ops_to_quantize: Collection[str] = (),
    op_ids_to_skip: Collection[int] = (),
) -> Applied:
    """Give a model the thresholds of a table; `graph` is as it was loaded, not normalised.

    An FP32 model is quantised as calibration would (quant.quantization.plan), with weights of `weight_levels`, where
    the table
    has entries for what an op reads; tensors that share a grid get the largest of their entries, those whose threshold
    needs no data (the state of a recurrent layer) don't take any. In a fake-quantized
    model entries replace the thresholds of activations, and weights keep their grids; so do the input and state of
    recurrent layers, whose weights' grids depend on theirs.
    Raises DataError, naming `source` and the line (the entry's number), for an entry of no variable of the model;
    ConversionError when nothing would be rounded; OptionError for unknown op types or ids.
    """
    _check_names(table, graph, source)
    lifted = lift_quantizers(graph)
    if any(op.type == "fake_quant" or op.attr("weight_thresholds") for op in lifted.ops):
        return _replaced(lifted, table)
    entries = _entries(graph, table)

    def settle(passes: Sequence[Pass]) -> tuple[Graph, _Settled, tuple[str, ...]]:
        normalised = run_passes(graph, passes)
        chains = roundable(normalised, ops_to_quantize, op_ids_to_skip, weight_levels)
        names = _read_as(graph, normalised)
        renamed = {name: _largest(entries[was] for was in found if was in entries) for name, found in names.items()}
        settled = _settled(normalised, chains, {name: entry for name, entry in renamed.items() if entry})
        return normalised, settled, tuple(names.get(name, (name,))[0] for name in settled.missing)

    normalised, settled, missing = settle(CALIBRATE)
    if set(missing) - set((without := settle(NORMALISE))[2]):
        normalised, settled, missing = without  # a table of a tool that leaves batch norm in float32
    if not settled.chains:
        why = f"no entry for {missing[0]!r}" if missing else "the model has no op to quantise"
        raise ConversionError(f"{source}: nothing would be rounded: {why}")
    plan, found = settled.plan, settled.found
    chosen = {group: Choice("known", threshold) for group, threshold in plan.known.items()}
    for name, entry in found.items():
        before = chosen.get(plan.group[name], Choice("table", 0.0))
        chosen[plan.group[name]] = Choice("table", max(entry.threshold, before.threshold))
    simulated = simulate(normalised, settled.chains, plan, chosen, weight_levels)
    used = {name for entry in found.values() for name in entry.names}
    return Applied(simulated, *_parted(table, used), missing, was_fp32=True)


def _check_names(table: Mapping[str, float], graph: Graph, source: str) -> None:
    for number, name in enumerate(table, 1):
        if name not in graph.vars:
            near = difflib.get_close_matches(name, graph.vars, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{source}: line {number}: the model has no tensor {name[:80]!r}{hint}")


class _Settled(NamedTuple):
    """What can be rounded: chains whose tensors all have a threshold; `found`: those tensors, but for known ones."""

    chains: dict[Op, Chain]
    plan: Plan
    found: dict[str, _Entry]
    missing: tuple[str, ...]


def _settled(graph: Graph, chains: dict[Op, Chain], entries: Mapping[str, _Entry]) -> _Settled:
    """Leave out chains that would round a tensor without an entry, or a threshold that is known without one."""
    missing: list[str] = []
    while True:
        plan = plan_of(graph, chains)
        wanted = [name for name, group in plan.group.items() if group not in plan.known]
        lost = {name: None for name in wanted if name not in entries}
        if not lost:
            return _Settled(chains, plan, {name: entries[name] for name in wanted}, tuple(missing))
        missing.extend(lost)
        # Without these chains other tensors are rounded, in other groups and with other levels: planned anew.
        read = {chain: {*chain.operands, *([chain.residual] * (chain in plan.residual))} for chain in chains.values()}
        chains = {op: chain for op, chain in chains.items() if read[chain].isdisjoint(lost)}


def _replaced(graph: Graph, table: Mapping[str, float]) -> Applied:
    """A lifted fake-quantized graph with a table's thresholds.

    Tensors that are joined by ops that only carry values and had one threshold still have one: the largest entry.
    """
    entries, joined = _entries(graph, table), _joined(graph)
    fixed = {joined.get(name, name) for name in _recurrent(graph)}
    places = {op: (joined[op.input("X")], op.attr("threshold")) for op in graph.ops if op.type == "fake_quant"}
    places = {op: place for op, place in places.items() if place[0] not in fixed}
    found: defaultdict[tuple[str, float], list[_Entry]] = defaultdict(list)
    for op, place in places.items():
        if op.input("X") in entries:
            found[place].append(entries[op.input("X")])
    thresholds = {place: max(entry.threshold for entry in members) for place, members in found.items()}
    used = {name for members in found.values() for entry in members for name in entry.names}
    missing = dict.fromkeys(op.input("X") for op, place in places.items() if place not in thresholds)

    def changed(op: Op) -> Op:
        threshold = thresholds.get(places[op]) if op in places else None
        return op if threshold is None else op.with_attrs(threshold=threshold, algorithm="table")

    return Applied(graph.evolve(map(changed, graph.ops)), *_parted(table, used), tuple(missing), was_fp32=False)


def _parted(table: Mapping[str, float], used: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(name for name in table if name in used), tuple(name for name in table if name not in used)


def _factor(op: Op) -> float | None:
    """By how much an op that only carries or scales values changes their magnitudes; None for any other op."""
    if is_identity(op) or is_carrier(op) or op.type == "fake_quant":
        return 1.0
    if op.type == "scale" and not op.input("ScaleTensor") and op.attr("bias", 0.0) == 0.0:
        return abs(float(op.attr("scale", 1.0)))
    return None


def _entries(graph: Graph, table: Mapping[str, float]) -> dict[str, _Entry]:
    """Each tensor's entry: its own, or that of the tensors whose values it only carries on."""
    own = {name: _Entry(threshold, frozenset({name})) for name, threshold in table.items()}
    found = dict(own)
    for op in graph.ops:
        if (factor := _factor(op)) is None:
            continue
        carried = _largest(found.get(name) for name in op.inputs.get("X", ()))
        if carried is not None and _usable(factor * carried.threshold):
            scaled = carried._replace(threshold=factor * carried.threshold)
            found.update((out, scaled) for out in op.outputs["Out"] if out not in own)
    return found


def _read_as(exported: Graph, normalised: Graph) -> dict[str, tuple[str, ...]]:
    """Tensor of the normalised graph -> what its readers read in the exported one: the same values, other names.

    No pass renames what an op writes, so ops are found by that. Without names: an embedding that was rescaled, which
    the exported model doesn't hold.
    """
    before = {op.writes: op for op in exported.ops}
    names: defaultdict[str, dict[str, None]] = defaultdict(dict)
    rescaled: set[str] = set()
    for op in normalised.ops:
        old = before.get(op.writes)
        if old is None or old.type != op.type:
            continue
        for slot, reads in op.inputs.items():
            for name, was in zip(reads, old.inputs.get(slot, ()), strict=False):
                names[name][was] = None
        if op.type in LOOKUPS and op.input("W") != old.input("W"):
            rescaled.update(op.writes)
    for op in normalised.ops:  # what only an op reads that the exported model has under another type (norm_as_conv)
        for name in op.reads:
            if name not in names and name in exported.vars:
                names[name][name] = None
    return {name: tuple(found) for name, found in names.items() if name not in rescaled}


def _joined(graph: Graph) -> dict[str, str]:
    """Tensor -> one that stands for all that are joined to it by ops that carry values, or round them."""
    groups: dict[str, set[str]] = {}
    for op in graph.ops:
        if _factor(op) != 1.0:
            continue
        together: set[str] = set()
        for name in (op.output("Out"), *op.inputs.get("X", ())):
            together |= groups.get(name, {name})
        groups.update(dict.fromkeys(together, together))
    return {name: min(group) for name, group in groups.items()}


def _recurrent(graph: Graph) -> Iterable[str]:
    """What quantised recurrent layers read and give out."""
    writers = graph.writers()
    for cell in graph.ops:
        if cell.type not in RECURRENT or not cell.attr("weight_thresholds"):
            continue
        yield cell.output("Hidden")
        product = writers.get(cell.input("Input"))
        if product is not None and product.type == "elementwise_add":
            product = writers.get(product.input("X"))
        if product is not None:
            yield product.input("X")
