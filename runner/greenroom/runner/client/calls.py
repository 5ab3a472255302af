"""What can be asked: each call is one request, and how its answer is read, without moving any bytes.

A `Call` takes the answer line by line. Lines of a stream become steps, such as pieces of text; in the end
there is a result. Wrong arguments are a TypeError or a ValueError before anything is sent.
"""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

import msgspec

from greenroom.runner.client.errors import NOT_UNDERSTOOD, RequestRefused, Unreachable
from greenroom.runner.client.http_client import path_of
from greenroom.runner.client.results import (
    GrantedSlot,
    InstalledBackend,
    JobProgress,
    RunningEngine,
    StoredModel,
    TextResult,
    ToolCall,
    UnloadResult,
    WhyResult,
)

S = TypeVar("S")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Mode = Literal["completion", "embedding", "reranking"]
"""What a model is loaded for."""
Message = Mapping[str, Any]
"""As in OpenAI's API: `role` and `content`."""
OnProgress = Callable[[JobProgress], object]


class TextOptions(TypedDict, total=False):
    """How a text is to be written. What is absent or None is left to the model and its configuration."""

    temperature: float | None
    """0 is steady, 1 varied, 2 the most."""
    top_p: float | None
    seed: int | None
    """The same seed gives the same text again."""
    max_tokens: int | None
    """Tokens that are written at most."""
    stop: str | Sequence[str] | None
    """The text ends before these."""
    keep_alive: str | float | None
    """How long the model stays loaded afterwards: `"30m"` or seconds; negative keeps it indefinitely."""
    num_ctx: int | None
    """Tokens of context that the request needs at least; the model is loaded again if it has fewer."""
    extra: Mapping[str, Any] | None
    """Further fields of the request, as in the HTTP API."""


class ChatOptions(TextOptions, total=False):
    """How a chat is to be answered."""

    system: str
    """The system prompt."""
    tools: Sequence[Mapping[str, Any]] | None
    """As in OpenAI's API."""
    tool_choice: str | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
    """`{"type": "json_object"}`, or a JSON schema as in OpenAI's API."""


class ModelSettings(TypedDict, total=False):
    """How a model is loaded."""

    mode: Mode | None
    """What for: each is configured separately. By default what the model is made for."""
    context_size: int | None
    """Tokens each request may fill; -1 is as many as the model supports."""
    slots: int | None
    """Requests answered at once, each with the whole context."""
    keep_alive: str | None
    """How long it stays loaded after its last request: `"30m"`; `"-1"` is indefinitely."""
    prompt_cache: int | None
    """Bytes of prompts kept after their requests."""
    require_device: bool | None
    """Load it only if all of it lies on graphics devices."""
    runtime_flags: Sequence[str] | None
    """The engine's own flags."""
    reset: Sequence[str]
    """Names of these settings that go back to their defaults."""


_JSON = "application/json"
_EVENTS = "text/event-stream"
_LINES = "application/x-ndjson"
_STATUSES = {"invalid_request_error": 400, "rate_limit_error": 429}
_FAILED = 502
"""The status that a failure in the middle of an answer stands for, by its type, and otherwise."""


class Call(ABC, Generic[S, R]):
    method = "POST"
    path: str
    body: Any = None
    accept = _JSON
    url = ""
    """Where it is sent, for errors."""
    timeout: float | None = None
    """Seconds of silence that are borne; None leaves that to Greenroom's own limits."""

    @abstractmethod
    def take(self, line: str) -> Iterable[S]:
        """The steps in a line of the answer. Raises GreenroomError when it tells of a failure."""

    @abstractmethod
    def finish(self) -> R:
        """The result, once all lines have been taken. Raises GreenroomError when some are missing."""

    def object(self, text: str) -> dict[str, Any]:
        """The JSON object in a line. Raises Unreachable when it is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Unreachable(self.url, f"answered {self.path} with something that is not JSON")
        return value

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What is read here comes from outside: raises Unreachable when it has another form."""
        try:
            yield
        except NOT_UNDERSTOOD as error:
            why = f"answered {self.path} in a form that is not known ({error})"
            raise Unreachable(self.url, why) from error

    def cut(self) -> Unreachable:
        """The answer has ended too early."""
        return Unreachable(self.url, "closed the connection in the middle of its answer")


class JsonCall(Call[str, R]):
    """Answered with one JSON value."""

    def __init__(
        self,
        method: str,
        path: str,
        read: Callable[[Any], R],
        body: Any = None,
        timeout: float | None = 120.0,
    ) -> None:
        self.method, self.path, self.body, self.timeout = method, path, body, timeout
        self._read = read
        self._lines: list[str] = []

    def take(self, line: str) -> Iterable[str]:
        self._lines.append(line)
        return ()

    def finish(self) -> R:
        text = "\n".join(self._lines).strip()
        with self.reading():
            return self._read(json.loads(text) if text else None)


@dataclass(frozen=True)
class Piece:
    """A part of an answer, in the order in which it arrives."""

    text: str = ""
    reasoning: str = ""


class TextCall(Call[str, TextResult]):
    """Answered with text as a model writes it: its steps are the pieces, without the reasoning."""

    accept = _EVENTS

    def __init__(self, path: str, body: Mapping[str, Any], progress: OnProgress | None) -> None:
        self.path = path
        self.body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self._progress = progress
        self._began = time.monotonic()
        self._first = self._ended = 0.0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tools: dict[int, dict[str, str]] = {}
        self._finish = ""
        self._tokens = (0, 0)
        self._whole = False

    def take(self, line: str) -> Iterator[str]:
        return (piece.text for piece in self.pieces(line) if piece.text)

    def pieces(self, line: str) -> Iterator[Piece]:
        """As `take`, with the reasoning."""
        if line.startswith(":"):
            if self._progress is not None and (message := line[1:].strip()):
                self._progress(JobProgress(message=message))
            return
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            self._whole = True
            self._finish = self._finish or "stop"
            self._ended = time.monotonic() - self._began
            return
        event = self.object(data)
        with self.reading():
            if error := event.get("error"):
                raise _failed(error if isinstance(error, Mapping) else {"message": error})
            if counted := event.get("usage"):
                self._tokens = (
                    int(counted.get("prompt_tokens") or 0),
                    int(counted.get("completion_tokens") or 0),
                )
            pieces = [piece for choice in event.get("choices") or () for piece in self._take(choice)]
        yield from pieces

    def _take(self, choice: Mapping[str, Any]) -> Iterator[Piece]:
        self._finish = str(choice.get("finish_reason") or self._finish)
        delta = choice.get("delta") or choice
        text = str(delta.get("content") or delta.get("text") or "")
        reasoning = str(delta.get("reasoning_content") or delta.get("reasoning") or "")
        if (text or reasoning) and not self._first:
            self._first = time.monotonic() - self._began
        if reasoning:
            self._reasoning.append(reasoning)
            yield Piece(reasoning=reasoning)
        for part in delta.get("tool_calls") or ():
            known = self._tools.setdefault(
                int(part.get("index") or 0), {"id": "", "name": "", "arguments": ""}
            )
            function = part.get("function") or {}
            known["id"] = str(part.get("id") or known["id"])
            known["name"] += str(function.get("name") or "")
            known["arguments"] += str(function.get("arguments") or "")
        if text:
            self._text.append(text)
            yield Piece(text=text)

    def so_far(self) -> TextResult:
        """What has come until now."""
        return TextResult(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tool_calls=tuple(ToolCall(**one) for _, one in sorted(self._tools.items())),
            finish=self._finish,
            prompt_tokens=self._tokens[0],
            answer_tokens=self._tokens[1],
            first_token_after=self._first,
            seconds=self._ended or time.monotonic() - self._began,
        )

    def finish(self) -> TextResult:
        if not self._whole:
            raise self.cut()
        return self.so_far()


class JobCall(Call[JobProgress, R]):
    """Answered with the progress of a job, then with what came of it."""

    def __init__(
        self,
        path: str,
        body: Mapping[str, Any],
        accept: str,
        progress: OnProgress | None,
        read: Callable[[Mapping[str, Any]], R],
    ) -> None:
        self.path, self.body, self.accept = path, body, accept
        self._progress = progress
        self._read = read
        self._last: Mapping[str, Any] | None = None

    def take(self, line: str) -> Iterator[JobProgress]:
        if not line.strip():
            return
        event = self.object(line)
        match event.get("type"):
            case "error":
                with self.reading():
                    raise _failed(event)
            case "success":
                self._last = event
            case "progress" | "warning":
                with self.reading():
                    step = _progress(event)
                if self._progress is not None:
                    self._progress(step)
                yield step

    def finish(self) -> R:
        if self._last is None:
            raise self.cut()
        with self.reading():
            return self._read(self._last)


class SlotCall(Call[GrantedSlot, None]):
    """Its one step is the slot, which lasts for as long as the answer is left open."""

    path = "/engines/slots"
    accept = _LINES

    def __init__(self, model: str, mode: Mode, backend: str, wait: float | None) -> None:
        if wait is not None and (isinstance(wait, bool) or not isinstance(wait, int | float)):
            raise TypeError(f"wait must be a number of seconds, or None, not {type(wait).__name__}")
        if wait is not None and not wait > 0:
            raise ValueError(f"wait must be a number of seconds above 0, or None, not {wait}")
        self.body = {"model": _name(model), "mode": mode, "backend": backend, "wait": wait}

    def take(self, line: str) -> Iterator[GrantedSlot]:
        told = self.object(line)
        with self.reading():
            slot = msgspec.convert(told, GrantedSlot)
        yield slot

    def finish(self) -> None: ...


def _failed(fields: Mapping[str, Any]) -> RequestRefused:
    message = str(fields.get("message") or "The answer broke off.").removeprefix("Error: ")
    status = _STATUSES.get(str(fields.get("type")), _FAILED)
    return RequestRefused(status, fields, message, str(fields.get("advice") or ""))


def _progress(event: Mapping[str, Any]) -> JobProgress:
    layer = event.get("layer") or {}
    total = int(event.get("total") or event.get("of") or 0)
    return JobProgress(
        # Of a part of a transfer it says the same as the numbers, in other units.
        message="" if layer else str(event.get("message") or ""),
        phase=str(event.get("phase") or ""),
        done=int(event.get("done") or layer.get("current") or 0),
        total=total,
        rate=float(event.get("rate") or 0.0),
    )


# the calls


def chat(
    model: str,
    messages: str | Sequence[Message],
    backend: str,
    progress: OnProgress | None,
    options: ChatOptions,
) -> TextCall:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else _messages(messages)
    fields = _fields(options, ChatOptions)
    if system := _text(fields.pop("system", ""), "system"):
        said = [{"role": "system", "content": system}, *said]
    body = {"model": _name(model), "messages": said, **fields}
    return TextCall(_under(backend, "chat/completions"), body, _callback(progress))


def complete(
    model: str, prompt: str, backend: str, progress: OnProgress | None, options: TextOptions
) -> TextCall:
    body = {"model": _name(model), "prompt": _text(prompt, "prompt"), **_fields(options, TextOptions)}
    return TextCall(_under(backend, "completions"), body, _callback(progress))


def embed(
    model: str, texts: Sequence[str], backend: str, dimensions: int | None
) -> JsonCall[list[list[float]]]:
    texts = [texts] if isinstance(texts, str) else _texts(texts, "input")
    body: dict[str, Any] = {"model": _name(model), "input": texts}
    body |= {"dimensions": dimensions} if dimensions is not None else {}

    def read(answer: Any) -> list[list[float]]:
        found = sorted(answer["data"], key=lambda one: int(one["index"]))
        return [[float(number) for number in one["embedding"]] for one in found]

    return JsonCall("POST", _under(backend, "embeddings"), read, body, timeout=None)


def pull(reference: str, progress: OnProgress | None, *, force: bool, token: str) -> JobCall[str]:
    body = {"from": _name(reference), "force": truth(force, "force")}
    body |= {"bearer-token": token} if _text(token, "token") else {}
    return JobCall("/models/create", body, _JSON, _callback(progress), lambda last: str(last.get("message")))


def install(
    backend: str, progress: OnProgress | None, *, version: str, variant: str
) -> JobCall[InstalledBackend]:
    given = {
        "backend": _name(backend, "backend"),
        "version": _text(version, "version"),
        "variant": _text(variant, "variant"),
    }

    def read(last: Mapping[str, Any]) -> InstalledBackend:
        fields = {**(last.get("installation") or {}), "already": bool(last.get("already"))}
        return msgspec.convert(fields, InstalledBackend, strict=False)

    body = {name: value for name, value in given.items() if value}
    return JobCall("/engines/install-backend", body, _LINES, _callback(progress), read)


LOOK_EVERY = 0.2
"""Seconds between two queries of a job's progress."""


def progress(name: str) -> JsonCall[JobProgress | None]:
    wanted = _name(name, "name")

    def read(rows: Any) -> JobProgress | None:
        return next((_progress(row) for row in rows or () if _is_called(str(row["job"]), wanted)), None)

    return JsonCall("GET", "/jobs", read)


def _is_called(job: str, name: str) -> bool:
    """Whether a job, such as `pull/docker.io/ai/smollm2:latest`, is that of a model or a backend."""
    what = job.partition("/")[2]
    return name in (job, what) or what.endswith((f"/{name}", f"/{name}:latest"))


def models() -> JsonCall[list[StoredModel]]:
    return JsonCall("GET", "/models", lambda rows: [_model(row) for row in rows or ()])


def model(name: str) -> JsonCall[StoredModel]:
    return JsonCall("GET", path_of("models", _name(name)), _model)


def _model(row: Mapping[str, Any]) -> StoredModel:
    return msgspec.convert({**(row.get("config") or {}), **row}, StoredModel, strict=False)


def ps() -> JsonCall[list[RunningEngine]]:
    return JsonCall("GET", "/engines/ps", lambda rows: msgspec.convert(rows or [], list[RunningEngine]))


def unload(names: Sequence[str], *, force: bool) -> JsonCall[UnloadResult]:
    body: dict[str, Any] = {"models": [_name(one) for one in names]} if names else {"all": True}

    def read(answer: Any) -> UnloadResult:
        if unknown := answer["unknown"]:
            absent = " and ".join(f'"{one}"' for one in unknown)
            fields = {"code": "model_not_found"}
            message = f"{absent} {'is' if len(unknown) == 1 else 'are'} not in the store."
            raise RequestRefused(404, fields, message, "models() lists what is.")
        return msgspec.convert(answer, UnloadResult)

    return JsonCall("POST", "/engines/unload", read, {**body, "force": truth(force, "force")})


def configure(name: str, settings: ModelSettings) -> JsonCall[None]:
    given = _known(settings, ModelSettings)
    given["reset"] = [_dashed(one) for one in _texts(given.get("reset", ()), "reset")]
    if "runtime_flags" in given:
        given["runtime_flags"] = _texts(given["runtime_flags"], "runtime_flags")
    fields = {_dashed(one): value for one, value in given.items()}
    body = {"model": _name(name), "preload": False, **fields}
    return JsonCall("POST", "/engines/_configure", lambda _: None, body)


def _dashed(setting: str) -> str:
    """A setting as the HTTP API spells it."""
    return setting if setting == "keep_alive" else setting.replace("_", "-")


def why(name: str) -> JsonCall[WhyResult]:
    return JsonCall("GET", path_of("why", _name(name)), lambda found: msgspec.convert(found, WhyResult))


# arguments


def _name(name: object, what: str = "model") -> str:
    if not _text(name, what).strip():
        raise ValueError(f"{what} must be a name, not an empty text")
    return str(name)


def _text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} must be text, not {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} has half a character at {error.start}, which is no text") from None
    return text


def truth(value: object, what: str) -> bool:
    """The value of a boolean argument; `"no"` would count as true. Raises TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {type(value).__name__}")
    return value


def _messages(messages: object) -> list[Message]:
    if not isinstance(messages, Sequence) or not all(isinstance(one, Mapping) for one in messages):
        raise TypeError("messages must be text, or a list of dictionaries with role and content")
    if not messages:
        raise ValueError("messages must not be empty")
    return list(messages)


def _callback(progress: OnProgress | None) -> OnProgress | None:
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function, not {type(progress).__name__}")
    return progress


def _texts(texts: Sequence[str], what: str) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"{what} must be a list of texts, not one text")
    return [_text(one, what) for one in texts]


def _fields(options: Mapping[str, Any], known: type) -> dict[str, Any]:
    """The fields of a request that are given; those of `extra` come last."""
    given = _known(options, known)
    extra = given.pop("extra", {})
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra must be a dictionary, not {type(extra).__name__}")
    return {**given, **extra}


_ELSEWHERE = {"n_ctx": "num_ctx", "num_predict": "max_tokens", "n_predict": "max_tokens"}
"""What llama-cpp-python and Ollama call some options, and what they are called here."""


def _known(given: Mapping[str, Any], known: type) -> dict[str, Any]:
    """Without those that are None."""
    for name in given:
        if name not in known.__annotations__:
            meant = _ELSEWHERE.get(name, "")
            hint = f"did you mean {meant}? " if meant in known.__annotations__ else ""
            raise TypeError(
                f"there is no option {name!r}; {hint}there are {', '.join(known.__annotations__)}"
            )
    return {name: value for name, value in given.items() if value is not None}


def _under(backend: str, path: str) -> str:
    return path_of("engines", _text(backend, "backend"), "v1", path) if backend else f"/v1/{path}"
