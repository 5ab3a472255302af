"""The daemon itself: is it alive, is it ready, what is it doing, why is something as it is; and stop it."""

from __future__ import annotations

from typing import Literal

import msgspec

from greenroom.actors.values import Progress
from greenroom.runner.diagnosis.explanation import Explanation
from greenroom.runner.http.health import StopBody
from greenroom.runner.http.openapi.operation import PLAIN, WITH_BODY, Operation, Parameter, Returns
from greenroom.runner.proof import CHALLENGE


class VersionAnswer(msgspec.Struct):
    version: str


class LivenessAnswer(msgspec.Struct):
    status: Literal["ok", "failed"]
    instance_id: str
    """Another for each start of the daemon."""
    pid: int
    version: str
    home: str
    """The data directory."""
    proof: str | msgspec.UnsetType = msgspec.UNSET
    """That it knows the secret of its data directory, for a request with a challenge."""


class StatusAnswer(msgspec.Struct):
    status: str


class NotNowError(msgspec.Struct):
    message: str
    code: str


class NotNowAnswer(msgspec.Struct):
    """Why it is not known now."""

    error: NotNowError
    status: str | msgspec.UnsetType = msgspec.UNSET


OPERATIONS = {
    "GET /": Operation(
        summary="One line, for a browser", answers={200: Returns("It runs.", str, content=PLAIN)}
    ),
    "GET /v1": Operation(
        summary="The same, at a base URL", answers={200: Returns("It runs.", str, content=PLAIN)}
    ),
    "GET /anthropic": Operation(
        summary="The same, at a base URL", answers={200: Returns("It runs.", str, content=PLAIN)}
    ),
    "GET /api": Operation(
        summary="The same, at a base URL", answers={200: Returns("It runs.", str, content=PLAIN)}
    ),
    "GET /logs": Operation(
        summary="The logs of the daemon and its engines",
        detail="Those of engines only for callers on the daemon's machine.",
        query={
            "follow": Parameter("Go on with what is written from then on.", bool),
            "no-engines": Parameter("The daemon's alone.", bool),
            "tail": Parameter("So many last lines of each; or `all`."),
        },
        answers={200: Returns("Lines of text.", str, content=PLAIN)},
        errors=frozenset({404}),
    ),
    "GET /metrics": Operation(
        summary="The engines' own numbers, for Prometheus",
        answers={200: Returns("Samples with the labels `backend`, `model`, `mode`.", str, content=PLAIN)},
    ),
    "GET /version": Operation(
        summary="The version of Greenroom", answers={200: Returns("The version.", VersionAnswer)}
    ),
    "GET /livez": Operation(
        summary="Is the daemon alive, and which one is it",
        answers={
            200: Returns("It is.", LivenessAnswer),
            503: Returns("It has stopped itself after a failure of its journal.", LivenessAnswer),
        },
        headers={CHALLENGE: Parameter("The answer proves that the daemon knows the secret of its home.")},
    ),
    "GET /readyz": Operation(
        summary="Can the daemon serve requests",
        answers={
            200: Returns("All actors have reported, and the data directory is there.", StatusAnswer),
            503: Returns("Not yet, or no longer.", NotNowAnswer, headers=("Retry-After",)),
        },
    ),
    "GET /jobs": Operation(
        summary="The progress of every running job", answers={200: Returns("The jobs.", list[Progress])}
    ),
    "POST /daemon/stop": Operation(
        summary="Stop the daemon in order",
        body=StopBody,
        needs_body=False,
        answers={202: Returns("It stops.", StatusAnswer)},
        errors=WITH_BODY | {409},
    ),
    "GET /why/{name}": Operation(
        summary="Why a model, a backend, an engine or a request is as it is",
        path={"name": "A model, a backend, or the id of an engine or a request. It may hold slashes."},
        answers={200: Returns("The explanation.", Explanation)},
        errors=frozenset({404}),
    ),
    "GET /openapi.json": Operation(
        summary="This description, as OpenAPI 3.1", answers={200: Returns("The document.", dict)}
    ),
    "GET /docs": Operation(
        summary="This description as a page", answers={200: Returns("The page.", str, content="text/html")}
    ),
}
