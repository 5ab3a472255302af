"""The front door in other people's frameworks and servers, at their newest versions, on the real model."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon_process import without_settings
from greenroom.actors.journal.reader import read_journal
from waiting import BOUND, until

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.embedding,
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "programs" / "embedding"
SERVERS = {
    "uvicorn": ("framework_app:app", "--port", "{port}", "--timeout-graceful-shutdown", "5"),
    "hypercorn": ("framework_app:app", "--bind", "127.0.0.1:{port}", "--graceful-timeout", "5"),
    "granian": ("--interface", "asgi", "--port", "{port}", "framework_app:app"),
}


class Service:
    """A service in a process of its own, with the front door below `prefix`."""

    def __init__(self, prefix: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._prefix = prefix

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, method: str, path: str, body: Any = None, *, own: bool = False) -> tuple[int, bytes]:
        with contextlib.closing(self.connect()) as asking:
            data = json.dumps(body) if isinstance(body, dict) else body
            asking.request(method, path if own else self._prefix + path, data)
            answer = asking.getresponse()
            return answer.status, answer.read()

    def stream(self, model: str, tokens: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        asking = self.connect()
        body = {"model": model, "stream": True, "max_tokens": tokens, "messages": HELLO}
        asking.request("POST", f"{self._prefix}/v1/chat/completions", json.dumps(body))
        return asking, asking.getresponse()

    def slots_used(self) -> int:
        return sum(one["slots_used"] for one in json.loads(self.ask("GET", "/engines/ps")[1]))


HELLO = [{"role": "user", "content": "Write a story about a fox."}]


@contextlib.contextmanager
def served(python: Path, framework: str, server: str, home: Path) -> Iterator[Service]:
    service = Service("" if framework == "alone" else "/ai")
    env = {**without_settings(), "GREENROOM_HOME": str(home), "FRAMEWORK": framework}
    argv = [str(python), "-m", server, *(word.format(port=service.port) for word in SERVERS[server])]
    log = home.parent / "service.log"
    with log.open("wb") as file:
        process = subprocess.Popen(argv, cwd=PROGRAMS, env=env, stdout=file, stderr=file)
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                return service.ask("GET", "/readyz")[0] == 200
            return False

        until(ready, 2 * BOUND)
        yield service
        process.terminate()
        process.wait(BOUND)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.parametrize(
    ("framework", "server"),
    [
        *(("alone", server) for server in SERVERS),
        *((framework, "uvicorn") for framework in ("fastapi", "starlette", "litestar", "django")),
        ("fastapi", "hypercorn"),
        ("fastapi", "granian"),
    ],
)
def test_the_front_door_works_in_it(
    framework: str, server: str, embedding_python: Path, furnished: Path, make_daemon: Callable[..., Any]
) -> None:
    home = make_daemon(furnished).home
    with served(embedding_python, framework, server, home) as service:
        if framework != "alone":
            assert json.loads(service.ask("GET", "/own", own=True)[1])["models"] >= 1
        model = json.loads(service.ask("GET", "/v1/models")[1])["data"][0]["id"]
        # An answer, a refusal, and what they are without their bodies.
        chat = {"model": model, "max_tokens": 8, "messages": HELLO}
        status, told = service.ask("POST", "/v1/chat/completions", chat)
        assert status == 200
        assert json.loads(told)["choices"][0]["message"]["content"]
        status, told = service.ask("POST", "/v1/chat/completions", {**chat, "model": "nowhere"})
        assert (status, json.loads(told)["error"]["code"]) == (404, "model_not_found")
        assert service.ask("HEAD", "/livez") == (200, b"")
        assert service.ask("POST", "/engines/unload", b" " * 2**21)[0] == 413
        # More streams than slots, side by side, to their ends.
        ends: list[bytes] = []

        def whole() -> None:
            asking, answer = service.stream(model, 12)
            with contextlib.closing(asking):
                ends.append(answer.read()[-16:])

        threads = [threading.Thread(target=whole) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert ends == [b"\n\ndata: [DONE]\n\n"] * 8
        # Ollama's lines.
        lines = service.ask(
            "POST", "/api/chat", {"model": model, "messages": HELLO, "options": {"num_predict": 6}}
        )
        assert json.loads(lines[1].splitlines()[-1])["done"]
        # Clients that leave give their slots back long before their answers would have ended.
        left = [service.stream(model, 4_000) for _ in range(2)]
        for _, answer in left:
            assert answer.read(10)
        assert service.slots_used() == 2
        for asking, answer in left:
            answer.close()
            asking.close()
        until(lambda: service.slots_used() == 0, 20)
    types = [record.type for record in read_journal(home / "journal.db")]
    assert types[-1] == "daemon_stopped"
