"""`greenroom requests`: from a daemon, from the file of one that is gone, and at every width."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.runner.record.bodies import Kept
from greenroom.runner.record.row import Row
from greenroom.runner.record.table import FILE, RecordTable

WHOLE = Row(
    id="r-0a1b2c3d-1",
    at=0.0,
    method="POST",
    path="/v1/chat/completions",
    family="openai",
    address="127.0.0.1",
    caller="curl (process 4711)",
    caller_kind="process",
    user_agent="curl/8.5",
    asked="ai/tiny",
    model="tiny",
    model_id="sha256:12",
    backend="llama.cpp",
    engine="e-1",
    status=200,
    outcome="whole",
    queued=0.5,
    loading=2.0,
    first_token=2.75,
    seconds=8.0,
    tokens_in=20,
    tokens_out=512,
    tokens_per_second=97.5,
    recorded=True,
)
REFUSED = Row(
    id="r-0a1b2c3d-2",
    at=0.0,
    method="POST",
    path="/v1/chat/completions",
    caller="10.0.0.7",
    address="10.0.0.7",
    asked="nope",
    status=404,
    outcome="refused",
    code="model_not_found",
    sentence='model "nope" is not in the store; run: greenroom pull nope.',
    seconds=0.0004,
)


@pytest.fixture
def written(home: Path) -> None:
    """The record of a daemon that does not run any more."""
    kept = Kept(b'{"model": "ai/tiny"}')
    kept.add(b"an answer")
    table = RecordTable(home / FILE, keep_for=86_400.0, rows=100)
    now = time.time()
    whole, refused = (
        msgspec.structs.replace(WHOLE, at=now - 600),
        msgspec.structs.replace(REFUSED, at=now - 30),
    )
    table.append([(whole, kept), (refused, None)], now)
    table.close()


@pytest.mark.usefixtures("written")
def test_the_requests_of_a_daemon_that_is_gone_are_listed(greenroom: Any, unused_port: int) -> None:
    def listed(*options: str) -> list[str]:
        done = greenroom("--port", str(unused_port), "requests", "--json", *options)
        assert done.code == 0, done.err
        return [row["id"] for row in json.loads(done.out)]

    assert listed() == [WHOLE.id, REFUSED.id]
    assert listed("-n", "1") == [REFUSED.id]
    assert listed("--model", "tiny") == listed("--model", "ai/tiny") == [WHOLE.id]
    assert listed("--status", "4xx") == [REFUSED.id]
    assert listed("--slow", "2s") == [WHOLE.id]
    assert listed("--since", "5m") == [REFUSED.id]
    shown = greenroom("--port", str(unused_port), "requests").out.splitlines()
    assert shown[0].split()[-1] == "ENDED"
    assert shown[1].split()[1:] == [
        *(WHOLE.id, "tiny", "POST", "/v1/chat/completions", "curl", "(process", "4711)"),
        *("2.5s", "2.8s", "8s", "20/512", "97.5", "whole"),
    ]
    assert shown[2].endswith("refused 404 model_not_found")


def test_an_ending_that_has_a_code_of_its_name_is_said_once(
    home: Path, greenroom: Any, unused_port: int
) -> None:
    table = RecordTable(home / FILE, keep_for=86_400.0, rows=100)
    now = time.time()
    table.append([(msgspec.structs.replace(WHOLE, at=now, outcome="cancelled", code="cancelled"), None)], now)
    table.close()
    shown = greenroom("--port", str(unused_port), "requests").out.splitlines()
    assert shown[1].split()[-2:] == ["97.5", "cancelled"]


@pytest.mark.usefixtures("written")
def test_one_request_is_shown_with_what_was_said(greenroom: Any, unused_port: int) -> None:
    shown = greenroom("--port", str(unused_port), "requests", "show", WHOLE.id)
    assert shown.code == 0
    for line in (
        "Model        tiny, asked for as ai/tiny",
        "Engine       e-1 (llama.cpp)",
        "Waited       0.5s in the queue, 2s for the model to be loaded",
        "First token  after 2.8s",
        "Tokens       20 read, 512 written, 97.5 a second",
        "Ended        whole, after 8s",
        '{"model": "ai/tiny"}',
        "an answer",
    ):
        assert line in shown.out.splitlines()
    # The first letters of an id may be left out.
    refused = greenroom("--port", str(unused_port), "requests", "show", REFUSED.id.removeprefix("r-")).out
    assert "Model    nope (not in the store)" in refused
    assert 'Because  model "nope" is not in the store' in refused
    unknown = greenroom("--port", str(unused_port), "requests", "show", "r-1")
    assert unknown.code == 1
    assert "There is no request r-1 in the record." in unknown.err


def test_without_a_record_that_is_said(greenroom: Any, unused_port: int, home: Path) -> None:
    port = ("--port", str(unused_port))
    done = greenroom(*port, "requests")
    assert (done.code, done.out, done.err) == (0, "", "No request has been recorded.\n")
    for command in (("-f",), ("record", "3")):
        done = greenroom(*port, "requests", *command)
        assert done.code == 3
        assert "not running" in done.err
    assert greenroom(*port, "requests", "--slow", "x").code == 2
    (home / FILE).write_bytes(b"no database at all, and long enough to be taken for one" * 99)
    done = greenroom(*port, "requests")
    assert done.code == 1
    assert "cannot be read" in done.err


def test_a_daemon_is_asked_with_the_filters(greenroom: Any, our_daemon: Any) -> None:
    path = "GET /requests?model=tiny&status=4xx&slow=2s&since=10m&last=7"
    our_daemon.routes[path] = [msgspec.to_builtins(REFUSED)]
    options = "--model tiny --status 4xx --slow 2s --since 10m -n 7".split()
    done = greenroom("requests", *options)
    assert done.code == 0, done.err
    assert REFUSED.id in done.out
    our_daemon.routes[path] = []
    assert greenroom("requests", *options).err == "No request fits.\n"


def test_requests_are_printed_as_they_end(
    greenroom: Any, our_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(_: object) -> Iterator[str]:
        yield json.dumps(msgspec.to_builtins(WHOLE))
        yield ""
        yield json.dumps(msgspec.to_builtins(REFUSED))

    our_daemon.routes["GET /requests?last=2&follow=true"] = lines
    shown = greenroom("requests", "-f", "-n", "2").out.splitlines()
    assert [line.split()[0] == "TIME" for line in shown] == [True, False, False]
    # Each line is printed for itself, and the columns agree.
    assert shown[1].index("whole") == shown[2].index("refused") == shown[0].index("ENDED")
    monkeypatch.setattr("greenroom.runner.cli.requests.terminal_width", lambda: 80)
    narrow = greenroom("requests", "-f", "-n", "2").out.splitlines()
    assert max(map(len, narrow)) <= 80
    assert "ROUTE" not in narrow[0]
    again = greenroom("requests", "-f", "-n", "2", "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in again] == [WHOLE.id, REFUSED.id]


def test_bodies_are_asked_for(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /requests/record"] = lambda seen: seen.body
    assert "the next 3 requests to tiny" in greenroom("requests", "record", "3", "--model", "tiny").out
    assert "not recorded any more" in greenroom("requests", "record", "0").out
    assert our_daemon.bodies("/requests/record") == [{"count": 3, "model": "tiny"}, {"count": 0, "model": ""}]
    assert greenroom("requests", "record", "1001").code == 2


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_it_fits_the_terminal(
    greenroom: Callable[..., Any], unused_port: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.cli.requests.terminal_width", lambda: width)
    for command in ((), ("show", REFUSED.id)):
        shown = greenroom("--port", str(unused_port), "requests", *command).out.splitlines()
        assert max(map(len, shown)) <= width
        assert any(REFUSED.id in line for line in shown)
