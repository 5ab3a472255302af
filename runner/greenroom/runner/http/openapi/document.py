"""The OpenAPI document: made of the table of routes, and of their operations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from greenroom import __version__
from greenroom.runner.diagnosis.event_log import AFTER, JOURNAL
from greenroom.runner.http.errors import family_of_path
from greenroom.runner.http.idempotency import KEY, is_command
from greenroom.runner.http.openapi.operation import (
    ANY,
    PLAIN,
    STATUSES,
    VARIABLES,
    Operation,
    Parameter,
    Returns,
)
from greenroom.runner.http.openapi.operations import TAGS, every_operation, keys_of
from greenroom.runner.http.openapi.schemas import Schema, Schemas
from greenroom.runner.http.port import IGNORED_HEADER, JSON, REQUEST_ID, Route

_Error = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class OpenAIErrorFields(msgspec.Struct, kw_only=True):
    """Some errors add fields with numbers, such as sizes in bytes."""

    message: str
    """What happened, and what to do next."""
    type: _Error
    code: str | None
    """A stable code for programs."""
    param: str | None
    """The field that the error is about."""
    backend: str | msgspec.UnsetType = msgspec.UNSET
    retry_after: float | msgspec.UnsetType = msgspec.UNSET
    """Seconds."""


class OpenAIErrorAnswer(msgspec.Struct):
    error: OpenAIErrorFields


class AnthropicErrorFields(msgspec.Struct, kw_only=True):
    message: str
    type: str
    code: str
    backend: str | msgspec.UnsetType = msgspec.UNSET
    retry_after: float | msgspec.UnsetType = msgspec.UNSET


class AnthropicErrorAnswer(msgspec.Struct, kw_only=True):
    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str | None


class OllamaErrorAnswer(msgspec.Struct):
    error: str


_ERRORS: Mapping[str, Mapping[str, Any]] = {
    "openai": {JSON: OpenAIErrorAnswer},
    "anthropic": {JSON: AnthropicErrorAnswer},
    "ollama": {JSON: OllamaErrorAnswer},
    "text": {PLAIN: str, JSON: OpenAIErrorAnswer},
    "listing": {JSON: (OpenAIErrorAnswer, AnthropicErrorAnswer)},
    "empty": {},
}
"""What refusals look like: by the family of the path (`text` is a sentence, or OpenAI's object for clients
that accept JSON), of lists of models in either form, and without a body."""

_HEADERS = {
    REQUEST_ID: ("The request's id; `greenroom why ID` explains the request.", str),
    IGNORED_HEADER: ("Fields and parameters of the request that were ignored.", str),
    "Retry-After": ("How many seconds to wait before trying again.", int),
    "Location": ("Where to follow the progress.", str),
    "X-Model-Id": ("The id of the model.", str),
    "X-Freed-Bytes": ("Bytes that were freed on the disk, if the model was removed.", int),
    "X-Kept-Bytes": ("Bytes of the removed model that stay in use by other models or programs.", int),
    "X-Ignored-Backends": ("Why backends that distributions declare are ignored: a JSON list.", str),
    JOURNAL: ("The id of the journal: another one has other numbers.", str),
    AFTER: ("The number of the event after which the answer begins.", int),
    "Content-Disposition": ("A suggested file name.", str),
}
_ALWAYS = (REQUEST_ID, IGNORED_HEADER)
_KEY = Parameter(
    "With the same key, a repeated command is carried out only once. 1 to 255 printable characters."
)
_ABOUT = (
    "The HTTP API of Greenroom: OpenAI's, Anthropic's, Ollama's and Docker Model Runner's, and its own. "
    "Inference routes also work under `/engines` and `/engines/{backend}`, and HEAD works wherever GET does. "
    "Model names in paths may contain slashes."
)


def described(routes: Iterable[Route], *, server: str = "/") -> dict[str, Any]:
    """The document, as plain data.

    Routes that are not described are in it with their path alone.
    """
    table = every_operation()
    found = [(route, *_told(table, route)) for route in routes]
    schemas = Schemas([*_types(one for _, _, one in found), *_types_of_errors(), str, int])
    paths: dict[str, dict[str, Any]] = {}
    for route, tag, operation in found:
        told = _operation(route, tag, operation, schemas)
        paths.setdefault(route.path, {})[route.method.lower()] = told
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Greenroom",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server}],
        "tags": [{"name": tag} for tag in TAGS],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": _all_refusals(schemas),
            "headers": {
                name: {"description": about, "schema": schemas.of(kind)}
                for name, (about, kind) in _HEADERS.items()
            },
        },
    }


_NOTHING = Operation(summary="", answers={})


def _told(table: Mapping[str, tuple[str, Operation]], route: Route) -> tuple[str, Operation]:
    found = (table[key] for key in keys_of(route.method, route.path) if key in table)
    return next(found, ("", _NOTHING))


def _types(operations: Iterable[Operation]) -> Iterator[Any]:
    for one in operations:
        if one.body is not None:
            yield one.body
        for told in (*(one.query or {}).values(), *(one.headers or {}).values()):
            yield told.kind
        for answer in one.answers.values():
            yield from _contents(answer).values()
            yield from (answer.streams or {}).values()


def _types_of_errors() -> Iterator[Any]:
    yield from (kind for forms in _ERRORS.values() for kind in forms.values())


def _contents(answer: Returns) -> Mapping[str, Any]:
    """The media types of an answer in one piece, and their schemas."""
    own = {} if answer.schema is None else {answer.content: answer.schema}
    return {**own, **(answer.other or {})}


def _operation(route: Route, tag: str, operation: Operation, schemas: Schemas) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": _id_of(route),
        "tags": [tag] if tag else [],
        "summary": operation.summary,
        "parameters": [*_parameters(route, operation, schemas)],
        "responses": {
            **{str(status): _answer(one, schemas) for status, one in operation.answers.items()},
            **_refusals(route, operation),
        },
    }
    if operation.detail:
        told["description"] = operation.detail
    if operation.body is not None:
        told["requestBody"] = {
            "required": operation.needs_body,
            "content": {operation.content: {"schema": schemas.of(operation.body)}},
        }
    return told


def _id_of(route: Route) -> str:
    words = re.findall(r"[A-Za-z0-9]+", route.path)
    return "_".join((route.method.lower(), *words))


def _parameters(route: Route, operation: Operation, schemas: Schemas) -> Iterator[Schema]:
    own = operation.path or {}
    for name in re.findall(r"\{(\w+)\}", route.path):
        about = own.get(name) or VARIABLES.get(name, "")
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "description": about, "schema": schema}
    queries = {name: (operation.query or {}).get(name, Parameter("")) for name in sorted(route.query or ())}
    headers = dict(operation.headers or {})
    if is_command(route.path) and route.method != "GET":
        headers[KEY] = _KEY
    for place, told in (("query", queries), ("header", headers)):
        for name, one in told.items():
            yield {"name": name, "in": place, "description": one.about, "schema": schemas.of(one.kind)}


def _schemas_of(contents: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    return {kind: {"schema": schemas.of(one)} for kind, one in contents.items()}


def _answer(answer: Returns, schemas: Schemas) -> Schema:
    content = _schemas_of(_contents(answer), schemas)
    for kind, item in (answer.streams or {}).items():
        # OpenAPI 3.1 cannot say what the pieces of a stream are; 3.2 calls it `itemSchema`.
        whole = content.get(kind) or {"schema": {"type": "string"}}
        content[kind] = {**whole, "x-itemSchema": schemas.of(item)}
    told: dict[str, Any] = {"description": answer.about, "headers": _headers(*answer.headers)}
    return {**told, "content": content} if content else told


def _headers(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*_ALWAYS, *names)}


def _refusals(route: Route, operation: Operation) -> Schema:
    form = _form_of(route)
    statuses = sorted((ANY | operation.errors) - {*operation.answers})
    return {str(one): {"$ref": f"#/components/responses/{form}_{one}"} for one in statuses}


def _form_of(route: Route) -> str:
    if route.method == "HEAD":
        return "empty"
    return "listing" if "/v1/models" in route.path else family_of_path(route.path)


def _all_refusals(schemas: Schemas) -> Schema:
    """Every refusal in every form."""
    return {
        f"{form}_{status}": {
            "description": about,
            "headers": _headers("Retry-After"),
            **({"content": _schemas_of(kinds, schemas)} if kinds else {}),
        }
        for form, kinds in _ERRORS.items()
        for status, about in STATUSES.items()
    }
