"""What a program asks of a Greenroom inside it, on threads and on an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from greenroom.runner import (
    Client,
    GreenroomError,
    JobProgress,
    NotAvailable,
    RequestRefused,
    StoredModel,
    connect,
)
from waiting import until

OpenClient = Callable[..., Client]
WORDS = "word0 word1 word2 word3 word4 "


def inside(client: Client) -> int:
    assert client.runner is not None
    return sum(one.inside for one in client.runner.gates.readings().values())


def test_a_stored_model_is_named_as_lists_show_it() -> None:
    assert StoredModel(id="sha256:1", tags=("docker.io/ai/smollm2:latest", "mine:q4")).name == "smollm2"
    assert StoredModel(id="sha256:1", tags=("hf.co/me/model:Q8_0",)).name == "hf.co/me/model:Q8_0"
    assert StoredModel(id="sha256:1").name == "sha256:1"


def test_texts_embeddings_models_and_engines(open_client: OpenClient, home: Path, tiny: str) -> None:
    client = open_client()
    told: list[JobProgress] = []
    assert client.pull(str(home / "tiny.gguf"), progress=told.append).tags == (tiny,)
    (stored,) = client.models()
    assert (stored.tags, stored.name) == ((tiny,), tiny)
    assert stored.size == (home / "tiny.gguf").stat().st_size
    assert stored == client.pull(tiny)

    answer = client.chat(tiny, "hello", system="Be brief.", max_tokens=50, progress=told.append)
    assert (str(answer), answer.finish) == (WORDS, "stop")
    assert (answer.prompt_tokens > 0, answer.answer_tokens) == (True, 5)
    assert 0 < answer.first_token_after <= answer.seconds
    with client.chat(tiny, [{"role": "user", "content": "hello"}], stream=True) as stream:
        assert "".join(stream) == WORDS
        assert stream.so_far.text == stream.result().text == WORDS
    assert client.complete(tiny, "Once").text == WORDS
    assert client.embed(tiny, "hello") == [0.1, 0.2, 0.3]
    assert client.embed(tiny, ["hello"]) == [[0.1, 0.2, 0.3]]

    engines = client.ps()
    assert {(one.mode, one.state, one.backend) for one in engines} == {
        ("completion", "ready", "fake"),
        ("embedding", "ready", "fake"),
    }
    why = client.why(tiny)
    assert (why.kind, why.state) == ("model", "loaded")
    assert str(why).startswith(why.answer)
    assert f"(process {os.getpid()})" in why.answer  # whose request had it loaded
    with pytest.raises(RequestRefused, match='"absent" and "nix" are not in the store') as absent:
        client.unload("absent", tiny, "nix")
    assert (absent.value.code, absent.value.kind) == ("model_not_found", "not_found")
    until(lambda: not client.ps())
    client.configure(tiny, context_size=100, keep_alive="1h")
    assert client.chat(tiny, "hello").text == WORDS
    assert client.ps()[0].context_size == 100
    with client.install("fake", stream=True) as installing:
        assert installing.result().already


def test_the_same_in_asyncio(open_client: OpenClient, home: Path, tiny: str) -> None:
    client = open_client()

    async def program() -> None:
        async with client as asking:
            assert (await asking.chat(tiny, "hello")).text == WORDS
            stream = asking.chat(tiny, "hello", stream=True)
            assert "".join([piece async for piece in stream]) == WORDS
            assert (await stream.result()).answer_tokens == 5
            answers = await asyncio.gather(*(asking.complete(tiny, "Once") for _ in range(20)))
            assert {one.text for one in answers} == {WORDS}
            assert await asking.embed(tiny, ["hello"]) == [[0.1, 0.2, 0.3]]
            assert (await asking.pull(str(home / "tiny.gguf"))).tags == (tiny,)
            assert [one.tags for one in await asking.models()] == [(tiny,)]
            assert (await asking.why(tiny)).kind == "model"
            with pytest.raises(RequestRefused, match="not in the store"):
                await asking.chat("absent", "hello")
            async with asking.engine(tiny) as slot:
                assert slot.socket.is_socket()
                assert inside(client) == 1
            await asyncio.to_thread(until, lambda: inside(client) == 0)

    asyncio.run(program())
    with pytest.raises(NotAvailable, match="closed"):
        client.models()


def test_a_text_ends_with_its_reader(open_client: OpenClient, tiny: str) -> None:
    client = open_client("--tokens", "100000", "--token-delay", "0.01")

    with client.chat(tiny, "hello", stream=True) as stream:
        assert next(stream)
        assert inside(client) == 1
    until(lambda: inside(client) == 0)

    async def cancelled() -> None:
        asking = client.in_asyncio()
        async for _ in asking.chat(tiny, "hello", stream=True):
            break
        await asyncio.to_thread(until, lambda: inside(client) == 0)
        task = asyncio.create_task(asking.chat(tiny, "hello"))
        await asyncio.to_thread(until, lambda: inside(client) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: inside(client) == 0)

    asyncio.run(cancelled())


def test_a_stream_that_has_begun_still_has_all_of_its_text(open_client: OpenClient, tiny: str) -> None:
    client = open_client()
    stream = client.chat(tiny, "hello", stream=True).begin()
    assert stream.begin().so_far.text == "word0 "
    assert "".join(stream) == WORDS
    assert client.chat(tiny, "hello", stream=True).begin().result().text == WORDS
    with pytest.raises(RequestRefused, match="not in the store"):
        client.chat("absent", "hello", stream=True).begin()
    closed = client.chat(tiny, "hello", stream=True).begin()
    closed.close()
    assert list(closed) == []

    async def run() -> None:
        asking = client.in_asyncio()
        stream = await asking.chat(tiny, "hello", stream=True).begin()
        assert (await stream.begin()).so_far.text == "word0 "
        assert "".join([piece async for piece in stream]) == WORDS
        with pytest.raises(RequestRefused, match="not in the store"):
            await asking.chat("absent", "hello", stream=True).begin()

    asyncio.run(run())


def test_ctrl_c_ends_a_waiting_call_with_few_of_our_frames(open_client: OpenClient, tiny: str) -> None:
    client = open_client("--tokens", "100000", "--token-delay", "0.01")

    def interrupt() -> None:
        until(lambda: inside(client) == 1)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt) as stopped:
        client.chat(tiny, "hello")
    interrupting.join()
    assert [one.name for one in traceback.extract_tb(stopped.tb)][1:] == ["chat", "_written", "_do"]
    assert stopped.value.__suppress_context__
    until(lambda: inside(client) == 0)


def test_a_slot_is_given_back_whatever_happens(open_client: OpenClient, tiny: str) -> None:
    client = open_client("--load-seconds", "0.5")
    with pytest.raises(GreenroomError, match=r"within 0\.1 s") as late, client.engine(tiny, wait=0.1):
        pass
    assert late.value.code == "not_in_time"
    with client.engine(tiny, wait=60) as slot:
        transport = httpx.HTTPTransport(uds=str(slot.socket))
        with httpx.Client(transport=transport, base_url="http://engine") as engine:
            assert engine.get("/health").status_code == 200
        assert inside(client) == 1
    until(lambda: inside(client) == 0)
    with pytest.raises(ZeroDivisionError), client.engine(tiny):
        _ = 1 / inside(client) - 1 / 0
    until(lambda: inside(client) == 0)
    slot = client.engine(tiny).__enter__()  # and its end is forgotten
    assert slot.engine_id
    begun = time.monotonic()
    client.close()
    assert time.monotonic() - begun < 20


HOLDS = """
import sys, greenroom
with greenroom.connect(sys.argv[1]).engine(sys.argv[2]) as slot:
    print(slot.engine_id, slot.socket.is_socket(), flush=True)
    sys.stdin.read()
"""


def test_another_process_holds_a_slot_until_it_is_killed(
    open_client: OpenClient, tiny: str, home: Path
) -> None:
    client = open_client()
    with client.serve(uds=home / "door") as door:
        with pytest.raises(RequestRefused, match=r"within 0\.001 s") as late:
            connect(f"unix:{door.path}").engine(tiny, wait=0.001).__enter__()
        assert (late.value.code, late.value.kind) == ("not_in_time", "unavailable")
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDS, f"unix:{door.path}", tiny],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            assert holder.stdout is not None
            held = holder.stdout.readline().split()
            assert held == [client.ps()[0].engine_id, "True"]
            assert (inside(client), client.unload(tiny).engines) == (1, 0)
            holder.kill()
        until(lambda: inside(client) == 0)
        assert client.unload(tiny).engines == 1


def test_wrong_arguments_are_the_callers(open_client: OpenClient, tiny: str) -> None:
    client = open_client()
    wrong: Any = client
    cases: tuple[tuple[Callable[[], object], type[Exception], str], ...] = (
        (lambda: wrong.chat(7, "hello"), TypeError, "model must be text, not int"),
        (lambda: wrong.chat(" ", "hello"), ValueError, "not an empty text"),
        (lambda: wrong.why("\ud83d"), ValueError, "half a character at 0"),
        (lambda: wrong.chat(tiny, None), TypeError, "a list of dictionaries"),
        (lambda: wrong.chat(tiny, []), ValueError, "must not be empty"),
        (lambda: wrong.chat(tiny, "hello", temperatur_=1), TypeError, "no option 'temperatur_'"),
        (lambda: wrong.pull(tiny, progress=3), TypeError, "progress must be a function"),
        (lambda: wrong.embed(tiny, [7]), TypeError, "must be text"),
        (lambda: wrong.configure(tiny, runtime_flags="--mlock"), TypeError, "a list of texts"),
        (lambda: wrong.engine(tiny, wait=-1), ValueError, "seconds above 0"),
        (
            lambda: wrong.engine(tiny, wait="long"),
            TypeError,
            "wait must be a number of seconds, or None, not str",
        ),
        (lambda: wrong.chat(tiny, "hello", stream="yes"), TypeError, "stream must be True or False, not str"),
        (lambda: wrong.complete(tiny, "Once", stream=1), TypeError, "stream must be True or False, not int"),
        (
            lambda: wrong.chat(tiny, "hello", temperature=float("nan")),
            ValueError,
            "temperature cannot be sent as JSON",
        ),
        (lambda: wrong.pull(tiny, stream="no"), TypeError, "stream must be True or False"),
        (lambda: wrong.pull(tiny, force="no"), TypeError, "force must be True or False, not str"),
        (lambda: wrong.pull(tiny, token=7), TypeError, "token must be text, not int"),
        (lambda: wrong.install("fake", stream="no"), TypeError, "stream must be True or False"),
        (lambda: wrong.install("fake", version=7), TypeError, "version must be text, not int"),
        (lambda: wrong.unload(tiny, force="no"), TypeError, "force must be True or False"),
        (lambda: wrong.chat(tiny, "hello", extra="x"), TypeError, "extra must be a dictionary, not str"),
        (
            lambda: wrong.chat(tiny, "hello", keep_alive=object()),
            TypeError,
            "keep_alive cannot be sent as JSON: Object of type object",
        ),
        (
            lambda: wrong.chat(tiny, [{"role": "user", "content": object()}]),
            TypeError,
            "messages cannot be sent as JSON",
        ),
    )
    for ask, kind, said in cases:
        with pytest.raises(kind, match=said):
            ask()
    with pytest.raises(RequestRefused, match="must be a number") as caught:
        wrong.chat(tiny, "hello", temperature="warm")
    assert (caught.value.kind, caught.value.code) == ("invalid", "invalid_type")


def test_a_refusal_has_its_numbers() -> None:
    fields = {"code": "does_not_fit", "needed": 9e9, "free": 4e9, "retry_after": 2.0, "param": None}
    refused = RequestRefused(507, fields, "It does not fit.", "Use a smaller one.")
    assert (refused.kind, refused.code, refused.retry_after) == ("exhausted", "does_not_fit", 2.0)
    assert refused.numbers == {"needed": 9e9, "free": 4e9}
    assert str(refused) == refused.sentence == "It does not fit. Use a smaller one."


def test_a_pull_that_fails_says_what_kind_of_failure_it_is(open_client: OpenClient, home: Path) -> None:
    client = open_client()
    (home / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(RequestRefused) as caught:
        client.pull(str(home / "broken.gguf"))
    assert (caught.value.kind, caught.value.message[:6] != "Error:") == ("invalid", True)
    with pytest.raises(RequestRefused, match="backend not found") as caught:
        client.install("absent")
    assert caught.value.kind == "not_found"


def test_threads_share_a_client(open_client: OpenClient, tiny: str) -> None:
    client = open_client()
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(client.chat(tiny, "hi").text)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said == [WORDS] * 20
