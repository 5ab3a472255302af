"""Searches: a source that does not answer keeps neither the others nor the user waiting."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from greenroom.runner.models import search as search_module
from greenroom.runner.models.search import search
from greenroom.runner.models.short_names import Catalogue
from trickle import HANGS, Trickle


@pytest.mark.parametrize("hang", [one for one in HANGS if "token" not in one])
def test_the_received_bytes_and_the_silent_server_are_shown(
    hang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Trickle(hang)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{server.host}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(search_module, "_SECONDS", 1.0)
    began = time.monotonic()
    try:
        found = search("smollm2", limit=5, catalogue=Catalogue.load(), docker_hub=f"http://{server.host}")
    finally:
        server.close()
    assert time.monotonic() - began < 5
    assert [one.source for one in found.models] == ["catalogue"]
    assert found.silent == (
        "Docker Hub did not answer within 1s.",
        "Hugging Face did not answer within 1s.",
    )
