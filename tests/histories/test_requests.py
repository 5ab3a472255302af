"""What became of a request: the first line of `why r-…` in each of these histories.

24. answered as a whole
25. refused with 400
26. refused with 404
27. refused with 422: it ended its engine
28. refused with 429: the queue is full
29. refused with 507: pinned models hold the memory
30. refused with 500: its load failed
31. an id that never existed
32. its answer was cut by a crash
33. is being answered
34. its client left
35. waits for memory while models in use hold it
36. evicted another model
37. pinned a model
38. took a pin away
39. unloaded models
40. configured a model
41. named a model
42. took a name away
43. removed a model
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from histories import Told, reads, request_of
from wedge import Answer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(make_told: Any) -> Told:
    flags = {
        "broken": "--die-in-load,3",
        "mortal": "--die-of,poison,--die-by,SIGSEGV",
        "cut": "--tokens,20,--die-after-tokens,5,--die-by,SIGSEGV",
        "endless": "--tokens,100000,--token-delay,0.02",
        "bus": "--tokens,100000,--token-delay,0.02",
    }
    given = [word for name, words in flags.items() for word in ("--for", f"{name}={words}")]
    made: Told = await make_told("--tokens", "3", *given, memory_budget="150MiB", queue_limit="4")
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def daemon(shared: Told) -> AsyncIterator[Told]:
    yield shared
    await shared.unload()


async def check(daemon: Told, answer: Answer, what: str, template: str) -> None:
    """`what` is how the request is named; the rest of the line is the template."""
    name = request_of(answer)
    reads(await daemon.first_line(name), f"Request {name} ({what}, from {{me}}) {template}")


def chat(model: str) -> str:
    return f"POST /v1/chat/completions to {model}"


DONE = "was carried out at {at}, in {took}. "
WAITED = "It waited {took} in the queue and {took} for the model to be loaded. "
ANSWER = "The answer has 3 tokens after 3 tokens of prompt."
WHOLE = "got its whole answer at {at}, {took} after it arrived. "


async def test_it_got_its_whole_answer(daemon: Told) -> None:
    await daemon.add("plain")
    loaded = "It made Greenroom load plain on fake as engine {engine}, which took {took}."
    await check(daemon, await daemon.chat("plain"), chat("plain"), f"{WHOLE}{WAITED}{ANSWER} {loaded}")


async def test_it_was_refused_for_what_it_sent(daemon: Told) -> None:
    await daemon.add("strict")
    answer = await daemon.chat("strict", messages=[{"role": "clown", "content": "x"}])
    await check(
        daemon,
        answer,
        chat("strict"),
        "was refused with 400 at {at}: messages[0].role must be one of system, developer, user, "
        "assistant, tool, function.",
    )


async def test_its_model_was_not_there(daemon: Told) -> None:
    await check(
        daemon,
        await daemon.chat("absent"),
        chat("absent"),
        'was refused with 404 at {at}: model "absent" is not in the store; run: greenroom pull absent.',
    )


async def test_it_ended_its_engine(daemon: Told) -> None:
    await daemon.add("mortal")
    answer = await daemon.chat("mortal", messages=[{"role": "user", "content": "poison"}])
    assert answer.status == 422
    await check(
        daemon,
        answer,
        chat("mortal"),
        'lost its engine {engine} at {at}, after {took}: The fake engine that served "mortal" ended before '
        "it had answered: it was killed by SIGSEGV. The request may be the cause, so it is refused for ten "
        f"minutes; change it. {WAITED}It made Greenroom load mortal on fake as engine {{engine}}, which took "
        "{took}.",
    )


async def test_its_answer_was_cut_by_a_crash(daemon: Told) -> None:
    await daemon.add("cut")
    await daemon.chat("cut", max_tokens=1)
    await check(
        daemon,
        await daemon.chat("cut", stream=True),
        chat("cut"),
        'lost its engine {engine} at {at}, after {took}: The fake engine that served "cut" ended in '
        "mid-stream: it was killed by SIGSEGV. The request may be the cause, so it is refused for ten "
        "minutes; change it. The first token came after {took}. The answer has about {number} tokens, "
        "{number} a second.",
    )


async def test_its_client_left(daemon: Told) -> None:
    await daemon.add("endless")
    await daemon.chat("endless", max_tokens=1)
    async with daemon.streaming("endless") as answer:
        name = answer.headers["X-Request-Id"]
        reads(
            await daemon.first_line(name),
            f"Request {name} (POST /v1/chat/completions to endless, from {{me}}) is being answered by engine "
            "{engine}; it arrived {took} ago. The first token came after {took}.{tokens}",
        )
    await daemon.at_rest()
    reads(
        await daemon.first_line(name),
        f"Request {name} (POST /v1/chat/completions to endless, from {{me}}) lost its client at {{at}}, "
        "after {took}: it disconnected before the end. The first token came after {took}.{tokens}",
    )


async def test_it_waits_for_memory_and_others_are_refused_for_the_full_queue(daemon: Told) -> None:
    await daemon.add("busy", "busier", "queued")
    async with daemon.streaming("busy"), daemon.streaming("busier"):
        asking = [asyncio.create_task(daemon.chat("queued")) for _ in range(4)]
        (done,), waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        queue = (await daemon.get("/engines/queue")).json
        name = queue[0]["request_id"]
        found, model = await daemon.why(name), await daemon.why("queued")
    await asyncio.gather(*waiting)
    await check(
        daemon,
        done.result(),
        chat("queued"),
        "was refused with 429 at {at}: 3 of your requests are already queued; the rest of the queue is "
        "for other callers. Try again later. It waited {took} in the queue.",
    )
    place = f"Request {name} to queued from {{me}} is number 1 in the queue after {{took}}: "
    waits = "waiting for memory: it needs {size}, {size} is free."
    reads(found["answer"], f"{place}{waits}")
    reads(model["answer"], f"queued is not loaded yet. {place}{waits}")
    for told in (found["also"], model["also"]):
        assert [line for line in told if line.startswith("busy holds 67.1 MB and answers r-")]


async def test_it_did_not_fit_beside_pinned_models(daemon: Told) -> None:
    await daemon.add("pinned", "pinned2", "homeless")
    for name in ("pinned", "pinned2"):
        await daemon.chat(name, keep_alive=-1)
    await check(
        daemon,
        await daemon.chat("homeless"),
        chat("homeless"),
        "was refused with 507 at {at}: homeless needs {size} of memory; pinned models hold {size} of the "
        "{size} that engines may use. Unload a pinned model, or give it a finite keep_alive. It waited "
        "{took} in the queue.",
    )


async def test_an_id_that_never_existed(daemon: Told) -> None:
    answer = await daemon.get("/why/r-0a1b2c3d-999")
    assert answer.status == 404
    reads(
        answer.body.decode().strip(),
        "Nothing is known of request r-0a1b2c3d-999: it is not in the record of requests, and no event "
        "was caused by it. Reads that succeed are not recorded.",
    )


async def test_its_load_failed(daemon: Told) -> None:
    await daemon.add("broken")
    await check(
        daemon,
        await daemon.chat("broken"),
        chat("broken"),
        "was refused with 500 at {at}: The fake engine for broken exited with code 3 while it loaded: it "
        f"could not load the model it was asked to fail. See its log: greenroom logs {{engine}}. {WAITED}It "
        "made Greenroom load broken on fake as engine {engine}, which failed.",
    )


async def test_it_evicted_another_model(daemon: Told) -> None:
    await daemon.add("older", "newer", "newest")
    for name in ("older", "newer"):
        await daemon.chat(name)
    await check(
        daemon,
        await daemon.chat("newest"),
        chat("newest"),
        f"{WHOLE}{WAITED}{ANSWER} older was evicted to make room for it: {{size}} was needed and {{size}} "
        "free; it held {size} and had been idle for {took}. It made Greenroom load newest on fake as engine "
        "{engine}, which took {took}.",
    )


async def test_it_pinned_a_model_or_took_its_pin_away(daemon: Told) -> None:
    await daemon.add("dear")
    await daemon.chat("dear")
    pinned = await daemon.chat("dear", keep_alive=-1)
    await daemon.stored("keep_alive_wished", "dear")
    taken = await daemon.chat("dear", keep_alive=300)
    await daemon.stored("keep_alive_wished", "dear", 2)
    await check(daemon, pinned, chat("dear"), f"{WHOLE}{ANSWER} It pinned dear.")
    await check(
        daemon,
        taken,
        chat("dear"),
        f"{WHOLE}{ANSWER} It unpinned dear: its keep-alive is now 5m.",
    )


async def test_it_unloaded_models(daemon: Told) -> None:
    await daemon.add("one", "two")
    for name in ("one", "two"):
        await daemon.chat(name)
    answer = await daemon.post("/engines/unload", {"all": True})
    await check(daemon, answer, "POST /engines/unload", f"{DONE}It unloaded one and two.")
    await daemon.ended("one")
    await daemon.ended("two")
    answer = await daemon.post("/engines/unload", {"all": True})
    await check(daemon, answer, "POST /engines/unload", f"{DONE}It unloaded nothing.")


async def test_it_configured_named_or_removed_a_model(daemon: Told) -> None:
    await daemon.add("mine")
    await daemon.only_name("mine")
    body = {"model": "mine", "context-size": 4096, "preload": False}
    await check(
        daemon,
        await daemon.post("/engines/_configure", body),
        "POST /engines/_configure",
        f"{DONE}It configured mine with a context of 4096 tokens.",
    )
    await check(
        daemon,
        await daemon.post("/models/mine/tag?repo=ours&tag=latest", {}),
        "POST /models/mine/tag",
        f"{DONE}It gave mine the name ours.",
    )
    await check(
        daemon,
        await daemon.ask("DELETE", "/models/ours"),
        "DELETE /models/ours",
        f"{DONE}It took the name ours from mine.",
    )
    await check(
        daemon,
        await daemon.ask("DELETE", "/models/mine"),
        "DELETE /models/mine",
        f"{DONE}It removed mine from the store, which freed {{size}}.",
    )
