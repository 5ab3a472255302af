"""A package index on 127.0.0.1 that misbehaves on request, and wheels made on the spot."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from greenroom.runner.installations.lock_file import LockedFile
from greenroom.runner.installations.sources import PackageSources, Setting
from quiet_server import QuietServer


def make_wheel(
    name: str,
    version: str,
    files: dict[str, bytes],
    tag: str = "py3-none-any",
    requires: tuple[str, ...] = (),
) -> tuple[str, bytes]:
    """A real wheel, with RECORD; the same arguments make the same bytes."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    lines = []
    for path, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}")
    contents[f"{info}/RECORD"] = ("\n".join([*lines, f"{info}/RECORD,,"]) + "\n").encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            entry = zipfile.ZipInfo(path, date_time=(2026, 1, 1, 0, 0, 0))
            archive.writestr(entry, data, compress_type=zipfile.ZIP_DEFLATED)
    return f"{name}-{version}-{tag}.whl", out.getvalue()


@dataclass
class Misbehaviour:
    """What a path does instead of answering properly."""

    status: int = 0
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    times: int = 10**9
    """How often; afterwards it behaves."""
    rate: int = 0
    """Bytes a second."""
    body: bytes | None = None
    hang: threading.Event | None = None
    """Say nothing before this is set."""
    hang_after: int = 0
    """Bytes of a file that come before that."""
    ranges: bool = True


@dataclass
class Index:
    """A simple index: wheels by project, and what each path does wrong."""

    url: str = ""
    wheels: dict[str, dict[str, bytes]] = field(default_factory=dict)
    wrong: dict[str, Misbehaviour] = field(default_factory=dict)
    """By file name or project name."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path, headers."""
    sent: Counter[str] = field(default_factory=Counter)
    """Body bytes by file name."""
    html: bool = False
    hashes: bool = True
    password: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def add(
        self,
        name: str,
        version: str,
        files: dict[str, bytes],
        tag: str = "py3-none-any",
        requires: tuple[str, ...] = (),
    ) -> LockedFile:
        filename, data = make_wheel(name, version, files, tag, requires)
        self.wheels.setdefault(name.replace("_", "-"), {})[filename] = data
        return LockedFile(name=filename, sha256=hashlib.sha256(data).hexdigest(), size=len(data))

    @property
    def sources(self) -> PackageSources:
        return PackageSources(
            index=Setting(f"{self.url}/simple/", "the test"), timeout=Setting("10", "the test")
        )

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index: Index

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> Any:
        index = self.index
        index.requests.append((self.command, self.path, dict(self.headers)))
        parts = [part for part in self.path.split("?")[0].split("/") if part]
        if index.password:
            pair = base64.b64encode(f"user:{index.password}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {pair}":
                return self._answer(401, b"who are you")
        if len(parts) == 2 and parts[0] == "simple":
            return self._page(parts[1])
        if len(parts) == 2 and parts[0] == "files":
            for wheels in index.wheels.values():
                if parts[1] in wheels:
                    return self._file(parts[1], wheels[parts[1]])
        return self._answer(404, b"not found")

    def _page(self, project: str) -> Any:
        wrong = self.index.wrong.get(project, Misbehaviour())
        if wrong.hang is not None:
            wrong.hang.wait(30)
        if wrong.status:
            return self._answer(wrong.status, b"no")
        if wrong.body is not None:
            return self._answer(200, wrong.body, "text/html")
        wheels = self.index.wheels.get(project)
        if wheels is None:
            return self._answer(404, b"no such project")
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in wheels.items()}
        if self.index.html:
            fragment = "#sha256={}" if self.index.hashes else ""
            links = "".join(
                f'<a href="../../files/{name}{fragment.format(sums[name])}">{name}</a>\n' for name in wheels
            )
            return self._answer(
                200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html"
            )
        files = [
            {
                "filename": name,
                "url": f"/files/{name}",
                "hashes": {"sha256": sums[name]} if self.index.hashes else {},
                "size": len(wheels[name]),
            }
            for name in wheels
        ]
        page = json.dumps({"meta": {"api-version": "1.1"}, "name": project, "files": files, "versions": []})
        return self._answer(200, page.encode(), "application/vnd.pypi.simple.v1+json")

    def _file(self, name: str, data: bytes) -> Any:
        wrong = self.index.wrong.get(name, Misbehaviour())
        active = wrong.times > 0
        wrong.times -= 1
        hang = wrong.hang if active else None
        if hang is not None and not wrong.hang_after:
            hang.wait(30)
        if active and wrong.status:
            return self._answer(wrong.status, b"no")
        if active and wrong.body is not None:
            data = wrong.body
        start, status = 0, 200
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and wrong.ranges:
            begin, _, last = wanted.removeprefix("bytes=").partition("-")
            start, status = int(begin) if begin else max(0, len(data) - int(last)), 206
            if start >= len(data):
                return self._answer(416, b"")
        body = data[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        limit = wrong.cut_after if active and wrong.cut_after is not None else len(body)
        step = max(1, wrong.rate // 20) if wrong.rate else 1 << 20
        try:
            for offset in range(0, min(limit, len(body)), step):
                if hang is not None and 0 < wrong.hang_after <= offset:
                    hang.wait(30)
                chunk = body[offset : min(offset + step, limit)]
                self.index.sent[name] += len(chunk)
                self.wfile.write(chunk)
                self.wfile.flush()
                if wrong.rate and self.index.released.wait(len(chunk) / wrong.rate):
                    return None
            if limit < len(body):
                self.close_connection = True
                self.connection.shutdown(2)
        except OSError:
            self.close_connection = True
        return None

    def _answer(self, status: int, body: bytes, media: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Index]:
    """An index without wheels, as long as the context lasts."""
    index = Index()
    handler = type("Handler", (_Handler,), {"index": index})
    server = QuietServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield index
    finally:
        index.released.set()
        for wrong in index.wrong.values():
            if wrong.hang is not None:
                wrong.hang.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
