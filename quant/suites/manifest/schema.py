"""`quant.toml`: users' own models, their data, metrics and limits. docs/manifest.md has every key.

Pydantic checks keys, types and ranges; what depends on several keys or on the disk is checked behind it. Nothing that a
manifest names is imported or opened. Every error is one line: `quant.toml:12: model 'x', key thresholds.drop: ...`.
"""

import os
import re
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from quant.cpu import TIERS
from quant.datasets import user_functions
from quant.datasets.readers import FORMATS, format_of
from quant.datasets.tagging import dictionary_beside
from quant.errors import DataError, OptionError, check_choice
from quant.metrics import scores
from quant.quantization.observers import ALGORITHMS, BEST, DEFAULT
from quant.results.target import Case, Row
from quant.suites.manifest.toml_lines import Location, lines_of

__all__ = ["PRECISIONS", "Entry", "Manifest", "importable", "read"]

PRECISIONS = ("fp32", "quant", "int8", "bf16")
_DROP = 0.01  # one point
_LEAST_ENGINE_GAP = 0.01  # one sample in a hundred
_DEEPEST = 100  # tables in each other; what a manifest has takes five


# --- what comes out


@dataclass(frozen=True, eq=False)
class Entry:
    """One [[model]]. Paths are absolute.

    `fp32`, `quant`, `int8`: model directories, None where not given. `format`: a key of readers.FORMATS, or a user's
    reader as "module:function", or None: as the suffix of `data` tells. `calibration` is there when neither `quant` nor
    `int8` is. `metrics`: keys of metrics.METRICS or "module:function"; the first is the model's own. `precisions`: in
    the order of PRECISIONS; "fp32" and "int8" are among them, which are compared. `max_drop`: metric -> accepted loss,
    0.01 is one point, the model's own metric first. `speedup`: tier -> the least FP32 / INT8. `threads`, `batch_sizes`:
    of the timed cases; `batch_size`: of the evaluation. `outputs`: names of tensors to compare and score, in this
    order; none: the model's outputs (quant.ir.comparable). `line`: of the manifest, where the entry begins.
    """

    name: str
    title: str
    fp32: Path | None
    quant: Path | None
    int8: Path | None
    data: Path
    format: str | None
    labels: Path | None
    calibration: Path | None
    algo: str
    metrics: tuple[str, ...]
    precisions: tuple[str, ...]
    max_drop: Mapping[str, float]
    floor: float
    speedup: Mapping[str, float]
    min_int8_share: float
    threads: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    batch_size: int
    ops_to_quantize: tuple[str, ...]
    op_ids_to_skip: tuple[int, ...]
    line: int
    outputs: tuple[str, ...] = ()

    def row(self) -> Row:
        """What the report and the gate show it as and judge it by.

        A user's threshold is one: a ratio wholly below it has failed. INT8 may differ from its simulation by what it
        may lose to FP32, and by one point at least, since a user's set may be small.
        """
        own = self.max_drop[self.metrics[0]]
        return Row(
            self.name,
            self.title,
            tuple(Case(batch, dict(self.speedup), threads=self.threads) for batch in self.batch_sizes),
            max_drop=dict(self.max_drop),
            max_engine_gap=max(own, _LEAST_ENGINE_GAP),
            floor=self.floor,
            min_int8_share=self.min_int8_share,
            min_int8_share_7bit=self.min_int8_share,
            fails_below=1.0,
        )


@dataclass(frozen=True)
class Manifest:
    """A manifest's file, and its entries in order."""

    path: Path
    models: tuple[Entry, ...]


def importable(manifest: Manifest) -> None:
    """Make the functions that a manifest names importable, if any: they may lie beside it."""
    named = [name for entry in manifest.models for name in (entry.format or "", *entry.metrics)]
    if any(map(user_functions.is_function_name, named)):
        user_functions.importable(manifest.path.parent)


# --- what a file may hold


def _listed(value: object) -> object:
    """One for a list of one."""
    return [value] if isinstance(value, (str, int)) else value


def _by_metric(value: object) -> object:
    """A bare number is the first metric's, whichever that is."""
    if isinstance(value, dict) and "" in value:
        raise ValueError("a metric has a name")
    return value if isinstance(value, dict) else {"": value}


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be printable text, not empty")
    return text


def _unlike(values: list[Any]) -> list[Any]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{_shown(value)} is there twice")
    return values


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"{_shown(text)} is no path")
    return text


def _choice(kind: str, value: str, valid: Iterable[str]) -> str:
    try:
        check_choice(kind, value, valid)
    except OptionError as error:
        raise ValueError(str(error)) from None  # which pydantic collects
    return value


def _chosen(kind: str, valid: Sequence[str]) -> AfterValidator:
    return AfterValidator(lambda value: _choice(kind, value, valid))


def _metric(value: str) -> str:
    return _function(value) if ":" in value else _choice("metric", value, scores.METRICS)


def _function(value: str) -> str:
    if not user_functions.is_function_name(value):
        raise ValueError(f"{_shown(value)} doesn't name a function: package.module:function")
    return value


_Name = Annotated[str, AfterValidator(_printable)]
_Path = Annotated[str, AfterValidator(_path)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Metric = Annotated[str, AfterValidator(_metric)]
_Counts = Annotated[
    list[Annotated[int, Field(ge=1, le=4096)]],
    BeforeValidator(_listed),
    Field(min_length=1),
    AfterValidator(_unlike),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ThresholdKeys(_Strict):
    """[model.thresholds]"""

    drop: Annotated[
        dict[str, _Share],
        BeforeValidator(_by_metric),
    ] = {}
    floor: _Share = 0.0
    int8_share: _Share = 0.0
    speedup: dict[
        Annotated[str, _chosen("tier", [tier.name for tier in TIERS])], Annotated[float, Field(gt=0, le=1000)]
    ] = {}


class ModelKeys(_Strict):
    """[[model]]"""

    name: _Name
    title: _Name | None = None
    fp32: _Path | None = None
    quant: _Path | None = None
    int8: _Path | None = None
    data: _Path
    format: Annotated[str, _chosen("data format", list(FORMATS))] | None = None
    reader: Annotated[str, AfterValidator(_function)] | None = None
    labels: _Path | None = None
    calibration: _Path | None = None
    algo: Annotated[str, _chosen("calibration algorithm", [*ALGORITHMS, BEST])] = DEFAULT
    metric: Annotated[list[_Metric], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_unlike)] | None = (
        None
    )
    precisions: (
        Annotated[
            list[Annotated[str, _chosen("precision", PRECISIONS)]],
            BeforeValidator(_listed),
            Field(min_length=1),
            AfterValidator(_unlike),
        ]
        | None
    ) = None
    threads: _Counts = [1]
    batch_sizes: _Counts = [1]
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 50
    ops_to_quantize: Annotated[list[_Name], BeforeValidator(_listed), AfterValidator(_unlike)] = []
    op_ids_to_skip: Annotated[
        list[Annotated[int, Field(ge=0, le=1 << 30)]], BeforeValidator(_listed), AfterValidator(_unlike)
    ] = []
    outputs: Annotated[list[_Name], BeforeValidator(_listed), AfterValidator(_unlike)] = []
    thresholds: ThresholdKeys = ThresholdKeys()


class FileKeys(_Strict):
    """A whole manifest."""

    model: Annotated[list[ModelKeys], Field(min_length=1)]


# --- where a key is


@dataclass(frozen=True)
class _Text:
    """A manifest's file, what it says, and the lines, counted from 1, where its keys begin."""

    path: Path
    content: Mapping[str, Any]
    lines: Mapping[Location, int]

    def line(self, location: Location) -> int:
        """Where a key begins; of one that isn't there, where what should hold it begins."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


# --- what is wrong, in words


@dataclass(frozen=True)
class _Fault:
    """Something wrong at a key: `location` as in the parsed file."""

    location: Location
    message: str


# Pydantic's type of an error -> what to say; `{was}` is the value, the rest pydantic's own context.
_WORDS = MappingProxyType(
    {
        "missing": "is required",
        "string_type": "must be a string, not {was}",
        "int_type": "must be a whole number, not {was}",
        "float_type": "must be a number, not {was}",
        "finite_number": "must be a finite number, not {was}",
        "list_type": "must be a list, not {was}",
        "dict_type": "must be a table, not {was}",
        "model_type": "must be a table, not {was}",
        "greater_than_equal": "must be at least {ge:g}, not {was}",
        "greater_than": "must be above {gt:g}, not {was}",
        "less_than_equal": "must be at most {le:g}, not {was}",
        "too_short": "must not be empty",
    }
)


def _shown(value: object) -> str:
    """A value as TOML's own would look, in a few characters."""
    if isinstance(value, bool):
        return str(value).lower()
    return reprlib.repr(value)


def _faults(error: ValidationError) -> Iterator[_Fault]:
    for found in error.errors(include_url=False):
        location = tuple(found["loc"])
        if location[-1:] == ("[key]",) or location[-2:] == ("drop", ""):
            location = location[:-1]  # pydantic's mark of a key that is wrong itself; what `_by_metric` adds
        kind, context = found["type"], found.get("ctx", {})
        if kind == "extra_forbidden":
            try:
                _choice("key", str(location[-1]), _keys_at(location[:-1]))
            except ValueError as unknown:
                yield _Fault(location, str(unknown))
        elif location == ("model",) and kind == "missing":
            yield _Fault((), "no [[model]] in it")
        elif location == ("model",) and kind in ("list_type", "too_short"):
            yield _Fault(location, "must be [[model]], one for each model")
        elif kind == "value_error":
            yield _Fault(location, str(context["error"]))
        else:
            told = _WORDS.get(kind)
            values = {**context, "was": _shown(found["input"])}
            yield _Fault(location, told.format(**values) if told else found["msg"])


def _keys_at(location: Location) -> list[str]:
    tables: dict[int, type[BaseModel]] = {0: FileKeys, 2: ModelKeys}
    return list(tables.get(len(location), ThresholdKeys).model_fields)


def _error(text: _Text, faults: Sequence[_Fault]) -> OptionError:
    """The first fault by its line, and how many others there are."""
    first, line = min(((fault, text.line(fault.location)) for fault in faults), key=lambda pair: pair[1])
    parts = []
    if first.location[:1] == ("model",) and len(first.location) > 1:
        number = int(first.location[1])
        name = text.content["model"][number]
        name = name.get("name") if isinstance(name, dict) else None
        parts.append(f"model {_shown(name)}" if isinstance(name, str) else f"model {number + 1}")
    unknown = first.message.startswith("unknown key ")
    keys = [str(key) for key in first.location[2:] if isinstance(key, str)]
    if keys := keys[: len(keys) - unknown]:
        parts.append(f"key {'.'.join(keys)}")
    others = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
    told = " ".join(f"{', '.join(parts)}: {first.message}{others}".removeprefix(": ").split())
    return OptionError(f"{text.path}:{line}: {told}")


# --- reading


def read(path: Path) -> Manifest:
    """The manifest in a file. Raises DataError when it can't be read, OptionError for what it says wrong."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    try:
        written = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8") from error
    content = _parsed(path, written)
    text = _Text(path, content, lines_of(written))
    try:
        keys = FileKeys.model_validate(text.content)
    except ValidationError as error:
        raise _error(text, list(_faults(error))) from None
    root = path.absolute().parent
    whole = [_Whole(root, ("model", number), model) for number, model in enumerate(keys.model)]
    faults = [*_namesakes(keys.model), *(fault for one in whole for fault in one.faults())]
    if faults:
        raise _error(text, faults)
    return Manifest(path.absolute(), tuple(one.entry(text.line(one.location)) for one in whole))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(text)
        if _depth(content) > _DEEPEST:  # by dotted keys, which don't recurse there
            raise RecursionError
    except RecursionError:
        raise OptionError(f"{path}: nested too deeply") from None
    except ValueError as error:  # tomllib's own, and what it lets pass: numbers of thousands of digits
        told, _, place = str(error).partition(" (at ")
        number = ""
        if line := re.match(r"line (\d+)", place):
            number = f"{line[1]}:"
        elif place:
            number, told = f"{text.rstrip().count(chr(10)) + 1}:", f"{told} before the end"
        raise OptionError(f"{path}:{number} {told}") from None
    return content


def _depth(content: Any) -> int:
    """How many tables and lists lie in each other."""
    depth, level = 0, [content]
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return depth


def _namesakes(models: Sequence[ModelKeys]) -> Iterator[_Fault]:
    names = [model.name for model in models]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield _Fault(("model", number, "name"), f"model {names.index(name) + 1} has this name too")


@dataclass(frozen=True)
class _Whole:
    """A model whose keys are right one by one: what is wrong with all of them together, and the entry."""

    root: Path
    location: Location
    keys: ModelKeys

    @property
    def given(self) -> set[str]:
        return self.keys.model_fields_set

    def faults(self) -> Iterator[_Fault]:
        for parts, message in (*self._paths(), *self._format(), *self._sources(), *self._thresholds()):
            yield _Fault((*self.location, *parts), message)

    def _path(self, text: str | None) -> Path | None:
        return None if text is None else Path(os.path.abspath(self.root / text))

    def _paths(self) -> Iterator[tuple[Location, str]]:
        for key in ("fp32", "quant", "int8"):
            place = self._path(getattr(self.keys, key))
            if place is not None and not os.path.isdir(place):
                yield (key,), f"{place}: {'not a directory' if os.path.exists(place) else 'no such directory'}"
        for key in ("data", "labels", "calibration"):
            place = self._path(getattr(self.keys, key))
            if place is not None and not os.path.exists(place):
                yield (key,), f"{place}: no such file"
            elif place is not None and os.path.isdir(place) and (self.keys.reader is None or key == "labels"):
                yield (key,), f"{place}: a directory; only a reader of one's own (key reader) reads those"
        data, calibration = self._path(self.keys.data), self._path(self.keys.calibration)
        both = [place for place in (data, calibration) if place and os.path.exists(place)]
        if len(both) == 2 and os.path.samefile(*both):
            yield ("calibration",), "is the test data: a model isn't tested on what it was calibrated with"

    def _format(self) -> Iterator[tuple[Location, str]]:
        keys = self.keys
        if keys.reader is not None:
            for other in ("format", "labels"):
                if other in self.given:
                    yield (other,), "not together with reader, which gives inputs and labels"
            if keys.metric is None:
                yield ("reader",), "data of a reader's own has no usual metric: key metric is required"
            return
        for key in ("data", "calibration"):
            path = getattr(keys, key)
            try:
                name = format_of(Path(path), keys.format) if path is not None else None
            except DataError:
                suffix = _shown(Path(path).suffix)
                yield (key,), f"suffix {suffix} tells no data format: key format or reader is required"
                continue
            if key == "data" and keys.labels is not None and name != "pairs":
                yield ("labels",), f"format {name} carries its labels itself"

    def _available(self) -> tuple[str, ...]:
        """The precisions that are given or can be made."""
        keys = self.keys
        made = keys.fp32 is not None and keys.calibration is not None
        quant = keys.quant is not None or (keys.int8 is None and made)
        fp32 = keys.fp32 is not None or keys.quant is not None  # a simulation without its quantizers is FP32
        have = {"fp32": fp32, "quant": quant, "int8": quant or keys.int8 is not None, "bf16": fp32}
        return tuple(name for name in PRECISIONS if have[name])

    def _sources(self) -> Iterator[tuple[Location, str]]:
        keys, available = self.keys, self._available()
        if not (keys.fp32 or keys.quant or keys.int8):
            yield (), "no model directory: one of the keys fp32, quant, int8 is required"
        elif "int8" not in available:
            yield ("fp32",), "nothing to make INT8 from: one of the keys calibration, quant, int8 is required"
        elif "fp32" not in available:
            yield ("int8",), "nothing to compare INT8 with: one of the keys fp32, quant is required"
        elif keys.precisions is not None:
            for name in keys.precisions:
                if name not in available:
                    yield ("precisions",), f"{name!r} can't be had of what is given: {', '.join(available)}"
            if not {"fp32", "int8"} <= set(keys.precisions):
                yield ("precisions",), "'fp32' and 'int8' must be among them: they are compared"
        if keys.int8 is not None:
            for key in ("ops_to_quantize", "op_ids_to_skip", "algo"):
                if key in self.given:
                    yield (key,), "has no effect beside key int8: that model is measured as it is"
        elif keys.quant is not None and "algo" in self.given:
            yield ("algo",), "has no effect beside key quant: that model is calibrated already"

    def _metrics(self) -> tuple[str, ...]:
        if self.keys.metric is not None:
            return tuple(self.keys.metric)
        return scores.USUAL[format_of(Path(self.keys.data), self.keys.format)][:1]

    def _thresholds(self) -> Iterator[tuple[Location, str]]:
        if self.keys.reader is not None and self.keys.metric is None:
            return
        try:
            names = self._metrics()
        except DataError:
            return  # told already
        yield from self._tags(names)
        for name in self.keys.thresholds.drop:
            if name and name not in names:
                yield ("thresholds", "drop", name), f"metric {name!r} isn't one of key metric: {', '.join(names)}"

    def _tags(self, names: Sequence[str]) -> Iterator[tuple[Location, str]]:
        """Whether the tags of data that is scored by words will be told; see quant.datasets.tagging.check_tags."""
        data = self._path(self.keys.data)
        words = [name for name in names if name in scores.WORDS]
        if not words or data is None or not data.exists():
            return
        dictionary = dictionary_beside(data)
        own = self.keys.reader is not None
        if not dictionary.is_file() and (own or format_of(data, self.keys.format) not in ("lac", "lac_bin")):
            yield ("metric",), f"{words[0]!r} scores words, and {dictionary}, which names the tags, isn't there"

    def entry(self, line: int) -> Entry:
        keys, names = self.keys, self._metrics()
        data = self._path(keys.data)
        assert data is not None
        own, *others = names
        drop = keys.thresholds.drop
        max_drop = {own: drop.get(own, drop.get("", _DROP)), **{name: drop[name] for name in others if name in drop}}
        wanted = self._default_precisions() if keys.precisions is None else keys.precisions
        return Entry(
            name=keys.name,
            title=keys.title or keys.name,
            fp32=self._path(keys.fp32),
            quant=self._path(keys.quant),
            int8=self._path(keys.int8),
            data=data,
            format=keys.reader or keys.format,
            labels=self._path(keys.labels),
            calibration=self._path(keys.calibration),
            algo=keys.algo,
            metrics=names,
            precisions=tuple(name for name in PRECISIONS if name in wanted),
            max_drop=MappingProxyType(max_drop),
            floor=keys.thresholds.floor,
            speedup=MappingProxyType(keys.thresholds.speedup),
            min_int8_share=keys.thresholds.int8_share,
            threads=tuple(keys.threads),
            batch_sizes=tuple(keys.batch_sizes),
            batch_size=keys.batch_size,
            ops_to_quantize=tuple(keys.ops_to_quantize),
            op_ids_to_skip=tuple(keys.op_ids_to_skip),
            line=line,
            outputs=tuple(keys.outputs),
        )

    def _default_precisions(self) -> tuple[str, ...]:
        """bfloat16 isn't what is judged, and only some CPUs have it: it is measured when it is named."""
        return tuple(name for name in self._available() if name != "bf16")
