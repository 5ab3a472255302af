"""Explanations of journals that are damaged, newer, from another machine or very long."""

from __future__ import annotations

from typing import Any

import msgspec

from explained import types
from greenroom.actors.journal.port import JournalDamaged
from greenroom.runner.diagnosis.explain import explain
from greenroom.runner.diagnosis.explanation import Explanation


def test_damage_ends_the_history_with_a_notice(script: Any) -> None:
    script.load()

    def damaged() -> Any:
        yield from script.records
        raise JournalDamaged("event 13 is not what was written", 13)

    found = explain(damaged(), "smollm2", script.now)

    assert found.state == "loaded"
    assert found.notices == ("The journal is damaged from event 13 on: event 13 is not what was written",)


def test_an_event_of_a_newer_version_is_passed_over_with_a_notice(script: Any) -> None:
    script.load()
    script.raw("scheduler", "load_moved", '{"engine_id":"18bd0f5a2c0-1"}')
    script.raw("scheduler", "load_admitted", "{}", schema=99)

    found = script.why("smollm2")

    assert found.state == "loaded"
    assert found.notices[0].startswith("Part of the journal could not be read: event 11 (scheduler/3)")


def test_a_hosts_own_events_do_no_harm(script: Any) -> None:
    script.raw("host/orders", "order_placed", '{"model":"smollm2","engine_id":7,"spec":[1]}')
    script.raw("host/orders", "order_placed", "[]")

    assert script.why("smollm2").cause == "never_asked"


def test_a_clock_that_is_behind_the_journal_is_reported(script: Any) -> None:
    found = explain(script.records, "smollm2", script.now - 3600)

    assert "ahead of this machine's clock" in found.notices[0]


def test_a_long_history_is_explained_from_its_last_episode_and_bounded(script: Any) -> None:
    for _ in range(300):
        script.evict(script.load(), "idle", idle_seconds=300.0)

    found = script.why("smollm2")

    assert found.cause == "idle"
    assert types(found)[0] == "backend_chosen"
    assert len(found.steps) == 8


def test_an_explanation_is_the_same_for_the_same_events_and_survives_json(script: Any) -> None:
    script.load()

    assert script.why("smollm2") == script.why("smollm2")
    found = script.why("smollm2")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Explanation) == found


def test_an_answer_ends_with_the_command_that_would_change_it(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "idle", idle_seconds=300.0)

    lines = script.why("smollm2").text(script.now).splitlines()

    assert lines[:7] == [
        "smollm2 is not loaded: it was unloaded at 12:00:07 (just now) after being idle for 5m, which is its",
        "keep-alive.",
        "",
        "Why llama.cpp: it reads GGUF and is installed.",
        "",
        "What happened:",
        "  12:00:07  Chose llama.cpp for smollm2 (completion): it reads GGUF and is installed.",
    ]
    assert lines[7:] == [
        "  12:00:07  Loading smollm2 on llama.cpp; 444 MB reserved (444 MB of 8.00 GB in total).",
        f"  12:00:07  Starting engine {engine} (smollm2 on llama.cpp).",
        f"  12:00:07  Engine {engine} (smollm2 on llama.cpp) is loading its model as process 4711.",
        f"  12:00:07  Engine {engine} (smollm2 on llama.cpp) is ready after 0.8s.",
        f"  12:00:07  Unloading smollm2 from llama.cpp (engine {engine}): it has been idle for 5m.",
        f"  12:00:07  Stopping engine {engine} (smollm2 on llama.cpp): it is no longer needed.",
        f"  12:00:08  Engine {engine} (smollm2 on llama.cpp) stopped as requested (exit code 0).",
        "",
        "To load it again:      greenroom run smollm2",
        "To keep models longer: greenroom stop && greenroom serve --keep-alive 30m",
    ]
