"""Pulls from a hub on this machine that speaks what `huggingface_hub` asks, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.store import Store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

COMMIT = "c0ffee" * 6 + "abcd"
NewPuller = Callable[..., Puller]
Make = Callable[..., bytes]


class LocalHub:
    """Repositories on 127.0.0.1; large files are redirected to a second server, as the real hub does."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
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
        self.files = _serve(_Cdn, self)
        self.server = _serve(_Api, self)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://127.0.0.1:{self.files.server_port}"

    def listing(self, name: str) -> dict[str, Any]:
        siblings = []
        for path, data in self.repositories[name].items():
            sibling: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": _git_oid(data)}
            if path.endswith((".gguf", ".safetensors")):
                sibling["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
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

    def close(self) -> None:
        self.release.set()
        for server in (self.server, self.files):
            server.shutdown()
            server.server_close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _serve(
    handler: type[http.server.BaseHTTPRequestHandler], hub: LocalHub
) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.hub = hub  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> LocalHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

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
        hub.log.append((self.path, asked, self.headers.get("Authorization", "")))
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

    def log_message(self, *args: Any) -> None:
        pass


class _Cdn(_Handler):
    def do_GET(self) -> None:
        for files in self.hub.repositories.values():
            for data in files.values():
                if self.path == f"/cdn/{_sha256(data)}":
                    return self.send_file(data, large=True)
        return self.answer(404)


class _Api(_Handler):
    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if hub.status:
            return self.answer(hub.status, b"{}")
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
            return self.answer(302, Location=f"{hub.cdn}/cdn/{_sha256(data)}")
        return self.send_file(data, large=False)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    hub = LocalHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.close()


@pytest.fixture
def quants(hub: LocalHub, gguf: Make) -> dict[str, bytes]:
    """A repository with one model in several quantisations; each weighs a little more than a MiB."""

    def model(filler: bytes) -> bytes:
        shape = (1024, 512)
        return gguf(tensors=[("t", shape, 1, 0)], data=(filler + os.urandom(1023)) * 1024)

    names = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "m-bf16.gguf", "m-f16.gguf"]
    files = {name: model(str(n).encode()) for n, name in enumerate(names)}
    files |= {
        f"UD/m-UD-Q2_K_XL-0000{n}-of-00002.gguf": gguf({"split.count": 2}, filler=b"s%d" % n)[:-2048]
        for n in (1, 2)
    }
    hub.repositories["Org/Model-GGUF"] = {**files, "README.md": b"# Model", "config.json": b"{}"}
    return files


def put_safetensors(hub: LocalHub, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"modeling_evil.py": b"boo", "consolidated.safetensors": b"twin", "onnx/model.onnx": b"x"}
    hub.repositories["org/plain"] = files


def pull(new_puller: NewPuller, recorder: Any, reference: str, **options: Any) -> tuple[str, Any]:
    job = f"job-{len(recorder.told)}"
    new_puller().start(job, reference, **options)
    outcome: tuple[str, Any] = recorder.outcome(job)
    return outcome


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("", "m-Q4_K_M.gguf"),
        (":q4_k_s", "m-Q4_K_S.gguf"),
        (":F16", "m-f16.gguf"),
    ],
)
def test_a_quantisation_is_pulled_by_its_whole_name(
    tag: str,
    file: str,
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    store: Store,
) -> None:
    what, model = pull(new_puller, recorder, f"hf.co/Org/Model-GGUF{tag}")
    assert what == "committed", model
    path = store.open_model(model.id).path
    assert (path.name, path.read_bytes()) == (file, quants[file])
    assert model.tags == (f"huggingface.co/org/model-gguf{tag or ':latest'}",)
    assert model.source == f"{hub.url}/Org/Model-GGUF@{COMMIT[:12]}"
    assert store.verify(model.id) == ()
    assert not list((store.root / "partial").iterdir())


@pytest.mark.parametrize("tag", ["Q4_K", "instruct"])
def test_a_quantisation_that_is_not_there_is_an_error_that_lists_what_is(
    tag: str, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any
) -> None:
    what, failure = pull(new_puller, recorder, f"hf.co/Org/Model-GGUF:{tag}")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "no_such_quantisation")
    assert failure.advice == "It has: BF16, F16, Q4_K_M, Q4_K_S, Q8_0, UD-Q2_K_XL."


def test_safetensors_come_with_tokenizer_and_config_and_without_code(
    hub: LocalHub,
    new_puller: NewPuller,
    recorder: Any,
    store: Store,
    tmp_path: Path,
    model_folder: Callable[..., Path],
) -> None:
    put_safetensors(hub, model_folder(tmp_path / "m"))
    what, model = pull(new_puller, recorder, "hf.co/org/plain")
    assert what == "committed", model
    assert model.format == "safetensors"
    names = {path.name for path in store.open_model(model.id).path.iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    what, failure = pull(new_puller, recorder, "hf.co/org/plain:Q4_K_M")
    assert (what, failure.code) == ("failed", "no_such_quantisation")


def test_a_file_that_broke_off_is_gone_on_with_by_the_next_attempt(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: Store
) -> None:
    hub.cut_after = 700_000
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "unreachable")
    assert store.models() == ()
    (partial,) = (store.root / "partial").iterdir()
    assert partial.stat().st_size == 700_000
    store.prepare()  # as after a restart: a week is not over
    hub.cut_after = None
    what, model = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert what == "committed", model
    assert hub.ranges() == ["", "bytes=700000-"]
    assert store.verify(model.id) == ()


def test_a_damaged_rest_is_thrown_away_and_fetched_whole(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: Store
) -> None:
    partial = store.root / "partial" / _sha256(quants["m-Q8_0.gguf"])
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(b"\0" * 1000)
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind) == ("failed", "transient")
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[0] == "committed"
    assert hub.ranges() == ["bytes=1000-", ""]


def test_a_pull_is_cancelled_in_mid_file_at_once_and_keeps_what_has_come(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: Store
) -> None:
    hub.hold_after = 500_000
    puller = new_puller()
    puller.start("job", "hf.co/Org/Model-GGUF:Q8_0")
    assert hub.holding.wait(30)
    puller.cancel("job")
    assert recorder.outcome("job")[0] == "cancelled"
    assert not hub.release.is_set()
    assert not list((store.root / "incoming").iterdir())


def test_two_pulls_of_one_file_do_not_write_to_one_file(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: Store
) -> None:
    hub.repositories["org/twin"] = {"m-Q8_0.gguf": quants["m-Q8_0.gguf"]}
    hub.hold_after = 500_000
    puller = new_puller()
    puller.start("one", "hf.co/Org/Model-GGUF:Q8_0")
    assert hub.holding.wait(30)
    hub.holding.clear()
    puller.start("two", "hf.co/org/twin")
    assert hub.holding.wait(30)
    hub.release.set()
    one, two = recorder.outcome("one"), recorder.outcome("two")
    assert (one[0], two[0]) == ("committed", "committed")
    (model,) = store.look()
    assert set(model.tags) == {"huggingface.co/org/model-gguf:Q8_0", "huggingface.co/org/twin:latest"}
    assert store.verify(model.id) == ()


def test_a_token_opens_a_private_repository_and_does_not_go_to_another_host(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any
) -> None:
    hub.token = "hf_secret"
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "not_found")
    assert "HF_TOKEN" in failure.advice
    what, model = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0", token="hf_secret")
    assert what == "committed", model
    assert [authorization for path, _, authorization in hub.log if path.startswith("/cdn/")] == [""]


@pytest.mark.parametrize(
    ("trouble", "kind", "code"),
    [
        ({"gated": True}, "permanent", "unauthorized"),
        ({"status": 429}, "transient", "rate_limited"),
        ({"status": 503}, "transient", "unreachable"),
        ({"status": 403}, "permanent", "unauthorized"),
        ({"repositories": {}}, "permanent", "not_found"),
    ],
)
def test_each_refusal_of_the_hub_has_its_sentence(
    trouble: dict[str, Any],
    kind: str,
    code: str,
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
) -> None:
    for name, value in trouble.items():
        setattr(hub, name, value)
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF")
    assert (what, failure.kind, failure.code) == ("failed", kind, code)
    assert failure.message
    assert "Traceback" not in failure.sentence()


def test_what_is_here_serves_while_the_hub_is_away_and_a_new_commit_is_fetched_when_it_is_back(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: Store
) -> None:
    first = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[1]
    hub.status = 503
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0") == ("committed", first)
    hub.status = 0
    assert pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0") == ("committed", first)
    assert len(hub.ranges()) == 1
    hub.commit = "d" * 40
    hub.repositories["Org/Model-GGUF"]["m-Q8_0.gguf"] = quants["m-Q4_K_S.gguf"]
    second = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")[1]
    assert second.id != first.id
    assert [m.tags for m in store.look()] == [(), ("huggingface.co/org/model-gguf:Q8_0",)]


def test_a_file_that_changes_between_listing_and_fetching_is_not_believed(
    hub: LocalHub, quants: dict[str, bytes], new_puller: NewPuller, recorder: Any, store: Store
) -> None:
    honest = hub.listing

    def listing(name: str) -> dict[str, Any]:
        answer = honest(name)
        hub.repositories[name]["config.json"] = b"[]"
        hub.repositories[name]["m-Q8_0.gguf"] = quants["m-f16.gguf"]
        return answer

    hub.listing = listing  # type: ignore[method-assign]
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "hash_mismatch")
    assert store.models() == ()


def test_a_small_file_is_checked_against_what_git_knows(
    hub: LocalHub,
    new_puller: NewPuller,
    recorder: Any,
    tmp_path: Path,
    model_folder: Callable[..., Path],
) -> None:
    put_safetensors(hub, model_folder(tmp_path / "m"))
    honest = hub.listing

    def listing(name: str) -> dict[str, Any]:
        answer = honest(name)
        files = hub.repositories[name]
        files["config.json"] = files["config.json"].replace(b"llama", b"lhama")
        return answer

    hub.listing = listing  # type: ignore[method-assign]
    what, failure = pull(new_puller, recorder, "hf.co/org/plain")
    assert (what, failure.code) == ("failed", "hash_mismatch")


def test_what_the_users_cache_has_is_linked_and_not_fetched(
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    store: Store,
    tmp_path: Path,
) -> None:
    cache = tmp_path / "hf" / "hub" / "models--Org--Model-GGUF"
    data = quants["m-Q8_0.gguf"]
    blob, link = cache / "blobs" / _sha256(data), cache / "snapshots" / COMMIT / "m-Q8_0.gguf"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(data)
    link.symlink_to(blob)
    what, model = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert what == "committed", model
    assert hub.ranges() == []
    assert store.open_model(model.id).path.samefile(blob)


def test_nothing_is_asked_where_the_user_said_offline(
    hub: LocalHub,
    quants: dict[str, bytes],
    new_puller: NewPuller,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    what, failure = pull(new_puller, recorder, "hf.co/Org/Model-GGUF:Q8_0")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "offline")
