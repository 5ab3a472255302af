"""A real registry with models, locked if wanted, and a gate before it that asks for tokens and breaks off."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from quiet_server import QuietServer

needs_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None,
    reason="needs the system package docker-registry: apt-get install docker-registry",
)

GGUF = "application/vnd.docker.ai.gguf.v3"
SAFETENSORS = "application/vnd.docker.ai.safetensors"
CONFIG = "application/vnd.docker.ai.model.config.v0.1+json"
CONFIG_TAR = "application/vnd.docker.ai.vllm.config.tar"
FILEPATH = "org.cncf.model.filepath"
# "me" with the password "secret", as htpasswd -B writes it
HTPASSWD = "me:$2b$04$p1fXshsTGLnJrGQRDT5rouWvsJ60SNJB9qdl15BV4.zgAWPRQVs6u\n"
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class RealRegistry:
    """docker-registry on a free port of 127.0.0.1."""

    def __init__(self, folder: Path, *, htpasswd: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        self._authorization = BASIC if htpasswd else ""
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.host},
        }
        if htpasswd:
            (folder / "htpasswd").write_text(htpasswd)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        (folder / "config.json").write_text(json.dumps(config))  # JSON is YAML
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.json")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.request("GET", "/v2/")
            except OSError:
                assert time.monotonic() < deadline, "docker-registry did not start"
                assert self._process.poll() is None, "docker-registry has died"
                threading.Event().wait(0.02)
            else:
                break

    def request(self, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, timeout=10)
        headers = {"Content-Type": kind or "application/octet-stream"}
        if self._authorization:
            headers["Authorization"] = self._authorization
        connection.request(method, path, body=body, headers=headers)
        with connection.getresponse() as response:
            response.read()
            return response.status, response.headers.get("Location", "")

    def push(
        self,
        name: str,
        layers: list[tuple[str, bytes, dict[str, str]]],
        *,
        tag: str = "latest",
        config_type: str = CONFIG,
        lie: int = 0,
    ) -> str:
        """Publish an artifact; returns its digest. Its manifest lies by so many bytes about each layer."""
        config = json.dumps({"config": {"format": "gguf"}, "rootfs": {"diff_ids": []}}).encode()
        for data in [config, *(data for _, data, _ in layers)]:
            status, place = self.request("POST", f"/v2/{name}/blobs/uploads/")
            assert status == 202
            parts = urlsplit(place)
            path = f"{parts.path}?{parts.query}&digest={digest(data)}"
            assert self.request("PUT", path, data)[0] == 201
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": config_type, "digest": digest(config), "size": len(config)},
            "layers": [
                {
                    "mediaType": kind,
                    "digest": digest(data),
                    "size": len(data) + lie,
                    "annotations": annotations,
                }
                for kind, data, annotations in layers
            ],
        }
        body = json.dumps(manifest, indent=3).encode()
        kind = "application/vnd.oci.image.manifest.v1+json"
        assert self.request("PUT", f"/v2/{name}/manifests/{tag}", body, kind)[0] == 201
        return digest(body)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


class Gate:
    """Stands before a registry: asks for a token, and breaks off blobs."""

    def __init__(self, registry: RealRegistry) -> None:
        self.cut_after: int | None = None
        self.token = "t0k3n"
        """The token it requires; empty admits every client."""
        self.valid = True
        self.expires = False
        """The token runs out when the first blob is asked for."""
        self.told: list[tuple[str, str, str]] = []
        """(path, range, authorization)"""
        self.writes: list[tuple[str, str, int]] = []
        """(method, path, bytes of the body that came)"""
        self.cut_uploads = 0
        """How many uploads break off after a part of them."""
        self.hold_after: int | None = None
        """Bytes of a large blob after which it waits for `release`."""
        self.holding, self.release = threading.Event(), threading.Event()
        self.blobs = True
        """Has blobs; a mirror that has caught only manifests has none."""
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                authorization = self.headers.get("Authorization", "")
                gate.told.append((self.path, self.headers.get("Range", ""), authorization))
                if self.path.startswith("/token"):
                    if "scope=repository%3A" not in self.path or authorization not in ("", BASIC):
                        return self._send(401, b"")
                    gate.valid = True
                    return self._send(200, json.dumps({"token": gate.token}).encode())
                if not gate.blobs and "/blobs/" in self.path:
                    return self._send(404, b"{}")
                if gate.expires and "/blobs/" in self.path:
                    gate.expires, gate.valid = False, False
                if gate.token and (authorization != f"Bearer {gate.token}" or not gate.valid):
                    realm = f'Bearer realm="http://{gate.host}/token",service="test",scope="x"'
                    return self._send(401, b"{}", {"WWW-Authenticate": realm})
                return self._forward()

            def do_PUT(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                authorization = self.headers.get("Authorization", "")
                gate.told.append((self.path, "", authorization))
                if gate.cut_uploads and length > 10_000:
                    gate.cut_uploads -= 1
                    gate.writes.append((self.command, self.path, len(self.rfile.read(length // 2))))
                    self.close_connection = True
                    return None
                content = self.rfile.read(length)
                gate.writes.append((self.command, self.path, length))
                if gate.token and (authorization != f"Bearer {gate.token}" or not gate.valid):
                    realm = f'Bearer realm="http://{gate.host}/token",service="test",scope="x"'
                    return self._send(401, b"{}", {"WWW-Authenticate": realm})
                return self._forward(content)

            do_POST = do_HEAD = do_PUT  # noqa: N815

            def _forward(self, content: bytes = b"") -> None:
                connection = http.client.HTTPConnection(registry.host, timeout=10)
                kept = ("Range", "Accept", "Content-Type", "Content-Length")
                wanted = {k: v for k, v in self.headers.items() if k in kept}
                # The registry names itself as it was called.
                connection.request(self.command, self.path, content or None, wanted | {"Host": gate.host})
                with connection.getresponse() as response:
                    body = response.read()
                names = ("Content-Range", "Docker-Content-Digest", "Content-Type", "Location")
                headers = {k: v for k, v in response.headers.items() if k in names}
                cut = gate.cut_after if "/blobs/" in self.path and len(body) > 10_000 else None
                self._send(response.status, body, headers, cut)

            def _send(
                self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                hold = gate.hold_after if len(body) > 10_000 else None
                if hold:
                    self.wfile.write(body[:hold])
                    self.wfile.flush()
                    gate.holding.set()
                    gate.release.wait(60)
                    body = body[hold:]
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body[:cut])
                self.close_connection = self.close_connection or cut is not None

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
