"""The scheduler fails, or is rebuilt, in the middle of fifty streams, and none of them notices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from greenroom.actors.gates import GateEffects
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.scheduler.messages import SCHEDULER, Abandon, AwaitReady
from waiting import until_async

STREAMS = 50
TOKENS = 40


class Flaky:
    """Makes one function of a core or its effect handler raise once, and counts the lives that follow."""

    def __init__(self, core: Any, patched: Any, function: str, patch: pytest.MonkeyPatch) -> None:
        self.raised = self.lives = 0
        inner = getattr(patched, function)

        def once(*arguments: Any) -> Any:
            if not self.raised:
                self.raised += 1
                raise RuntimeError("once, as asked")
            return inner(*arguments)

        patch.setattr(patched, function, once)
        decide = core.decide

        def counted(state: Any, command: Any, *rest: Any) -> Any:
            self.lives += isinstance(command, Recovered)
            return decide(state, command, *rest)

        patch.setattr(core, "decide", counted)


@pytest.mark.parametrize(
    ("function", "lives"),
    [("decide", 0), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("settle", 0), ("perform", 1)))],
)
async def test_a_failing_scheduler_disturbs_none_of_fifty_streams(
    open_server: Any, frames: Any, monkeypatch: pytest.MonkeyPatch, function: str, lives: int
) -> None:
    server = await open_server("--tokens", str(TOKENS), "--token-delay", "0.05")
    async with server.chat() as response:
        assert response.status == 200
    (before,) = server.engines("ready")
    begun = [asyncio.Event() for _ in range(STREAMS)]

    async def stream(number: int) -> list[str]:
        async with server.chat(stream=True) as response:
            assert response.status == 200
            lines = []
            async for line in response.content:
                lines.append(line.decode().rstrip("\n"))
                begun[number].set()
            return lines

    streams = [asyncio.create_task(stream(number)) for number in range(STREAMS)]
    await asyncio.gather(*(one.wait() for one in begun))
    assert server.inside() == STREAMS

    system = server.greenroom.system
    core = system.addresses[SCHEDULER]
    patched = core if function != "perform" else GateEffects
    flaky = Flaky(core, patched, function, monkeypatch)
    # This gives its effect handler something to do: an unknown request leaves its gate.
    system.tell(Abandon(request_id="unknown"))
    await until_async(lambda: (flaky.raised, flaky.lives) == (1, lives))
    # The rebuilt actor receives the current lists and believes them; no request has left meanwhile.
    await system.ask(AwaitReady())
    assert flaky.raised == 1
    assert server.inside() == STREAMS
    assert not any(one.done() for one in streams)

    for lines in await asyncio.gather(*streams):
        data = frames(lines)
        assert data[-1] == "[DONE]"
        words = [one["choices"][0]["delta"].get("content", "") for one in data[:-1] if one["choices"]]
        assert "".join(words).split() == [f"word{number}" for number in range(TOKENS)]
    async with server.chat() as response:
        assert response.status == 200
    assert [one.pid for one in server.engines("ready")] == [before.pid]
    await server.nothing_is_held()
