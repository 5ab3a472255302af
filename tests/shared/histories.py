"""Histories with a real daemon, and what `why` says of them."""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec

from greenroom.actors.journal.reader import read_journal
from greenroom.runner.diagnosis.explain import explain
from greenroom.runner.diagnosis.live import DOWN
from greenroom.runner.record.table import recorded_in
from waiting import until_async
from wedge import Answer, Daemon

_PATTERNS = {
    "at": r"\d\d:\d\d:\d\d \((?:just now|[^()]+ ago|in [^()]+)\)",
    "clock": r"\d\d:\d\d:\d\d",
    "took": r"[\d.]+ ?(?:ms|s|m|h)(?: \d+s)?",
    "me": r"(?:[^()]+ \(process \d+\)|127\.0\.0\.1)",
    "breaker": r"(?:will be retried on request|will not be retried before \d\d:\d\d:\d\d \([^()]+\))",
    "engine": r"[0-9a-f]+-\d+",
    "size": r"[\d.]+ [kMG]?B",
    "installation": r"[\d.]+-[0-9a-f]{8}\.\d+",
    "sender": r"(?: \([^()]+(?:\([^()]+\))?\))?",
    "version": r"\d+(?:\.\w+)+",
    "path": r"[\w./-]+",
    "model": r"[0-9a-f]{12}",
    "tokens": r"(?: The answer has about [\d,]+ tokens?, [\d.]+ a second\.)?",
    "speed": r"(?:, [\d.]+ tokens a second(?: each)?)?",
    "waited": r"(?: The first of these has waited \d+s\.)?",
    "advice": r"(?:Restart[^:]*?\.)",
    "number": r"[\d.,]*\d",
    "job": r"[\w.-]+",
}


class Told(Daemon):
    """A daemon that tells the answer to `why NAME`."""

    async def why(self, name: str) -> Any:
        """What it says; where it does not run, what its data directory says."""
        if self.running.poll() is not None:
            with recorded_in(self.home) as recorded:
                events = read_journal(self.home / "journal.db")
                found = explain(events, name, time.time(), recorded=recorded, live=DOWN)
            return msgspec.to_builtins(found)
        answer = await self.get(f"/why/{name}")
        assert answer.status == 200, (answer.body, self.log()[-3000:])
        return answer.json

    async def first_line(self, name: str) -> str:
        line: str = (await self.why(name))["answer"]
        return line

    async def stored(self, kind: str, name: str, times: int = 1) -> None:
        """Wait for so many events of a type about a model."""
        await until_async(
            lambda: sum(one["model_ref"] == name for one in self.events(kind)) >= times,
            what=f"{kind} of {name}",
        )

    async def loaded(self, name: str, times: int) -> None:
        """Wait until a model has been loaded so often."""

        def ready() -> bool:
            mine = {one["engine_id"] for one in self.spawned(name)}
            return sum(one["engine_id"] in mine for one in self.events("engine_ready")) >= times

        await until_async(ready, what=f"load {times} of {name}")

    async def adopted(self, times: int) -> None:
        """Wait until engines of earlier daemons have been taken over so often."""
        await until_async(lambda: len(self.events("engine_adopted")) >= times)

    async def ended(self, name: str) -> None:
        """Wait until no engine of a model is left."""

        async def gone() -> bool:
            return bool(self.spawned(name)) and not [
                row for row in await self.engines() if row["model_name"] == name
            ]

        await until_async(gone, what=f"the end of {name}")

    async def add_wide(self, name: str) -> None:
        """A model that needs memory for each token of its context, of up to 131072."""
        numbers = {
            "llama.block_count": 2,
            "llama.context_length": 131072,
            "llama.embedding_length": 256,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 4,
        }
        await self.add(name, numbers=numbers)

    async def only_name(self, name: str) -> None:
        """Take the other name away under which `add` has it."""
        answer = await self.ask("DELETE", f"/models/file:{self.home.parent / f'{name}.gguf'}")
        assert answer.status == 200, (answer.body, self.log()[-3000:])


def request_of(answer: Answer) -> str:
    """The id of the request that this answers."""
    return str(answer.headers["X-Request-Id"])


def sent(answer: Answer, what: str) -> str:
    """How the request that this answers is named: `what` are its method, path and model."""
    return f"request {request_of(answer)} ({what}, from {{me}})"


def chatted(answer: Answer, model: str) -> str:
    """The same of a chat."""
    return sent(answer, f"POST /v1/chat/completions to {model}")


def reads(line: str, template: str, **requests: str) -> None:
    """Assert that a line is this text.

    `{at}`, `{took}` and others stand for what differs each time, and other names for `requests`.
    """
    for name, one in requests.items():
        template = template.replace(f"{{{name}}}", one)
    pattern = re.escape(template)
    for name, one in _PATTERNS.items():
        pattern = pattern.replace(rf"\{{{name}\}}", one)
    assert re.fullmatch(pattern, line), f"\n  it says  {line}\n  and not  {template}"
