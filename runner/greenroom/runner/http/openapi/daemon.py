"""The daemon itself: is it alive, is it ready, what is it doing, why is something as it is; and stop it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import msgspec

from greenroom.actors.values import Progress
from greenroom.runner.http.daemon import StopBody
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
    """For a request with a challenge: proves that the daemon knows its data directory's secret."""


class StatusAnswer(msgspec.Struct):
    status: str


class NotNowError(msgspec.Struct):
    message: str
    code: str


class NotNowAnswer(msgspec.Struct):
    """Why it is not known now."""

    error: NotNowError
    status: str | msgspec.UnsetType = msgspec.UNSET


_RUNNING = Operation(
    summary="Say that Greenroom is running",
    answers={200: Returns("Greenroom is running.", str, content=PLAIN)},
)

OPERATIONS = {
    "GET /": _RUNNING,
    "GET /v1": _RUNNING,
    "GET /anthropic": _RUNNING,
    "GET /api": _RUNNING,
    "GET /engines/{backend}/v1": replace(_RUNNING, errors=frozenset({404})),
    "GET /logs": Operation(
        summary="Read the logs of the daemon and its engines",
        detail="The engines' logs are included only for callers on the daemon's machine.",
        query={
            "follow": Parameter("Keep the connection open and send new lines.", bool),
            "no-engines": Parameter("Only the daemon's log.", bool),
            "tail": Parameter("How many of the last lines of each log to send, or `all`."),
        },
        answers={200: Returns("Lines of text.", str, content=PLAIN)},
        errors=frozenset({404}),
    ),
    "GET /metrics": Operation(
        summary="Get the engines' metrics for Prometheus",
        answers={200: Returns("Samples with the labels `backend`, `model`, `mode`.", str, content=PLAIN)},
    ),
    "GET /version": Operation(
        summary="Get Greenroom's version", answers={200: Returns("The version.", VersionAnswer)}
    ),
    "GET /livez": Operation(
        summary="Check whether the daemon is alive, and identify it",
        answers={
            200: Returns("The daemon is alive.", LivenessAnswer),
            503: Returns("The daemon stopped itself because its journal failed.", LivenessAnswer),
        },
        headers={
            CHALLENGE: Parameter(
                "A challenge. `proof` in the answer shows that the daemon knows its data directory's secret."
            )
        },
    ),
    "GET /readyz": Operation(
        summary="Check whether the daemon is ready",
        answers={
            200: Returns("All actors have started, and the data directory exists.", StatusAnswer),
            503: Returns("Not ready yet, or no longer.", NotNowAnswer, headers=("Retry-After",)),
        },
    ),
    "GET /jobs": Operation(
        summary="List the running jobs and their progress",
        answers={200: Returns("The jobs.", list[Progress])},
    ),
    "POST /daemon/stop": Operation(
        summary="Shut the daemon down",
        body=StopBody,
        needs_body=False,
        answers={202: Returns("The daemon is shutting down.", StatusAnswer)},
        errors=WITH_BODY | {409},
    ),
    "GET /openapi.json": Operation(
        summary="Get this description as OpenAPI 3.1", answers={200: Returns("The document.", dict)}
    ),
    "GET /docs": Operation(
        summary="Show this description as a web page",
        answers={200: Returns("The page.", str, content="text/html")},
    ),
}
