"""Searches: a source that does not answer keeps neither the others nor the user waiting."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from greenroom.runner.models import search as search_module
from greenroom.runner.models.search import search
from greenroom.runner.models.short_names import Catalogue
from trickle import HANGS, Trickle


def test_a_user_learns_what_is_waited_for_and_ctrl_c_shows_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Trickle(next(one for one in HANGS if "token" not in one))
    monkeypatch.setenv("HF_ENDPOINT", f"http://{server.host}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(search_module, "SAY_AFTER", 0.3)
    told: list[str] = []

    def say(sentence: str) -> None:
        told.append(sentence)
        raise KeyboardInterrupt

    try:
        found = search(
            "smollm2", limit=5, catalogue=Catalogue.load(), docker_hub=f"http://{server.host}", say=say
        )
    finally:
        server.close()
    assert told == ["Waiting up to 10s for Docker Hub and Hugging Face… (Ctrl-C shows what has been found.)"]
    assert [one.source for one in found.models] == ["catalogue"]
    assert "Docker Hub did not answer before Ctrl-C." in found.silent


@pytest.mark.parametrize("hang", [one for one in HANGS if "token" not in one])
def test_the_received_bytes_and_the_silent_server_are_shown(
    hang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Trickle(hang)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{server.host}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(search_module, "SECONDS", 1.0)
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
