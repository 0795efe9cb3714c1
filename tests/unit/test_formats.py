"""Formats of samples of unequal length read what was written and refuse the rest, with the record."""

import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.datasets.columns import Ragged
from quant.datasets.formats import half_width, write_handwriting, write_lac, write_lac_bin, write_pairs, write_q2b
from quant.datasets.readers import FORMATS, by_length, head, open_data
from quant.errors import DataError
from tests.columns import sequences

PAIR = {"ids": ((-1, 1), "int64"), "mask": ((-1,), "float32")}
IDS = {"words": ((1,), "int64")}
FEATURES = {"x": ((8,), "float32")}

int64s = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
characters = st.text(st.characters(exclude_characters="\x02\t\n\r", exclude_categories=["Cs"]), min_size=1, max_size=2)


# --- round trips


def folder() -> TemporaryDirectory[str]:
    """Hypothesis runs a test many times, so a fixture's directory won't do."""
    return TemporaryDirectory()


samples = st.integers(1, 6).flatmap(
    lambda size: st.tuples(
        st.lists(int64s, min_size=size, max_size=size), st.lists(finite, min_size=size, max_size=size), int64s
    )
)


@settings(deadline=None)
@given(rows=st.lists(samples, min_size=1, max_size=5))
def test_pairs_round_trip(rows: list[tuple[list[int], list[float], int]]) -> None:
    rows = [(ids, mask, label % 10**17) for ids, mask, label in rows]
    with folder() as root:
        path = Path(root) / "a.bs1"
        write_pairs(path, [(ids, np.array(mask, np.float32)) for ids, mask, _ in rows], [label for *_, label in rows])
        assert sorted(file.name for file in Path(root).iterdir()) == ["a.bs1", "a.bs1.label"]
        data = open_data(path, PAIR)
    assert data.inputs["ids"].ragged.values.dtype == np.int64
    assert data.inputs["mask"].ragged.values.dtype == np.float32
    assert sequences(data.inputs["ids"].ragged) == [[[value] for value in ids] for ids, *_ in rows]
    assert sequences(data.inputs["mask"].ragged) == [mask for _, mask, _ in rows]
    assert data.labels.dtype == np.int64 and data.labels.tolist() == [label for *_, label in rows]
    assert data.inputs["ids"][:].shape == (len(rows), max(len(ids) for ids, *_ in rows), 1)


sentences = st.lists(st.lists(st.tuples(characters, characters), min_size=1, max_size=5), min_size=1, max_size=5)


@settings(deadline=None)
@given(rows=sentences, inner=st.sampled_from([(), (1,)]))
def test_lac_round_trips(rows: list[list[tuple[str, str]]], inner: tuple[int, ...]) -> None:
    known = {char: number for number, char in enumerate(sorted({char for row in rows for char, _ in row} | {"OOV"}))}
    tags = {tag: number for number, tag in enumerate(sorted({tag for row in rows for _, tag in row}))}
    with folder() as root:
        for name, ids in (("word.dic", known), ("tag.dic", tags)):
            text = "".join(f"{number}\t{key}\n" for key, number in ids.items())
            Path(root, name).write_bytes(text.encode())
        write_lac(Path(root, "a.tsv"), [tuple(zip(*row, strict=True)) for row in rows])
        data = open_data(Path(root, "a.tsv"), {"words": (inner, "int64")})
    assert data.inputs["words"].values.shape[1:] == inner and data.inputs["words"].values.dtype == np.int64
    assert [np.ravel(s).tolist() for s in sequences(data.inputs["words"])] == [[known[c] for c, _ in r] for r in rows]
    assert sequences(data.labels) == [[tags[tag] for _, tag in row] for row in rows]


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.tuples(int64s, int64s), min_size=1, max_size=5), min_size=1, max_size=5))
def test_lac_binaries_round_trip(rows: list[list[tuple[int, int]]]) -> None:
    with folder() as root:
        path = Path(root, "GRU_eval_data")
        write_lac_bin(path, [tuple(zip(*row, strict=True)) for row in rows])
        data = open_data(path, IDS, "lac_bin")
        assert sequences(data.inputs["words"]) == [[[word] for word, _ in row] for row in rows]
        assert sequences(data.labels) == [[label for _, label in row] for row in rows]


steps = st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=5)
records = st.tuples(steps, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4))


@settings(deadline=None)
@given(rows=st.lists(records, min_size=1, max_size=5))
def test_handwriting_round_trips(rows: list[tuple[list[list[float]], list[int]]]) -> None:
    with folder() as root:
        path = Path(root, "quant_lstm_input_data")
        write_handwriting(path, rows)
        data = open_data(path, {"x": ((3,), "float32")}, "handwriting")
    assert data.inputs["x"].values.dtype == np.float32 and data.labels.values.dtype == np.int64
    assert sequences(data.inputs["x"]) == [features for features, _ in rows]
    assert sequences(data.labels) == [labels for _, labels in rows]


def test_long_records_use_all_16_bits(tmp_path: Path) -> None:
    write_handwriting(tmp_path / "a", [(np.ones((65_535, 1), np.float32), np.arange(65_535)), (np.ones((1, 1)), [3])])
    data = open_data(tmp_path / "a", {"x": ((1,), "float32")}, "handwriting")
    assert data.inputs["x"].lengths.tolist() == data.labels.lengths.tolist() == [65_535, 1]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_pairs(path, [([1], [2]), ([1], [2, 3])], [0, 0]),
        lambda path: write_pairs(path, [([], [])], [0]),
        lambda path: write_pairs(path, [([1], [2])], [0, 1]),
        lambda path: write_lac(path, [(["a"], ["b"]), (["a"], [])]),
        lambda path: write_lac(path, [([], [])]),
        lambda path: write_lac(path, [(["a", ""], ["b", "b"])]),
        lambda path: write_lac(path, [(["a\x02"], ["b"])]),
        lambda path: write_lac(path, [(["a"], ["b\n"])]),
        lambda path: write_lac_bin(path, []),
        lambda path: write_lac_bin(path, [([], [])]),
        lambda path: write_lac_bin(path, [([1], [1, 2])]),
        lambda path: write_handwriting(path, [(np.ones((2, 8)), [1]), (np.ones(8), [1])]),
        lambda path: write_handwriting(path, [(np.ones((0, 8)), [1])]),
        lambda path: write_handwriting(path, [(np.ones((2, 8)), [])]),
        lambda path: write_handwriting(path, [(np.ones((65_536, 1)), [1])]),
    ],
)
def test_writers_refuse_what_readers_would_and_leave_nothing(write: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - several sources
        write(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# --- what real files do


def test_pairs_as_ernie_has_them(tmp_path: Path) -> None:
    """A closing `;`, blanks at the ends, CR LF, no last line end, and shapes with or without the inner 1."""
    path = tmp_path / "1.8w.bs1"
    path.write_bytes(b"1 2 1:1 13;1 2 1:1.0 0.5;\r\n1 3: 4 5 6 ;1 3:1 1 1;")
    data = open_data(path, PAIR)
    assert data.labels is None
    assert data.inputs["ids"][:].tolist() == [[[1], [13], [0]], [[4], [5], [6]]]
    assert data.inputs["mask"][:].tolist() == [[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]
    assert data.inputs["mask"][:1].shape == (1, 2)


def test_labels_of_pairs_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.bs1"
    path.write_text("1 1:3;1 1:1\n")
    for name, label in (("label.xnli.dev", 1), ("a.bs1.label", 2), ("mine", 0)):
        (tmp_path / name).write_text(f"{label}\n")
        data = open_data(path, PAIR, labels=tmp_path / name if name == "mine" else None)
        assert data.labels.tolist() == [label]


def test_data_that_is_not_scored_needs_no_labels(tmp_path: Path) -> None:
    """Calibration data beside the labels of other data."""
    path = tmp_path / "a.bs1"
    path.write_text("1 1:3;1 1:1\n")
    (tmp_path / "label.xnli.dev").write_text("1\n2\n")
    with pytest.raises(DataError, match="2 labels"):
        open_data(path, PAIR)
    assert open_data(path, PAIR, scored=False).labels is None


def test_the_first_samples_sorted_by_length(tmp_path: Path) -> None:
    path = tmp_path / "a.bs1"
    path.write_text("1 3:3 4 5;1 3:1 1 1\n1 2:8 9;1 2:1 1\n1 1:7;1 1:1\n")
    (tmp_path / "a.bs1.label").write_text("0\n1\n2\n")
    first = by_length(head(open_data(path, PAIR), 2))
    assert first.inputs["ids"][:].tolist() == [[[8], [9], [0]], [[3], [4], [5]]]
    assert first.labels.tolist() == [1, 0]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.bs1"
    path.write_bytes(b"\xef\xbb\xbf1 1:3;1 1:1\n")
    assert open_data(path, PAIR).inputs["ids"][:].tolist() == [[[3]]]


def test_lac_as_baidu_has_it(tmp_path: Path) -> None:
    """Unknown characters, full width, lines that q2b.dic repeats, tags of one id, characters that end a str's line."""
    (tmp_path / "word.dic").write_text("0\t \n1\tA\n2\tOOV\n3\t\x85\n", encoding="utf-8")
    (tmp_path / "tag.dic").write_text("18\tns-B\n18\tLOC-B\n48\tO\n")
    write_lac(tmp_path / "a.tsv", [(["Ａ", "　", "字", "\x85"], ["O", "ns-B", "LOC-B", "O"])])
    assert sequences(open_data(tmp_path / "a.tsv", {"w": ((), "int64")}).inputs["w"]) == [[2, 2, 2, 3]]
    write_q2b(tmp_path / "q2b.dic")
    with (tmp_path / "q2b.dic").open("a", encoding="utf-8") as file:
        file.write("隣\t邻\n隣\t邻\n棡\t\n")
    data = open_data(tmp_path / "a.tsv", {"w": ((), "int64")})
    assert sequences(data.inputs["w"]) == [[1, 0, 2, 3]] and sequences(data.labels) == [[48, 18, 18, 48]]


def test_half_width() -> None:
    assert "".join(map(half_width, "ＡｚＺ０９！～　")) == "AzZ09!~ "
    assert all(half_width(char) == char for char in "Az~ 字。｟\uff00\uff5f")


def test_2490_pairs_of_128_are_read_in_2_seconds(tmp_path: Path) -> None:
    row = [np.arange(10_000, 10_128)] * 3 + [np.full(128, 0.5, np.float32)]
    write_pairs(tmp_path / "a.bs1", [row] * 2490, [1] * 2490)
    start = time.perf_counter()
    data = open_data(tmp_path / "a.bs1", {**{f"p{i}": ((-1, 1), "int64") for i in range(3)}, "m": PAIR["mask"]})
    assert time.perf_counter() - start < 2
    assert data.inputs["p0"][:].shape == (2490, 128, 1)


# --- what is refused


def told(path: Path, signature: object, form: str, message: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        open_data(path, signature, form, **options)
    assert message in str(caught.value)
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2: 0 fields, but the model has 2 inputs"),
        ("1 1:1", "line 2: 1 fields"),
        ("1 1:1;1 1:1;1 1:1", "line 2: 3 fields"),
        ("1 1:1;1 1 1", "line 2: field 2: no ':'"),
        ("1 1:1;1 1:1:1", "line 2: field 2: '1:1' is not a number of type float32"),
        ("1 2:1;1 1:1", "line 2: field 1: the shape [1, 2] needs 2 values, there are 1"),
        ("1 1:1 2;1 1:1", "there are 2"),
        ("1 99999999999 99999999999:1;1 1:1", "needs 9999999999800000000001 values"),
        ("1 2:1 2;1 1:1", "line 2: its fields differ in length: [2, 1]"),
        ("1 0:;1 0:", "line 2: field 1: the shape is [1, 0]; lengths must be above 0"),
        ("1 -2:1 2;1 1:1", "lengths must be above 0"),
        ("2 1:1 2;1 1:1", "must begin with a batch of 1"),
        ("1:1;1 1:1", "must begin with a batch of 1"),
        (":1;1 1:1", "must begin with a batch of 1"),
        ("1 x:1;1 1:1", "'x' is not a number of type int64"),
        ("1 1 2:1 2;1 1:1", "holds a sample of [1, 2], but the model reads [-1, 1]"),
        ("1 1:1.5;1 1:1", "line 2: field 1: '1.5' is not a number of type int64"),
        ("1 1:1_0;1 1:1", "'1_0' is not a number"),
        ("1 1:１;1 1:1", "'１' is not a number"),
        ("1 1:99999999999999999999;1 1:1", "is not a number of type int64"),
        ("1 1:1;1 1:abc", "line 2: field 2: 'abc' is not a number of type float32"),
        ("1 1:1;1 1:nan", "line 2: field 2: NaN or Inf"),
        ("1 1:1;1 1:1e40", "NaN or Inf"),
        (b"1 1:1;1 1:\xff", "line 2: not UTF-8"),
    ],
)
def test_bad_pairs(line: str | bytes, message: str, tmp_path: Path) -> None:
    good = b"1 1:1;1 1:1\n"
    (tmp_path / "a.bs1").write_bytes(good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good)
    told(tmp_path / "a.bs1", PAIR, "pairs", message)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("1\n", "1 labels, but"),
        ("1\n2\n3\n", "3 labels, but"),
        ("1\n2\n\n", "line 3: the label '' is not an integer"),
        ("1\nx\n", "line 2: the label 'x' is not an integer"),
        ("1\n1.0\n", "line 2: the label '1.0' is not an integer"),
        ("", "empty"),
        (None, "no such file"),
    ],
)
def test_bad_labels_of_pairs(labels: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.bs1").write_text("1 1:1;1 1:1\n" * 2)
    if labels is not None:
        (tmp_path / "labels").write_text(labels)
    told(tmp_path / "a.bs1", PAIR, "pairs", message, labels=tmp_path / "labels")


@pytest.mark.parametrize(
    ("signature", "form", "message"),
    [
        ({"x": ((-1, 1), "int32")}, "pairs", "input 'x' is int32"),
        ({"x": ((), "int64")}, "pairs", "reads samples of []"),
        ({"x": ((-1, -1), "int64")}, "pairs", "reads samples of [-1, -1]"),
        ({"x": ((2, 1), "int64")}, "pairs", "line 1: field 1: holds a sample of [1], but the model reads [2, 1]"),
        ({"x": ((1,), "float32")}, "lac", "input 'x' is float32"),
        ({"x": ((2,), "int64")}, "lac", "the model reads [2]"),
        ({**IDS, **PAIR}, "lac", "feeds one input, but the model has ['ids', 'mask', 'words']"),
        ({"x": ((-1, 1), "int64")}, "lac_bin", "the model reads [-1, 1]"),
        (IDS, "handwriting", "input 'words' is int64"),
        ({"x": ((-1, 8), "float32")}, "handwriting", "the model reads [-1, 8]"),
        ({"x": ((-1,), "float32")}, "handwriting", "the model reads [-1]"),
        (IDS, "nonsense", f"unknown data format 'nonsense'; name one with --format: {', '.join(FORMATS)}"),
    ],
)
def test_models_that_a_format_does_not_fit(signature: object, form: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1 1:1\n")
    told(tmp_path / "a", signature, form, message)


@pytest.mark.parametrize("form", FORMATS)
def test_empty_files_and_label_files_of_no_use(form: str, tmp_path: Path) -> None:
    for name in ("word.dic", "tag.dic"):
        (tmp_path / name).write_text("0\tOOV\n")
    (tmp_path / "a").touch()
    (tmp_path / "labels").touch()
    signature = {"lac": IDS, "lac_bin": IDS, "pairs": PAIR}.get(form, FEATURES)
    with pytest.raises(DataError, match=r"/a: (empty|truncated|not an \.npz)"):
        open_data(tmp_path / "a", signature, form)
    if form != "pairs":
        told(tmp_path / "a", signature, form, "carries its labels itself", labels=tmp_path / "labels")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "a\x02b\tO\x02O\n", "line 1: the header is 'a\\x02b\\tO\\x02O'"),
        ("a.tsv", "text_a\tlabel\n", "holds no sentences"),
        ("a.tsv", "text_a\tlabel\na\tO\n\n", "record 2 (line 3): 1 fields"),
        ("a.tsv", "text_a\tlabel\na\n", "record 1 (line 2): 1 fields"),
        ("a.tsv", "text_a\tlabel\na\tO\tO\n", "record 1 (line 2): 3 fields"),
        ("a.tsv", "text_a\tlabel\n\tO\n", "record 1 (line 2): an empty sentence"),
        ("a.tsv", "text_a\tlabel\na\x02\tO\x02O\n", "character 2 is empty"),
        ("a.tsv", "text_a\tlabel\na\x02a\tO\n", "record 1 (line 2): 2 characters, but 1 tags"),
        ("a.tsv", "text_a\tlabel\na\tO\na\tX\n", "record 2 (line 3): no tag 'X' in tag.dic"),
        ("a.tsv", "text_a\tlabel\na\t\n", "record 1 (line 2): no tag ''"),
        ("a.tsv", b"text_a\tlabel\na\tO\n\xe5\xad\tO\n", "line 3: not UTF-8"),
        ("word.dic", None, "word.dic: no such file"),
        ("word.dic", "", "word.dic: empty"),
        ("word.dic", "0\ta\n", "no entry 'OOV'"),
        ("word.dic", "0\ta\n1\ta\n", "line 2: 'a' occurs twice"),
        ("word.dic", "0\ta\n0\tb\n", "line 2: the id 0 occurs twice"),
        ("word.dic", "0\ta\nx\tb\n", "line 2: the id 'x' is not an integer"),
        ("word.dic", "0\ta\n1.0\tb\n", "the id '1.0' is not an integer"),
        ("word.dic", "-1\ta\n", "line 1: the id -1 is negative"),
        ("word.dic", "0\ta\n1\n", "line 2: one field"),
        ("word.dic", b"0\ta\n1\t\xff\n", "line 2: not UTF-8"),
        ("tag.dic", None, "tag.dic: no such file"),
        ("tag.dic", "0\tO\n1\tO\n", "line 2: 'O' occurs twice"),
        ("q2b.dic", "a\tb\na\tc\n", "line 2: 'a' occurs twice"),
        ("q2b.dic", "a\n", "q2b.dic: line 1: one field"),
    ],
)
def test_bad_lac_files(name: str, content: str | bytes | None, message: str, tmp_path: Path) -> None:
    files = {"a.tsv": "text_a\tlabel\na\tO\n", "word.dic": "0\ta\n1\tOOV\n", "tag.dic": "0\tO\n", name: content}
    for file, text in files.items():
        if text is not None:
            (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    told(tmp_path / "a.tsv", IDS, "lac", message)


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: 0 bytes"),
        (ints(1) + b"\0" * 7, "truncated: 15 bytes"),
        (ints(0, 0), "not LAC data"),
        (ints(-1, 3), "not LAC data"),
        (ints(2**62, 2**62), "truncated or a wrong count"),
        (ints(2, 3, 1, 2, 1, 2, 3, 1, 2), "need 80 bytes, it has 72"),
        (ints(2, 3, 1, 2, 1, 2, 3, 1, 2, 3) + b"\0", "need 80 bytes, it has 81"),
        (ints(2, 3, 3, 0, 1, 2, 3, 1, 2, 3), "record 2: a sentence of 0 words"),
        (ints(2, 3, -1, 4, 1, 2, 3, 1, 2, 3), "record 1: a sentence of -1 words"),
        (ints(2, 3, 1, 1, 1, 2, 3, 1, 2, 3), "its lengths sum to 2, but it says 3 words"),
    ],
)
def test_bad_lac_binaries(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    told(tmp_path / "a", IDS, "lac_bin", message)


def test_bad_handwriting(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_handwriting(path, [(np.full((2, 8), 0.5), [1]), (np.full((3, 8), 0.5), [1, 2])])
    whole = path.read_bytes()
    nan = struct.pack("<f", float("nan"))
    for content, message in (
        (whole[:-4], "record 2: truncated: 2 labels and 3 steps of 8 values need 4 bytes more"),
        (whole[:-3], "record 2: truncated"),
        (whole[:2], "record 1: truncated after 2 bytes"),
        (whole + b"\1", "record 3: truncated after 1 bytes"),
        (whole + struct.pack("<I", 1), "record 3: 1 labels and a sequence of length 0"),
        (whole + struct.pack("<I", 1 << 16), "record 3: 0 labels and a sequence of length 1"),
        (whole[:-4] + nan, "record 2: NaN or Inf"),
        (whole[:8] + struct.pack("<f", float("-inf")) + whole[12:], "record 1: NaN or Inf"),
    ):
        path.write_bytes(content)
        told(path, FEATURES, "handwriting", message)
    path.write_bytes(whole)
    told(path, {"x": ((5,), "float32")}, "handwriting", "features of 8 values would fit, but the model reads 5")


@settings(deadline=None)
@given(content=st.binary(max_size=200) | st.text("1 :;\n.-\t\x02aO").map(str.encode), form=st.sampled_from([*FORMATS]))
def test_any_bytes_are_read_or_refused(content: bytes, form: str) -> None:
    with folder() as root:
        Path(root, "a").write_bytes(content)
        for name in ("word.dic", "tag.dic"):
            Path(root, name).write_text("0\tO\n1\tOOV\n")
        signature = {"lac": IDS, "lac_bin": IDS, "pairs": PAIR}.get(form, FEATURES)
        refusal, data = "", None
        try:
            data = open_data(Path(root, "a"), signature, form)
        except DataError as error:
            refusal = str(error)
        assert data is None or len(data) > 0
        assert data is not None or root in refusal
        columns = [] if data is None else [column for column in data.inputs.values() if isinstance(column, Ragged)]
        assert all(stop > start for column in columns for start, stop in pairwise(column.offsets))
