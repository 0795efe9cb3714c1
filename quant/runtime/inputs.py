"""What a model is fed: its inputs by name, readers opened for it, generated samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quant.datasets.columns import Column, Ragged
from quant.datasets.data_shapes import check_taken
from quant.datasets.readers import Dataset, check_ids, open_data
from quant.errors import DataError
from quant.ir.fusion import LOOKUPS
from quant.ir.graph import Graph

__all__ = ["opened", "sample_input", "signature", "vocabularies"]

Json = dict[str, Any]


def sample_input(graph: Graph, batch: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, Column]:
    """Generated input for timing. Raises DataError when a shape is open and not given.

    Ids lie within the vocabulary. An input of sequences (LoD) is one sequence, as long as its shape says.
    """
    random = np.random.default_rng(0)
    words = vocabularies(graph)
    arrays: dict[str, Column] = {}
    for name, (shape, dtype) in signature(graph).items():
        full = tuple(shapes.get(name, (batch, *shape)))
        if any(size < 1 for size in full) or (graph.vars[name].lod_level and name not in shapes):
            raise DataError(
                f"model input {name!r} has no fixed size ({list(full)}): give --data or --input-shape {name}="
            )
        values = random.standard_normal(full, dtype=np.float32)
        ids = random.integers(0, words.get(name, 2), full)
        array = values if dtype == "float32" else ids.astype(dtype)
        arrays[name] = Ragged.of([array]) if graph.vars[name].lod_level else array
    return arrays


def signature(graph: Graph) -> dict[str, tuple[tuple[int, ...], str]]:
    """Model input -> (shape of one sample, dtype)."""
    return {name: (graph.vars[name].shape[1:], graph.vars[name].dtype) for name in graph.feeds}


def vocabularies(graph: Graph) -> dict[str, int]:
    """Model input of ids -> the number of rows of the embedding table that it indexes."""
    writers = graph.writers()
    found: dict[str, int] = {}
    for op in graph.ops:
        if op.type in LOOKUPS:
            name = op.input("Ids")
            while name in writers and writers[name].input("X"):
                name = writers[name].input("X")
            if name in graph.feeds:
                found[name] = min(graph.vars[op.input("W")].shape[0], found.get(name, 1 << 62))
    return found


def opened(
    graph: Graph, data: str, format: str | None = None, labels: str | None = None, *, scored: bool = False
) -> Dataset:
    """A data file for a model, its sizes checked against the model's ops and its ids against the vocabularies.

    What has another size than the model declares is told in a line; see `quant.datasets.data_shapes`.
    """
    dataset = open_data(Path(data), signature(graph), format, Path(labels) if labels else None, scored=scored)
    check_taken(graph, dataset)
    check_ids(dataset, vocabularies(graph))
    return dataset
