"""Files of an engine's slots: what is made of an engine's answers. The engine is a stand-in."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.slots import Restored, Saved, SlotFailure, SlotFiles, slot_files

Answer = Callable[[Path, str], tuple[int, object]]
"""The file asked for and the action → status and body."""


class Stand:
    """An engine's socket that answers as a test says."""

    def __init__(self, folder: EngineFolder) -> None:
        self.files = folder.make_slots()
        self.asked: list[tuple[str, Any]] = []
        self.answer: Answer = lambda path, action: (500, {})
        stand = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand.asked.append((self.path, body))
                action = self.path.partition("action=")[2]
                status, said = stand.answer(stand.files / body.get("filename", "-"), action)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

            def address_string(self) -> str:
                return "local"

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.server = Server(str(folder.path / "engine.sock"), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        found = slot_files(folder, folder.path / "engine.sock", leader=0)
        assert found is not None
        self.slots: SlotFiles = found


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    folder = EngineFolder.of(tmp_path, "e-1")
    folder.path.mkdir()
    made = Stand(folder)
    yield made
    made.server.shutdown()
    made.server.server_close()


def writes(data: bytes, **said: int) -> Answer:
    """Writes a file and says so."""

    def answer(path: Path, action: str) -> tuple[int, object]:
        assert action == "save"
        path.write_bytes(data)
        return 200, {"n_saved": 3, "n_written": len(data), **said}

    return answer


def test_a_saved_slot_is_a_private_file_with_its_tokens_and_its_size(stand: Stand) -> None:
    stand.answer = writes(b"state")
    found = stand.slots.save(2, "one", 5.0)
    assert isinstance(found, Saved)
    assert found == Saved(tokens=3, size=5, path=stand.files / "one")
    assert found.path.stat().st_mode & 0o777 == 0o600
    assert stand.files.stat().st_mode & 0o777 == 0o700
    assert stand.asked == [("/slots/2?action=save", {"filename": "one"})]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (writes(b"head", n_saved=0), "empty"),
        (writes(b"state", n_written=9), "refused"),
        (lambda path, action: (200, {"n_saved": 3, "n_written": 5}), "refused"),
        (lambda path, action: (200, b"nonsense"), "refused"),
        (lambda path, action: (200, []), "refused"),
        (lambda path, action: (200, {"n_saved": "3"}), "empty"),
        (lambda path, action: (400, {"error": {"message": "no space"}}), "refused"),
        (lambda path, action: (501, {"error": {"message": "start it with"}}), "unsupported"),
    ],
    ids=["empty", "shorter", "no file", "no JSON", "a list", "no number", "refused", "unsupported"],
)
def test_what_is_not_a_saved_slot_says_why_and_leaves_no_file(
    stand: Stand, answer: Answer, kind: str
) -> None:
    stand.answer = answer
    found = stand.slots.save(0, "one", 5.0)
    assert isinstance(found, SlotFailure)
    assert found.kind == kind
    assert found.reason
    assert list(stand.files.iterdir()) == []


@pytest.mark.parametrize(("status", "tokens"), [(200, 7), (200, 0), (400, 7)])
def test_a_restored_file_is_removed_whatever_came_of_it(stand: Stand, status: int, tokens: int) -> None:
    stand.answer = lambda path, action: (status, {"n_restored": tokens if path.exists() else -1})
    (stand.files / "one").write_bytes(b"state")
    found = stand.slots.restore(1, "one", 5.0)
    assert found == Restored(7) if (status, tokens) == (200, 7) else isinstance(found, SlotFailure)
    assert list(stand.files.iterdir()) == []


def test_a_file_that_comes_too_late_is_removed_at_the_next_call(stand: Stand) -> None:
    waited, written = threading.Event(), threading.Event()

    def late(path: Path, action: str) -> tuple[int, object]:
        waited.wait(30)
        path.write_bytes(b"state")
        written.set()
        return 200, {"n_saved": 3, "n_written": 5}

    stand.answer = late
    found = stand.slots.save(0, "late", 0.05)
    assert isinstance(found, SlotFailure)
    assert found.kind == "timeout"
    waited.set()
    assert written.wait(30)
    stand.answer = writes(b"state")
    stand.slots.save(0, "next", 30.0)
    assert [path.name for path in stand.files.iterdir()] == ["next"]


def test_an_engine_that_is_gone_is_no_error_of_ours(stand: Stand) -> None:
    stand.server.shutdown()
    stand.server.server_close()
    for found in (stand.slots.save(0, "a", 1.0), stand.slots.restore(0, "a", 1.0), stand.slots.erase(0, 1.0)):
        assert isinstance(found, SlotFailure)
        assert found.kind == "gone"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".a", "a" * 65])
def test_no_name_leads_out_of_the_folder(stand: Stand, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a saved slot"):
        stand.slots.save(0, name, 1.0)
    assert stand.asked == []


def test_an_engine_that_was_started_without_has_none(tmp_path: Path) -> None:
    folder = EngineFolder.of(tmp_path, "e-1")
    folder.path.mkdir()
    assert slot_files(folder, folder.path / "engine.sock", leader=0) is None
    folder.make_slots()
    assert slot_files(folder, folder.path / "engine.sock", leader=0) is not None
    folder.forget_slots()
    assert slot_files(folder, folder.path / "engine.sock", leader=0) is None


def test_the_layout_of_llama_cpps_files_is_that_of_its_caches_and_of_what_shapes_them() -> None:
    def layout(slots: int, *flags: str) -> str:
        spec = EngineSpec(
            engine_id="e", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m",
            slots=slots, flags=flags,
        )  # fmt: skip
        return LlamaCpp().slot_layout(spec)

    plain = layout(4)
    assert layout(4, "--threads", "8", "--no-mmap", "--temp", "-1", "--top-k=3") == plain
    assert layout(2) != plain
    changed = [("--cache-type-k", "q8_0"), ("-ctv=q8_0",), ("--rope-scale", "2"), ("--swa-full",)]
    assert len({plain, *(layout(4, *flags) for flags in changed)}) == 5
    assert layout(4, "--no-mmap", "--rope-scale", "2") == layout(4, "--rope-scale", "2", "--temp", "0")
