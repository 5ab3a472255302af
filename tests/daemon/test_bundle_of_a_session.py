"""A session with secrets and prompts wherever one could get, and the bundle of it: none is in there."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from daemon_process import without_settings
from waiting import until_async
from wedge import Daemon

SECRETS = {
    name: f"plantedsecret{name}x7q"
    for name in (
        *("hub", "proxy", "environment", "config", "index", "netrc", "docker", "bearer", "apikey", "query"),
        *("agent", "url", "body", "basic"),
    )
}
PROMPT = "the zebra of my grandmother sleeps in the cellar"


def furnish(home: Path) -> dict[str, str]:
    """The user's files, and the environment of the daemon and of commands."""
    data = home / "data"
    data.mkdir(parents=True)
    (home / ".netrc").write_text(f"machine index.example login me password {SECRETS['netrc']}\n")
    (home / ".netrc").chmod(0o600)
    (home / ".docker").mkdir()
    login = base64.b64encode(f"me:{SECRETS['docker']}".encode()).decode()
    (home / ".docker" / "config.json").write_text(
        json.dumps({"auths": {"registry.example": {"auth": login}}})
    )
    (data / "config.toml").write_text(
        f'[backends.vllm]\nindexes = ["https://me:{SECRETS["config"]}@wheels.example/cpu"]\n'
        f'[backends.mlx]\nindexes = ["https://me:{SECRETS["index"]}@index.example/simple"]\n'
    )
    return {
        **without_settings("HF_", "HTTPS_PROXY", "PIP_", "UV_"),
        "HOME": str(home),
        "HF_TOKEN": SECRETS["hub"],
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "https_proxy": f"http://me:{SECRETS['proxy']}@127.0.0.1:9",
        "no_proxy": "127.0.0.1",
        "OPENAI_API_KEY": SECRETS["environment"],
        "GREENROOM_HOME": str(data),
    }


async def use(daemon: Daemon) -> None:
    """Requests that succeed, that are refused, and one that ends its engine, which quotes it."""
    said = [{"role": "user", "content": PROMPT}]
    await daemon.add("plain", "mortal")
    await daemon.post("/requests/record", {"count": 20})
    headers = {
        "Authorization": f"Bearer {SECRETS['bearer']}",
        "X_Api_Key": SECRETS["apikey"],
        "User_Agent": f"client/1 token={SECRETS['agent']}",
    }
    chat = {"model": "plain", "messages": said}
    assert (await daemon.post("/v1/chat/completions", chat, **headers)).status == 200
    basic = base64.b64encode(f"me:{SECRETS['basic']}".encode()).decode()
    await daemon.post("/v1/chat/completions", {**chat, "stream": True}, Authorization=f"Basic {basic}")
    await daemon.get(f"/v1/models?api_key={SECRETS['query']}")
    for body in (
        {"model": "plain", "messages": [{"role": PROMPT, "content": PROMPT}]},
        {"model": PROMPT, "messages": said},
        {**chat, "api_key": SECRETS["body"], PROMPT: 1},
    ):
        await daemon.post("/v1/chat/completions", body)
    await daemon.post("/v1/messages", {"model": "plain", "max_tokens": 5, "system": PROMPT, "messages": said})
    await daemon.post("/api/create", {"model": "made", "from": "plain", "system": PROMPT})
    await daemon.post("/v1/chat/completions", {**chat, "model": "mortal"})
    await until_async(lambda: daemon.events("load_failed"))
    for source in (
        f"https://me:{SECRETS['url']}@127.0.0.1:9/m.gguf?token={SECRETS['query']}",
        "hf.co/org/private",
    ):
        pull = asyncio.create_task(daemon.post("/models/create", {"from": source, "token": SECRETS["hub"]}))
        _, waiting = await asyncio.wait([pull], timeout=5)
        if waiting:
            await daemon.post("/models/cancel", {"from": source})
            await pull


@pytest.mark.timeout(180)
async def test_no_secret_and_no_prompt_is_in_the_bundle_of_a_session() -> None:
    quoting = ("--die-of", "zebra", "--die-by", "SIGSEGV", "--quote", "request was {0}")
    flags = ("--tokens", "3", "--for", f"mortal={','.join(quoting)}")
    with tempfile.TemporaryDirectory(prefix="gr-b-") as folder:
        home = Path(folder)
        env = furnish(home)
        async with aiohttp.ClientSession() as session:
            daemon = Daemon(home / "data", session, flags, env)
            await daemon.start()
            await use(daemon)
            (home / "data" / "chat-history").write_text(f"# typed\n{PROMPT}\n")
            made = await asyncio.to_thread(_bundle, home, env)
            await daemon.clean_up()
        texts = dict(_members(made))
    logs = [name for name in texts if "engines/" in name]
    assert logs, "the log of the engine that quoted its request is there"
    assert any("journal" in name for name in texts)
    words = [PROMPT, PROMPT.replace(" ", "%20"), "zebra of my grandmother", *SECRETS.values()]
    words += [base64.b64encode(f"me:{SECRETS[one]}".encode()).decode() for one in ("docker", "basic")]
    leaks = [(name, word) for name, text in texts.items() for word in words if word in text or word in name]
    assert leaks == []


def _bundle(home: Path, env: dict[str, str]) -> Path:
    made = home / "bundle.tar.gz"
    command = [sys.executable, "-m", "greenroom.runner.cli", "bundle", "-o", str(made)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return made


def _members(archive: Path) -> Any:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            yield member.name, file.read().decode("utf-8", "replace") if file is not None else ""
