"""What programs with clients of Python share: checks, one a feature, and what they need of the daemon.

Each check prints one line, `{"feature": "chat", "failure": ""}`, where `failure` is a traceback if it failed.
`BASE` is the daemon's URL, `MODEL` a chat model, `EMBEDDER` an embedding model.
"""

from __future__ import annotations

import asyncio
import http.client
import inspect
import json
import os
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

BASE = os.environ["BASE"]
MODEL = os.environ["MODEL"]
EMBEDDER = os.environ["EMBEDDER"]
QUEUE = int(os.environ["QUEUE"])
"""How many requests of one process may wait."""
ABSENT = "no-such-model"
STORY = "Write a long story about the sea."
"""No small model ends that within a few tokens."""
TOO_LONG = "sea " * 9000
"""More tokens than the model's context has."""
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
"""The parameters of the tool `weather`."""
BOUND = 120.0
"""Seconds that the daemon may take for anything."""
_checks: dict[str, Callable[[], Any]] = {}


def check(feature: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A check of one feature: a function, or a coroutine function."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        _checks[feature] = function
        return function

    return register


def run() -> None:
    """Run all checks, or those that the environment's `ONLY` names."""
    only = os.environ.get("ONLY", "").split()
    for feature, function in _checks.items():
        if not only or feature in only:
            print(json.dumps({"feature": feature, "failure": _failure(function)}), flush=True)


def _failure(function: Callable[[], Any]) -> str:
    try:
        if inspect.iscoroutinefunction(function):
            asyncio.run(function())
        else:
            function()
    except Exception:  # noqa: BLE001  (any failure of a client is a result)
        return traceback.format_exc()
    return ""


def asked(path: str) -> Any:
    """What the daemon answers to a GET."""
    with urllib.request.urlopen(BASE + path, timeout=BOUND) as answer:
        return json.load(answer)


def idle() -> None:
    """Wait until no request is inside an engine: after a cancelled one."""
    deadline = time.monotonic() + BOUND
    while any(engine["inside"] for engine in asked("/engines/ps")):
        assert time.monotonic() < deadline, "a request is still inside though its client has gone"
        time.sleep(0.05)


@contextmanager
def occupied() -> Iterator[Callable[[], None]]:
    """All slots and the queue are taken, so the next request is refused with a 429 until the yielded call."""
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": STORY}]}
    body |= {"max_tokens": 1500, "stream": True, "ignore_eos": True}
    connections: list[http.client.HTTPConnection] = []

    def free() -> None:
        while connections:
            connections.pop().close()

    deadline = time.monotonic() + BOUND
    try:
        while len(asked("/engines/queue")) < QUEUE:
            assert time.monotonic() < deadline, "the queue did not fill"
            connections.append(http.client.HTTPConnection(urlsplit(BASE).netloc, timeout=BOUND))
            connections[-1].request("POST", "/v1/chat/completions", json.dumps(body))
            time.sleep(0.2)
        yield free
    finally:
        free()
        idle()


def raised(kind: type[BaseException], call: Callable[[], Any]) -> Any:
    """The exception of this class that a call raises."""
    try:
        answer = call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised; the answer is {answer!r}")


def later(seconds: float, call: Callable[[], None]) -> None:
    """Call it after a while, in a thread."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
