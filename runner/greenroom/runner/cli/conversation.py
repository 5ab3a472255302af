"""A conversation with a model: what was said, how it is to be answered, and the answers as they come."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from greenroom.runner.cli.display import Display, display
from greenroom.runner.cli.jobs import Watch, install, pull
from greenroom.runner.client.errors import GreenroomError, RequestRefused, Unreachable
from greenroom.runner.client.http_client import HttpClient, path_of

_READING = re.compile(r"keepalive (?P<read>\d+)/(?P<all>\d+)")
_MEANT = re.compile(r"Did you mean [^?]*\?")
PATIENCE = 2.0
"""Seconds before the progress of reading the prompt is shown."""

CONTEXT = 2**27
"""The largest that can be asked for; the daemon takes what the model was trained for instead."""
Message = dict[str, Any]
"""As in OpenAI's API: `role` and `content`."""


@dataclass(frozen=True)
class Options:
    """How answers are to be; what is None is left to the model and the daemon."""

    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    keep_alive: str | None = None
    """A duration as the API takes it."""
    context: int | None = None
    """Tokens that the conversation may fill at least."""
    response_format: dict[str, Any] | None = None

    @property
    def loading(self) -> dict[str, Any]:
        """The fields that decide how the model is loaded."""
        fields = {"keep_alive": self.keep_alive, "num_ctx": self.context}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a request."""
        fields = {
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "response_format": self.response_format,
        }
        return {name: value for name, value in fields.items() if value is not None} | self.loading


@dataclass(frozen=True)
class Piece:
    """A part of an answer, in the order in which it arrives."""

    text: str = ""
    reasoning: str = ""


@dataclass
class Usage:
    """What an answer cost."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_token_after: float = 0.0
    seconds: float = 0.0

    @property
    def pace(self) -> float:
        """Tokens a second, from the first one on."""
        return self.answer_tokens / max(self.seconds - self.first_token_after, 1e-3)


@dataclass
class AnswerSoFar:
    """An answer, as far as it has come."""

    text: str = ""
    reasoning: str = ""
    finish: str = ""
    """`stop`, `length`; empty until it has ended in order."""
    usage: Usage = field(default_factory=Usage)


class Conversation:
    """What was said so far, and the model it is said to."""

    def __init__(
        self,
        client: HttpClient,
        model: str,
        *,
        say: Callable[[str], None],
        backend: str = "",
        system: str = "",
        options: Options | None = None,
        may_install: bool = True,
        token: str = "",
        before_pull: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`say` receives progress messages; `backend`, unless empty, is the only one that may serve.

        `before_pull` raises GreenroomError for a model that is not to be pulled without being asked for.
        """
        self.model = model
        self.options = options or Options()
        self._client = client
        self._say = say
        self._path = path_of("engines", backend, "v1/chat/completions") if backend else "/v1/chat/completions"
        self._may_install = may_install
        self._token = token
        self._before_pull = before_pull
        self.messages: list[Message] = []
        self.reply: AnswerSoFar | None = None
        """The last answer, whole or not."""
        self.system(system)

    def system(self, text: str) -> None:
        """Start over with this system prompt; empty means none."""
        self.messages = [{"role": "system", "content": text}] if text else []

    @property
    def system_prompt(self) -> str:
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else ""

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.system(self.system_prompt)

    def change(self, **options: Any) -> None:
        """Change how answers are to be."""
        self.options = replace(self.options, **options)

    def drop_oldest(self) -> bool:
        """Forget the oldest question with its answer; False if there is none but the last."""
        begin = 1 if self.system_prompt else 0
        turns = [at for at, one in enumerate(self.messages) if at >= begin and one["role"] == "user"]
        if not turns:
            return False
        end = turns[1] if len(turns) > 1 else len(self.messages)
        del self.messages[begin:end]
        return True

    def prepare(self) -> None:
        """Have the model loaded: fetch it and install its backend if need be, visibly.

        Raises:
            GreenroomError: it cannot be, or may not be.
        """
        with display() as shown, Watch(self._client, shown) as watch:
            done: set[str] = set()
            while True:
                try:
                    self._preload()
                except RequestRefused as refused:
                    self._remedy(refused, done, shown, watch)
                else:
                    return

    def _remedy(self, refused: RequestRefused, done: set[str], shown: Display, watch: Watch) -> None:
        """Do what a refusal asks for, once; raise it again when that is not for us to do."""
        backend = str(refused.fields.get("backend") or "")
        if refused.code == "model_not_found" and "model" not in done:
            done.add("model")
            self._before_pull(self.model)
            meant = _MEANT.search(str(refused))
            shown.note(f"{self.model} is not in the store; pulling it.{f' {meant[0]}' if meant else ''}")
            shown.note(pull(self._client, self.model, token=self._token, shown=shown))
        elif refused.code == "backend_not_installed" and backend not in done | {""} and self._may_install:
            done.add(backend)
            watch.own.add(f"install/{backend}")
            installed = install(self._client, backend, announce=shown.note, shown=shown)
            shown.note(installed.message)
        else:
            raise refused

    def ask(self, content: str | list[dict[str, Any]]) -> Generator[Piece]:
        """Say something and yield the answer as it comes.

        What has come is remembered, even if the answer does not end in order; nothing is if none has come.
        Closing the iterator ends the generation. Raises GreenroomError when it breaks off.
        """
        said = [*self.messages, {"role": "user", "content": content}]
        body: dict[str, Any] = {"model": self.model, "messages": said, "stream": True}
        body |= {"stream_options": {"include_usage": True}, **self.options.fields}
        reply = self.reply = AnswerSoFar()
        began = time.monotonic()
        try:
            with self._client.open("POST", self._path, body, accept="text/event-stream") as answer:
                for event in self._events(answer.lines()):
                    counted = event.get("usage") or {}
                    usage = reply.usage
                    usage.prompt_tokens = int(counted.get("prompt_tokens") or usage.prompt_tokens)
                    usage.answer_tokens = int(counted.get("completion_tokens") or usage.answer_tokens)
                    for choice in event.get("choices") or ():
                        reply.finish = str(choice.get("finish_reason") or reply.finish)
                    for piece in _pieces(event):
                        if not usage.first_token_after:
                            usage.first_token_after = time.monotonic() - began
                        reply.text += piece.text
                        reply.reasoning += piece.reasoning
                        yield piece
            reply.finish = reply.finish or "stop"
        finally:
            reply.usage.seconds = time.monotonic() - began
            if reply.text or reply.finish:
                self.messages = [*said, {"role": "assistant", "content": reply.text}]

    def _events(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        """The stream's objects; its comments go to `say`, and an error in it is raised."""
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
                raise RequestRefused(
                    400,
                    fields,
                    str(fields.get("message") or "The answer was interrupted."),
                    str(fields.get("advice") or ""),
                )
            yield event
        raise Unreachable(self._client.url, "closed the connection in the middle of its answer")

    def _preload(self) -> None:
        """Ask for the model without a prompt: the answer comes when its engine is ready."""
        body = {"model": self.model, "messages": [], "stream": False, **self.options.loading}
        with self._client.open("POST", self._path, body, headers={"X-Preload-Only": "true"}) as answer:
            answer.read()


def overflows(problem: GreenroomError) -> bool:
    """Whether the daemon refused a conversation because it is longer than the context."""
    return isinstance(problem, RequestRefused) and problem.code == "context_length_exceeded"


def _told(comment: str, after: float) -> str:
    """The message for a stream's comment, `after` seconds into the stream; empty if it is not worth showing.

    mlx-lm's server comments `keepalive READ/ALL` while it reads the prompt (`mlx_lm/server.py`).
    """
    reading = _READING.fullmatch(comment)
    if reading is None:
        return comment
    if after < PATIENCE or reading["read"] == reading["all"]:
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
