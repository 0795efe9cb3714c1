"""The text of a first manifest: whatever models and files are called, it is read as what was meant."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quant.errors import OptionError
from quant.suites.manifest.draft import drafts_of, manifest_text, toml_string
from quant.suites.manifest.schema import Entry, read

Json = dict[str, Any]


def tensor(name: str, *shape: int, dtype: str = "float32", lod_level: int = 0) -> Json:
    return {"name": name, "shape": list(shape), "dtype": dtype, "lod_level": lod_level}


IMAGE, SCORES = tensor("image", -1, 3, 8, 8), tensor("scores", -1, 10)


def model(path: Path, kind: str, inputs: list[Json] | None = None, outputs: list[Json] | None = None) -> Json:
    """As quant.suites.manifest.inspection.survey tells it, and its directory."""
    path.mkdir(parents=True, exist_ok=True)
    return {
        "path": str(path),
        "kind": kind,
        "bytes": 123_456,
        "inputs": inputs or [IMAGE],
        "outputs": outputs or [SCORES],
        "ops": {"conv2d": 3, "relu": 2},
        "int8": {"conv2d": 3},
        "fp32": {},
        "kept": [{"op_type": "pool2d", "reason": "an average would be rounded", "count": 1}],
        "why": "",
    }


def entries(root: Path, found: list[Json], data: Path | None = None, calibration: Path | None = None) -> list[Entry]:
    """What is read of the manifest that is written for models, its placeholders made files first."""
    for name in ("test", "calibration"):
        for suffix in ("", ".bin", ".npz", ".bs1", ".tsv"):
            (root / f"{name}{suffix}").write_text(name)
    (root / "fp32").mkdir(exist_ok=True)
    output = root / "quant.toml"
    text = manifest_text(drafts_of(found, root / "models"), found, output, data, calibration)
    output.write_text(text, encoding="utf-8")
    return list(read(output).models)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=3, unique=True), file=NAMES, tensor_name=NAMES)
@example(names=['a"b', "a'b", "\\"], file="'''\".npz", tensor_name="]]\n[[model]]")
@example(names=["a\nb", "a\x7fb", "a\x85b"], file="\r\n\t.bin", tensor_name="\r# x")
@example(names=["fp32", "int8-\n", "quant"], file="ä\u2028\U0001f600.npz", tensor_name="<script>")
@example(names=["fp32_", "fp32-a", "models-a"], file="0", tensor_name="0")
def test_any_name_is_read_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], file: str, tensor_name: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "data").mkdir()
    data, calibration = root / "data" / file, root / "data" / f"{file}2"
    data.write_text("data")
    calibration.write_text("calibration")
    found = [model(root / "models" / name, "fp32", [tensor(tensor_name, -1, 3, 8, 8)]) for name in names]
    made = entries(root, found, data, calibration)
    assert [entry.fp32 for entry in made] == [root / "models" / name for name in names]
    assert all((entry.data, entry.calibration) == (data, calibration) for entry in made)
    assert len({entry.name for entry in made}) == len(names)
    for name, entry in zip(names, made, strict=True):
        told = re.sub(r"^fp32(?=[-_.].|\Z)", "models", name, flags=re.DOTALL)  # `fp32` tells what it is, not its name
        if told.isprintable() and told.strip() and told not in [other.name for other in made if other is not entry]:
            assert entry.name == told


def test_what_lies_side_by_side_is_one_entry(tmp_path: Path) -> None:
    top = tmp_path / "models"
    found = [
        model(top / "a" / "fp32", "fp32"),
        model(top / "a" / "int8", "int8"),
        model(top / "a" / "int8-7bit", "int8"),
        model(top / "a" / "quant", "quant"),
        model(top / "a" / "quant-7bit", "quant"),
        model(top / "b" / "fp32", "quant"),  # its name says what it isn't
        model(top / "c" / "net", "fp32"),
        model(top / "d" / "net", "quant"),
        model(top / "int8", "int8"),
    ]
    made = {entry.name: (entry.fp32, entry.quant, entry.int8) for entry in entries(tmp_path, found)}
    a = top / "a"
    assert made == {
        "a": (a / "fp32", a / "quant", a / "int8"),
        "a-7bit": (a / "fp32", a / "quant-7bit", a / "int8-7bit"),
        "fp32": (None, top / "b" / "fp32", None),
        "c/net": (top / "c" / "net", None, None),
        "d/net": (None, top / "d" / "net", None),
        "models": (tmp_path / "fp32", None, top / "int8"),  # FP32 is to be filled in
    }


IDS = tensor("ids", -1, -1, 1, dtype="int64")
TAGS = tensor("tags", -1, 1, dtype="int64", lod_level=1)


@pytest.mark.parametrize(
    ("inputs", "outputs", "data", "expected"),
    [
        ([IMAGE], [SCORES], "test.bin", (None, ("top1",))),
        ([tensor("x", -1, 3, -1, -1)], [SCORES], "test.npz", (None, ("top1",))),
        ([tensor("x", -1, 8)], [SCORES], "test.npz", (None, ("top1",))),
        ([tensor("x", -1, 8)], [tensor("y", -1, 1, 5)], "test.npz", (None, ("my_pkg.metrics:score",))),
        ([IDS, tensor("mask", -1, -1)], [SCORES, tensor("pooled", -1, 8)], "test.bs1", (None, ("top1",))),
        ([tensor("ids", -1, 1, dtype="int64", lod_level=1)], [TAGS], "test.tsv", (None, ("f1",))),
        ([tensor("x", -1, 8, lod_level=1)], [SCORES, TAGS], "test.bin", ("handwriting", ("hx",))),
        ([tensor("x", -1, 8, lod_level=1)], [TAGS], "test.bin", ("handwriting", ("my_pkg.metrics:score",))),
        ([TAGS, IMAGE], [SCORES], "test", ("my_pkg.data:read", ("my_pkg.metrics:score",))),
    ],
)
def test_the_format_fits_the_model(
    tmp_path: Path, inputs: list[Json], outputs: list[Json], data: str, expected: tuple[str | None, tuple[str, ...]]
) -> None:
    [entry] = entries(tmp_path, [model(tmp_path / "models", "fp32", inputs, outputs)])
    assert (entry.format, entry.metrics) == expected
    assert entry.data == tmp_path / data and entry.calibration is not None


def test_data_that_are_known(tmp_path: Path) -> None:
    found = [model(tmp_path / "models", "quant")]
    for name in ("own.npz", "own.dat", "own.tsv"):
        (tmp_path / name).write_text(name)
    [entry] = entries(tmp_path, found, tmp_path / "own.npz")
    assert (entry.format, entry.data, entry.calibration) == (None, tmp_path / "own.npz", None)
    [entry] = entries(tmp_path, found, tmp_path / "own.dat")
    assert entry.format == "images"  # what fits the model, as the suffix tells nothing
    [entry] = entries(tmp_path, found, tmp_path / "own.tsv")
    text = (tmp_path / "quant.toml").read_text()
    assert "# the model's inputs would fit the format images" in text and entry.metrics == ("my_pkg.metrics:score",)
    [entry] = entries(tmp_path, found, tmp_path / "models")
    assert entry.format == "my_pkg.data:read"


def test_what_was_seen_stands_in_comments(tmp_path: Path) -> None:
    found = [
        {**model(tmp_path / "models" / "a", "fp32"), "why": "it has no convolution"},
        {"path": str(tmp_path / "b"), "error": f"{tmp_path / 'b'}: truncated\nat 3"},
    ]
    [entry] = entries(tmp_path, found)
    lines = (tmp_path / "quant.toml").read_text().splitlines()
    assert lines[entry.line - 1] == "[[model]]"
    assert "# a: FP32, 0.1 MB on disk" in lines and "# Ops: conv2d 3, relu 2" in lines
    assert "# Inputs: image float32[-1, 3, 8, 8]" in lines and "# Nothing can be INT8: it has no convolution" in lines
    assert any(line.startswith("# Not usable: ") and line.endswith("truncated?at 3") for line in lines)


def test_a_name_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'a\\udcff': a name that isn't Unicode can't stand in a manifest"):
        toml_string("a\udcff")
