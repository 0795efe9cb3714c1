"""A web server on this machine for tests of downloads: ranges, ETags, and faults by script. And archives to serve."""

import io
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """What happens to one request: another `status`, or the body ends after `cut` bytes, by a hang of `stall_s`."""

    status: int | None = None
    cut: int | None = None
    stall_s: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Request:
    """`start`: the first byte that was asked for; `sent`: how many of the body went out."""

    path: str
    start: int | None
    if_range: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Server:
    """Serves `files`; `faults` are for the next requests, one each. The flags are what a server may lack."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)
    ranges: bool = True
    if_range: bool = True
    etags: bool = True
    dates: bool = False
    lengths: bool = True

    def sent(self) -> int:
        return sum(request.sent for request in self.log)

    def starts(self) -> list[int | None]:
        return [request.start for request in self.log]


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            request = Request(self.path, int(asked[1]) if asked else None, self.headers.get("If-Range"))
            server.log.append(request)
            fault = server.faults.pop(0) if server.faults else Fault()
            status, body, headers = answer(request)
            request.status = fault.status or status
            self.send_response(request.status)
            headers |= {"Content-Length": "0"} if fault.status else {}
            for name, value in {**headers, **dict(fault.headers), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if fault.status:
                return
            request.sent = len(body[: fault.cut])
            self.wfile.write(body[: fault.cut])
            self.wfile.flush()
            time.sleep(fault.stall_s)

        def log_message(self, *args: object) -> None:
            pass

    def answer(request: Request) -> tuple[int, bytes, dict[str, str]]:
        body = server.files.get(request.path)
        if body is None:
            return 404, b"", {"Content-Length": "0"}
        version = f'"{sha256(body).hexdigest()[:8]}"'
        headers = {"ETag": version} if server.etags else {}
        headers |= {"Last-Modified": DATE} if server.dates else {}
        same = not server.if_range or request.if_range in (None, version if server.etags else DATE)
        if server.ranges and request.start is not None and same:
            if request.start >= len(body):
                return 416, b"", {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}
            headers["Content-Range"] = f"bytes {request.start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[request.start :]
        else:
            status = 200
        if server.lengths:
            headers["Content-Length"] = str(len(body))
        return status, body, headers

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.block_on_close = False  # a handler that hangs is not waited for
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def tarred(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    """A tar archive with its directories, as `tar czf` makes it."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:
        folders: set[str] = set()
        for name, content in files.items():
            for folder in [name[: at.start()] for at in re.finditer("/", name)]:
                if folder not in folders:
                    folders.add(folder)
                    archive.addfile(entry(folder, type=tarfile.DIRTYPE))
            archive.addfile(entry(name, size=len(content)), io.BytesIO(content))
    return memory.getvalue()


def entry(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def zipped(files: Mapping[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()
