"""Responses in the background with the real model: clients leave, one is cancelled, the daemon dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openai_types import check_response
from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

ENDLESS = {"max_output_tokens": 7000, "logit_bias": {"2": -100}}
"""The model may not say that it has ended."""


def test_a_real_response_outlives_its_client_and_a_daemon_that_dies_says_so(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    daemon = make_daemon(furnished).start()
    model = str(smollm2_gguf)

    def begun(**fields: Any) -> str:
        # Its connection is closed with the answer.
        body = {"model": model, "input": "Tell me a story.", "background": True, "temperature": 0, **fields}
        answer = daemon.post("/v1/responses", body)
        assert (answer.status, answer.json["status"]) == (200, "queued"), answer.body
        return str(answer.json["id"])

    def read(response_id: str) -> dict[str, Any]:
        response: dict[str, Any] = daemon.get(f"/v1/responses/{response_id}").json
        check_response(response)
        return response

    def inside() -> int:
        return sum(engine["inside"] for engine in daemon.engines())

    first = begun(max_output_tokens=24)
    until(lambda: read(first)["status"] not in ("queued", "in_progress"))
    ended = read(first)
    assert (ended["status"], ended["usage"]["output_tokens"]) == ("incomplete", 24)
    assert len(ended["output"][0]["content"][0]["text"].split()) > 8
    told = daemon.get(f"/v1/responses/{first}?stream=true").body.decode()
    assert told.count("event: response.output_text.delta") >= 20

    second = begun(**ENDLESS)
    until(lambda: read(second)["output"])
    assert inside() == 1
    cancelled = daemon.post(f"/v1/responses/{second}/cancel").json
    assert cancelled["status"] == "cancelled"
    assert cancelled["output"][0]["content"][0]["text"]
    until(lambda: inside() == 0)
    (engine,) = daemon.engines()

    third = begun(**ENDLESS)
    until(lambda: read(third)["output"])
    daemon.kill()
    daemon.start()
    failed = read(third)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert "ended before this response was complete" in failed["error"]["message"]
    assert read(first) == ended
    assert daemon.post(f"/v1/responses/{third}/cancel").json == failed
    assert [one["engine_id"] for one in daemon.engines()] == [engine["engine_id"]]
