"""What schemathesis does here: which requests it makes more likely, and what it checks of every answer.

`SCHEMATHESIS_HOOKS=conformity_checks schemathesis run URL --checks …`. `CONFORMITY_MODEL` is the path of a
file that may be pulled; a model called `tiny` is in the store.
"""

from __future__ import annotations

import importlib
import json
import os
import random
from typing import Any

# Neither is needed to check the types of this module.
schemathesis: Any = importlib.import_module("schemathesis")
jsonschema_rs: Any = importlib.import_module("jsonschema_rs")

MODEL, GONE = "tiny", "gone"
FILE = f"file:{os.environ['CONFORMITY_MODEL']}"
PULLS = ("/models/create", "/models/cancel", "/api/pull")
ESCAPES = (("&#34;", '"'), ("&#39;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))


def _seldom(value: object) -> bool:
    """One in four, always the same for the same value."""
    return random.Random(json.dumps(value, default=str)).random() < 0.25


def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Names of what is there. What is removed is never there: other requests need it."""
    spare = context.operation.method == "delete" or context.operation.path.endswith("/push")
    if not spare and _seldom(path_parameters):
        return path_parameters or {}
    name = GONE if spare else MODEL
    known = {"reference": name, "backend": "fake", "name": name}
    return {name: known.get(name, value) for name, value in (path_parameters or {}).items()}


def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any]:
    """Nothing outside is asked, for there is no network, and no answer goes on as long as its client."""
    return {name: value for name, value in (query or {}).items() if name not in ("remote", "follow")}


def map_body(context: Any, body: Any) -> Any:
    """A model that is there, and what can be pulled without a network."""
    if not isinstance(body, dict):
        return body
    path, body = context.operation.path, dict(body)
    if path in PULLS:
        return body | {"from": FILE, "model": FILE}
    if path in ("/api/push", "/api/delete"):
        return body | {"model": GONE, "name": GONE}
    if path == "/engines/uninstall-backend":
        return body | {"backend": GONE}
    if "model" in body and not _seldom(body):
        body["model"] = MODEL
    if "stream" in body:
        body["stream"] = _seldom([body])
    return body


def archive(context: Any, value: Any) -> bytes:
    """An archive that is none."""
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()


def no_fault_of_ours(context: Any, response: Any, case: Any) -> None:
    """500 is never an answer: what others fail at has other statuses."""
    assert response.status_code != 500, response.text


def nothing_is_left_out(context: Any, response: Any, case: Any) -> None:
    """An answer has no field that is not described, and neither has a line or an event of a stream."""
    document = case.operation.schema.raw_schema
    if response.status_code == 405:
        return  # it was asked with a method that is not described
    described = document["paths"][case.operation.path][case.operation.method]["responses"]
    content = _solved(document, described.get(str(response.status_code), {})).get("content") or {}
    kind = (response.headers.get("content-type") or [""])[0].partition(";")[0]
    form = content.get(kind)
    if form is None:
        assert not response.content, f"{response.status_code} has a body that is not described: {kind}"
    elif (item := form.get("x-itemSchema")) is not None:
        for piece in _pieces(kind, response.text):
            _check(document, item, piece)
    elif kind == "application/json" and response.content:
        _check(document, form["schema"], json.loads(response.content))


def _pieces(kind: str, text: str) -> list[Any]:
    """The events or lines of a stream; events with an error have the form of refusals."""
    if kind == "text/event-stream":
        lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
        return [one for line in lines if line != "[DONE]" and "error" not in (one := json.loads(line))]
    for escaped, plain in ESCAPES if kind == "text/plain" else ():
        text = text.replace(escaped, plain)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


_validators: dict[str, Any] = {}


def _check(document: dict[str, Any], form: dict[str, Any], value: Any) -> None:
    key = json.dumps(form)
    if key not in _validators:
        schema = {**_closed(form), "components": {"schemas": _closed(document["components"]["schemas"])}}
        _validators[key] = jsonschema_rs.Draft202012Validator(schema)
    wrong = [
        f"{one.message[:400]} at {list(one.instance_path)}" for one in _validators[key].iter_errors(value)
    ]
    assert not wrong, "; ".join(wrong[:3])


def _closed(schema: Any) -> Any:
    """The same, without other fields than those that are named, where any are."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(one) for name, one in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    return {"additionalProperties": False, **closed} if named else closed


def _solved(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    found: Any = document
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


for hook in (map_path_parameters, map_query, map_body):
    schemathesis.hook(hook)
for check in (no_fault_of_ours, nothing_is_left_out):
    schemathesis.check(check)
schemathesis.serializer("application/x-tar")(archive)
