"""Backends as resources under `/engines`, and the verbs about their versions."""

from __future__ import annotations

from typing import Any

import pytest

from builds import Builds
from greenroom.runner.errors import JobFailed
from waiting import until_async


@pytest.fixture
async def server(open_server: Any) -> Any:
    return await open_server()


async def described(server: Any, name: str = "absent") -> Any:
    async with server.get(f"/engines/{name}") as response:
        assert response.status == 200
        return await response.json()


async def has(server: Any, version: str) -> None:
    await until_async(
        lambda: any(
            one.current is not None and one.current.version == version
            for one in server.greenroom.statuses()
            if one.name == "absent"
        )
    )


async def test_all_backends_are_listed_with_what_they_can_do_on_this_machine(server: Any) -> None:
    async with server.get("/engines") as response:
        fake, absent = await response.json()
    assert (fake["name"], fake["state"], fake["formats"]) == ("fake", "installed", ["gguf"])
    assert fake["modes"] == ["completion", "embedding"]
    assert fake["installations"][0]["current"] is True
    assert (absent["state"], absent["version"], absent["verdict"], absent["job"]) == ("absent", "", "", None)
    assert absent["deferred"] is True
    assert absent["install"] == "greenroom install-runner --backend absent"


async def test_an_unknown_backend_is_404(server: Any) -> None:
    for asked in (
        server.get("/engines/nonsense"),
        server.session.delete(f"{server.base}/engines/nonsense"),
        server.post("/engines", {"name": "nonsense"}),
        server.post("/engines/activate-backend", {"backend": "nonsense"}),
        server.post("/engines/verify-backend", {"backend": "nonsense"}),
    ):
        async with asked as response:
            assert response.status == 404
            assert (await response.text()).startswith("backend not found; known backends: fake, absent.")
    async with server.post("/engines", {}) as response:
        assert (response.status, await response.text()) == (400, "invalid request: name is required\n")


async def test_an_install_is_accepted_and_the_answer_says_where_to_follow_it(server: Any) -> None:
    builds = Builds(server)
    async with server.post("/engines", {"name": "absent"}) as response:
        assert response.status == 202
        location = response.headers["Location"]
        body = await response.json()
    assert body["state"] == "installing"
    assert body["job"]["id"] == "absent.1"
    builds.commit("absent.1", "1")
    await has(server, "1")
    async with server.session.get(f"http://{server.root}{location}") as response:
        body = await response.json()
    assert (body["state"], body["version"], body["size"], body["job"]) == ("installed", "1", 1000, None)
    async with server.post("/engines", {"name": "absent"}) as response:
        assert response.status == 200


async def test_versions_queue_lie_side_by_side_and_are_switched(server: Any) -> None:
    builds = Builds(server)
    for version in ("1", "2"):
        async with server.post("/engines", {"name": "absent", "version": version}) as response:
            assert response.status == 202
    assert (await described(server))["job"]["queue"] == ["absent.2"]
    assert builds.jobs == [("absent.1", "1")]
    builds.commit("absent.1", "1")
    await until_async(lambda: len(builds.jobs) == 2)
    builds.commit("absent.2", "2")
    await has(server, "2")
    async with server.post("/engines/activate-backend", {"backend": "absent"}) as response:
        assert (await response.json())["installation"]["version"] == "1"
    both = (await described(server))["installations"]
    assert [(one["version"], one["current"]) for one in both] == [("1", True), ("2", False)]
    async with server.post("/engines/activate-backend", {"backend": "absent", "version": "3"}) as response:
        assert response.status == 409
        assert "installed versions: 1, 2." in await response.text()


async def test_an_install_request_that_fails_at_once_says_so_by_its_status(server: Any) -> None:
    builds = Builds(server)
    full = JobFailed.permanent("no_space", "The disk is full.", advice="Make room.").failure
    builds.builder.start = lambda build: builds.fail(build.job, full)
    async with server.post("/engines", {"name": "absent"}) as response:
        assert (response.status, await response.text()) == (507, "The disk is full. Make room.\n")
    assert (await described(server))["failure"]["code"] == "no_space"


async def test_a_job_is_cancelled_by_its_id(server: Any) -> None:
    Builds(server)
    for version in ("1", "2"):
        async with server.post("/engines", {"name": "absent", "version": version}) as response:
            assert response.status == 202
    async with server.post("/engines/cancel-install", {"backend": "absent", "job": "absent.2"}) as response:
        assert await response.json() == {"ended": True}
    assert (await described(server))["job"]["queue"] == []
    assert (await described(server))["job"]["id"] == "absent.1"


async def test_a_backend_is_deleted_with_all_its_versions(server: Any) -> None:
    builds = Builds(server)
    async with server.post("/engines", {"name": "absent"}):
        builds.commit("absent.1", "1")
    await has(server, "1")
    async with server.session.delete(f"{server.base}/engines/absent") as response:
        assert response.status in (200, 202)
    await until_async(lambda: [one.state for one in server.greenroom.statuses()] == ["installed", "absent"])
    async with server.session.delete(f"{server.base}/engines/absent") as response:
        assert (response.status, await response.json()) == (200, {"freed": 0, "was_installed": False})


async def test_what_a_removal_does_not_understand_removes_nothing(server: Any) -> None:
    removed: list[str] = []
    server.greenroom.builder.remove = lambda one, **_: removed.append(one.id)
    for asked, said in (
        (server.session.delete(f"{server.base}/engines/fake?version="), "the version is empty"),
        (server.session.delete(f"{server.base}/engines/fake?version=%20"), "the version is empty"),
        (server.post("/engines/uninstall-backend", {"backend": "fake", "version": ""}), "version is empty"),
        (
            server.post("/engines/uninstall-backend", {"backend": "fake", "version": 1}),
            "version must be a string",
        ),
        (server.session.delete(f"{server.base}/engines/fake?forec=true"), '"forec" is not a known parameter'),
        (server.session.delete(f"{server.base}/engines/fake?force=banana"), "force must be true or false"),
    ):
        async with asked as response:
            assert response.status == 400
            assert said in await response.text()
    assert not removed
    statuses = {one.name: one for one in server.greenroom.statuses()}
    assert not statuses["fake"].retiring


@pytest.mark.parametrize("path", ["/engines", "/engines/activate-backend", "/engines/verify-backend"])
async def test_a_mistyped_field_installs_and_changes_nothing(server: Any, path: str) -> None:
    builds = Builds(server)
    body = {"name": "absent", "backend": "fake", "verison": "2"}
    del body["backend" if path == "/engines" else "name"]
    async with server.post(path, body) as response:
        told = (response.status, await response.text())
        assert told == (400, 'invalid request: "verison" is not a known parameter\n')
    assert not builds.jobs


async def test_a_field_of_the_wrong_type_is_the_one_that_is_named(server: Any) -> None:
    for path, body, field in (
        ("/engines", {"name": "absent", "version": 5}, "version must be a string, not a whole number"),
        ("/engines", {"name": "absent", "version": ["1"]}, "version must be a string, not a list"),
        ("/engines/uninstall-backend", {"backend": "absent", "force": "yes"}, "force must be true or false"),
    ):
        async with server.post(path, body) as response:
            assert response.status == 400
            text = await response.text()
            assert field in text
            assert "is required" not in text
    async with server.post("/engines", {"name": 5}) as response:
        assert (response.status, await response.text()) == (400, "invalid request: name is required\n")


async def test_what_is_damaged_is_named_and_broken_from_then_on(server: Any) -> None:
    builds = Builds(server)
    async with server.post("/engines", {"name": "absent"}):
        builds.commit("absent.1", "1")
    await has(server, "1")
    async with server.post("/engines/verify-backend", {}) as response:
        told = {one["backend"]: one["damaged"] for one in await response.json()}
    assert told == {"absent": {}, "fake": {}}
    builds.damaged.append("env/a.py has changed")
    async with server.post("/engines/verify-backend", {"backend": "absent"}) as response:
        (damaged,) = await response.json()
    assert list(damaged["damaged"].values()) == [["env/a.py has changed"]]
    body = await described(server)
    assert (body["state"], body["failure"]["message"]) == ("broken", "env/a.py has changed")


async def test_status_says_that_an_attempt_at_another_version_has_failed(server: Any) -> None:
    builds = Builds(server)
    for job, version in (("absent.1", "1"), ("absent.2", "2")):
        async with server.post("/engines", {"name": "absent", "version": version}) as response:
            assert response.status == 202
        if version == "1":
            builds.commit(job, version)
            await until_async(lambda: server.greenroom.statuses()[1].current)
    assert await words(server) == "Running: absent 1", "it may still come about"
    builds.fail("absent.2", JobFailed.permanent("no_space", "No space is left.").failure)
    await until_async(lambda: server.greenroom.statuses()[1].failure)
    assert (
        await words(server) == "Running: absent 1 (the last attempt at another failed: greenroom why absent)"
    )


async def words(server: Any) -> str:
    async with server.get("/engines/status") as response:
        return str((await response.json())["absent"])


async def test_a_build_is_asked_for_by_name_and_is_a_variant(server: Any) -> None:
    for verb, name in (("", "name"), ("/install-backend", "backend")):
        async with server.post(f"/engines{verb}", {name: "absent", "build": "vulkan"}) as response:
            assert response.status == 404
            assert 'absent has no variant "build-vulkan" here' in await response.text()
    for verb in ("install-backend", "cancel-install"):
        async with server.post(f"/engines/{verb}", {"backend": "absent", "build": "quantum"}) as response:
            assert response.status == 400
            assert "build must be one of native, cuda, rocm, vulkan" in await response.text()
