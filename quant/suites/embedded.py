"""The order of steps: what is built from what, which job runs under which ISA, which records come out."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from quant import cpu
from quant.datasets.columns import Column, values_of
from quant.errors import OptionError
from quant.evaluation.collect import Evaluated, data_digest, evaluate
from quant.evaluation.parts import Store
from quant.ir.numerics import REDUCED, SIGNED, bits_of
from quant.metrics.scores import agreement, cosine, same_rows, sqnr
from quant.process import isolate
from quant.process.imports import code_of, package_of
from quant.quantization.targets import weight_levels
from quant.results.record import Record, columns
from quant.results.target import Case, Row
from quant.storage.cache import cached
from quant.suites.registry import MODELS, ModelSpec
from quant.timing import rounds as turns
from quant.timing.baseline import fp32_variants, variants
from quant.timing.side_by_side import in_pairs, timed_records

__all__ = [
    "TUNED",
    "Evaluated",
    "accuracy",
    "data_of",
    "evaluate",
    "feed_of",
    "fp32_variants",
    "full_of",
    "int8_of",
    "judge_tuned",
    "loads",
    "record_of",
    "scaling",
    "small_of",
    "sources",
    "speed",
    "timed_of",
    "tune",
    "tuned_of",
    "variants",
]

Progress = isolate.Progress
S = TypeVar("S")
T = TypeVar("T")
_SEVEN = "-7bit"


def _suffix(tier: cpu.Tier) -> str:
    return "" if tier.vnni else _SEVEN


# --- artefacts of a registry row


_CHECKOUT = Path(__file__).parents[2]


def sources(*functions: str) -> list[str | bytes | Path]:
    """What an artefact of these functions depends on, beside its arguments: their code, and all that this imports.

    A function is "package.module:function"; a row's package has data, too. Those of the embedded rows lie beside this
    package in a checkout, and aren't installed. Raises OptionError where they aren't there.
    """
    if (_CHECKOUT / "pyproject.toml").exists() and str(_CHECKOUT) not in sys.path:
        sys.path.insert(0, str(_CHECKOUT))  # before any package of such a name that is installed
    packages = {function.partition(".")[0] for function in functions} - {"quant"}
    data = [path for package in sorted(packages) for end in ("npz", "tsv") for path in _data_files(package, end)]
    return [version("paddlepaddle"), code_of(*functions), *data]


def _data_files(package: str, ending: str) -> list[Path]:
    return sorted(package_of(package).rglob(f"*.{ending}"))


def data_of(spec: ModelSpec, which: tuple[str, int], progress: Progress | None = None) -> Path:
    """The labelled data of a split, in the row's format."""
    split, count = which

    def build(staging: Path) -> None:
        arguments = {"function": spec.data, "split": split, "count": count, "output": str(staging / "data")}
        isolate.call("quant.suites.commands:write_data", arguments, progress=progress)

    parts = [*sources("quant.suites.commands:write_data", spec.data), split, str(count)]
    return cached(f"{spec.format}-{split}-{count}", parts, build) / "data"


def small_of(spec: ModelSpec, progress: Progress | None = None) -> Path:
    """A directory with the trained row's fp32, quant, int8, quant-7bit and int8-7bit models."""
    calibration = data_of(spec, spec.calibration, progress)
    arguments = {
        "function": spec.small,
        "name": spec.name,
        "data": str(calibration),
        "format": spec.format,
        "full_input": "",
        "algo": spec.algo,
        "weight_levels": {"": SIGNED, _SEVEN: REDUCED},
    }
    return _prepared(f"{spec.name}-small", spec.small, arguments, progress)


def full_of(spec: ModelSpec, progress: Progress | None = None) -> Path:
    """A directory with the full-size row's fp32 and int8 models; the trained ones where those are full-size."""
    if not spec.full:
        return small_of(spec, progress)
    arguments = {
        "function": spec.full,
        "name": spec.name,
        "data": None,
        "format": spec.format,
        "full_input": spec.full_input,
        "algo": "abs_max",  # what is timed reads generated noise, of which no algorithm could learn more
        "weight_levels": {"": SIGNED, _SEVEN: REDUCED} if spec.differs_below_vnni else {"": SIGNED},
    }
    return _prepared(f"{spec.name}-full", spec.full, arguments, progress)


def _prepared(name: str, function: str, arguments: Mapping[str, Any], progress: Progress | None) -> Path:
    def build(staging: Path) -> None:
        isolate.call("quant.suites.commands:prepare", {**arguments, "output": str(staging)}, progress=progress)

    return cached(name, [*sources("quant.suites.commands:prepare", function), repr(sorted(arguments.items()))], build)


# --- measuring


def accuracy(
    spec: ModelSpec,
    *,
    isa: str | None = None,
    samples: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32, simulated and INT8 records of a row's trained model, INT8 on every reachable tier (or on `isa` alone).

    With a `store`, what an earlier run of the same models by the same code put out counts.
    """
    models = small_of(spec, progress)
    data = data_of(spec, (spec.test[0], min(samples or spec.test[1], spec.most)), progress)
    tiers = (cpu.tier_of(isa),) if isa else cpu.reachable()
    metrics = (*spec.max_drop, *(("top5",) if spec.format == "images" else ()))
    records, seen = [], {}
    samples_seen = data_digest(data, spec.format)
    for place, tier in enumerate(tiers):
        names = [f"int8{_suffix(tier)}"]
        if place == 0:
            simulated = dict.fromkeys(f"quant{_suffix(other)}" for other in tiers)
            names = ["fp32", *simulated, *names]
        runs = [{"model": str(models / name), "precision": name.partition("-")[0]} for name in names]
        capped = isa or (tier.cap.lower() if place else None)  # the first tier is this machine, as it is
        evaluated = evaluate(runs, data, format=spec.format, isa=capped, store=store, progress=progress)
        for name, run in zip(names, evaluated, strict=True):
            seen[name] = run
            references = {"fp32": seen["fp32"]} if name != "fp32" else {}
            if run.result["precision"] == "int8":
                references["quant"] = seen[f"quant{_suffix(tier)}"]
            record = record_of(spec, tier, run, references, metrics, name.partition("-")[2])
            records.append(replace(record, data=samples_seen))
    return records


def record_of(
    row: Row,
    tier: cpu.Tier,
    run: Evaluated,
    references: Mapping[str, Evaluated],
    metrics: Sequence[str],
    variant: str,
) -> Record:
    """What one model's run says, against other runs on the same samples; a model may give out decisions only."""
    decided = [column for column in run.outputs if values_of(column).dtype.kind == "i"]
    first, last = (_of_same_rows(run, references, place) for place in (0, -1))
    same = {key: other.outputs[0] for key, other in references.items() if decided and decided[0] is run.outputs[0]}
    return Record(
        model=row.name,
        precision=run.result["precision"],
        isa=tier.name,
        threads=1,
        ran_threads=run.result["threads"],
        batch=50,
        samples=run.result["samples"],
        outcomes={metric: columns(run.counts(metric)) for metric in metrics},
        sqnr_db={key: sqnr(other, run.scores[0]) for key, other in first.items()},
        cosine={key: cosine(other, run.scores[-1]) for key, other in last.items()},
        agreement={key: agreement(other, run.outputs[0]) for key, other in same.items()},
        int8_share=run.proof.share,
        kernel_isas=run.proof.isas,
        uncounted=run.proof.uncounted,
        variant=variant,
        overhead=run.result["overhead"],
        note=run.result["note"],
        compared=run.result["compared"],
    )


def _of_same_rows(run: Evaluated, references: Mapping[str, Evaluated], place: int) -> dict[str, Column]:
    """The outputs of scores at a place of those references that gave as many rows."""
    found = {key: other.scores[place] for key, other in references.items() if run.scores and other.scores}
    return {key: scores for key, scores in found.items() if same_rows(scores, run.scores[place])}


# --- quantization-aware training


TUNED = "trained"  # variant of records of fine-tuned models


def tune(
    spec: ModelSpec,
    output: Path,
    *,
    config: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    fresh: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tune a row's trained model with fake quantisation; `output` becomes the fake-quantized model.

    `config`: keys of program.Config; the bits of weights are by default those that this CPU wants. Returns steps,
    losses, bytes and where it was resumed; see commands.qat. Raises OptionError for a row without training data.
    """
    if spec.tuning is None:
        have = ", ".join(other.name for other in MODELS if other.tuning)
        raise OptionError(f"{spec.name}: has no training data; rows that can be trained: {have}")
    tuning, count = spec.tuning, threads or cpu.cores()
    arguments = {
        "model": str(small_of(spec, progress) / "fp32"),
        "data": str(data_of(spec, tuning.data, progress)),
        "format": spec.format,
        "output": str(output),
        "config": {"weight_bits": bits_of(weight_levels(None)), **(config or {})},
        "training": {"steps": tuning.steps, "batch": tuning.batch, "rate": tuning.rate},
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "fresh": fresh,
        "threads": count,
    }
    result: dict[str, Any] = isolate.call("quant.suites.commands:qat", arguments, threads=count, progress=progress)
    return result


def tuned_of(spec: ModelSpec, progress: Progress | None = None) -> Path:
    """A directory with the row's fine-tuned `quant` model, and the `int8` model of that."""

    def build(staging: Path) -> None:
        tune(spec, staging / "quant", progress=progress)
        arguments = {"quant_model_path": str(staging / "quant"), "output": str(staging / "int8")}
        isolate.call("quant.suites.commands:convert_model", arguments, progress=progress)

    return cached(
        f"{spec.name}-trained", [*sources("quant.suites.commands:qat", spec.small, spec.data), repr(spec.tuning)], build
    )


def judge_tuned(
    spec: ModelSpec, tuned: Path, *, samples: int | None = None, progress: Progress | None = None
) -> list[Record]:
    """Records of FP32, calibrated INT8, the fine-tuned simulation and its INT8 on the row's test data, on this CPU.

    `tuned`: a directory with the `quant` and `int8` models.
    """
    models, tier = small_of(spec, progress), cpu.detect()
    data = data_of(spec, (spec.test[0], min(samples or spec.test[1], spec.most)), progress)
    calibrated = models / f"int8{_suffix(tier)}"
    places = {"fp32": models / "fp32", "int8": calibrated, "quant": tuned / "quant", TUNED: tuned / "int8"}
    runs = [{"model": str(path), "precision": "int8" if key == TUNED else key} for key, path in places.items()]
    fp32, ptq, quant, int8 = evaluate(runs, data, format=spec.format, progress=progress)
    metrics = tuple(spec.max_drop)
    against = {"fp32": fp32}
    return [
        record_of(spec, tier, fp32, {}, metrics, ""),
        record_of(spec, tier, ptq, against, metrics, _suffix(tier).removeprefix("-")),
        record_of(spec, tier, quant, against, metrics, TUNED),
        record_of(spec, tier, int8, {**against, "quant": quant}, metrics, TUNED),
    ]


# Samples of a row that is timed on its data: at batch 1, at larger ones, and where each batch runs several times.
_TIMED_SAMPLES = (60, 300, 100)


def int8_of(spec: ModelSpec, isa: str | None = None) -> Path:
    """The INT8 model of a row that is timed on an ISA."""
    # 7 bits for 8 change no time by themselves; only which ops are INT8 does.
    own = not spec.full or spec.differs_below_vnni
    return full_of(spec) / f"int8{_suffix(cpu.tier_of(isa)) if own else ''}"


def timed_of(spec: ModelSpec, precision: str, isa: str | None = None) -> Path:
    """The model of a row that is timed at a precision. Raises OptionError for simulations, which nobody times."""
    if precision == "quant":
        raise OptionError(f"{spec.name}: its simulation isn't timed; --precision int8, fp32 or bf16")
    return int8_of(spec, isa) if precision == "int8" else full_of(spec) / "fp32"


def feed_of(spec: ModelSpec, case: Case, progress: Progress | None = None) -> dict[str, Any]:
    """What a row is timed on, as quant.timing.worker.Feed takes it."""
    if spec.full:
        return {"batch": case.batch, "full_input": spec.full_input}
    return {
        "batch": case.batch,
        "data": str(data_of(spec, spec.test, progress)),
        "format": spec.format,
        "sort": case.by_length,
        "repeat": case.repeat,
        "samples": _TIMED_SAMPLES[2 if case.repeat > 1 else case.batch > 1],
    }


def speed(
    spec: ModelSpec,
    case: Case,
    *,
    isa: str | None = None,
    threads: int = 1,
    budget_s: float = 2.5,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32 and INT8 records of a row's full-size model, measured in pairs on one ISA."""
    fp32, int8 = full_of(spec, progress) / "fp32", int8_of(spec, isa)
    how: dict[str, Any] = {"isa": isa, "threads": threads, "budget_s": budget_s, "progress": progress}
    return in_pairs(spec.name, fp32, int8, feed_of(spec, case, progress), case, **how)


def scaling(
    spec: ModelSpec,
    batch: int,
    threads: Sequence[int] = (1, 2),
    *,
    isa: str | None = None,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """INT8 records of a row at several numbers of threads, round by round against each other.

    `budget_s` is for one process a number of threads; None: several, new ones in each round, whatever time that takes.
    """
    case = Case(batch)
    run = {"model": str(int8_of(spec, isa)), "precision": "int8"}
    how = {"isa": isa, "progress": progress, **feed_of(spec, case, progress)}
    if budget_s is None:
        timed = turns.in_fresh_processes([[run]] * len(threads), threads=threads, laps=4, **how)
    else:
        timed = [entry for [entry] in turns.bench([[run]], threads, budget_s=budget_s, **how)]
    records = (
        timed_records(spec.name, [entry], case, cpu.tier_of(isa), count)[0]
        for count, entry in zip(threads, timed, strict=True)
    )
    return [replace(record, processes=turns.ROUNDS if budget_s is None else 1) for record in records]


def loads(
    spec: ModelSpec, rounds: int, *, isa: str | None = None, executor: str = "auto"
) -> list[list[dict[str, float]]]:
    """What loading a row's FP32 and INT8 models takes, each round in new processes; see quant.timing.worker.load."""
    places = {precision: timed_of(spec, precision, isa) for precision in ("fp32", "int8")}
    runs = [{"model": str(place), "precision": key, "executor": executor} for key, place in places.items()]
    return turns.loads(runs, rounds, isa=isa, **feed_of(spec, Case()))
