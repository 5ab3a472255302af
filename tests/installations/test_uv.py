from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.installations.uv import Uv, classify
from package_index import Index
from waiting import until


@pytest.fixture
def uv(tmp_path: Path) -> Callable[..., Uv]:
    return lambda binary=None, sources=None: Uv(tmp_path / "cache", sources or PackageSources(), binary)


def test_a_program_runs_with_a_cleaned_environment_in_an_empty_folder(
    uv: Callable[..., Uv], program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("UV_LINK_MODE", "symlink")
    monkeypatch.setenv("PIP_CONSTRAINT", "/c.txt")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake = program("uv", '#!/bin/sh\nenv\necho "HERE=$(ls -A | wc -l) $*"\n')
    printed = uv(fake).run(["version"]).stdout
    assert "HERE=0 version --no-config" in printed.replace("       ", "")
    for absent in ("PYTHONPATH", "UV_LINK_MODE", "PIP_CONSTRAINT", "hf_secret"):
        assert absent not in printed
    assert "UV_NO_CONFIG=1" in printed


def test_a_hostile_uv_file_in_the_working_directory_changes_nothing(
    uv: Callable[..., Uv], tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("thing", "1.0", {"thing.py": b""})
    (tmp_path / "uv.toml").write_text('index-url = "http://127.0.0.1:9/simple"\nno-index = true\n')
    monkeypatch.chdir(tmp_path)
    runner = uv(sources=index.sources)
    target = tmp_path / "target"
    args = ["pip", "install", "--target", str(target), "--python", sys.executable, "thing"]
    runner.run(args, cwd=tmp_path)
    assert (target / "thing.py").exists()


def test_cancelling_ends_the_whole_process_group(
    uv: Callable[..., Uv], program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    fake = program("uv", f"#!/bin/sh\ntrap '' TERM\nsleep 100 &\necho $! > {tmp_path}/child\nwait\n")
    cancel = threading.Event()
    started: list[int] = []
    ended: list[Any] = []

    def run() -> None:
        try:
            uv(fake).run(["x"], cancel=cancel, on_start=started.append)
        except JobCancelled:
            ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: started and (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip())
    child = int((tmp_path / "child").read_text())
    cancel.set()
    thread.join(10)
    assert ended
    until(lambda: not _alive(child))


def _alive(pid: int) -> Any:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_that_shows_no_sign_of_life_is_ended(
    uv: Callable[..., Uv], program: Callable[[str, str], Path]
) -> None:
    fake = program("uv", "#!/bin/sh\nexec sleep 100\n")
    with pytest.raises(JobFailed) as caught:
        uv(fake).run(["x"], idle=0.3)
    assert caught.value.failure.code == "timed_out"
    assert caught.value.failure.kind == "transient"


def test_a_uv_that_works_in_silence_is_let_go_on(
    uv: Callable[..., Uv], program: Callable[[str, str], Path]
) -> None:
    fake = program("uv", f"#!/bin/sh\nexec {sys.executable} -c '{BUSY}'\n")
    uv(fake).run(["x"], idle=1.5)


BUSY = "import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: sum(range(1000))"


def test_a_uv_that_is_stopped_is_given_up_and_ended(
    uv: Callable[..., Uv], program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    fake = program("uv", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nkill -STOP $$\nsleep 100\n")
    with pytest.raises(JobFailed, match="no activity"):
        uv(fake).run(["x"], idle=1.5)
    assert not _alive(int((tmp_path / "pid").read_text()))


def test_what_it_prints_is_redacted(uv: Callable[..., Uv], program: Callable[[str, str], Path]) -> None:
    sources = PackageSources(index=Setting("https://me:s3cret@mirror.example/simple", "test"))
    fake = program("uv", '#!/bin/sh\necho "fetching $UV_DEFAULT_INDEX" >&2\necho done >&2\n')
    result = uv(fake, sources).run(["x"])
    assert result.stderr.splitlines() == ["fetching https://***@mirror.example/simple", "done"]


def test_the_program_can_be_replaced_by_a_variable(
    uv: Callable[..., Uv], program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENROOM_UV", str(program("other", "#!/bin/sh\necho it is me\n")))
    assert "it is me" in uv().run([]).stdout


def test_a_program_that_is_missing_is_reported_in_a_sentence(uv: Callable[..., Uv], tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="could not be started"):
        uv(tmp_path / "nothing").run([])


REFUSED = """error: Request failed after 2 retries in 2.6s
  cause: Failed to fetch: http://127.0.0.1:9/simple/x/
  cause: tcp connect error
  cause: Connection refused (os error 111)"""
OVERLOADED = """error: Failed to fetch: `https://x.example/simple/y/`
  Caused by: HTTP status server error (503 Service Unavailable) for url (https://x.example/simple/y/)"""
NOT_ALLOWED = """error: Failed to fetch: `https://x.example/503/y/`
  Caused by: HTTP status client error (401 Unauthorized) for url (https://x.example/503/y/)"""
NO_VERSION = """error: No solution found when resolving dependencies
  cause: Because there is no version of xllamacpp==99 and you require xllamacpp==99, we can conclude that your
  requirements are unsatisfiable."""
NO_WHEEL = """error: No solution found when resolving dependencies
  cause: Because vllm-metal==0.1.0 has no wheels with a matching Python implementation tag (e.g., `cp311`)"""
OTHER_BYTES = """error: Hash mismatch for `click==8.5.1`

Expected: sha256:00
Computed: sha256:11"""
FULL = """error: Failed to copy
  cause: No space left on device (os error 28)"""
READ_ONLY = """error: failed to create directory
  cause: Read-only file system (os error 30)"""
KILLED = """error: Failed to inspect Python interpreter from provided path at `/x/env/bin/python`
  cause: Querying Python at `/x/env/bin/python` failed with exit status signal: 9 (SIGKILL)"""
OFFLINE = "hint: Packages were unavailable because the network was disabled."


@pytest.mark.parametrize(
    ("output", "code", "kind"),
    [
        (REFUSED, "unreachable", "transient"),
        (OVERLOADED, "unreachable", "transient"),
        (NOT_ALLOWED, "unauthorized", "permanent"),
        (NO_VERSION, "no_such_version", "permanent"),
        (NO_WHEEL, "unsupported_platform", "permanent"),
        (OTHER_BYTES, "hash_mismatch", "permanent"),
        (FULL, "no_space", "permanent"),
        (READ_ONLY, "read_only", "permanent"),
        (OFFLINE, "offline", "transient"),
        (KILLED, "uv_killed", "transient"),
        ("error: something never seen before", "uv_failed", "permanent"),
    ],
)
def test_what_uv_says_becomes_a_code(output: Any, code: str, kind: str) -> None:
    failure = classify(output, 2).failure
    assert (failure.code, failure.kind) == (code, kind)
    assert output in failure.detail
    assert "http" not in failure.message


def test_a_failure_that_is_not_known_is_told_in_uvs_own_words() -> None:
    told = (
        "warning: old\nerror: invalid value 'x' for '--python-version'\n\nFor more information, try '--help'."
    )
    assert classify(told, 2).failure.message == (
        "uv ended with exit code 2: invalid value 'x' for '--python-version'."
    )
    assert classify("", 2).failure.message == "uv ended with exit code 2."


def test_being_killed_is_worth_another_attempt() -> None:
    failure = classify("", -9).failure
    assert failure.kind == "transient"
    assert "SIGKILL" in failure.message


def test_real_uv_and_an_index_that_refuses_connections_are_done_within_seconds(
    uv: Callable[..., Uv], tmp_path: Path
) -> None:
    nowhere = PackageSources(index=Setting("http://127.0.0.1:9/simple", "test"))
    began = time.monotonic()
    with pytest.raises(JobFailed) as caught:
        uv(sources=nowhere).run(["pip", "install", "--target", str(tmp_path / "t"), "thing"])
    assert caught.value.failure.code == "unreachable"
    assert time.monotonic() - began < 15


def test_the_unreachable_index_among_several_is_named() -> None:
    told = "The package index at 127.0.0.1:9 could not be reached."
    assert classify(REFUSED, 2).failure.message == told
    hidden = "error sending request for url (https://user:secret@m.example:8443/whl/torch/)"
    assert classify(hidden, 2).failure.message == "The package index at m.example:8443 could not be reached."
