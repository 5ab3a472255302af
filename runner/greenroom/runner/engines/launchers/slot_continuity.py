"""Whether a llama-server goes on in a new process with what another one's slot has read."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

CONTEXT = 64
"""Tokens of context it needs."""
_READ = "a" * 24
_SECONDS = 60.0


class EngineSocket(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(str(self._path))


def ask(path: Path, route: str, body: object = None) -> tuple[int, bytes]:
    """Status and body of an answer; a request with a body is a POST. Raises OSError."""
    connection = EngineSocket(path)
    try:
        connection.request(
            "POST" if body else "GET",
            route,
            json.dumps(body) if body else None,
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def not_read_again(start: Callable[[], AbstractContextManager[Path]]) -> int:
    """Of a prompt that one server has read and saved: how many tokens the next one took from the file.

    `start` starts a server that saves its slots and has a context of `CONTEXT`; its socket ends it.

    Raises:
        ValueError: It cannot save or restore; the text says what it answered.
        OSError: It does not answer.
    """
    with start() as place:
        _completed(place, _READ)
        _told(place, "/slots/0?action=save", {"filename": "slot"})
    with start() as place:
        _told(place, "/slots/0?action=restore", {"filename": "slot"})
        return int(_completed(place, f"{_READ}bb").get("timings", {}).get("cache_n", 0))


def _completed(place: Path, prompt: str) -> dict[str, Any]:
    fields = {"n_predict": 1, "temperature": 0, "ignore_eos": True, "cache_prompt": True, "id_slot": 0}
    return _told(place, "/completion", {"prompt": prompt, **fields})


def _told(place: Path, route: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = ask(place, route, body)
    if status != 200:
        raise ValueError(f"{route} was answered with status {status}")
    return dict(json.loads(answer))
