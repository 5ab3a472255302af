"""The registry client: tokens, mirrors, redirects, ranges, and answers that make no sense."""

from __future__ import annotations

import base64
import functools
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.installations.web import Fetched, Web
from greenroom.runner.models.references import Reference
from greenroom.runner.registry.client import Registry, endpoints_of
from greenroom.runner.setting_values import RegistrySettings
from real_registry import Doorway, Published, RealRegistry, Wrong, digest_of, file, layer

BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No credentials of the developer."""
    (tmp_path / "docker").mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("INSECURE_REGISTRY", raising=False)
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def name() -> str:
    return f"org/{uuid.uuid4().hex[:10]}"


@pytest.fixture
def doorway(make_doorway: Callable[[], Doorway]) -> Doorway:
    return make_doorway()


@pytest.fixture
def published(docker_registry: RealRegistry, name: str) -> Published:
    return docker_registry.push(name, [layer([file("a", os.urandom(10_000))])], tag="v1")


@pytest.fixture
def stranger() -> Iterator[Doorway]:
    """Another host, with no registry behind it."""
    doorway = Doorway(None)
    yield doorway
    doorway.close()


SOURCES = PackageSources(timeout=Setting("5", "the test"))


def client(host: str, name: str, web: type[Web] = Web, **options: Any) -> Registry:
    return Registry(web(SOURCES), Reference.parse(f"{host}/{name}:v1"), thing="image", **options)


def failure(work: Callable[[], Any]) -> Any:
    with pytest.raises(JobFailed) as caught:
        work()
    return caught.value.failure


def challenge(
    doorway: Doorway,
    *,
    token: str = "t0k3n",
    asked: str = "Bearer {realm}",
    answer: dict[str, Any] | None = None,
) -> None:
    """Make a doorway ask for a token, which it gives out itself."""
    realm = f'realm="http://{doorway.host}/token",service="here",scope="repository:x:pull"'
    doorway.wrong["^/token"] = Wrong(status=200, body=json.dumps(answer or {"token": token}).encode())
    real = functools.partial(Doorway.wrong_for, doorway)

    def wrong_for(path: str) -> Wrong:
        wanted = doorway.told[-1].headers.get("Authorization") == f"Bearer {token}"
        if path.startswith("/v2/") and not wanted:
            return Wrong(status=401, headers={"WWW-Authenticate": asked.format(realm=realm)})
        return real(path)

    doorway.wrong_for = wrong_for  # type: ignore[method-assign]


def test_a_manifest_comes_by_tag_and_by_digest(doorway: Doorway, name: str, published: Published) -> None:
    registry = client(doorway.host, name)
    data = registry.manifest("v1")
    assert digest_of(data) == published.digest
    assert registry.manifest(published.digest) == data


def test_a_blob_comes_whole_and_from_an_offset(doorway: Doorway, name: str, published: Published) -> None:
    registry = client(doorway.host, name)
    (blob,) = published.layers
    with registry.blob(blob) as whole:
        data = whole.read()
    assert (whole.status, digest_of(data)) == (200, blob)
    with registry.blob(blob, 9_000) as rest:
        assert (rest.status, rest.read()) == (206, data[9_000:])
    with registry.blob(blob, len(data)) as nothing:
        assert nothing.status == 416


def test_a_server_that_sends_another_part_than_it_was_asked_for_is_not_believed(
    doorway: Doorway, name: str, published: Published
) -> None:
    doorway.wrong["/blobs/"] = Wrong(status=206, body=b"x", headers={"Content-Range": "bytes 5-6/7"})
    told = failure(lambda: client(doorway.host, name).blob(published.layers[0], 9_000))
    assert (told.kind, told.code) == ("transient", "bad_answer")


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(
    doorway: Doorway, name: str, published: Published
) -> None:
    doorway.wrong["/manifests/"] = Wrong(flip=20)
    for wanted in ("v1", published.digest):
        told = failure(partial(client(doorway.host, name).manifest, wanted))
        assert (told.kind, told.code) == ("permanent", "hash_mismatch")


def test_tags_come_page_by_page_from_the_same_host_only(
    doorway: Doorway, stranger: Doorway, docker_registry: RealRegistry, name: str
) -> None:
    for tag in ("v1", "v2", "v3"):
        docker_registry.push(name, [layer([file("a")])], tag=tag)
    assert client(doorway.host, name).tags() == ["v1", "v2", "v3"]

    doorway.wrong["last=v1"] = Wrong(status=200, body=b'{"tags": ["b"]}')
    link = f'</v2/{name}/tags/list?n=1&last=v1>; rel="next"'
    doorway.wrong["/tags/"] = Wrong(status=200, body=b'{"tags": ["a"]}', headers={"Link": link})
    assert client(doorway.host, name).tags() == ["a", "b"]

    link = f'<http://{stranger.host}/v2/x/tags/list>; rel="next"'
    doorway.wrong = {"/tags/": Wrong(status=200, body=b'{"tags": ["a"]}', headers={"Link": link})}
    assert client(doorway.host, name).tags() == ["a"]
    assert stranger.told == []


def test_circular_tags_come_to_an_end(doorway: Doorway, name: str) -> None:
    link = f'</v2/{name}/tags/list>; rel="next"'
    doorway.wrong["/tags/"] = Wrong(status=200, body=b'{"tags": ["a"]}', headers={"Link": link})
    assert set(client(doorway.host, name).tags()) == {"a"}


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Bearer {realm}", {"token": "t0k3n"}),
        ("bearer {realm}", {"access_token": "t0k3n"}),
        ('Basic realm="x", Bearer {realm}', {"token": "t0k3n", "expires_in": 300}),
        ("Bearer {realm},error=invalid_token", {"token": "t0k3n"}),
    ],
)
def test_a_token_is_got_anonymously_for_this_repository_alone(
    doorway: Doorway, name: str, published: Published, asked: str, answer: dict[str, Any]
) -> None:
    challenge(doorway, asked=asked, answer=answer)
    registry = client(doorway.host, name)
    assert digest_of(registry.manifest("v1")) == published.digest
    registry.blob(published.layers[0]).close()
    (told,) = doorway.asked("^/token")
    assert parse_qs(urlsplit(told.path).query) == {
        "service": ["here"],
        "scope": [f"repository:{name}:pull"],
    }
    assert "Authorization" not in told.headers


def test_the_password_goes_to_the_token_server_and_not_to_the_registry(
    doorway: Doorway, name: str, published: Published, docker_config: Path
) -> None:
    challenge(doorway)
    auth = BASIC.removeprefix("Basic ")
    docker_config.write_text(json.dumps({"auths": {doorway.host: {"auth": auth}}}))
    client(doorway.host, name).manifest("v1")
    sent = [(urlsplit(told.path).path[:4], told.headers.get("Authorization")) for told in doorway.told]
    assert sent == [("/v2/", None), ("/tok", BASIC), ("/v2/", "Bearer t0k3n")]


def test_an_identity_token_is_sent_in_the_body(
    doorway: Doorway, name: str, published: Published, docker_config: Path
) -> None:
    challenge(doorway, answer={"access_token": "t0k3n"})
    docker_config.write_text(json.dumps({"auths": {doorway.host: {"identitytoken": "long-lived"}}}))
    client(doorway.host, name).manifest("v1")
    (told,) = doorway.asked("^/token")
    assert told.method == "POST"
    assert "long-lived" not in told.path


def test_a_password_is_not_sent_in_the_clear_to_a_token_server_elsewhere(
    stranger: Doorway, name: str, docker_config: Path
) -> None:
    class Challenging(Web):
        """As if there were a registry with TLS."""

        def fetch(self, url: str, **more: Any) -> Fetched:
            if not url.startswith("https://registry.example/"):
                return super().fetch(url, **more)
            realm = f'Bearer realm="http://{stranger.host}/token",service="x"'
            return Fetched(401, b"", {"WWW-Authenticate": realm}, url)

    docker_config.write_text(json.dumps({"auths": {"registry.example": {"auth": BASIC.split()[1]}}}))
    told = failure(lambda: client("registry.example", name, Challenging).manifest("v1"))
    assert told.code == "unauthorized"
    assert stranger.told == []


def test_a_token_that_has_run_out_is_renewed_for_the_next_blob(
    doorway: Doorway, name: str, published: Published
) -> None:
    challenge(doorway, token="first")
    registry = client(doorway.host, name)
    registry.manifest("v1")
    challenge(doorway, token="second")
    registry.blob(published.layers[0]).close()
    assert doorway.told[-1].headers["Authorization"] == "Bearer second"


def test_a_registry_that_wants_another_account_says_how_to_log_in(
    doorway: Doorway, name: str, docker_config: Path
) -> None:
    doorway.wrong["/v2/"] = Wrong(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    told = failure(lambda: client(doorway.host, name).manifest("v1"))
    assert (told.kind, told.code) == ("permanent", "unauthorized")
    assert f"docker login {doorway.host}" in told.advice
    docker_config.write_text(json.dumps({"auths": {doorway.host: {"auth": BASIC.removeprefix("Basic ")}}}))
    told = failure(lambda: client(doorway.host, name).manifest("v1"))
    assert told.code == "unauthorized"
    assert [t.headers.get("Authorization") for t in doorway.told] == [None, None, BASIC]


def test_credentials_do_not_follow_a_redirect_to_another_host(
    doorway: Doorway, stranger: Doorway, name: str, published: Published
) -> None:
    challenge(doorway)
    stranger.wrong["/elsewhere"] = Wrong(status=200, body=b"the blob")
    doorway.wrong["/blobs/"] = Wrong(status=307, headers={"Location": f"http://{stranger.host}/elsewhere"})
    with client(doorway.host, name).blob(published.layers[0]) as response:
        assert response.read() == b"the blob"
    (told,) = stranger.told
    assert "Authorization" not in told.headers
    assert doorway.told[-1].headers["Authorization"] == "Bearer t0k3n"


def test_what_pip_and_netrc_know_of_a_host_is_not_sent_to_a_registry(
    doorway: Doorway, name: str, published: Published, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    sources = PackageSources(
        index=Setting(f"http://me:secret@{doorway.host}/simple", "the test"),
        netrc=Setting(str(tmp_path / "netrc"), "the test"),
    )
    Registry(Web(sources), Reference.parse(f"{doorway.host}/{name}:v1")).manifest("v1")
    assert "Authorization" not in doorway.told[0].headers


def test_a_token_of_the_callers_own_goes_before_all_others_and_not_to_mirrors(
    doorway: Doorway, name: str, published: Published, make_doorway: Callable[[], Doorway]
) -> None:
    mirror = make_doorway()
    mirror.wrong["/v2/"] = Wrong(status=404)
    named = {doorway.host: RegistrySettings(mirrors=(mirror.host,))}
    client(doorway.host, name, token="mine", settings=named).manifest("v1")
    assert [told.headers.get("Authorization") for told in mirror.told] == [None]
    assert [told.headers.get("Authorization") for told in doorway.told] == ["Bearer mine"]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(Wrong(status=500), id="has a problem"),
        pytest.param(Wrong(status=404), id="does not have it"),
        pytest.param(Wrong(status=401), id="wants credentials"),
        pytest.param(Wrong(flip=10), id="is damaged"),
        pytest.param(Wrong(cut_after=10), id="breaks off"),
    ],
)
def test_a_mirror_that_fails_is_passed_over(
    doorway: Doorway, name: str, published: Published, make_doorway: Callable[[], Doorway], wrong: Wrong
) -> None:
    mirror = make_doorway()
    mirror.wrong["/v2/"] = wrong
    named = {doorway.host: RegistrySettings(mirrors=(mirror.host,))}
    registry = client(doorway.host, name, settings=named)
    assert digest_of(registry.manifest("v1")) == published.digest
    assert mirror.told
    mirror.told.clear()
    registry.blob(published.layers[0]).close()
    assert mirror.told == []


def test_the_failure_of_the_only_remaining_mirror_is_reported(
    doorway: Doorway, name: str, make_doorway: Callable[[], Doorway]
) -> None:
    named = {doorway.host: RegistrySettings(mirrors=(make_doorway().host,))}
    told = failure(lambda: client(doorway.host, name, settings=named).manifest("none"))
    assert told.code == "not_found"
    assert told.message == f"There is no such image on {doorway.host}: {doorway.host}/{name}:none."


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (403, "permanent", "unauthorized"),
        (404, "permanent", "not_found"),
        (429, "transient", "rate_limited"),
        (500, "transient", "unreachable"),
        (503, "transient", "unreachable"),
        (418, "permanent", "refused"),
    ],
)
def test_each_refusal_has_its_sentence(
    doorway: Doorway, name: str, status: int, kind: str, code: str
) -> None:
    doorway.wrong["/v2/"] = Wrong(status=status, body=b"the registry's own words")
    told = failure(lambda: client(doorway.host, name).manifest("v1"))
    assert (told.kind, told.code) == (kind, code)
    assert doorway.host in told.message
    assert "the registry's own words" in told.detail
    assert "the registry's own words" not in told.sentence()


def test_an_answer_larger_than_any_manifest_is_not_read_to_its_end(doorway: Doorway, name: str) -> None:
    doorway.wrong["/v2/"] = Wrong(status=200, body=bytes(5 * 2**20))
    told = failure(lambda: client(doorway.host, name).manifest("v1"))
    assert told.code == "bad_answer"


def test_a_token_server_that_makes_no_sense_is_reported(doorway: Doorway, name: str) -> None:
    for answer in ({"token": ""}, {"token": 7}, {"token": "a\r\nX-Injected: 1"}, {"nothing": 1}):
        challenge(doorway, answer=answer)
        told = failure(lambda: client(doorway.host, name).manifest("v1"))
        assert told.code == "bad_answer"


def test_an_unreachable_registry_is_worth_another_attempt(name: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    told = failure(lambda: client(host, name).manifest("v1"))
    assert (told.kind, told.code) == ("transient", "unreachable")


@pytest.mark.parametrize(
    ("registry", "settings", "bases"),
    [
        ("docker.io", {}, ["https://registry-1.docker.io/v2/o/r"]),
        ("ghcr.io", {}, ["https://ghcr.io/v2/o/r"]),
        ("localhost:5000", {}, ["http://localhost:5000/v2/o/r"]),
        ("127.0.0.1:5000", {}, ["http://127.0.0.1:5000/v2/o/r"]),
        ("box:5000", {}, ["https://box:5000/v2/o/r"]),
        ("box:5000", {"box:5000": RegistrySettings(insecure=True)}, ["http://box:5000/v2/o/r"]),
        (
            "docker.io",
            {
                "docker.io": RegistrySettings(mirrors=("https://m.example/hub/", "box:5000", "http://far")),
                "box:5000": RegistrySettings(insecure=True),
            },
            [
                "https://m.example/v2/hub/o/r",
                "http://box:5000/v2/o/r",
                "http://far/v2/o/r",
                "https://registry-1.docker.io/v2/o/r",
            ],
        ),
    ],
)
def test_a_registry_is_asked_at_its_own_host(
    registry: str, settings: dict[str, RegistrySettings], bases: list[str]
) -> None:
    found = endpoints_of(registry, settings, {})
    assert [one.repository("o/r") for one in found] == bases
    assert [one.mirror for one in found] == [True] * (len(bases) - 1) + [False]


def test_a_mirror_is_known_to_credentials_by_its_own_name() -> None:
    settings = {"docker.io": RegistrySettings(mirrors=("https://m.example:8443/hub",))}
    assert [one.name for one in endpoints_of("docker.io", settings, {})] == ["m.example:8443", "docker.io"]
