"""Which file is damaged, how, which command is given it, and how that has to end: a case for a kind and a seed."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.ir.graph import load_dir, save_dir
from tests.fuzz.corpus import MODELS, QAT, TUNE
from tests.fuzz.mutations import mutate_arrays, mutate_bytes, mutate_graph, mutate_json, mutate_text

__all__ = ["KINDS", "Case", "Ending", "case_of", "faults"]

Argv = tuple[str, ...]
Change = Callable[[bytes, np.random.Generator], tuple[bytes, str]]

_MODEL_OPTIONS: Mapping[str, Argv] = {
    "net": ("--data", "data/test.npz"),
    **{name: model.options for name, model in MODELS.items()},
}
_COMPARE = ("compare", "--acc-diff-threshold", "1")


def _eval(model: str, precision: str, *options: str) -> Argv:
    return ("eval", "--model", f"{model}/{precision}", "--precision", precision, *options, "--json")


def _model_commands(name: str, precision: str) -> list[Argv]:
    """What a model of a precision is given to."""
    options = _MODEL_OPTIONS[name]
    places = {key: f"{name}/{key}" for key in ("fp32", "quant", "int8")}
    both = (*_COMPARE, "--int8-model", places["int8"], *options)
    own = [_eval(name, precision, *options)]
    if precision == "fp32":
        own += [
            ("ptq", "--model", places["fp32"], *options, "--output", "output", "--algo", "mse"),
            (*both, "--fp32-model", places["fp32"]),
            ("init", name, "--output", "output.toml"),
            ("profile", places["fp32"], *options),
        ]
    elif precision == "quant":
        own += [
            ("convert", "--quant-model-path", places["quant"], "--int8-model-save-path", "output"),
            (*both, "--quant-model", places["quant"]),
        ]
    else:
        references = ("--fp32-model", places["fp32"], "--quant-model", places["quant"])
        own += [
            (*both, *references),
            ("analyze", places["int8"], *references, *options),
            ("profile", places["int8"], *options, "--each"),
        ]
    if name != "net":
        return own
    if precision == "fp32":
        convert = ("convert", "--quant-model-path", places["fp32"], "--int8-model-save-path", "output")
        own += [
            ("qat", "--model", places["fp32"], *options, "--output", "output", "--steps", "1", "--batch-size", "8"),
            (*convert, "--calibration-file", "table.txt"),
            ("tune", *TUNE[:6], "--output", "output", "--time-budget", "1", "--max-drop", "1"),
            ("bench", "--model", places["int8"], "--against", places["fp32"], "--json"),
        ]
    if precision == "int8":
        own += [("bench", "--model", places["int8"], "--json")]
    if precision == "quant":
        convert = ("convert", "--quant-model-path", places["quant"], "--int8-model-save-path", "output")
        own += [(*convert, "--optimize", "speed", "--time-budget", "1"), (*convert, "--debug", "drawings")]
    return own


@dataclass(frozen=True)
class _Target:
    """A file, or a model directory that is damaged as a graph, what damages it, and the commands that read it."""

    path: str  # a pattern of one or several
    change: Change | None
    commands: Sequence[Argv]


def _models(change: Change | None) -> list[_Target]:
    """Every embedded model at every precision; the small network, which is quick, as often as all others."""
    names = ("net", "net", "net", "net", *MODELS)
    files = ("",) if change is None else ("/inference.pdmodel", "/inference.pdiparams")
    return [
        _Target(f"{name}/{precision}{file}", change, _model_commands(name, precision))
        for name in names
        for precision in ("fp32", "quant", "int8")
        for file in files
    ]


def _data() -> list[_Target]:
    targets = []
    for name, model in MODELS.items():
        read = [_eval(name, "int8", *model.options)]
        calibrate = ("ptq", "--model", f"{name}/fp32", *model.options, "--output", "output")
        change: Change = mutate_text if model.format in ("pairs", "lac") else mutate_bytes
        targets.append(_Target(f"data/{model.data}", change, [*read, calibrate]))
        if model.format == "pairs":
            targets.append(_Target(f"data/{model.data}.label", mutate_text, read))
        if model.format == "lac":
            targets += [_Target(f"data/{beside}.dic", mutate_text, read) for beside in ("word", "tag", "q2b")]
    words = _eval("gru", "fp32", "--data", "data/words", "--format", "lac_bin")
    net, convert = _MODEL_OPTIONS["net"], ("--quant-model-path", "net/fp32", "--int8-model-save-path", "output")
    calibrated = ("ptq", "--model", "net/fp32", "--data", "data/calibration.npz", "--output", "output")
    qat = ("qat", "--model", "net/fp32", *net, "--output", "output", *QAT[:4], "--config", "config.json")
    return [
        *targets,
        _Target("data/words", mutate_bytes, [words]),
        _Target("data/test.bin", mutate_bytes, [_eval("net", "int8", "--data", "data/test.bin")]),
        _Target("data/test.npz", mutate_arrays, [_eval("net", "int8", *net), qat]),
        _Target("data/calibration.npz", mutate_arrays, [calibrated]),
        _Target("photos/?.*", mutate_bytes, [_PREPROCESS]),
        _Target("photos/val_list.txt", mutate_text, [_PREPROCESS]),
        _Target("table.txt", mutate_text, [("convert", *convert, "--calibration-file", "table.txt")]),
        _Target("config.json", mutate_json, [qat]),
    ]


_PREPROCESS = ("preprocess", "--data-dir", "photos", "--output-file", "output.bin", "--data-dim", "32")
_MANIFEST = ("--manifest", "quant.toml")
_SUITE = ("suite", "--history", "measured", "--output-dir")


def _manifests() -> list[_Target]:
    made = ("--model", "made")
    tune = ("tune", *_MANIFEST, *made, "--output", "output", "--time-budget", "1", "--max-drop", "1")
    suite = (*_SUITE, "elsewhere", *_MANIFEST)
    return [
        _Target(
            "quant.toml",
            mutate_text,
            [tune, (*suite, "--model", "given"), (*suite, *made), ("gate", *_MANIFEST, *made, "--history", "measured")],
        )
    ]


def _kept() -> list[_Target]:
    """What this project wrote itself, and reads again."""
    net = _eval("net", "int8", *_MODEL_OPTIONS["net"])
    reads = [
        ("report", "report.json", "--history", "history", "--output", "output.html"),
        ("gate", "--run", "report.json", "--history", "history"),
        ("gate", "--run", "report.json", "--history", "history", "--baseline", "report.json"),
    ]
    past = [
        reads[1],
        ("report", "report.json", "--history", "history", "--output", "output.html"),
        ("history", "--history", "history"),
        ("history", "resnet50", "--history", "history", "--plot", "output.svg"),
    ]
    qat = ("qat", "--model", "net/fp32", "--data", "data/test.npz", "--output", "output", *QAT)
    return [
        _Target("report.json", mutate_json, reads),
        _Target("history/*.json", mutate_json, past),
        _Target("cache/outcomes/*/*.json", mutate_json, [net]),
        _Target("cache/outcomes/*/*.npz", mutate_arrays, [net]),
        _Target("checkpoint.npz", mutate_arrays, [qat]),
        _Target("tuned.part/state.json", mutate_text, [("tune", *TUNE)]),
        _Target(
            "tuned/quant.toml",
            mutate_text,
            [("tune", "--manifest", "tuned/quant.toml", "--output", "output", "--time-budget", "1")],
        ),
        _Target("out/.suite.jsonl", mutate_text, [(*_SUITE, "out", *_MANIFEST)]),
        _Target(
            "cache/manifest-*/*/inference.pd*", mutate_bytes, [(*_SUITE, "elsewhere", *_MANIFEST, "--model", "made")]
        ),
    ]


KINDS: Mapping[str, Sequence[_Target]] = {
    "models": _models(mutate_bytes),
    "programs": _models(None),
    "data": _data(),
    "manifests": _manifests(),
    "kept": _kept(),
}


@dataclass(frozen=True)
class Case:
    """`argv` is what is run; `path`, what was damaged, a file or a model directory; `told`, how."""

    kind: str
    seed: int
    argv: Argv
    damage: Callable[[Path], tuple[str, str]]

    @property
    def again(self) -> str:
        """The command that runs this case alone."""
        return f"python -m tests.fuzz {self.kind} {self.seed}"


def case_of(kind: str, seed: int) -> Case:
    """The case of a kind and a seed, always the same."""
    random = np.random.default_rng([sorted(KINDS).index(kind), seed])
    targets = KINDS[kind]
    target = targets[int(random.integers(len(targets)))]
    argv = target.commands[int(random.integers(len(target.commands)))]

    def damage(place: Path) -> tuple[str, str]:
        found = sorted(place.glob(target.path))
        path = found[int(random.integers(len(found)))]
        if target.change is None:
            told = _damage_graph(path, random)
        else:
            content, told = target.change(path.read_bytes(), random)
            path.unlink()  # it may be a link
            path.write_bytes(content)
        return str(path.relative_to(place)), told

    return Case(kind, seed, argv, damage)


def _damage_graph(directory: Path, random: np.random.Generator) -> str:
    graph, staging = load_dir(directory), directory.with_name(f"{directory.name}.damaged")
    while True:
        staging.mkdir()
        try:
            changed, told = mutate_graph(graph, random)
            if random.random() < 0.3:
                changed, more = mutate_graph(changed, random)
                told += f"; {more}"
            save_dir(changed, staging)
        except (AttributeError, KeyError, TypeError, ValueError):  # not every graph can be written
            shutil.rmtree(staging)
            continue
        shutil.rmtree(directory)
        staging.rename(directory)
        return told


# --- how a case has to end


@dataclass(frozen=True)
class Ending:
    """How a command ended. `code` is None when it was ended because it hung; `left`: files that are new."""

    code: int | None
    out: str
    err: str
    seconds: float
    left: tuple[str, ...]


_INTERNAL = re.compile(
    r"Traceback|internal error|the child process ended with exit code|without progress and was ended"
)
_ALSO_TOLD = re.compile(r"warning: |accuracy: |speed|recorded in |left out: |measured once more: |not timed: |given")
_MAY_STAY = re.compile(r"(?:cache|elsewhere|tuned\.part)\b|output\.bin\.part$")  # to go on with


def faults(case: Case, path: str, ending: Ending) -> list[str]:
    """What is wrong with how a case ended, a line each; empty where it is as users may expect."""
    if ending.code is None:
        return ["hung"]
    found = []
    told = " ".join(f"{ending.out} {ending.err}".split())
    if ending.code not in (0, 1, 2):
        found.append(f"exit code {ending.code}")
    if internal := _INTERNAL.search(told):
        found.append(f"an internal error: ...{told[internal.start() :][-600:]}")
    if ending.code == 2 and not found:
        lines = ending.err.splitlines()
        ours = [line for line in lines if line.startswith("quant: ")]
        if len(ours) != 1 or lines[-1] != ours[0]:
            found.append(f"not one line of ours: {lines}")
        elif not any(word in ours[0] for word in (*_names_of(path), *_given(case.argv), *_PLACES, "--")):
            found.append(f"names neither file nor option: {ours[0]}")
        if strange := [line for line in lines if line not in ours and not _ALSO_TOLD.match(line)]:
            found.append(f"also printed: {strange}")
        if left := [name for name in ending.left if not _MAY_STAY.match(name)]:
            found.append(f"left behind: {left}")
    return found


_PLACES = ("net/", "data/", *(f"{name}/" for name in MODELS))  # what a damaged manifest makes wrong lies elsewhere


def _names_of(path: str) -> tuple[str, ...]:
    return (path, Path(path).name, f"{Path(path).parent}/")


def _given(argv: Argv) -> list[str]:
    return [word for word in argv[1:] if "/" in word or "." in word]
