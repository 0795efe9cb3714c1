"""A manifest's entry -> a manifest of that one entry, as text: what `quant tune` found, to be measured again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quant.suites.manifest.draft import toml_string
from quant.suites.manifest.schema import Entry

__all__ = ["entry_text"]


def entry_text(entry: Entry, max_drop: float, simulation: Path | None = None) -> str:
    """Keys of docs/manifest.md, paths absolute; `max_drop` replaces the entry's own of its first metric.

    A `simulation` stands in for calibration data and algorithm, which can't make it: one tensor has an algorithm of its
    own.
    """
    lines = ["# Written by quant tune. Measure it:  quant suite --manifest FILE", "", "[[model]]"]
    lines += [f"{key} = {_value(value)}" for key, value in _keys(entry, simulation)]
    drop = {**entry.max_drop, entry.metrics[0]: max_drop}
    limits: dict[str, Any] = {"drop": drop, "floor": entry.floor, "int8_share": entry.min_int8_share}
    lines += ["", "[model.thresholds]", *(f"{key} = {_value(value)}" for key, value in limits.items())]
    if entry.speedup:
        lines.append(f"speedup = {_value(entry.speedup)}")
    return "\n".join(lines) + "\n"


def _keys(entry: Entry, simulation: Path | None) -> Iterator[tuple[str, Any]]:
    yield "name", entry.name
    yield "title", entry.title
    yield "fp32", str(entry.fp32)
    if simulation is not None:
        yield "quant", str(simulation)
    else:
        yield "calibration", str(entry.calibration)
        yield "algo", entry.algo
    yield "data", str(entry.data)
    if entry.format is not None:
        yield ("reader" if ":" in entry.format else "format"), entry.format
    if entry.labels is not None:
        yield "labels", str(entry.labels)
    yield "metric", list(entry.metrics)
    yield "precisions", list(entry.precisions)
    yield "threads", list(entry.threads)
    yield "batch_sizes", list(entry.batch_sizes)
    yield "batch_size", entry.batch_size
    if entry.outputs:
        yield "outputs", list(entry.outputs)
    yield "ops_to_quantize", list(entry.ops_to_quantize)
    yield "op_ids_to_skip", list(entry.op_ids_to_skip)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if hasattr(value, "items"):
        return f"{{ {', '.join(f'{toml_string(key)} = {_value(inner)}' for key, inner in value.items())} }}"
    return repr(value)
