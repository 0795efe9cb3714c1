"""The child of `quant tune`: a model that stays in memory with what calibration saw, and INT8 models made of it.

One job, told what to do by its parent; every request has one event as its answer. A request that fails as a QuantError
is answered with {"failed": message}; a crash of Paddle ends the child, and the parent starts another.
"""

import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from quant.datasets.columns import Column, joined, values_of
from quant.datasets.data_shapes import resized
from quant.datasets.readers import Dataset, batches, format_of, take
from quant.diagnosis.check import check_int8, check_simulation, write_sample
from quant.errors import ModelError, OutputError, QuantError
from quant.evaluation.worker import opened_model
from quant.ir.comparable import comparable
from quant.ir.fusion import numbered
from quant.ir.graph import Graph, load_dir, run_passes, save_dir
from quant.ir.passes import PLACE, lower_quantizers
from quant.ir.passes.quantizers import without_quantizers
from quant.metrics.scores import counted
from quant.process.isolate import report_event, report_progress, requests
from quant.quantization.calibration import Calibration
from quant.quantization.conversion import convert
from quant.quantization.observers import BATCH_SIZE
from quant.runtime.inputs import opened
from quant.search.for_accuracy import OFFERED, Kernel, Setup, sample_errors
from quant.search.for_speed import units
from quant.search.op_costs import Clock, Costs, Feed, both_times

__all__ = ["serve"]

Json = dict[str, Any]


def serve(
    model: str,
    calibration: str,
    data: str,
    *,
    format: str | None,
    labels: str | None,
    metric: str,
    weight_levels: int,
    ops_to_quantize: Sequence[str],
    batch_size: int,
    threads: int,
    outputs: Sequence[str] = (),
) -> None:
    """Answer the parent's requests:

    {"survey": setup}    {"kernels": [for_accuracy.Kernel...], "thresholds": tensor -> algorithm -> threshold}
    {"focus": [sample]}  {"focused": n}: guesses are made on these samples from now on
    {"guess": setup}     {"error", "counts": what each of those samples adds to the metric}
    {"save": setup, "place": directory}  {"saved": directory}, which holds `quant` and `int8` then
    """
    with tempfile.TemporaryDirectory(prefix="quant-tune-") as scratch:
        workshop = _Workshop(
            load_dir(Path(model)),
            calibration,
            data,
            format,
            labels,
            metric,
            Path(scratch),
            batch_size,
            threads,
            outputs,
        )
        workshop.calibrate(weight_levels, ops_to_quantize)
        for request in requests():
            try:
                report_event(workshop.answer(request))
            except OutputError:
                raise  # no fault of this trial's
            except QuantError as error:
                report_event({"failed": str(error)})


class _Workshop:
    def __init__(
        self,
        graph: Graph,
        calibration: str,
        data: str,
        format: str | None,
        labels: str | None,
        metric: str,
        scratch: Path,
        batch_size: int,
        threads: int,
        outputs: Sequence[str],
    ) -> None:
        self.metric, self.scratch = metric, scratch
        self.format = format_of(Path(data), format)
        self.batch_size, self.threads, self.chosen = batch_size, threads, outputs
        self.calibration = opened(graph, calibration, format)
        self.graph = resized(graph, self.calibration.inputs)
        self.data = opened(graph, data, format, labels, scored=True)
        self.types: Collection[str] = ()
        self.seen: Calibration | None = None
        self.focused: Dataset = self.data
        self.reference: list[Column] = []

    def calibrate(self, weight_levels: int, ops_to_quantize: Collection[str]) -> None:
        total = len(self.calibration)
        self.types = ops_to_quantize
        self.seen = Calibration(
            self.graph,
            lambda: batches(self.calibration, BATCH_SIZE),
            algorithms=OFFERED,
            sampled=True,
            ops_to_quantize=ops_to_quantize,
            weight_levels=weight_levels,
            threads=self.threads,
            progress=lambda done: report_progress("calibrate", done, total),
        )

    def answer(self, request: Mapping[str, Any]) -> Json:
        if "focus" in request:
            return self.focus(request["focus"])
        [(kind, told)] = [(kind, request[kind]) for kind in ("survey", "guess", "save") if kind in request]
        setup = Setup(told["algo"], tuple(told["op_ids"]), tuple((name, algo) for name, algo in told["tensors"]))
        if kind == "survey":
            return self.survey(setup)
        return self.guess(setup) if kind == "guess" else self.save(setup, Path(request["place"]))

    def simulated(self, setup: Setup, *, nearly: bool = False) -> Graph:
        assert self.seen is not None
        return self.seen.simulated(setup.algo, setup.op_ids, dict(setup.tensors), nearly=nearly)

    def focus(self, samples: Sequence[int]) -> Json:
        """In the order given: `quant.search.for_accuracy.predicted_drop` counts on it."""
        self.focused = take(self.data, np.array(samples, np.int64))
        place = self.fresh("fp32")
        save_dir(comparable(self.graph, self.chosen), place)
        self.reference = self.outputs(place, "fp32")
        return {"focused": len(samples)}

    def guess(self, setup: Setup) -> Json:
        begin = time.monotonic()
        place = self.fresh("int8")
        simulated = self.simulated(setup, nearly=True)
        converted = convert(simulated, ops_to_quantize=self.types, op_ids_to_skip=setup.op_ids)[0]
        save_dir(comparable(converted, self.chosen), place)
        found = self.outputs(place, "int8")
        if not all(np.isfinite(values_of(column)).all() for column in found if values_of(column).dtype.kind == "f"):
            raise ModelError("NaN or Inf in an output")
        assert self.focused.labels is not None
        counts = counted(self.metric, found, self.focused.labels, self.data.path, self.format)
        error = float(sample_errors(self.reference, found).mean())
        return {"error": error, "counts": counts.tolist(), "seconds": time.monotonic() - begin}

    def outputs(self, place: Path, precision: Any) -> list[Column]:
        collected: dict[str, list[Column]] = {}
        with opened_model({"model": str(place), "precision": precision}, self.threads) as predictor:
            for number, batch in enumerate(batches(self.focused, self.batch_size)):
                for name, value in predictor(batch).items():
                    collected.setdefault(name, []).append(value)
                report_progress("worst samples", number, 0)
        return [joined(parts) for parts in collected.values()]

    def save(self, setup: Setup, place: Path) -> Json:
        """As `quant ptq` and `quant convert` would write them."""
        for name in ("quant", "int8"):
            (place / name).mkdir()
        save_dir(lower_quantizers(self.simulated(setup)), place / "quant")
        graph, coverage = convert(load_dir(place / "quant"), ops_to_quantize=self.types, op_ids_to_skip=setup.op_ids)
        save_dir(graph, place / "int8")
        first = next(iter(batches(self.calibration, 2)))
        write_sample(place / "quant", first)
        check_simulation(self.graph, place / "quant", first)
        check_int8(load_dir(place / "quant"), place / "int8", place / "quant", threads=self.threads)
        return {"saved": str(place), "int8_ops": coverage.int8.total()}

    def survey(self, setup: Setup) -> Json:
        assert self.seen is not None
        placed = run_passes(self.simulated(setup), PLACE)
        converted, coverage = convert(placed, ops_to_quantize=self.types, op_ids_to_skip=setup.op_ids)
        ids = numbered(placed)
        chains = units(placed, set(ids.values()) - {entry.op_id for entry in coverage.kept})
        shares = self.costs(placed, converted, chains)
        thresholds, operands = self.seen.thresholds(setup.op_ids), self.seen.operands(setup.op_ids)
        kernels = [
            Kernel(
                tuple(ids[op] for op in chain.ops if op in ids),
                chain.op.type,
                chain.op.writes[0],
                share,
                tuple(name for name in operands.get(chain.op.writes[0], ()) if name in thresholds),
                {algo: cost for (output, algo), cost in self.seen.costs.items() if output == chain.op.writes[0]},
            )
            for chain, share in zip(chains, shares, strict=True)
        ]
        told = {name: {algo: choice.threshold for algo, choice in found.items()} for name, found in thresholds.items()}
        return {"kernels": [asdict(kernel) for kernel in kernels], "thresholds": told}

    def costs(self, placed: Graph, converted: Graph, chains: Sequence[Any]) -> list[float]:
        """What each chain takes longer in FP32, as a share of the INT8 model's time; see quant.search.for_speed."""
        clock: Clock = time.thread_time if self.threads == 1 else time.perf_counter
        feed: Feed = next(batches(self.data, 1))
        int8, fp32 = self.fresh("costs-int8"), self.fresh("costs-fp32")
        save_dir(converted, int8)
        save_dir(without_quantizers(placed), fp32)
        int8_ms, fp32_ms = both_times(int8, fp32, feed, self.threads, clock)
        found = Costs.of(placed.vars, converted, int8_ms, fp32_ms)
        times = [found.of_chain(chain) for chain in chains]
        whole = sum(int8_ms.values())
        return [max((slow or fast) - fast, 0.0) / whole for fast, slow in times]

    def fresh(self, name: str) -> Path:
        """An empty directory; the one of that name before is gone."""
        place = self.scratch / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place
