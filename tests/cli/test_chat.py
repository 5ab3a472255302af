"""The chat: in a real terminal, and message by message."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.cli import line_editor
from greenroom.runner.cli.chat import ChatSession
from greenroom.runner.cli.chat_session import Conversation, Options
from greenroom.runner.cli.output import filtered
from greenroom.runner.cli.variants import Changeovers
from greenroom.runner.client.http_client import HttpClient
from terminal import PASTE, Terminal

CHAT = "POST /v1/chat/completions"
RUN = [sys.executable, "-m", "greenroom.runner.cli", "run", "smollm2"]


def words(*texts: str, finish: str = "stop", tokens: int = 7) -> list[str]:
    """A streamed answer."""
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    events.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    events.append({"choices": [], "usage": {"prompt_tokens": tokens, "completion_tokens": len(texts)}})
    return [line for event in events for line in (f"data: {json.dumps(event)}", "")] + ["data: [DONE]", ""]


def too_long(tokens: int, size: int) -> tuple[int, Any]:
    fields = {
        "code": "context_length_exceeded",
        "message": "The prompt is too long.",
        "advice": "Shorten it.",
    }
    return 400, {"error": {**fields, "n_prompt_tokens": tokens, "n_ctx": size}}


@pytest.fixture
def answering(our_daemon: Any) -> Callable[..., list[Any]]:
    """Has the daemon give these answers in turn, the last one again and again; what it was asked."""

    def give(*answers: Any) -> list[Any]:
        left, asked = list(answers), []

        def answer(seen: Any) -> Any:
            if seen.headers.get("X-Preload-Only") == "true":
                return ""
            asked.append(seen.body)
            one = left.pop(0) if len(left) > 1 else left[0]
            return one() if callable(one) else one

        our_daemon.routes[CHAT] = answer
        our_daemon.routes["GET /engines/ps?all=true"] = []
        our_daemon.routes["GET /engines"] = []
        return asked

    return give


def said(asked: list[Any]) -> list[str]:
    return [body["messages"][-1]["content"] for body in asked]


# in a terminal


def test_a_paste_is_one_message_and_quotation_marks_begin_one_of_several_lines(answering: Any) -> None:
    asked = answering(words("Yes."))
    with Terminal(RUN) as terminal:
        terminal.shows("\n>")
        terminal.type(PASTE.format("one\ntwo\n  three") + "\r")
        terminal.shows("Yes.")
        terminal.shows("\n>")
        terminal.type('"""four\r')
        terminal.shows("...")
        terminal.type('five"""\r')
        terminal.shows("Yes.")
        terminal.shows("\n>")
        terminal.type("\x04")
        assert terminal.ends() == 0

    assert said(asked) == ["one\ntwo\n  three", "four\nfive"]


def test_ctrl_c_clears_the_line_and_stops_an_answer_at_once(answering: Any) -> None:
    def endless() -> Iterator[str]:
        for _ in range(600):
            yield f"data: {json.dumps({'choices': [{'delta': {'content': 'word '}}]})}"
            yield ""
            time.sleep(0.05)  # a slow engine

    asked = answering(endless, words("Yes."))
    with Terminal(RUN) as terminal:
        terminal.shows("\n>")
        terminal.type("a mistake")
        terminal.shows("a mistake")
        terminal.interrupt()
        terminal.type("Count.\r")
        terminal.shows("word word")
        began = terminal.interrupt()
        terminal.shows("(stopped)")
        assert time.monotonic() - began < 1.0, "0.3 s, and what a busy machine adds"
        terminal.shows("\n>")
        terminal.interrupt()
        terminal.shows("Ctrl-D or /bye leaves the chat.")
        terminal.type("Go on.\r")
        terminal.shows("Yes.")
        terminal.shows("\n>")
        terminal.type("/bye\r")
        assert terminal.ends() == 0

    assert said(asked) == ["Count.", "Go on."]
    roles = [one["role"] for one in asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"], "what has come of the answer is remembered"


def test_what_was_typed_is_there_in_the_next_chat_and_for_its_owner_only(answering: Any, home: Path) -> None:
    asked = answering(words("Yes."))
    for typed in ("Remember this.\r", "\x1b[A\r"):
        with Terminal(RUN) as terminal:
            terminal.shows("\n>")
            terminal.type(typed)
            terminal.shows("Yes.")
            terminal.shows("\n>")
            terminal.type("\x04")
            assert terminal.ends() == 0

    assert said(asked) == ["Remember this."] * 2
    assert stat.S_IMODE((home / line_editor.HISTORY).stat().st_mode) == 0o600
    with Terminal([*RUN, "--no-history"]) as terminal:
        terminal.shows("\n>")
        terminal.type("A secret.\r")
        terminal.shows("Yes.")
    assert "secret" not in (home / line_editor.HISTORY).read_text()


def test_answers_may_go_to_a_file_while_the_prompt_stays_on_the_terminal(
    answering: Any, tmp_path: Path
) -> None:
    answering(words("Yes."))
    with Terminal([*RUN, "--stats"], stdout=tmp_path / "answers") as terminal:
        terminal.shows("\n>")
        terminal.type("Really?\r")
        terminal.shows("1 tokens in ")
        terminal.shows("\n>")
        terminal.type("/bye\r")
        assert terminal.ends() == 0

    assert (tmp_path / "answers").read_text() == "Yes.\n"


def test_words_move_to_the_next_line_as_a_whole(answering: Any) -> None:
    answering(words("aaaaaaaaa bbbbb", "bbbb cccccc", "ccc ddddddddd eeeeeeeee"))
    with Terminal([*RUN, "Go"], columns=25) as terminal:
        assert terminal.ends() == 0

    lines = [line for line in terminal.text.splitlines() if line.strip()]
    # A word that had begun on a line was taken back from it.
    assert lines == ["aaaaaaaaa bbbbbbbbb ccccc", "ccccccccc ddddddddd eeeee", "eeeeeeeee"]


# message by message


class Typed:
    """Messages of a person."""

    def __init__(self, *lines: str) -> None:
        self._lines = list(lines)

    def read(self) -> str:
        if not self._lines:
            raise EOFError
        return self._lines.pop(0)


@pytest.fixture
def talk(our_daemon: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Types messages; the conversation afterwards, and what was said beside the answers."""

    def run(*lines: str, options: Options | None = None) -> tuple[Conversation, str]:
        client = HttpClient(our_daemon.url)
        conversation = Conversation(client, "smollm2", say=lambda _: None, options=options)
        with filtered():
            ChatSession(conversation, Changeovers(client), Typed(*lines), home, stats=False).talk()
        return conversation, capsys.readouterr().err

    return run


def test_a_chat_remembers_and_a_system_prompt_starts_over(answering: Any, talk: Any) -> None:
    asked = answering(words("Hello."))

    conversation, _ = talk("Hi", "/system Be kind.", "Two\nlines", "/clear", "/set system Be brief.")

    assert asked[0]["messages"] == [{"role": "user", "content": "Hi"}]
    assert asked[1]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Two\nlines"},
    ]
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_parameters_are_set_shown_and_sent(answering: Any, talk: Any) -> None:
    asked = answering(words("Hello."))

    _, told = talk(
        "/set temperature 0.5",
        "/set parameter num_ctx 4096",
        "/set seed 7",
        "/set keep_alive 1h",
        "/set format json",
        "/set max_tokens 9",
        "/set seed",
        "/set temperature 9",
        "/set colour red",
        "/set",
        "Hi",
        "/stats",
    )

    (body,) = asked
    sent = {
        name: value for name, value in body.items() if name not in ("model", "messages", "stream_options")
    }
    assert sent == {
        "stream": True,
        "temperature": 0.5,
        "num_ctx": 4096,
        "keep_alive": "3600s",
        "response_format": {"type": "json_object"},
        "max_tokens": 9,
    }
    assert "Error: temperature is not changed: it must be from 0 to 2." in told
    assert "There is no parameter colour. There are: temperature, seed," in told
    assert "seed: default" in told
    assert "1 tokens in " in told


def test_a_chat_is_saved_and_gone_on_with(answering: Any, talk: Any, home: Path) -> None:
    asked = answering(words("Hello."))
    talk("/set seed 3", "Hi", "/save mine")
    assert stat.S_IMODE((home / "chats/mine.json").stat().st_mode) == 0o600

    conversation, told = talk("/load mine", "More", "/load", "/load other", "Again")

    assert "Chatting with smollm2; 2 messages so far." in told
    assert "Saved chats: mine" in told
    assert [one["content"] for one in asked[1]["messages"]] == ["Hi", "Hello.", "More"]
    assert asked[1]["seed"] == 3
    assert (asked[2]["model"], said(asked)[2]) == ("other", "Again")
    assert conversation.model == "other"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"model": 1}', '{"model": "m", "options": {"x": 1}, "messages": []}']
)
def test_a_file_that_is_no_chat_is_refused_and_the_chat_stays(
    answering: Any, talk: Any, tmp_path: Path, text: str
) -> None:
    answering(words("Hello."))
    (tmp_path / "it.json").write_text(text)

    conversation, told = talk("Hi", f"/load {tmp_path}/it.json")

    assert "it.json is not a saved chat." in told
    assert len(conversation.messages) == 2


def test_a_full_context_drops_the_oldest_turns_and_says_so(answering: Any, talk: Any) -> None:
    long = "x" * 1000
    asked = answering(*[words("Yes.")] * 3, too_long(300, 256), words("Yes."))

    _, told = talk(*(f"{number}{long}" for number in range(4)), "/show")

    assert [one["content"][:1] for one in asked[3]["messages"] if one["role"] == "user"] == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert [one["content"][:1] for one in asked[4]["messages"] if one["role"] == "user"] == ["2", "3"]
    assert "(The context is full: the oldest 4 messages of this chat are no longer sent." in told
    assert "/set context N" in told
    assert "messages: 4 " in told


def test_a_message_that_is_too_long_alone_is_refused_with_the_advice(answering: Any, talk: Any) -> None:
    answering(too_long(300, 256))

    conversation, told = talk("x" * 1000)

    assert "Error: The prompt is too long. Shorten it." in told
    assert conversation.messages == []


def test_an_answer_that_fills_the_context_makes_room_for_the_next(answering: Any, talk: Any) -> None:
    answering(words("Yes."), words("No", "and", finish="length", tokens=254))

    conversation, told = talk("x" * 500, "y" * 500)

    assert "cut off: the context is full" in told
    assert "the oldest 2 messages" in told
    assert len(conversation.messages) == 2


def test_what_fails_does_not_end_the_chat(answering: Any, talk: Any, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\0\1")
    asked = answering((503, {"error": {"message": "Busy.", "code": "busy"}}), words("Hello."))

    _, told = talk("Hi", f"Look at @{tmp_path}/binary", "/sett", "/usr/bin is a path", "Hi")

    assert "Error: Busy." in told
    assert "binary is neither text in UTF-8 nor an image." in told
    assert "There is no command /sett. Did you mean /set?" in told
    assert said(asked) == ["Hi", "/usr/bin is a path", "Hi"]


def test_the_history_is_bounded_and_keeps_its_latest_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_editor, "MOST_BYTES", 1000)
    monkeypatch.setattr(line_editor, "KEPT_BYTES", 500)
    path = tmp_path / "history"
    path.write_text("".join(f"\n# 2026-01-01 00:00:00\n+entry {number}\n" for number in range(100)))
    path.chmod(0o644)

    line_editor.prepare_history(path)

    text = path.read_text()
    assert len(text) <= 500
    assert text.startswith("\n# 2026")
    assert text.endswith("+entry 99\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
