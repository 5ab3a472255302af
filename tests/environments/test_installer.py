"""`Installer`: an environment is built once, answered from the disk, and found again after anything."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tenacity

from greenroom.actors import read_journal
from greenroom.runner import Installer, JobProgress, NoEnvironment, NotAvailable
from hello_package import add_hello
from package_index import Index, Misbehaviour
from waiting import until, until_async

MakeInstaller = Callable[..., Installer]
PROGRAM = Path(__file__).parents[1] / "programs" / "ensure_process.py"


def types(home: Path) -> list[str]:
    return [record.type for record in read_journal(home / "journal.db")]


def test_an_environment_is_built_once_and_found_again(
    installer: Installer, open_installer: MakeInstaller, index: Index, source: Any, home: Path
) -> None:
    steps: list[JobProgress] = []
    env = installer.ensure("Hello>=1", progress=steps.append, **source)
    assert (env.requirement, env.version, env.already) == ("hello>=1", "1.0", False)
    assert env.packages == ("friend==3.1", "hello==1.0")
    assert [one.phase for one in steps][-1] == "verifying"
    said = env.run("hello", capture_output=True, text=True, check=True)
    assert said.stdout == "hello 1.0\n"
    assert env.python.is_file()
    assert env.bin("hello").is_file()
    assert env.programs == ("hello",)
    asked = len(index.requests)
    again = installer.ensure("hello >=1", **source)
    assert (again.already, again.root) == (True, env.root)
    installer.close()
    with open_installer() as later:
        assert [one.name for one in later.environments()] == [env.name]
        assert later.ensure("hello>=1", **source).root == env.root
        assert "hello>=1" in str(later.why("hello"))
        assert later.remove("hello>=1") > 10_000
        assert later.environments() == []
    assert len(index.requests) == asked, "nothing was looked for a second time"
    assert not env.root.exists()
    told = types(home)
    assert told[:3] == ["environment_declared", "install_requested", "installation_committed"]
    assert told.count("install_requested") == 1


def test_twenty_threads_that_ask_for_the_same_cause_one_build(
    home: Path, source: Any, open_installer: MakeInstaller
) -> None:
    several = [open_installer() for _ in range(4)]
    ready = threading.Barrier(20)

    def ask(number: int) -> Path:
        ready.wait(10)
        return several[number % 4].ensure("hello", index=source["index"]).root

    with ThreadPoolExecutor(20) as pool:
        roots = set(pool.map(ask, range(20)))
    assert len(roots) == 1
    assert types(home).count("install_requested") == 1


def test_what_is_damaged_while_it_is_open_is_built_anew(
    installer: Installer, source: Any, home: Path
) -> None:
    env = installer.ensure("friend", **source)
    shutil.rmtree(env.root.parent)
    assert installer.environments() == []
    again = installer.ensure("friend", **source)
    assert again.python.is_file()
    assert not again.already
    assert "installation_broken" in types(home)
    shutil.rmtree(again.root.parent)
    again.root.parent.write_text("someone's")
    assert installer.remove("friend") > 0
    assert not again.root.parent.exists()


@pytest.mark.slow
def test_the_latest_is_built_if_a_package_has_changed_and_two_are_kept(
    installer: Installer, source: Any, index: Index
) -> None:
    first = installer.ensure("hello", **source)
    same = installer.ensure("hello", latest=True, **source)
    assert (same.root, same.already) == (first.root, True)
    index.add("friend", "3.2", {"friend.py": b"NEW = 1\n"})
    assert installer.ensure("hello", **source).root == first.root, "only the latest is looked for"
    second = installer.ensure("hello", latest=True, **source)
    assert second.packages == ("friend==3.2", "hello==1.0")
    add_hello(index, "2.0")
    third = installer.ensure("hello", latest=True, **source)
    assert third.version == "2.0"
    until(lambda: not first.root.exists(), what="the removal of the one before the last but one is removed")
    assert second.python.is_file()
    assert installer.ensure("hello", **source).root == third.root


@pytest.mark.slow
def test_what_is_asked_for_makes_the_environment(installer: Installer, source: Any) -> None:
    asked = [
        installer.ensure("hello", **source),
        installer.ensure("hello>=1", **source),
        installer.ensure("hello", python=sys.executable, **source),
    ]
    assert len({one.root for one in asked}) == 3
    assert {one.version for one in asked} == {"1.0"}
    assert installer.remove("hello") > 0
    assert installer.environments() == []


@pytest.mark.slow
def test_a_lock_is_installed_by_its_hashes_and_nothing_else(
    installer: Installer, source: Any, index: Index, tmp_path: Path
) -> None:
    lock = tmp_path / "requirements.lock"
    friend = index.add("friend", "3.1", {"friend.py": b""})
    lock.write_text(f"friend==3.1 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{friend.sha256}\n")
    index.add("friend", "3.2", {"friend.py": b""})
    env = installer.ensure("my-tools", lock=lock, **source)
    assert env.packages == ("friend==3.1",)
    lock.write_text(f"friend==3.1 --hash=sha256:{'1' * 64}\n")
    with pytest.raises(NoEnvironment, match=r"No wheel of friend 3\.1 .* has the hash") as told:
        installer.ensure("my-tools", lock=lock, **source)
    assert (told.value.code, told.value.kind) == ("hash_mismatch", "not_ready")


def test_a_caller_who_leaves_takes_the_job_with_it_unless_another_waits(
    installer: Installer, index: Index, source: Any, home: Path
) -> None:
    stuck = threading.Event()
    for name in ("friend", "hello"):
        (wheel,) = index.wheels[name]
        index.wrong[wheel] = Misbehaviour(hang=stuck, hang_after=100)
    first = installer.ensure("friend", stream=True, **source)
    other = installer.ensure("friend", stream=True, **source)
    next(first)
    next(other)
    first.close()
    alone = installer.ensure("hello", stream=True, **source)
    next(alone)
    alone.close()
    until(lambda: types(home)[-1] == "install_cancelled", what="the end of what no one waits for")
    with pytest.raises(NoEnvironment, match="closed before"):
        alone.result()
    stuck.set()
    assert other.result().version == "3.1"


@pytest.mark.slow  # uv asks again by itself first
def test_tenacity_decides_whether_an_attempt_is_repeated(
    installer: Installer, index: Index, source: Any, home: Path
) -> None:
    index.wrong["friend"] = Misbehaviour(status=503)
    once = tenacity.stop_after_attempt(1)
    with pytest.raises(NoEnvironment) as told:
        installer.ensure("friend", retry=once, **source)
    assert (told.value.code, told.value.kind) == ("unreachable", "unavailable")
    assert types(home).count("install_attempt_failed") == 0

    def repaired(state: tenacity.RetryCallState) -> float:
        index.wrong.clear()
        return 0.0

    twice = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=repaired)
    assert installer.ensure("friend", retry=twice, **source).version == "3.1"
    assert types(home).count("install_attempt_failed") == 1


async def test_it_is_the_same_in_asyncio(home: Path, source: Any, index: Index) -> None:
    stuck = threading.Event()
    index.wrong["hello"] = Misbehaviour(hang=stuck)
    before = threading.active_count()
    async with Installer(home) as installer:
        phases = [step.phase async for step in installer.ensure("friend", stream=True, **source)]
        assert "downloading" in phases
        env = await installer.ensure("friend", **source)
        assert env.already
        assert [one.name for one in await installer.environments()] == [env.name]
        assert "friend" in str(await installer.why("friend"))
        cancelled = asyncio.ensure_future(installer.ensure("hello", **source))
        await until_async(lambda: "/simple/hello/" in index.paths())
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await until_async(lambda: types(home)[-1] == "install_cancelled")
        assert await installer.remove(env) > 0
    assert threading.active_count() < before + 20


def start(home: Path, url: str, phase: str = "") -> subprocess.Popen[str]:
    """A process that ensures `hello`, and prints its phases; it stops dead at one."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(home), url, phase], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["downloading", "unpacking", "verifying"])
def test_after_a_kill_in_the_middle_it_is_built_and_nothing_is_left(
    home: Path, index: Index, source: Any, open_installer: MakeInstaller, phase: str
) -> None:
    killed = start(home, index.url, phase)
    assert killed.stdout is not None
    assert [line.strip() for line in killed.stdout][-1:] == [phase] or killed.wait(30) == -signal.SIGKILL
    killed.wait(30)
    installer = open_installer()
    assert installer.environments() == []
    assert types(home)[-1] == "install_cancelled", "its client is gone"
    env = installer.ensure("hello", **source)
    assert env.run("hello", capture_output=True).stdout == b"hello 1.0\n"
    assert [one.name for one in env.root.parent.parent.iterdir()] == [env.root.parent.name]


@pytest.mark.slow
def test_a_second_process_waits_for_the_first_and_says_who_it_is(
    home: Path, index: Index, source: Any, open_installer: MakeInstaller
) -> None:
    first = start(home, index.url, "stay")
    try:
        assert first.stdout is not None
        while first.stdout.readline().strip() != "open":
            assert first.poll() is None
        in_use = rf"Process {first.pid} still has the environments .* open"
        with pytest.raises(NotAvailable, match=in_use) as told:
            open_installer(wait=0.2)
        assert (told.value.code, told.value.numbers["pid"]) == ("home_in_use", first.pid)
        threading.Timer(0.5, first.kill).start()
        assert open_installer(wait=30).environments()[0].version == "1.0"
    finally:
        first.kill()
        first.wait(10)


@pytest.mark.slow
def test_ctrl_c_takes_the_job_back(home: Path, index: Index) -> None:
    (wheel,) = index.wheels["friend"]
    index.wrong[wheel] = Misbehaviour(hang=threading.Event(), hang_after=100)
    program = PROGRAM.with_name("interrupted_ensure.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(home), index.url], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "downloading":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.stdout.read().splitlines()[-1] == "interrupted"
    assert process.wait(30) == 0
    assert types(home)[-1] == "install_cancelled"
    assert not list((home / "backends").glob("*/*"))


@pytest.mark.slow
def test_a_fork_is_told_to_open_its_own(installer: Installer) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            installer.environments()
        except NotAvailable as error:
            os.write(writing, error.code.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == b"forked"
    os.close(reading)
    os.close(writing)


def test_it_imports_no_front_door_and_no_engines(tmp_path: Path, index: Index) -> None:
    program = f"""
import json, sys
from greenroom import Installer, GreenroomError
with Installer({str(tmp_path / "light")!r}) as installer:
    assert installer.environments() == []
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout)
    heavy: tuple[str, ...] = (
        "aiohttp",
        "httpx",
        "click",
        "huggingface_hub",
        "numpy",
        "greenroom.runner.http",
    )
    heavy += ("greenroom.runner.daemon.", "greenroom.runner.engines.host", "greenroom.runner.models")
    assert not [name for name in loaded if f"{name}.".startswith(tuple(f"{one}." for one in heavy))]
