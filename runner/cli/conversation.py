"""A conversation with one model: make it ready, send what was said, yield what it answers."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Client, Gone, Refused, path_of
from greenroom.runner.cli.display import Display, display
from greenroom.runner.cli.jobs import install, pull
from greenroom.runner.cli.problem import Problem

_LOOK_EVERY = 0.15
"""Seconds between two looks at the daemon's jobs while we wait for a model."""
_QUIET = 0.3
"""Seconds of waiting about which nothing is said."""


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
        self._model = anchored(model)
        self._shown = model
        self._say = say
        self._path = path_of("engines", backend, "v1/chat/completions") if backend else "/v1/chat/completions"
        self._max_tokens = max_tokens
        self._may_install = may_install
        self._token = token
        self.messages: list[dict[str, str]] = []
        self.usage = Usage()
        self.system(system)

    def system(self, text: str) -> None:
        """Begin anew with this instruction; empty means none."""
        self.messages = [{"role": "system", "content": text}] if text else []

    def prepare(self) -> None:
        """Have the model loaded: fetch it and install its backend if need be, visibly.

        Raises:
            Problem: it cannot be, or may not be.
        """
        done: set[str] = set()
        while True:
            try:
                self._preload()
            except Refused as refused:
                backend = str(refused.fields.get("backend") or "")
                if refused.code == "model_not_found" and "model" not in done:
                    done.add("model")
                    self._say(f"{self._shown} is not here yet; fetching it.")
                    self._say(pull(self._client, self._model, token=self._token))
                elif refused.code == "backend_not_installed" and backend and backend not in done:
                    done.add(backend)
                    if not self._may_install:
                        raise
                    installed = install(self._client, backend, announce=self._say)
                    self._say(installed.message)
                else:
                    raise
            else:
                return

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
        self.usage = Usage()
        with self._client.open("POST", self._path, body, accept="text/event-stream") as answer:
            for event in self._events(answer.lines()):
                usage = event.get("usage") or {}
                self.usage.prompt_tokens = int(usage.get("prompt_tokens") or self.usage.prompt_tokens)
                self.usage.answer_tokens = int(usage.get("completion_tokens") or self.usage.answer_tokens)
                for piece in _pieces(event):
                    if not self.usage.first_token_after:
                        self.usage.first_token_after = time.monotonic() - began
                    whole.append(piece.text)
                    yield piece
        self.usage.seconds = time.monotonic() - began
        self.messages = [*said, {"role": "assistant", "content": "".join(whole)}]

    def _events(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        """The stream's objects; its comments are told, an error in it is raised."""
        for line in lines:
            if line.startswith(":"):
                if comment := line[1:].strip():
                    self._say(comment)
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
        """Ask for the model without a prompt, and show what the daemon does about it meanwhile."""
        problems: list[Problem] = []
        over = threading.Event()

        def ask() -> None:
            try:
                with self._client.open(
                    "POST",
                    self._path,
                    {"model": self._model, "messages": [], "stream": False},
                    headers={"X-Preload-Only": "true"},
                ) as answer:
                    answer.read()
            except Problem as problem:
                problems.append(problem)
            finally:
                over.set()

        # A daemon thread: on Ctrl-C the process ends, and with it the connection and the request.
        threading.Thread(target=ask, daemon=True).start()
        if not over.wait(_QUIET):
            self._watch(over)
        if problems:
            raise problems[0]

    def _watch(self, over: threading.Event) -> None:
        with display() as shown:
            installing: set[str] = set()
            seen: set[str] = set()
            while not over.wait(_LOOK_EVERY):
                running = self._jobs()
                for name in seen - running.keys():
                    shown.finish(name)
                for name, job in running.items():
                    if name.startswith("install/") and name not in installing:
                        installing.add(name)
                        shown.note(f"Installing {name.removeprefix('install/')} backend...")
                    shown.update({**job, "job": name})
                seen = set(running)
                self._tell_installed(shown, installing - running.keys())
                installing &= running.keys()
            self._tell_installed(shown, installing)

    def _tell_installed(self, shown: Display, ended: set[str]) -> None:
        if not ended:
            return
        with contextlib.suppress(Refused, Gone):
            states = self._client.get("/engines/status")
            for name in (job.removeprefix("install/") for job in ended):
                if str(states.get(name, "")).startswith("Running"):
                    shown.note(f"{name} backend installed successfully")

    def _jobs(self) -> dict[str, dict[str, Any]]:
        """The jobs that waiting requests wait for; ours is among these."""
        try:
            jobs = {str(job["job"]): job for job in self._client.get("/jobs") or ()}
        except (Refused, Gone):
            return {}
        found = {}
        for name, job in jobs.items():
            if name.startswith("request/"):
                # Without a job to follow it waits for its turn, which is worth a line too.
                followed = str(job.get("follows") or name)
                found[followed] = jobs.get(followed, job)
        return found


def anchored(model: str) -> str:
    """A model's name as the daemon understands it: its folder is not ours.

    Raises Problem when the text cannot name a model.
    """
    from greenroom.runner.models.references import BadReference, Reference

    try:
        reference = Reference.parse(model)
    except BadReference as error:
        raise Problem(str(error), code=exit_codes.USAGE) from error
    return str(reference.anchored(Path.cwd(), Path.home())) if reference.scheme == "path" else model


def announce(text: str) -> None:
    """Say something that is not part of the answer."""
    print(text, file=sys.stderr, flush=True)


def _pieces(event: dict[str, Any]) -> Iterator[Piece]:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if reasoning:
            yield Piece(reasoning=str(reasoning))
        if delta.get("content"):
            yield Piece(text=str(delta["content"]))
