"""Models over labelled data, part by part: the job that a child process runs, and what it opens."""

import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from quant.datasets.columns import Column, Ragged, joined, values_of
from quant.datasets.readers import batches, check_labels
from quant.errors import ModelError, OutputError
from quant.evaluation.parts import About, pack, parts_of
from quant.ir.comparable import comparable, sized_by_values
from quant.ir.graph import Graph, load_dir, save_dir
from quant.ir.ops.arithmetic import MULTIPLY, Arithmetic, Sizes, arithmetic_of
from quant.ir.shapes import shapes_for
from quant.process.isolate import report_event, report_progress
from quant.runtime.inputs import opened
from quant.runtime.predictor import Predictor, Settings, log_kernels
from quant.runtime.reference import Reference
from quant.runtime.verbose_log import Declared

__all__ = ["arithmetic_on", "count_samples", "declared", "evaluate", "opened_model", "settings_of", "sizes_of"]


def settings_of(run: Mapping[str, Any], threads: int, cache_capacity: int = 10) -> Settings:
    return Settings(
        precision=run["precision"],
        threads=threads,
        cache_capacity=cache_capacity,
        onednn=run.get("onednn", True),
        optimise=run.get("optimise", True),
        executor=run.get("executor", "auto"),
    )


def opened_model(run: Mapping[str, Any], threads: int, cache_capacity: int = 10) -> Predictor | Reference:
    """What runs a model: FP32 and simulations where they are right, unless the user says how to run them."""
    settings = settings_of(run, threads, cache_capacity)
    asked = settings.executor != "auto" or not {"onednn", "optimise"}.isdisjoint(run)
    if settings.precision in ("fp32", "quant") and not asked:
        return Reference(Path(run["model"]), settings)
    return Predictor(Path(run["model"]), settings)


def count_ops(graph: Graph) -> tuple[int, int]:
    """(ops that are int8; ops that multiply and accumulate and are not)."""
    int8 = [op for op in graph.ops if op.attr("mkldnn_data_type") == "int8"]
    return len(int8), sum(op.type in MULTIPLY for op in graph.ops if op not in int8)


def sizes_of(graph: Graph, batch: Mapping[str, Column]) -> tuple[int, int, int]:
    """A batch's (samples, longest sequence, steps), 0 for what it doesn't have.

    A dense input's second dimension is a length where the model leaves that one open and fixes those behind it. An
    image's is its channels, and no measure for its open height and width.
    """
    ragged = [column for column in batch.values() if isinstance(column, Ragged)]
    if ragged:
        return len(ragged[0]), int(ragged[0].lengths.max()), len(ragged[0].values)
    shapes = {name: graph.vars[name].shape for name in graph.feeds}
    padded = [name for name, shape in shapes.items() if shape[1:2] == (-1,) and min(shape[2:], default=0) >= 0]
    longest = max((values_of(batch[name]).shape[1] for name in padded), default=0)
    return len(next(iter(batch.values()))), longest, 0


def arithmetic_on(graph: Graph, batch: Mapping[str, Column]) -> Arithmetic:
    """A graph's multiply-accumulates in a run on a batch, for models that Paddle is known to run."""
    dense = not any(isinstance(column, Ragged) for column in batch.values())  # else the program's own shapes lead
    shapes = shapes_for(graph, {name: values_of(batch[name]).shape for name in graph.feeds}) if dense else {}
    return arithmetic_of(graph, Sizes(*sizes_of(graph, batch), shapes))


def declared(found: Arithmetic) -> Declared:
    """What arithmetic proves of a run.

    Of a program without any INT8 op nothing is known of what is left float32: Paddle's own passes may still convert.
    """
    return Declared(found.total, found.total - found.int8 if found.int8 else 0, found.uncounted)


def count_samples(model: str, data: str, *, format: str | None = None, labels: str | None = None) -> int:
    """How many samples a data file holds for a model."""
    return len(opened(load_dir(Path(model)), data, format, labels, scored=True))


def evaluate(
    runs: Sequence[Mapping[str, Any]],
    data: str,
    outputs: str,
    *,
    format: str | None = None,
    labels: str | None = None,
    batch_size: int = 50,
    threads: int = 1,
    batch_num: int | None = None,
    only: int | None = None,
    together: bool = False,
) -> None:
    """Run models ({"model", "precision", "outputs", "skip"}) over one dataset, in parts (`parts.parts_of`).

    Each part's arrays go to a file in `outputs`, and an event tells of it: {"part": {"run", "file", "about", "macs"}}.
    Another event tells which model's turn it is: {"model": directory}.
    Not run are the parts that begin at a run's samples `skip`, and, with `only`, all others than this one. One model
    after the other runs all its parts; with `together` all models run one part after the other.
    oneDNN's log is on for the first batch of the first part, between the events {"kernels": true} and false.
    Raises ModelError for NaN or Inf in an output.
    """
    groups = [list(enumerate(runs))] if together else [[entry] for entry in enumerate(runs)]
    for group in groups:
        with ExitStack() as stack:
            models = []
            for number, run in group:
                report_event({"model": run["model"]})
                models.append(stack.enter_context(_Model(number, run, data, format, labels, batch_size, threads)))
            parts = [
                (part, model)
                for part in parts_of(len(models[0].dataset), batch_size, batch_num)
                for model in models
                if part.start not in model.run.get("skip", ()) and only in (None, part.start)
            ]
            total = sum(len(part) for part in parts_of(len(models[0].dataset), batch_size, batch_num)) * len(models)
            done = total - sum(len(part) for part, _ in parts)
            what = ", ".join(f"{model.run['precision']} {Path(model.run['model']).name}" for model in models)
            report_progress(what, done, total)
            for part, model in parts:
                for ran in model.run_part(part, Path(outputs)):
                    report_progress(what, done + ran, total)
                done += len(part)


class _Model:
    """A model on its data: a context manager that runs parts."""

    def __init__(
        self,
        number: int,
        run: Mapping[str, Any],
        data: str,
        format: str | None,
        labels: str | None,
        batch_size: int,
        threads: int,
    ) -> None:
        self.number, self.run, self.batch_size = number, run, batch_size
        whole = load_dir(Path(run["model"]))
        self.sized = sized_by_values(whole)
        self.graph = comparable(whole, run.get("outputs", ()), run["model"])
        self.instead = () if run.get("outputs") else tuple(n for n in whole.fetches if n not in self.graph.fetches)
        self.dataset = opened(self.graph, data, format, labels, scored=True)
        self.stack = ExitStack()
        place = Path(run["model"])
        if self.graph is not whole:
            place = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="quant-outputs-")))
            save_dir(self.graph, place)
        self.predictor = opened_model({**run, "model": str(place)}, threads)
        self.labels: Column | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.predictor.close()
        self.stack.close()

    def run_part(self, part: range, outputs: Path) -> Iterator[int]:
        """Run a part, write its arrays and tell of it; gives the number of samples done after each batch."""
        report_event({"model": self.run["model"]})
        count = -(-len(part) // self.batch_size)
        if self.labels is None:
            # oneDNN builds its kernels on the first run. And a label that is out of range is told now, not hours later.
            first = self.predictor(next(batches(self.dataset, self.batch_size, begin=part.start)))
            self.labels = check_labels(self.dataset, _classes(first, self.sized))
        collected: dict[str, list[Column]] = {}
        seconds: list[float] = []
        counted, executor, threads = Declared(), "", 0
        begin, done = time.perf_counter(), 0
        for batch in batches(self.dataset, self.batch_size, count, part.start):
            shown = part.start == 0 and not done
            if shown:
                counted = declared(arithmetic_on(self.graph, batch))
                log_kernels(True)
                report_event({"kernels": True})  # what the log shows from here to the next event is one run
            self.predictor.feed(batch)
            if not executor:  # of whole batches: the last one may be a single sequence
                executor, threads = self.predictor.executor, self.predictor.threads
            start = time.perf_counter()
            self.predictor.run()
            seconds.append(time.perf_counter() - start)
            if shown:
                log_kernels(False)
                report_event({"kernels": False})
            for name, value in self.predictor.read().items():
                collected.setdefault(name, []).append(value)
            done += len(next(iter(batch.values())))
            if done < len(part):
                yield done
        wall = time.perf_counter() - begin
        columns = {name: joined(parts) for name, parts in collected.items()}
        self._check(columns, part)
        int8_ops, fp32_ops = count_ops(self.graph)
        about = About(
            start=part.start,
            samples=len(part),
            total=len(self.dataset),
            outputs=tuple(columns),
            run_s=tuple(seconds),
            wall_s=wall,
            int8_ops=int8_ops,
            fp32_ops=fp32_ops,
            executor=executor,
            threads=threads,
            note=self.predictor.note if isinstance(self.predictor, Reference) else "",
            instead=self.instead,
        ).stamped()
        file = outputs / f"{self.number}.{part.start}.npz"
        try:
            file.write_bytes(pack(list(columns.values()), self.labels[part.start : part.stop]))
        except OSError as error:
            raise OutputError(f"{file}: can't be written ({error.strerror})") from error
        report_event({"part": {"run": self.number, "file": str(file), "about": asdict(about), "macs": asdict(counted)}})
        yield done

    def _check(self, outputs: Mapping[str, Column], part: range) -> None:
        for name, column in outputs.items():
            values = values_of(column)
            if not np.isfinite(values).all():
                bad = int(np.argwhere(~np.isfinite(values))[0][0])
                sample = part.start + (column.record(bad) - 1 if isinstance(column, Ragged) else bad)
                raise ModelError(f"{self.run['model']}: NaN or Inf in output {name!r} at sample {sample}")


def _classes(outputs: Mapping[str, Column], sized: Collection[str]) -> int:
    """How many classes a model tells apart: the width of its first output of scores. Without one, any label may be.

    `sized`: outputs of a row for each thing that was found, which aren't scores of samples.
    """
    for name, column in outputs.items():
        values = values_of(column)
        if name not in sized and values.ndim == 2 and values.dtype.kind == "f":
            return int(values.shape[1])
    return 1 << 31
