"""Installing where the disk is really full, or really cannot be written to."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mounts import Mounts, NotPermitted
from package_index import Misbehaviour
from waiting import until
from workshop import Workshop

MB = 10**6
DISK = 100
"""Megabytes: 64 are never planned with."""


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    made = Mounts()
    yield made
    made.close()


@pytest.fixture
def disk(mounts: Mounts, tmp_path: Path) -> Path:
    """A small one."""
    where = tmp_path / "disk"
    try:
        mounts.small(where, DISK)
    except NotPermitted:
        pytest.skip("only who may mount file systems can have a small one: run it as root")
    return where


@pytest.fixture(scope="module", autouse=True)
def _bulky(workshop: Workshop) -> None:
    workshop.add("bulky", 3 * MB, companion=MB)


@pytest.fixture
def daemon(disk: Path, workshop: Workshop, make_home_daemon: Callable[..., Any]) -> Iterator[Any]:
    """One with its data directory on that disk, not started."""
    workshop.index.wrong.clear()
    workshop.index.requests.clear()
    home = disk / "home"
    home.mkdir()
    workshop.furnish(home)
    daemon = make_home_daemon(home, **workshop.environment(disk))
    yield daemon
    # While its disk is still there.
    daemon.stop()


def left_behind(daemon: Any) -> list[Path]:
    """Folders of installations, whole or not."""
    return list(daemon.home.glob("backends/*/*"))


def log_of(daemon: Any) -> str:
    return str(daemon.log())


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill the disk up to so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        block = b"\0" * MB
        try:
            while True:
                file.write(block)
        except OSError:
            pass
        if leave:
            file.truncate(file.tell() - leave)
    return ballast


def test_what_does_not_fit_is_refused_before_a_byte_is_fetched(
    disk: Path, workshop: Workshop, daemon: Any
) -> None:
    daemon.start()
    ballast = fill(disk, leave=30 * MB)

    done = daemon.run("install-runner", "--backend", "bulky")

    assert done.returncode == 1
    assert re.search(
        r"^Error: Installing needs 75 MB, including 67 MB kept free for the journal and the logs; the disk "
        r"of \S+ has 30 MB left\. Free some space, or set GREENROOM_HOME to a folder on another disk\.$",
        done.stderr,
        re.MULTILINE,
    )
    assert not left_behind(daemon)
    assert not [path for path in workshop.index.paths() if path.endswith(".whl")]
    plain = daemon.post("/engines/install-backend", {"backend": "bulky"})
    assert (plain.status, b"Installing needs 75 MB" in plain.body) == (507, True)

    ballast.unlink()
    assert daemon.run("install-runner", "--backend", "bulky").returncode == 0


def test_a_disk_that_others_fill_meanwhile_ends_it_with_nothing_half_done(
    disk: Path, workshop: Workshop, daemon: Any
) -> None:
    daemon.start()
    go_on = threading.Event()
    workshop.index.wrong["bulky-1.0-py3-none-any.whl"] = Misbehaviour(hang=go_on, hang_after=MB)
    waiting = daemon.begin("install-runner", "--backend", "bulky")
    until(lambda: (daemon.get("/engines/bulky").json["job"] or {}).get("done", 0) >= MB)
    ballast = fill(disk)
    go_on.set()

    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert re.match(
        r"Error: Installing needs \d+ MB, including 67 MB kept free .* has \d MB left\. Free some space",
        err.splitlines()[-1],
    )
    until(lambda: not left_behind(daemon))
    why = daemon.run("why", "bulky").stdout
    assert "No space left on device" in why
    assert "To try again: greenroom install-runner --backend bulky" in why
    # It serves on.
    assert daemon.get("/readyz").status == 200

    ballast.unlink()
    done = daemon.run("install-runner", "--backend", "bulky")
    assert done.returncode == 0, done.stderr
    assert daemon.run("backends", "verify").returncode == 0
    ends = [record.type for record, _ in daemon.events() if record.stream == "install/bulky"]
    assert ends[-1] in ("installation_committed", "installation_activated"), ends
    assert daemon.restart().get("/engines/bulky").json["state"] == "installed"


@pytest.mark.parametrize("folder", ["backends", "cache"])
def test_a_folder_that_cannot_be_written_to_is_reported_and_forgotten_once_it_can(
    folder: str, mounts: Mounts, daemon: Any
) -> None:
    daemon.start()
    (daemon.home / folder).mkdir(exist_ok=True)
    mounts.read_only(daemon.home / folder)

    done = daemon.run("install-runner", "--backend", "bulky")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: The data directory cannot be written to. "
        "Make it writable, or set GREENROOM_HOME to a folder that is."
    )
    assert "Traceback" not in log_of(daemon)

    assert daemon.post("/engines/install-backend", {"backend": "bulky"}).status == 507

    mounts.writable(daemon.home / folder)
    assert daemon.run("install-runner", "--backend", "bulky").returncode == 0


def test_on_a_data_directory_that_cannot_be_written_to_nothing_starts_and_a_sentence_says_so(
    mounts: Mounts, daemon: Any
) -> None:
    mounts.read_only(daemon.home)

    serve = daemon.run("serve")
    assert serve.returncode == 3
    assert "is mounted read-only. Set GREENROOM_HOME to a folder you may write to." in serve.stderr
    install = daemon.run("install-runner", "--backend", "bulky", GREENROOM_HOST="")
    assert install.returncode == 3
    assert "is mounted read-only. Set GREENROOM_HOME to a folder you may write to." in install.stderr
    assert "Traceback" not in serve.stderr + install.stderr

    mounts.writable(daemon.home)
    assert daemon.start().get("/readyz").status == 200
