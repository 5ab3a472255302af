"""Pushes to a real registry: what is missing is sent, once, and what broke off is sent again."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.values import Model
from greenroom.runner.models.description import model_text
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.recipe import Defaults, Recipe
from greenroom.runner.models.store import ModelStore
from model_registry import BASIC, HTPASSWD, Gate, RealRegistry, digest, needs_registry

NewPuller = Callable[..., Any]
Make = Callable[..., bytes]
pytestmark = [needs_registry, pytest.mark.usefixtures("docker_config")]


@pytest.fixture
def big(store: ModelStore, tmp_path: Path, gguf: Make) -> Model:
    """A stored model of a little more than a MiB, another one each time."""
    file = tmp_path / "big.gguf"
    file.write_bytes(gguf(tensors=[("t", (1024, 512), 1, 0)], data=os.urandom(2**20)))
    with store.arrival() as arrival:
        arrival.take(file, "big.gguf", how="move", cancel=threading.Event())
        return store.commit(arrival)


def push(puller: Puller, recorder: Any, model: Model, reference: str, **more: Any) -> tuple[str, Any]:
    before = len(recorder.told)
    puller.push(model.id, reference, **more)  # type: ignore[attr-defined]
    recorder.wait(lambda *_: any(what in ("pushed", "push_failed") for what, _ in recorder.told[before:]))
    what, arguments = next(t for t in recorder.told[before:] if t[0] in ("pushed", "push_failed"))
    return what, arguments[-1]


def test_a_model_that_is_pushed_and_pulled_elsewhere_keeps_its_id(
    registry: RealRegistry,
    big: Model,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
) -> None:
    puller = new_puller()
    reference = f"{registry.host}/me/big:v1"
    what, sent = push(puller, recorder, big, reference)
    assert what == "pushed", sent
    assert sent > big.size
    progress = recorder.progress_of(f"push/{reference}")
    uploading = [p for p in progress if p.phase == "uploading"]
    assert uploading[-1].done == uploading[-1].total == big.size, "the configuration is sent, but is no layer"
    assert [(part.name, part.done) for part in uploading[-1].parts] == [("big.gguf", big.size)]
    assert [p.done for p in uploading] == sorted(p.done for p in uploading)
    other = ModelStore(tmp_path / "other")
    other.prepare()
    elsewhere = new_puller(other)
    elsewhere.start("back", reference)
    outcome, model = recorder.outcome("back")
    elsewhere.close()
    assert outcome == "committed", model
    assert model.id == big.id
    assert other.verify(model.id) == ()


def test_a_created_model_is_pushed_and_pulled_with_its_defaults(
    registry: RealRegistry,
    big: Model,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    tmp_path: Path,
) -> None:
    recipe = Recipe(system="s", parameters={"seed": 1}, template="{{ messages }}", licenses=("MIT",))
    made = store.repackage(big.id, tag="made", recipe=recipe)
    reference = f"{registry.host}/me/made:v1"
    assert push(new_puller(), recorder, made, reference)[0] == "pushed"
    other = ModelStore(tmp_path / "other")
    other.prepare()
    elsewhere = new_puller(other)
    elsewhere.start("back", reference)
    outcome, model = recorder.outcome("back")
    elsewhere.close()
    assert (outcome, model.id) == ("committed", made.id)
    assert other.defaults(model.id) == Defaults(system="s", parameters={"seed": 1})
    text = model_text(other, model.id)
    assert (text.template, text.license) == ("{{ messages }}", "MIT")


def test_what_the_registry_has_is_not_sent_again(
    gate: Gate, big: Model, new_puller: NewPuller, recorder: Any
) -> None:
    puller = new_puller()
    assert push(puller, recorder, big, f"{gate.host}/me/twice:v1")[0] == "pushed"
    first = len(gate.writes)
    what, sent = push(puller, recorder, big, f"{gate.host}/me/twice:v2")
    assert (what, sent) == ("pushed", 0)
    told = recorder.progress_of(f"push/{gate.host}/me/twice:v2")
    assert not any(progress.parts for progress in told), "a layer that is there already is not reported"
    again = gate.writes[first:]
    assert {method for method, path, _ in again if "/blobs/" in path} == {"HEAD"}
    assert [path for method, path, _ in again if method == "PUT"] == ["/v2/me/twice/manifests/v2"]


def test_what_another_repository_of_the_registry_has_is_taken_over(
    gate: Gate, big: Model, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    puller = new_puller()
    store.tag(big.id, f"{gate.host}/me/first:latest")
    assert push(puller, recorder, big, f"{gate.host}/me/first:latest")[0] == "pushed"
    assert push(puller, recorder, big, f"{gate.host}/me/second:latest") == ("pushed", 0)


def test_an_upload_that_broke_off_is_retried_and_the_others_are_not_sent_twice(
    gate: Gate, big: Model, new_puller: NewPuller, recorder: Any
) -> None:
    gate.cut_uploads = 2
    reference = f"{gate.host}/me/cut:latest"
    what, _ = push(new_puller(), recorder, big, reference)
    assert what == "pushed"
    assert gate.cut_uploads == 0
    whole = [path for method, path, size in gate.writes if method == "PUT" and size == big.size]
    assert len(whole) == 1
    phases = [p.phase for p in recorder.progress_of(f"push/{reference}")]
    assert "waiting_to_retry" in phases


def test_a_token_is_asked_for_with_the_right_to_write(
    gate: Gate, big: Model, new_puller: NewPuller, recorder: Any, docker_config: Path
) -> None:
    docker_config.write_text(json.dumps({"auths": {gate.host: {"auth": BASIC.removeprefix("Basic ")}}}))
    assert push(new_puller(), recorder, big, f"{gate.host}/me/token:latest")[0] == "pushed"
    asked = {(path, authorization) for path, _, authorization in gate.told if path.startswith("/token")}
    assert asked == {("/token?service=test&scope=repository%3Ame%2Ftoken%3Apull%2Cpush", BASIC)}


def test_a_push_without_permission_says_how_to_log_in(
    tmp_path_factory: pytest.TempPathFactory,
    big: Model,
    new_puller: NewPuller,
    recorder: Any,
    docker_config: Path,
) -> None:
    locked = RealRegistry(tmp_path_factory.mktemp("locked"), htpasswd=HTPASSWD)
    try:
        puller, reference = new_puller(), f"{locked.host}/me/m:latest"
        what, failure = push(puller, recorder, big, reference)
        assert (what, failure.code) == ("push_failed", "unauthorized")
        assert f"docker login {locked.host}" in failure.advice
        auths = {locked.host: {"auth": BASIC.removeprefix("Basic ")}}
        docker_config.write_text(json.dumps({"auths": auths}))
        assert push(puller, recorder, big, reference)[0] == "pushed"
    finally:
        locked.close()


def test_a_push_is_cancelled_at_once(gate: Gate, big: Model, new_puller: NewPuller, recorder: Any) -> None:
    gate.cut_uploads = 100
    puller, reference = new_puller(), f"{gate.host}/me/never:latest"
    puller.push(big.id, reference)
    recorder.wait(lambda what, a: what == "progress" and a[0].phase == "waiting_to_retry")
    puller.cancel_push(reference)
    _, (_, failure) = recorder.wait(lambda what, _: what == "push_failed")
    assert failure.kind == "cancelled"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("hf.co/org/model", "bad_reference"),
        ("file:/tmp/x.gguf", "bad_reference"),
        ("127.0.0.1:1/me/m:latest", "unreachable"),
    ],
)
def test_what_cannot_be_pushed_is_refused_with_a_sentence(
    reference: str, code: str, big: Model, new_puller: NewPuller, recorder: Any
) -> None:
    what, failure = push(new_puller(), recorder, big, reference)
    assert (what, failure.code) == ("push_failed", code)
    assert failure.message.endswith(".")


def test_what_is_put_under_a_tag_is_the_manifest_to_the_byte(
    registry: RealRegistry, big: Model, new_puller: NewPuller, recorder: Any, store: ModelStore
) -> None:
    assert push(new_puller(), recorder, big, f"{registry.host}/me/exact:v1")[0] == "pushed"
    host, _, port = registry.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        request = f"GET /v2/me/exact/manifests/v1 HTTP/1.0\r\nHost: {host}\r\n"
        request += "Accept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
        connection.sendall(request.encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert digest(answer.partition(b"\r\n\r\n")[2]) == big.id
