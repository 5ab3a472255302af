"""Processes of one program share a daemon: workers of a web server, and children however they are made."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from daemon_process import PROGRAMS
from greenroom.runner import Client, connect
from greenroom.runner.client.http_client import HttpClient

pytestmark = pytest.mark.slow


@pytest.fixture
def client(home: Path) -> Any:
    client = connect(home)
    yield client
    HttpClient(client.url).post("/daemon/stop", {})  # no client stops a daemon that it shares


def test_workers_of_a_server_ask_one_daemon(home: Path, client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["-m", "uvicorn", "worker_app:app", "--workers", "2", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, *command],
        cwd=PROGRAMS,
        env={**os.environ, "WORKERS_HOME": str(home)},
        stderr=subprocess.DEVNULL,
    )
    try:
        seen: dict[int, str] = {}
        deadline = time.monotonic() + 60
        while len(seen) < 2:
            assert time.monotonic() < deadline, seen
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/models", timeout=10) as answer:
                    said = json.load(answer)
            except urllib.error.URLError:
                time.sleep(0.1)
                continue
            assert said["models"] == []
            seen[said["pid"]] = said["url"]
    finally:
        server.terminate()
        server.wait(30)
    assert set(seen.values()) == {client.url}


def ask(client: Client, told: Any) -> None:
    told.put((client.url, client.models()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_ask_the_daemon_of_their_parent(client: Client, method: str) -> None:
    assert client.models() == []
    making: Any = multiprocessing.get_context(method)
    told = making.Queue()
    child = making.Process(target=ask, args=(client, told))
    child.start()
    assert told.get(timeout=60) == (client.url, [])
    child.join(30)
    assert child.exitcode == 0
