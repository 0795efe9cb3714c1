"""Labelled data looked over before anything is measured on it, as a job: labels, what occurs twice, what is shared."""

from pathlib import Path
from typing import Any

import numpy as np

from quant.datasets.columns import Column, values_of
from quant.datasets.readers import check_labels
from quant.datasets.remarks import calibrating, digests, remarks
from quant.errors import DataError
from quant.ir.comparable import sized_by_values
from quant.ir.graph import Graph, load_dir
from quant.ir.passes import drop_judges
from quant.process.isolate import report_progress
from quant.runtime.inputs import opened

__all__ = ["check_data"]


def check_data(
    model: str, data: str, *, calibration: str | None = None, format: str | None = None, labels: str | None = None
) -> dict[str, Any]:
    """Look over all test data for a model, FP32 or any other; `calibration` is in the same format.

    Raises DataError for a label or an id out of range, test data without labels, calibration data of zeros, and a
    sample of them that is also in the test data. Else what there is to say, as JSON: samples; classes, that occur, and
    of_classes, that the model tells apart, None where labels are no classes or the model doesn't show how many;
    most_frequent: label and share; repeated: samples that an earlier one equals; calibration: its samples, or None;
    remarks: lines on what is odd about the inputs (quant.datasets.remarks); summary: a line.
    """
    graph = drop_judges(load_dir(Path(model)))
    tested = opened(graph, data, format, labels, scored=True)
    classes = _classes(graph)
    found = check_labels(tested, 1 << 31 if classes is None else classes)
    given = None if calibration is None else opened(graph, calibration, format)
    odd = [*(calibrating(given) if given else ()), *remarks(tested)]
    total = len(tested) + (len(given) if given else 0)
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests(tested)):
        first.setdefault(digest, number)
        report_progress("check data", number, total)
    for number, digest in enumerate(digests(given) if given else ()):
        if digest in first:
            raise DataError(
                f"{calibration}: sample {number} is also in {data}, sample {first[digest]}: a model isn't tested on "
                f"what it was calibrated with"
            )
        report_progress("check data", len(tested) + number, total)
    told = {
        "samples": len(tested),
        **_about(found, classes),
        "repeated": len(tested) - len(first),
        "calibration": None if given is None else len(given),
        "remarks": odd,
    }
    return {**told, "summary": _summary(told)}


def _classes(graph: Graph) -> int | None:
    """How many classes a model tells apart: the width of its first output of scores, where its program says it."""
    sized = sized_by_values(graph)
    for name in graph.fetches:
        shape, dtype = graph.vars[name].shape, graph.vars[name].dtype
        if dtype == "float32" and len(shape) == 2 and name not in sized:
            return int(shape[1]) if shape[1] > 0 else None
    return None


def _about(labels: Column, classes: int | None) -> dict[str, Any]:
    values = values_of(labels)
    if values.dtype.kind not in "iu" or values.ndim > 1:
        return {"classes": None, "of_classes": None, "most_frequent": None}
    kinds, counts = np.unique(values, return_counts=True)
    most = int(counts.argmax())
    share = float(counts[most] / counts.sum())
    return {
        "classes": len(kinds),
        "of_classes": classes,
        "most_frequent": {"label": int(kinds[most]), "share": share},
    }


def _summary(told: dict[str, Any]) -> str:
    parts = [f"{told['samples']:,} samples"]
    if most := told["most_frequent"]:
        among = "" if told["of_classes"] is None else f" of {told['of_classes']:,}"
        parts.append(f"{told['classes']:,}{among} classes, label {most['label']} has {most['share']:.1%}")
    if told["repeated"]:
        parts.append(f"{told['repeated']:,} equal an earlier one")
    if told["calibration"] is not None:
        parts.append(f"none among the {told['calibration']:,} of the calibration data")
    return "; ".join(parts)
