"""OpenAI's Responses API over chat completions: one request and its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import error_object, status_of
from greenroom.runner.http.port import EVENT_STREAM
from greenroom.runner.http.responses.fields import LOGPROBS, PASSED_ON, functions_of
from greenroom.runner.http.responses.input import Item, messages_of, new_id
from greenroom.runner.http.responses.output import OpenCall, OpenItem, OpenMessage, OpenReasoning
from greenroom.runner.http.translation import Translation

_encode = msgspec.json.Encoder().encode

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
_FUNCTION = ("name", "description", "parameters", "strict")


class ResponseTranslation(Translation):
    """Makes a chat of a request, and a response with its items of the chat's answer."""

    content_type = EVENT_STREAM
    names: ClassVar = {
        "messages": "input",
        "response_format": "text.format",
        "max_tokens": "max_output_tokens",
        "logprobs": "top_logprobs",
        "reasoning_effort": "reasoning.effort",
        "tools[].function.strict": "tools[].strict",
    }

    def __init__(
        self,
        fields: Mapping[str, Any],
        items: Iterable[Item],
        *,
        store: bool = False,
        keep: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """`items` are all that the model is to read, those of earlier responses first.

        `keep` gets the response when it has ended, however it has.
        """
        self._fields = fields
        self._messages = messages_of(fields.get("instructions", ""), items)
        self._functions = functions_of(dict(fields))
        self._summed = bool((fields.get("reasoning") or {}).get("summary"))
        self._keep = keep
        self._usage: dict[str, Any] | None = None
        self._finish = ""
        self._thoughts = 0
        """Chunks with reasoning: about as many tokens."""
        self._number = 0
        self._open: OpenItem | None = None
        self._call_index: int | None = None
        """The engine's index of the call that is open."""
        self._response = self._new(store)

    @property
    def response(self) -> dict[str, Any]:
        """As far as it is made."""
        return self._response

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields of the request that have no effect."""
        fields = self._fields
        tools = [
            f"tools[{index}] ({one['type'][:40]})"
            for index, one in enumerate(fields.get("tools") or ())
            if one["type"] != "function"
        ]
        include = [f"include ({one[:40]})" for one in fields.get("include") or () if one != LOGPROBS]
        cut = ["truncation"] if fields.get("truncation") == "auto" else []
        return (*tools, *include, *cut)

    @property
    def chat(self) -> dict[str, Any]:
        fields = self._fields
        stream = bool(fields.get("stream"))
        chat: dict[str, Any] = {"model": fields["model"], "messages": self._messages, "stream": stream}
        if stream:
            chat["stream_options"] = {"include_usage": True}
        chat |= {name: fields[name] for name in ("temperature", "top_p", *PASSED_ON) if name in fields}
        if "max_output_tokens" in fields:
            chat["max_tokens"] = fields["max_output_tokens"]
        if self._functions:
            chat["tools"] = [
                {"type": "function", "function": {name: one[name] for name in _FUNCTION if name in one}}
                for one in self._functions
            ]
            if (choice := _choice(fields.get("tool_choice", "auto"))) != "auto":
                chat["tool_choice"] = choice
            if "parallel_tool_calls" in fields:
                chat["parallel_tool_calls"] = fields["parallel_tool_calls"]
        if (form := _response_format(fields)) is not None:
            chat["response_format"] = form
        if fields.get("top_logprobs") or LOGPROBS in (fields.get("include") or ()):
            chat |= {"logprobs": True, "top_logprobs": fields.get("top_logprobs", 0)}
        if effort := (fields.get("reasoning") or {}).get("effort"):
            chat["reasoning_effort"] = effort
            thinks = {"enable_thinking": False} if effort in ("none", "minimal") else {}
            given = fields.get("chat_template_kwargs") or {}
            chat["chat_template_kwargs"] = {"reasoning_effort": effort, **thinks, **given}
        return chat

    # a stream

    def begin(self) -> bytes:
        whole = {"response": self._response}
        return self._event("response.created", whole) + self._event("response.in_progress", whole)

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        if usage := chunk.get("usage"):
            self._usage = usage
        pieces: list[bytes] = []
        for choice in chunk.get("choices") or ():
            self._finish = choice.get("finish_reason") or self._finish
            delta = choice.get("delta") or {}
            if thoughts := delta.get("reasoning_content") or delta.get("reasoning"):
                self._thoughts += 1
                pieces += self._add(OpenReasoning, thoughts)
            if text := delta.get("content") or delta.get("refusal"):
                pieces += self._add(OpenMessage, text, logprobs=_logprobs(choice))
            for call in delta.get("tool_calls") or ():
                pieces += self._add_call(call)
        return b"".join(pieces)

    def end(self) -> bytes:
        pieces = self._all_said()
        name = self._finished()
        return b"".join((*pieces, self._event(name, {"response": self._response})))

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        pieces = [self.opening(), *self._close("incomplete")]
        told = error_object(refusal, param)["error"]
        named = {"code": told["code"], "message": told["message"], "param": param}
        # The SDKs raise this one; Codex and others wait for the response to have failed.
        pieces.append(self._event("error", {**named, "error": {**told, "request_id": request_id}}))
        self._response |= {"status": "failed", "error": {"code": _code(refusal), "message": told["message"]}}
        pieces.append(self._event("response.failed", {"response": self._response}))
        self._kept()
        return b"".join(pieces)

    # without a stream

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        self._usage = completion.get("usage")
        choice = completion["choices"][0]
        self._finish = choice.get("finish_reason") or ""
        message = choice.get("message") or {}
        if thoughts := message.get("reasoning_content") or message.get("reasoning"):
            self._add(OpenReasoning, thoughts)
        if text := message.get("content") or message.get("refusal"):
            self._add(OpenMessage, text, logprobs=_logprobs(choice))
        for index, call in enumerate(message.get("tool_calls") or ()):
            self._add_call({"index": index, **call})
        self._all_said()
        self._finished()
        return _encode(self._response)

    # items

    def _add(self, kind: type[OpenItem], text: str, **more: Any) -> list[bytes]:
        """A further piece of text, which belongs to an item of this kind."""
        pieces = []
        if not isinstance(self._open, kind):
            pieces = self._opened(kind(len(self._output), self._summed))
        assert self._open is not None
        return [*pieces, self._event(*self._open.add(text, **more))]

    def _add_call(self, call: Mapping[str, Any]) -> list[bytes]:
        index, function = call.get("index") or 0, call.get("function") or {}
        pieces = []
        if not isinstance(self._open, OpenCall) or self._call_index != index:
            item = OpenCall(len(self._output))
            item.item |= {"call_id": call.get("id") or new_id("call"), "name": function.get("name") or ""}
            pieces = self._opened(item)
            self._call_index = index
        if arguments := function.get("arguments"):
            text = arguments if isinstance(arguments, str) else _encode(arguments).decode()
            pieces += self._add(OpenCall, text)
        return pieces

    def _opened(self, item: OpenItem) -> list[bytes]:
        pieces = self._close()
        self._open = item
        self._output.append(item.item)
        return [*pieces, *(self._event(*each) for each in item.begin())]

    def _close(self, status: str = "completed") -> list[bytes]:
        item, self._open = self._open, None
        return [] if item is None else [self._event(*each) for each in item.end(status)]

    def _all_said(self) -> list[bytes]:
        """Close the last item, which is not complete if the answer was cut off in it.

        An answer without any gets an empty message: clients look for the first.
        """
        pieces = [] if self._output else self._opened(OpenMessage(0))
        return [*pieces, *self._close("incomplete" if self._finish in _REASONS else "completed")]

    # the response

    @property
    def _output(self) -> list[Item]:
        output: list[Item] = self._response["output"]
        return output

    def _new(self, store: bool) -> dict[str, Any]:
        fields = self._fields
        text = fields.get("text") or {}
        reasoning = fields.get("reasoning") or {}
        tools = [{"parameters": None, "strict": None, "description": None, **one} for one in self._functions]
        return {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": bool(fields.get("background")),
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.get("instructions"),
            "max_output_tokens": fields.get("max_output_tokens"),
            "max_tool_calls": None,
            "model": fields["model"],
            "output": [],
            "parallel_tool_calls": fields.get("parallel_tool_calls", True),
            "previous_response_id": fields.get("previous_response_id"),
            "prompt_cache_key": fields.get("prompt_cache_key"),
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "safety_identifier": fields.get("safety_identifier"),
            "service_tier": "default",
            "store": store,
            "temperature": fields.get("temperature"),
            "text": {"format": text.get("format") or {"type": "text"}, "verbosity": "medium"},
            "tool_choice": fields.get("tool_choice", "auto"),
            "tools": tools,
            "top_logprobs": fields.get("top_logprobs", 0),
            "top_p": fields.get("top_p"),
            "truncation": "disabled",
            "usage": None,
            "user": fields.get("user"),
            "metadata": fields.get("metadata") or {},
        }

    def _finished(self) -> str:
        """Say in the response how it has ended; the name of the event that says so."""
        response, reason = self._response, _REASONS.get(self._finish)
        response["usage"] = _usage(self._usage, self._thoughts) if self._usage else None
        if reason is not None:
            response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
        else:
            response |= {"status": "completed", "completed_at": int(time.time())}
        self._kept()
        return f"response.{response['status']}"

    def _kept(self) -> None:
        keep, self._keep = self._keep, None
        if keep is not None:
            keep(self._response)

    def _event(self, name: str, fields: Mapping[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        data = _encode({"type": name, "sequence_number": number, **fields})
        return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


class TokenCount(ResponseTranslation):
    """A request whose tokens are only counted."""

    answers = "input_tokens"

    @property
    def chat(self) -> dict[str, Any]:
        return {**super().chat, "stream": False}

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        return _encode({"object": "response.input_tokens", "input_tokens": completion["input_tokens"]})


def _code(refusal: Refusal) -> str:
    """Of those that OpenAI has for failed responses."""
    status = status_of(refusal)
    if refusal.code == "context_length_exceeded" or status == 429:
        return "rate_limit_exceeded" if status == 429 else refusal.code
    return "invalid_prompt" if status < 500 else "server_error"


def _choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if choice["type"] == "allowed_tools":
        return choice.get("mode", "auto")
    return {"type": "function", "function": {"name": choice["name"]}}


def _response_format(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    form = (fields.get("text") or {}).get("format") or {"type": "text"}
    if form["type"] == "text":
        return None
    if form["type"] == "json_object":
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in form.items() if name != "type"},
    }


def _logprobs(choice: Mapping[str, Any]) -> list[Any]:
    content = (choice.get("logprobs") or {}).get("content") or ()
    return [{**one, "top_logprobs": one.get("top_logprobs") or []} for one in content]


def _usage(usage: Mapping[str, Any], thoughts: int) -> dict[str, Any]:
    read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoned = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or thoughts
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": min(reasoned, written)},
        "total_tokens": read + written,
    }
