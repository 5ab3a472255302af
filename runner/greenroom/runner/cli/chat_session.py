"""A conversation with a model: what was said, how it is to be answered, and the answers as they come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from greenroom.runner.cli.display import Display, display
from greenroom.runner.cli.jobs import Watch, install, pull
from greenroom.runner.client.calls import Piece, TextCall
from greenroom.runner.client.errors import GreenroomError, RequestRefused
from greenroom.runner.client.http_client import HttpClient, path_of
from greenroom.runner.client.results import JobProgress, TextResult

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


def pace(answer: TextResult) -> float:
    """Tokens a second, from the first one on."""
    return answer.answer_tokens / max(answer.seconds - answer.first_token_after, 1e-3)


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
        self.reply: TextResult | None = None
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
        began = time.monotonic()

        def tell(progress: JobProgress) -> None:
            if told := _told(progress.message, time.monotonic() - began):
                self._say(told)

        call = TextCall(self._path, {"model": self.model, "messages": said, **self.options.fields}, tell)
        call.url = self._client.url
        try:
            with self._client.open(call.method, call.path, call.body, accept=call.accept) as answer:
                for line in answer.lines():
                    yield from call.pieces(line)
            call.finish()
        finally:
            self.reply = reply = call.so_far()
            if reply.text or reply.finish:
                self.messages = [*said, {"role": "assistant", "content": reply.text}]

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
