"""vllm-metal from nothing to a served request and back, on what a daemon takes for a Mac.

The image is a stand-in (its server only pretends), everything else is real: registry, daemon, command line,
keeper, launcher.
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from real_registry import Doorway, Layer, Published, RealRegistry, Wrong, file, folder_layer, layer
from vllm_metal_tree import make_tree
from waiting import until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def tree_layer(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    tree = make_tree(tmp_path_factory.mktemp("tree") / "vllm-metal")
    return folder_layer(tree, "vllm-metal", mode=0o644)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest folder that is a model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    header = b'{"model.embed_tokens.weight":{"dtype":"F16","shape":[16,64],"data_offsets":[0,2048]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2048))
    config = {"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


class Mac:
    """A daemon on what it takes for a Mac, and the registry its image comes from."""

    def __init__(
        self,
        daemon: Any,
        registry: RealRegistry,
        doorway: Doorway,
        user_home: Path,
    ) -> None:
        self.daemon = daemon
        self.registry = registry
        self.doorway = doorway
        self.user_home = user_home
        self.name = f"org/{uuid.uuid4().hex[:10]}"
        self.reference = f"{doorway.host}/{self.name}:vllm-metal-v0.2.0"
        text = f'[backends."vllm-metal"]\nimage = "{self.reference}"\n'
        (daemon.home / "config.toml").write_text(text)

    def push(self, *layers: Layer, **options: Any) -> Published:
        return self.registry.push(self.name, layers, tag="vllm-metal-v0.2.0", **options)

    def chat(self, model: Path, **more: Any) -> Any:
        body = {"model": str(model), "messages": [{"role": "user", "content": "three small words"}], **more}
        return self.daemon.post("/engines/vllm-metal/v1/chat/completions", body)

    def install(self) -> Any:
        return self.daemon.run("install-runner", "--backend", "vllm-metal")

    def status(self) -> str:
        return str(self.daemon.get("/engines/status").json["vllm-metal"])

    def said(self) -> dict[str, Any]:
        """What the stand-in that runs told of how it was started."""
        (engine,) = self.daemon.engines()
        log = self.daemon.home / "engines" / engine["engine_id"] / "log"
        # The keeper is another process: where the disk is busy an answer can be here before its log is.
        (line,) = until(
            lambda: [one for one in log.read_text().splitlines(True) if "stand-in {" in one and "\n" in one]
        )
        found: dict[str, Any] = json.loads(line[line.index("{") :])
        return found


@pytest.fixture
def mac(
    make_daemon: Callable[..., Any],
    docker_registry: RealRegistry,
    make_doorway: Callable[[], Doorway],
    tmp_path: Path,
) -> Mac:
    user_home = tmp_path / "user"
    user_home.mkdir()
    daemon = make_daemon(program="serve_as_mac", HOME=str(user_home), DOCKER_CONFIG=str(user_home / "docker"))
    mac = Mac(daemon, docker_registry, make_doorway(), user_home)  # whose configuration it reads
    daemon.start()
    return mac


def test_vllm_metal_is_installed_serves_survives_and_goes(mac: Mac, tree_layer: Layer, model: Path) -> None:
    daemon = mac.daemon
    published = mac.push(tree_layer)
    daemon.pull(str(model))

    refused = mac.chat(model)
    assert refused.status == 412
    error = refused.json["error"]
    assert error["message"] == (
        'backend "vllm-metal" is not installed; run: greenroom install-runner --backend vllm-metal'
    )
    assert error["download_bytes"] == len(tree_layer.data)
    assert not mac.doorway.asked(published.layers[0])

    planned = daemon.run("install-runner", "--backend", "vllm-metal", "--dry-run")
    assert f"{mac.reference}@{published.digest}" in planned.stdout
    installed = mac.install()
    assert installed.returncode == 0, installed.stderr
    assert "vllm-metal backend installed successfully" in installed.stdout
    assert mac.status() == "Running: vllm-metal 0.2.0"
    assert "vllm-metal backend is already installed" in mac.install().stdout

    answer = mac.chat(model)
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"].split() == ["three", "small", "words"]
    streamed = mac.chat(model, stream=True).body.decode()
    assert streamed.rstrip().endswith("data: [DONE]")
    said = mac.said()
    (engine,) = daemon.engines()
    assert said["version"] == "0.2.0"
    assert said["isolated"] == 1
    assert said["offline"] == "1"
    assert said["kernels"] == "kernels of 0.2.0"
    assert said["python"].startswith(str(daemon.home / "backends" / "vllm-metal"))
    assert "--trust-remote-code" not in said["arguments"]
    assert "--port" not in said["arguments"]
    assert said["arguments"][said["arguments"].index("--uds") + 1].endswith(".sock")

    # Killed, and no registry any more: the next daemon has it, and the engine that runs.
    mac.doorway.wrong["."] = Wrong(status=503)
    daemon.kill()
    daemon.start()
    assert mac.status() == "Running: vllm-metal 0.2.0"
    assert mac.chat(model).status == 200
    assert [one["pid"] for one in daemon.engines()] == [engine["pid"]]

    removed = daemon.run("uninstall-runner", "--backend", "vllm-metal")
    assert removed.returncode == 0, removed.stderr
    assert "Uninstalled vllm-metal backend" in removed.stdout
    assert "freed" in removed.stdout
    assert daemon.engines() == []
    assert list((daemon.home / "backends" / "vllm-metal").iterdir()) == []
    assert list((daemon.home / "cache" / "images").iterdir()) == []
    assert not (mac.user_home / ".cache" / "vllm-metal").exists()
    assert mac.chat(model).status == 412


def test_a_newer_image_is_put_beside_the_old_one_and_can_be_gone_back_from(
    mac: Mac, tree_layer: Layer, tmp_path: Path, model: Path
) -> None:
    newer = folder_layer(make_tree(tmp_path / "newer" / "vllm-metal", "0.3.0"), "vllm-metal", mode=0o644)
    mac.push(tree_layer)
    mac.registry.push(mac.name, [newer], tag="vllm-metal-v0.3.0")
    mac.daemon.pull(str(model))
    assert mac.install().returncode == 0

    def serving() -> tuple[str, str]:
        """Version and kernels of the engine that a request after an unload gets."""
        mac.daemon.run("unload", "--all")
        until(lambda: mac.daemon.engines() == [])
        answer = mac.chat(model)
        assert answer.status == 200, answer.body
        said = mac.said()
        return said["version"], said["kernels"]

    assert serving() == ("0.2.0", "kernels of 0.2.0")
    upgraded = mac.daemon.run("upgrade-runner", "--backend", "vllm-metal", "--version", "latest")
    assert upgraded.returncode == 0, upgraded.stderr
    assert "vllm-metal 0.3.0" in upgraded.stdout
    assert serving() == ("0.3.0", "kernels of 0.3.0")
    back = mac.daemon.run("rollback-runner", "--backend", "vllm-metal")
    assert back.returncode == 0, back.stderr
    assert "vllm-metal 0.2.0 is in use" in back.stdout
    # Each version finds its own kernels, although the place for them is one.
    assert serving() == ("0.2.0", "kernels of 0.2.0")


def tampered(mac: Mac, whole: Layer, _: Layer) -> str:
    published = mac.push(whole)
    mac.doorway.wrong[published.layers[0]] = Wrong(flip=1_000)
    return f"{mac.doorway.host} sent bytes for layer-{published.layers[0][7:19]}"


def for_another_machine(mac: Mac, whole: Layer, _: Layer) -> str:
    mac.push(whole, os="linux", architecture="amd64")
    return f"The image {mac.reference} is not for darwin/arm64; it is for linux/amd64."


def vanished(mac: Mac, whole: Layer, _: Layer) -> str:
    mac.registry.remove(mac.name, mac.push(whole).digest)
    return f"There is no such image on {mac.doorway.host}: {mac.reference}."


def hostile(mac: Mac, whole: Layer, evil: Layer) -> str:
    mac.push(whole, evil)
    return f"The image {mac.reference} cannot be used: it has an entry with an invalid name"


@pytest.mark.parametrize("prepare", [tampered, for_another_machine, vanished, hostile])
def test_what_cannot_be_installed_is_one_sentence(
    mac: Mac, tree_layer: Layer, prepare: Callable[[Mac, Layer, Layer], str]
) -> None:
    sentence = prepare(mac, tree_layer, layer([file("vllm-metal/../../outside")]))
    failed = mac.install()
    assert failed.returncode == 1
    assert sentence in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list((mac.daemon.home / "backends").glob("vllm-metal/*"))


def test_a_cut_connection_is_retried_and_resumed(mac: Mac, tree_layer: Layer) -> None:
    heavy = layer([file("vllm-metal/lib/weights", uuid.uuid4().bytes * 50_000)], lambda plain: plain)
    published = mac.push(tree_layer, heavy)
    # The first time it breaks off in the middle, then twice at once: that ends the attempt.
    mac.doorway.wrong[published.layers[1]] = Wrong(cut_after=300_000, times=1)
    mac.doorway.wrong[published.layers[1] + "$"] = Wrong(cut_after=0, times=1)
    installed = mac.install()
    assert installed.returncode == 0, installed.stderr
    ((_, failed),) = mac.daemon.events("install_attempt_failed")
    assert (failed["failure"]["kind"], failed["failure"]["code"]) == ("transient", "unreachable")
    assert failed["failure"]["message"] == "The connection to 127.0.0.1 was interrupted."
    ranges = [told.headers.get("Range") for told in mac.doorway.asked(published.layers[1])]
    assert ranges == [None, "bytes=300000-", "bytes=300000-"]


def test_a_machine_that_cannot_run_it_says_what_it_would_need(make_daemon: Callable[..., Any]) -> None:
    daemon = make_daemon(PIP_NO_INDEX="1", UV_NO_CONFIG="1").start()
    failed = daemon.run("install-runner", "--backend", "vllm-metal")
    assert failed.returncode == 1
    assert "vllm-metal needs macOS 15 or newer on Apple silicon" in failed.stderr
    assert "Python 3.12" in failed.stderr
    assert "this machine is linux" in failed.stderr
