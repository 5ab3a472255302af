"""A faithful Hugging Face hub on this machine: it speaks what `huggingface_hub` asks, and can misbehave."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from quiet_server import QuietServer

COMMIT = "c0ffee" * 6 + "abcd"


class LocalHub:
    """Repositories on 127.0.0.1; large files are redirected to a second server, as the real hub does."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, list[str]] = {}
        self.commit = COMMIT
        self.token = ""
        """When set, repositories are shown to who brings it."""
        self.gated = False
        self.status = 0
        """Answer to everything, when set."""
        self.cut_after: int | None = None
        """Bytes after which a large file breaks off."""
        self.hold_after: int | None = None
        self.holding, self.release = threading.Event(), threading.Event()
        self.log: list[tuple[str, str, str]] = []
        """(path, range, authorization) of each request for bytes."""
        self.news = threading.Condition()
        self.files = _serve(_Cdn, self)
        self.server = _serve(_Api, self)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://127.0.0.1:{self.files.server_port}"

    def listing(self, name: str) -> dict[str, Any]:
        siblings = []
        for path, data in self.repositories[name].items():
            sibling: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_oid(data)}
            if path.endswith((".gguf", ".safetensors")):
                sibling["lfs"] = {"sha256": sha256_of(data), "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        return {
            "id": name,
            "_id": "1",
            "sha": self.commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
        }

    def ranges(self) -> list[str]:
        return [asked for path, asked, _ in self.log if path.startswith("/cdn/")]

    def wait_for(self, condition: Callable[[], Any]) -> bool:
        """Wait, with a bound, until requests for bytes have made something true."""
        with self.news:
            return bool(self.news.wait_for(condition, timeout=30))

    def close(self) -> None:
        self.release.set()
        for server in (self.server, self.files):
            server.shutdown()
            server.server_close()


# Of a real model these take half a second, and each request asks for them.
@functools.lru_cache(maxsize=16)
def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=16)
def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _serve(
    handler: type[http.server.BaseHTTPRequestHandler], hub: LocalHub
) -> http.server.ThreadingHTTPServer:
    server = _Server(("127.0.0.1", 0), handler)
    server.hub = hub
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Server(QuietServer):
    hub: LocalHub


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> LocalHub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, data: bytes, *, large: bool) -> None:
        hub, asked = self.hub, self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        with hub.news:
            hub.log.append((self.path, asked, self.headers.get("Authorization", "")))
            hub.news.notify_all()
        if start >= len(data) and asked:
            return self.answer(416, Content_Range=f"bytes */{len(data)}")
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stop = (hub.cut_after or hub.hold_after) if large else None
        if stop is None or start >= stop:
            self.wfile.write(data[start:])
            return None
        self.wfile.write(data[start:stop])
        self.wfile.flush()
        if hub.cut_after:
            self.close_connection = True
            return None
        hub.holding.set()
        hub.release.wait(30)
        self.wfile.write(data[stop:])
        return None

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class _Cdn(_Handler):
    def do_GET(self) -> None:
        for files in self.hub.repositories.values():
            for data in files.values():
                if self.path == f"/cdn/{sha256_of(data)}":
                    return self.send_file(data, large=True)
        return self.answer(404)


class _Api(_Handler):
    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if hub.status:
            return self.answer(hub.status, b"{}")
        if path == "/api/models":
            return self.answer(200, json.dumps(self._found()).encode(), Content_Type="application/json")
        name = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if name not in hub.repositories:
            return self.answer(404, b'{"error":"no"}', X_Error_Code="RepoNotFound")
        if hub.gated and path.startswith("/api/"):
            return self.answer(403, b"{}", X_Error_Code="GatedRepo")
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer(401, b"{}", X_Error_Code="RepoNotFound")
        if path.startswith("/api/models/"):
            return self.answer(200, json.dumps(hub.listing(name)).encode(), Content_Type="application/json")
        rest = path.removeprefix(f"/{name}/resolve/")
        commit, _, file = rest.partition("/")
        data = hub.repositories[name].get(file)
        if commit != hub.commit or data is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        if file.endswith((".gguf", ".safetensors")):
            return self.answer(302, Location=f"{hub.cdn}/cdn/{sha256_of(data)}")
        return self.send_file(data, large=False)

    def _found(self) -> list[dict[str, Any]]:
        wanted = parse_qs(urlsplit(self.path).query).get("search", [""])[0].lower()
        return [
            {"id": name, "tags": self.hub.tags.get(name, []), "downloads": 7, "likes": 1}
            for name in self.hub.repositories
            if wanted in name.lower()
        ]

    do_HEAD = do_GET  # noqa: N815
