"""A first manifest for the models that were found in a directory: commented, and valid once the paths in it are."""

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.datasets.readers import FORMATS, format_of
from quant.errors import DataError, OptionError
from quant.metrics.scores import USUAL
from quant.quantization.observers import DEFAULT

__all__ = ["Draft", "drafts_of", "manifest_text", "toml_string"]

Json = Mapping[str, Any]  # a model, as quant.suites.manifest.inspection.survey tells it

_KINDS = {"fp32": "FP32", "quant": "fake-quantized", "int8": "INT8"}
_SUFFIXES = {"images": ".bin", "npz": ".npz", "pairs": ".bs1", "lac": ".tsv", "handwriting": ".bin"}
_WIDTH = 116

_HEAD = """\
# Models, the data they are judged on, and the limits they are judged by.
# Measure all of them:  quant suite --manifest {manifest}
# Paths are relative to this file. A line behind "#" shows a key's default, or an example.
"""

_LIMITS = """\
[model.thresholds]
drop = 0.01         # INT8 may lose this much of the first metric; 0.01 is one point
# floor = 0.75      # what FP32 must score, lest two broken models agree
# int8_share = 0.9  # least share of the multiply-accumulates that INT8 kernels do
# speedup = { avx512_vnni = 2.0, amx = 3.0 }  # least FP32 / INT8 latency by CPU tier; elsewhere 1
"""


def toml_string(text: str) -> str:
    """A basic string of TOML. Raises OptionError for what isn't Unicode, as names of files may be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError(f"{text!a}: a name that isn't Unicode can't stand in a manifest") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- which models belong together


@dataclass(frozen=True)
class Draft:
    """An entry to be: its name, and the models that were found for it by kind, "fp32", "quant" or "int8"."""

    name: str
    models: Mapping[str, Json]

    @property
    def shown(self) -> Json:
        """The model whose inputs and outputs are told: any has the same."""
        return next(self.models[kind] for kind in _KINDS if kind in self.models)


def drafts_of(found: Sequence[Json], root: Path) -> list[Draft]:
    """Entries of the models below `root` that could be read.

    Directories `fp32`, `quant` and `int8` beside each other are one entry, named by what they lie in; so are `quant-X`
    and `int8-X`, with their own `fp32-X` or else `fp32`. Any other directory is one of its own.
    """
    groups: dict[tuple[str, ...], dict[str, Json]] = {}
    for model in found:
        if "error" in model:
            continue
        place = Path(os.path.abspath(model["path"]))
        kind, variant = _kind_of(place.name)
        if kind == model["kind"]:
            groups.setdefault((str(place.parent), variant), {})[kind] = model
        else:
            groups[(str(place),)] = {model["kind"]: model}
    for key, models in groups.items():
        base = groups.get((key[0], ""), {})
        if len(key) > 1 and "fp32" not in models and "fp32" in base:
            models["fp32"] = base["fp32"]
    names = _names([Path(key[0]) for key in groups], ["".join(key[1:]) for key in groups], root)
    return [Draft(name, models) for name, models in zip(names, groups.values(), strict=True)]


def _kind_of(name: str) -> tuple[str, str]:
    """fp32 -> ("fp32", ""), int8-7bit -> ("int8", "-7bit"), anything else -> ("", "")."""
    found = re.fullmatch(r"(fp32|quant|int8)([-_.].+)?", name, re.DOTALL)
    return (found[1], found[2] or "") if found else ("", "")


def _names(places: Sequence[Path], variants: Sequence[str], root: Path) -> list[str]:
    """A name for each place: its last part, or as much of its path below `root` as tells it from the others."""
    root = Path(os.path.abspath(root))
    last = [place.name + variant for place, variant in zip(places, variants, strict=True)]
    names: list[str] = []
    for place, variant, short in zip(places, variants, last, strict=True):
        whole = place.relative_to(root).as_posix() + variant if root in place.parents else short
        name = "".join(char if char.isprintable() else "_" for char in (short if last.count(short) == 1 else whole))
        while name in names or not name.strip():
            name += "_"
        names.append(name)
    return names


# --- what its data could be


def _format(model: Json) -> str | None:
    """The data format that fits a model's inputs; None where only a reader of one's own would."""
    inputs = model["inputs"]
    first = inputs[0]
    if any(one["lod_level"] for one in inputs):
        if len(inputs) > 1 or first["lod_level"] != 1:
            return None
        if first["dtype"] == "int64" and first["shape"][1:] == [1]:
            return "lac"
        return "handwriting" if first["dtype"] == "float32" and len(first["shape"]) == 2 else None
    if len(inputs) == 1 and first["dtype"] == "float32" and len(first["shape"]) == 4 and min(first["shape"][1:]) > 0:
        return "images"
    pairs = all(one["dtype"] in ("int64", "float32") and one["shape"][1:2] == [-1] for one in inputs)
    return "pairs" if pairs and any(one["dtype"] == "int64" for one in inputs) else "npz"


def _metric(model: Json, format: str) -> str | None:
    """The usual metric of a format, where the model's outputs fit it."""
    kinds = [(one["dtype"], len(one["shape"]), bool(one["lod_level"])) for one in model["outputs"]]
    scores, decided = ("float32", 2, False), ("int64", 2, True)
    wanted = {"lac": [decided], "lac_bin": [decided], "handwriting": [scores, decided]}.get(format, [scores])
    return USUAL[format][0] if kinds[: len(wanted)] == wanted else None


# --- text


def manifest_text(
    drafts: Sequence[Draft], found: Sequence[Json], output: Path, data: Path | None, calibration: Path | None
) -> str:
    """The manifest that goes to `output`. `data` and `calibration` where they are known."""
    blocks = [_HEAD.format(manifest=_clean(output.name))]
    for draft in drafts:
        blocks.append("".join(f"{line}\n" for line in _entry(draft, output, data, calibration)))
    for model in found:
        if "error" in model:
            blocks.append("\n".join(_comment(f"Not usable: {model['error']}")) + "\n")
    return "\n".join(blocks)


def _entry(draft: Draft, output: Path, data: Path | None, calibration: Path | None) -> Iterator[str]:
    shown = draft.shown

    def path(key: str, value: str | Path, about: str = "", *, known: bool = True) -> str:
        told = f"  # {about}" if about else ""
        text = os.path.relpath(value, output.parent) if known else str(value)
        return f"{key} = {toml_string(Path(text).as_posix())}{told}"

    yield from _about(draft)
    yield "[[model]]"
    yield f"name = {toml_string(draft.name)}"
    yield f"# title = {toml_string(draft.name)}  # what tables show"
    for kind in _KINDS:
        if kind in draft.models:
            yield path(kind, draft.models[kind]["path"])
        elif kind == "fp32" and list(draft.models) == ["int8"]:
            yield path(kind, "fp32", "the FP32 model, which INT8 is compared with", known=False)
        elif kind == "fp32":
            yield '# fp32 = "fp32"  # without: the fake-quantized model without its quantizers'
        elif kind == "quant" and "int8" in draft.models:
            yield '# quant = "quant"  # what INT8 was made of: tells the loss by rounding from the engine\'s'
    guess = _format(shown)
    format = _format_of(data, guess)
    example = _SUFFIXES.get(format or "", "")
    what = FORMATS[format][0] if format else "what the reader reads: a file or a directory"
    if data is None:
        yield path("data", f"test{example}", f"test data with labels: {what}", known=False)
    else:
        yield path("data", data)
    if format is None:
        yield 'reader = "my_pkg.data:read"  # a function of yours: path -> (inputs, labels); no format here fits'
    else:
        files = [data or Path(f"test{example}"), *([calibration] if calibration else [])]
        yield from _format_lines(format, all(_told(file) == format for file in files), guess)
    calibrated = "quant" in draft.models or "int8" in draft.models
    if calibration is not None:
        yield path("calibration", calibration)
    else:
        line = path("calibration", f"calibration{example}", "in the same format; no sample of it in data", known=False)
        yield f"# {line}" if calibrated else line
    if not calibrated:
        told = "of calibration: abs_max, min_max, avg, hist, KL, mse, or best of these by tensor"
        yield f'# algo = "{DEFAULT}"  # {told}'
    yield _metric_line(shown, format)
    yield '# precisions = ["fp32", "int8"]  # bf16 is measured where it is named'
    yield "# threads = [1, 4]  # what is timed; default 1"
    yield "# batch_sizes = [1, 8]  # what is timed; default 1"
    yield "# batch_size = 50  # of the accuracy runs"
    if "int8" not in draft.models:
        yield "# ops_to_quantize = []  # op types; default: all that can be"
        yield "# op_ids_to_skip = []  # ops that stay FP32, by the ids that `quant convert` prints"
    yield ""
    yield _LIMITS.rstrip("\n")


def _format_of(data: Path | None, guess: str | None) -> str | None:
    """The format of the entry: what the data's suffix tells, or what fits the model; None: a reader's."""
    if data is not None and data.is_dir():
        return None
    return (_told(data) if data else None) or guess


def _told(path: Path) -> str | None:
    """The format that a suffix tells."""
    try:
        return format_of(path)
    except DataError:
        return None


def _format_lines(format: str, told: bool, guess: str | None) -> Iterator[str]:
    """`told`: whether the suffixes of all files say it already."""
    others = ", ".join(name for name in FORMATS if name != format)
    yield f"{'# ' if told else ''}format = {toml_string(format)}  # others: {others}; or a reader of your own"
    if guess not in (None, format) and format != "npz":
        yield f"# the model's inputs would fit the format {guess}"
    if format == "pairs":
        yield '# labels = "labels.txt"  # one integer a line; default: the file NAME.label beside the data'


def _metric_line(model: Json, format: str | None) -> str:
    metric = None if format is None else _metric(model, format)
    if metric is None:
        return 'metric = "my_pkg.metrics:score"  # a function of yours: (outputs, labels) -> what each sample scores'
    others = f"; also {', '.join(USUAL[format][1:])}" if format and USUAL[format][1:] else ""
    return f"metric = {toml_string(metric)}  # what is compared{others}; or a function of your own"


def _about(draft: Draft) -> Iterator[str]:
    """What the models are, in comments: each one's size, the inputs and ops of one, and what INT8 comes of the last."""
    models = {kind: draft.models[kind] for kind in _KINDS if kind in draft.models}
    for kind, model in models.items():
        yield from _comment(f"{Path(model['path']).name}: {_KINDS[kind]}, {model['bytes'] / 1e6:,.1f} MB on disk")
    for which in ("inputs", "outputs"):
        yield from _comment(f"{which.capitalize()}: {'; '.join(map(_tensor, draft.shown[which]))}")
    yield from _comment(f"Ops: {_counted(draft.shown['ops'])}")
    kind, source = list(models.items())[-1]
    if source["why"]:
        yield from _comment(f"Nothing can be INT8: {source['why']}")
    else:
        yield from _comment(f"INT8 {'are' if kind == 'int8' else 'will be'}: {_counted(source['int8'])}")
    for kept in source["kept"]:
        yield from _comment(f"FP32 stay: {kept['op_type']} {kept['count']} ({kept['reason']})")


def _tensor(one: Json) -> str:
    sequences = "sequences of " if one["lod_level"] else ""
    ids = f", ids below {one['rows']:,}" if one.get("rows") else ""
    return f"{one['name']} {sequences}{one['dtype']}{one['shape']}{ids}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"


def _comment(text: str) -> list[str]:
    """As lines of a comment; what TOML or an editor would stumble over becomes "?"."""
    return [f"# {line}" for line in textwrap.wrap(_clean(text), _WIDTH, subsequent_indent="  ")]


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
