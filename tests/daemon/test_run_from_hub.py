"""From nothing to an answer in one command, out of a hub on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from daemon_process import without_settings
from hub import LocalHub
from model_registry import RealRegistry, needs_registry

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture
def greenroom(tmp_path: Path, hub: LocalHub) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """The command line on an empty data directory; the daemon that it starts ends with the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment: Mapping[str, str] = {
        **without_settings("HF_"),
        "GREENROOM_HOME": str(tmp_path / "home"),
        "GREENROOM_PORT": str(port),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }

    def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "greenroom.runner.cli", *arguments]
        return subprocess.run(
            argv,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )

    yield run
    run("stop")


def folder_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


@pytest.mark.slow
def test_a_safetensors_model_is_fetched_its_backend_installed_and_it_answers_under_mlx(
    greenroom: Callable[..., Any], hub: LocalHub, smollm2_mlx: Path
) -> None:
    hub.repositories["Org/SmolLM2-MLX"] = folder_of(smollm2_mlx) | {"modeling_evil.py": b"raise SystemExit"}
    done = greenroom("run", "hf.co/Org/SmolLM2-MLX", "Name a colour.", "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "hf.co/Org/SmolLM2-MLX is not in the store; pulling it." in done.stderr
    assert "Model pulled successfully" in done.stderr
    assert "Installing mlx backend..." in done.stderr
    assert "mlx backend installed successfully" in done.stderr
    inspected = greenroom("inspect", "hf.co/Org/SmolLM2-MLX")
    assert "completion: mlx, needs " in inspected.stdout
    assert "modeling_evil.py" not in inspected.stdout
    asked = len(hub.ranges())
    again = greenroom("run", "hf.co/org/smollm2-mlx", "Name another.", "--max-tokens", "8")
    assert again.returncode == 0, again.stderr
    assert len(hub.ranges()) == asked


@pytest.fixture
def quantised(hub: LocalHub, smollm2_gguf: Path) -> str:
    """The name of the real model on the hub."""
    hub.repositories["org/SmolLM2-GGUF"] = {
        "smollm2-Q4_1.gguf": smollm2_gguf.read_bytes(),
        "smollm2-Q8_0.gguf": b"GGUF, but another one",
        "README.md": b"# SmolLM2",
    }
    hub.tags["org/SmolLM2-GGUF"] = ["gguf"]
    return "hf.co/org/SmolLM2-GGUF:Q4_1"


@pytest.mark.slow
def test_a_quantisation_is_fetched_its_backend_installed_and_it_answers_under_llama_cpp(
    greenroom: Callable[..., Any], hub: LocalHub, quantised: str
) -> None:
    done = greenroom("run", quantised, "Name a colour.", "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(hub.ranges()) == 1
    pulled = greenroom("pull", quantised)
    assert pulled.stdout.startswith("Using cached model: "), pulled.stderr
    wrong = greenroom("pull", "hf.co/org/SmolLM2-GGUF:Q5_K_M")
    assert wrong.returncode == 1
    assert "It has: Q4_1, Q8_0." in wrong.stderr
    missing = greenroom("pull", "hf.co/org/nothing")
    assert missing.returncode == 1
    assert "There is no hf.co/org/nothing, or it is private." in missing.stderr


@pytest.mark.slow
def test_a_model_of_a_hub_is_managed_like_any_other_by_the_names_people_type(
    greenroom: Callable[..., Any], quantised: str, smollm2_gguf: Path, tmp_path: Path
) -> None:
    pulled = greenroom("pull", quantised)
    assert pulled.returncode == 0, pulled.stderr
    assert greenroom("tag", quantised, "mine:v1").returncode == 0
    listed = greenroom("list").stdout
    assert "mine:v1" in listed
    assert "134.52M" in listed
    archive = tmp_path / "mine.tar"
    exported = greenroom("export", "mine:v1", "-o", str(archive))
    assert exported.returncode == 0, exported.stderr
    model_id = greenroom("list", "-q").stdout.strip()
    assert greenroom("rm", "mine:v1").stdout == "Untagged: docker.io/ai/mine:v1\n"
    removed = greenroom("rm", quantised)
    assert f"Deleted: sha256:{model_id}" in removed.stdout, removed.stderr
    loaded = greenroom("load", str(archive), "--tag", "back")
    assert loaded.stdout == "Loaded back.\n", loaded.stderr
    assert greenroom("list", "-q").stdout.strip() == model_id
    packaged = greenroom("package", "--gguf", str(smollm2_gguf), "--context-size", "512", "short")
    assert packaged.stdout == "Packaged short.\n", packaged.stderr
    answer = greenroom("run", "short", "Hello.", "--max-tokens", "4")
    assert answer.returncode == 0, answer.stderr
    verified = greenroom("models", "verify")
    assert verified.returncode == 0, verified.stderr
    assert "back is whole" in verified.stdout
    assert "short is whole" in verified.stdout
    assert "models             98.4 MB" in greenroom("df").stdout  # both share their weights
    assert greenroom("prune").stdout == "Nothing to remove.\n"
    found = greenroom("search", "smollm2")
    assert "hf.co/org/SmolLM2-GGUF" in found.stdout
    assert "catalogue" in found.stdout
    completed = greenroom(_GREENROOM_COMPLETE="bash_complete", COMP_WORDS="greenroom rm b", COMP_CWORD="2")
    assert completed.stdout.split() == ["plain,back"]
    assert greenroom("tag", "back", quantised).returncode == 0
    completed = greenroom(_GREENROOM_COMPLETE="bash_complete", COMP_WORDS="greenroom rm hf", COMP_CWORD="2")
    assert completed.stdout.split() == ["plain,hf.co/org/smollm2-gguf:Q4_1"]
    assert greenroom("rm", "--all").returncode == 0
    assert greenroom("list", "--json").stdout.strip() == "[]"


def test_without_a_network_what_is_here_is_used_and_the_rest_refused_within_seconds(
    greenroom: Callable[..., Any], hub: LocalHub, smollm2_gguf: Path
) -> None:
    hub.repositories["org/m"] = {"m-Q4_1.gguf": smollm2_gguf.read_bytes()}
    assert greenroom("pull", "hf.co/org/m").returncode == 0
    hub.close()
    again = greenroom("pull", "hf.co/org/m")
    assert again.stdout.startswith("Using cached model: "), again.stderr
    refused = greenroom("pull", "hf.co/org/other")
    assert refused.returncode == 1
    assert "could not be reached" in refused.stderr


@needs_registry
def test_a_pushed_model_can_be_pulled_by_another_client(
    greenroom: Callable[..., Any], smollm2_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "registry").mkdir()
    registry = RealRegistry(tmp_path / "registry")
    try:
        name = f"{registry.host}/me/small:v1"
        done = greenroom("package", "--gguf", str(smollm2_gguf), "--push", name)
        assert done.returncode == 0, done.stderr
        assert "Model pushed successfully" in done.stdout
        remote = greenroom("inspect", "--remote", name)
        assert "134.52M" in remote.stdout, remote.stderr
        assert greenroom("rm", name).returncode == 0
        assert greenroom("pull", name).stdout == "Model pulled successfully\n"
    finally:
        registry.close()
