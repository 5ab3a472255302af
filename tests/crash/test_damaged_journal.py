"""A damaged journal is put away, and a real daemon rebuilds from what is on disk: only history is lost."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys

import pytest

from crashing import Life
from greenroom.actors.journal.reader import read_journal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc (Linux)")


def set_aside(life: Life, *flags: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "greenroom.runner.cli",
            "--home",
            str(life.home),
            "journal",
            "set-aside",
            *flags,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def damaged(life: Life) -> Life:
    """A life whose daemon was killed with an engine ready, and whose journal has rotted since."""
    life.kill_daemon()
    with contextlib.closing(sqlite3.connect(life.home / "journal.db")) as connection:
        connection.execute("UPDATE events SET data = '{}' WHERE seq = 5")
        connection.commit()
    said = life.is_refused()
    assert "JournalDamaged" in said
    assert "event 5" in said
    return life


@pytest.mark.parametrize("flags", [(), ("--keep",)])
def test_a_daemon_goes_on_from_the_disk_when_its_journal_was_put_away(
    damaged: Life, flags: tuple[str, ...]
) -> None:
    said = set_aside(damaged, *flags)
    assert "event 5" in said
    # What was acknowledged was acknowledged of the world, not of history.
    damaged.forget_history()
    damaged.start()
    damaged.look()
    types = [record.type for record in read_journal(damaged.home / "journal.db")]
    assert types.count("daemon_started") == (2 if flags else 1)
    if not flags:
        assert "installation_found" in types
        assert types.count("model_committed") == 2
        assert "install_requested" not in types
    damaged.chat("two")
    damaged.chat("one")
    damaged.uninstall()
    damaged.stop()
