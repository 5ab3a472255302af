"""What went wrong is a property of each event; what has happened is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from greenroom.actors.daemon_log import DaemonStarted, DevicesChanged, SettingInForce
from greenroom.actors.engine_runner.events import EngineLost, EngineStopRequested
from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.installer.events import InstallationBroken, InstallAttemptFailed
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.events import ModelRemoved, PullCancelled, PullFailed
from greenroom.actors.scheduler.events import BreakerOpened, ConfigChanged
from greenroom.actors.values import Failure
from greenroom.runner.diagnosis.problems import Problems
from greenroom.runner.diagnosis.summary import Summary, summarize
from greenroom.runner.diagnosis.times import clock
from greenroom.runner.record.row import Row
from greenroom.runner.record.table import FILE, RecordReader, RecordTable

UNREACHABLE = Failure(kind="transient", code="unreachable", message="The index cannot be reached.")
CARD = GraphicsDevice(id="GPU-1", maker="nvidia", name="RTX 4070")


def problems(script: Any) -> list[str]:
    chosen = Problems()
    return [record.type for record in script.records if chosen.takes(record)]


def test_an_ordinary_life_has_no_problem(script: Any) -> None:
    script.evict(script.load(), "idle", idle_seconds=300.0)
    script.add(PullCancelled(job="pull.1", reason="Ctrl-C"))
    script.add(DevicesChanged(after=(CARD,)))
    script.stopped()
    script.daemon(pid=101)

    assert problems(script) == []


def test_what_failed_was_refused_or_was_killed_is_a_problem(script: Any) -> None:
    script.refuse("poet", "does_not_fit", "It needs 9 GB.")
    engine = script.load()
    script.die(engine, "It was killed by SIGKILL.", was_ready=True, signal="SIGKILL")
    stalled = script.load("poet")
    script.add(EngineStopRequested(engine_id=stalled, reason="it sent nothing for 17 s", fault=True))
    script.add(EngineLost(engine_id=stalled, reason="it is gone"))
    broken = BreakerOpened(
        model_id="m", model_ref="poet", backend="x", installation_id="i", failures=3, until=0.0, reason="no"
    )
    script.add(broken)
    script.add(InstallationBroken(backend="mlx", installation_id="i", reason="a file is missing"))
    retried = InstallAttemptFailed(job="j", backend="mlx", attempt=1, failure=UNREACHABLE, retry_at=0.0)
    script.add(retried)
    script.add(PullFailed(job="pull.9", failure=UNREACHABLE))
    script.add(DevicesChanged(before=(CARD,)))
    parked = CommandParked(actor="scheduler", command="Serve", fields="{}", traceback="KeyError: 1")
    script.raw("parked/scheduler", CommandParked.TAG, msgspec.json.encode(parked).decode())
    script.daemon(pid=101)

    assert problems(script) == [
        "load_refused",
        "engine_exited",
        "load_failed",
        "engine_stop_requested",
        "engine_lost",
        "breaker_opened",
        "installation_broken",
        "install_attempt_failed",
        "pull_failed",
        "devices_changed",
        "command_parked",
        "daemon_started",
    ]


def test_events_of_other_programs_and_of_newer_versions_are_no_problem(script: Any) -> None:
    script.raw("host/1", "order_failed", "{}")
    script.raw("scheduler", "load_failed", "{}", schema=99)

    assert problems(script) == []


def test_what_happened_alike_is_counted_as_one(script: Any) -> None:
    script.evict(script.load(), "idle", idle_seconds=300.0)
    begin = script.now + 1.0
    script.wait(10.0)
    for _ in range(2):
        script.die(script.load(), "It was killed by SIGKILL.", was_ready=True)
    script.refuse("poet", "does_not_fit", "It needs 9 GB.")
    script.evict(script.load(), "unload", cause="r-0a1b2c3d-7")
    settings = ConfigChanged(model_id="m", model_ref="smollm2", mode="completion", context_size=8192)
    script.add(settings)
    script.model("poet")
    script.add(ModelRemoved(model_id=f"sha256:{b'poet'.hex():0<64}", reason="as requested", freed=9))
    script.daemon(pid=101)

    found = summarize(script.records, begin, script.now + 1.0)

    crash = "smollm2 on llama.cpp stopped working: It was killed by SIGKILL."
    assert [(one.count, one.about, one.text) for one in found.crashes] == [
        (2, "smollm2", crash),
        (1, "daemon", "A daemon did not shut down cleanly."),
    ]
    assert [(one.count, one.about) for one in found.refusals] == [(1, "does_not_fit")]
    assert [(one.count, one.about, one.id) for one in found.loads] == [(3, "smollm2", "runner/llama.cpp/16")]
    assert [(one.count, one.about) for one in found.evictions] == [(1, "smollm2")], "one is older"
    assert [(len(one), one[0].count) for one in (found.starts, found.pulls, found.removals)] == [(1, 1)] * 3
    assert "context of 8192" in found.settings[0].text
    assert found.installations == []
    assert found.requests is None
    text = found.text(script.now)
    at, last = clock(found.crashes[0].at, script.now), found.crashes[0].id
    assert f"\n\nCrashed: 3\n  {at}  {last:<20}  2 times; the last: {crash}\n" in text
    assert "Nothing failed" not in text


def test_looking_for_what_is_not_there_is_no_refusal(tmp_path: Path) -> None:
    base: dict[str, Any] = {"at": 5.0, "method": "POST", "path": "/v1/chat/completions"}
    missing: dict[str, Any] = {"outcome": "refused", "status": 404, "code": "model_not_found"}
    rows = [
        Row(id="r-0a1b2c3d-1", family="openai", **base, **missing),
        Row(id="r-0a1b2c3d-2", family="management", **base, **missing),
        Row(id="r-0a1b2c3d-3", family="management", **base, **{**missing, "code": "bad_name"}),
        Row(id="r-0a1b2c3d-4", family="management", **base, outcome="whole", status=200),
    ]
    RecordTable(tmp_path / FILE, keep_for=1e12, rows=100).append([(one, None) for one in rows], 9.0)
    with RecordReader(tmp_path) as record:
        found = summarize([], 0.0, 9.0, record)
    assert found.outcomes == {"whole": 2, "refused": 2}
    assert {(one.about, one.id) for one in found.refusals} == {
        ("model_not_found", "r-0a1b2c3d-1"),
        ("bad_name", "r-0a1b2c3d-3"),
    }


def test_refusals_and_slow_requests_come_from_the_record(script: Any, tmp_path: Path) -> None:
    script.refuse("poet", "does_not_fit", "It needs 9 GB.")
    base: dict[str, Any] = {"method": "POST", "path": "/v1/chat/completions", "at": script.now}
    refused: dict[str, Any] = {"outcome": "refused", "status": 404, "code": "model_not_found"}
    tiny: dict[str, Any] = {"outcome": "whole", "model": "tiny"}
    rows = [
        Row(id="r-0a1b2c3d-1", **base, **refused),
        Row(id="r-0a1b2c3d-2", **{**base, "at": script.now + 1}, **refused),
        Row(id="r-0a1b2c3d-3", **base, **tiny, first_token=7.5, loading=7.0, seconds=9.0),
        Row(id="r-0a1b2c3d-4", **base, **tiny, first_token=0.2, seconds=60.0),
        Row(id="r-0a1b2c3d-5", **base, family="management", outcome="whole", seconds=90.0),
        Row(id="r-0a1b2c3d-6", **{**base, "at": 1.0}, **refused),
    ]
    table = RecordTable(tmp_path / FILE, keep_for=1e12, rows=1_000)
    table.append([(row, None) for row in rows], script.now)
    table.close()

    with RecordReader(tmp_path) as record:
        found = summarize(script.records, script.now - 60, script.now + 60, record)

    assert [(one.count, one.about, one.id) for one in found.refusals] == [
        (2, "model_not_found", "r-0a1b2c3d-2")
    ]
    assert (found.requests, found.slow_requests) == (5, 1)
    assert found.outcomes == {"whole": 3, "refused": 2}
    assert "events and 5 requests (3 answered, 2 refused) since" in found.text(script.now)
    assert [(one.id, one.text) for one in found.slow] == [
        ("r-0a1b2c3d-3", "tiny: 7.5s to the first token (7s loading).")
    ]


def test_a_day_without_trouble_says_so(script: Any) -> None:
    text = summarize(script.records, script.now - 86_400, script.now).text(script.now)

    assert text.startswith("5 events since 2023-11-13 12:00:07 (1d).\n\nStarted: 1\n")
    assert text.endswith("\n\nNothing failed, and nothing was refused.")
    assert summarize([], 0.0, 1.0) == Summary(since=0.0, until=1.0)


def test_settings_that_changed_between_two_daemons_are_told(script: Any) -> None:
    for pid, value in ((101, "5m"), (102, "30m"), (103, "30m")):
        script.stopped()
        setting = SettingInForce(name="keep_alive", value=value, origin="flag --keep-alive")
        script.add(DaemonStarted(pid=pid, version="1", platform="Linux", settings=(setting,)))

    found = summarize(script.records, 0.0, script.now)

    changed = "keep_alive was 5m (flag --keep-alive), now 30m (flag --keep-alive)."
    assert [(one.count, one.about, one.text) for one in found.settings] == [(1, "daemon", changed)]
    assert found.crashes == []
