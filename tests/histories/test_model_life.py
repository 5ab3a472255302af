"""What became of a model: the first line of `why MODEL` in each of these histories.

1.  unloaded when it was idle, by a request's keep_alive
2.  unloaded when it was idle, by a configured keep-alive
3.  evicted for another model
4.  evicted although it had been pinned: a later request took the pin away
5.  unloaded by a request
6.  refused since pinned models hold the memory
7.  runs with a configured context
8.  loaded again because it was configured
9.  loaded again because its context was reset
10. crashed while serving
11. crashed while serving, and loaded again
12. killed, and loaded again
13. stalled while serving, and replaced
14. stopped by a signal, and replaced
15. fails to load
16. fails again and again, so its breaker is open
17. a new failure after that breaker
18. a load that does not end
19. removed from the store by a request
20. a name of it taken away
21. a name of it given to another model
22. refused on one backend's path, which says nothing of other requests
23. never requested
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from histories import Told, chatted, reads, request_of, sent
from toy import make_wheel
from waiting import suspend, until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIGURE = "POST /engines/_configure"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(make_told: Any) -> Told:
    flags = {
        "broken": "--die-in-load,3",
        "failing": "--load-seconds,0.3,--die-in-load,3",
        "mortal": "--die-of,poison,--die-by,SIGSEGV",
        "frozen": "--freeze-after-requests,1",
        "hanging": "--load-forever",
    }
    given = [word for name, words in flags.items() for word in ("--for", f"{name}={words}")]
    settings = {"memory_budget": "150MiB", "stall_after": "2", "install_policy": "never"}
    testing = {"test_cool_down": "0.2", "test_beside": "1"}
    daemon = await make_told("--tokens", "3", *given, start=False, **settings, **testing)
    make_wheel(daemon.home.parent / "wheels")
    made: Told = await daemon.start()
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def daemon(shared: Told) -> AsyncIterator[Told]:
    """With nothing loaded, and nothing pinned afterwards."""
    yield shared
    await shared.unload()


async def test_a_request_s_keep_alive_ended_it(daemon: Told) -> None:
    await daemon.add("idle")
    asked = await daemon.chat("idle", keep_alive="0.1s")
    await daemon.ended("idle")
    reads(
        await daemon.first_line("idle"),
        "idle is not loaded: it was unloaded at {at} after being idle for {took}, because {asked} had set "
        "its keep-alive to 0.1s.",
        asked=chatted(asked, "idle"),
    )


@pytest.mark.slow
async def test_its_configured_keep_alive_ended_it(daemon: Told) -> None:
    await daemon.add("brief")
    asked = await daemon.post("/engines/_configure", {"model": "brief", "keep_alive": "0.1s"})
    await daemon.chat("brief")
    await daemon.ended("brief")
    reads(
        await daemon.first_line("brief"),
        "brief is not loaded: it was unloaded at {at} after being idle for {took}, the keep-alive that "
        "{asked} configured at {clock}.",
        asked=sent(asked, CONFIGURE),
    )


async def test_it_was_evicted_for_another(daemon: Told) -> None:
    await daemon.add("older", "newer", "newest")
    for name in ("older", "newer"):
        await daemon.chat(name)
    asked = await daemon.chat("newest")
    reads(
        await daemon.first_line("older"),
        "older is not loaded: it was evicted at {at} to make room for newest, which {asked} asked for and "
        "which needed {size} when {size} was free. It held {size} and had been idle for {took}.",
        asked=chatted(asked, "newest"),
    )


async def test_it_was_evicted_after_a_request_had_taken_its_pin_away(daemon: Told) -> None:
    await daemon.add("dear", "dearer", "dearest")
    await daemon.chat("dear", keep_alive=-1)
    taken = await daemon.chat("dear", keep_alive=300)
    await daemon.stored("keep_alive_wished", "dear", 2)
    await daemon.chat("dearer")
    asked = await daemon.chat("dearest")
    reads(
        await daemon.first_line("dear"),
        "dear is not loaded: it was evicted at {at} to make room for dearest, which {asked} asked for and "
        "which needed {size} when {size} was free. It held {size} and had been idle for {took}. It had "
        "been pinned until {clock}, when {taken} set its keep-alive to 5m.",
        asked=chatted(asked, "dearest"),
        taken=chatted(taken, "dear"),
    )


async def test_a_request_unloaded_it(daemon: Told) -> None:
    await daemon.add("gone")
    await daemon.chat("gone")
    asked = await daemon.post("/engines/unload", {"models": ["gone"]})
    reads(
        await daemon.first_line("gone"),
        "gone is not loaded: it was unloaded at {at} by {asked}.",
        asked=sent(asked, "POST /engines/unload"),
    )


async def test_pinned_models_hold_the_memory(daemon: Told) -> None:
    await daemon.add("pinned", "pinned2", "homeless")
    pins = [await daemon.chat(name, keep_alive=-1) for name in ("pinned", "pinned2")]
    assert (await daemon.chat("homeless")).status == 507
    found = await daemon.why("homeless")
    reads(
        found["answer"],
        "homeless is not loaded: requests for it have been refused since {at}: homeless needs {size} of "
        "memory; pinned models hold {size} of the {size} that engines may use.",
    )
    told = [line for line in found["also"] if "is pinned" in line]
    assert [request_of(one) in line for one, line in zip(pins, told, strict=True)] == [True, True]


async def test_it_runs_with_the_context_that_a_request_configured(daemon: Told) -> None:
    await daemon.add("sized")
    body = {"model": "sized", "context-size": 4096, "preload": False}
    configured = await daemon.post("/engines/_configure", body)
    asked = await daemon.chat("sized")
    reads(
        await daemon.first_line("sized"),
        "sized is loaded: engine {engine} has served it on fake since {at}, because {asked} needed sized. "
        "It runs with a context of 4096 tokens, as {configured} configured at {clock}.",
        asked=chatted(asked, "sized"),
        configured=sent(configured, CONFIGURE),
    )


async def test_it_was_loaded_again_because_it_was_configured(daemon: Told) -> None:
    await daemon.add("tuned")
    await daemon.post("/engines/_configure", {"model": "tuned", "context-size": 4096, "preload": False})
    await daemon.chat("tuned")
    asked = await daemon.post("/engines/_configure", {"model": "tuned", "context-size": 8192})
    await daemon.loaded("tuned", 2)
    reads(
        await daemon.first_line("tuned"),
        "tuned is loaded: engine {engine} has served it on fake since {at}, because {asked} configured "
        "tuned with a context of 8192 tokens instead of 4096.",
        asked=sent(asked, CONFIGURE),
    )

    body = {"model": "tuned", "reset": ["context-size"], "preload": False}
    reset = await daemon.post("/engines/_configure", body)
    asked = await daemon.chat("tuned")
    reads(
        await daemon.first_line("tuned"),
        "tuned is loaded: engine {engine} has served it on fake since {at}, because {asked} needed tuned. "
        "It was loaded again because {reset} configured the default context size instead of 8192.",
        asked=chatted(asked, "tuned"),
        reset=sent(reset, CONFIGURE),
    )


async def test_it_crashed_while_serving_and_was_loaded_again(daemon: Told) -> None:
    await daemon.add("mortal")
    await daemon.chat("mortal")
    poison = [{"role": "user", "content": "poison"}]
    assert (await daemon.chat("mortal", messages=poison)).status == 422
    reads(
        await daemon.first_line("mortal"),
        "mortal is not loaded: its engine crashed at {at}, {took} after it was ready. The fake engine for "
        "mortal was killed by SIGSEGV.",
    )
    again = await daemon.chat("mortal")
    reads(
        await daemon.first_line("mortal"),
        "mortal is loaded: engine {engine} has served it on fake since {at}, because {again} needed "
        "mortal. It replaced engine {engine}, which crashed at {at}, {took} after it was ready. The fake "
        "engine for mortal was killed by SIGSEGV.",
        again=chatted(again, "mortal"),
    )


async def test_it_was_killed_and_loaded_again(daemon: Told) -> None:
    await daemon.add("killed")
    await daemon.chat("killed")
    os.kill((await daemon.engine("killed"))["pid"], signal.SIGKILL)
    await daemon.stored("load_failed", "killed")
    again = await daemon.chat("killed")
    reads(
        await daemon.first_line("killed"),
        "killed is loaded: engine {engine} has served it on fake since {at}, because {again} needed "
        "killed. It replaced engine {engine}, which was killed at {at}, {took} after it was ready. The "
        "fake engine for killed was killed by SIGKILL.",
        again=chatted(again, "killed"),
    )


@pytest.mark.slow
async def test_it_stalled_and_was_replaced(daemon: Told) -> None:
    await daemon.add("frozen")
    await daemon.chat("frozen")
    answer = await daemon.chat("frozen")
    assert answer.status == 200
    reads(
        await daemon.first_line("frozen"),
        "frozen is loaded: engine {engine} has served it on fake since {at}, because {asked} needed "
        "frozen. It replaced engine {engine}, which failed at {at}, {took} after it was ready and was "
        "stopped. The engine was stopped: it sent nothing and used no processor for {took}, and did not "
        "answer a request for one token within {took}.",
        asked=chatted(answer, "frozen"),
    )


@pytest.mark.slow
async def test_it_was_stopped_by_a_signal_and_replaced(daemon: Told) -> None:
    await daemon.add("halted")
    await daemon.chat("halted")
    suspend((await daemon.engine("halted"))["pid"])
    await daemon.stored("load_failed", "halted")
    again = await daemon.chat("halted")
    reads(
        await daemon.first_line("halted"),
        "halted is loaded: engine {engine} has served it on fake since {at}, because {again} needed "
        "halted. It replaced engine {engine}, which failed at {at}, {took} after it was ready and was "
        "stopped. The engine was stopped: its process was stopped by a signal from outside (SIGSTOP).",
        again=chatted(again, "halted"),
    )


@pytest.mark.slow
async def test_it_fails_to_load_again_and_again(daemon: Told) -> None:
    await daemon.add("broken")
    await daemon.chat("broken")
    failure = (
        "The fake engine for broken exited with code 3 while it loaded: it could not load the model it "
        "was asked to fail."
    )
    reads(
        await daemon.first_line("broken"),
        f"broken is not loaded: it could not be loaded at {{at}}. {failure}",
    )
    for _ in range(2):
        await daemon.chat("broken")
    await daemon.stored("breaker_opened", "broken")
    reads(
        await daemon.first_line("broken"),
        f"broken is not loaded: it has failed 3 times in a row and {{breaker}}. The last failure: {failure}",
    )


@pytest.mark.slow
async def test_a_new_failure_after_an_open_breaker_is_the_one_it_names(daemon: Told) -> None:
    await daemon.add("failing")
    for _ in range(3):
        await daemon.chat("failing")
    (opened,) = [one for one in daemon.events("breaker_opened") if one["model_ref"] == "failing"]
    await asyncio.sleep(max(0.0, opened["until"] - time.time()))
    asking = asyncio.create_task(daemon.chat("failing"))
    await until_async(lambda: len(daemon.spawned("failing")) == 4)
    os.kill(daemon.spawned("failing")[-1]["pid"], signal.SIGKILL)
    await asking
    reads(
        await daemon.first_line("failing"),
        "failing is not loaded: it has failed 4 times in a row and {breaker}. The last failure: The fake "
        "engine for failing was killed by SIGKILL while it loaded.",
    )


@pytest.mark.slow
async def test_a_load_does_not_end(daemon: Told) -> None:
    await daemon.add("hanging")
    asking = asyncio.create_task(daemon.chat("hanging"))
    await until_async(lambda: daemon.spawned("hanging"))
    line = await daemon.first_line("hanging")
    os.kill(daemon.spawned("hanging")[-1]["pid"], signal.SIGKILL)
    answer = await asking
    reads(
        line,
        "hanging has been loading on fake since {at}, because {asked} needed hanging: its process started "
        "at {clock} and is reading the model. It is the first load on this installation, so there is "
        "nothing to compare it with.",
        asked=chatted(answer, "hanging"),
    )


async def test_a_request_removed_it(daemon: Told) -> None:
    await daemon.add("doomed")
    await daemon.only_name("doomed")
    removed = await daemon.ask("DELETE", "/models/doomed")
    reads(
        await daemon.first_line("doomed"),
        "doomed was in the store until {at}, when {removed} removed it. That freed {size}.",
        removed=sent(removed, "DELETE /models/doomed"),
    )


async def test_a_request_took_its_name_away(daemon: Told) -> None:
    await daemon.add("named")
    await daemon.post("/models/named/tag?repo=alias&tag=latest", {})
    taken = await daemon.ask("DELETE", "/models/alias")
    reads(
        await daemon.first_line("alias"),
        "alias has named no model since {taken} took it away at {at}; its model is still "
        "in the store as named. named is not loaded: it has been in the store since {at} (192 B, gguf), "
        "but was never requested.",
        taken=sent(taken, "DELETE /models/alias"),
    )


async def test_its_name_was_given_to_another(daemon: Told) -> None:
    await daemon.add("first", "second")
    await daemon.post("/models/first/tag?repo=favourite&tag=latest", {})
    await daemon.chat("favourite")
    await daemon.unload("favourite")
    moved = await daemon.post("/models/second/tag?repo=favourite&tag=latest", {})
    reads(
        await daemon.first_line("favourite"),
        "Since {at}, when {moved} moved the name, favourite has meant model {model}; before, it meant "
        "{model}. favourite is not loaded: it has been in the store since {at} (192 B, gguf), but was "
        "never requested.",
        moved=sent(moved, "POST /models/second/tag"),
    )


async def test_a_refusal_on_the_path_of_one_backend_hides_nothing(daemon: Told) -> None:
    await daemon.add("versatile")
    await daemon.chat("versatile")
    unloaded = await daemon.post("/engines/unload", {"models": ["versatile"]})
    body = {"model": "versatile", "messages": [{"role": "user", "content": "hi"}]}
    refused = await daemon.post("/engines/toy/v1/chat/completions", body)
    assert refused.error["code"] == "backend_not_installed"
    found = await daemon.why("versatile")
    reads(
        found["answer"],
        "versatile is not loaded: it was unloaded at {at} by {unloaded}.",
        unloaded=sent(unloaded, "POST /engines/unload"),
    )
    assert [line for line in found["also"] if line.startswith("On toy it was refused at ")]


async def test_it_was_never_requested(daemon: Told) -> None:
    await daemon.add("new")
    reads(
        await daemon.first_line("new"),
        "new is not loaded: it has been in the store since {at} (192 B, gguf), but was never requested.",
    )
