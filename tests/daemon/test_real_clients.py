"""The clients that people use, at their newest versions, on real engines: see `docs/clients.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import real_clients
from real_clients import CLIENTS, Client

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(1500)]

BOUND = 900.0
"""Seconds that all checks of one client may take."""
SMALL_QUEUE = {"GREENROOM_SLOTS": "2", "GREENROOM_QUEUE_LIMIT": "4"}
"""So that a client meets a 429 without hundreds of others."""
MODEL = "smollm2-tools"
"""SmolLM2 with a chat template that knows tools, and shows by examples how they are called."""
QUEUE = "3"
"""How many requests of one caller may wait in it."""


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_works_with_llama_cpp(
    client: Client,
    make_daemon: Callable[..., Any],
    furnished: Path,
    smollm2_gguf: Path,
    minilm_gguf: Path,
    test_cache: Path,
) -> None:
    folder = real_clients.install(client.group, test_cache)
    daemon = make_daemon(furnished, **SMALL_QUEUE).start()
    daemon.pull(str(minilm_gguf))
    template = real_clients.PROGRAMS / "tools.jinja"
    packaged = daemon.run("package", "--gguf", str(smollm2_gguf), "--chat-template", str(template), MODEL)
    assert packaged.returncode == 0, packaged.stderr
    # Its likeliest answers only: a small model rambles otherwise before it calls a tool.
    flags = {"model": MODEL, "runtime-flags": ["--threads", "1", "--temp", "0"]}
    assert daemon.post("/engines/_configure", flags).status == 202
    assert daemon.chat(MODEL).status == 200
    models = {"MODEL": MODEL, "EMBEDDER": f"file:{minilm_gguf}"}
    failures = real_clients.run(
        client, folder, BOUND, BASE=daemon.url, QUEUE=QUEUE, ONLY=" ".join(client.features), **models
    )
    assert not any(failures.values()), "\n".join(f"{one}: {text}" for one, text in failures.items() if text)
    assert set(failures) == set(client.features)
    real_clients.keep(client, real_clients.version(client, folder), test_cache)


@pytest.mark.parametrize("name", ["sdks-openai_sdk.py-chat", "sdks-anthropic_sdk.py", "sdks-ollama_sdk.py"])
def test_a_client_works_with_mlx(
    name: str, make_daemon: Callable[..., Any], furnished: Path, smollm2_mlx: Path, test_cache: Path
) -> None:
    (client,) = [client for client in CLIENTS if client.name == name]
    folder = real_clients.install(client.group, test_cache)
    daemon = make_daemon(furnished, **SMALL_QUEUE).start()
    assert daemon.chat(str(smollm2_mlx)).status == 200
    only = ("stream", "cancellation")
    env = {"BASE": daemon.url, "MODEL": f"file:{smollm2_mlx}", "EMBEDDER": "", "QUEUE": QUEUE}
    failures = real_clients.run(client, folder, BOUND, ONLY=" ".join(only), **env)
    assert failures == dict.fromkeys(only, "")
