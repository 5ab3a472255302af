"""A daemon behind a proxy that passes its own name on, for web pages of other machines."""

from __future__ import annotations

import tempfile
from pathlib import Path

import aiohttp

from wedge import Daemon


async def test_the_names_and_pages_of_the_settings_may_call() -> None:
    env = {
        "GREENROOM_ALLOWED_HOSTS": "Models.example.org",
        "GREENROOM_ALLOWED_ORIGINS": "https://chat.example.org",
    }
    with tempfile.TemporaryDirectory(prefix="gr-x-") as folder:
        async with aiohttp.ClientSession() as session:
            daemon = Daemon(Path(folder) / "h", session, env=env)
            await daemon.start()
            answer = await daemon.ask(
                "GET", "/v1/models", Host="models.example.org", Origin="https://chat.example.org"
            )
            other = await daemon.ask("GET", "/v1/models", Host="other.example.org")
            page = await daemon.ask("GET", "/v1/models", Origin="https://evil.example.org")
            await daemon.stop()
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://chat.example.org")
    assert (other.status, "allowed_hosts" in other.error["message"]) == (403, True)
    assert (page.status, other.error["code"]) == (403, "host_not_allowed")
