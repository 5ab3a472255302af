"""What is said of the daemon's settings: those in force, and what differs from the daemon before."""

from __future__ import annotations

from typing import Any

from greenroom.actors.daemon_log import DaemonStarted, SettingInForce
from greenroom.runner.config import load
from greenroom.runner.diagnosis.settings_changed import settings_changed
from greenroom.runner.settings_text import in_force

FILE = "/home/ada/.greenroom/config.toml"


def start(script: Any, pid: int, *settings: tuple[str, str, str]) -> DaemonStarted:
    noted = tuple(SettingInForce(name=name, value=value, origin=origin) for name, value, origin in settings)
    event = DaemonStarted(pid=pid, version="0.1.0", platform="Linux", settings=noted)
    script.add(event, after=60.0)
    return event


def test_settings_that_changed_between_two_lives_are_told_with_their_origins(empty_script: Any) -> None:
    script = empty_script
    start(script, 100, ("memory_budget", "8 GB", FILE), ("queue_limit", "10", FILE), ("port", "1", "default"))
    script.stopped(100)
    start(
        script,
        101,
        ("memory_budget", "4 GB", "environment GREENROOM_MEMORY_BUDGET"),
        ("port", "1", "default"),
    )

    found = script.why("daemon")

    now = "4 GB (environment GREENROOM_MEMORY_BUDGET)"
    changes = (
        f"memory_budget was 8 GB (config.toml), now {now}; queue_limit was 10 (config.toml), now not set"
    )
    assert found.also == (
        f"Since the start at 12:02:00 (just now): {changes}.",
        f"Non-default settings: memory_budget {now}.",
    )


def test_the_latest_change_stays_known_after_further_starts(empty_script: Any) -> None:
    script = empty_script
    start(script, 100, ("keep_alive", "5m", "default"))
    start(script, 101, ("keep_alive", "30m", "flag --keep-alive"))
    start(script, 102, ("keep_alive", "30m", "flag --keep-alive"))
    start(script, 103, ("keep_alive", "1m", FILE))

    told = script.why("daemon").also
    assert told[0].endswith("keep_alive was 30m (flag --keep-alive), now 1m (config.toml).")
    assert told[1].endswith("keep_alive was 5m (default), now 30m (flag --keep-alive).")
    assert len(told) == 3


def test_a_daemon_of_an_earlier_version_has_noted_no_settings(script: Any) -> None:
    after = start(script, 101, ("keep_alive", "30m", "flag --keep-alive"))
    before = DaemonStarted(pid=100, version="0.1.0", platform="Linux")
    assert settings_changed(before, after) == settings_changed(after, before) == ()
    assert script.why("daemon").also == ("Non-default settings: keep_alive 30m (flag --keep-alive).",)


def test_a_start_notes_what_matters_most_and_all_that_is_no_default(tmp_path: Any) -> None:
    (tmp_path / "config.toml").write_text(
        'queue_limit = 9\n[registries."localhost:5000"]\nmirrors = ["https://localhost:5001"]\n'
    )
    settings = load(
        {"home": tmp_path, "port": "12444"},
        environment={"GREENROOM_MEMORY_BUDGET": "4GB", "GREENROOM_HOST": ""},
    )
    noted = {one.name: (one.value, one.origin) for one in in_force(settings)}

    assert noted["port"] == ("12444", "flag --port")
    assert noted["memory_budget"] == ("4 GB", "environment GREENROOM_MEMORY_BUDGET")
    assert noted["queue_limit"] == ("9", str(tmp_path / "config.toml"))
    assert noted["registries.localhost:5000.mirrors"][0] == "https://localhost:5001"
    assert noted["keep_alive"] == ("5m", "default")
    assert noted["slots"] == ("auto", "default")
    assert "home" not in noted, "where the user's files are is no one's business"
    assert "max_queued" not in noted
