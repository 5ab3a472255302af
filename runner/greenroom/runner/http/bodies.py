"""What a request to a route of our own says in its body, query and path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from greenroom.actors.limits import complaint
from greenroom.runner.http.aiohttp_adapter import NAMING, read_body
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import Request
from greenroom.runner.models.references import shown

NOT_UNDERSTOOD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding foreign JSON may raise; RecursionError for brackets nested very deep."""

T = TypeVar("T")
_FIELD = re.compile(r"`\$\.(\w+)")
"""As msgspec names the place of a wrong type."""
_UNKNOWN = re.compile(r"unknown field `(.*?)`", re.DOTALL)
"""As msgspec names what a struct that forbids it does not have."""


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
        found = msgspec.json.decode(fitted(body, kind, aliases or {}, ignored), type=kind)
        if ignored:
            request.ignore(ignored)
    except NOT_UNDERSTOOD as error:
        raise not_understood(error, what or (required and f"{required} is required"), kind) from None
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


def fitted(
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
            raw = fitted(raw, inner, {}, unknown, f"{prefix}{name}.")
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


def not_understood(error: Exception, what: str = "", kind: Any = None) -> HttpRefusal:
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
