"""Outcomes on disk: parts, what they are of, and that nothing damaged, swapped or outdated passes for one."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.datasets.columns import Column, Ragged, values_of
from quant.datasets.readers import files_behind
from quant.errors import DataError, ModelError, OutputError
from quant.evaluation import parts as outcomes
from quant.evaluation.parts import About, Key, Part, Shelf, Store, data_digests, model_digest, pack, parts_of, unpack
from quant.storage import digests
from tests.columns import ragged

KEY = Key("model", {"data": "d"}, "npz", {"precision": "int8"}, "avx2", 50, 1, {"numpy": "2"})
SCORES = np.random.default_rng(0).standard_normal((1000, 6)).astype(np.float32)
LABELS = np.arange(1000) % 6
PROOF = {"share": 1.0, "isas": ("avx2",), "int8_kernels": 3, "fp32_kernels": 0}


def about(start: int, samples: int = 1000) -> About:
    times = tuple(0.001 * place for place in range(1, samples // 50 + 1))
    return About(start, samples, 2500, ("scores",), times, 2 * sum(times), 5, 0, proof=PROOF).stamped()


def stored(store: Store, key: Key = KEY, start: int = 0) -> Shelf:
    shelf = store.shelf(key, {})
    shelf.put(about(start), pack([SCORES], LABELS))
    return shelf


def same(one: Column, other: Column) -> bool:
    offsets = [column.offsets for column in (one, other) if isinstance(column, Ragged)]
    alike = len(offsets) == 0 or (len(offsets) == 2 and np.array_equal(*offsets))
    return alike and values_of(one).dtype == values_of(other).dtype and np.array_equal(values_of(one), values_of(other))


# --- parts


@given(st.integers(1, 5000), st.integers(1, 3000), st.none() | st.integers(1, 200))
def test_parts_are_whole_batches_and_cover_what_is_used(total: int, batch_size: int, batch_num: int | None) -> None:
    parts = parts_of(total, batch_size, batch_num)
    used = min(total, batch_size * batch_num) if batch_num else total
    assert [sample for part in parts for sample in part] == list(range(used))
    assert all(part.start % batch_size == 0 for part in parts)
    assert len({len(part) for part in parts[:-1]}) <= 1
    assert max(map(len, parts)) <= max(1500, batch_size)


def test_columns_come_back_from_their_bytes() -> None:
    outputs: list[Column] = [SCORES[:2], ragged([2, 1], 3), np.array([3, 4])]
    blob = pack(outputs, ragged([1, 4]))
    assert blob == pack(outputs, ragged([1, 4]))  # no times in it
    back, labels = unpack(blob, 3)
    assert all(same(one, other) for one, other in zip(outputs, back, strict=True))
    assert same(labels, ragged([1, 4]))


def test_pickled_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        unpack(pack([np.array([{}], object)], LABELS), 1)
    for junk in (b"", b"junk", pack([], LABELS)):
        with pytest.raises((ValueError, OSError)):
            unpack(junk, 1)


def test_a_part_comes_back(tmp_path: Path) -> None:
    shelf = stored(Store(tmp_path), start=1000)
    assert shelf.starts() == [1000]
    assert shelf.get(0) is None
    part = shelf.get(1000)
    assert part is not None
    assert asdict(part.about) == {
        **asdict(about(1000)),
        "ended": part.about.ended,
        "proof": {**PROOF, "isas": ["avx2"]},
    }
    assert same(part.outputs[0], SCORES) and same(part.labels, LABELS)


def test_the_head_of_a_part_is_a_shorter_run() -> None:
    part = Part(about(0), (SCORES,), LABELS)
    head = part.head(100, 50)
    assert head.about.samples == len(head.outputs[0]) == len(head.labels) == 100
    assert head.about.run_s == part.about.run_s[:2]
    assert sum(head.about.run_s) / head.about.wall_s == pytest.approx(0.5)  # the overhead stays
    assert part.head(1000, 50) is part


# --- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def other_numbers(path: Path) -> None:
    note = json.loads(path.read_text())
    note["about"]["samples"] = 900
    path.write_text(json.dumps(note))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("npz", cut),
        ("npz", flip),
        ("npz", Path.unlink),
        ("npz", lambda path: path.write_bytes(b"")),
        ("json", cut),
        ("json", other_numbers),
        ("json", Path.unlink),
        ("json", lambda path: path.write_text("[]")),
        ("json", lambda path: path.write_bytes(b"\xff")),
    ],
)
def test_a_damaged_part_is_none(suffix: str, damage: Callable[[Path], object], tmp_path: Path) -> None:
    shelf = stored(Store(tmp_path))
    assert shelf.get(0) is not None
    damage(shelf.directory / f"00000000.{suffix}")
    assert shelf.get(0) is None
    shelf.put(about(0), pack([SCORES], LABELS))
    assert shelf.get(0) is not None


def test_a_part_does_not_pass_for_another(tmp_path: Path) -> None:
    """Not at another sample, and not under another key."""
    shelf = stored(Store(tmp_path))
    elsewhere = Store(tmp_path).shelf(replace(KEY, batch_size=25), {})
    for suffix in ("npz", "json"):
        shutil.copy(shelf.directory / f"00000000.{suffix}", elsewhere.directory)
        shutil.copy(shelf.directory / f"00000000.{suffix}", shelf.directory / f"00001000.{suffix}")
    assert elsewhere.get(0) is None
    assert shelf.get(1000) is None


def test_two_at_once_leave_a_whole_part(tmp_path: Path) -> None:
    shelf, blob = Store(tmp_path).shelf(KEY, {}), pack([SCORES], LABELS)
    said = about(0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: shelf.put(said, blob), range(20)))
    assert shelf.get(0) is not None
    assert {path.name for path in shelf.directory.iterdir()} == {"about.json", "00000000.json", "00000000.npz"}


# --- what decides


def test_all_that_decides_makes_another_name() -> None:
    others = [
        replace(KEY, model="m"),
        replace(KEY, data={"data": "e"}),
        replace(KEY, data={"data": "d", "labels": "l"}),
        replace(KEY, format="images"),
        replace(KEY, run={"precision": "fp32"}),
        replace(KEY, isa="avx512_core"),
        replace(KEY, batch_size=1),
        replace(KEY, threads=2),
        replace(KEY, versions={"numpy": "3"}),
    ]
    assert len({key.name for key in (KEY, *others)}) == 10
    assert {"paddlepaddle", "numpy", "quant-onednn", "code"} == outcomes.versions().keys()


def test_models_are_known_by_names_and_contents(tmp_path: Path) -> None:
    model, notes = tmp_path / "m", tmp_path / "notes"
    (model / "sub").mkdir(parents=True)
    (model / "__model__").write_bytes(b"program")
    (model / "sub" / "w").write_bytes(b"weights")
    first = model_digest(model, notes)
    shutil.copytree(model, tmp_path / "copy")
    assert model_digest(tmp_path / "copy", notes) == first
    (model / "sub" / "w").write_bytes(b"weighty")
    assert model_digest(model, notes) != first
    (tmp_path / "copy" / "__model__").rename(tmp_path / "copy" / "model")
    assert model_digest(tmp_path / "copy", notes) != first
    with pytest.raises(ModelError, match="absent: no such model directory"):
        model_digest(tmp_path / "absent", notes)
    with pytest.raises(DataError, match="absent: no such data file"):
        data_digests({"data": tmp_path / "absent"}, notes)


def test_what_lies_beside_the_data_counts(tmp_path: Path) -> None:
    for name in ("test.tsv", "word.dic", "tag.dic", "dev.bs1", "dev.bs1.label", "own"):
        (tmp_path / name).write_text(name)
    lac, pairs = tmp_path / "test.tsv", tmp_path / "dev.bs1"
    assert files_behind(lac).keys() == {"data", "word.dic", "tag.dic"}
    assert files_behind(pairs)["labels"] == tmp_path / "dev.bs1.label"
    assert files_behind(pairs, labels=tmp_path / "own")["labels"] == tmp_path / "own"
    assert files_behind(tmp_path / "other" / "absent.npz") == {"data": tmp_path / "other" / "absent.npz"}
    assert files_behind(tmp_path / "absent.npz").keys() == {"data", "tag.dic"}
    for carries in (lac, tmp_path / "absent.npz"):  # or a useless option would pass once all is stored
        with pytest.raises(DataError, match="carries its labels itself"):
            files_behind(carries, labels=tmp_path / "own")


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, notes = tmp_path / "data", tmp_path / "notes"
    file.write_bytes(b"a" * (1 << 20))
    seen: list[tuple[str, int, int]] = []

    def of() -> str:
        seen.clear()
        return data_digests({"data": file}, notes, lambda *step: seen.append(step))["data"]

    first = of()
    assert seen == [("reading data [MB]", 1, 1)]
    assert not notes.exists()  # it is so new that it may change again without a sign
    monkeypatch.setattr(digests, "_RACY_NS", -1)
    assert of() == first and seen
    assert of() == first and not seen
    times = file.stat()
    file.write_bytes(b"b" * (1 << 20))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync and cp -p do
    assert of() != first and seen
    for junk in (b"", b"[]", b'{"sha256": 1}'):
        [note] = notes.iterdir()
        note.write_bytes(junk)
        assert of() != first and seen


# --- places that can't be written


def test_fresh_forgets_this_key_alone(tmp_path: Path) -> None:
    other = replace(KEY, threads=2)
    stored(Store(tmp_path)), stored(Store(tmp_path), other)
    assert Store(tmp_path, fresh=True).shelf(KEY, {}).starts() == []
    assert Store(tmp_path).shelf(other, {}).starts() == [0]
    store = Store(tmp_path, fresh=True)
    stored(store)
    assert store.shelf(KEY, {}).starts() == [0]  # what this run kept is another model's, too


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (Path("/proc/nothing"), tmp_path / "file"):
        with pytest.raises(OutputError, match=r"can't be written \(.+\); QUANT_CACHE names another place"):
            Store(root).shelf(KEY, {})


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there stays, what is told names the file, and nothing half-written is left."""
    shelf = stored(Store(tmp_path))
    before = sorted(shelf.directory.iterdir())
    whole = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError, match=r"00001000\.npz: can't be written \(No space left on device\)"):
        shelf.put(about(1000), pack([SCORES], LABELS))
    assert sorted(shelf.directory.iterdir()) == before
    assert shelf.get(0) is not None
