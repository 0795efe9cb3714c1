"""Commands that measure models: accuracy, INT8 against its reference, speed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from quant import cpu
from quant.cli.shared import (
    BatchNum,
    ClusterAt,
    ClusterWait,
    Data,
    Executor,
    Format,
    Fresh,
    Isa,
    Json,
    Labels,
    Model,
    OutputNames,
    Threads,
    app,
    bar,
    counts_of,
    err,
    executor_of,
    listed,
    out,
    own_function,
    precision_of,
    print_json,
    shapes_of,
    warn_below_avx512,
)
from quant.datasets.columns import Column, Ragged, values_of
from quant.datasets.readers import format_of
from quant.errors import ModelError, OptionError
from quant.evaluation.cluster import Cluster
from quant.evaluation.collect import Sequential, chosen
from quant.evaluation.parts import Store, default_root
from quant.metrics import scores as metrics
from quant.metrics.sequential import ALPHA
from quant.reports import tables
from quant.results.target import Case
from quant.storage.files import fresh_file
from quant.suites import embedded, registry
from quant.timing import instances as throughput
from quant.timing import rounds, side_by_side

__all__ = ["bench", "compare", "eval_command"]


@app.command("eval")
def eval_command(
    model: Model,
    data: Data,
    precision: Annotated[str, typer.Option(help="fp32, quant, int8 or bf16.")] = "fp32",
    metric: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated, of {', '.join(metrics.METRICS)}, or module:function; default: those usual for the "
            "data.",
            callback=own_function,
        ),
    ] = "",
    format: Format = None,
    labels: Labels = None,
    output_name: OutputNames = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 50,
    threads: Threads = 1,
    isa: Isa = None,
    batch_num: BatchNum = None,
    executor: Executor = "auto",
    fresh: Fresh = False,
    cluster_at: ClusterAt = None,
    cluster_wait: ClusterWait = 30.0,
    save_outputs: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz.")] = None,
    as_json: Json = False,
) -> None:
    """Score one model on labelled data. What was run before is kept, and not run again."""
    names = _metrics(metric, data, format)
    run = {
        "model": str(model),
        "precision": precision_of(precision),
        "executor": executor_of(executor),
        **chosen(output_name or []),
    }
    with bar() as tell:
        [found] = embedded.evaluate(
            [run],
            data,
            format=format,
            labels=labels,
            isa=isa,
            batch_size=batch_size,
            threads=threads,
            batch_num=batch_num,
            store=_store(fresh),
            remote=_remote(cluster_at, cluster_wait),
            progress=tell,
        )
    warn_below_avx512(isa)
    result, shown = found.result, found.proof
    names = names if metric else metrics.fitting(names, found.outputs)
    scores = {name: _score(found.counts(name), name) for name in names}
    ms = [1e3 * value for value in result["run_s"]]
    latency = {"median": float(np.median(ms)), "p95": float(np.quantile(ms, 0.95))}
    if save_outputs is not None:
        _save_npz(save_outputs, _flat(dict(zip(result["outputs"], found.outputs, strict=True))))
    content = {
        "model": str(model),
        "precision": precision,
        "isa": cpu.tier_of(isa).name,
        "executor": result["executor"],
        "threads": result["threads"],
        "samples": result["samples"],
        "stored_samples": result["stored_samples"],
        "measured": result["measured"],
        "hosts": result["hosts"],
        "metrics": scores,
        "outputs": result["outputs"],
        "compared": result["compared"],
        "latency_ms": latency,
        "note": result["note"],
        "int8_ops": result["int8_ops"],
        "fp32_ops": result["fp32_ops"],
        "int8_mac_share": shown.share,
        "uncounted": shown.uncounted,
        "kernel_isas": shown.isas,
        "overhead": result["overhead"],
    }
    if as_json:
        print_json(content)
        return
    told = ", ".join(f"{name} {100 * value:.2f}%" for name, value in scores.items())
    out.print(f"{told} of {result['samples']} samples; {latency['median']:.2f} ms a batch of {batch_size} (median)")
    out.print(str(shown), soft_wrap=True)
    _print_compared([found])
    _print_notes([result])
    _print_stored({precision: result})


def _store(fresh: bool) -> Store:
    return Store(default_root(), fresh)


def _remote(address: str | None, wait_s: float) -> Cluster | None:
    return None if address is None else Cluster(address, wait_s)


def _print_notes(results: Iterable[Mapping[str, Any]]) -> None:
    """How FP32 models and simulations were run, where not as usual; `results`: of pipeline.evaluate."""
    for result in results:
        if result["note"]:
            err.print(f"note: {result['model']}: {result['note']}", soft_wrap=True)


def _print_compared(runs: Sequence[embedded.Evaluated]) -> None:
    for sentence in dict.fromkeys(run.result["compared"] for run in runs if run.result["compared"]):
        out.print(sentence, soft_wrap=True)


def _print_stored(results: Mapping[str, Mapping[str, Any]]) -> None:
    """How many samples are of earlier runs, and from when; `results`: precision -> result of pipeline.evaluate."""
    counts = {precision: result["stored_samples"] for precision, result in results.items()}
    if not any(counts.values()):
        return
    moments = sorted(moment.partition("+")[0] for result in results.values() for moment in result["measured"])
    hosts = sorted({host for result in results.values() for host in result["hosts"]})
    alike = len(set(counts.values())) == 1
    told = f"{max(counts.values()):,}" if alike else ", ".join(f"{key} {value:,}" for key, value in counts.items())
    samples = next(iter(results.values()))["samples"]
    when = moments[0] if moments[0] == moments[-1] else f"{moments[0]} to {moments[-1]}"
    out.print(f"{told} of {samples:,} samples from an earlier run: {when} UTC, {', '.join(hosts)} (--fresh runs again)")


def _metrics(text: str, data: Path, format: str | None) -> list[str]:
    known = format_of(data, format)
    names = listed(text) or list(metrics.usual(known))
    metrics.check_metrics(names, data, known)
    return names


def _score(counts: NDArray[Any], metric: str) -> float:
    return float(metrics.metric_of(metric).score(counts.sum(0)))


def _flat(outputs: Mapping[str, Column]) -> dict[str, Any]:
    """Outputs for an .npz: sequences as their values, and their offsets as NAME.offsets."""
    arrays: dict[str, Any] = {}
    for name, column in outputs.items():
        arrays[name] = values_of(column)
        if isinstance(column, Ragged):
            arrays[f"{name}.offsets"] = column.offsets
    return arrays


def _save_npz(path: Path, arrays: dict[str, Any]) -> None:
    with fresh_file(path) as staging, staging.open("wb") as file:
        np.savez(file, **arrays)


@app.command()
def compare(
    int8_model: Annotated[Path, typer.Option(help="INT8 model directory.")],
    data: Data,
    fp32_model: Annotated[
        Path | None, typer.Option(help="FP32 model directory; without, INT8 is compared with --quant-model.")
    ] = None,
    quant_model: Annotated[Path | None, typer.Option(help="Fake-quantized model directory.")] = None,
    acc_diff_threshold: Annotated[
        float, typer.Option(min=0.0, help="Largest accepted drop of the metric, 0.01 is one point.")
    ] = 0.01,
    metric: Annotated[
        str, typer.Option(help="What is compared; default: the first usual one for the data.", callback=own_function)
    ] = "",
    format: Format = None,
    labels: Labels = None,
    output_name: OutputNames = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 50,
    batch_num: BatchNum = None,
    threads: Threads = 1,
    isa: Isa = None,
    executor: Executor = "auto",
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop when PASS or FAIL is certain; the error of all looks is 5%.")
    ] = False,
    fresh: Fresh = False,
    cluster_at: ClusterAt = None,
    cluster_wait: ClusterWait = 30.0,
    as_json: Json = False,
) -> None:
    """Compare FP32, simulated and INT8 on the same samples. What was run before is kept, and not run again.

    Exit code 1 when INT8 drops more than the threshold, or when no INT8 kernel ran.
    """
    models = {"fp32": fp32_model, "quant": quant_model, "int8": int8_model}
    ways, named = {"int8": executor_of(executor)}, chosen(output_name or [])
    runs: list[dict[str, Any]] = [
        {"model": str(path), "precision": key, "executor": ways.get(key, "auto"), **named}
        for key, path in models.items()
        if path is not None
    ]
    if len(runs) < 2:
        raise OptionError("give --fp32-model, --quant-model, or both")
    reference = runs[0]["precision"]
    names = _metrics(metric, data, format)
    name = names[0]
    until = None
    if sequential:
        until = Sequential(name, acc_diff_threshold, data, [run["model"] for run in runs], format)
    with bar() as tell:
        evaluated = embedded.evaluate(
            runs,
            data,
            format=format,
            labels=labels,
            isa=isa,
            batch_size=batch_size,
            threads=threads,
            batch_num=batch_num,
            store=_store(fresh),
            remote=_remote(cluster_at, cluster_wait),
            until=until,
            progress=tell,
        )
        found = {run.result["precision"]: run for run in evaluated}
    names = names if metric else metrics.fitting(names, found["int8"].outputs)
    counts = {precision: run.counts(name) for precision, run in found.items()}
    decision = until.decision if until else None
    drop = decision.drop if decision else metrics.paired(counts[reference], counts["int8"], name)
    decided = decision.verdict if decision else metrics.verdict(drop, acc_diff_threshold)
    int8, share = found["int8"], found["int8"].proof
    references = {precision: run for precision, run in found.items() if precision != "int8"}
    for precision, run in references.items():
        if run.scores and int8.scores and values_of(run.scores[0]).shape[1:] != values_of(int8.scores[0]).shape[1:]:
            raise ModelError(f"{int8_model} and {models[precision]}: their outputs are of unlike shapes")
    content: dict[str, Any] = {
        "metric": name,
        "reference": reference,
        **{other: {precision: _score(run.counts(other), other) for precision, run in found.items()} for other in names},
        "drop": asdict(drop),
        "verdict": decided.result,
        "on_point": decided.on_point,
        "needed": decided.needed,
        "sqnr_db": {
            precision: metrics.sqnr(run.scores[0], int8.scores[0])
            for precision, run in references.items()
            # a model may give out decisions only, or what it found, which --output-name asks for
            if run.scores and int8.scores and metrics.same_rows(run.scores[0], int8.scores[0])
        },
        "compared": {precision: run.result["compared"] for precision, run in found.items()},
        "int8_mac_share": share.share,
        "uncounted": share.uncounted,
        "kernel_isas": share.isas,
        "stored_samples": {precision: run.result["stored_samples"] for precision, run in found.items()},
        "measured": {precision: run.result["measured"] for precision, run in found.items()},
        "notes": {precision: run.result["note"] for precision, run in found.items() if run.result["note"]},
        "sequential": decision.summary() if decision else None,
    }
    if "quant" in found:
        content["engine_drop"] = asdict(metrics.paired(counts["quant"], counts["int8"], name, drop.confidence))
    if as_json:
        print_json(content)
    else:
        for other in names:
            out.print(f"{other}: " + ", ".join(f"{key} {100 * value:.2f}%" for key, value in content[other].items()))
        interval = f"[{100 * drop.low:+.2f}, {100 * drop.high:+.2f}]"
        whose = "" if reference == "fp32" else " to the simulation"
        out.print(f"{name} drop{whose} {100 * drop.drop:+.2f} points {interval}, p {drop.p_value:.3f}: {decided}")
        if decision:
            told = decision.summary()
            out.print(
                f"sequential: {told['samples']:,} of {told['of']:,} samples were needed; look {told['look']} of "
                f"{told['looks']}, interval at {100 * told['confidence']:.3f}%, error of all looks {100 * ALPHA:.0f}%"
            )
        if "quant" in found and reference == "fp32":
            engine = content[name]["quant"] - content[name]["int8"]
            out.print(f"of which the engine: {100 * engine:+.2f} points")
        out.print(str(share), soft_wrap=True)
        _print_compared(list(found.values()))
        _print_stored({precision: run.result for precision, run in found.items()})
        _print_notes(run.result for run in found.values())
    if not share.int8_kernels:
        err.print(f"{int8_model}: not one INT8 kernel ran: this is not an INT8 model")
    if decided.result == "FAIL" or not decided.on_point or not share.int8_kernels:
        raise typer.Exit(1)


@app.command()
def bench(
    row: Annotated[str | None, typer.Argument(help="A row of `quant models`; or give --model.")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Model directory.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="A second model, timed in alternation; ratio = it / --model.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the model: fp32, quant, int8 or bf16; of a row: no quant.")
    ] = "int8",
    against_precision: Annotated[str, typer.Option(help="Of --against.")] = "fp32",
    threads: Annotated[str, typer.Option(help="Comma-separated thread counts; several alternate.")] = "1",
    batch_size: Annotated[str, typer.Option(help="Comma-separated batch sizes.")] = "1",
    isa: Isa = None,
    executor: Executor = "auto",
    data: Annotated[Path | None, typer.Option(help="Time on this data's samples, not on generated input.")] = None,
    format: Format = None,
    samples: Annotated[int, typer.Option(min=1, help="Of --data.")] = 500,
    by_length: Annotated[bool, typer.Option("--by-length", help="Sort --data's samples by length.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each batch of --data in a row.")] = 1,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="name=1,3,224,224 for an input with open dimensions.")
    ] = None,
    instances: Annotated[
        int | None, typer.Option(min=1, help="Instances at once, each pinned to a core: throughput, percentiles.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of --instances: how long all run, and one alone.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Time a model, or two in alternation, or many instances of one. An FP32 model is timed in its fastest variant.

    With several thread counts each is compared with the first, round by round.
    """
    if (row is None) == (model is None) or (row is not None and data is not None):
        raise OptionError("give either a row, or --model")
    counts, sizes = counts_of("--threads", threads), counts_of("--batch-size", batch_size)
    if instances is not None and counts != [1]:
        raise OptionError("--instances: each runs on one thread: no --threads")
    own, shapes = precision_of(precision), shapes_of(input_shape or [])

    def feed(batch: int) -> dict[str, Any]:
        if row is not None:
            return embedded.feed_of(registry.find(row), Case(batch))
        if data is None:
            return {"batch": batch, "shapes": shapes}
        taken = {"data": str(data), "format": format, "samples": samples}
        return {"batch": batch, "shapes": shapes, "sort": by_length, "repeat": repeat, **taken}

    def contender(path: Path, kind: str) -> list[dict[str, Any]]:
        return embedded.variants(path, kind, executor_of(executor))

    place = model if row is None else embedded.timed_of(registry.find(row), own, isa)
    assert place is not None
    if instances is not None:
        found = []
        for batch in sizes:
            with bar() as tell:
                measured = throughput.measure(
                    contender(place, own), instances, seconds=seconds, isa=isa, progress=tell, **feed(batch)
                )
            found.append((batch, measured))
        _print_throughput(f"{row or model} {own}", found, cpu.tier_of(isa).name, as_json)
        return
    contenders = [contender(place, own)]
    if against is not None:
        contenders.append(contender(against, precision_of(against_precision)))
    rows = []
    for batch in sizes:
        with bar() as tell:
            if len(counts) > 1:
                timed = rounds.bench(contenders, counts, isa=isa, progress=tell, **feed(batch))
            else:
                timed = [side_by_side.bench(contenders, isa=isa, threads=counts[0], progress=tell, **feed(batch))]
        first = np.array(timed[0][0]["seconds"])
        for count, both in zip(counts, timed, strict=True):
            taken_s = np.array(both[0]["seconds"])
            entry = {
                "model": str(row or model),
                "precision": own,
                "isa": cpu.tier_of(isa).name,
                "threads": count,
                "ran_threads": both[0]["run"]["threads"],
                "batch": batch,
                "executor": both[0]["run"]["executor"],
                "median_ms": 1e3 * float(np.median(taken_s)),
                "p95_ms": 1e3 * float(np.quantile(taken_s, 0.95)),
                "samples": len(taken_s),
            }
            if against is not None:
                other = np.array(both[1]["seconds"])
                ratio, low, high = metrics.ratio_interval(other, taken_s)
                entry |= {"against": str(against), "against_median_ms": 1e3 * float(np.median(other))}
                entry |= {"against_executor": both[1]["run"]["executor"]}
                entry |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
            if len(counts) > 1:
                gain, low, high = metrics.ratio_interval(first, taken_s)
                entry |= {"speedup": gain, "speedup_low": low, "speedup_high": high}
                entry |= {"efficiency": gain * counts[0] / count}
            rows.append(entry)
    if as_json:
        print_json({"results": rows})
        return
    hidden = ("model", "precision", "isa", "against", *["ran_threads"] * _as_asked(rows))
    columns = [name for name in rows[0] if name not in hidden]
    cells = [
        tuple(f"{entry[key]:.3f}" if isinstance(entry[key], float) else str(entry[key]) for key in columns)
        for entry in rows
    ]
    out.print(tables.rich_table(tables.Table(f"{row or model} {own}", tuple(columns), tuple(cells))))


def _as_asked(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all ran on as many threads as were asked for: recurrent layers don't, where they gain nothing by it."""
    return all(row["ran_threads"] == row["threads"] for row in rows)


def _print_throughput(title: str, found: Sequence[tuple[int, throughput.Throughput]], tier: str, as_json: bool) -> None:
    """`found`: batch size and what was measured with it."""
    if as_json:
        print_json({"results": [{"batch": batch, "isa": tier, **tables.throughput_json(one)} for batch, one in found]})
        return
    for batch, one in found:
        out.print(tables.rich_table(tables.throughput_table(f"{title}, {tier}, batch {batch}", one)))
