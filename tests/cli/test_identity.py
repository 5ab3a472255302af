from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from greenroom.runner.cli.identity import Unresponsive, find, holder_of
from greenroom.runner.cli.problem import Problem
from greenroom.runner.config import Settings, load


def identity(**changes: Any) -> dict[str, Any]:
    return {"status": "ok", "instance_id": "other", "pid": 77, "version": "1", "home": "/elsewhere"} | changes


def test_a_daemon_is_believed_when_it_has_this_data_directorys_instance_id(our_daemon: Any) -> None:
    found = find(load())

    assert found is not None
    assert found.url == our_daemon.url


def test_a_daemon_is_found_where_it_says_it_listens(
    our_daemon: Any, home: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", str(unused_port))
    assert find(load()) is None

    (home / "daemon.json").write_text(json.dumps({"url": our_daemon.url, "pid": 1}))

    found = find(load())
    assert found is not None
    assert found.url == our_daemon.url


def test_a_stale_note_is_passed_over(our_daemon: Any, home: Path, unused_port: int) -> None:
    (home / "daemon.json").write_text(json.dumps({"url": f"http://127.0.0.1:{unused_port}"}))
    assert find(load()) is not None

    for text in ("not json", "[]", '{"url": 3}', '{"url": "nonsense"}'):
        (home / "daemon.json").write_text(text)
        assert find(load()) is not None


def test_the_daemon_of_another_data_directory_is_named(our_daemon: Any, home: Path) -> None:
    our_daemon.routes["GET /livez"] = identity()

    with pytest.raises(Problem) as caught:
        find(load())

    assert caught.value.exit_code == 5
    assert "another data directory (/elsewhere, pid 77)" in str(caught.value)
    assert "GREENROOM_HOME=/elsewhere" in str(caught.value)


def test_a_stranger_is_named_with_his_process(our_daemon: Any) -> None:
    our_daemon.routes["GET /livez"] = "Hello"

    with pytest.raises(Problem) as caught:
        find(load())

    assert caught.value.exit_code == 5
    assert "calling itself 'Fake/1', saying 'Hello'" in str(caught.value)
    assert f"pid {os.getpid()}" in str(caught.value)
    assert "GREENROOM_PORT=" in str(caught.value)


def test_a_data_directory_without_a_daemon_yet_believes_nobody(our_daemon: Any, home: Path) -> None:
    (home / "instance").unlink()

    with pytest.raises(Problem, match="another data directory"):
        find(load())


def test_a_loopback_host_must_prove_itself_unless_the_user_names_its_instance(
    our_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    our_daemon.routes["GET /livez"] = identity()
    monkeypatch.setenv("GREENROOM_HOST", our_daemon.url)
    with pytest.raises(Problem, match="GREENROOM_INSTANCE=other"):
        find(load())

    monkeypatch.setenv("GREENROOM_INSTANCE", "other")

    assert find(load()) is not None


def test_a_host_elsewhere_need_not_have_this_data_directory(
    our_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import greenroom.runner.cli.identity as module

    our_daemon.routes["GET /livez"] = identity()
    monkeypatch.setenv("GREENROOM_HOST", our_daemon.url)
    monkeypatch.setattr(module, "is_on_this_machine", lambda url: False)

    assert find(load()) is not None


def test_a_host_beats_port_and_note(our_daemon: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "daemon.json").write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    monkeypatch.setenv("GREENROOM_PORT", "1")
    monkeypatch.setenv("GREENROOM_HOST", our_daemon.url)

    assert find(load()) is not None


def test_our_own_daemon_that_says_nothing_is_no_stranger(home: Path) -> None:
    (home / "daemon.lock").write_text(str(os.getpid()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(home=home, port=listener.getsockname()[1])
        with pytest.raises(Unresponsive, match=f"process {os.getpid()}"):
            find(settings, patience=0.05)
        (home / "daemon.lock").write_text("")
        with pytest.raises(Problem, match="accepts connections and does not answer"):
            find(settings, patience=0.05)


def test_who_listens_elsewhere_is_not_looked_for() -> None:
    assert holder_of("http://192.0.2.1:80") == ""
