"""Ollama's chats and completions as chat completions, and an engine's answers in its form.

A stream is one JSON object a line, and streaming is on unless a request says otherwise.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.ollama.answer import OllamaTranslation, timestamp
from greenroom.runner.http.ollama.input import messages_of
from greenroom.runner.http.sampling import PARAMETER_OF, chat_fields

_encode = msgspec.json.Encoder().encode

_DONE_REASONS = {"length": "length"}


class _Generating(OllamaTranslation):
    """A chat or a completion."""

    names: ClassVar = {
        **{field: f"options.{name}" for field, name in PARAMETER_OF.items()},
        "response_format": "format",
        "reasoning_effort": "think",
    }

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._reason = "stop"
        self._calls: dict[int, tuple[str, list[str]]] = {}
        """Calls of tools that a stream has begun: name, and pieces of the arguments."""

    @property
    def chat(self) -> dict[str, Any]:
        fields = self._fields
        streams = fields.get("stream", True)
        chat: dict[str, Any] = {"model": self._model, "stream": streams, **self._asked()}
        if streams:
            chat["stream_options"] = {"include_usage": True}
        chat |= chat_fields(self._options)
        if form := fields.get("format"):
            chat["response_format"] = (
                {"type": "json_object"}
                if form == "json"
                else {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
            )
        if (think := fields.get("think")) is not None:
            wish: dict[str, Any] = {"enable_thinking": bool(think)}
            if isinstance(think, str):
                wish["reasoning_effort"] = think
            chat["chat_template_kwargs"] = wish
        for name in ("logprobs", "top_logprobs"):
            if fields.get(name):
                chat[name] = fields[name]
        return chat

    @abstractmethod
    def _asked(self) -> dict[str, Any]:
        """What the model is to answer: the fields for an engine."""

    @abstractmethod
    def _said(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A piece of the answer, or all of it."""

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        watch = self._watch
        watch.note(chunk)
        lines = b""
        for choice in chunk.get("choices") or ():
            text, thinking = _words_of(choice.get("delta") or choice)
            if text or thinking:
                watch.first = watch.first or time.perf_counter_ns()
                watch.frames += 1
                lines += self._line(self._said(text, thinking, ()), choice)
            self._add_calls((choice.get("delta") or {}).get("tool_calls") or ())
            if reason := choice.get("finish_reason"):
                self._reason = _DONE_REASONS.get(reason, "stop")
                lines += self._called()
        return lines

    def end(self) -> bytes:
        called = self._called()
        return called + self._object({**self._said("", "", ()), **self._done()}) + b"\n"

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        self._watch.note(completion)
        choice = completion["choices"][0]
        message = choice.get("message") or choice
        text, thinking = _words_of(message)
        calls, rest = _calls_of(
            (call["function"]["name"], call["function"].get("arguments") or "")
            for call in message.get("tool_calls") or ()
        )
        self._reason = _DONE_REASONS.get(choice.get("finish_reason") or "", "stop")
        said = {**self._said(text + rest, thinking, calls), **_logprobs_of(choice), **self._done()}
        return self._object(said)

    def _add_calls(self, deltas: Sequence[Mapping[str, Any]]) -> None:
        for delta in deltas:
            function = delta.get("function") or {}
            number = int(delta.get("index") or 0)
            self._watch.first = self._watch.first or time.perf_counter_ns()
            self._watch.frames += 1
            name, pieces = self._calls.setdefault(number, ("", []))
            pieces.append(function.get("arguments") or "")
            self._calls[number] = name or function.get("name") or "", pieces

    def _called(self) -> bytes:
        """The calls of tools, once they are whole: Ollama sends none in pieces."""
        if not self._calls:
            return b""
        calls, rest = _calls_of((name, "".join(pieces)) for name, pieces in self._calls.values())
        self._calls = {}
        return self._line(self._said(rest, "", calls), {})

    def _line(self, said: Mapping[str, Any], choice: Mapping[str, Any]) -> bytes:
        return self._object({**said, **_logprobs_of(choice), "done": False}) + b"\n"

    def _done(self) -> dict[str, Any]:
        return {"done": True, "done_reason": self._reason, **self._watch.metrics()}

    def _object(self, said: Mapping[str, Any]) -> bytes:
        return _encode({"model": self._model, "created_at": timestamp(), **said})


class Chat(_Generating):
    """`/api/chat`."""

    def _asked(self) -> dict[str, Any]:
        tools = self._fields.get("tools")
        asked: dict[str, Any] = {"messages": [*messages_of(self._fields["messages"])]}
        return asked | {"tools": tools} if tools else asked

    def _said(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"message": message_of(text, thinking, calls)}


class Generate(_Generating):
    """`/api/generate`, with the model's chat template."""

    names: ClassVar = {**_Generating.names, "messages": "images"}

    def _asked(self) -> dict[str, Any]:
        fields = self._fields
        question = {"role": "user", "content": fields["prompt"], "images": fields.get("images")}
        system = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
        return {"messages": [*messages_of([*system, question])]}

    def _said(
        self,
        text: str,
        thinking: str,
        calls: Sequence[Mapping[str, Any]],  # noqa: ARG002 - it offers no tools
    ) -> dict[str, Any]:
        return {"response": text, "thinking": thinking} if thinking else {"response": text}


class Raw(Generate):
    """`/api/generate` with `raw`: the prompt goes to the model as it is."""

    @property
    def ignored(self) -> Sequence[str]:
        unused = ("system", "think", "logprobs", "top_logprobs")
        return [name for name in unused if self._fields.get(name)]

    @property
    def chat(self) -> dict[str, Any]:
        unused = ("chat_template_kwargs", "logprobs", "top_logprobs")
        return {name: value for name, value in super().chat.items() if name not in unused}

    def _asked(self) -> dict[str, Any]:
        return {"prompt": self._fields["prompt"]}


def _words_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """What a message or a piece of one says, and what the model thought."""
    text = message.get("content") or message.get("text") or ""
    return text, message.get("reasoning_content") or message.get("reasoning") or ""


def message_of(text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def _logprobs_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    found = (choice.get("logprobs") or {}).get("content")
    return {"logprobs": found} if found else {}


def _calls_of(made: Iterator[tuple[str, str]]) -> tuple[list[dict[str, Any]], str]:
    """Calls in Ollama's form, and the text of those whose arguments were cut off."""
    calls: list[dict[str, Any]] = []
    rest = ""
    for name, text in made:
        try:
            arguments = msgspec.json.decode(text.encode() or b"{}", type=dict[str, Any])
        except NOT_UNDERSTOOD:
            rest += f"{name} {text}"
        else:
            calls.append({"function": {"index": len(calls), "name": name, "arguments": arguments}})
    return calls, rest
