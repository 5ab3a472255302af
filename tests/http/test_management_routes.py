"""The verbs under `/engines` and `/models`, and what says how the daemon is."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from typing import Any

import pytest

from greenroom.actors.installer.effects import BuildInstallation
from greenroom.actors.installer.messages import INSTALLER, Ensured
from greenroom.actors.progress import install_job
from greenroom.actors.values import Failure, Progress
from greenroom.runner.errors import JobFailed
from reports import attempt_failed, build_committed
from waiting import until_async

ABSENT = {"backend": "absent"}


async def test_livez_says_who_it_is(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/livez") as response:
        body = await response.json()
    assert body["status"] == "ok"
    assert body["pid"] == os.getpid()
    assert body["instance_id"] == server.greenroom.instance_id != ""
    assert body["home"] == str(server.greenroom.home)
    assert body["version"]


async def test_readyz_is_green_only_while_the_scheduler_answers(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/readyz") as response:
        assert response.status == 200
    await asyncio.to_thread(server.greenroom.stop)
    async with server.get("/readyz") as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "stopping"
    async with server.get("/livez") as response:
        assert response.status == 200
    status, error = await server.error(server.chat())
    assert (status, error["code"]) == (503, "stopping")
    async with server.get("/engines/status") as response:
        assert (response.status, await response.text()) == (503, "Greenroom is stopping.\n")


async def test_status_has_the_contracts_words(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/engines/status") as response:
        body = await response.json()
    assert body["fake"].startswith("Running: ")
    assert body["absent"] == "Not Installed"


async def test_ps_shows_what_runs(open_server: Any) -> None:
    server = await open_server("--tokens", "1000", "--token-delay", "0.01")
    async with server.get("/engines/ps") as response:
        assert await response.json() == []
    async with server.chat(stream=True) as stream:
        await stream.content.readany()
        async with server.get("/engines/ps") as response:
            (row,) = await response.json()
    assert row["backend_name"] == "fake"
    assert row["model_name"] == "tiny"
    assert row["mode"] == "completion"
    assert row["in_use"] is True
    assert "loading" not in row
    assert row["last_used"] == "0001-01-01T00:00:00Z"
    assert row["state"] == "ready"
    assert row["pid"] == server.engines("ready")[0].pid
    assert row["engine_id"] == server.engines("ready")[0].spec.engine_id
    await until_async(lambda: server.inside() == 0)
    async with server.get("/engines/ps") as response:
        (row,) = await response.json()
    assert "in_use" not in row
    assert row["last_used"].startswith("20")
    assert row["last_used"].endswith("Z")


async def test_ps_says_what_is_loading(open_server: Any) -> None:
    server = await open_server("--load-forever")
    task = asyncio.create_task(server.stream())
    await until_async(lambda: server.engines("starting"))
    async with server.get("/engines/ps") as response:
        (row,) = await response.json()
    assert row["loading"] is True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_df_counts_bytes(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/engines/df") as response:
        body = await response.json()
    assert body["models_disk_usage"] > 0
    assert body["default_backend_disk_usage"] == 0


async def test_unloading_what_is_not_there_is_no_error_and_named(open_server: Any) -> None:
    server = await open_server()
    asked: list[tuple[dict[str, Any], list[str]]] = [
        ({"models": ["absent", "://"]}, ["absent", "://"]),
        ({"all": True}, []),
        ({"backend": "fake"}, []),
    ]
    for body, unknown in asked:
        async with server.post("/engines/unload", body) as response:
            none = {"unloaded_runners": 0, "ending": [], "in_use": [], "unknown": unknown}
            assert await response.json() == none
    await server.stream()
    async with server.post("/engines/unload", {"models": ["absent"], "backend": "fake"}) as response:
        assert (await response.json())["unloaded_runners"] == 0
    assert server.engines("ready")


async def test_a_model_says_how_it_is_loaded_and_where_each_value_comes_from(open_server: Any) -> None:
    server = await open_server(keep_alive=77)

    async def settings() -> dict[str, tuple[Any, str]]:
        async with server.get("/models/tiny") as response:
            rows = (await response.json())["settings"]
        return {row["setting"]: (row["value"], row["source"]) for row in rows}

    before = await settings()
    assert before["keep_alive"] == ("1m17s", "default")
    assert before["slots"] == (None, "automatic")
    change = {"model": "tiny", "context-size": 512, "slots": 2, "keep_alive": "-1", "preload": False}
    async with server.post("/engines/_configure", change) as response:
        assert response.status == 202
    assert await settings() == before | {
        "context-size": (512, "configured"),
        "slots": (2, "configured"),
        "keep_alive": ("-1", "configured"),
    }
    assert server.greenroom.engines() == (), "it was not to be loaded"
    async with server.post("/engines/_configure", {"model": "tiny", "reset": ["slots"]}) as response:
        assert response.status == 202
    await until_async(lambda: server.engines("ready"))
    slots, source = (await settings())["slots"]
    assert (slots, source) == (server.engines("ready")[0].spec.slots, "automatic")


async def test_a_forced_unload_lets_a_request_finish(open_server: Any) -> None:
    server = await open_server("--tokens", "20", "--token-delay", "0.02")
    async with server.chat(stream=True) as stream:
        await stream.content.readany()
        async with server.post("/engines/unload", {"models": ["tiny"], "force": True}) as response:
            told = await response.json()
        assert told["ending"] == [server.engines()[0].spec.engine_id]
        assert b"[DONE]" in await stream.content.read()
    await until_async(lambda: not server.engines("ready"))


async def test_unknown_backends_are_404_in_text_with_the_known_ones(open_server: Any) -> None:
    server = await open_server()
    for verb in ("install-backend", "uninstall-backend", "cancel-install"):
        async with server.post(f"/engines/{verb}", {"backend": "nonsense"}) as response:
            assert response.status == 404
            text = await response.text()
            assert text.startswith("backend not found")
            assert "absent" in text
        async with server.post(f"/engines/{verb}", {}) as response:
            assert response.status == 400
            assert await response.text() == "invalid request: backend is required\n"


class Builds:
    """Stands in for the builder of a server: each build waits for what the test lets come of it."""

    def __init__(self, server: Any) -> None:
        self.greenroom = server.greenroom
        self.count = 0
        self.outcome: Any = None
        self.go = threading.Event()
        self.started = threading.Event()
        builder = self.greenroom.builder
        builder.start = self.start

    def start(self, build: BuildInstallation) -> None:
        self.count += 1
        self.started.set()
        threading.Thread(target=self._build, args=(build,), daemon=True).start()

    def _build(self, build: BuildInstallation) -> None:
        key = install_job(build.backend)
        for done in range(11):
            self.greenroom.board.publish(
                Progress(job=key, phase="downloading", message="fetching wheels", done=done * 10, total=100)
            )
        self.go.wait(20)
        self.greenroom.board.clear(key)
        if isinstance(self.outcome, Failure):
            self.greenroom.system.report(attempt_failed(build.job, self.outcome), to=INSTALLER)
        else:
            self.greenroom.system.report(build_committed(build.job, self.outcome), to=INSTALLER)


@pytest.fixture
def permanent() -> Failure:
    return JobFailed.permanent("no_space", "The disk is full.", advice="Make room.").failure


async def test_without_progress_an_install_that_fails_is_reported_by_its_status(
    open_server: Any, permanent: Failure
) -> None:
    server = await open_server()
    builds = Builds(server)
    builds.outcome = permanent
    builds.go.set()
    async with server.post("/engines/install-backend", ABSENT) as response:
        assert response.status >= 500
        text = await response.text()
    assert "The disk is full." in text
    assert "Make room." in text


async def test_progress_comes_as_lines_of_json(open_server: Any, permanent: Failure) -> None:
    server = await open_server()
    builds = Builds(server)
    builds.outcome = permanent
    headers = {"Accept": "application/x-ndjson"}
    async with server.post("/engines/install-backend", ABSENT, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        first = json.loads(await response.content.readline())
        builds.go.set()
        rest = [json.loads(line) async for line in response.content if line.strip()]
    assert first["type"] == "progress"
    assert first["phase"] == "downloading"
    assert first["total"] == 100
    assert rest[-1] == {
        "type": "error",
        "message": rest[-1]["message"],
        "advice": "Make room.",
        "code": "no_space",
        "kind": "exhausted",
    }


async def test_progress_comes_as_events(open_server: Any, permanent: Failure) -> None:
    server = await open_server()
    builds = Builds(server)
    builds.outcome = permanent
    headers = {"Accept": "text/event-stream"}
    async with server.post("/engines/install-backend", ABSENT, headers=headers) as response:
        assert response.content_type == "text/event-stream"
        await response.content.readline()
        builds.go.set()
        text = (await response.read()).decode()
    assert "\nevent: error\ndata: " in text


async def test_fifty_requests_for_one_absent_backend_share_one_installation(
    open_server: Any, permanent: Failure
) -> None:
    server = await open_server()
    builds = Builds(server)
    builds.outcome = permanent

    async def ask() -> int:
        async with server.post("/engines/install-backend", ABSENT) as response:
            return int(response.status)

    tasks = [asyncio.create_task(ask()) for _ in range(50)]
    await asyncio.to_thread(builds.started.wait, 10)

    # By then it is known of each who asks, and all have asked the installer.
    await until_async(lambda: len(server.context.callers) == 50)
    builds.go.set()
    assert len(set(await asyncio.gather(*tasks))) == 1
    assert builds.count == 1


async def test_a_client_that_leaves_cancels_no_installation(open_server: Any, permanent: Failure) -> None:
    server = await open_server()
    builds = Builds(server)
    builds.outcome = permanent
    headers = {"Accept": "application/x-ndjson"}
    async with server.post("/engines/install-backend", ABSENT, headers=headers) as response:
        await response.content.readline()
        response.close()

    await until_async(lambda: not len(server.context.clients))
    async with server.get("/engines/status") as response:
        words = (await response.json())["absent"]
    assert words.startswith("Installing: fetching wheels")
    async with server.get("/jobs") as response:
        (job,) = await response.json()
    assert job["job"] == install_job("absent")
    builds.go.set()


async def test_what_is_installed_already_is_reported(open_server: Any) -> None:
    server = await open_server()
    headers = {"Accept": "application/x-ndjson"}
    async with server.post("/engines/install-backend", {"backend": "fake"}, headers=headers) as response:
        (line,) = [json.loads(line) async for line in response.content]
    assert line["type"] == "success"
    assert line["already"] is True
    assert line["installation"]["backend"] == "fake"
    async with server.post("/engines/install-backend", {"backend": "fake"}) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_cancelling_nothing_says_so(open_server: Any) -> None:
    server = await open_server()
    async with server.post("/engines/cancel-install", ABSENT) as response:
        assert await response.json() == {"ended": False}
    async with server.post("/models/cancel", {"from": "smollm2"}) as response:
        assert await response.json() == {"ended": False}


async def test_configuring_loads_with_the_configuration(open_server: Any) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--tokens"})})
    body = {"model": "tiny", "context-size": 512, "runtime-flags": ["--tokens", "2"], "keep_alive": "1h"}
    async with server.post("/engines/_configure", body) as response:
        assert (response.status, await response.read()) == (202, b"")
    await until_async(lambda: server.engines("ready"))
    assert server.engines()[0].spec.context_size == 512
    async with server.get("/engines/_configure", params={"model": "tiny"}) as response:
        (entry,) = await response.json()
    assert entry["Model"] == "docker.io/ai/tiny:latest"
    assert entry["Config"] == {
        "context-size": 512,
        "runtime-flags": ["--tokens", "2"],
        "keep_alive": "1h0m0s",
    }
    async with server.get("/engines/ps") as response:
        assert (await response.json())[0]["keep_alive"] == "1h0m0s"
    async with server.chat() as response:
        assert (await response.json())["usage"]["completion_tokens"] == 2


async def test_what_loads_because_of_a_configuration_gives_way_to_the_next_one(open_server: Any) -> None:
    server = await open_server("--load-seconds", "1.5")
    for size in (512, 1024, 2048):
        async with server.post("/engines/_configure", {"model": "tiny", "context-size": size}) as response:
            assert response.status == 202, await response.text()
    await until_async(lambda: server.engines("ready"))
    (engine,) = server.engines()
    assert engine.spec.context_size == 2048
    ended = server.engines("gone")
    assert all(one.exit.expected for one in ended)
    await server.nothing_is_held()


async def test_flags_that_are_not_allowed_are_refused(open_server: Any) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--tokens"})})
    for flags in (["--socket", "x"], ["--tokens", "/etc/passwd"]):
        async with server.post("/engines/_configure", {"model": "tiny", "runtime-flags": flags}) as response:
            assert response.status == 400
            assert "flag" in await response.text()
    assert server.greenroom.engines() == ()


async def test_a_bad_configuration_is_refused(open_server: Any) -> None:
    server = await open_server()
    bad: list[tuple[dict[str, str], int]] = [
        ({"model": "absent"}, 404),
        ({}, 400),
        ({"model": "tiny", "mode": "dreaming"}, 400),
        ({"model": "tiny", "keep_alive": "5 minutes"}, 400),
        ({"model": "tiny", "raw-runtime-flags": "'"}, 400),
    ]
    for body, status in bad:
        async with server.post("/engines/_configure", body) as response:
            assert response.status == status, body


async def test_a_model_in_use_is_not_reconfigured(open_server: Any) -> None:
    server = await open_server("--tokens", "1000", "--token-delay", "0.01")
    async with server.chat(stream=True) as stream:
        await stream.content.readany()
        async with server.post("/engines/_configure", {"model": "tiny", "context-size": 64}) as response:
            assert response.status == 409
        stream.close()


async def test_pulling_tells_progress_in_the_contracts_lines(open_server: Any, short_path: Any) -> None:
    server = await open_server()
    file = next(short_path.glob("*.gguf"))
    body = {"from": f"file:{file}"}
    async with server.post("/models/create", body, headers={"Accept": "application/json"}) as response:
        assert response.content_type == "application/json"
        *_, last = [json.loads(line) async for line in response.content]
    assert last["type"] == "success"
    assert last["message"].startswith("Using cached model: ")
    assert last["mode"] == "pull"
    assert last["layer"] == {"size": 0, "current": 0}
    async with server.post("/models/create", body) as response:
        assert response.content_type == "text/plain"
        assert "&#34;type&#34;:&#34;success&#34;" in await response.text()


async def test_a_file_that_is_not_a_model_is_refused_with_a_sentence(
    open_server: Any, short_path: Any
) -> None:
    server = await open_server()
    file = short_path / "letter.gguf"
    file.write_text("Dear Sir or Madam")
    async with server.post("/models/create", {"from": str(file)}) as response:
        text = await response.text()
    assert response.status in (200, 422)
    assert "letter.gguf" in text
    assert "Traceback" not in text


async def test_pulling_what_is_not_a_name_is_400(open_server: Any) -> None:
    server = await open_server()
    for name in ("", "http://a/b", "./x.gguf", "A B"):
        async with server.post("/models/create", {"from": name}) as response:
            assert response.status == 400
            assert len((await response.text()).splitlines()) == 1


async def test_models_are_listed_inspected_tagged_and_removed(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/models") as response:
        (model,) = await response.json()
    assert model["id"].startswith("sha256:")
    assert "docker.io/ai/tiny:latest" in model["tags"]
    assert model["config"]["format"] == "gguf"
    for name in ("tiny", "ai/tiny:latest", model["id"], model["id"][7:19], "docker.io%2Fai%2Ftiny"):
        async with server.get(f"/models/{name}") as response:
            assert (await response.json())["id"] == model["id"]
    async with server.post("/models/tiny/tag?repo=me/mine&tag=v1") as response:
        assert response.status == 201
        assert (await response.json())["target"] == "me/mine:v1"
    async with server.post("/models/tiny/tag?repo=me/mine") as response:
        assert response.status == 400
    async with server.session.delete(f"{server.base}/models/me/mine:v1") as response:
        assert await response.json() == [{"Untagged": "docker.io/me/mine:v1"}]
    async with server.session.delete(f"{server.base}/models/{model['id']}") as response:
        assert response.status == 409
    async with server.session.delete(f"{server.base}/models/{model['id']}?force=true") as response:
        gone = await response.json()
    assert gone[-1] == {"Deleted": model["id"]}
    async with server.get("/models/tiny") as response:
        assert response.status == 404


async def test_only_a_daemon_can_be_stopped_over_http(open_server: Any) -> None:
    told: list[float | None] = []
    server = await open_server(door={"stop": told.append})
    async with server.post("/daemon/stop", {"keep_engines": 30}) as response:
        assert response.status == 202
    assert told == [30.0]
    server = await open_server()
    async with server.post("/daemon/stop") as response:
        assert response.status == 409


async def test_a_host_may_answer_commands_itself(open_server: Any) -> None:
    # The actors are the same ones the routes use.
    server = await open_server()
    from greenroom.actors.installer.messages import Ensure

    ensured = await server.greenroom.system.ask(Ensure(backend="fake"))
    assert isinstance(ensured, Ensured)
