"""Answers do not depend on what became of engines, slots and files between the turns of conversations."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

TOPICS = ("whales", "bridges", "apples", "trains", "clouds")
STEPS = 16
MARGIN = 0.3
"""By how much a token's log-probability must be above the next best to be compared: what is read in other
pieces is computed with other roundings."""
NARROW, WIDE = "400MB", "2GB"
"""Memory for one of the three models, and for all."""


class Talk:
    """One conversation, which goes on from the answers of an engine that nothing disturbs."""

    def __init__(self, topic: str, model: str) -> None:
        self.topic, self.model = topic, model
        rules = " ".join(f"Rule {number}: be kind to {topic} number {number}." for number in range(20))
        self.messages = [{"role": "system", "content": rules}]

    def asks(self, number: int) -> None:
        text = f"Name fact {number} of {self.topic}, and say why it is the case."
        self.messages.append({"role": "user", "content": text})

    def answered(self, daemon: Any) -> Any:
        body = {"model": self.model, "messages": self.messages, "max_tokens": 12, "temperature": 0}
        answers: list[Any] = []

        def is_answered() -> bool:
            answers.append(daemon.post("/v1/chat/completions", body | {"logprobs": True, "top_logprobs": 2}))
            # A model whose engines were killed three times is not loaded for a while.
            return not any(code in answers[-1].body for code in (b'"breaker_open"', b'"unloaded"'))

        until(is_answered, 120)
        assert answers[-1].status == 200, answers[-1].body
        return answers[-1].json["choices"][0]


def clear_tokens(choice: Any) -> list[str]:
    """The tokens of an answer up to the first that another could have been as well."""
    found = []
    for one in choice["logprobs"]["content"]:
        best, next_best = (other["logprob"] for other in one["top_logprobs"])
        if best - next_best < MARGIN:
            break
        found.append(one["token"])
    return found


def renamed(gguf: Path, folder: Path, letter: str) -> str:
    """The path of a copy that is another model by one letter of its name."""
    data = bytearray(gguf.read_bytes())
    at = data.index(b"general.name") + len(b"general.name") + 4 + 8  # its type and length
    data[at] = ord(letter)
    copy = folder / f"{letter}.gguf"
    copy.write_bytes(data)
    return str(copy)


def engines_of(daemon: Any) -> list[int]:
    pids = []
    for claim in (daemon.home / "engines").glob("*/claim"):
        with contextlib.suppress(OSError):
            pids.append(int(json.loads(claim.read_text())["pid"]))
    return pids


def disturb(daemon: Any, chance: random.Random, models: Sequence[str]) -> str:
    """One of the things that happen between two turns."""
    what = chance.choice(
        ("nothing", "unload", "engines killed", "daemon killed", "both killed", "restart", "narrow", "wide")
    )
    if what == "unload":
        assert daemon.post("/engines/unload", {"models": [chance.choice(models)]}).status == 200
    if what in ("daemon killed", "both killed"):
        daemon.kill()
    if what in ("engines killed", "both killed"):
        for pid in engines_of(daemon):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if what == "engines killed":
        until(lambda: not daemon.engines(), 60)
    if what in ("daemon killed", "both killed"):
        daemon.start()
    if what in ("restart", "narrow", "wide"):
        daemon.restart(
            **({} if what == "restart" else {"GREENROOM_MEMORY_BUDGET": NARROW if what == "narrow" else WIDE})
        )
    return what


@pytest.mark.parametrize("seed", [2, 3])
def test_disturbed_conversations_get_the_answers_of_undisturbed_ones(
    make_daemon: Callable[..., Any], furnished: Path, smollm2_gguf: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    models = (str(smollm2_gguf), *(renamed(smollm2_gguf, tmp_path, letter) for letter in "XY"))
    disturbed = make_daemon(furnished, GREENROOM_MEMORY_BUDGET=NARROW)
    undisturbed = make_daemon(furnished, GREENROOM_MEMORY_BUDGET=WIDE, GREENROOM_CONVERSATIONS="off")
    for daemon in (disturbed, undisturbed):
        daemon.bound = 300.0
        daemon.start()
        for model in models[1:]:
            daemon.pull(model)
        for slots, model in enumerate(models, 1):
            daemon.configure(model, slots=slots, **{"context-size": 1024 * min(slots, 2)})
    talks = [Talk(topic, models[number % 3]) for number, topic in enumerate(TOPICS)]
    history: list[str] = []
    compared = 0
    with ThreadPoolExecutor(3) as pool:
        for step in range(STEPS):
            some = chance.sample(talks, chance.choice((1, 1, 2)))
            for talk in some:
                talk.asks(step)
            # A turn may be sent twice at once, and its engine end meanwhile.
            sent = some * chance.choice((1, 1, 2)) if len(some) == 1 else some
            waiting = [pool.submit(talk.answered, disturbed) for talk in sent]
            history.append(" and ".join(talk.topic for talk in sent))
            if chance.random() < 0.2:
                history.append("meanwhile unload")
                disturbed.post("/engines/unload", {"models": [some[0].model]})
            answers = [one.result() for one in waiting]
            rights = {talk.topic: talk.answered(undisturbed) for talk in some}
            for talk, answer in zip(sent, answers, strict=True):
                clear = clear_tokens(rights[talk.topic])
                got = [one["token"] for one in answer["logprobs"]["content"]]
                assert got[: len(clear)] == clear, history
                compared += len(clear)
            for talk in some:
                talk.messages.append(rights[talk.topic]["message"])
            history.append(disturb(disturbed, chance, models))
    assert compared > 2 * STEPS
    rows = json.loads(disturbed.run("requests", "--json").stdout)
    assert sum(row["tokens_restored"] > 0 for row in rows) >= 3, history
