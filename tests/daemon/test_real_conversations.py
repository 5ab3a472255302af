"""Conversations outlive their engine: a real model goes on without reading them again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

RULES = " ".join(f"Rule {number}: be kind to whale number {number}." for number in range(60))
"""Some 800 tokens."""
MORE = " ".join(f"Remember that whale number {number} likes to sing." for number in range(12))
"""Some 150."""


class Chat:
    """One conversation, and how much of its last prompt had to be read."""

    def __init__(self, daemon: Any, model: str, first: str = "Tell me of the first rule.") -> None:
        self.daemon, self.model = daemon, model
        self.messages = [{"role": "system", "content": RULES}, {"role": "user", "content": first}]

    def turn(self, said: str = "", **more: Any) -> tuple[int, int]:
        """Tokens of the prompt that the engine had, and those that it read."""
        if said:
            self.messages.append({"role": "user", "content": said})
        body = {"model": self.model, "messages": self.messages, "max_tokens": 8, "temperature": 0, **more}
        answer = self.daemon.post("/v1/chat/completions", body)
        assert answer.status == 200, answer.body
        self.messages.append(answer.json["choices"][0]["message"])
        timings = answer.json["timings"]
        return timings["cache_n"], timings["prompt_n"]


@pytest.fixture
def daemon(furnished: Path, make_daemon: Callable[..., Any]) -> Any:
    made = make_daemon(furnished, GREENROOM_MEMORY_BUDGET="2GB")
    made.bound = 300.0
    return made.start()


def saved(daemon: Any) -> list[dict[str, Any]]:
    folder = daemon.home / "conversations"
    return [json.loads(one.read_text().partition("\n")[2]) for one in folder.glob("c-*.json")]


def unload(daemon: Any, model: str) -> None:
    """End the model's engine, and wait until it is gone."""
    assert daemon.post("/engines/unload", {"models": [model]}).status == 200
    until(lambda: not daemon.engines(), 60)


def engine_of(daemon: Any) -> int:
    found = max((daemon.home / "engines").iterdir(), key=lambda one: (one / "claim").stat().st_mtime)
    return int(json.loads((found / "claim").read_text())["pid"])


def test_the_next_turn_after_an_unload_reads_only_what_is_new(daemon: Any, smollm2_gguf: Path) -> None:
    model = str(smollm2_gguf)
    daemon.configure(model)
    chat = Chat(daemon, model)
    cached, read = chat.turn()
    assert cached == 0
    assert read > 800
    unload(daemon, model)
    (entry,) = saved(daemon)
    assert entry["tokens"] >= read
    assert entry["reason"] == "unload"
    cached, fresh = chat.turn("And of the second?")
    assert cached >= read - 4
    assert fresh < 40
    (entry,) = saved(daemon)
    assert entry["restored"] == 1
    assert "Saved 1 conversation of " in daemon.run("log").stdout
    assert "was saved 1 time lately" in daemon.run("why", model).stdout
    assert "its conversations outlive the engine" in daemon.run("inspect", model).stdout
    (running,) = json.loads(daemon.run("ps", "--json").stdout)
    assert (running["conversations"], running["restored_tokens"]) == (1, cached)


def test_a_conversation_outlives_keep_alive_daemon_and_the_death_of_its_engine(
    daemon: Any, smollm2_gguf: Path
) -> None:
    model = str(smollm2_gguf)
    daemon.configure(model)
    chat = Chat(daemon, model)
    _, read = chat.turn(keep_alive="1s")
    until(lambda: saved(daemon) and not daemon.engines(), 60)
    assert saved(daemon)[0]["reason"] == "keep_alive"

    # An engine that is killed had been idle before. What is new must be worth a file.
    cached, _ = chat.turn(f"And of the second? {MORE}", keep_alive="10m")
    assert cached >= read - 4
    until(lambda: len(saved(daemon)) == 1 and saved(daemon)[0]["tokens"] > read + 100, 60)
    os.kill(engine_of(daemon), signal.SIGKILL)
    until(lambda: not daemon.engines(), 60)
    cached, fresh = chat.turn(f"And of the third? {MORE}", keep_alive="10m")
    assert cached > read + 100
    assert fresh < 300

    # The next daemon takes the engine over, and knows what its slots hold.
    pid = engine_of(daemon)
    daemon.restart()
    assert engine_of(daemon) == pid
    cached, fresh = chat.turn(f"And of the fourth? {MORE}", keep_alive="10m")
    assert cached > read + 200
    assert fresh < 300

    # Neither the daemon nor the engine ends in order.
    until(lambda: saved(daemon)[0]["tokens"] > read + 300, 60)
    daemon.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    daemon.start()
    cached, fresh = chat.turn("And of the fifth?")
    assert cached > read + 300
    assert fresh < 40


def test_a_new_conversation_does_not_read_the_rules_that_another_slot_has_read(
    daemon: Any, smollm2_gguf: Path
) -> None:
    model = str(smollm2_gguf)
    daemon.configure(model, slots=2)
    one = Chat(daemon, model)
    _, read = one.turn()
    other = Chat(daemon, model, "Which rules do you know?")
    cached, fresh = other.turn()
    assert cached > read - 30
    assert fresh < 30
    rows = json.loads(daemon.run("requests", "--json").stdout)
    assert [row["restored_why"] for row in rows if row["tokens_restored"]] == [
        "when another slot of the engine had read it"
    ]
    for chat in (one, other):  # each still has its own
        cached, fresh = chat.turn("And then?")
        assert cached >= read
        assert fresh < 40


def test_of_a_prompt_whose_client_leaves_what_was_read_is_kept(daemon: Any, smollm2_gguf: Path) -> None:
    model = str(smollm2_gguf)
    daemon.configure(model, slots=2)
    few = " ".join(RULES.split(". ")[:14])
    chat = Chat(daemon, model, f"{RULES} Tell me of the first rule.")
    chat.messages[0]["content"] = few
    client = http.client.HTTPConnection(urlsplit(daemon.url).netloc)
    body = {"model": model, "messages": chat.messages, "max_tokens": 8, "temperature": 0}
    client.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    until(lambda: any(one["inside"] for one in daemon.engines()), 60)
    client.close()
    (entry,) = until(lambda: saved(daemon), 120)
    assert len(entry["chain"]) == 2, "the long message cannot have been read to its end"
    os.kill(engine_of(daemon), signal.SIGKILL)
    until(lambda: not daemon.engines(), 60)
    chat.messages[1]["content"] = "Tell me of the first rule."
    cached, fresh = chat.turn()
    assert cached > 150
    assert fresh < 60


def test_a_model_that_was_evicted_goes_on_and_why_says_so(
    daemon: Any, smollm2_gguf: Path, gemma3_gguf: Path
) -> None:
    daemon.restart(GREENROOM_MEMORY_BUDGET="700MB")
    daemon.pull(str(gemma3_gguf))
    chats = [Chat(daemon, str(one)) for one in (smollm2_gguf, gemma3_gguf)]
    for chat in chats:
        daemon.configure(chat.model)
        chat.turn()
    for chat in chats * 2:
        cached, fresh = chat.turn("And then?")
        assert cached > 800
        assert fresh < 150
    rows = json.loads(daemon.run("requests", "--json").stdout)
    row = next(one for one in reversed(rows) if one["tokens_restored"])
    assert row["tokens_restored"] > 800
    assert row["restored_why"].startswith("when the model was evicted for ")
    told = daemon.run("why", row["id"]).stdout
    assert "tokens of its prompt were restored from" in told
    assert "greenroom_conversations_restored_total" in daemon.get("/metrics").body.decode()


def test_a_conversation_with_mlx_outlives_its_engine(daemon: Any, smollm2_mlx: Path) -> None:
    # mlx keeps prompts only in the memory for them, for which little memory leaves none.
    daemon.restart(GREENROOM_MEMORY_BUDGET="5GB")
    model = str(smollm2_mlx)
    # A processor takes seconds for a hundred tokens here.
    messages: list[dict[str, str]] = [{"role": "user", "content": RULES[:1_100]}]
    details: dict[str, int] = {}
    for number in range(2):
        body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0}
        answer = daemon.post("/v1/chat/completions", body)
        assert answer.status == 200, answer.body
        messages += [answer.json["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        if not number:
            unload(daemon, model)
            (entry,) = saved(daemon)
            assert entry["reason"] == "unload"
            # By the speed that its launcher has measured, not the one assumed before.
            assert entry["tokens"] / entry["seconds"] != pytest.approx(300.0)
        details = answer.json["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] > 200
    (entry,) = saved(daemon)
    assert entry["restored"] == 1


def test_a_conversation_whose_slot_another_takes_at_once_goes_on_too(daemon: Any, smollm2_gguf: Path) -> None:
    model = str(smollm2_gguf)
    daemon.configure(model, slots=1)
    one = Chat(daemon, model)
    one.turn()
    one.turn("And of the second?")
    other = Chat(daemon, model, "Which rules do you know?")
    other.messages[0] = {"role": "system", "content": MORE}
    other.turn()
    assert [entry["reason"] for entry in saved(daemon)] in (["overwritten"], ["idle"])
    os.kill(engine_of(daemon), signal.SIGKILL)
    until(lambda: not daemon.engines(), 60)
    cached, fresh = one.turn("And of the third?")
    assert cached > 800
    assert fresh < 60
