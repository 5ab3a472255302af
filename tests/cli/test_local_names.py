"""A name that was given here is not looked for on Docker Hub once its model is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.journal.conformance import entry
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner.cli.local_names import check_not_local
from greenroom.runner.cli.problem import Problem

TINY = "docker.io/ai/tiny:latest"
TAGGED = ("model_tagged", {"model_id": "sha256:1", "tags": [TINY]})
REMOVED = ("model_removed", {"model_id": "sha256:1", "reason": "requested by the user"})
ASKED = ("pull_requested", {"job": "pull.1", "reference": TINY})
ADOPTED = ("pull_requested", {"job": "pull.1", "reference": TINY, "origin": "/other/x.gguf"})
STORED = ("model_committed", {"job": "pull.1", "model": {"id": "sha256:1", "tags": [TINY]}})


def write(home: Path, *events: tuple[str, dict[str, Any]]) -> None:
    journal = SqliteJournal(home / "journal.db")
    for version, (kind, fields) in enumerate(events, 1):
        first = entry("library", version)
        journal.append([msgspec.structs.replace(first, type=kind, data=json.dumps(fields), schema=1)])
    journal.close()


@pytest.mark.parametrize(
    "events", [(TAGGED, REMOVED), (ADOPTED, STORED, REMOVED), (TAGGED, REMOVED, ASKED)], ids=str
)
def test_a_name_given_here_is_not_pulled_by_run(home: Path, events: Any) -> None:
    write(home, *events)
    with pytest.raises(Problem, match="tiny was a name on this machine only") as refused:
        check_not_local(home, "tiny")
    assert refused.value.advice.endswith("greenroom pull tiny")
    check_not_local(home, "other")
    check_not_local(home, "registry.example/tiny")


@pytest.mark.parametrize("events", [(ASKED, STORED, REMOVED), (ASKED, STORED, TAGGED, REMOVED)], ids=str)
def test_a_name_that_was_pulled_once_may_be_pulled_again(home: Path, events: Any) -> None:
    check_not_local(home, "tiny")
    write(home, *events)
    check_not_local(home, "tiny")


def test_run_says_so_before_it_pulls(greenroom: Any, our_daemon: Any, home: Path) -> None:
    write(home, TAGGED, REMOVED)
    error = {"code": "model_not_found", "message": "There is no model tiny."}
    our_daemon.routes["POST /v1/chat/completions"] = (404, {"error": error})
    done = greenroom("run", "tiny", "hi")
    assert (done.code, "greenroom pull tiny" in done.err) == (1, True), done.err
    assert our_daemon.bodies("/models/create") == []
