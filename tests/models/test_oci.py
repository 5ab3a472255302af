"""Pulls from a real registry (Debian's docker-registry), with credentials, tokens and cut connections."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.manifest_checks import checked
from greenroom.runner.models.store import ModelStore
from greenroom.runner.registry.credentials import credentials_for
from greenroom.runner.setting_values import RegistrySettings
from model_registry import (
    BASIC,
    CONFIG,
    CONFIG_TAR,
    FILEPATH,
    GGUF,
    HTPASSWD,
    SAFETENSORS,
    Gate,
    RealRegistry,
    digest,
    needs_registry,
)
from tiny_vision import projector

NewPuller = Callable[..., Any]
Make = Callable[..., bytes]
pytestmark = pytest.mark.usefixtures("docker_config")


@pytest.fixture(scope="module")
def locked_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    registry = RealRegistry(tmp_path_factory.mktemp("locked"), htpasswd=HTPASSWD)
    yield registry
    registry.close()


def pull(new_puller: NewPuller, recorder: Any, reference: str, **options: Any) -> tuple[str, Any]:
    job = f"job-{len(recorder.told)}"
    new_puller().start(job, reference, **options)
    outcome: tuple[str, Any] = recorder.outcome(job)
    return outcome


@needs_registry
def test_a_model_keeps_the_id_it_was_published_with(
    registry: RealRegistry, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    published = registry.push(
        "ai/tiny", [(GGUF, gguf(), {}), ("application/vnd.docker.ai.license", b"MIT", {})]
    )
    what, model = pull(new_puller, recorder, f"{registry.host}/ai/tiny")
    assert what == "committed", model
    assert model.id == published
    assert model.tags == (f"{registry.host}/ai/tiny:latest",)
    assert (model.format, model.architecture) == ("gguf", "llama")
    assert store.open_model(model.id).path.name == "model.gguf"
    assert store.verify(model.id) == ()
    store.prepare()
    assert store.verify(model.id) == ()
    assert pull(new_puller, recorder, f"{registry.host}/ai/tiny") == ("committed", model)
    assert list(recorder.fresh.values()) == [True, False]


@needs_registry
def test_a_digest_pins_and_moves_no_tag(
    registry: RealRegistry, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    old = registry.push("org/pinned", [(GGUF, gguf(filler=b"\x01"), {})])
    new = registry.push("org/pinned", [(GGUF, gguf(filler=b"\x02"), {})])
    assert pull(new_puller, recorder, f"{registry.host}/org/pinned")[1].id == new
    what, model = pull(new_puller, recorder, f"{registry.host}/org/pinned@{old}")
    assert (what, model.id, model.tags) == ("committed", old, ())
    what, model = pull(new_puller, recorder, f"{registry.host}/org/pinned:v1@{old}")
    assert (model.id, model.tags) == (old, (f"{registry.host}/org/pinned:v1",))
    absent = f"sha256:{'0' * 64}"
    assert pull(new_puller, recorder, f"{registry.host}/org/pinned:latest@{absent}")[1].code == "not_found"


@needs_registry
def test_a_file_that_another_model_has_is_not_fetched_again(
    gate: Gate, registry: RealRegistry, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    shared = gguf(filler=b"\x09")
    registry.push("org/one", [(GGUF, shared, {})])
    registry.push("org/two", [(GGUF, shared, {FILEPATH: "two.gguf"})])
    one = pull(new_puller, recorder, f"{gate.host}/org/one")[1]
    two = pull(new_puller, recorder, f"{gate.host}/org/two")[1]
    assert one.id != two.id
    asked = [path for path, _, _ in gate.told if path.endswith(digest(shared))]
    assert len(asked) == 1
    assert store.open_model(one.id).path.samefile(store.open_model(two.id).path)


@needs_registry
def test_safetensors_with_their_configuration_in_a_tar_are_one_folder(
    registry: RealRegistry,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
    model_folder: Callable[..., Path],
) -> None:
    folder = model_folder(tmp_path / "m")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            tar.add(folder / name, name)
    weights = (folder / "model.safetensors").read_bytes()
    registry.push("org/st", [(SAFETENSORS, weights, {}), (CONFIG_TAR, out.getvalue(), {})])
    what, model = pull(new_puller, recorder, f"{registry.host}/org/st")
    assert what == "committed", model
    assert (model.format, model.context_length) == ("safetensors", 512)
    files = store.open_model(model.id)
    assert {path.name for path in files.path.iterdir()} == {path.name for path in folder.iterdir()}


@needs_registry
@pytest.mark.parametrize("annotations", [{}, {FILEPATH: "eyes.gguf"}, {FILEPATH: "mmproj-f16.gguf"}])
def test_an_artifacts_projector_is_handed_to_the_engine(
    annotations: dict[str, str],
    gguf: Make,
    registry: RealRegistry,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
) -> None:
    name = annotations.get(FILEPATH, "")
    layers = [(GGUF, gguf(), {}), ("application/vnd.docker.ai.mmproj", projector(), annotations)]
    registry.push(f"org/seeing{len(name)}", layers)
    what, model = pull(new_puller, recorder, f"{registry.host}/org/seeing{len(name)}")
    assert what == "committed", model
    assert (model.reads, model.projector_size) == (("image",), len(projector()))
    files = store.open_model(model.id)
    assert files.path.read_bytes() == gguf()
    assert files.mmproj is not None
    assert (files.mmproj.name, files.mmproj.read_bytes()) == (name or "model.mmproj", projector())


@needs_registry
def test_newer_artifacts_name_each_file(
    registry: RealRegistry,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
    model_folder: Callable[..., Path],
) -> None:
    folder = model_folder(tmp_path / "m")
    kind = "application/vnd.cncf.model.weight.v1.raw"
    layers = [(kind, path.read_bytes(), {FILEPATH: path.name}) for path in sorted(folder.iterdir())]
    registry.push("org/cncf", layers, config_type="application/vnd.cncf.model.config.v1+json")
    what, model = pull(new_puller, recorder, f"{registry.host}/org/cncf:latest")
    assert what == "committed", model
    assert {p.name for p in store.open_model(model.id).path.iterdir()} == {p.name for p in folder.iterdir()}


def _tar(member: tarfile.TarInfo, data: bytes = b"") -> bytes:
    out = io.BytesIO()
    member.size = len(data)
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("config.json")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@needs_registry
@pytest.mark.parametrize(
    "layer",
    [
        pytest.param((CONFIG_TAR, _tar(tarfile.TarInfo("../../outside"), b"x"), {}), id="dots"),
        pytest.param((CONFIG_TAR, _tar(tarfile.TarInfo("/tmp/absolute"), b"x"), {}), id="absolute"),
        pytest.param((CONFIG_TAR, _tar(_link(tarfile.SYMTYPE)), {}), id="symlink"),
        pytest.param((CONFIG_TAR, _tar(_link(tarfile.LNKTYPE)), {}), id="hardlink"),
        pytest.param((CONFIG_TAR, _tar(_link(tarfile.CHRTYPE)), {}), id="device"),
        pytest.param((CONFIG_TAR, b"not a tar" * 200, {}), id="nonsense"),
        pytest.param((SAFETENSORS, b"x", {FILEPATH: "../../outside.safetensors"}), id="annotation"),
        pytest.param((SAFETENSORS, b"y", {FILEPATH: "/etc/outside"}), id="absolute annotation"),
    ],
)
def test_no_file_is_written_outside_its_folder(
    layer: tuple[str, bytes, dict[str, str]],
    registry: RealRegistry,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    safetensors: Make,
) -> None:
    registry.push("org/evil", [(SAFETENSORS, safetensors(), {}), layer])
    before = {str(p) for p in store.root.parent.parent.rglob("*") if "partial" not in str(p)}
    what, failure = pull(new_puller, recorder, f"{registry.host}/org/evil")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "not_a_model"), failure
    assert store.models() == ()
    after = {str(p) for p in store.root.parent.parent.rglob("*") if "partial" not in str(p)}
    assert after == before
    assert not Path("/tmp/absolute").exists()


@needs_registry
@pytest.mark.parametrize(
    "names", [("m.gguf", "m.gguf"), ("m.gguf", "m.gguf/x.json"), ("a/b/c.json", "a/b"), ("a", "a/b.gguf")]
)
def test_names_that_cannot_lie_side_by_side_are_the_models_fault(
    names: tuple[str, str],
    registry: RealRegistry,
    gguf: Make,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
) -> None:
    kind = "application/vnd.docker.ai.model.file"
    registry.push(
        "org/clash", [(kind, gguf(filler=b"%d" % n), {FILEPATH: name}) for n, name in enumerate(names)]
    )
    what, failure = pull(new_puller, recorder, f"{registry.host}/org/clash")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "not_a_model"), failure
    assert store.models() == ()


@pytest.mark.parametrize("lie", [2**42, 2**62, 2**63, 10**30])
def test_a_size_that_no_file_has_is_refused_before_anything_is_fetched(lie: int, gguf: Make) -> None:
    body = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"mediaType": CONFIG, "digest": digest(b"{}"), "size": 2},
            "layers": [{"mediaType": GGUF, "digest": digest(gguf()), "size": lie}],
        }
    ).encode()
    with pytest.raises(JobFailed) as caught:
        checked(body, "it")
    assert caught.value.failure.code == "not_a_model"


@needs_registry
@pytest.mark.parametrize("lie", [-1, -2_000, 1, 2_000])
def test_a_manifest_that_lies_about_a_size_is_no_success(
    lie: int, registry: RealRegistry, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    registry.push("org/lie", [(GGUF, gguf(), {})], lie=lie)
    what, failure = pull(new_puller, recorder, f"{registry.host}/org/lie")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "hash_mismatch")
    assert ("larger" if lie < 0 else "smaller") in failure.message
    assert store.models() == ()


@needs_registry
def test_code_and_pickles_of_a_registry_are_not_laid_beside_an_engine(
    registry: RealRegistry,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
    model_folder: Callable[..., Path],
) -> None:
    folder = model_folder(tmp_path / "m")
    good = {path.name for path in folder.iterdir()}
    for name in ("modeling_evil.py", "pytorch_model.bin", "libx.so", "run.sh", ".hidden.json.py"):
        (folder / name).write_bytes(b"boo")
    kind = "application/vnd.cncf.model.weight.v1.raw"
    layers = [(kind, path.read_bytes(), {FILEPATH: path.name}) for path in sorted(folder.iterdir())]
    layers.append((CONFIG_TAR, _tar(tarfile.TarInfo("evil.py"), b"boo"), {}))
    published = registry.push("org/code", layers, config_type="application/vnd.cncf.model.config.v1+json")
    what, model = pull(new_puller, recorder, f"{registry.host}/org/code")
    assert (what, model.id) == ("committed", published), model
    assert {path.name for path in store.open_model(model.id).path.rglob("*")} == good


@needs_registry
@pytest.mark.parametrize("name", ["x" * 300 + ".gguf", "é" * 200 + ".gguf", "a/" + "b" * 256 + "/m.gguf"])
def test_a_layer_with_a_name_that_no_disk_takes_is_the_models_fault(
    name: str, registry: RealRegistry, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    registry.push("org/long", [(GGUF, gguf(), {FILEPATH: name})])
    what, failure = pull(new_puller, recorder, f"{registry.host}/org/long")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "not_a_model")
    assert "is not a file name inside a model" in failure.message
    assert str(store.root) not in failure.message


@needs_registry
def test_what_is_not_a_model_is_refused_before_anything_is_fetched(
    gate: Gate, registry: RealRegistry, new_puller: NewPuller, recorder: Any
) -> None:
    kind = "application/vnd.oci.image.config.v1+json"
    registry.push("org/container", [("application/vnd.oci.image.layer.v1.tar", b"x", {})], config_type=kind)
    what, failure = pull(new_puller, recorder, f"{gate.host}/org/container")
    assert (what, failure.code) == ("failed", "unsupported_artifact")
    assert f'config type "{kind}" is not supported' in failure.message
    assert not [path for path, _, _ in gate.told if "/blobs/" in path]


@needs_registry
def test_a_layer_that_broke_off_is_resumed_and_the_others_are_not_fetched_twice(
    gate: Gate, registry: RealRegistry, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    shape = (1024, 512)
    big = gguf(tensors=[("t", shape, 1, 0)], data=os.urandom(2**20))
    registry.push("org/big", [(GGUF, big, {}), ("application/vnd.docker.ai.license", b"MIT " * 99, {})])
    gate.cut_after = 600_000
    what, failure = pull(new_puller, recorder, f"{gate.host}/org/big")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "unreachable")
    gate.cut_after = None
    licence = store.root / "partial" / hashlib.sha256(b"MIT " * 99).hexdigest()
    licence.write_bytes(b"MIT " * 99)  # come whole, whichever of the two was first before
    before = len(gate.told)
    what, model = pull(new_puller, recorder, f"{gate.host}/org/big")
    assert what == "committed", model
    blobs = [(path.rpartition("/")[2], asked) for path, asked, _ in gate.told[before:] if "/blobs/" in path]
    assert (digest(big), "bytes=600000-") in blobs
    assert digest(b"MIT " * 99) not in [name for name, _ in blobs]
    assert store.verify(model.id) == ()


@needs_registry
def test_a_mirror_that_has_a_manifest_and_not_its_blobs_is_passed_over(
    gate: Gate, registry: RealRegistry, gguf: Make, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    gate.blobs = False
    published = registry.push("org/mirrored", [(GGUF, gguf(filler=b"\x07"), {})])
    settings = {registry.host: RegistrySettings(mirrors=(gate.host,))}
    new_puller(registries=settings).start("job", f"{registry.host}/org/mirrored")
    what, model = recorder.outcome("job")
    assert (what, model.id) == ("committed", published), model
    paths = [path for path, _, _ in gate.told]
    assert "/v2/org/mirrored/manifests/latest" in paths
    assert any("/blobs/" in path for path in paths), "it has been asked"
    assert store.verify(model.id) == ()


@needs_registry
def test_what_netrc_knows_of_a_registrys_host_is_not_sent_with_its_blobs(
    gate: Gate,
    registry: RealRegistry,
    gguf: Make,
    new_puller: NewPuller,
    recorder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    gate.token = ""
    registry.push("org/netrc", [(GGUF, gguf(filler=b"\x08"), {})])
    what, model = pull(new_puller, recorder, f"{gate.host}/org/netrc")
    assert what == "committed", model
    assert {authorization for _, _, authorization in gate.told} == {""}


@needs_registry
def test_a_token_is_got_and_renewed_when_it_has_run_out(
    gate: Gate,
    registry: RealRegistry,
    gguf: Make,
    new_puller: NewPuller,
    recorder: Any,
    docker_config: Path,
) -> None:
    docker_config.write_text(json.dumps({"auths": {gate.host: {"auth": BASIC.removeprefix("Basic ")}}}))
    registry.push("org/token", [(GGUF, gguf(filler=b"\x21"), {})])
    what, model = pull(new_puller, recorder, f"{gate.host}/org/token")
    assert what == "committed", model
    asked = [(path, authorization) for path, _, authorization in gate.told if path.startswith("/token")]
    assert asked == [("/token?service=test&scope=repository%3Aorg%2Ftoken%3Apull", BASIC)]
    registry.push("org/token", [(GGUF, gguf(filler=b"\x22"), {})])
    gate.expires = True
    assert pull(new_puller, recorder, f"{gate.host}/org/token")[0] == "committed"
    assert not gate.expires
    assert all(a in ("", f"Bearer {gate.token}") for p, _, a in gate.told if not p.startswith("/token"))


@needs_registry
def test_credentials_come_from_dockers_configuration_and_helpers(
    locked_registry: RealRegistry,
    gguf: Make,
    new_puller: NewPuller,
    recorder: Any,
    docker_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locked_registry.push("org/private", [(GGUF, gguf(), {})])
    reference = f"{locked_registry.host}/org/private"
    what, failure = pull(new_puller, recorder, reference)
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "unauthorized")
    assert f"docker login {locked_registry.host}" in failure.advice
    docker_config.write_text(
        json.dumps({"auths": {f"http://{locked_registry.host}/v2/": {"auth": BASIC.removeprefix("Basic ")}}})
    )
    assert pull(new_puller, recorder, reference)[0] == "committed"

    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    answer = '{"Username": "me", "Secret": "secret"}'
    helper.write_text(f"#!/bin/sh\n[ \"$(cat)\" = {locked_registry.host} ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    docker_config.write_text(json.dumps({"credHelpers": {locked_registry.host: "test"}}))
    locked_registry.push("org/private", [(GGUF, gguf(filler=b"\x33"), {})], tag="v2")
    assert pull(new_puller, recorder, f"{reference}:v2")[0] == "committed"


@pytest.mark.parametrize(
    ("registry_name", "user"),
    [
        ("reg.example", "a"),
        ("reg.example:5000", "b"),
        ("docker.io", "hub"),
        ("evil.reg.example", ""),
        ("example", ""),
    ],
)
def test_each_registry_gets_only_its_own_credentials(
    registry_name: str, user: str, docker_config: Path
) -> None:
    def auth(name: str) -> dict[str, str]:
        return {"auth": base64.b64encode(f"{name}:p".encode()).decode()}

    auths = {
        "https://reg.example": auth("a"),
        "reg.example:5000": auth("b"),
        "https://index.docker.io/v1/": auth("hub"),
    }
    docker_config.write_text(json.dumps({"auths": auths}))
    assert credentials_for(registry_name).user == user


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"auths": 7}', '{"auths": {"r": 1}, "credHelpers": {"r": "../x"}}']
)
def test_a_configuration_that_is_invalid_gives_no_credentials(content: str, docker_config: Path) -> None:
    docker_config.write_text(content)
    assert not credentials_for("r")


def test_a_registry_that_is_not_there_is_worth_another_attempt(new_puller: NewPuller, recorder: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    what, failure = pull(new_puller, recorder, f"127.0.0.1:{port}/org/m")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "unreachable")
