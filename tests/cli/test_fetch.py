"""`quant fetch` against a real server on this machine: what is printed, exit codes, and that a second try goes on."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from quant.cli import main
from quant.suites.published.catalogue import ARTEFACTS
from tests.http_server import Fault, Server, serving, tarred
from tests.interrupts import heard

PATH = "/int8/QAT_models/MobileNetV1_qat_model.tar.gz"
DATA = "/int8/Ernie_dataset.tar.gz"
WEIGHTS = bytes(range(256)) * 4000  # a megabyte that packs well
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as served:
        served.files[PATH] = tarred({"model/__model__": b"program", "model/conv1_weights": WEIGHTS})
        served.files[DATA] = tarred({"Ernie_dataset/1.8w.bs1": b"1", "Ernie_dataset/label.xnli.dev": b"2"})
        yield served


@pytest.fixture
def run(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*args: object, output: Path = tmp_path / "zoo") -> tuple[int, str, str]:
        capfd.readouterr()
        options = ("--mirror", server.url, "--output", str(output))
        code = main(["fetch", *map(str, args), *(() if "--mirror" in args else options)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    def call(*args: object, **options: Path) -> str:
        code, out, err = run(*args, **options)
        assert (code, out) == (2, "")
        *before, line = err.splitlines()
        assert line.startswith("quant: ") and all("are reused; --fresh starts anew" in one for one in before), err
        return line

    return call


def child(server: Server, output: Path, before: Callable[[], None] = heard) -> subprocess.Popen[str]:
    args = ["fetch", "mobilenetv1-qat", "--mirror", server.url, "--output", str(output)]
    script = f"import sys, quant.cli; print(flush=True); sys.exit(quant.cli.main({args!r}))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], preexec_fn=before, **pipes)


def test_models_and_data(run: Run, server: Server, tmp_path: Path) -> None:
    code, out, err = run("mobilenetv1-qat", "ernie-data")
    assert code == 0
    model, data = out.splitlines()
    zoo, sum_ = tmp_path / "zoo", sha256(server.files[PATH]).hexdigest()
    assert model.startswith(f"{zoo}/mobilenetv1-qat/model  {len(server.files[PATH]):,} bytes fetched; ")
    assert model.endswith(sum_)
    assert data.startswith(f"{zoo}/ernie-data/Ernie_dataset/1.8w.bs1 {zoo}/ernie-data/Ernie_dataset/label.xnli.dev ")
    # Not what is published, of course; from a mirror that is only said.
    assert [line.split(":")[:2] for line in err.splitlines()] == [
        ["warning", " mobilenetv1-qat"],
        ["warning", " ernie-data"],
    ]
    assert (zoo / "mobilenetv1-qat" / "model" / "conv1_weights").read_bytes() == WEIGHTS
    code, out, err = run("mobilenetv1-qat", "--sha256", sum_)
    assert (code, err) == (0, "") and "was there, unchanged" in out
    assert len(server.log) == 2


def test_the_list(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--list"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert len(out.splitlines()) == len(ARTEFACTS)
    for line, artefact in zip(out.splitlines(), ARTEFACTS, strict=True):
        assert line.split()[:2] == [artefact.name, artefact.url]
        assert line.endswith(artefact.source)


def test_bad_options(fails: Callable[..., str], server: Server, tmp_path: Path) -> None:
    assert "unknown artefact 'mobilenet-qat'; did you mean 'mobilenetv" in fails("ernie-data", "mobilenet-qat")
    assert "--list prints what there is" in fails()
    assert "--mirror: 'host' is not http://host" in fails("ernie-data", "--mirror", "host")
    assert "--sha256: 'abc' is not 64" in fails("ernie-data", "--sha256", "abc")
    assert "several are named" in fails("ernie-data", "lstm-data", "--sha256", "0" * 64)
    assert server.log == []
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_one_line_and_the_next_try_goes_on(
    run: Run, fails: Callable[..., str], server: Server, tmp_path: Path
) -> None:
    zoo, size = tmp_path / "zoo", len(server.files[PATH])
    assert "PaddlePaddle" not in fails("ernie-qat")  # 404
    assert not zoo.exists()
    server.faults = [Fault(503)]
    assert "HTTP 503" in fails("mobilenetv1-qat", "--retries", 0)
    assert not zoo.exists()
    server.faults = [Fault(cut=1000)]
    assert "1,000 bytes stay in" in fails("mobilenetv1-qat", "--retries", 0)
    server.faults = [Fault(cut=500, stall_s=5)]
    assert "nothing came for 0.5 s; 1,500 bytes stay in" in fails("mobilenetv1-qat", "--retries", 0, "--timeout", "0.5")
    assert "expected is 0000" in fails("mobilenetv1-qat", "--sha256", "0" * 64)
    assert list(zoo.iterdir()) == []
    assert server.starts()[-3:] == [None, 1000, 1500]
    assert sum(request.sent for request in server.log[-3:]) == size
    assert run("mobilenetv1-qat")[0] == 0
    (zoo / "mobilenetv1-qat" / "model" / "__model__").write_bytes(b"other")
    assert "__model__: changed since it was fetched" in fails("mobilenetv1-qat")


def test_bad_archives_and_places(fails: Callable[..., str], server: Server, tmp_path: Path) -> None:
    server.files[PATH] = tarred({"../up": b""})
    assert "'..' leads out of the archive" in fails("mobilenetv1-qat")
    server.files[PATH] = b"<html>" * 100
    assert "not a tar, tar.gz or zip archive" in fails("mobilenetv1-qat")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "can't be written" in fails("mobilenetv1-qat", output=tmp_path / "file" / "zoo")
    assert "can't be written" in fails("mobilenetv1-qat", output=Path("/proc/zoo"))


@pytest.mark.parametrize(("room", "told"), [(3000, "what was downloaded"), (500_000, "the download stays in")])
def test_writes_that_the_system_refuses(run: Run, server: Server, tmp_path: Path, room: int, told: str) -> None:
    """A limit on the size of files stands for a full disk: it takes a part of a write, and no more."""
    assert 3000 < len(server.files[PATH]) < 500_000 < len(WEIGHTS)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    process = child(server, tmp_path / "zoo", before=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.count("\n") == 1 and "can't be written (File too large); " in err and told in err
    kept = min(room, len(server.files[PATH]))
    assert {path.name for path in (tmp_path / "zoo").iterdir()} == {"mobilenetv1-qat.part", "mobilenetv1-qat.part.json"}
    assert (tmp_path / "zoo" / "mobilenetv1-qat.part").stat().st_size == kept
    assert run("mobilenetv1-qat")[0] == 0
    assert server.starts() == ([None, kept] if kept == room else [None])


def test_control_c_keeps_the_part(run: Run, server: Server, tmp_path: Path) -> None:
    server.faults = [Fault(cut=1000, stall_s=30)]
    process = child(server, tmp_path / "zoo")
    part = tmp_path / "zoo" / "mobilenetv1-qat.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)  # until it waits for more: a signal that comes just before is only seen when the wait ends
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (2, 130) and "Traceback" not in err
    assert part.stat().st_size == 1000
    assert run("mobilenetv1-qat")[0] == 0
    assert server.starts() == [None, 1000]
    assert not part.exists()
