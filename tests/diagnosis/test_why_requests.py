"""What became of a request, from its row in the record and from the events it caused."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.runner.diagnosis.explain import UnknownName
from greenroom.runner.record.row import Row

NAME = "r-0a1b2c3d-77"
TINY = f"sha256:{b'smollm2'.hex():0<64.64}"


def row(now: float, **more: Any) -> Row:
    usual: dict[str, Any] = {
        "id": NAME,
        "at": now - 10.0,
        "method": "POST",
        "path": "/v1/chat/completions",
        "family": "openai",
        "caller": "curl (process 4711)",
        "asked": "smollm2",
        "model": "smollm2",
        "model_id": TINY,
        "seconds": 4.0,
    }
    return Row(**(usual | more))


def why(script: Any, one: Row, name: str = "") -> Any:
    return script.why(name or one.id, recorded=lambda asked: one if asked == one.id else None)


def test_a_whole_answer_tells_what_its_time_went_into(script: Any) -> None:
    script.load()
    one = row(
        script.now,
        outcome="whole",
        status=200,
        engine="e-1",
        queued=0.5,
        loading=2.1,
        first_token=2.75,
        tokens_in=20,
        tokens_out=512,
        tokens_per_second=97.5,
    )
    found = why(script, one)
    assert (found.kind, found.state, found.cause) == ("request", "served", "whole")
    who = f"Request {NAME} (POST /v1/chat/completions to smollm2, from curl (process 4711))"
    assert found.answer.startswith(f"{who} got its whole answer at ")
    assert found.answer.endswith(
        "4s after it arrived. It waited 0.5s in the queue and 2.1s for the model to be loaded. The "
        "first token came after 2.8s. The answer has 512 tokens after 20 tokens of prompt, 97.5 a second."
    )
    assert found.numbers["loading"] == 2.1
    assert found.remedies[0].command == f"greenroom requests show {NAME}"
    # The first letters of the id may be left out.
    assert why(script, one, NAME.removeprefix("r-")).answer == found.answer


@pytest.mark.parametrize(
    ("fields", "state", "cause", "said"),
    [
        (
            {
                "status": 400,
                "outcome": "refused",
                "code": "invalid_type",
                "sentence": "messages[0].role: no.",
            },
            *("refused", "invalid_type", "was refused with 400 at "),
        ),
        ({"status": 499, "outcome": "left"}, "left", "left", "after 4s: it disconnected before the end."),
        ({"status": 499, "outcome": "cut"}, "failed", "cut", "its client did not read the answer"),
        ({"outcome": ""}, "waiting", "waiting", "has waited for 4s."),
        ({"outcome": "", "engine": "e-1"}, "answering", "answering", "is being answered by engine e-1"),
        (
            {"outcome": "cancelled", "code": "stopping", "sentence": "Greenroom is stopping."},
            *("failed", "stopping", "was cancelled at "),
        ),
        ({"outcome": "whole", "family": "management"}, "served", "whole", "was carried out at "),
    ],
)
def test_the_first_sentence_says_what_became_of_it(
    script: Any, fields: dict[str, Any], state: str, cause: str, said: str
) -> None:
    script.load()
    found = why(script, row(script.now, **fields))
    assert (found.state, found.cause) == (state, cause)
    assert said in found.answer
    if "sentence" in fields:
        assert found.answer.endswith(fields["sentence"])


def test_a_request_whose_engine_died_tells_how_that_ended(script: Any) -> None:
    engine = script.load()
    script.wait(2.0)
    script.die(engine, "It was killed by SIGSEGV.", was_ready=True, signal="SIGSEGV", last_lines=("oops",))
    one = row(
        script.now,
        outcome="died",
        status=200,
        engine=engine,
        code="engine_died",
        sentence="The llama.cpp engine that served it ended in mid-stream: it was killed by SIGSEGV.",
    )
    found = why(script, one)
    assert (found.state, found.cause) == ("failed", "crashed")
    assert f"lost its engine {engine} at " in found.answer
    assert found.answer.endswith("in mid-stream: it was killed by SIGSEGV.")
    assert found.steps[-1].type == "load_failed"
    assert found.remedies[0].command == f"greenroom why {engine}"


def test_a_command_tells_what_it_changed_and_the_model_tells_the_command(script: Any) -> None:
    engine = script.load()
    script.wait(2.0)
    script.evict(engine, "unload", cause=NAME)
    one = row(script.now, path="/engines/unload", family="management", model="", asked="", outcome="whole")
    found = why(script, one)
    assert (found.state, found.cause) == ("served", "whole")
    assert "POST /engines/unload, from curl (process 4711)) was carried out at" in found.answer
    assert found.answer.endswith(" It unloaded smollm2.")
    told = why(script, one, "smollm2").answer
    assert told.endswith(f"by request {NAME} (POST /engines/unload, from curl (process 4711)).")
    assert script.why("smollm2").answer.endswith(f"by request {NAME}."), "without the record of requests"


def test_nothing_is_invented_about_a_request_that_is_not_known(script: Any) -> None:
    script.load()
    with pytest.raises(UnknownName, match="Nothing is known of request r-0a1b2c3d-999"):
        script.why("r-0a1b2c3d-999")
