"""How often the gate is wrong: false alarms on the same code, and planted losses that it finds. `make gate-trials`.

Speed: in each session FP32, INT8, its twin, and INT8 slowed down, with a twin as slow, run in fresh processes and take
turns (quant.timing.rounds.in_fresh_processes). Of a session come two runs: the model as it is, and the slowed one. The
first
session is the baseline. A trial compares a later session with it as `quant gate` does, and a loss that it finds is
confirmed by the session that came after. The slowed model's process waits in a loop after each inference for a tenth
of what that took.

Accuracy: the INT8 model with noise on the weights of a layer drawn at random, as much of it as costs one point of
top-1, is compared with the sound one, and the sound one with itself.

Each session is a file, so a trial that was cut off goes on.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quant import cpu
from quant.ir.graph import load_dir, save_dir
from quant.process import isolate
from quant.reports.tables import Table, plain, section
from quant.results import gate, history
from quant.results.environment import Watch
from quant.results.gate import Change
from quant.results.record import Machine, Record, Run
from quant.results.target import Row
from quant.runtime.predictor import Predictor
from quant.storage.files import write_text
from quant.suites import embedded
from quant.suites.registry import ModelSpec, find
from quant.timing import rounds, side_by_side, worker

SLOWER = 0.10
POINTS = 0.01
_NEAR = 0.0015  # what a planted drop may differ from POINTS by


# --- jobs


def take_turns(contenders: Sequence[Sequence[Mapping[str, Any]]], **more: Any) -> None:
    """quant.timing.worker.take_turns of one contender; every run of it takes longer by the share "slower"."""
    share = contenders[0][0].get("slower", 0.0)
    if share:
        run = Predictor.run

        def slowed(predictor: Predictor) -> None:
            start = time.perf_counter()
            run(predictor)
            until = start + (1 + share) * (time.perf_counter() - start)
            while time.perf_counter() < until:
                pass

        Predictor.run = slowed  # type: ignore[method-assign,assignment]
    worker.take_turns(contenders, **more)


def damage(model: str, output: str, seed: int, amount: float) -> str:
    """Write an INT8 model with noise on one layer's weights: `amount` of their standard deviation. Gives the layer."""
    graph = load_dir(Path(model))
    random = np.random.default_rng(seed)
    names = [name for name, value in graph.params.items() if value.dtype == np.int8 and value.size > 64]
    name = sorted(names)[int(random.integers(len(names)))]
    weights = graph.params[name].astype(np.float64)
    noise = random.standard_normal(weights.shape) * weights.std() * amount
    params = {**graph.params, name: np.clip(np.rint(weights + noise), -127, 127).astype(np.int8)}
    save_dir(replace(graph, params=params), Path(output))
    return name


# --- speed


def session(spec: ModelSpec, planted: bool) -> list[Run]:
    """The row as it is and, if `planted`, slowed down, measured together."""
    isa, case = cpu.detect().cap.lower(), spec.cases[0]
    int8 = {"model": str(embedded.int8_of(spec, isa)), "precision": "int8"}
    slow = {**int8, "slower": SLOWER}
    contenders = [
        embedded.fp32_variants(embedded.full_of(spec) / "fp32"),
        [int8],
        [int8],
        *([[slow], [slow]] if planted else []),
    ]
    watch = Watch("gate", "python -m bench.gate_trials")
    timed = rounds.in_fresh_processes(
        contenders, isa=isa, job="bench.gate_trials:take_turns", **embedded.feed_of(spec, case)
    )
    fp32, *others = side_by_side.timed_records(spec.name, timed, case, cpu.detect(), 1)

    def run(one: Record, twin: Record) -> Run:
        pair = [replace(record, processes=rounds.ROUNDS) for record in (fp32, one)]
        return watch.run([spec], [pair[0], replace(pair[1], twin_s=twin.latency_s)])

    return [run(*others[place : place + 2]) for place in range(0, len(others), 2)]


def sessions(specs: Sequence[ModelSpec], count: int, planted: int, place: Path) -> Iterator[dict[str, list[Run]]]:
    """`count` sessions of all rows, those of an earlier run first: {"same": runs, "slower": runs}, a run a row.

    The slowed model is in the sessions that trials need, the second to the one behind the last of those `planted`.
    """
    for number in range(count):
        both = 1 <= number <= planted + 1
        found: dict[str, list[Run]] = {"same": [], **({"slower": []} if both else {})}
        for spec in specs:
            files = {kind: place / f"{number:03d}-{spec.name}-{kind}.json" for kind in found}
            if not all(file.exists() for file in files.values()):
                for kind, run in zip(found, session(spec, both), strict=True):
                    write_text(files[kind], run.to_json())
            for kind, file in files.items():
                found[kind].append(history.load(file))
        print(f"session {number + 1} of {count}", flush=True)
        yield found


def joined(runs: Sequence[Run]) -> Run:
    """Runs of several rows as one."""
    rows = {name: row for run in runs for name, row in run.rows.items()}
    return replace(runs[0], rows=rows, records=tuple(record for run in runs for record in run.records))


def judged(baseline: Run, now: Run, again: Run) -> list[Change]:
    """What `quant gate` says of a run, a second measurement of its suspects included."""
    changes = gate.compare(baseline, now)
    return gate.confirmed(changes, baseline, again) if gate.suspects(changes) else changes


def regressed(changes: Sequence[Change]) -> bool:
    return any(change.result == "REGRESSED" for change in changes)


# --- accuracy


def damaged(spec: ModelSpec, seed: int, evaluate: Callable[[Path], Record], sound: Record) -> Record:
    """A model damaged so much that its score is POINTS below the sound one's, as near as bisection goes."""
    low, high, best = 0.0, 8.0, None
    model = embedded.small_of(spec) / "int8"
    for _ in range(12):
        amount = (low + high) / 2
        with tempfile.TemporaryDirectory(prefix="quant-damaged-") as place:
            output = Path(place) / "int8"
            output.mkdir()
            isolate.call(
                "bench.gate_trials:damage", {"model": str(model), "output": str(output), "seed": seed, "amount": amount}
            )
            record = evaluate(output)
        drop = sound.score(spec.metric) - record.score(spec.metric)
        if best is None or abs(drop - POINTS) < abs(sound.score(spec.metric) - best.score(spec.metric) - POINTS):
            best = record
        if abs(drop - POINTS) <= _NEAR:
            break
        low, high = (amount, high) if drop < POINTS else (low, amount)
    assert best is not None
    return best


def accuracy_trials(spec: ModelSpec, count: int, samples: int) -> tuple[int, list[Change]]:
    """(false alarms of as many runs of the sound model, what each planted drop is found as)."""
    data = embedded.data_of(spec, (spec.test[0], samples))
    sound_model = embedded.small_of(spec) / "int8"

    def evaluate(model: Path) -> Record:
        [run] = embedded.evaluate([{"model": str(model), "precision": "int8"}], data, format=spec.format)
        return embedded.record_of(spec, cpu.detect(), run, {}, tuple(spec.max_drop), "")

    def change(record: Record) -> Change:
        before, after = (Run(Machine.here(), {spec.name: Row.of(spec)}, (one,)) for one in (sound, record))
        return next(found for found in gate.compare(before, after) if found.key.what.startswith("accuracy"))

    sound = evaluate(sound_model)
    alarms = sum(change(evaluate(sound_model)).result == "REGRESSED" for _ in range(count))
    found: list[Change] = []
    for seed in range(10 * count):
        if len(found) == count:
            break
        record = damaged(spec, seed, evaluate, sound)
        drop = sound.score(spec.metric) - record.score(spec.metric)
        print(f"planted drop {seed}: {100 * drop:.2f} points", flush=True)
        if abs(drop - POINTS) <= _NEAR:  # noise on some layers costs nothing, or everything: those can't be used
            found.append(change(record))
    return alarms, found


# --- what is told


def speed_table(
    specs: Sequence[ModelSpec], found: Sequence[Mapping[str, Sequence[Run]]], planted: int
) -> tuple[Table, str]:
    """The trials as a table, and a sentence."""
    baseline, *later = ({kind: joined(runs) for kind, runs in one.items()} for one in found)
    pairs = list(itertools.pairwise(later))  # each with the session after it, which confirms
    same = [judged(baseline["same"], now["same"], after["same"]) for now, after in pairs]
    slower = [judged(baseline["same"], now["slower"], after["slower"]) for now, after in pairs[:planted]]
    alarms, caught = sum(map(regressed, same)), [all_regressed(changes) for changes in slower]
    rows = []
    for spec in specs:
        of_same, of_slower = (
            [change for one in trials for change in one if change.key.model == spec.name and change.key.what == "speed"]
            for trials in (same, slower)
        )
        rows.append(
            (
                spec.title,
                _told([change.loss for change in of_same]),
                str(sum(change.result == "REGRESSED" for change in of_same)),
                str(sum(change.result == "INVALID" for change in of_same)),
                _told([change.loss for change in of_slower]),
                str(sum(change.result == "REGRESSED" for change in of_slower)),
                str(sum(change.result == "INVALID" for change in of_slower)),
                f"{100 * float(np.median([change.least for change in of_same])):.1f}",
            )
        )
    columns = (
        "Model", f"Same code: loss %, median [5%, 95%] of {len(same)}", "False alarms", "INVALID",
        f"INT8 {SLOWER:.0%} slower: loss % of {len(slower)}", "Caught", "INVALID", "Least seen %, median",
    )  # fmt: skip
    told = f"{alarms} false alarms in {len(same)} repeats; a slow-down caught in {sum(caught)} of {len(caught)}"
    note = (
        f"The loss of FP32 / INT8 against the first session's. A slow-down of {SLOWER:.0%} is a loss of "
        f"{100 * (1 - 1 / (1 + SLOWER)):.1f}%. A trial counts as caught when every row in it is."
    )
    return Table("Speed", columns, tuple(rows), note), told


def all_regressed(changes: Sequence[Change]) -> bool:
    return all(change.result == "REGRESSED" for change in changes if change.key.what == "speed")


def _told(values: Sequence[float]) -> str:
    low, middle, high = 100 * np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def accuracy_table(spec: ModelSpec, samples: int, alarms: int, found: Sequence[Change]) -> tuple[Table, str]:
    caught = sum(change.result == "REGRESSED" for change in found)
    rows = (
        (
            spec.title, f"{samples:,}", f"{alarms} of {len(found)}", _told([change.loss for change in found]),
            f"{max(change.p_value for change in found):.1e}", f"{caught} of {len(found)}",
        ),
    )  # fmt: skip
    columns = ("Model", "Samples", "False alarms", "Planted: points", "Largest p", "Caught")
    told = f"a drop of one point caught in {caught} of {len(found)}, {alarms} false alarms in {len(found)}"
    return Table("Accuracy", columns, rows), told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="mobilenet_v1", help="rows that are timed, comma-separated")
    parser.add_argument("--repeats", type=int, default=50, help="of the same code")
    parser.add_argument("--planted", type=int, default=20, help="losses of each kind")
    parser.add_argument("--accuracy-row", default="mobilenet_v1")
    parser.add_argument("--samples", type=int, default=2000, help="of the test data, for the planted drops")
    parser.add_argument("--sessions", type=Path, default=Path("out/gate-trials"), help="where sessions are kept")
    parser.add_argument("--output", type=Path, default=Path("out/gate-trials.md"))
    options = parser.parse_args()
    options.sessions.mkdir(parents=True, exist_ok=True)
    machine = Machine.here()
    spec = find(options.accuracy_row)
    alarms, drops = accuracy_trials(spec, options.planted, options.samples)
    accuracy, told = accuracy_table(spec, options.samples, alarms, drops)
    print(told, flush=True)
    specs = [find(name) for name in options.rows.split(",")]
    found = list(sessions(specs, options.repeats + 2, options.planted, options.sessions))
    speed, also = speed_table(specs, found, options.planted)
    place = f"CPU: {' '.join(machine.flags)}; {machine.cores} cores. " + ", ".join(
        f"{name} {number}" for name, number in machine.packages.items()
    )
    parts = [
        "# How often the gate is wrong",
        plain(f"{also}; {told}."),
        plain(place),
        section(speed),
        section(accuracy),
    ]
    write_text(options.output, "\n\n".join(parts) + "\n")
    print(also, flush=True)


if __name__ == "__main__":
    main()
