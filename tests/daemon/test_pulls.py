"""Pulls of a real daemon: clients share them, and the next daemon continues them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub import LocalHub
from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture
def hub(smollm2_gguf: Path) -> Iterator[LocalHub]:
    hub = LocalHub()
    hub.repositories["org/m"] = {"m-Q4_1.gguf": smollm2_gguf.read_bytes()}
    yield hub
    hub.close()


@pytest.fixture
def daemon(make_daemon: Callable[..., Any], hub: LocalHub, tmp_path: Path) -> Any:
    """It installs nothing of its own accord."""
    return make_daemon(
        HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), GREENROOM_INSTALL_POLICY="never"
    ).start()


def test_a_pull_that_two_clients_wait_for_is_resumed_by_the_next_daemon(daemon: Any, hub: LocalHub) -> None:
    hub.hold_after = 60_000_000
    told: list[Any] = []

    def ask(name: str) -> None:
        try:
            told.append(daemon.post("/models/create", {"from": name}, Accept="application/json").body)
        except Exception as error:  # noqa: BLE001 - the daemon dies in the middle of its answer
            told.append(error)

    clients = [
        threading.Thread(target=ask, args=(name,))
        for name in ("hf.co/org/m", "huggingface.co/org/m", "hf.co/org/m:latest")
    ]
    for client in clients:
        client.start()
    assert hub.holding.wait(60)
    (partial,) = until(lambda: list((daemon.home / "models" / "partial").iterdir()))
    until(lambda: partial.stat().st_size > 59_000_000)
    daemon.kill()
    for client in clients:
        client.join(60)
    assert len(told) == 3
    assert hub.ranges() == [""], "one download for all of them"
    hub.hold_after = None

    daemon.start()
    (model,) = until(lambda: daemon.get("/models").json)

    assert model["tags"] == ["huggingface.co/org/m:latest"]
    first, second = hub.ranges()
    assert first == ""
    asked = re.fullmatch(r"bytes=(\d+)-", second)
    assert asked is not None
    assert int(asked[1]) > 59_000_000, "only the rest is fetched"
    (failed,) = [data for _, data in daemon.events("pull_attempt_failed")]
    assert failed["failure"]["code"] == "daemon_restarted"
    assert len(daemon.events("pull_requested")) == 1
    whole = daemon.post(f"/models/{model['id']}/verify", {}, Accept="application/json")
    assert json.loads(whole.body.splitlines()[-1])["type"] == "success"
    assert not list((daemon.home / "models" / "partial").iterdir())


def test_the_progress_of_a_pull_is_reported_by_layer_as_dockers_client_reads_it(
    daemon: Any, hub: LocalHub, smollm2_gguf: Path
) -> None:
    answer = daemon.post("/models/create", {"from": "hf.co/org/m"}, Accept="application/json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "no-cache"
    assert all(len(line) < 64 * 1024 for line in answer.body.splitlines())
    *progress, last = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
    assert (last["type"], last["message"]) == ("success", "Model pulled successfully")
    layers = [line["layer"] for line in progress if line["layer"].get("id")]
    size = smollm2_gguf.stat().st_size
    assert {(layer["id"], layer["size"]) for layer in layers} == {
        ("sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", size)
    }
    sizes = [layer["current"] for layer in layers]
    assert sizes == sorted(sizes)
    assert sizes[-1] == size
    assert {line["total"] for line in progress if line["layer"].get("id")} == {size}
