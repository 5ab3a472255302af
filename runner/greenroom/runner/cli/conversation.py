"""A conversation with one model: make it ready, send what was said, yield what it answers."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from greenroom.runner.cli.client import Client, Gone, Refused, path_of
from greenroom.runner.cli.display import Display, display
from greenroom.runner.cli.jobs import install, pull
from greenroom.runner.cli.problem import Problem
from greenroom.runner.cli.watch import Watch

_READING = re.compile(r"keepalive (?P<read>\d+)/(?P<all>\d+)")
_PATIENCE = 2.0
"""Seconds before a person is told how far the prompt has been read."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer, in the order in which it arrives."""

    text: str = ""
    reasoning: str = ""


@dataclass
class Usage:
    """What the last answer cost."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_token_after: float = 0.0
    seconds: float = 0.0


class Conversation:
    """What was said so far, and the model it is said to."""

    def __init__(
        self,
        client: Client,
        model: str,
        *,
        say: Callable[[str], None],
        backend: str = "",
        system: str = "",
        max_tokens: int | None = None,
        may_install: bool = True,
        token: str = "",
    ) -> None:
        """`say` is told what is going on; `backend`, unless empty, is the only one that may serve."""
        self._client = client
        self._model = model
        self._shown = model
        self._say = say
        self._path = path_of("engines", backend, "v1/chat/completions") if backend else "/v1/chat/completions"
        self._max_tokens = max_tokens
        self._may_install = may_install
        self._token = token
        self.messages: list[dict[str, str]] = []
        self.usage: Usage | None = None
        """Of the last answer; None when it did not end in order."""
        self.cut_off = False
        """Whether the last answer ended for want of tokens."""
        self.system(system)

    def system(self, text: str) -> None:
        """Begin anew with this instruction; empty means none."""
        self.messages = [{"role": "system", "content": text}] if text else []

    def prepare(self) -> None:
        """Have the model loaded: fetch it and install its backend if need be, visibly.

        Raises:
            Problem: it cannot be, or may not be.
        """
        with display() as shown, Watch(self._client, shown) as watch:
            done: set[str] = set()
            while True:
                try:
                    self._preload()
                except Refused as refused:
                    self._mend(refused, done, shown, watch)
                else:
                    return

    def _mend(self, refused: Refused, done: set[str], shown: Display, watch: Watch) -> None:
        """Do what a refusal asks for, once; raise it again when that is not for us to do."""
        backend = str(refused.fields.get("backend") or "")
        if refused.code == "model_not_found" and "model" not in done:
            done.add("model")
            shown.note(f"{self._shown} is not here yet; fetching it.")
            shown.note(pull(self._client, self._model, token=self._token, shown=shown))
        elif refused.code == "backend_not_installed" and backend not in done | {""} and self._may_install:
            done.add(backend)
            watch.own.add(f"install/{backend}")
            installed = install(self._client, backend, announce=shown.note, shown=shown)
            shown.note(installed.message)
        else:
            raise refused

    def ask(self, prompt: str) -> Iterator[Piece]:
        """Say something and yield the answer as it comes; it is remembered if it ends in order.

        Closing the iterator ends the generation. Raises Problem when it breaks off.
        """
        said = [*self.messages, {"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": self._model, "messages": said, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self._max_tokens is not None:
            body["max_tokens"] = self._max_tokens
        whole: list[str] = []
        began = time.monotonic()
        self.usage = None
        self.cut_off = False
        usage = Usage()
        with self._client.open("POST", self._path, body, accept="text/event-stream") as answer:
            for event in self._events(answer.lines()):
                counted = event.get("usage") or {}
                usage.prompt_tokens = int(counted.get("prompt_tokens") or usage.prompt_tokens)
                usage.answer_tokens = int(counted.get("completion_tokens") or usage.answer_tokens)
                if any(choice.get("finish_reason") == "length" for choice in event.get("choices") or ()):
                    self.cut_off = True
                for piece in _pieces(event):
                    if not usage.first_token_after:
                        usage.first_token_after = time.monotonic() - began
                    whole.append(piece.text)
                    yield piece
        usage.seconds = time.monotonic() - began
        self.usage = usage
        self.messages = [*said, {"role": "assistant", "content": "".join(whole)}]

    def _events(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        """The stream's objects; its comments are told, an error in it is raised."""
        began = time.monotonic()
        for line in lines:
            if line.startswith(":"):
                if told := _told(line[1:].strip(), time.monotonic() - began):
                    self._say(told)
                continue
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                continue
            error = event.get("error")
            if error:
                fields = error if isinstance(error, dict) else {"message": str(error)}
                raise Problem(
                    str(fields.get("message") or "The answer broke off."), str(fields.get("advice") or "")
                )
            yield event
        raise Gone(self._client.url, "broke off in the middle of its answer")

    def _preload(self) -> None:
        """Ask for the model without a prompt: the answer comes when its engine is ready."""
        body = {"model": self._model, "messages": [], "stream": False}
        with self._client.open("POST", self._path, body, headers={"X-Preload-Only": "true"}) as answer:
            answer.read()


def announce(text: str) -> None:
    """Say something that is not part of the answer."""
    print(text, file=sys.stderr, flush=True)


def _told(comment: str, after: float) -> str:
    """What a person is told of a stream's comment, `after` seconds into the stream; nothing of the needless.

    mlx-lm's server comments `keepalive READ/ALL` while it reads the prompt (`mlx_lm/server.py`).
    """
    reading = _READING.fullmatch(comment)
    if reading is None:
        return comment
    if after < _PATIENCE or reading["read"] == reading["all"]:
        return ""
    return f"reading the prompt: {reading['read']} of {reading['all']} tokens"


def _pieces(event: dict[str, Any]) -> Iterator[Piece]:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if reasoning:
            yield Piece(reasoning=str(reasoning))
        if delta.get("content"):
            yield Piece(text=str(delta["content"]))
