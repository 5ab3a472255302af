"""What a request says in its body, query and path, read within bounds of size and time.

A body that goes to an engine is checked first, against the fields of its family. The engine gets it byte for
byte, unless something in it had to change.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from greenroom.actors.limits import CONTEXT, Name, complaint
from greenroom.actors.values import Model
from greenroom.runner.backends.base import Dialect
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.fields import Dialogue, Wrong, cleaned, missing, noting
from greenroom.runner.http.go_duration import keep_alive_of
from greenroom.runner.http.port import BodyBroken, Request
from greenroom.runner.models.references import shown
from greenroom.runner.units import format_size

_BODY_TIMEOUT = 120.0
"""Seconds for a whole body: generous for 10 MB on a bad line, and still an end."""

NAMING = 1_000_000
"""Bytes of a body that only names things: what is larger is not worth the time to read it."""

NOT_UNDERSTOOD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding foreign JSON may raise; RecursionError for brackets nested very deep."""

_STEP = 1.0
"""Seconds between two looks; of a longer gap, in which this process was stopped, no more counts than two."""

T = TypeVar("T")
_FIELD = re.compile(r"`\$\.(\w+)")
"""As msgspec names the place of a wrong type."""
_UNKNOWN = re.compile(r"unknown field `(.*?)`", re.DOTALL)
"""As msgspec names what a struct that forbids it does not have."""


class Patience:
    """Like `asyncio.timeout`, but time in which this process was stopped or the machine slept does not count.

    The block raises TimeoutError.
    """

    def __init__(self, seconds: float) -> None:
        self.used = 0.0
        """Seconds that have counted so far."""
        self._seconds = seconds
        self._bound = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._seen = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._bound.__aenter__()
        self._wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._count()
        await self._bound.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._timer = self._loop.call_later(max(0.0, min(_STEP, self._seconds - self.used)), self._look)

    def _look(self) -> None:
        self._count()
        if self.used >= self._seconds:
            self._bound.reschedule(self._loop.time())
        else:
            self._wait()

    def _count(self) -> None:
        now = self._loop.time()
        self.used += min(now - self._seen, 2 * _STEP)
        self._seen = now


class Routing(msgspec.Struct, frozen=True, gc=False):
    """What routing needs of an inference request; all the rest is its family's, or the engine's."""

    model: Name = ""
    keep_alive: str | float | None = None
    """How long the model is to stay: a duration, or a number of seconds; negative means indefinitely."""
    num_ctx: Any = None
    """Tokens that the request needs at least; not checked."""


_decode_routing = msgspec.json.Decoder(Routing).decode


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body.

    `limit` is in bytes and holds for what arrives unpacked too, also in a host's application with other
    limits. Raises HttpRefusal: 413 past the limit, 408 when it does not come, 400 when it is cut off.
    """
    known = request.known_body
    if known is not None:
        if len(known) > limit:
            raise _too_large(limit)
        return known
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = request.body_now()
    if body is not None:
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks: list[bytes] = []
    size = 0
    try:
        async with Patience(_BODY_TIMEOUT):
            while chunk := await request.read():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise HttpRefusal(408, "body_timeout", "The request's body did not arrive in time.") from None
    except BodyBroken:
        raise HttpRefusal(400, "bad_body", "The request's body was cut off or badly encoded.") from None
    return b"".join(chunks)


def routing_of(body: bytes) -> Routing:
    """What routing needs. Raises HttpRefusal: 400 for broken JSON or a missing model."""
    try:
        routing = _decode_routing(body or b"{}")
    except NOT_UNDERSTOOD as error:
        if not str(error).endswith("got `null` - at `$.model`"):
            raise _not_understood(error) from None
        routing = Routing()
    if not routing.model.strip():
        raise HttpRefusal(
            400,
            "model_required",
            'model is required: name one in the body, such as {"model": "smollm2"}.',
            param="model",
        )
    return routing


def wished_keep_alive(routing: Routing) -> float | None:
    """Seconds that the model is to stay after the request; None without a wish. Raises HttpRefusal: 400."""
    if routing.keep_alive is None:
        return None
    try:
        return keep_alive_of(routing.keep_alive)
    except ValueError as error:
        raise HttpRefusal(400, "invalid_request", f"keep_alive: {error}.", param="keep_alive") from None


def wished_context(routing: Routing, model: Model) -> int:
    """Tokens that the engine's context is to have at least; 0 without a wish. Raises HttpRefusal: 400."""
    wished = routing.num_ctx
    if wished is None:
        return 0
    if isinstance(wished, bool) or not isinstance(wished, int) or not 0 <= wished <= CONTEXT:
        raise invalid(f"num_ctx must be a whole number from 0 to {CONTEXT}", param="num_ctx")
    return min(wished, model.context_length or wished)


async def read_json(
    request: Request,
    kind: type[T],
    required: str = "",
    *,
    what: str = "",
    aliases: Mapping[str, str] | None = None,
) -> T:
    """The body as a struct, or as its defaults when there is none.

    `required` is a field that must not be empty; `what` is said when the body does not fit; `aliases` are
    other spellings of fields. null is the same as leaving a field out. What is in the body and not in the
    struct is refused where the struct forbids it, and otherwise listed in a header as ignored.
    """
    body = (await read_body(request, NAMING)).strip() or b"{}"
    try:
        ignored: list[str] = []
        found = msgspec.json.decode(_fitted(body, kind, aliases or {}, ignored), type=kind)
        if ignored:
            request.ignore(ignored)
    except NOT_UNDERSTOOD as error:
        raise _not_understood(error, what or (required and f"{required} is required"), kind) from None
    if required and not getattr(found, required).strip():
        raise invalid(f"{required} is required")
    return found


def invalid(what: str, param: str | None = None) -> HttpRefusal:
    """400, in the contract's words."""
    return HttpRefusal(400, "invalid_request", f"invalid request: {what}", param=param)


_NO = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_YES = frozenset({"", "1", "t", "T", "TRUE", "true", "True"})
"""A query's yes and no, in all the forms Go knows."""


def is_true(request: Request, name: str) -> bool:
    """Whether the query says yes. Raises HttpRefusal: 400 for what is neither yes nor no."""
    text = request.query.get(name)
    if text is None or text in _NO:
        return False
    if text in _YES:
        return True
    raise invalid(f"{name} must be true or false", param=name)


def checked(value: object, kind: Any, name: str) -> Any:
    """A value of a path, a query or a header as this type. Raises HttpRefusal: 400."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        sentence = complaint(error)[1] or str(error)
        raise invalid(sentence.replace("the value", f'"{name}"', 1), param=name) from None


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _fitted(
    body: bytes, kind: type[Any], aliases: Mapping[str, str], unknown: list[str], prefix: str = ""
) -> bytes:
    """A JSON object with every field under its own name, without the nulls that stand for "left out".

    The same for objects in it that have structs of their own; what has none, such as a JSON schema, stays as
    it is. Fields that the struct does not have are added to `unknown`. Raises HttpRefusal for one that comes
    twice.
    """
    structs = {}
    hints = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        options = (hints[field.name], *get_args(hints[field.name]))
        structs[field.encode_name] = next(
            (one for one in options if isinstance(one, type) and issubclass(one, msgspec.Struct)), None
        )
    fields: dict[str, msgspec.Raw] = {}
    for given, value in _fields.decode(body).items():
        name = aliases.get(given, given)
        raw, inner = bytes(value), structs.get(name)
        if name not in structs:
            unknown.append(prefix + name)
        elif raw == b"null":
            continue
        elif inner is not None and raw.startswith(b"{"):
            raw = _fitted(raw, inner, {}, unknown, f"{prefix}{name}.")
        if name in fields:
            raise invalid(f'"{name}" is given twice', param=name)
        fields[name] = msgspec.Raw(raw)
    return msgspec.json.encode(fields)


def _words_for(field: str, kind: Any) -> list[str]:
    """The words that a field of a struct takes, or each item of it; none where it takes others too."""
    found = msgspec.structs.fields(kind) if isinstance(kind, type) else ()
    hints = [get_type_hints(kind)[one.name] for one in found if one.encode_name == field]
    words: list[str] = []
    for hint in hints:
        words += [one for one in get_args(hint) if get_origin(hint) is Literal]
        hints += get_args(hint) if get_origin(hint) is not Literal else ()
    return words


def _not_understood(error: Exception, what: str = "", kind: Any = None) -> HttpRefusal:
    # msgspec names the field of a wrong type; for broken JSON it names the byte. Neither shows the content.
    field = ""
    if isinstance(error, RecursionError):
        what = "JSON is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        what = "the text is not UTF-8"
    elif isinstance(error, msgspec.ValidationError):
        field, sentence = complaint(error)
        place = _FIELD.search(str(error))
        if unknown := _UNKNOWN.search(str(error)):
            what = f'"{shown(unknown[1])}" is not a known parameter'
        elif sentence:
            what = sentence
        elif place is not None and "enum value" in str(error) and (words := _words_for(place[1], kind)):
            what = f"{place[1]} must be one of {', '.join(filter(None, words))}"
        elif place is not None and not what.startswith(place[1]):
            # What is wrong with another field than the one that must be there is no matter of that one.
            what = _wrong_type(error)
        field = field or (place[1] if place is not None else "")
    return invalid(what or _wrong_type(error), param=field or None)


_EXPECTED = re.compile(r"Expected `(.+?)`, got `(.+?)`(?: - at `\$\.?(.+?)`)?")
"""As msgspec tells of a value of a wrong type."""
_TYPES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _wrong_type(error: Exception) -> str:
    """What msgspec says of a value, in the words of our other refusals where it is about its type."""
    said = str(error)
    if (found := _EXPECTED.fullmatch(said)) is None:
        return said
    kinds = [_TYPES.get(one, one) for one in found[1].split(" | ") if one != "null"]
    return f"{found[3] or 'the body'} must be {' or '.join(kinds)}, not {_TYPES.get(found[2], found[2])}"


def _too_large(limit: int) -> HttpRefusal:
    return HttpRefusal(
        413,
        "request_too_large",
        f"request too large: the body is larger than {format_size(limit)}.",
        advice="Send less." if limit <= NAMING else "Send less, or raise max_body in the configuration.",
    )


# bodies that go to an engine

_FIELDS = 1000
"""Fields of a body: llama.cpp takes minutes to read a hundred thousand."""
_ASIDE = 128 * 1024
"""Bytes of a body from which on it is looked at in a thread: other streams go on meanwhile."""

_value = msgspec.json.Decoder()


class Checked(NamedTuple):
    body: bytes
    fields: dict[str, Any]
    """What of it is known to its family, decoded."""
    unread: tuple[str, ...] = ()
    """Those of them that no engine reads."""
    unknown: tuple[str, ...] = ()
    """Its other fields, also those inside of others."""


async def check(body: bytes, dialogue: Dialogue) -> Checked:
    """Check a body. Raises HttpRefusal: 400 with the field that is wrong."""
    if len(body) > _ASIDE:
        return await asyncio.to_thread(check_now, body, dialogue)
    return check_now(body, dialogue)


def check_now(body: bytes, dialogue: Dialogue) -> Checked:
    """The same at once."""
    try:
        # Engines answer text in another encoding each in a way of its own, and some not at all.
        body.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8 at byte {error.start}") from None
    try:
        given = _fields.decode(body)
        if len(given) > _FIELDS:
            raise invalid(f"the body has {len(given)} fields; the limit is {_FIELDS}")
        absent = [name for name, raw in given.items() if _stands_for_nothing(name, bytes(raw))]
        known = {
            name: _value.decode(raw)
            for name, raw in given.items()
            if name in dialogue.fields and name not in absent
        }
    except NOT_UNDERSTOOD as error:
        deep = isinstance(error, RecursionError)
        raise invalid("JSON is nested too deeply" if deep else str(error)) from None
    try:
        with noting() as unused:
            fields = cleaned(known, dialogue.fields)
        for name in dialogue.required:
            if name not in fields:
                raise missing(name)
        dialogue.together(fields)
    except Wrong as wrong:
        raise HttpRefusal(400, wrong.code, str(wrong), param=wrong.where) from None
    except RecursionError:
        raise invalid("JSON is nested too deeply") from None
    outer = (name for name in given if name not in dialogue.fields and name not in absent)
    unread, unknown = tuple(unused.unread), (*outer, *unused.unknown)
    if fields is known and not absent:
        return Checked(body, fields, unread, unknown)
    passed: dict[str, Any] = {name: raw for name, raw in given.items() if name not in absent}
    passed |= {name: value for name, value in fields.items() if value is not known[name]}
    return Checked(msgspec.json.encode(passed), fields, unread, unknown)


def _stands_for_nothing(name: str, raw: bytes) -> bool:
    """A field that might as well be left out.

    -1 tokens means no limit, in the words of LM Studio; an empty text would stop an answer at once.
    """
    if name == "stop":
        return raw in (b"null", b'""', b'[""]')
    return raw == b"null" or (raw == b"-1" and name in ("max_tokens", "max_completion_tokens"))


def spoken_by(dialect: Dialect, model: Model) -> str | None:
    """What the engine calls the model, or None when it takes any name."""
    return dialect.spoken(model.id) if dialect.model_name else None


def translate(body: bytes, dialect: Dialect, name: str | None, ours: frozenset[str] = frozenset()) -> bytes:
    """The body as the engine may see it, without what is `ours`; `name` is what it calls the model."""
    dropped = dialect.dropped | ours if ours else dialect.dropped
    formed = bool(dialect.completion_schema) and b'"response_format"' in body
    if name is None and not dropped and not formed:
        return body
    fields = _fields.decode(body)
    if formed and "prompt" in fields and "response_format" in fields:
        schema = _schema_of(_value.decode(fields.pop("response_format")))
        if schema is not None:
            fields.setdefault(dialect.completion_schema, msgspec.Raw(msgspec.json.encode(schema)))
    for field in dropped:
        fields.pop(field, None)
    if name is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


def _schema_of(form: dict[str, Any]) -> Any:
    """The JSON schema of a checked response format; None where it asks for any text."""
    if form["type"] == "json_schema":
        return form["json_schema"].get("schema", {})
    return form.get("schema", {"type": "object"}) if form["type"] == "json_object" else None


def ignored_by(dialect: Dialect, fields: Mapping[str, Any], body: bytes) -> list[str]:
    """The fields that the engine does not get, or takes no notice of; the client gets a list of them."""
    dropped = sorted(dialect.dropped & _fields.decode(body).keys()) if dialect.dropped else []
    return [*dropped, *(one.param for one in dialect.ignores if one.asked(fields))]
