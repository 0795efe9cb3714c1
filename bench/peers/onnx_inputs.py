"""How ONNX graphs get what Paddle's models read, and give it back: sequences padded, and decoded behind the graph."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.recurrent import LENGTHS, Decoder
from quant.datasets.columns import Array, Column, Padded, Ragged, values_of

__all__ = ["arrays_of", "copy_decoder", "decoder_in", "outputs_of"]

_DECODER = "decoder.npz"  # as recurrent.export_recurrent writes it


def arrays_of(inputs: Mapping[str, Column]) -> dict[str, Array]:
    """Dense inputs as they are. Sequences as time x batch [longest, N, ...], which recurrent ops read, and lengths."""
    arrays: dict[str, Array] = {}
    for name, column in inputs.items():
        if isinstance(column, Ragged):
            arrays[name] = np.ascontiguousarray(Padded(column)[0 : len(column)].swapaxes(0, 1))
            arrays[LENGTHS] = column.lengths.astype(np.int32)
        else:
            arrays[name] = np.require(values_of(column), requirements=("C", "W"))  # OpenVINO takes no mapped file
    return arrays


def copy_decoder(source: Path, target: Path) -> None:
    """A model made of an exported one is decoded like that."""
    if (source / _DECODER).is_file():
        shutil.copyfile(source / _DECODER, target / _DECODER)


def decoder_in(directory: Path) -> Decoder | None:
    """What follows an exported graph of sequences; None for other graphs."""
    file = directory / _DECODER
    return Decoder.read(file) if file.is_file() else None


def outputs_of(
    decoder: Decoder | None, names: Sequence[str], found: Sequence[NDArray[Any]], arrays: Mapping[str, Array]
) -> list[Column]:
    """A graph's outputs -> those of the FP32 model."""
    if decoder is None:
        return [np.array(values) for values in found]
    return decoder(dict(zip(names, found, strict=True)), arrays[LENGTHS])
