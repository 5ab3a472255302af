"""Real daemons, started and ended as people do. None of them may fetch anything."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest

from daemon_process import DaemonProcess, ForkedDaemon
from greenroom.actors.journal.reader import read_journal
from waiting import until

GREENROOM = [sys.executable, "-m", "greenroom.runner.cli"]
BOUND = 30.0


@pytest.fixture
def place(home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int) -> Iterator[Path]:
    """A data directory and a port; a daemon left on it is stopped at the end. There is no package index."""
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    # Daemons inherit what `nohup` may have set for the tests.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield home
    signal.signal(signal.SIGHUP, before)
    for process in psutil.process_iter(["pid", "environ", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            ours = (process.info["environ"] or {}).get("GREENROOM_HOME") == str(home)
            if ours and "serve" in (process.info["cmdline"] or []):
                process.kill()
                process.wait(BOUND)


def note(home: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((home / "daemon.json").read_text()))
    return {}


@contextlib.contextmanager
def serving(home: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon in the foreground, up and listening."""
    process = subprocess.Popen([*GREENROOM, "serve", *flags], stderr=subprocess.PIPE, text=True)
    with process:
        try:
            until(
                lambda: note(home).get("pid") == process.pid or process.poll() is not None,
                what="the daemon's note",
            )
            if process.poll() is not None:
                assert process.stderr is not None
                raise AssertionError(f"the daemon ended with {process.returncode}: {process.stderr.read()}")
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def running(home: Path, *flags: str) -> Iterator[ForkedDaemon]:
    """The same as a fork, which is there sooner, for tests of what others do with it."""
    daemon = DaemonProcess(home)
    process = daemon.fork("serve_cli", *flags, env=dict(os.environ))
    try:
        until(daemon.listens, what="the daemon's note")
        yield process
    finally:
        process.kill()
        process.wait(BOUND)


def test_a_daemon_says_where_it_listens_stops_on_ctrl_c_and_exits_zero(place: Path) -> None:
    with serving(place) as daemon:
        daemon.send_signal(signal.SIGINT)
        _, err = daemon.communicate(timeout=BOUND)

    assert daemon.returncode == 0
    assert f"Greenroom listens on http://127.0.0.1:{os.environ['GREENROOM_PORT']} " in err
    assert not (place / "daemon.json").exists()
    assert "stopping: SIGINT" in (place / "daemon.log").read_text()


def test_a_terminal_that_closes_stops_the_daemon_before_it_in_order(place: Path) -> None:
    with serving(place) as daemon:
        daemon.send_signal(signal.SIGHUP)
        daemon.send_signal(signal.SIGHUP)  # the shell and the kernel both say it
        daemon.communicate(timeout=BOUND)

    assert daemon.returncode == 0
    assert "stopping: SIGHUP" in (place / "daemon.log").read_text()
    types = [record.type for record in read_journal(place / "journal.db")]
    # The end of the installation that had just begun is stored by another actor, before or after.
    assert [one for one in types if not one.startswith("install_")][-1] == "daemon_stopped"


def test_a_detached_daemon_ignores_terminals_that_close(place: Path) -> None:
    with serving(place, "--detached") as daemon:
        daemon.send_signal(signal.SIGHUP)
        with urllib.request.urlopen(f"{note(place)['url']}/livez", timeout=BOUND) as answer:
            assert json.load(answer)["pid"] == daemon.pid
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(BOUND) == 0
    assert "stopping: SIGTERM" in (place / "daemon.log").read_text()


def test_what_a_daemon_writes_is_its_owners_whatever_the_umask(place: Path) -> None:
    place.chmod(0o755)
    before = os.umask(0)
    try:
        with serving(place):
            lax = {
                str(one): oct(one.stat().st_mode)
                for one in place.rglob("*")
                # uv makes its cache's locks world-writable; no other user can reach them.
                if one.stat().st_mode & 0o022 and place / "cache" not in one.parents
            }
            private = [place / name for name in ("daemon.log", "daemon.json", "instance", "secret")]
            modes = {one.name: one.stat().st_mode & 0o777 for one in private}
    finally:
        os.umask(before)
    assert lax == {}
    assert set(modes.values()) == {0o600}, modes


def test_a_second_daemon_on_the_same_data_directory_names_the_first(
    place: Path, greenroom_process: Any, unused_port: int
) -> None:
    with running(place) as first:
        same_port = greenroom_process("serve")
        other_port = greenroom_process("serve", "--port", "0")

    for second in (same_port, other_port):
        assert second.returncode == 4
        assert f"process {first.pid}" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_daemon_that_was_killed_leaves_nothing_in_the_way_of_the_next(
    place: Path, greenroom_process: Any
) -> None:
    with running(place) as first:
        first.kill()
        first.wait(BOUND)
    assert (place / "daemon.json").exists()

    started = greenroom_process("start-runner", "--backend", "nonesuch")

    assert "Starting the Greenroom daemon…" in started.stderr
    assert started.returncode == 1
    assert "backend not found" in started.stderr
    log = greenroom_process("log").stdout
    assert f"(process {first.pid}) did not shut down cleanly." in log
    assert greenroom_process("stop").returncode == 0


def test_two_clients_that_start_a_daemon_at_once_end_with_one_and_both_work(place: Path) -> None:
    argv = [*GREENROOM, "install-runner", "--backend", "mlx", "--dry-run"]
    clients = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    endings = [client.communicate(timeout=2 * BOUND) for client in clients]

    # Without an index there is no plan; that each was told so by a daemon is what counts.
    for client, (_, err) in zip(clients, endings, strict=True):
        assert client.returncode in (0, 1), err
    log = [json.loads(line) for line in run_json("log", "--json")]
    started = [one["data"]["pid"] for one in log if one["type"] == "daemon_started"]
    assert started == [note(place)["pid"]]


def run_json(*arguments: str) -> list[str]:
    return subprocess.run(
        [*GREENROOM, *arguments], capture_output=True, text=True, timeout=60
    ).stdout.splitlines()


def test_a_background_start_that_fails_says_why_with_its_log(place: Path, greenroom_process: Any) -> None:
    (place / "config.toml").write_text('[models]\nmine = "https://not/a/model"\n')

    outcome = greenroom_process("pull", "smollm2")

    assert outcome.returncode == 2
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("Error: The Greenroom daemon could not be started: ")
    assert "mine" in last
    assert last.endswith(f"Its log: {place}/daemon.log")


def test_a_damaged_journal_is_reported_with_its_exit_code_by_serve_and_by_clients(
    place: Path, greenroom_process: Any
) -> None:
    (place / "journal.db").write_bytes(b"this was a journal once" * 100)

    for command in (["serve"], ["log"], ["pull", "smollm2"]):
        outcome = greenroom_process(*command)
        assert outcome.returncode == 6, outcome.stderr
        assert "journal.db" in outcome.stderr
        assert "Traceback" not in outcome.stderr


def test_a_port_in_use_is_reported_with_the_program_that_has_it(place: Path, greenroom_process: Any) -> None:
    with stranger(int(os.environ["GREENROOM_PORT"])):
        for command in (["serve"], ["pull", "smollm2"], ["ps"]):
            outcome = greenroom_process(*command)
            assert outcome.returncode == 5, outcome.stderr
            assert "calling itself 'Other/1'" in outcome.stderr
            assert f"process {os.getpid()}" in outcome.stderr
    assert not (place / "daemon.log").exists()


@contextlib.contextmanager
def stranger(port: int) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "Other/1"
        sys_version = ""

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_address_others_can_reach_is_refused(place: Path, greenroom_process: Any) -> None:
    outcome = greenroom_process("serve", "--bind", "0.0.0.0")

    assert outcome.returncode == 2
    assert "other machines" in outcome.stderr


def test_a_data_directory_that_cannot_be_written_is_reported(
    place: Path, greenroom_process: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    outcome = greenroom_process("--home", str(tmp_path / "file" / "home"), "serve")

    assert outcome.returncode == 3
    assert "set --home to a folder you may write to" in outcome.stderr


def test_stop_ends_the_daemon_and_restarting_it_replays_the_log(place: Path, greenroom_process: Any) -> None:
    with running(place) as first:
        stopped = greenroom_process("stop")
        assert stopped.stdout == f"Stopped the Greenroom daemon (process {first.pid}).\n"
        assert first.wait(BOUND) == 0
    with running(place, "--log-level", "debug"):
        pass

    lines = greenroom_process("log", "--stream", "daemon").stdout.splitlines()
    assert re.search(r"daemon/1 +Greenroom .* started at http://127.0.0.1:\d+ ", lines[1])
    assert f"daemon/2                Greenroom shut down cleanly (process {first.pid})" in lines[2]
    assert "daemon/3" in lines[3]


def test_the_log_can_be_followed(place: Path) -> None:
    with running(place) as first:
        follower = subprocess.Popen([*GREENROOM, "log", "-f", "--json"], stdout=subprocess.PIPE, text=True)
        with follower:
            try:
                assert follower.stdout is not None
                assert json.loads(follower.stdout.readline())["type"] == "daemon_started"
                first.send_signal(signal.SIGTERM)
                types = (json.loads(line)["type"] for line in follower.stdout)
                assert "daemon_stopped" in types
            finally:
                follower.kill()


def test_a_daemon_on_a_free_port_is_found_by_its_data_directory(place: Path, greenroom_process: Any) -> None:
    with running(place, "--port", "0"):
        outcome = greenroom_process("status")

    assert outcome.returncode == 0
    assert f"Greenroom is running at {note(place).get('url', 'http://127.0.0.1')}" in outcome.stdout


def test_restart_brings_up_another_daemon_at_the_same_port(place: Path, greenroom_process: Any) -> None:
    with running(place, "--port", "0") as first:
        url = note(place)["url"]
        outcome = greenroom_process("restart")
        assert first.wait(BOUND) == 0

    assert outcome.returncode == 0, outcome.stderr
    second = note(place)
    assert second["url"] == url
    assert second["pid"] != first.pid
    assert f"Greenroom is running at {url} (process {second['pid']}, version " in outcome.stdout
    assert f"Stopped the Greenroom daemon (process {first.pid}).\n" in outcome.stderr
    assert greenroom_process("stop").returncode == 0


def test_ctrl_c_ends_a_command_that_waits(place: Path) -> None:
    with socket.create_server(("127.0.0.1", int(os.environ["GREENROOM_PORT"]))) as silent:
        client = subprocess.Popen([*GREENROOM, "ps"], stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        with connection:
            client.send_signal(signal.SIGINT)
            _, err = client.communicate(timeout=BOUND)

    assert client.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("command", "route", "cancel", "body"),
    [
        (
            ["install-runner", "--backend", "mlx"],
            "/engines/install-backend",
            "/engines/cancel-install",
            {"backend": "mlx", "variant": "best", "leave": True},
        ),
        (["pull", "smollm2"], "/models/create", "/models/cancel", {"from": "smollm2", "leave": True}),
        (["run", "smollm2", "Hi"], "/models/create", "/models/cancel", {"from": "smollm2", "leave": True}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_ctrl_c_ends_a_job_unless_another_client_waits_for_it(
    our_daemon: Any, command: list[str], route: str, cancel: str, body: dict[str, Any], ended: bool
) -> None:
    over = Event()

    def job() -> Iterator[str]:
        yield json.dumps({"type": "progress", "phase": "downloading", "message": "Downloaded", "total": 9})
        over.wait(BOUND)

    missing = {"error": {"message": "not in the store", "code": "model_not_found"}}
    our_daemon.routes["POST /v1/chat/completions"] = (404, missing)
    our_daemon.routes[f"POST {route}"] = lambda seen: job()
    our_daemon.routes[f"POST {cancel}"] = {"ended": ended}
    client = subprocess.Popen([*GREENROOM, *command], stderr=subprocess.PIPE, text=True)
    with client:
        try:
            assert client.stderr is not None
            lines = iter(client.stderr.readline, "")
            assert any("downloading" in line.lower() for line in lines)
            client.send_signal(signal.SIGINT)
            rest = client.stderr.read()
        finally:
            over.set()
            client.kill()

    assert our_daemon.bodies(cancel) == [body]
    names = {one.body["waiter"] for one in our_daemon.seen if one.path in (route, cancel)}
    assert len(names) == 1, "who leaves is who came"
    assert client.returncode == 130
    assert ("Cancelled: " in rest) is ended
    assert ("continues in the background" in rest) is not ended


def test_a_reader_who_leaves_early_is_no_error(place: Path) -> None:
    with running(place):
        pass
    process = subprocess.Popen([*GREENROOM, "log"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@contextlib.contextmanager
def at_rest(place: Path, programs: Path) -> Iterator[subprocess.Popen[str]]:
    """A daemon with nothing to install and nothing to store."""
    argv = [sys.executable, str(programs / "serve_fake.py"), str(place), os.environ["GREENROOM_PORT"]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("http://")
            until(lambda: "installation_activated" in types(place), what="an installation")
            yield process
        finally:
            process.kill()


def types(home: Path) -> set[str]:
    return {record.type for record in read_journal(home / "journal.db")}


def test_a_daemon_whose_data_directory_was_deleted_is_named_is_not_ready_and_can_be_stopped(
    place: Path, greenroom_process: Any, programs: Path
) -> None:
    with at_rest(place, programs) as daemon:
        url = note(place)["url"]
        moved = place.with_name("elsewhere")
        place.rename(moved)

        def ready() -> tuple[int, Any]:
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=BOUND) as answer:
                    return answer.status, None
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)["error"]

        status, said = until(lambda: (found := ready())[0] == 503 and found, what="a red /readyz")
        assert (status, said["code"]) == (503, "data_directory_lost")
        assert f"{place} was removed" in said["message"]
        for command in (["status"], ["run", "smollm2", "hi"], ["pull", "smollm2"]):
            outcome = greenroom_process(*command)
            assert outcome.returncode == 3, outcome.stderr
            assert f"The data directory {place} is gone" in outcome.stderr
            assert f"process {daemon.pid} " in outcome.stderr
            assert not place.exists()
        # It is ready again when the directory is back.
        moved.rename(place)
        until(lambda: ready()[0] == 200, what="a green /readyz")
        place.rename(moved)
        stopped = greenroom_process("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert f"Stopped the Greenroom daemon (process {daemon.pid})" in stopped.stdout
        assert daemon.wait(BOUND) == 9  # its journal could not say that it stopped in order


@pytest.mark.slow
def test_a_command_against_a_live_daemon_is_quick(place: Path, greenroom_process: Any) -> None:
    """The budget is 150 ms. Processor time is measured: what else the machine does is not ours to count."""
    with running(place):
        greenroom_process("ps")
        times = []
        for _ in range(9):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert greenroom_process("ps").returncode == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.150
