"""A real registry (Debian's docker-registry), a doorway before it that misbehaves on purpose, and images."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import http.server
import io
import json
import re
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quiet_server import QuietServer

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Layer:
    """One layer: packed as it is published, and the digest of what it unpacks to."""

    data: bytes
    diff_id: str


@dataclass
class Published:
    """What a push has made."""

    digest: str
    """Of the manifest for the platform."""
    size: int
    """Bytes of manifest, configuration and layers."""
    layers: list[str]
    """Their digests."""


Entry = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"", mode: int = 0o644) -> Entry:
    member = tarfile.TarInfo(name)
    member.mode, member.size = mode, len(data)
    return member, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Entry:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def special(name: str, kind: bytes) -> Entry:
    member = tarfile.TarInfo(name)
    member.type = kind
    return member


def layer(entries: Iterable[Entry], pack: Callable[[bytes], bytes] | None = None) -> Layer:
    """A layer of these entries, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            member, data = entry if isinstance(entry, tuple) else (entry, b"")
            tar.addfile(member, io.BytesIO(data))
    plain = out.getvalue()
    packed = gzip.compress(plain, 1, mtime=0) if pack is None else pack(plain)
    return Layer(packed, digest_of(plain))


def folder_layer(folder: Path, inside: str, mode: int | None = None) -> Layer:
    """A folder as a layer, below `inside`; `mode` is given to all files, as some ways to build images do."""

    def changed(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if mode is not None and member.isreg():
            member.mode = mode
        member.mtime = 0
        return member

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(folder, inside.strip("/"), filter=changed)
    return Layer(gzip.compress(out.getvalue(), 1, mtime=0), digest_of(out.getvalue()))


class RealRegistry:
    """docker-registry on a free port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        config = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        (folder / "config.json").write_text(json.dumps(config))  # JSON is YAML
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "config.json")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.request("GET", "/v2/")
            except OSError:
                assert time.monotonic() < deadline, "docker-registry did not start"
                assert self._process.poll() is None, (folder / "log").read_text()
                threading.Event().wait(0.02)
            else:
                break

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            with connection.getresponse() as response:
                try:
                    body = response.read()
                except http.client.IncompleteRead as error:
                    # Its answers with 416 say that they have the length of the blob.
                    body = error.partial
                return response.status, body, dict(response.headers)
        finally:
            connection.close()

    def push_blob(self, name: str, data: bytes) -> str:
        status, _, headers = self.request("POST", f"/v2/{name}/blobs/uploads/")
        assert status == 202
        parts = urlsplit(headers["Location"])
        path = f"{parts.path}?{parts.query}&digest={digest_of(data)}"
        octets = {"Content-Type": "application/octet-stream"}
        assert self.request("PUT", path, data, octets)[0] == 201
        return digest_of(data)

    def push_manifest(self, name: str, tag: str, manifest: Mapping[str, Any], kind: str = MANIFEST) -> bytes:
        body = json.dumps(manifest, indent=2).encode()
        tag = tag or digest_of(body)
        status, said, _ = self.request("PUT", f"/v2/{name}/manifests/{tag}", body, {"Content-Type": kind})
        assert status == 201, said
        return body

    def push(
        self,
        name: str,
        layers: Sequence[Layer],
        *,
        tag: str = "latest",
        os: str = "darwin",
        architecture: str = "arm64",
    ) -> Published:
        """Publish an image for one platform; without a tag, only under its digest."""
        config = json.dumps(
            {
                "os": os,
                "architecture": architecture,
                "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
            }
        ).encode()
        described = [
            {"mediaType": LAYER, "digest": self.push_blob(name, one.data), "size": len(one.data)}
            for one in layers
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": self.push_blob(name, config), "size": len(config)},
            "layers": described,
        }
        body = self.push_manifest(name, tag, manifest)
        unique = {one.diff_id: len(one.data) for one in layers}
        return Published(
            digest_of(body),
            len(body) + len(config) + sum(unique.values()),
            [digest_of(one.data) for one in layers],
        )

    def push_index(self, name: str, platforms: Mapping[str, Published], tag: str = "latest") -> str:
        """Publish images for several platforms (`os/architecture[/variant]`) under one tag."""
        manifests = []
        for text, published in platforms.items():
            words = ("os", "architecture", "variant")
            status, body, _ = self.request(
                "GET", f"/v2/{name}/manifests/{published.digest}", headers={"Accept": MANIFEST}
            )
            assert status == 200
            manifests.append(
                {
                    "mediaType": MANIFEST,
                    "digest": published.digest,
                    "size": len(body),
                    "platform": dict(zip(words, text.split("/"), strict=False)),
                }
            )
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        return digest_of(self.push_manifest(name, tag, index, INDEX))

    def remove(self, name: str, digest: str) -> None:
        """Take a manifest away, and with it the tags that mean it."""
        assert self.request("DELETE", f"/v2/{name}/manifests/{digest}")[0] == 202


@dataclass
class Told:
    """One request that came to a doorway."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Wrong:
    """What a doorway does instead of passing an answer on."""

    status: int = 0
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    flip: int | None = None
    """The byte of the body that is changed."""
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    rate: int = 0
    """Bytes a second."""
    hang: threading.Event | None = None
    """Nothing is said before it is set."""
    times: int = 10**9
    """How often; afterwards it behaves."""


class Doorway:
    """An HTTP server before a registry: passes everything on but what `wrong` says, and remembers it."""

    def __init__(self, registry: RealRegistry | None) -> None:
        self.wrong: dict[str, Wrong] = {}
        """By a regular expression that is searched for in the path; the first one counts."""
        self.told: list[Told] = []
        self.closing = threading.Event()
        doorway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

            def do_GET(self) -> None:
                doorway.told.append(Told(self.command, self.path, dict(self.headers)))
                length = int(self.headers.get("Content-Length", 0))
                posted = self.rfile.read(length)
                wrong = doorway.wrong_for(self.path)
                if wrong.hang is not None:
                    wrong.hang.wait(30)
                if wrong.status:
                    return self.answer(wrong.status, wrong.body or b"", wrong.headers, wrong)
                if registry is None:
                    return self.answer(404, b"", {}, wrong)
                passed = {k: v for k, v in self.headers.items() if k in ("Range", "Accept", "Content-Type")}
                status, body, headers = registry.request(self.command, self.path, posted, passed)
                wanted = ("Content-Range", "Docker-Content-Digest", "Content-Type", "Link", "Accept-Ranges")
                kept = {name: headers[name] for name in wanted if name in headers}
                if wrong.body is not None:
                    body = wrong.body
                    kept.pop("Docker-Content-Digest", None)
                if wrong.flip is not None and body:
                    at = wrong.flip % len(body)
                    body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
                return self.answer(status, body, kept, wrong)

            do_POST = do_GET  # noqa: N815 - the server calls it by this name

            def answer(self, status: int, body: bytes, headers: Mapping[str, str], wrong: Wrong) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                end = len(body) if wrong.cut_after is None else min(wrong.cut_after, len(body))
                step = max(1, wrong.rate // 20) if wrong.rate else len(body) or 1
                try:
                    for begin in range(0, end, step):
                        self.wfile.write(body[begin : min(begin + step, end)])
                        self.wfile.flush()
                        if wrong.rate and doorway.closing.wait(step / wrong.rate):
                            break
                except OSError:
                    end = -1
                if end < len(body):
                    self.close_connection = True

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    def wrong_for(self, path: str) -> Wrong:
        for pattern, wrong in self.wrong.items():
            if re.search(pattern, path) and wrong.times > 0:
                wrong.times -= 1
                return wrong
        return Wrong()

    def asked(self, pattern: str) -> list[Told]:
        """The requests whose path has it."""
        return [told for told in self.told if re.search(pattern, told.path)]

    def close(self) -> None:
        self.closing.set()
        for wrong in self.wrong.values():
            if wrong.hang is not None:
                wrong.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
