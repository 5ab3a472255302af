"""What commands do when GREENROOM_HOST names a daemon: they ask it, or say why they cannot."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.daemon_log import DaemonStarted
from greenroom.actors.journal.port import Entry
from greenroom.actors.journal.sqlite import SqliteJournal

COMMANDS = (
    ["log"],
    ["log", "--summary"],
    ["why", "smollm2"],
    ["replay"],
    ["replay", "--step"],
    ["replay", "--json", "--at", "3"],
    ["bundle", "-o", "bundle.tar.gz"],
)
IDENTITY = {"status": "ok", "instance_id": "far", "pid": 77, "version": "0.0.9", "home": "/elsewhere"}
EVENT = {
    "seq": 1,
    "at": 1.0,
    "id": "daemon/1",
    "type": "x",
    "schema": 1,
    "cause": "",
    "text": "Hi.",
    "data": {},
}


@pytest.fixture
def far_daemon(fake_daemon: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A daemon of another data directory, which GREENROOM_HOST names."""
    fake_daemon.routes["GET /livez"] = IDENTITY
    monkeypatch.setenv("GREENROOM_HOST", fake_daemon.url)
    monkeypatch.setenv("GREENROOM_INSTANCE", "far")
    monkeypatch.chdir(tmp_path)
    return fake_daemon


@pytest.mark.usefixtures("far_daemon")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_older_daemon_is_named_with_what_to_do(greenroom: Any, command: list[str], tmp_path: Path) -> None:
    done = greenroom(*command)

    assert (done.code, done.out) == (1, "")
    assert "is version 0.0.9, which does not serve this over the network" in done.err
    assert "Upgrade it there, or copy its journal and read that with --journal FILE." in done.err
    assert not (tmp_path / "bundle.tar.gz").exists()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_daemon_that_is_not_there_is_named(
    greenroom: Any, unused_port: int, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GREENROOM_HOST", f"http://127.0.0.1:{unused_port}")
    monkeypatch.chdir(tmp_path)

    done = greenroom(*command)

    assert done.code == 3
    assert f"No Greenroom daemon answers at http://127.0.0.1:{unused_port}. Start it there" in done.err


def test_a_time_is_that_of_this_machine(greenroom: Any, far_daemon: Any) -> None:
    assert greenroom("log", "--since", "2026-11-22T10:00+01:00", "--problems", "-n", "2").code == 1
    assert greenroom("replay", "--json", "--at", "2026-11-22T10:00+01:00").code == 1

    asked = [one.path for one in far_daemon.seen if not one.path.startswith("/livez")]
    assert asked == ["/log?problems=True&since=1795338000.0&last=2", "/replay?at=1795338000.000"]


def test_the_end_of_a_daemon_that_is_followed_is_told(greenroom: Any, far_daemon: Any) -> None:
    far_daemon.routes["GET /log?follow=true"] = [json.dumps(EVENT), "", json.dumps(EVENT)]

    done = greenroom("log", "-f")

    assert done.code == 3
    assert done.out.count("  Hi.\n") == 2
    assert f"{far_daemon.url} closed the connection" in done.err


def test_the_journal_of_our_own_daemon_is_read_as_a_file_whether_or_not_it_runs(
    greenroom: Any, our_daemon: Any, home: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(home / "journal.db")
    address = f"http://127.0.0.1:{unused_port}"
    started = DaemonStarted(pid=1, version="1", platform="Linux", address=address)
    data, tag = msgspec.json.encode(started).decode(), DaemonStarted.TAG
    journal.append([Entry(stream="daemon", version=1, type=tag, schema=1, cause="", data=data, at=1.0)])
    journal.close()

    # It proves that it is ours; then nothing answers where our last daemon listened.
    for url in (our_daemon.url, address, f"http://localhost:{unused_port}/"):
        monkeypatch.setenv("GREENROOM_HOST", url)
        done = greenroom("log", "--json")
        assert (done.code, json.loads(done.out)["id"]) == (0, "daemon/1"), url
    assert {one.path for one in our_daemon.seen} == {"/livez"}
    monkeypatch.setenv("GREENROOM_HOST", "http://127.0.0.1:1")
    assert greenroom("log").code == 3


def test_logs_are_those_of_the_daemon_that_is_named(greenroom: Any, far_daemon: Any, home: Path) -> None:
    (home / "daemon.log").write_text("of this machine\n")
    far_daemon.routes["GET /logs?no-engines=true&tail=2"] = ["one", "two"]
    far_daemon.routes["GET /logs?no-engines=true&tail=all&follow=true"] = ["one", "two", "three"]

    assert greenroom("logs", "-n", "2").out == "one\ntwo\n"
    assert greenroom("logs", "-f").out == "one\ntwo\nthree\n"
    done = greenroom("logs", "1a22c2dbc49-1")
    assert (done.code, "On the daemon's machine: greenroom logs 1a22c2dbc49-1" in done.err) == (1, True)


def test_what_is_no_archive_is_not_kept(greenroom: Any, far_daemon: Any, tmp_path: Path) -> None:
    far_daemon.routes["GET /bundle"] = "Hello"

    done = greenroom("bundle", "-o", "bundle.tar.gz")

    assert done.code == 1
    assert "is not a valid archive" in done.err
    assert not (tmp_path / "bundle.tar.gz").exists()


def test_https_is_spoken_and_its_certificate_checked(
    greenroom: Any, far_daemon: Any, fake_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    monkeypatch.setenv("GREENROOM_HOST", far_daemon.url.replace("http:", "https:"))
    done = greenroom("log")
    assert (done.code, "a program that does not speak TLS" in done.err) == (5, True)

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *made.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    fake_server.socket = context.wrap_socket(fake_server.socket, server_side=True)
    far_daemon.routes["GET /log"] = [json.dumps(EVENT)]
    done = greenroom("log")
    assert (done.code, "a server whose certificate is not trusted: self" in done.err) == (5, True)
    assert "SSL_CERT_FILE" in done.err

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    done = greenroom("log")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("  Hi.\n")
