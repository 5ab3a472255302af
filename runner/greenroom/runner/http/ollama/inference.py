"""Ollama's inference: its requests as chat completions, and an engine's answers in its form.

A stream is one JSON object a line, and streaming is on unless a request says otherwise. Times are in
nanoseconds: the engine's own where it tells them, as llama.cpp does, else measured here.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.messages import Keep, Unload
from greenroom.actors.values import Mode
from greenroom.runner.http.abilities import RequestTarget
from greenroom.runner.http.admission import Admission
from greenroom.runner.http.bodies import NOT_UNDERSTOOD, invalid, read_body, routing_of, wished_keep_alive
from greenroom.runner.http.context import Context
from greenroom.runner.http.embedding_dimensions import shortened
from greenroom.runner.http.errors import HttpRefusal, error_object
from greenroom.runner.http.fields import Wrong, record
from greenroom.runner.http.inference import Kind, inference
from greenroom.runner.http.ollama.fields import EMBED, EMBEDDINGS, GENERATE, OLLAMA_CHAT
from greenroom.runner.http.port import JSON, AnyResponse, Request, Response
from greenroom.runner.http.sampling import PARAMETER_OF, PARAMETERS, chat_fields, left_out
from greenroom.runner.http.translation import Translation

NDJSON = "application/x-ndjson"

_encode = msgspec.json.Encoder().encode
_value = msgspec.json.Decoder()
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_IMAGES = {"/9j/": "jpeg", "iVBOR": "png", "R0lG": "gif", "UklGR": "webp"}
"""What the base64 of an image begins with."""
_DONE_REASONS = {"length": "length"}
_NOTHING = frozenset({b"null", b"[]", b'""'})


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339, as Go writes a time."""
    moment = time.time() if seconds is None else seconds
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


class _Watch:
    """When a request arrived, reached an engine, and got the first token of its answer."""

    def __init__(self) -> None:
        self.begun = time.perf_counter_ns()
        self.entered = 0
        self.first = 0
        self.usage: Mapping[str, Any] = {}
        self.timings: Mapping[str, Any] = {}
        self.frames = 0
        """Pieces of a streamed answer: the tokens, where the engine does not count them."""

    def note(self, said: Mapping[str, Any]) -> None:
        """Take over what an engine says of tokens and times."""
        self.usage = said.get("usage") or self.usage
        self.timings = said.get("timings") or self.timings

    def metrics(self) -> dict[str, int]:
        """Ollama's figures; what is not known is left out."""
        now = time.perf_counter_ns()
        entered = self.entered or self.begun
        figures = {
            "total_duration": now - self.begun,
            "load_duration": entered - self.begun,
            "prompt_eval_count": int(self.usage.get("prompt_tokens") or 0),
            "prompt_eval_duration": self.first - entered if self.first else 0,
            "eval_count": int(self.usage.get("completion_tokens") or self.frames),
            "eval_duration": now - (self.first or entered),
        }
        for name, key in (("prompt_eval_duration", "prompt_ms"), ("eval_duration", "predicted_ms")):
            told = self.timings.get(key)
            if isinstance(told, int | float) and told > 0:
                figures[name] = int(told * 1e6)
        return {name: value for name, value in figures.items() if value > 0}


class _Ollama(Translation):
    """What all of Ollama's requests have in common."""

    content_type = NDJSON

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._model: str = fields["model"]
        self._options: Mapping[str, Any] = fields.get("options") or {}
        self._watch = _Watch()

    @property
    def context_size(self) -> int:
        return int(self._options.get("num_ctx") or 0)

    @property
    def settled(self) -> Collection[str]:
        return left_out(self._options)

    def entered(self) -> None:
        self._watch.entered = time.perf_counter_ns()

    def begin(self) -> bytes:
        return b""

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return _encode(error_object(refusal, param, "ollama", request_id)) + b"\n"


class _Generating(_Ollama):
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
        asked: dict[str, Any] = {"messages": [*_messages(self._fields["messages"])]}
        return asked | {"tools": tools} if tools else asked

    def _said(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"message": _message(text, thinking, calls)}


class Generate(_Generating):
    """`/api/generate`, with the model's chat template."""

    names: ClassVar = {**_Generating.names, "messages": "images"}

    def _asked(self) -> dict[str, Any]:
        fields = self._fields
        question = {"role": "user", "content": fields["prompt"], "images": fields.get("images")}
        system = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
        return {"messages": [*_messages([*system, question])]}

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


class Embed(_Ollama):
    """`/api/embed`. It has no streams."""

    answers = "data"

    @property
    def ignored(self) -> Sequence[str]:
        return [f"options.{name}" for name in self._options if name in PARAMETERS and name != "num_ctx"]

    @property
    def cuts(self) -> bool:
        return bool(self._fields.get("truncate", True))

    @property
    def chat(self) -> dict[str, Any]:
        return {"model": self._model, "input": self._input(), "encoding_format": "float"}

    def _input(self) -> Any:
        return self._fields["input"]

    def event(self, chunk: Mapping[str, Any]) -> bytes:  # noqa: ARG002 - there is none
        return b""

    def end(self) -> bytes:
        return b""

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        self._watch.note(completion)
        figures = self._watch.metrics()
        told = ("total_duration", "load_duration", "prompt_eval_count")
        return _encode(
            {
                "model": self._model,
                "embeddings": self._vectors(completion),
                **{name: figures[name] for name in told if name in figures},
            }
        )

    def _vectors(self, completion: Mapping[str, Any]) -> list[list[float]]:
        most = self._fields.get("dimensions")
        rows = sorted(completion["data"], key=lambda one: one.get("index", 0))
        return [shortened(one["embedding"], most) if most else one["embedding"] for one in rows]


class Embedding(Embed):
    """`/api/embeddings`, the older form: one prompt, one vector."""

    def _input(self) -> Any:
        return self._fields["prompt"]

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        return _encode({"embedding": self._vectors(completion)[0]})


def _words_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """What a message or a piece of one says, and what the model thought."""
    text = message.get("content") or message.get("text") or ""
    return text, message.get("reasoning_content") or message.get("reasoning") or ""


def _message(text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _messages(given: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The messages as OpenAI has them, where each call of a tool has an id and each result names it."""
    open_calls: list[tuple[str, str]] = []
    made = 0
    for one in given:
        message: dict[str, Any] = {"role": one["role"], "content": _content(one)}
        if thinking := one.get("thinking"):
            message["reasoning_content"] = thinking
        calls = []
        for call in one.get("tool_calls") or ():
            made += 1
            function = call["function"]
            known_as = call.get("id") or f"call_{made}"
            open_calls.append((known_as, function["name"]))
            arguments = _encode(function.get("arguments") or {}).decode()
            calls.append(
                {
                    "id": known_as,
                    "type": "function",
                    "function": {"name": function["name"], "arguments": arguments},
                }
            )
        if calls:
            message["tool_calls"] = calls
        if one["role"] == "tool":
            message["tool_call_id"] = one.get("tool_call_id") or _answered(open_calls, one.get("tool_name"))
        yield message


def _answered(open_calls: list[tuple[str, str]], name: str | None) -> str:
    """The id of the first call that has no result yet, of this tool where it is named."""
    found = next((one for one in open_calls if name in (None, "", one[1])), None)
    if found is None:
        return "call_0"
    open_calls.remove(found)
    return found[0]


def _content(message: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    text = message.get("content") or ""
    images = message.get("images")
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": _url(image)}} for image in images]


def _url(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for start, kind in _IMAGES.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{image}"


_STREAMS_END = b"data: [DONE]"


class OllamaInference:
    """The routes. A request without a prompt only loads the model, or unloads it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        chat, complete, embed = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
        self._chat = inference(
            context, Kind("completion", chat, OLLAMA_CHAT, "ollama", end=_STREAMS_END, translate=Chat)
        )
        self._generate = inference(
            context,
            Kind("completion", chat, GENERATE, "ollama", "prompt", end=_STREAMS_END, translate=Generate),
        )
        self._complete = inference(
            context,
            Kind("completion", complete, GENERATE, "ollama", "prompt", end=_STREAMS_END, translate=Raw),
        )
        self._embed = inference(context, Kind("embedding", embed, EMBED, "ollama", "input", translate=Embed))
        self._embedding = inference(
            context, Kind("embedding", embed, EMBEDDINGS, "ollama", "prompt", translate=Embedding)
        )

    async def chat(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if _is_nothing(fields, "messages"):
            said = {"message": _message("", "", ())}
            return await self._only_load(request, "completion", said, fields)
        return await self._chat(request)

    async def generate(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if _is_nothing(fields, "prompt"):
            return await self._only_load(request, "completion", {"response": ""}, fields)
        raw = bytes(fields.get("raw", b"")) == b"true"
        return await (self._complete if raw else self._generate)(request)

    async def embed(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if _is_nothing(fields, "input"):
            return await self._only_load(request, "embedding", {"embeddings": []}, fields)
        return await self._embed(request)

    async def embeddings(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if _is_nothing(fields, "prompt"):
            return await self._only_load(request, "embedding", {"embedding": []}, fields)
        return await self._embedding(request)

    async def _glance(self, request: Request) -> Mapping[str, msgspec.Raw]:
        """The fields of the body, which is kept with the request; none where it is no object."""
        body = request.known_body = await read_body(request, self._context.greenroom.settings.max_body)
        try:
            return _raw_fields.decode(body)
        except NOT_UNDERSTOOD:
            return {"": msgspec.Raw(b"")}  # what is wrong with it is found when it is checked

    async def _only_load(
        self, request: Request, mode: Mode, said: Mapping[str, Any], fields: Mapping[str, msgspec.Raw]
    ) -> AnyResponse:
        return await self._context.clients.attend(request, lambda: self._loaded(request, mode, said, fields))

    async def _loaded(
        self, request: Request, mode: Mode, said: Mapping[str, Any], fields: Mapping[str, msgspec.Raw]
    ) -> Response:
        """Load the model, or with a keep-alive of 0 unload it, and say so."""
        context = self._context
        routing = routing_of(request.known_body or b"")
        request.note.asked = routing.model
        model = request.note.model = context.model(routing.model)
        keep_alive = wished_keep_alive(routing)
        begun = time.perf_counter_ns()
        if keep_alive == 0:
            system = context.greenroom.system
            # What is in use ends after its last request.
            system.tell(Keep(model_id=model.id, mode=mode, keep_alive=0.0), cause=request.id)
            await system.ask(Unload(model_ids=(model.id,)), cause=request.id)
        else:
            wished = _context_of(fields)
            wished = min(wished, model.context_length or wished)
            await context.abilities.look(model, mode, "", {}, RequestTarget("", routing.model), wished)
            admission = Admission(
                context.greenroom,
                context.ids,
                context.sent_requests,
                model,
                routing.model,
                mode,
                caller=context.callers.at_once(request),
                look_up=lambda: context.callers.looked_up(request),
                first_id=request.id,
                keep_alive=keep_alive,
                context_size=wished,
                note=request.note,
            )
            try:
                await admission.enter()
            finally:
                request.note.caller = admission.caller
                admission.leave()
        answer = {
            "model": routing.model,
            "created_at": timestamp(),
            **said,
            "done": True,
            "done_reason": "unload" if keep_alive == 0 else "load",
            "total_duration": time.perf_counter_ns() - begun,
        }
        return Response(_encode(answer), content_type=f"{JSON}; charset=utf-8")


def _context_of(fields: Mapping[str, msgspec.Raw]) -> int:
    """`options.num_ctx` of a request that is not checked further. Raises HttpRefusal: 400."""
    try:
        options = _value.decode(fields.get("options", b"null"))
        wished = (record(PARAMETERS)(options, "options") if options is not None else {}).get("num_ctx", 0)
    except Wrong as wrong:
        raise HttpRefusal(400, wrong.code, str(wrong), param=wrong.where) from None
    except NOT_UNDERSTOOD:
        raise invalid("options is nested too deeply", param="options") from None
    return int(wished)


def _is_nothing(fields: Mapping[str, msgspec.Raw], name: str) -> bool:
    """Whether the request has nothing that a model could answer."""
    return "" not in fields and bytes(fields.get(name, b"null")).replace(b" ", b"") in _NOTHING
