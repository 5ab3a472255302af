"""`greenroom adopt`: what it lists, and what it asks the daemon for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from other_stores import hub_cache, ollama

ADOPT = "POST /models/adopt"
NEW = "huggingface.co/org/model:Q4_0"


@pytest.fixture
def tiny(smollm2_gguf: Path) -> bytes:
    return smollm2_gguf.read_bytes()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without the user's own models."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def others(machine: Path, tiny: bytes) -> Path:
    """A model of Ollama's, one of Hugging Face's, and a file that is none."""
    ollama(machine / ".ollama" / "models", "registry.ollama.ai/library/smollm2/135m", tiny)
    hub_cache(machine / ".cache" / "huggingface" / "hub", "org/model", {"m-Q4_0.gguf": tiny})
    (machine / ".cache" / "llama.cpp").mkdir()
    (machine / ".cache" / "llama.cpp" / "broken.gguf").write_bytes(tiny[:100_000])
    return machine


def test_a_dry_run_lists_what_there_is_and_needs_no_daemon(greenroom: Any, others: Path) -> None:
    done = greenroom("adopt", "--dry-run")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert ["smollm2:135m", "98.4", "MB", "Ollama"] in lines
    assert ["broken", "llama.cpp", "unusable"] in lines
    assert "\nAdopt all 2 (197 MB): greenroom adopt" in done.err
    rows = json.loads(greenroom("models", "adopt", "-n", "--json").out)
    assert {(one["name"], one["state"], one["format"]) for one in rows} == {
        ("smollm2:135m", "new", "gguf"),
        (NEW, "new", "gguf"),
        ("broken", "unusable", ""),
    }


def test_all_that_can_be_adopted_is_and_a_failure_does_not_keep_the_rest_out(
    greenroom: Any, others: Path, our_daemon: Any
) -> None:
    def answer(seen: Any) -> list[str]:
        if seen.body["name"] == NEW:
            return [json.dumps({"type": "error", "message": "Error: No.", "code": "needs_copy"})]
        return [json.dumps({"type": "success", "message": "Model pulled successfully"})]

    our_daemon.routes[ADOPT] = answer
    done = greenroom("adopt")
    assert done.code == 1
    assert done.out == "Adopted smollm2:135m: its files (98.4 MB) are shared with Ollama.\n"
    assert "Skipped broken: " in done.err
    assert "Error: No." in done.err
    manifest = others / ".ollama" / "models" / "manifests/registry.ollama.ai/library/smollm2/135m"
    assert our_daemon.bodies("/models/adopt")[-1] == {
        "name": "smollm2:135m",
        "path": str(manifest),
        "copy": False,
    }
    outcomes = json.loads(greenroom("adopt", "--json", "--copy").out)
    assert {one["name"]: one["state"] for one in outcomes} == {
        "smollm2:135m": "adopted",
        NEW: "failed",
        "broken": "unusable",
    }


def test_one_of_them_is_adopted_by_name_and_under_another(
    greenroom: Any, others: Path, our_daemon: Any
) -> None:
    our_daemon.routes[ADOPT] = [json.dumps({"type": "success"})]
    assert greenroom("adopt", "smollm2", "--as", "Mine").code == 0
    assert [one["name"] for one in our_daemon.bodies("/models/adopt")] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nope"], 1, "No other program here has a model nope."),
        (["--as", "x"], 2, "--as takes one model at a time: name the one to adopt."),
        (["--from", "/nonexistent"], 2, "There is no folder /nonexistent."),
        (["broken"], 1, "broken.gguf"),
    ],
)
def test_what_cannot_be_adopted_is_said(
    greenroom: Callable[..., Any], others: Path, arguments: list[str], code: int, said: str
) -> None:
    done = greenroom("adopt", *arguments)
    assert (done.code, said in done.err) == (code, True), done.err


def test_a_machine_without_other_programs_has_nothing_to_adopt(greenroom: Any, machine: Path) -> None:
    done = greenroom("adopt")
    assert done.code == 0
    assert "Found no models of Ollama, LM Studio, llama.cpp or Hugging Face on this machine." in done.err
