"""What reads files, on anything: in this process, without a command around it. It succeeds, or says what is wrong."""

import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from quant.datasets.columns import Signature
from quant.datasets.formats import write_handwriting, write_lac_bin, write_pairs
from quant.datasets.readers import open_data, write_bin
from quant.errors import DataError, FetchError, ModelError, OptionError, QuantError
from quant.evaluation.parts import About, Shelf, pack
from quant.ir.graph import Graph, load_dir, run_passes, save_dir
from quant.ir.passes import NORMALISE, lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.calibration_table import apply_table, read_table, table_of, write_table
from quant.quantization.conversion import convert
from quant.reports.page.render import render
from quant.results.benchmark_files import extra_info, machine_info
from quant.results.comparison import misses, passed
from quant.results.gate import compare
from quant.results.history import load
from quant.storage.checkpoint import Journal
from quant.storage.unpack import unpack
from quant.suites.manifest.schema import read as read_manifest
from quant.suites.registry import BY_NAME
from tests.fuzz.mutations import mutate_arrays, mutate_bytes, mutate_graph, mutate_json, mutate_text
from tests.nets import NETS, data
from tests.runs import accuracy, run, speed

T = TypeVar("T")
SEED = st.integers(0, 2**32 - 1)
MORE = os.environ.get("QUANT_FUZZ_SEEDS")  # as in test_fuzz.py; then other examples each time, too
OFTEN = settings(
    max_examples=int(MORE or 150),
    deadline=None,
    derandomize=not MORE,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RARELY = settings(OFTEN, max_examples=OFTEN.max_examples // 4)


def fresh(place: Path) -> Path:
    """An empty directory: a test's own is shared by all its examples."""
    directory = place / str(len(list(place.iterdir())))
    directory.mkdir()
    return directory


def outcome(read: Callable[[], T], *kinds: type[Exception]) -> tuple[T | None, str]:
    """What reading gives, or how it is refused."""
    result, told = None, ""
    try:
        result = read()
    except kinds as error:
        told = str(error)
    assert "\n" not in told
    return result, told


# --- programs


@pytest.fixture(scope="module")
def graphs() -> list[tuple[Graph, dict[str, float]]]:
    """Small networks in FP32 with their thresholds, and simulated."""
    found = []
    for name in ("residual", "inception", "vgg", "shuffle"):
        graph = NETS[name]()
        simulated = calibrate(graph, data(graph, 1), algo="abs_max")
        found += [(graph, table_of(graph, simulated)), (lower_quantizers(simulated), {})]
    return found


@OFTEN
@given(seed=SEED)
def test_a_damaged_program_is_refused_or_goes_all_the_way(
    seed: int, graphs: list[tuple[Graph, dict[str, float]]], tmp_path: Path
) -> None:
    """Through loading, normalising, thresholds and conversion; a refusal on loading names the file."""
    random = np.random.default_rng(seed)
    graph, table = graphs[int(random.integers(len(graphs)))]
    place = fresh(tmp_path)
    with suppress(AttributeError, KeyError, TypeError, ValueError):  # not every graph can be written
        save_dir(mutate_graph(graph, random)[0], place)
    loaded, told = outcome(lambda: load_dir(place), ModelError)
    if loaded is None:
        assert str(place) in told
        return
    with suppress(QuantError):
        run_passes(loaded, NORMALISE)
    with suppress(QuantError):
        convert(apply_table(loaded, table, source="a table", weight_levels=127).graph if table else loaded)


# --- data


def _texts(place: Path) -> tuple[Signature, str]:
    write_pairs(place / "file", [([1, 2, 3], [0, 0, 1]), ([4], [2])], [0, 1])
    return {"a": ((-1, 1), "int64"), "b": ((-1, 1), "int64")}, "pairs"


def _images(place: Path) -> tuple[Signature, str]:
    write_bin(place / "file", iter([(np.ones((5, 2, 3, 3), np.float32), np.arange(5))]), 5)
    return {"x": ((2, 3, 3), "float32")}, "images"


def _arrays(place: Path) -> tuple[Signature, str]:
    np.savez(place / "file.npz", x=np.ones((5, 4), np.float32), label=np.arange(5))
    (place / "file.npz").rename(place / "file")
    return {"x": ((4,), "float32")}, "npz"


def _words(place: Path) -> tuple[Signature, str]:
    write_lac_bin(place / "file", [([1, 2, 3], [0, 1, 2]), ([5], [1])])
    return {"words": ((1,), "int64")}, "lac_bin"


def _strokes(place: Path) -> tuple[Signature, str]:
    write_handwriting(place / "file", [(np.ones((6, 8)), [1, 2]), (np.zeros((3, 8)), [4])])
    return {"x": ((8,), "float32")}, "handwriting"


def _sentences(place: Path) -> tuple[Signature, str]:
    (place / "file").write_text("text_a\tlabel\na\x02b\tX\x02Y\nb\tX\n")
    (place / "word.dic").write_text("0\ta\n1\tb\n2\tOOV\n")
    (place / "tag.dic").write_text("0\tX\n1\tY\n")
    return {"words": ((1,), "int64")}, "lac"


@pytest.mark.parametrize("write", [_texts, _images, _arrays, _words, _strokes, _sentences])
@OFTEN
@given(seed=SEED)
def test_damaged_data_are_read_or_refused_by_name(
    write: Callable[[Path], tuple[Signature, str]], seed: int, tmp_path: Path
) -> None:
    random, place = np.random.default_rng(seed), fresh(tmp_path)
    signature, format = write(place)
    files = sorted(place.iterdir())
    file = files[int(random.integers(len(files)))]
    change = {"npz": mutate_arrays, "pairs": mutate_text, "lac": mutate_text}.get(format, mutate_bytes)
    file.write_bytes(change(file.read_bytes(), random)[0])
    found, told = outcome(lambda: open_data(place / "file", signature, format), DataError)
    if found is None:
        assert str(place) in told
    else:
        assert len(found) > 0 and found.inputs.keys() == signature.keys()


@OFTEN
@given(seed=SEED)
def test_a_damaged_table_is_read_or_refused_by_line(seed: int, tmp_path: Path) -> None:
    file = fresh(tmp_path) / "table.txt"
    write_table(file, {"x": 1.5, "conv2d_0.tmp_0": 3e-5, "w_0@c": 7.0} if seed % 2 else {"x": 1.0})
    file.write_bytes(mutate_text(file.read_bytes(), np.random.default_rng(seed))[0])
    table, told = outcome(lambda: read_table(file), DataError)
    if table is None:
        assert told.startswith(f"{file}:")
    else:
        assert all(0 < threshold < np.inf for threshold in table.values())


# --- manifests

GOOD = """[[model]]
name = "one"
fp32 = "."
calibration = "quant.toml"
data = "quant.toml"
format = "npz"
metric = ["top1"]
thresholds = { drop = { top1 = 0.01 }, floor = 0.5 }

[[model]]
name = "two"
int8 = "."
fp32 = "."
data = "quant.toml"
format = "npz"
batch_sizes = [1, 8]
[model.thresholds]
speedup.avx2 = 1.5
"""


def _read_or_refused(file: Path) -> None:
    found, told = outcome(lambda: read_manifest(file), DataError, OptionError)
    if found is None:
        place = re.match(re.escape(str(file)) + r"(?::(\d+))?: \S", told)
        assert place, told
        assert place[1] is None or 1 <= int(place[1]) <= file.read_bytes().count(b"\n") + 1


@OFTEN
@given(seed=SEED)
def test_a_damaged_manifest_is_read_or_refused_by_line(seed: int, tmp_path: Path) -> None:
    file = fresh(tmp_path) / "quant.toml"
    file.write_bytes(mutate_text(GOOD.encode(), np.random.default_rng(seed))[0])
    _read_or_refused(file)


_KEYS = st.sampled_from(
    ["model", "name", "fp32", "data", "thresholds", "drop", "metric", "x", '""', '"é\\u0000"', "a.b"]
)
_VALUES = st.one_of(
    st.sampled_from(['"x"', "1", "-1", "1e400", "nan", "true", "[]", "{}", "[[1]]", "{a=1}", '"""\n"""', "2026-11-22"]),
    st.integers().map(str),
    st.text(max_size=5).map(json.dumps),
)
_STATEMENTS = st.one_of(
    st.builds("{} = {}".format, _KEYS, _VALUES), st.builds("[[{}]]".format, _KEYS), st.builds("[{}]".format, _KEYS)
)


@OFTEN
@given(text=st.one_of(st.text(), st.lists(_STATEMENTS, max_size=8).map("\n".join)))
def test_any_text_is_a_manifest_or_refused_by_line(text: str, tmp_path: Path) -> None:
    file = fresh(tmp_path) / "quant.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    _read_or_refused(file)


# --- what this project writes


@RARELY
@given(seed=SEED)
def test_a_damaged_run_is_refused_or_can_be_shown(seed: int, tmp_path: Path) -> None:
    whole = run([*accuracy("resnet50", samples=20), *accuracy("gru", samples=20)], speed("resnet50", 3.5, rounds=5))
    file = fresh(tmp_path) / "run.json"
    file.write_bytes(mutate_json(whole.to_json().encode(), np.random.default_rng(seed))[0])
    found, told = outcome(lambda: load(file), DataError)
    if found is None:
        assert str(file) in told
        return
    compare(whole, found)
    misses(found.exact, found.timed, found.rows)
    passed(found.exact, found.timed, found.rows)
    page = render(found, [whole])
    assert page.count("<script>") == 1  # the page's own: names are escaped


@RARELY
@given(seed=SEED)
def test_a_damaged_file_of_pytest_benchmark_is_refused_or_a_run(seed: int, tmp_path: Path) -> None:
    content = {
        "machine_info": machine_info(),
        "commit_info": {"id": "unversioned", "dirty": False},
        "benchmarks": [{"extra_info": extra_info(BY_NAME["resnet50"], speed("resnet50", 3.5, rounds=5), "pytest")}],
        "datetime": "2026-11-22T01:02:03+00:00",
    }
    file = fresh(tmp_path) / "0001.json"
    file.write_bytes(mutate_json(to_json(content), np.random.default_rng(seed))[0])
    found, told = outcome(lambda: load(file), DataError)
    assert str(file) in told if found is None else misses((), found.timed, found.rows) == list(found.missed)


@OFTEN
@given(seed=SEED)
def test_a_damaged_journal_loses_lines_and_nothing_else(seed: int, tmp_path: Path) -> None:
    file, about = fresh(tmp_path) / "journal", {"command": "x"}
    kept = {"a": [1, 2.5], "b": {"c": None}, "d": "é"}
    with suppress(KeyboardInterrupt), Journal(file, about) as journal:
        for key, value in kept.items():
            journal.kept(key, lambda value=value: value)
        raise KeyboardInterrupt
    file.write_bytes(mutate_text(file.read_bytes(), np.random.default_rng(seed))[0])
    found, told = outcome(lambda: Journal(file, about), OptionError)
    if found is None:
        assert str(file) in told
    else:
        with found as journal:
            assert all(kept[key] == value for key, value in journal.done.items())


@OFTEN
@given(seed=SEED)
def test_a_damaged_part_is_no_part(seed: int, tmp_path: Path) -> None:
    shelf = Shelf(fresh(tmp_path))
    about = About(0, 3, 3, ("out",), (0.1,), 0.2, 1, 0)
    shelf.put(about, pack([np.ones((3, 2))], np.arange(3)))
    random = np.random.default_rng(seed)
    file = sorted(shelf.directory.iterdir())[int(random.integers(2))]
    before = file.read_bytes()
    file.write_bytes((mutate_json if file.suffix == ".json" else mutate_arrays)(before, random)[0])
    found = shelf.get(0)
    # JSON can be written in several ways, and an array whose value was replaced by itself is what it was.
    assert found is None or (found.about == about and np.array_equal(found.outputs[0], np.ones((3, 2))))


# --- archives


def _tar(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name in ("model", "inner/params"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("model", "inner/params"):
            archive.writestr(name, "abc")
    return file.getvalue()


ARCHIVES = {"tar": _tar("w"), "tar.gz": _tar("w:gz"), "zip": _zip()}


@pytest.mark.parametrize("kind", ARCHIVES)
@OFTEN
@given(seed=SEED)
def test_a_damaged_archive_is_refused_or_stays_where_it_belongs(kind: str, seed: int, tmp_path: Path) -> None:
    place = fresh(tmp_path)
    archive, inside = place / "archive", place / "inside"
    inside.mkdir()
    archive.write_bytes(mutate_bytes(ARCHIVES[kind], np.random.default_rng(seed))[0])
    with suppress(FetchError, OSError):  # OSError: a name that is too long
        unpack(archive, inside, "archive", max_bytes=10**6)
    assert {path.name for path in place.iterdir()} == {"archive", "inside"}
    assert not any(path.is_symlink() for path in inside.rglob("*"))
