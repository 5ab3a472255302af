"""The scheduler fails and is rebuilt in the middle of fifty streams, and none of them notices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.messages import SCHEDULER, AwaitReady

STREAMS = 50
TOKENS = 40


class Flaky:
    """Makes one function of a core raise once, and counts the lives that begin afterwards."""

    def __init__(self, core: Any, function: str, patch: pytest.MonkeyPatch) -> None:
        self.raised = self.lives = 0
        inner, decide = getattr(core, function), core.decide

        def once(*arguments: Any) -> Any:
            if not self.raised:
                self.raised += 1
                raise RuntimeError("once, as asked")
            return inner(*arguments)

        def counted(state: Any, command: Any, *rest: Any) -> Any:
            self.lives += isinstance(command, Recovered)
            return once(state, command, *rest) if function == "decide" else decide(state, command, *rest)

        patch.setattr(core, "decide", counted)
        if function != "decide":
            patch.setattr(core, function, once)


@pytest.mark.parametrize("function", ["decide", "settle"])
async def test_a_rebuilt_scheduler_disturbs_none_of_fifty_streams(
    open_house: Any, wait_until: Any, frames: Any, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    house = await open_house("--tokens", str(TOKENS), "--token-delay", "0.05")
    async with house.chat() as response:
        assert response.status == 200
    (before,) = house.engines("ready")
    begun = [asyncio.Event() for _ in range(STREAMS)]

    async def stream(number: int) -> list[str]:
        async with house.chat(stream=True) as response:
            assert response.status == 200
            lines = []
            async for line in response.content:
                lines.append(line.decode().rstrip("\n"))
                begun[number].set()
            return lines

    streams = [asyncio.create_task(stream(number)) for number in range(STREAMS)]
    await asyncio.gather(*(one.wait() for one in begun))
    assert house.inside() == STREAMS

    flaky = Flaky(house.greenroom.system.addresses[SCHEDULER], function, monkeypatch)
    house.greenroom.system.tell(SCHEDULER, AwaitReady())
    await wait_until(lambda: flaky.lives == 1)
    # In its new life it is told what there is, and believes it; nobody has left meanwhile.
    await house.greenroom.system.ask(SCHEDULER, AwaitReady())
    assert flaky.raised == 1
    assert house.inside() == STREAMS
    assert not any(one.done() for one in streams)

    for lines in await asyncio.gather(*streams):
        data = frames(lines)
        assert data[-1] == "[DONE]"
        words = [one["choices"][0]["delta"].get("content", "") for one in data[:-1] if one["choices"]]
        assert "".join(words).split() == [f"word{number}" for number in range(TOKENS)]
    async with house.chat() as response:
        assert response.status == 200
    assert [one.pid for one in house.engines("ready")] == [before.pid]
    await house.nothing_is_held()
