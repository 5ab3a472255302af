"""What goes wrong is one of ours, with kind, code, numbers and advice; what makes no sense begins nothing."""

from __future__ import annotations

import asyncio
import pickle
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity

from greenroom.actors.journal.port import JournalFull
from greenroom.actors.kernel.errors import Refusal
from greenroom.runner import (
    BadRequirement,
    GreenroomError,
    InstalledEnvironment,
    Installer,
    NoEnvironment,
    NotAvailable,
)
from greenroom.runner.environments.errors import refused
from package_index import Index


def told(error: GreenroomError) -> tuple[str, str]:
    assert error.advice
    assert error.sentence.endswith((".", "requirements.in"))
    assert "GREENROOM_HOME" not in error.sentence, "advice for the command line"
    return error.code, error.kind


@pytest.mark.parametrize(
    ("requirement", "arguments", "code", "kind", "sentence"),
    [
        (
            "nowhere",
            {},
            "no_such_version",
            "not_found",
            r"nowhere is not on the package index\. Check its name",
        ),
        ("hello>=2", {}, "no_such_version", "not_found", r"satisfies hello>=2; the newest one is 1\.0\."),
        pytest.param(
            "hello",
            {"python": "3.99"},
            "no_such_python",
            "not_ready",
            r"no Python 3\.99 on this machine; it has 3",
            marks=pytest.mark.slow,  # every Python of the machine is started
        ),
    ],
)
def test_what_cannot_be_had_is_said(
    installer: Installer, source: Any, requirement: str, arguments: Any, code: str, kind: str, sentence: str
) -> None:
    with pytest.raises(NoEnvironment, match=sentence) as caught:
        installer.ensure(requirement, **source, **arguments)
    assert told(caught.value) == (code, kind)
    assert installer.environments() == []


def test_a_full_disk_is_told_in_bytes(
    installer: Installer, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(NoEnvironment, match="give the installer a folder on another disk") as caught:
        installer.ensure("friend", **source)
    assert told(caught.value) == ("no_space", "exhausted")
    assert caught.value.numbers["free"] == 1000 < caught.value.numbers["needed"]


@pytest.mark.parametrize(
    ("requirement", "arguments", "sentence"),
    [
        ("", {}, "'' is not a valid requirement"),
        ("black 26", {}, "'black 26' is not a valid requirement"),
        (
            "black @ https://user:secret@host/black.whl",
            {},
            r"'black @ https://\*\*\*@host/black.whl' has a URL",
        ),
        ("black; python_version>'3'", {}, "has a marker"),
        ("black", {"python": "--help"}, "is not a Python version"),
        ("black", {"index": "pypi.org"}, "'pypi.org' is not a package index"),
        ("black", {"index": "x" * 5000}, "is not a package index"),
        ("black", {"index": []}, "The list of indexes is empty"),
        ("black", {"lock": "/nowhere.lock"}, "The lock /nowhere.lock cannot be read: No such file"),
        ("black>=1", {"lock": "/nowhere.lock"}, "has extras or versions, but the lock decides those"),
    ],
)
def test_what_makes_no_sense_is_a_value_error_before_anything_begins(
    home: Path, requirement: str, arguments: Any, sentence: str
) -> None:
    with pytest.raises(BadRequirement, match=sentence) as caught:
        Installer(home).ensure(requirement, **arguments)
    assert isinstance(caught.value, ValueError)
    assert told(caught.value)[1] == "invalid"
    assert "secret" not in caught.value.sentence
    assert not home.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("black>=26\n", "it has the line 'black>=26', which pins no version"),
        ("black==26.1\n", "it has no SHA-256 of black 26.1"),
        ("# nothing\n", "it names no package"),
        ("lock-version = 1\npackages = 3 3\n", "cannot be used as a lock"),
    ],
)
def test_a_lock_that_locks_nothing_says_where(tmp_path: Path, text: str, sentence: str) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(text)
    with pytest.raises(BadRequirement, match=re.escape(sentence)) as caught:
        Installer(tmp_path / "envs").ensure("tools", lock=lock)
    assert told(caught.value) == ("bad_lock", "invalid")


@pytest.mark.parametrize(
    "arguments", [{"python": 3.12}, {"index": 3}, {"lock": 3}, {"retry": 3}, {"progress": "print"}]
)
def test_a_wrong_type_is_a_type_error(home: Path, arguments: Any) -> None:
    with pytest.raises(TypeError):
        Installer(home).ensure("black", **arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"home": 3}, TypeError),
        ({"home": ""}, ValueError),
        ({"home": "x", "wait": -1}, ValueError),
        ({"home": "x", "wait": "1"}, TypeError),
        ({"home": "x", "retry": tenacity.AsyncRetrying()}, TypeError),
    ],
)
def test_a_wrong_installer_is_refused(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Installer(**arguments)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAvailable, match=r"^The folder .*file cannot be used") as caught:
        Installer(tmp_path / "file").environments()
    assert told(caught.value) == ("home_unusable", "not_ready")
    (tmp_path / "greenroom" / "models").mkdir(parents=True)
    with pytest.raises(NotAvailable, match="is a Greenroom data directory"):
        Installer(tmp_path / "greenroom").environments()


def test_a_disk_that_is_full_when_it_is_opened_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise JournalFull("no space left")

    monkeypatch.setattr("greenroom.runner.environments.host.SqliteJournal", full)
    with pytest.raises(NotAvailable, match=r"The disk of .* is full: .* Free some space") as caught:
        Installer(home).environments()
    assert told(caught.value) == ("no_space", "exhausted")


def test_a_name_that_no_disk_takes_is_no_folder(home: Path) -> None:
    with pytest.raises(NotAvailable, match="cannot be used") as caught:
        Installer(home / ("x" * 300)).environments()
    assert told(caught.value) == ("home_unusable", "not_ready")


def test_a_closed_one_answers_no_more_and_may_be_opened_again(home: Path) -> None:
    with Installer(home) as installer:
        pass
    with pytest.raises(NotAvailable, match="is closed") as caught:
        installer.ensure("hello")
    assert told(caught.value) == ("closed", "invalid")
    with Installer(home) as again, pytest.raises(NoEnvironment, match="Installed: none"):
        again.remove("hello")


def test_one_may_be_opened_while_another_is_being_closed(home: Path) -> None:
    for _ in range(5):
        first = Installer(home).__enter__()
        closing = threading.Thread(target=first.close)
        closing.start()
        with Installer(home) as second:
            assert second.environments() == []
        closing.join(30)


def test_a_cancelled_job_is_told_under_the_name_it_was_asked_by() -> None:
    refusal = Refusal(
        code="cancelled",
        message="The installation of black-1a2b3c4d was cancelled: its installer was closed.",
        advice="Downloads are kept. Start again: greenroom install-runner --backend black-1a2b3c4d",
        kind="conflict",
        subject="black-1a2b3c4d",
    )
    error = refused(refusal, "black>=26")
    assert error.sentence == (
        "The installation of black>=26 was cancelled: its installer was closed. "
        "Call it again: completed downloads are kept."
    )


async def test_closing_ends_what_is_being_installed_with_a_sentence(
    home: Path, index: Index, source: Any
) -> None:
    from package_index import Misbehaviour
    from waiting import until_async

    (wheel,) = index.wheels["friend"]
    index.wrong[wheel] = Misbehaviour(rate=100)
    async with Installer(home) as installer:
        asked = asyncio.ensure_future(installer.ensure("friend", **source))
        await until_async(lambda: index.sent[wheel])
    with pytest.raises(NoEnvironment, match="its installer was closed"):
        await asked


def test_an_environment_can_be_sent_to_another_process_and_an_installer_cannot(home: Path) -> None:
    env = InstalledEnvironment(
        name="x",
        requirement="x",
        version="1",
        python_version="3.12.1",
        root=home,
        packages=("x==1",),
        size=1,
        built_at=1.0,
    )
    assert pickle.loads(pickle.dumps(env)) == env
    assert env.programs == ()
    with pytest.raises(NoEnvironment, match=r"is gone .* Call ensure again") as caught:
        env.run("x")
    assert told(caught.value) == ("not_installed", "not_found")
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        pickle.dumps(Installer(home))
