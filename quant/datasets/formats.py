"""The formats of Paddle's old INT8 demos, samples of unequal length. One format a function.

Records and lines are counted from 1 in messages. Writers raise ValueError for what their reader would refuse.
"""

import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from quant.datasets.columns import Array, Dataset, Padded, Ragged, Signature, offsets_of, staged
from quant.errors import DataError

__all__ = [
    "half_width",
    "labels_beside",
    "read_handwriting",
    "read_ids",
    "read_lac",
    "read_lac_bin",
    "read_pairs",
    "write_handwriting",
    "write_lac",
    "write_lac_bin",
    "write_pairs",
    "write_q2b",
]

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # int() itself also takes 1_0 and other scripts' digits
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SEPARATORS = re.compile(r"[\x02\t\n\r]")
_HALF_WIDTH = {0x3000: 0x20} | {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


# --- sentence pairs


def read_pairs(path: Path, signature: Signature, labels: Path | None = None) -> Dataset:
    """ERNIE's `1.8w.bs1`: one sample a line, `shape:values` for each model input in order, separated by `;`.

    Sources: paddle/fluid/inference/tests/api/analyzer_ernie_tester.h, test/quantization/quant2_int8_nlp_comparison.py.
    A shape is `1 S ...`: a batch of one, then the length, the same in all fields of a line. Columns are Padded with
    samples as the model declares them ([S, 1] or [S]). Labels, one integer a line, come from the file `labels`.
    """
    for name, (shape, dtype) in signature.items():
        if dtype not in ("int64", "float32"):
            raise DataError(f"{path}: holds int64 and float32, but the model's input {name!r} is {dtype}")
        if not shape or any(size < 0 for size in shape[1:]):
            raise DataError(f"{path}: holds sequences, but the model's input {name!r} reads samples of {list(shape)}")
    columns: dict[str, list[Array]] = {name: [] for name in signature}
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        try:
            for name, values in zip(columns, _pair(line, signature), strict=True):
                columns[name].append(values)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: {error}") from error
    inputs = {name: Padded(Ragged.of(sequences)) for name, sequences in columns.items()}
    return Dataset(path, inputs, None if labels is None else _read_labels(labels, path, len(lines)))


def labels_beside(path: Path) -> Path | None:
    """The labels of a file of pairs: the file `NAME.label` or `label.xnli.dev` beside it, if there is one."""
    beside = (path.with_name(f"{path.name}.label"), path.with_name("label.xnli.dev"))
    return next((file for file in beside if file.is_file()), None)


def _pair(line: str, signature: Signature) -> list[Array]:
    """One line -> an array [S, ...] for each input."""
    fields = line.split(";")
    if not fields[-1].strip():
        fields.pop()
    if len(fields) != len(signature):
        raise ValueError(f"{len(fields)} fields, but the model has {len(signature)} inputs {list(signature)}")
    arrays = []
    for number, (text, (shape, dtype)) in enumerate(zip(fields, signature.values(), strict=True), 1):
        try:
            arrays.append(_field(text, shape, dtype))
        except ValueError as error:
            raise ValueError(f"field {number}: {error}") from error
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"its fields differ in length: {[len(array) for array in arrays]}")
    return arrays


def _field(text: str, sample: tuple[int, ...], dtype: str) -> Array:
    """`1 S ...:values` -> [S, ...] with what follows S as in `sample`, where an inner dimension of 1 may come or go."""
    head, colon, tail = text.partition(":")
    if not colon:
        raise ValueError("no ':' between shape and values")
    shape: list[int] = _numbers(head, "int64").tolist()
    if len(shape) < 2 or shape[0] != 1:
        raise ValueError(f"the shape is {shape}; it must begin with a batch of 1 and a length")
    if min(shape) < 1:
        raise ValueError(f"the shape is {shape}; lengths must be above 0")
    values = _numbers(tail, dtype)
    if len(values) != math.prod(shape):
        raise ValueError(f"the shape {shape} needs {math.prod(shape)} values, there are {len(values)}")
    if math.prod(shape[2:]) != math.prod(sample[1:]) or sample[0] not in (-1, shape[1]):
        raise ValueError(f"holds a sample of {shape[1:]}, but the model reads {list(sample)}")
    return values.reshape(shape[1], *sample[1:])


def _numbers(text: str, dtype: str) -> Array:
    """Numbers separated by blanks -> [count] of int64 or float32, all finite."""
    tokens = text.split()
    pattern = _INTEGER if dtype == "int64" else _REAL
    try:
        with np.errstate(over="ignore"):  # becomes Inf, and is told below
            values = np.array(tokens, dtype)
        fine = text.isascii() and "_" not in text
    except (ValueError, OverflowError):
        fine = False
    if not fine:
        bad = next((token for token in tokens if not pattern.fullmatch(token)), text)
        raise ValueError(f"{bad[:40]!r} is not a number of type {dtype}")
    if not np.isfinite(values).all():
        raise ValueError("NaN or Inf in the values")
    return values


def _read_labels(path: Path, data: Path, count: int) -> Array:
    """One integer a line -> int64 [count]."""
    labels = [_integer(path, number, line.strip(), "label") for number, line in enumerate(_lines(path), 1)]
    if len(labels) != count:
        raise DataError(f"{path}: {len(labels)} labels, but {data} has {count} samples")
    return np.array(labels, np.int64)


def write_pairs(path: Path, samples: Iterable[Sequence[ArrayLike]], labels: Iterable[int]) -> None:
    """Write what `read_pairs` reads: per sample a sequence [S] or [S, 1] for each input, written with shape `1 S 1`.

    The labels go to `NAME.label` beside it. Both files are whole or absent, and the data never without its labels.
    """
    with staged(path) as file, staged(path.with_name(f"{path.name}.label")) as label_file:
        for fields, label in zip(samples, labels, strict=True):
            arrays = [np.asarray(field).ravel() for field in fields]
            if len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
                raise ValueError(f"fields of lengths {[len(array) for array in arrays]}: one above 0 is needed")
            line = ";".join(f"1 {len(array)} 1:{' '.join(array.astype(str))}" for array in arrays)
            file.write(f"{line}\n".encode())
            label_file.write(f"{int(label)}\n".encode())


# --- LAC: Chinese text, one tag a character


def read_lac(path: Path, signature: Signature) -> Dataset:
    r"""Baidu LAC's TSV: a header, then `characters <TAB> tags`, both joined by \x02, with its dictionaries beside it.

    Source: PaddleNLP/lexical_analysis/reader.py in PaddlePaddle/models. `word.dic` and `tag.dic` are `id <TAB> name`
    (tags may share an id: in Baidu's own file LOC-B and ns-B do), `q2b.dic` (optional) is `from <TAB> to`. Unknown
    characters become OOV; an unknown tag is an error, where LAC silently takes O. Sentences are not cut at 64
    characters, as LAC's training reader does. Input and labels: Ragged int64.
    """
    name, shape = _id_input(path, signature)
    words = read_ids(path.with_name("word.dic"), unique=True)
    tags = read_ids(path.with_name("tag.dic"), unique=False)
    if "OOV" not in words:
        raise DataError(f"{path.with_name('word.dic')}: has no entry 'OOV', the id of unknown characters")
    narrow = _read_q2b(path.with_name("q2b.dic"))
    header, *lines = _lines(path)
    if header != "text_a\tlabel":
        raise DataError(f"{path}: line 1: the header is {header[:40]!r}, not 'text_a\\tlabel'")
    if not lines:
        raise DataError(f"{path}: holds no sentences")
    ids: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            characters, named = _sentence(line)
            labels += [tags[tag] for tag in named]
        except ValueError as error:
            raise DataError(f"{path}: record {number} (line {number + 1}): {error}") from error
        except KeyError as error:
            raise DataError(f"{path}: record {number} (line {number + 1}): no tag {error} in tag.dic") from error
        ids += [words.get(narrow.get(character, character), words["OOV"]) for character in characters]
        lengths.append(len(characters))
    offsets = offsets_of(lengths)
    column = Ragged(np.array(ids, np.int64).reshape(-1, *shape), offsets)
    return Dataset(path, {name: column}, Ragged(np.array(labels, np.int64), offsets))


def _sentence(line: str) -> tuple[list[str], list[str]]:
    """One line -> characters and tags."""
    fields = line.split("\t")
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} fields instead of characters and tags")
    if not fields[0]:
        raise ValueError("an empty sentence")
    characters, tags = fields[0].split("\x02"), fields[1].split("\x02")
    if "" in characters:
        raise ValueError(f"character {characters.index('') + 1} is empty")
    if len(characters) != len(tags):
        raise ValueError(f"{len(characters)} characters, but {len(tags)} tags")
    return characters, tags


def read_ids(path: Path, *, unique: bool) -> dict[str, int]:
    """A dictionary `id <TAB> name` -> name to id; `unique`: no two names share an id."""
    ids: dict[str, int] = {}
    seen = set()
    for number, (text, name) in enumerate(_entries(path), 1):
        value = _integer(path, number, text, "id")
        if value < 0:
            raise DataError(f"{path}: line {number}: the id {value} is negative")
        if name in ids:
            raise DataError(f"{path}: line {number}: {name!r} occurs twice")
        if unique and value in seen:
            raise DataError(f"{path}: line {number}: the id {value} occurs twice")
        ids[name] = value
        seen.add(value)
    return ids


def _read_q2b(path: Path) -> dict[str, str]:
    """`q2b.dic` -> character to its replacement; empty when there is no file. Baidu's own repeats some lines whole."""
    mapping: dict[str, str] = {}
    for number, (char, narrow) in enumerate(_entries(path) if path.is_file() else (), 1):
        if mapping.setdefault(char, narrow) != narrow:
            raise DataError(f"{path}: line {number}: {char!r} occurs twice, with different replacements")
    return mapping


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a dictionary, cut at the first tab."""
    for number, line in enumerate(_lines(path), 1):
        first, tab, second = line.partition("\t")
        if not tab:
            raise DataError(f"{path}: line {number}: one field instead of two separated by a tab")
        yield first, second


def write_lac(path: Path, sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> None:
    """Write (characters, tags) as `read_lac` reads them, without the dictionaries."""
    with staged(path) as file:
        file.write(b"text_a\tlabel\n")
        for characters, tags in sentences:
            if len(characters) != len(tags) or not characters:
                raise ValueError(f"{len(characters)} characters and {len(tags)} tags: one number above 0 is needed")
            if bad := [token for token in (*characters, *tags) if not token or _SEPARATORS.search(token)]:
                raise ValueError(f"{bad[0]!r} is empty or holds a separator of the format")
            line = "\t".join(("\x02".join(characters), "\x02".join(tags)))
            file.write(f"{line}\n".encode())


def half_width(char: str) -> str:
    """Full-width ASCII (U+FF01..U+FF5E) and the ideographic space (U+3000) -> ASCII; anything else is kept."""
    return char.translate(_HALF_WIDTH)


def write_q2b(path: Path) -> None:
    """Write `half_width` as a q2b.dic."""
    with staged(path) as file:
        file.write("".join(f"{chr(wide)}\t{chr(narrow)}\n" for wide, narrow in _HALF_WIDTH.items()).encode())


def read_lac_bin(path: Path, signature: Signature) -> Dataset:
    """The seeds' `GRU_eval_data`: sentences N | words W | lengths [N] | words [W] | labels [W], all int64, mapped.

    Source: paddle/fluid/inference/tests/api/analyzer_lexical_analysis_gru_tester.cc (SetInput). Little endian.
    """
    name, shape = _id_input(path, signature)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    if len(head) < 16:
        raise DataError(f"{path}: truncated: {size} bytes, not even the two counts")
    count, total = struct.unpack("<qq", head)
    if count < 1 or total < 1:
        raise DataError(f"{path}: not LAC data: says {count} sentences of {total} words")
    needed = 8 * (2 + count + 2 * total)
    if size != needed:
        raise DataError(
            f"{path}: truncated or a wrong count: {count} sentences of {total} words need {needed} bytes, it has {size}"
        )
    content = np.memmap(path, "<i8", "r")
    lengths, words, labels = np.split(content[2:], [count, count + total])
    if (bad := np.flatnonzero((lengths < 1) | (lengths > total))).size:
        raise DataError(f"{path}: record {bad[0] + 1}: a sentence of {lengths[bad[0]]} words")
    offsets = offsets_of(lengths)
    if offsets[-1] != total:
        raise DataError(f"{path}: its lengths sum to {offsets[-1]}, but it says {total} words")
    return Dataset(path, {name: Ragged(words.reshape(-1, *shape), offsets)}, Ragged(labels, offsets))


def write_lac_bin(path: Path, sentences: Iterable[tuple[ArrayLike, ArrayLike]]) -> None:
    """Write (word ids [T], labels [T]) as `read_lac_bin` reads them."""
    pairs = [(np.asarray(words, "<i8").ravel(), np.asarray(labels, "<i8").ravel()) for words, labels in sentences]
    lengths = [len(words) for words, _ in pairs]
    if not pairs or 0 in lengths or any(len(words) != len(labels) for words, labels in pairs):
        raise ValueError("sentences need words, and as many labels")
    head = np.array([len(pairs), sum(lengths), *lengths], "<i8")
    with staged(path) as file:
        file.write(np.concatenate([head, *(words for words, _ in pairs), *(labels for _, labels in pairs)]).data)


def _id_input(path: Path, signature: Signature) -> tuple[str, tuple[int, ...]]:
    """The one input that reads ids: its name, and the shape of one id ([] or [1])."""
    name, shape = _only_input(path, signature, "int64")
    if shape not in ((), (1,)):
        raise DataError(f"{path}: holds sequences of ids ([] or [1]), but the model reads {list(shape)}")
    return name, shape


def _only_input(path: Path, signature: Signature, dtype: str) -> tuple[str, tuple[int, ...]]:
    if len(signature) != 1:
        raise DataError(f"{path}: this format feeds one input, but the model has {sorted(signature)}")
    [(name, (shape, reads))] = signature.items()
    if reads != dtype:
        raise DataError(f"{path}: this format holds {dtype}, but the model's input {name!r} is {reads}")
    return name, shape


# --- handwriting


def read_handwriting(path: Path, signature: Signature) -> Dataset:
    """The seeds' `quant_lstm_input_data`: records of int32 head | int32 labels | float32 features [T, width].

    Source: test/quantization/quant2_int8_lstm_model.py. The head's low 16 bits count the labels, its high 16 bits are
    T. The width (8 in the seeds) is not in the file; the model's input tells it. Input: Ragged float32 [T, width];
    labels: Ragged int64.
    """
    name, shape = _only_input(path, signature, "float32")
    if len(shape) != 1 or shape[0] < 1:
        raise DataError(f"{path}: holds sequences of features, but the model reads {list(shape)}")
    [width] = shape
    words = np.frombuffer(_content(path), "u1")
    spare = len(words) % 4
    words = words[: len(words) - spare].view("<u4")
    try:
        records = _records(words, width, spare)
    except ValueError as error:
        fits = next((other for other in range(1, 257) if not spare and _fits(words, other)), None)
        hint = f" (features of {fits} values would fit, but the model reads {width})" if fits else ""
        raise DataError(f"{path}: {error}{hint}") from error
    labels = Ragged.of([words[at : at + count].view("<i4").astype(np.int64) for at, count, _ in records])
    features = Ragged.of(
        [words[at + count :][: steps * width].view("<f4").reshape(steps, width) for at, count, steps in records]
    )
    if (bad := np.flatnonzero(~np.isfinite(features.values).all(axis=1))).size:
        raise DataError(f"{path}: record {features.record(bad[0])}: NaN or Inf in its features")
    return Dataset(path, {name: features}, labels)


def _records(words: Array, width: int, spare: int = 0) -> list[tuple[int, int, int]]:
    """32-bit words -> for each record the place of its first label, the number of labels, and of steps.

    `spare`: bytes behind the last whole word, of a file that was cut off.
    """
    records: list[tuple[int, int, int]] = []
    place = 0
    while place < len(words):
        head = int(words[place])
        count, steps = head & 0xFFFF, head >> 16
        if not count or not steps:
            raise ValueError(f"record {len(records) + 1}: {count} labels and a sequence of length {steps}")
        records.append((place + 1, count, steps))
        place += 1 + count + steps * width
        if place > len(words):
            raise ValueError(
                f"record {len(records)}: truncated: {count} labels and {steps} steps of {width} values need "
                f"{4 * (place - len(words)) - spare} bytes more"
            )
    if spare:
        raise ValueError(f"record {len(records) + 1}: truncated after {spare} bytes")
    return records


def _fits(words: Array, width: int) -> bool:
    try:
        _records(words, width)
    except ValueError:
        return False
    return True


def write_handwriting(path: Path, records: Iterable[tuple[ArrayLike, ArrayLike]]) -> None:
    """Write (features [T, width], labels) as `read_handwriting` reads them."""
    with staged(path) as file:
        for features, labels in records:
            steps, marks = np.ascontiguousarray(features, "<f4"), np.asarray(labels, "<i4").ravel()
            if steps.ndim != 2 or not 0 < len(steps) < 1 << 16 or not 0 < len(marks) < 1 << 16:
                raise ValueError(f"features {list(steps.shape)}, {len(marks)} labels: 1 to 65,535 of both are needed")
            file.write(struct.pack("<I", len(steps) << 16 | len(marks)) + marks.tobytes() + steps.tobytes())


# --- files


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not (content := path.read_bytes()):
        raise DataError(f"{path}: empty")
    return content


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, ended by LF or CR LF only: str.splitlines would also cut at characters of the text."""
    content = _content(path)
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _integer(path: Path, number: int, text: str, what: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise DataError(f"{path}: line {number}: the {what} {text[:40]!r} is not an integer")
    return int(text)
