"""Folders, sockets and the environment of engines."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.backends.flags import LLAMA_CPP, refusal
from greenroom.runner.engines.folders import SOCKET_BYTES, EngineFolder
from greenroom.runner.engines.keeper_watch import cleaned
from greenroom.runner.errors import JobFailed


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder with a short path, as systems have them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.mark.parametrize("engine_id", ["", ".", "..", "a/b", "/a", "a\0b", "-a", "a" * 65, "a.b"])
def test_only_plain_ids_become_folders(tmp_path: Path, engine_id: Any) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        EngineFolder.of(tmp_path, engine_id)


def test_sockets_lie_in_the_engines_folder_where_they_fit(tmp_path: Path) -> None:
    folder = EngineFolder.of(tmp_path, "e-1")
    sockets = folder.create()
    assert sockets.engine == folder.path / "engine.sock"
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_long_path_gets_short_sockets_in_a_private_runtime_folder(tmp_path: Path, runtime: Path) -> None:
    folder = EngineFolder.of(tmp_path / ("x" * 80), "e-1")
    sockets = folder.create()
    assert len(os.fsencode(sockets.keeper)) <= SOCKET_BYTES
    assert sockets.engine.parent.parent == runtime
    assert sockets.engine.parent.stat().st_mode & 0o777 == 0o700
    assert folder.create() == sockets
    folder.remove()
    assert not sockets.engine.parent.exists()
    assert not folder.path.exists()


def test_other_users_cannot_claim_the_name_of_a_short_folder_in_advance(
    tmp_path: Path, runtime: Path
) -> None:
    for name in (f"greenroom-{os.getuid()}", "greenroom"):
        (runtime / name).mkdir(mode=0o777)
    made = {EngineFolder.of(tmp_path / ("x" * 80), f"e-{n}").create().engine.parent for n in range(3)}
    assert len(made) == 3
    assert all(one.parent == runtime for one in made)


def test_a_short_folder_that_others_can_reach_or_a_link_is_not_used_again(
    tmp_path: Path, runtime: Path
) -> None:
    folder = EngineFolder.of(tmp_path / ("x" * 80), "e-1")
    first = folder.create().engine.parent
    first.chmod(0o777)
    second = folder.create().engine.parent
    assert second != first
    second.rmdir()
    second.symlink_to(first)
    assert folder.create().engine.parent not in (first, second)


def test_a_folder_in_which_other_users_could_replace_ours_is_skipped(tmp_path: Path, runtime: Path) -> None:
    runtime.chmod(0o777)
    assert EngineFolder.of(tmp_path / ("x" * 80), "e-1").create().engine.parent.parent != runtime


def test_where_the_disk_has_no_sockets_they_lie_in_a_short_folder(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert EngineFolder.of(tmp_path, "e-1").create().engine.parent.parent == runtime


def test_without_any_short_folder_the_reason_and_the_remedy_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(**_: Any) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(JobFailed, match="A Unix socket can be created neither"):
        EngineFolder.of(tmp_path / ("x" * 80), "e-1").create()


@pytest.mark.parametrize(
    "name",
    """VLLM_HTTP_AUTH VLLM_S3_ACCESS_KEY_ID VLLM_S3_SECRET_ACCESS_KEY VLLM_API_KEY MLX_CREDS CUDA_LICENSE_KEY
    NVIDIA_API_KEY NCCL_AUTH_TOKEN GGML_PASSWORD OMP_SECRET_THING MKL_LOGIN VLLM_LOGGING_LEVEL
    VLLM_DEBUG_LOG_API_SERVER_RESPONSE DATABASE_URL AWS_SESSION_TOKEN GITHUB_TOKEN LLAMA_ARG_API_KEY
    LLAMA_LOG_FILE HTTPS_PROXY SSH_AUTH_SOCK""".split(),
)
def test_no_credential_and_no_switch_that_logs_requests_reaches_an_engine(name: Any) -> None:
    assert cleaned({}, {name: "hush"}) == {}


def test_an_address_in_a_switch_is_not_passed_on_since_it_may_hold_a_password() -> None:
    assert cleaned({}, {"NCCL_SOCKET": "https://me:hush@host", "NCCL_DEBUG": "WARN"}) == {
        "NCCL_DEBUG": "WARN"
    }


def test_an_engine_sees_what_it_needs_and_no_secret() -> None:
    ours = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "CUDA_VISIBLE_DEVICES": "0",
        "LC_ALL": "C",
        "HF_TOKEN": "hf_secret",
        "OPENAI_API_KEY": "sk",
        "VLLM_API_KEY": "sk",
        "PYTHONPATH": "/evil",
        "LD_PRELOAD": "/evil.so",
    }
    assert cleaned({"HF_HUB_OFFLINE": "1"}, ours) == {
        "PATH": "/bin",
        "HOME": "/home/me",
        "CUDA_VISIBLE_DEVICES": "0",
        "LC_ALL": "C",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("(Worker-0 pid=12) INFO 11-28 02:57:49 [loader.py:501] Loading weights", "Loading weights"),
        ("INFO:     Started server process [1]", "Started server process [1]"),
        ("2026-11-28 10:00:00,123 Fetching", "Fetching"),
        ("Loading shards: 50% Completed | 1/2", "Loading shards: 50% Completed | 1/2"),
        ("INFORMATION is power", "INFORMATION is power"),
        ("llama_model_loader: loaded 1 tensor", "llama_model_loader: loaded 1 tensor"),
    ],
)
def test_the_last_line_of_an_engine_is_shown_without_what_its_logger_puts_before_it(
    tmp_path: Path, line: str, shown: str
) -> None:
    folder = EngineFolder.of(tmp_path, "e-1")
    folder.create()
    (folder.path / "log").write_text(f"before\n{line}\n")
    assert folder.last_line() == shown


@pytest.mark.parametrize(
    "flag", ["--verbose", "-v", "--log-verbosity", "-lv", "--verbose-prompt", "--log-file"]
)
def test_a_flag_that_has_an_engine_log_what_clients_say_is_refused(flag: str) -> None:
    assert flag in refusal((flag,), LLAMA_CPP, "llama.cpp")
