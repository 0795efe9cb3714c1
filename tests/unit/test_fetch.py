"""Downloads from a real server on this machine: complete, cut off, changed, damaged, hostile; nothing half-done stays.

Archives are laid out as published, with small contents.
"""

import errno
import gzip
import hashlib
import io
import json
import os
import random
import socket
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import FetchError, OptionError, OutputError
from quant.storage import download, unpack
from quant.storage.download import Patience, mirrored, part_file
from quant.suites.published.catalogue import ARTEFACTS, Artefact, find_artefact
from quant.suites.published.fetch import Fetched, fetch
from tests.http_server import DATE, Fault, Server, entry, serving, tarred, zipped

NOISE = random.Random(0).randbytes(200_000)  # can't be compressed, so archives are as long

# What tar lists of the published archives, as far as documents and Paddle's own tests tell.
LAYOUTS = {
    **{artefact.name: ("model/__model__", "model/conv1_weights") for artefact in ARTEFACTS[:7]},
    "ernie-qat": ("Ernie_qat/float/__model__", "Ernie_qat/float/fc_0.w_0"),
    "ernie-data": ("Ernie_dataset/1.8w.bs1", "Ernie_dataset/label.xnli.dev"),
    "resnet50-vd-act": tuple(
        f"ResNet50_vd_QAT/{name}" for name in ("inference.pdmodel", "inference.pdiparams", "calibration_table.txt")
    ),
    "gru-quant": ("GRU_quant_acc/__model__", "GRU_quant_acc/word_emb"),
    "gru-data": ("GRU_eval_data.bin",),
    "lstm-fp32": ("lstm_fp32_model/model", "lstm_fp32_model/params"),
    "lstm-quant": ("lstm_quant/model", "lstm_quant/params"),
    "lstm-data": ("quant_lstm_input_data",),
}
IMAGES = ("ResNet50", "ResNet101", "GoogleNet", "MobileNetV1", "MobileNetV2", "VGG16", "VGG19")
MODEL = find_artefact("resnet50-qat")
PATH = "/int8/QAT_models/ResNet50_qat_model.tar.gz"
AS_PUBLISHED = {"model/__model__": b"program", "model/conv1_weights": NOISE}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as served:
        served.files[PATH] = tarred(AS_PUBLISHED)
        yield served


class Waits(list[float]):
    """Instead of sleeping."""

    def patience(self, retries: int = 4, timeout_s: float = 5.0) -> Patience:
        return Patience(retries=retries, timeout_s=timeout_s, sleep=self.append)


def get(server: Server, directory: Path, retries: int = 4, timeout_s: float = 5.0, **options: object) -> Fetched:
    patience = Waits().patience(retries, timeout_s)
    return fetch(MODEL, directory, mirror=server.url, patience=patience, **options)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


DONE = {"resnet50-qat", "resnet50-qat.json"}
BEGUN = {"resnet50-qat.part", "resnet50-qat.part.json"}


def test_the_table_has_the_published_addresses() -> None:
    base = "http://paddle-inference-dist.bj.bcebos.com/int8/QAT_models"
    assert [artefact.url for artefact in ARTEFACTS[:7]] == [f"{base}/{model}_qat_model.tar.gz" for model in IMAGES]
    assert len({artefact.name for artefact in ARTEFACTS}) == len({artefact.url for artefact in ARTEFACTS}) == 15
    assert set(LAYOUTS) == {artefact.name for artefact in ARTEFACTS}
    with pytest.raises(OptionError, match="did you mean 'lstm-quant'"):
        find_artefact("lstm-qant")


@pytest.mark.parametrize("artefact", ARTEFACTS, ids=lambda artefact: artefact.name)
def test_every_archive_unpacks_as_published(server: Server, tmp_path: Path, artefact: Artefact) -> None:
    contents = {name: name.encode() for name in LAYOUTS[artefact.name]}
    path = "/" + artefact.url.split("/", 3)[3]
    server.files[path] = tarred(contents, "w:gz" if path.endswith(".tar.gz") else "w")
    found = fetch(artefact, tmp_path, mirror=server.url)
    assert found.holds == tuple(tmp_path / artefact.name / name for name in artefact.holds)
    assert all(place.exists() for place in found.holds)
    assert {name: (tmp_path / artefact.name / name).read_bytes() for name in contents} == contents
    assert names(tmp_path) == {artefact.name, f"{artefact.name}.json"}
    record = json.loads((tmp_path / f"{artefact.name}.json").read_text())
    assert record["sha256"] == hashlib.sha256(server.files[path]).hexdigest() == found.sha256
    assert record["url"] == server.url + path
    assert found.as_published is (None if artefact.md5 is None else False)


def test_a_fetched_model_of_many_parameter_files_loads(server: Server, tmp_path: Path) -> None:
    from fixtures.programs import Program
    from quant.ir.graph import Var, load_dir, save_dir

    program = Program({"x": Var((-1, 4), lod_level=1)})
    weight = program.param("fc_0.w_0", np.arange(12, dtype=np.float32).reshape(4, 3))
    program.linear("x", weight, program.param("fc_0.b_0", np.ones(3, np.float32)))
    graph = program.graph([next(reversed(program.vars))])
    source = tmp_path / "source"
    source.mkdir()
    save_dir(graph, source, layout="separate")
    server.files[PATH] = tarred({f"model/{path.name}": path.read_bytes() for path in source.iterdir()})
    loaded = load_dir(get(server, tmp_path / "zoo").holds[0])
    assert [op.type for op in loaded.ops] == [op.type for op in graph.ops]
    assert all(np.array_equal(loaded.params[name], value) for name, value in graph.params.items())


def test_what_is_there_is_checked_and_not_fetched(server: Server, tmp_path: Path) -> None:
    first, again = get(server, tmp_path), get(server, tmp_path)
    assert not first.was_there and again.was_there
    assert replace(again, was_there=False) == first
    assert len(server.log) == 1
    (tmp_path / "resnet50-qat" / "notes.txt").write_text("the user's own")
    get(server, tmp_path)
    with pytest.raises(FetchError, match="unpacked from an archive with SHA-256"):
        get(server, tmp_path, sha256="0" * 64)
    weights = tmp_path / "resnet50-qat" / "model" / "conv1_weights"
    weights.write_bytes(NOISE[:-1] + b"x")
    with pytest.raises(FetchError, match=r"conv1_weights: changed since it was fetched; remove .* and fetch it anew"):
        get(server, tmp_path)
    weights.unlink()
    with pytest.raises(FetchError, match=r"conv1_weights: can't be read \(No such file"):
        get(server, tmp_path)


# Interruptions


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(cut=70_000), Fault(cut=50_000)]
    waits = Waits()
    found = fetch(MODEL, tmp_path, mirror=server.url, patience=waits.patience())
    size = len(server.files[PATH])
    assert server.starts() == [None, 70_000, 120_000]
    assert [request.status for request in server.log] == [200, 206, 206]
    assert server.sent() == found.bytes == size  # no byte twice
    assert waits == [1.0, 1.0]  # every try brought something new, so the wait doesn't grow
    assert names(tmp_path) == DONE


def test_a_second_run_goes_on_where_the_first_stopped(server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(cut=70_000)]
    with pytest.raises(FetchError, match=r"the connection was cut; 70,000 bytes stay in .*resnet50-qat\.part"):
        get(server, tmp_path, retries=0)
    assert names(tmp_path) == BEGUN
    told: list[tuple[str, int, int]] = []
    get(server, tmp_path, progress=lambda *step: told.append(step))
    size = len(server.files[PATH])
    assert server.log[1].start == 70_000 and server.log[1].if_range
    assert server.sent() == size
    assert told[0] == ("download", 70_000, size)
    assert {what for what, _, _ in told} == {"download", "check download", "unpack"}
    assert all(0 <= done <= total == size for _, done, total in told)
    assert names(tmp_path) == DONE


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 3000), max_size=6), ranges=st.booleans(), etags=st.booleans(), runs=st.booleans())
def test_cuts_anywhere(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], ranges: bool, etags: bool, runs: bool
) -> None:
    """Whatever is cut, in one run or in many, the bytes arrive; with ranges, each is sent once."""
    body, directory = NOISE[:4000], tmp_path_factory.mktemp("cuts")
    with serving() as server:
        server.files["/file"], server.faults = body, [Fault(cut=cut) for cut in cuts]
        server.ranges, server.etags = ranges, etags
        patience = Waits().patience(0 if runs else 10)
        for _ in range(len(cuts) + 1 if runs else 1):
            with part_file(directory / "part") as file:
                try:
                    download.download(server.url + "/file", directory / "part", file, max_bytes=4000, patience=patience)
                    break
                except FetchError:
                    continue
        assert (directory / "part").read_bytes() == body
        if ranges:
            assert server.sent() == len(body)


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.faults = False, [Fault(cut=70_000)]
    found = get(server, tmp_path)
    assert server.starts() == [None, 70_000]
    assert server.sent() == 70_000 + found.bytes
    assert (found.holds[0] / "conv1_weights").read_bytes() == NOISE


@pytest.mark.parametrize(
    ("etags", "dates", "if_range"),
    [(True, False, True), (True, False, False), (False, True, True), (False, True, False), (False, False, True)],
    ids=["etag", "etag-but-no-if-range", "date", "date-but-no-if-range", "neither"],
)
def test_a_file_that_changed_meanwhile_starts_anew(
    server: Server, tmp_path: Path, etags: bool, dates: bool, if_range: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is as long as before, unless nothing else tells them apart."""
    server.etags, server.dates, server.if_range, server.faults = etags, dates, if_range, [Fault(cut=70_000)]
    server.files[PATH] = tarred(AS_PUBLISHED, "w")
    with pytest.raises(FetchError):
        get(server, tmp_path, retries=0)
    before = f'"{hashlib.sha256(server.files[PATH]).hexdigest()[:8]}"'
    other = random.Random(1).randbytes(200_000 if etags or dates else 150_000)
    server.files[PATH] = tarred({"model/__model__": b"other", "model/conv1_weights": other}, "w")
    monkeypatch.setattr("tests.http_server.DATE", "Thu, 22 Oct 2015 07:28:00 GMT")
    found = get(server, tmp_path)
    assert (found.holds[0] / "conv1_weights").read_bytes() == other
    assert server.starts()[:2] == [None, 70_000]
    assert server.log[1].if_range == (before if etags else DATE if dates else None)


def test_the_date_serves_where_the_etag_is_weak(server: Server, tmp_path: Path) -> None:
    server.etags, server.dates = False, True
    server.faults = [Fault(cut=10, headers=(("ETag", 'W/"1"'),))]
    get(server, tmp_path)
    assert server.log[1].if_range == DATE


def test_another_mirror_is_refused_unless_fresh(server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(cut=70_000)]
    with pytest.raises(FetchError):
        get(server, tmp_path, retries=0)
    server.files["/other" + PATH] = server.files[PATH]
    left = r"resnet50-qat\.part: left by a run that was cut off, "
    with pytest.raises(OptionError, match=f"{left}with other inputs: address; --fresh starts anew"):
        fetch(MODEL, tmp_path, mirror=server.url + "/other/")
    note = tmp_path / "resnet50-qat.part.json"
    before = note.read_text()
    note.write_text(before[:-5])
    with pytest.raises(OptionError, match=f"{left}whose inputs can't be read; --fresh starts anew"):
        get(server, tmp_path)
    note.write_text(before)
    assert names(tmp_path) == BEGUN and server.starts() == [None]
    fetch(MODEL, tmp_path, mirror=server.url + "/other/", fresh=True)
    assert server.starts() == [None, None]


def test_what_is_gone_on_with_is_told(server: Server, tmp_path: Path) -> None:
    server.faults, told = [Fault(cut=70_000)], list[str]()
    with pytest.raises(FetchError):
        get(server, tmp_path, retries=0)
    get(server, tmp_path, say=told.append)
    assert told == [
        f"{tmp_path}/resnet50-qat.part: 70,000 bytes of a run that was cut off are reused; --fresh starts anew"
    ]
    assert server.starts() == [None, 70_000]


def test_fresh_fetches_every_byte(server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(cut=70_000)]
    with pytest.raises(FetchError):
        get(server, tmp_path, retries=0)
    get(server, tmp_path, fresh=True)
    assert server.starts() == [None, None]


def test_a_part_that_is_whole_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    """Stopped between download and unpacking."""
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, progress=stop_at("unpack"))
    assert names(tmp_path) == BEGUN
    get(server, tmp_path)
    assert len(server.log) == 1
    assert names(tmp_path) == DONE


def test_a_server_that_tells_no_length(server: Server, tmp_path: Path) -> None:
    """All bytes came, but not the end: the answer to the request for the rest is 416."""
    server.lengths, server.faults = False, [Fault(stall_s=5)]
    get(server, tmp_path, timeout_s=0.5)
    assert [request.status for request in server.log] == [200, 416]
    assert names(tmp_path) == DONE


def test_a_part_longer_than_the_file_starts_anew(server: Server, tmp_path: Path) -> None:
    server.lengths, server.etags, server.faults = False, False, [Fault(cut=70_000, stall_s=5)]
    with pytest.raises(FetchError, match=r"nothing came for 0\.5 s"):
        get(server, tmp_path, retries=0, timeout_s=0.5)
    server.files[PATH] = tarred({"model/__model__": b"short"})
    get(server, tmp_path)
    assert [request.status for request in server.log] == [200, 416, 200]


def test_a_stall_ends_and_is_resumed(server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(cut=70_000, stall_s=5)]
    get(server, tmp_path, timeout_s=0.5)
    assert server.starts() == [None, 70_000]


def test_an_interruption_keeps_what_is_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, progress=stop_at("download", 1))
    kept = (tmp_path / "resnet50-qat.part").stat().st_size
    assert kept > 0
    get(server, tmp_path)
    assert server.log[-1].start in (kept, None if kept == len(server.files[PATH]) else kept)
    assert names(tmp_path) == DONE


def stop_at(what: str, done: int = 0) -> Callable[[str, int, int], None]:
    def progress(doing: str, count: int, total: int) -> None:
        if doing == what and count >= done:
            raise KeyboardInterrupt

    return progress


# Refusals of the server


def test_passing_refusals_are_waited_for(server: Server, tmp_path: Path) -> None:
    after = (("Retry-After", "7"),)
    server.faults = [Fault(503), Fault(503), Fault(429, headers=after), Fault(500, headers=(("Retry-After", "9999"),))]
    waits = Waits()
    fetch(MODEL, tmp_path, mirror=server.url, patience=waits.patience())
    assert waits == [1.0, 2.0, 7.0, 60.0]
    assert names(tmp_path) == DONE


def test_patience_ends(server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(503)] * 9
    waits = Waits()
    with pytest.raises(FetchError, match=r"ResNet50_qat_model\.tar\.gz: HTTP 503 Service Unavailable$"):
        fetch(MODEL, tmp_path / "zoo", mirror=server.url, patience=waits.patience())
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert names(tmp_path) == set()


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204])
def test_lasting_refusals_are_not_retried(server: Server, tmp_path: Path, status: int) -> None:
    server.faults = [Fault(status)]
    with pytest.raises(FetchError, match=rf"HTTP {status} .*; --mirror asks another server"):
        get(server, tmp_path / "zoo")
    assert len(server.log) == 1
    assert names(tmp_path) == set()


def test_no_server(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and doesn't listen
        waits = Waits()
        with pytest.raises(FetchError, match=r"no connection: .*refused"):
            fetch(
                MODEL,
                tmp_path / "zoo",
                mirror=f"http://127.0.0.1:{free.getsockname()[1]}",
                patience=waits.patience(2),
            )
    assert waits == [1.0, 2.0]
    assert names(tmp_path) == set()


def test_redirects_are_followed_but_not_for_ever(server: Server, tmp_path: Path) -> None:
    server.files["/moved"] = server.files[PATH]
    server.faults = [Fault(302, headers=(("Location", "/moved"),))]
    get(server, tmp_path / "a")
    server.faults = [Fault(302, headers=(("Location", PATH),))] * 30
    with pytest.raises(FetchError, match="redirects"):
        get(server, tmp_path / "b")


def test_a_proxy_that_can_not_be_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "nonsense://127.0.0.1:1")
    with pytest.raises(FetchError, match="the proxy that the environment names can't be used"):
        get(server, tmp_path)


# The right bytes


def test_the_first_sum_is_recorded_and_later_ones_must_agree(server: Server, tmp_path: Path) -> None:
    first = get(server, tmp_path)
    (tmp_path / "resnet50-qat").rename(tmp_path / "moved")
    noted = (tmp_path / "resnet50-qat.json").read_text()
    server.files[PATH] = tarred({**AS_PUBLISHED, "model/conv1_weights": NOISE[::-1]})
    for _ in range(2):  # and the next try is not of the same bad bytes
        with pytest.raises(FetchError, match=rf"came with SHA-256 \w+, expected is {first.sha256}"):
            get(server, tmp_path)
        assert names(tmp_path) == {"resnet50-qat.json", "moved"}
    assert (tmp_path / "resnet50-qat.json").read_text() == noted
    assert len(server.log) == 3
    server.files[PATH] = tarred(AS_PUBLISHED)  # gzip notes the time, so make it the same file
    changed = hashlib.sha256(server.files[PATH]).hexdigest()
    assert get(server, tmp_path, sha256=changed).sha256 == changed  # the user's word counts most, and is recorded
    assert get(server, tmp_path).sha256 == changed


def test_a_pinned_sum(server: Server, tmp_path: Path) -> None:
    right = hashlib.sha256(server.files[PATH]).hexdigest()
    with pytest.raises(FetchError, match=f"expected is {'0' * 64}"):
        get(server, tmp_path / "zoo", sha256="0" * 64)
    assert names(tmp_path) == set()
    assert get(server, tmp_path / "zoo", sha256=right.upper()).sha256 == right
    for bad in ("", "abc", "g" * 64):
        with pytest.raises(OptionError, match="64 hexadecimal digits"):
            get(server, tmp_path / "zoo", sha256=bad)


def test_paddles_own_md5_is_demanded_of_the_published_address(server: Server, tmp_path: Path) -> None:
    body = server.files[PATH]
    here = replace(MODEL, url=server.url + PATH)
    with pytest.raises(FetchError, match=rf"Paddle's own tests demand {MODEL.md5}; .* --sha256 (\w+) would accept it"):
        fetch(here, tmp_path / "zoo")
    assert names(tmp_path) == set()
    accepted = fetch(here, tmp_path / "zoo", sha256=hashlib.sha256(body).hexdigest())
    assert accepted.as_published is False
    right = replace(here, name="right", md5=hashlib.md5(body).hexdigest())
    assert fetch(right, tmp_path / "zoo").as_published is True


# Archives


def hostile(*infos: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:
        archive.addfile(entry("model/__model__", size=1), io.BytesIO(b"m"))
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return memory.getvalue()


def long_header() -> bytes:
    """A pax header of 4 MB, which tarfile would hold in memory."""
    body = b"%d comment=" % (1 << 22) + bytes(1 << 22)
    header = entry("pax", size=len(body), type=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    return gzip.compress(header + body + bytes(512), 1)


def zip_link() -> bytes:
    memory, info = io.BytesIO(), zipfile.ZipInfo("model/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return memory.getvalue()


def lying_zip() -> bytes:
    """It says 10 bytes and unpacks to a million."""
    content = zipped({"model/__model__": bytes(1_000_000)})
    return content.replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))


def encrypted_zip() -> bytes:
    content = bytearray(zipped({"model/__model__": b"secret"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


GOOD = tarred(AS_PUBLISHED)
OUTSIDE = f"{tempfile.gettempdir()}/outside-{os.getpid()}"
HOSTILE = {
    "up": (hostile(entry("../outside")), "'../outside' leads out of the archive"),
    "up-inside": (hostile(entry("model/../../outside")), "leads out of the archive"),
    "absolute": (hostile(entry(OUTSIDE)), f"'{OUTSIDE}' leads out"),
    "nul": (hostile(entry("x", pax_headers={"path": "a\0b"})), "leads out of the archive"),
    "symlink": (hostile(entry("model/x", type=tarfile.SYMTYPE, linkname="/etc")), "'model/x' is a link to '/etc'"),
    "hardlink": (hostile(entry("model/x", type=tarfile.LNKTYPE, linkname="model/__model__")), "is a link to"),
    "device": (hostile(entry("model/x", type=tarfile.CHRTYPE)), "is a device or pipe"),
    "pipe": (hostile(entry("model/x", type=tarfile.FIFOTYPE)), "is a device or pipe"),
    "twice": (hostile(entry("./model/__model__")), "comes twice"),
    "below-a-file": (hostile(entry("model/__model__/x")), "comes twice"),
    "over-a-folder": (hostile(entry("model")), "comes twice"),
    "bomb": (hostile(entry("model/zeros", size=3_000_000)), "unpacks to more than 2,000,000 bytes"),
    "padding-bomb": (gzip.compress(gzip.decompress(hostile()) + bytes(3_000_000)), "padded without end"),
    "long-header": (long_header(), "a header of more than a megabyte"),
    "truncated": (GOOD[:-2000], "damaged"),
    "truncated-checksum": (GOOD[:-4], "damaged"),
    "flipped": (GOOD[:1000] + bytes([GOOD[1000] ^ 1]) + GOOD[1001:], "damaged"),
    "truncated-tar": (tarred(AS_PUBLISHED, "w")[:100_000], "damaged"),
    "page": (b"<html>not found</html>", "damaged, or not a tar, tar.gz or zip archive"),
    "nothing": (tarred({}), "holds no file"),
    "zip-up": (zipped({"../outside": b""}), "leads out of the archive"),
    "zip-link": (zip_link(), "is a link or device"),
    "zip-lies": (lying_zip(), "damaged"),
    "zip-bomb": (zipped({"model/zeros": bytes(3_000_000)}), "unpacks to more than"),
    "zip-encrypted": (encrypted_zip(), "encrypted"),
    "other-content": (tarred({"a/b/c": b"", "README": b""}), "should hold model, but holds README, a"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_archives_leave_nothing(server: Server, tmp_path: Path, name: str) -> None:
    server.files[PATH], told = HOSTILE[name]
    with pytest.raises(FetchError, match=r"http://127.*ResNet50_qat_model\.tar\.gz: ") as caught:
        get(server, tmp_path / "zoo", max_bytes=2_000_000)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()
    assert not Path(OUTSIDE).exists()
    server.files[PATH] = GOOD  # and the next try is a new one
    assert get(server, tmp_path / "zoo").bytes == len(GOOD)


def test_sizes_are_checked_as_told_and_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, output = tmp_path / "archive", tmp_path / "output"
    archive.write_bytes(zipped({"zeros": bytes(3000)}))
    output.mkdir()
    with pytest.raises(FetchError, match=r"unpacks to more than 2,000 bytes"):
        unpack.unpack(archive, output, "it", max_bytes=2000)
    assert names(output) == set()  # refused by what it says, before anything is written
    monkeypatch.setattr(unpack, "_zip_chunks", lambda *args: iter([bytes(1500)] * 9))
    with pytest.raises(FetchError, match=r"unpacks to more than 4,000 bytes"):
        unpack.unpack(archive, output, "it", max_bytes=4000)
    assert (output / "zeros").stat().st_size == 3000


def test_too_many_files(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tarred({f"{number}": b"" for number in range(60)}))
    (tmp_path / "output").mkdir()
    with pytest.raises(FetchError, match="it: refused, it holds more than 50 files"):
        unpack.unpack(tmp_path / "archive", tmp_path / "output", "it", max_members=50)
    assert len(names(tmp_path / "output")) == 50


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["tar", "gz", "zip"]),
    at=st.floats(0, 1, exclude_max=True),
    new=st.binary(min_size=1, max_size=12),
    end=st.floats(0.2, 1),
)
def test_damage_is_always_told_as_such(
    tmp_path_factory: pytest.TempPathFactory, kind: str, at: float, new: bytes, end: float
) -> None:
    files = {"model/__model__": b"program" * 50, "model/w": NOISE[:300], "x" * 150: b"long"}
    body = {"tar": lambda: tarred(files, "w"), "gz": lambda: tarred(files), "zip": lambda: zipped(files)}[kind]()
    where = int(at * len(body))
    body = (body[:where] + new + body[where + len(new) :])[: int(end * len(body)) + 1]
    directory = tmp_path_factory.mktemp("damage")
    (directory / "archive").write_bytes(body)
    (directory / "output").mkdir()
    try:
        sums = unpack.unpack(directory / "archive", directory / "output", "it", max_bytes=10_000_000)
    except (FetchError, OSError):
        sums = {}
    inside = {str(path.relative_to(directory / "output")) for path in (directory / "output").rglob("*")}
    assert set(sums) <= inside
    assert names(directory) == {"archive", "output"}


@pytest.mark.parametrize("top", ["", "ResNet50_qat_model/"])
@pytest.mark.parametrize("pack", [tarred, zipped, lambda files: tarred(files, "w")], ids=["gz", "zip", "tar"])
def test_one_more_folder_is_accepted(server: Server, tmp_path: Path, top: str, pack: type[dict]) -> None:
    server.files[PATH] = pack({top + name: content for name, content in AS_PUBLISHED.items()})
    assert get(server, tmp_path).holds == (tmp_path / "resnet50-qat" / f"{top}model",)
    assert get(server, tmp_path).was_there


def test_one_folder_less_is_accepted(server: Server, tmp_path: Path) -> None:
    server.files["/int8/Ernie_dataset.tar.gz"] = tarred({"1.8w.bs1": b"1", "label.xnli.dev": b"2"})
    found = fetch(find_artefact("ernie-data"), tmp_path, mirror=server.url)
    assert [place.name for place in found.holds] == ["1.8w.bs1", "label.xnli.dev"]


# The disk


def test_a_full_disk_while_downloading(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = download._write, [100_000]

    def filling(file: BinaryIO, chunk: bytes) -> None:
        write(file, chunk[: room[0]])
        room[0] -= len(chunk[: room[0]])
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(download, "_write", filling)
        with pytest.raises(
            OutputError, match=r"resnet50-qat\.part: can't be written \(No space left on device\); what"
        ):
            get(server, tmp_path)
    assert names(tmp_path) == BEGUN
    get(server, tmp_path)
    assert server.starts() == [None, 100_000]
    assert names(tmp_path) == DONE


def test_too_little_room_is_seen_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(count: int) -> object:
        return lambda path: type("Usage", (), {"free": count})

    monkeypatch.setattr("quant.storage.download.shutil.disk_usage", free(1000))
    with pytest.raises(OutputError, match=r"disk full: 200,\d+ more bytes are needed, 1,000 are free"):
        get(server, tmp_path / "zoo")
    assert names(tmp_path) == set()
    monkeypatch.setattr("quant.storage.download.shutil.disk_usage", free(10**12))
    packed = tarred({**AS_PUBLISHED, "model/zeros": bytes(10**6)})
    server.files[PATH] = packed
    steps = iter([free(10**9), free(1000)])
    monkeypatch.setattr("quant.storage.download.shutil.disk_usage", lambda path: next(steps)(path))
    with pytest.raises(OutputError, match=r"disk full: .* the download stays in .*resnet50-qat\.part"):
        get(server, tmp_path / "zoo")
    assert names(tmp_path / "zoo") == BEGUN
    monkeypatch.undo()
    get(server, tmp_path / "zoo")
    assert len(server.log) == 2  # the second try is content with the part


def test_a_full_disk_while_unpacking(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> Iterator[bytes]:
        yield b"some"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(unpack, "_tar_chunks", full)
        with pytest.raises(OutputError, match=r"\(No space left on device\); the download stays in"):
            get(server, tmp_path)
    assert names(tmp_path) == BEGUN
    get(server, tmp_path)
    assert len(server.log) == 1


def test_places_that_can_not_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "zoo"):
        with pytest.raises(OutputError, match="can't be written"):
            get(server, output)
    (tmp_path / "zoo" / "resnet50-qat").mkdir(parents=True)
    (tmp_path / "zoo" / "resnet50-qat" / "precious").write_text("")
    with pytest.raises(OutputError, match="not fetched by this command"):
        get(server, tmp_path / "zoo")
    (tmp_path / "zoo" / "resnet50-qat" / "precious").unlink()
    (tmp_path / "zoo" / "resnet50-qat.json").write_text("{}")
    with pytest.raises(FetchError, match=r"resnet50-qat\.json: no record of this command"):
        get(server, tmp_path / "zoo")
    assert server.log == []


def test_two_downloads_of_one_thing(server: Server, tmp_path: Path) -> None:
    with part_file(tmp_path / "resnet50-qat.part"), pytest.raises(OutputError, match="another download is writing it"):
        get(server, tmp_path)
    assert names(tmp_path) == set()
    get(server, tmp_path)


def test_a_server_that_sends_too_much(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="larger than 150,000 bytes"):
        get(server, tmp_path / "zoo", max_bytes=150_000)
    server.lengths = False
    with pytest.raises(FetchError, match="sends more than 150,000 bytes"):
        get(server, tmp_path / "zoo", max_bytes=150_000)
    assert names(tmp_path) == set()


# Mirrors


def test_mirrors() -> None:
    url = "https://host.example/a/b.tar.gz"
    assert mirrored(url, None) == url
    assert mirrored(url, "http://other:8080/base/") == "http://other:8080/base/a/b.tar.gz"
    for bad in ("other", "ftp://other", "http://", "http://other/?q=1", "http://other:port", "http://other:99999", ""):
        with pytest.raises(OptionError, match=r"--mirror: .* is not http"):
            mirrored(url, bad)


def test_a_mirrors_password_is_used_and_not_noted(server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(404)]
    mirror = server.url.replace("//", "//user:secret@")
    with pytest.raises(FetchError) as caught:
        fetch(MODEL, tmp_path, mirror=mirror)
    assert "secret" not in str(caught.value)
    fetch(MODEL, tmp_path, mirror=mirror)
    assert "secret" not in (tmp_path / "resnet50-qat.json").read_text()
