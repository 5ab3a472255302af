"""A backend on its way, as clients see it: one daemon, and a backend of its own for each test."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from package_index import Misbehaviour
from waiting import until
from workshop import Workshop

MB = 10**6


@pytest.fixture(scope="module")
def daemon(
    workshop: Workshop, make_home_daemon: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    for name in ("cancelled", "left", "upgraded", "shared", "killed", "dropped", "stalled"):
        workshop.add(name, MB)
    workshop.add("watched", 3 * MB)
    home = tmp_path_factory.mktemp("installing") / "home"
    home.mkdir()
    workshop.furnish(home)
    return make_home_daemon(home, **workshop.environment(home.parent)).start()


@pytest.fixture(scope="module")
def hold(workshop: Workshop) -> Iterator[Callable[[str], Callable[[], None]]]:
    """Has a backend's wheel stop after a half; what is given back lets it go on."""
    held: list[threading.Event] = []

    def hold(name: str) -> Callable[[], None]:
        go = threading.Event()
        workshop.index.wrong[wheel(name)] = Misbehaviour(rate=4 * MB, hang=go, hang_after=MB // 2)
        held.append(go)
        return go.set

    yield hold
    for go in held:
        go.set()


def wheel(name: str) -> str:
    return f"{name}-1.0-py3-none-any.whl"


def half_here(daemon: Any, name: str) -> bool:
    """Half of the backend has come, and the rest is waited for."""
    job = daemon.get(f"/engines/{name}").json["job"]
    return bool(job) and job.get("done", 0) >= MB // 2


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def job_events(daemon: Any, name: str) -> list[tuple[str, str]]:
    """Type and reason of what the journal has about a backend."""
    return [
        (record.type, data.get("reason", ""))
        for record, data in daemon.events()
        if record.stream == f"install/{name}"
    ]


class Stream(NamedTuple):
    """An answer that is read line by line on a thread of its own."""

    thread: threading.Thread
    lines: list[str]

    def objects(self) -> list[dict[str, Any]]:
        """Every line's object, once the answer is whole."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        data = [line.removeprefix("data: ") for line in self.lines]
        return [json.loads(line) for line in data if line.startswith("{")]


def follow(daemon: Any, name: str, accept: str) -> Stream:
    """Ask for a backend with a wish for progress."""
    where = urlsplit(daemon.url)
    lines: list[str] = []

    def read() -> None:
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        connection.request(
            "POST", "/engines/install-backend", json.dumps({"backend": name}), {"Accept": accept}
        )
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, accept)
        lines.extend(line.decode().rstrip("\n") for line in answer)
        connection.close()

    thread = threading.Thread(target=read)
    thread.start()
    return Stream(thread, lines)


@pytest.fixture(scope="module", autouse=True)
def stalled(daemon: Any, hold: Any) -> Any:
    """A stall and three who watch it; it takes its time, so it begins first."""
    go_on = hold("stalled")
    watchers = [follow(daemon, "stalled", kind) for kind in ("application/x-ndjson", "text/event-stream")]
    return go_on, watchers, daemon.begin("install-runner", "--backend", "stalled")


def test_cancelling_a_job_tells_every_waiting_client_what_to_do_next(
    daemon: Any, hold: Any, workshop: Workshop
) -> None:
    go_on = hold("cancelled")
    waiting = daemon.begin("install-runner", "--backend", "cancelled")
    until(lambda: half_here(daemon, "cancelled"))
    (folder,) = daemon.home.glob("backends/cancelled/*")

    by = daemon.run("cancel", "cancelled")

    assert (by.returncode, by.stdout, by.stderr) == (0, "Cancelled: cancelled.\n", "")
    code, _, err = ended(waiting)
    assert code == 1
    assert err.splitlines()[-1] == (
        "Error: The installation of cancelled was cancelled: requested by the user. Downloads are kept. "
        "Start again: greenroom install-runner --backend cancelled"
    )
    until(lambda: not folder.exists())
    log = daemon.run("log", "--backend", "cancelled").stdout.splitlines()
    assert "Cancelled the installation of cancelled: requested by the user.  <- r-" in log[-1]
    why = daemon.run("why", "cancelled").stdout
    assert re.search(
        r"^cancelled is not installed\. Its installation was cancelled at \S+ \(.+\)\sby\srequest\sr-\S+\s"
        r"\(POST\s/engines/cancel-install,\sfrom\s127\.0\.0\.1\)\.",
        why,
    )
    assert "To install it: greenroom install-runner --backend cancelled" in why
    again = daemon.run("cancel", "cancelled")
    assert again.returncode == 1
    assert "There is no job 'cancelled' to cancel. List the jobs: greenroom status" in again.stderr

    go_on()
    assert daemon.run("install-runner", "--backend", "cancelled").returncode == 0
    ranges = [
        headers.get("Range") for _, path, headers in workshop.index.requests if wheel("cancelled") in path
    ]
    assert ranges[0] is None
    assert int((ranges[1] or "").removeprefix("bytes=").removesuffix("-")) >= MB // 2


@pytest.mark.parametrize(("command", "name"), [("install-runner", "left"), ("upgrade-runner", "upgraded")])
def test_ctrl_c_ends_the_job_when_no_other_client_waits(
    command: str, name: str, daemon: Any, hold: Any
) -> None:
    hold(name)
    only = daemon.begin(command, "--backend", name)
    until(lambda: half_here(daemon, name))
    (folder,) = daemon.home.glob(f"backends/{name}/*")

    only.send_signal(signal.SIGINT)

    code, _, err = ended(only)
    assert (code, err.splitlines()[-2:]) == (130, [f"Cancelled: {name}.", ""])
    assert job_events(daemon, name) == [
        ("install_requested", ""),
        ("install_cancelled", "every client waiting for it disconnected"),
    ]
    until(lambda: not folder.exists())
    assert daemon.get(f"/engines/{name}").json["state"] == "absent"


def test_ctrl_c_of_one_of_two_leaves_the_job_to_the_other(daemon: Any, hold: Any) -> None:
    go_on = hold("shared")
    first, second = (daemon.begin("install-runner", "--backend", "shared") for _ in range(2))
    until(lambda: half_here(daemon, "shared"))
    # It waits once it has been told how far the job is.
    assert second.stdout.readline() == "Installing shared backend...\n"

    first.send_signal(signal.SIGINT)

    code, _, err = ended(first)
    assert code == 130
    assert "shared continues in the background: another client is waiting for it." in err
    go_on()
    assert ended(second)[:2] == (0, "shared backend installed successfully\n")
    assert [kind for kind, _ in job_events(daemon, "shared")][:2] == [
        "install_requested",
        "installation_committed",
    ]


def test_a_killed_daemon_is_not_waited_for(daemon: Any, hold: Any) -> None:
    hold("killed")
    killed, left = (daemon.begin("install-runner", "--backend", "killed") for _ in range(2))
    for one in (killed, left):
        assert one.stdout.readline() == "Installing killed backend...\n"
    killed.kill()
    killed.wait(60)
    # Each answer is a turn of the loop that looks, fifty times a second, who is still there.
    for _ in range(10):
        daemon.get("/healthz")
        time.sleep(0.05)

    left.send_signal(signal.SIGINT)

    code, _, err = ended(left)
    assert (code, err.splitlines()[-2:]) == (130, ["Cancelled: killed.", ""])


def test_a_client_that_is_killed_cancels_nothing(daemon: Any, hold: Any) -> None:
    go_on = hold("dropped")
    only = daemon.begin("install-runner", "--backend", "dropped")
    until(lambda: half_here(daemon, "dropped"))
    only.kill()
    only.wait(60)
    go_on()
    until(lambda: daemon.get("/engines/dropped").json["state"] == "installed")
    assert daemon.run("install-runner", "--backend", "dropped").stdout == (
        "dropped backend is already installed (version 1.0)\n"
    )


def test_through_a_slow_index_the_counts_rise_to_a_total_that_is_known_at_the_first_line(
    daemon: Any, workshop: Workshop
) -> None:
    workshop.index.wrong[wheel("watched")] = Misbehaviour(rate=MB)
    total = len(workshop.index.wheels["watched"][wheel("watched")])
    accepted = daemon.post("/engines", {"name": "watched"})
    assert (accepted.status, accepted.headers["Location"]) == (202, "/engines/watched")
    streams = [follow(daemon, "watched", kind) for kind in ("application/x-ndjson", "text/event-stream")]
    command = daemon.begin("install-runner", "--backend", "watched")
    seen = []

    def over() -> bool:
        now = daemon.get(accepted.headers["Location"]).json
        if now["job"] and "done" in now["job"]:
            seen.append(now["job"]["done"])
        return bool(now["state"] == "installed")

    until(over)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 10

    for stream in streams:
        *steps, last = stream.objects()
        assert (last["type"], last["already"]) == ("success", False)
        assert {step["total"] for step in steps} == {total}
        counts = [step["done"] for step in steps if step["phase"] == "downloading"]
        assert counts == sorted(counts)
        assert len(set(counts)) >= 10
        assert counts[-1] == total
        assert max(step.get("seconds_left", 0) for step in steps) > 1
        assert [step["phase"] for step in steps if step["phase"] != "downloading"] == [
            "unpacking",
            "verifying",
        ]
    code, out, err = ended(command)
    assert (code, out) == (0, "Installing watched backend...\nwatched backend installed successfully\n")
    moving = re.compile(
        r"  watched: Downloading watched 1\.0, \S+ .B of 3\.00 MB \(\d+%\), \S+ .?B/s, \ds left"
    )
    assert [line for line in err.splitlines() if moving.fullmatch(line)]
    assert "\x1b" not in err
    assert "\r" not in err


def _is_told(lines: list[str], words: str) -> bool:
    return any(words in line for line in lines)


def test_a_stall_is_reported_wherever_it_is_waited_for(daemon: Any, stalled: Any) -> None:
    go_on, streams, command = stalled

    for stream in streams:
        until(partial(_is_told, stream.lines, "nothing received for"))
    until(lambda: "nothing received for" in daemon.run("status").stdout)
    told = []
    while "nothing received for" not in (line := command.stderr.readline()):
        told.append(line)
        assert line, told
    assert re.fullmatch(
        r"  stalled: Downloading stalled 1\.0, \S+ kB of 1\.00 MB \(\d\d%\): nothing received for \d+s\n",
        line,
    )

    go_on()
    for stream in streams:
        *steps, last = stream.objects()
        assert last["type"] == "success"
        assert "nothing received" not in steps[-1]["message"]
    assert ended(command)[0] == 0
