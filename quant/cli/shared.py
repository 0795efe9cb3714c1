"""What the commands share: the app, options that mean the same everywhere, parsing, progress, printing."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from quant import cpu
from quant.cli.needs import App
from quant.datasets import user_functions
from quant.datasets.readers import FORMATS
from quant.errors import OptionError, check_choice
from quant.process import isolate
from quant.storage.digests import digest
from quant.suites import embedded, registry
from quant.suites import entries as manifest_suite
from quant.suites.manifest import schema
from quant.suites.manifest.schema import Entry
from quant.suites.registry import ModelSpec

__all__ = [
    "LITERAL",
    "Algo",
    "AllThreads",
    "AnyModel",
    "BatchNum",
    "CalibrationBatch",
    "Check",
    "ClusterAt",
    "ClusterWait",
    "Data",
    "Executor",
    "Format",
    "Fresh",
    "HistoryDir",
    "Isa",
    "Json",
    "Labels",
    "ManifestPath",
    "Model",
    "OpIds",
    "OpTypes",
    "OutputNames",
    "SaveDir",
    "Target",
    "Threads",
    "app",
    "bar",
    "check_save",
    "counts_of",
    "entries_of",
    "err",
    "executor_of",
    "given_by",
    "given_by_rows",
    "ids",
    "listed",
    "out",
    "own_function",
    "precision_of",
    "print_json",
    "shapes_of",
    "sole_entry",
    "specs_of",
    "warn_below_avx512",
]

app = App(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
# Names are anybody's: "[red]" is no color and ":one:" no picture, in lines, tables and bars.
LITERAL: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
err = Console(stderr=True, soft_wrap=True, **LITERAL)
out = Console(width=None if sys.stdout.isatty() else 200, **LITERAL)


def own_function(text: str | None) -> str | None:
    """An option that may name functions of the user's: then modules in the working directory can be imported."""
    if text and ":" in text:
        user_functions.importable(Path.cwd())
    return text


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Executor = Annotated[
    str,
    typer.Option(
        help="Who calls the kernels: paddle, as where Paddle Inference is deployed; direct, the same without Paddle's "
        "time between them; auto, direct for INT8 where it can."
    ),
]
Isa = Annotated[
    str | None, typer.Option(help="Cap oneDNN to an ISA: avx2, avx512_core, avx512_core_vnni, avx512_core_amx.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one run.")]
AllThreads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of one run; default: all that this process may use.")
]
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model directory; or a row of `quant suite`; or, with --manifest, a model that it lists.",
    ),
]
Model = Annotated[Path, typer.Option("--model", help="Model directory.")]
Data = Annotated[Path, typer.Option(help="Labelled data in one of the formats of --format.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"{', '.join(FORMATS)}, or your own reader as module:function; default: what the file's suffix tells.",
        callback=own_function,
    ),
]
OutputNames = Annotated[
    list[str] | None,
    typer.Option(
        "--output-name",
        help="A tensor to compare and score, in order (repeatable); default: the outputs, and for those that have as "
        "many rows as values ask for (boxes behind NMS) the tensors that decide them.",
    ),
]
Labels = Annotated[Path | None, typer.Option(help="File of labels, for data without them (pairs).")]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Run what is written once, and write nothing that differs.")
]
Algo = Annotated[str, typer.Option(help="abs_max, min_max, avg, hist, KL, mse, or best: of these, by tensor.")]
Target = Annotated[str | None, typer.Option(help="CPU tier the model is for; default: this CPU's.")]
CalibrationBatch = Annotated[int, typer.Option("--batch-size", min=1)]
BatchNum = Annotated[int | None, typer.Option(min=1, help="Use only this many batches.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew: what earlier runs kept or left unfinished goes.")]
ClusterAt = Annotated[
    str | None, typer.Option("--cluster", help="Run on the workers of dask's scheduler at tcp://host:port.")
]
ClusterWait = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the scheduler, and for a worker.")]
ManifestPath = Annotated[
    Path | None, typer.Option("--manifest", help="Instead of the embedded models, those that a quant.toml lists.")
]
SaveDir = Annotated[
    Path | None,
    typer.Option("--save", help="With --manifest: leave the INT8 models that pass here, each in a directory NAME."),
]
HistoryDir = Annotated[Path, typer.Option("--history", help="The directory of runs.")]
OpTypes = Annotated[str, typer.Option("--ops-to-quantize", help="Comma-separated op types; empty: all quantizable.")]
OpIds = Annotated[str, typer.Option("--op-ids-to-skip", help="Comma-separated op ids (see --debug) to keep in FP32.")]


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def ids(text: str) -> list[int]:
    for part in listed(text):
        if not part.isdecimal():
            raise OptionError(f"--op-ids-to-skip: {part!r} is not an op id")
    return [int(part) for part in listed(text)]


def executor_of(text: str) -> str:
    check_choice("executor", text, ("auto", "paddle", "direct"))
    return text


def precision_of(text: str) -> str:
    check_choice("precision", text, ("fp32", "quant", "int8", "bf16"))
    return text


def specs_of(names: Sequence[str]) -> list[ModelSpec]:
    """The registry's rows of these names, all without."""
    return [registry.find(name) for name in names] or list(registry.MODELS)


def entries_of(path: Path, names: Sequence[str]) -> list[Entry]:
    """A manifest's entries of these names, all without. What it names of Python can be imported from now on."""
    found = schema.read(path)
    schema.importable(found)
    known = {entry.name: entry for entry in found.models}
    for name in names:
        check_choice(f"model in {path}", name, known)
    return [known[name] for name in names] or list(found.models)


def sole_entry(path: Path, name: str, beside: Mapping[str, object]) -> Entry:
    """A manifest's entry of this name. Raises OptionError for an option of `beside` that says what the entry says."""
    for option, value in beside.items():
        if value is not None:
            raise OptionError(f"{option}: the entry in {path} says this")
    [entry] = entries_of(path, [name])
    return entry


def check_save(save: Path | None, manifest_path: Path | None) -> None:
    """Raise OptionError for --save without --manifest: the embedded and published models are nobody's to deploy."""
    if save is not None and manifest_path is None:
        raise OptionError("--save: saves the models of a manifest; give --manifest")


def given_by_rows(specs: Sequence[ModelSpec]) -> dict[str, Any]:
    """What decides what the models of rows are, and their data: a journal is gone on with only where it is the same."""
    functions = {function for spec in specs for function in (spec.small, spec.full, spec.data) if function}
    return {"models": digest(embedded.sources("quant.suites.commands:prepare", *sorted(functions)))}


def given_by(entries: Sequence[Entry]) -> dict[str, Any]:
    """The same of a manifest's entries: what they say, and the contents of the files that they name."""
    with bar() as progress:
        return {"models": {entry.name: manifest_suite.identity(entry, progress) for entry in entries}}


def shapes_of(specs: Sequence[str]) -> dict[str, list[int]]:
    """name=1,3,224,224 -> {name: [1, 3, 224, 224]}"""
    shapes = {}
    for spec in specs:
        name, _, dims = spec.partition("=")
        if not name or not listed(dims) or not all(part.isdecimal() and int(part) for part in listed(dims)):
            raise OptionError(f"--input-shape: {spec!r} is not name=1,3,224,224")
        shapes[name] = [int(part) for part in listed(dims)]
    return shapes


def counts_of(option: str, text: str) -> list[int]:
    if not listed(text) or not all(part.isdecimal() and int(part) for part in listed(text)):
        raise OptionError(f"{option}: {text!r} is not a list of numbers above 0")
    return [int(part) for part in listed(text)]


@contextmanager
def bar(*amount: ProgressColumn) -> Iterator[isolate.Progress]:
    """A progress function: one bar with an ETA, on a terminal only; `amount` shows how much, by default m/n."""
    shown = amount or (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *shown, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("starting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            if done == 0 or bars.tasks[0].total != (total or None):
                bars.reset(task, total=total or None)
            bars.update(task, description=what, completed=done)

        yield tell


def warn_below_avx512(isa: str | None) -> None:
    if cpu.tier_of(isa) is cpu.TIERS[0]:
        err.print(f"warning: tier {cpu.TIERS[0].name}: {cpu.TIERS[0].expects}")


def print_json(content: Any) -> None:
    """What isn't finite as in `Run.to_json`."""
    print(to_json(content, inf_nan_mode="strings").decode())
