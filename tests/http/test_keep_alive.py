"""How long a model stays, as requests wish it; what `ps` and the ledger say of it; all of `_configure`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from waiting import until_async

JSON = {"Accept": "application/json"}


async def _row(server: Any) -> Any:
    async with server.get("/engines/ps") as response:
        (row,) = await response.json()
    return row


async def test_a_request_says_how_long_its_model_stays(open_server: Any) -> None:
    server = await open_server()
    async with server.chat() as response:
        assert response.status == 200
    # The engine is ready, so the request asks no actor; its keep-alive takes effect all the same.
    for wish, stays in (
        ("10m", "10m0s"),
        ("1h30m", "1h30m0s"),
        (90, "1m30s"),
        ("-1", "-1"),
        ("5m", "5m0s"),
        (-1, "-1"),
        (0.5, "500ms"),
    ):
        async with server.chat(keep_alive=wish) as response:
            assert response.status == 200
        assert (await _row(server))["stays"] == stays


async def test_a_keep_alive_of_zero_ends_the_engine_after_the_request(open_server: Any) -> None:
    server = await open_server()
    for wish in (0, "0", "0s"):
        async with server.chat(keep_alive=wish) as response:
            assert response.status == 200
        await until_async(lambda: not server.engines())


async def test_what_is_not_a_duration_is_refused_and_named(open_server: Any) -> None:
    server = await open_server()
    wishes: tuple[Any, ...] = ("5", "5 minutes", "", "forever", True, [1], {})
    for wish in wishes:
        status, error = await server.error(server.chat(keep_alive=wish))
        assert status == 400, wish
        assert "keep_alive" in error["message"], wish
    assert server.engines() == []


async def test_the_engine_does_not_see_the_keep_alive(open_server: Any) -> None:
    server = await open_server("--echo-fields")
    async with server.chat(keep_alive="10m", temperature=0.5) as response:
        seen = (await response.json())["fields"]
    assert "keep_alive" not in seen
    assert "temperature" in seen


async def test_a_preload_pins(open_server: Any) -> None:
    server = await open_server(keep_alive=0.0)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "keep_alive": -1}
    async with server.post("/v1/chat/completions", body, headers={"X-Preload-Only": "true"}) as response:
        assert (response.status, await response.read()) == (200, b"")
    await until_async(lambda: server.inside() == 0)
    row = await _row(server)
    assert (row["stays"], row["expires_in"]) == ("-1", None)
    assert row["idle_seconds"] is not None


async def test_ps_has_reserved_and_measured_memory_queue_idle_time_expiry_and_cause(open_server: Any) -> None:
    server = await open_server(keep_alive=100.0)
    async with server.chat() as response:
        assert response.status == 200

    async def measured() -> Any:
        row = await _row(server)
        return row if row["measured"] else None

    row = None
    for _ in range(500):
        row = await measured()
        if row:
            break
        await asyncio.sleep(0.02)
    assert row, "nothing was measured"
    # A Python process needs more than the fake backend estimates, so it counts as measured.
    assert row["memory"] == row["peak"] >= row["measured"] > 5 * 2**20
    assert row["queue"] == row["inside"] == 0
    assert row["served"] == 1
    assert 0 <= row["idle_seconds"] < 60
    assert 40 < row["expires_in"] <= 100
    assert row["cause"].startswith("scheduler/")


async def test_the_ledger_adds_up(open_server: Any) -> None:
    server = await open_server(memory_budget=2**30)
    async with server.chat() as response:
        assert response.status == 200
    async with server.get("/engines/ledger") as response:
        ledger = await response.json()
    assert ledger["budget"] == 2**30
    assert ledger["promised"] == sum(one["promised"] for one in ledger["engines"])
    assert ledger["free"] <= ledger["budget"] - ledger["promised"]


async def test_ps_shows_engines_that_ended_when_it_is_asked_to(open_server: Any) -> None:
    server = await open_server("--die-after-requests", "1", "--die-by", "7", "--say", "I will die.")
    async with server.chat() as response:
        assert response.status == 200
    await until_async(lambda: not server.engines())
    async with server.get("/engines/ps") as response:
        assert await response.json() == []
    async with server.get("/engines/ps?all=true") as response:
        (row,) = await response.json()
    assert row["state"] == "gone"
    assert row["exit"]["code"] == 7
    # It has served a client, so what it printed may be that client's words.
    assert "I will die." not in str(row)
    assert "exited with code 7" in row["exit"]["summary"]


async def configured(server: Any, **body: Any) -> Any:
    async with server.post("/engines/_configure", {"model": "tiny", **body}) as response:
        if response.status != 202:
            return response.status, await response.text()
    async with server.get("/engines/_configure?model=tiny") as response:
        return (await response.json())[0]["Config"]


async def test_configure_merges_instead_of_resetting(open_server: Any) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--tokens"})})
    await configured(server, **{"context-size": 1024})
    await configured(server, keep_alive="1h")
    config = await configured(server, **{"runtime-flags": ["--tokens", "3"]})
    assert config == {
        "context-size": 1024,
        "runtime-flags": ["--tokens", "3"],
        "keep_alive": "1h0m0s",
    }


async def test_a_backends_own_section_becomes_its_flags(open_server: Any) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--tokens"})})
    await configured(server, **{"runtime-flags": ["--tokens", "3"]})
    config = await configured(server, llamacpp={"reasoning-budget": 5})
    assert config["runtime-flags"] == ["--tokens", "3", "--reasoning-budget", "5"]
    config = await configured(server, llamacpp={"reasoning-budget": 0})
    assert config["runtime-flags"] == ["--tokens", "3", "--reasoning-budget", "0"]


NONSENSE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"vllm": {"gpu-memory-utilization": 0.5}}, "vllm is for safetensors models"),
    ({"vllm": {"hf-overrides": {"a": 1}}}, "vllm is for safetensors models"),
    ({"speculative": {"draft_model": "ai/small"}}, "draft models are not supported"),
    ({"keep_alive": 300}, "keep_alive"),
    ({"keep_alive": "forever"}, "is not a duration"),
    ({"context-size": "many"}, "context-size"),
    ({"context-size": -7}, '"context-size" must be at least -1'),
    ({"context-size": 10**320}, '"context-size" must be at most'),
    ({"context-size": 512, "num_ctx": 1024}, '"context-size" is given twice'),
    ({"context-size": 512, "runtime-flags": ["-c", "1024"]}, "context-size is given twice"),
    ({"runtime-flags": ["--cache-ram", "-1"]}, "-1 means a prompt cache without a limit"),
    ({"runtime-flags": ["--ctx-size", "many"]}, "many is not a number from 0 to"),
    ({"runtime-flags": ["--ctx-size"]}, "is not a number from 0 to"),
    ({"runtime-flags": ["--tokens", "a\0b"]}, "text without control characters"),
    ({"runtime-flags": ["--tokens", "9" * 100_000]}, "is too long"),
    ({"runtime-flags": ["--tokens"] * 200}, "128 entries"),
    ({"keep_alive": "9" * 400 + "s"}, '"keep_alive" is too long'),
    ({"keep_alive": "9" * 200 + "s"}, "is not a duration"),
    ({"keep_alive": "9" * 90 + "s"}, "more than ten years"),
    ({"keep_alive": "999999h"}, "more than ten years"),
)


async def test_a_configuration_that_is_invalid_is_refused_with_a_sentence(open_server: Any) -> None:
    server = await open_server(
        backend={"allowed_flags": frozenset({"--tokens", "--ctx-size", "-c", "--cache-ram"})}
    )
    for body, said in NONSENSE:
        status, text = await configured(server, **body)
        assert status == 400, body
        assert said in text
    assert not server.greenroom.configs()


@pytest.mark.parametrize(
    ("body", "context"),
    [
        ({"context-size": -1}, -1),
        ({"context-size": 0}, None),
        ({"runtime-flags": ["--ctx-size", "512"]}, 512),
        ({"raw-runtime-flags": "-c 512"}, 512),
        ({"runtime-flags": ["--ctx-size=512"]}, 512),
        ({"runtime-flags": ["--ctx-size", "0"]}, -1),
        ({"context_size": 512}, 512),
        ({"num_ctx": 512}, 512),
    ],
)
async def test_the_configured_context_counts_however_it_is_given(
    open_server: Any, body: Any, context: int | None
) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--ctx-size", "-c"})})
    config = await configured(server, keep_alive="1h", **body)
    assert config.get("context-size") == context
    assert "runtime-flags" not in config


@pytest.mark.parametrize(
    "taken_back", [{"context-size": 0}, {"reset": ["context-size"]}], ids=["zero", "reset"]
)
async def test_a_configuration_that_is_taken_back_is_as_if_it_had_never_been_given(
    open_server: Any, taken_back: dict[str, Any]
) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--tokens"})})
    said = {"context-size": 512, "runtime-flags": ["--tokens", "2"], "keep_alive": "1h"}
    await configured(server, **said)
    config = await configured(server, **taken_back)
    assert config == {"runtime-flags": ["--tokens", "2"], "keep_alive": "1h0m0s"}
    config = await configured(server, **{"runtime-flags": []})
    assert config == {"keep_alive": "1h0m0s"}
    await configured(server, **{"raw-runtime-flags": "--tokens 2", "context-size": 256})
    config = await configured(server, **{"raw-runtime-flags": "", "reset": ["keep_alive", "slots"]})
    assert config == {"context-size": 256}


async def test_a_word_that_is_not_one_of_a_settings_is_answered_with_those_that_are(open_server: Any) -> None:
    server = await open_server()
    for fields, said in (
        ({"reset": ["context"]}, "reset must be one of context-size, slots, prompt-cache, require-device,"),
        ({"mode": "chat"}, "mode must be one of completion, embedding, reranking"),
    ):
        async with server.post("/engines/_configure", {"model": "tiny", **fields}) as response:
            assert response.status == 400
            assert said in await response.text()


async def test_nulls_of_a_configuration_change_nothing_and_a_reset_is_not_given_beside_a_value(
    open_server: Any,
) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--tokens"})})
    said = {"context-size": 512, "runtime-flags": ["--tokens", "2"], "keep_alive": "1h", "slots": 2}
    config = await configured(server, **said)
    nulls = dict.fromkeys([*said, "num_ctx", "mode", "vllm", "llamacpp", "prompt-cache", "reset"])
    assert await configured(server, **nulls) == config
    assert (
        await configured(server, llamacpp={"reasoning-budget": None}, vllm={"hf-overrides": None}) == config
    )
    both = {"model": "tiny", "slots": 2, "reset": ["slots"]}
    status, error = await server.error(server.post("/engines/_configure", both, headers=JSON))
    assert (status, error["param"]) == (400, "slots")
    assert await configured(server, reset=[one for one in said if one != "slots"]) == {"slots": 2}


async def test_a_context_among_flags_never_beats_a_later_one(open_server: Any) -> None:
    server = await open_server(backend={"allowed_flags": frozenset({"--ctx-size", "--tokens"})})
    await configured(server, **{"runtime-flags": ["--ctx-size", "512", "--tokens", "2"]})
    config = await configured(server, **{"context-size": 1024})
    assert config == {"context-size": 1024, "runtime-flags": ["--tokens", "2"]}


async def test_a_context_that_never_fits_is_refused_with_the_largest_that_does(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server(memory_budget=100 * 2**20)
    (model,) = server.greenroom.models()
    hungry = msgspec.structs.replace(model, kv_bytes_per_token=2**20)
    monkeypatch.setattr(server.greenroom, "model", lambda _: hungry)
    body = {"model": "tiny", "context-size": 10_000}
    status, error = await server.error(server.post("/engines/_configure", body, headers=JSON))
    assert (status, error["code"], error["param"]) == (507, "does_not_fit", "context-size")
    assert "The largest that fits is" in error["message"]
    assert not server.greenroom.configs()


async def test_a_configuration_is_shown_where_models_are_listed(open_server: Any) -> None:
    server = await open_server()
    await configured(server, **{"context-size": 512})
    async with server.get("/v1/models/tiny") as response:
        assert (await response.json())["dmr"]["context_window"] == 512
    async with server.get("/models/tiny") as response:
        (entry, *_) = (await response.json())["serving"]
    assert entry["context_size"] == 512


async def test_unknown_fields_of_a_configuration_pass_and_are_named_in_the_answer(open_server: Any) -> None:
    server = await open_server()
    body = {"model": "tiny", "keep_alive": "1h", "num_gpu": 3, "vllm": {"eager": True}}
    async with server.post("/engines/_configure", body) as response:
        assert response.status == 202
        assert response.headers["X-Greenroom-Ignored"] == "num_gpu, vllm.eager"


async def test_a_removed_model_takes_its_configuration_along(open_server: Any, short_path: Any) -> None:
    server = await open_server()
    await configured(server, keep_alive="1h")
    (model,) = server.greenroom.models()
    async with server.session.delete(f"{server.base}/models/{model.id}?force=true") as response:
        assert response.status == 200
    await until_async(lambda: not server.greenroom.configs())
