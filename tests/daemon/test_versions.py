"""A whole Greenroom and a backend of two versions: side by side, switched, damaged, repaired, handed over."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import toy
from greenroom.actors.installer.messages import (
    Activate,
    BackendStatus,
    Ensure,
    Ensured,
    Uninstall,
    Verified,
    VerifyBackend,
)
from greenroom.actors.kernel.errors import Refused
from greenroom.actors.values import Installation
from greenroom.runner.cli import main as command_line
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations import archive

BOUND = 60.0


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place packages come from."""
    folder = tmp_path / "wheels"
    toy.make_wheel(folder)
    for name, value in toy.sources(folder).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def make_greenroom(tmp_path: Path, wheels: Path) -> Callable[..., AbstractContextManager[Greenroom]]:
    """Greenrooms whose only backend is the toy."""

    @contextmanager
    def make(name: str = "home") -> Iterator[Greenroom]:
        backends = {"toy": toy.toy_backend(tmp_path)}
        with Greenroom(Settings(home=tmp_path / name), backends=backends) as greenroom:
            yield greenroom

    return make


def ask(greenroom: Greenroom, command: Any) -> Any:
    return greenroom.system.ask(command).get(timeout=BOUND)


def ensure(greenroom: Greenroom, version: str = "", **more: Any) -> Installation:
    reply: Ensured = ask(greenroom, Ensure(backend="toy", version=version, **more))
    return reply.installation


def module(greenroom: Greenroom, one: Installation) -> Path:
    (file,) = (greenroom.home / "backends" / "toy" / one.id).glob("env/lib/python*/site-packages/toy/*.py")
    return file


def status(greenroom: Greenroom) -> BackendStatus:
    return greenroom.statuses()[0]


def test_latest_is_resolved_locked_and_lies_beside_the_pinned_one(
    make_greenroom: Any, wheels: Path, tmp_path: Path
) -> None:
    with make_greenroom() as greenroom:
        old = ensure(greenroom)
        toy.make_wheel(wheels, "2.0")
        new = ensure(greenroom, "latest")
        assert (old.version, new.version) == ("1.0", "2.0")
        lock = (greenroom.home / "backends" / "toy" / new.id / "lock.txt").read_text()
        assert "toy==2.0" in lock
        assert "--hash=sha256:" in lock
        assert status(greenroom).current == new
        assert {one.version for one in status(greenroom).installations} == {"1.0", "2.0"}
        assert ask(greenroom, Activate(backend="toy")).installation == old
    with make_greenroom() as greenroom:
        assert status(greenroom).current == old
        assert ensure(greenroom, "2.0") == new
        gone = ask(greenroom, Uninstall(backend="toy"))
        assert gone.freed > 0
        assert status(greenroom).state == "absent"
        assert not list((greenroom.home / "backends" / "toy").iterdir())


def test_the_newest_version_is_not_built_again_and_there_is_no_way_back_to_the_same(
    make_greenroom: Any,
) -> None:
    with make_greenroom() as greenroom:
        one = ensure(greenroom)
        for _ in range(2):
            found = ask(greenroom, Ensure(backend="toy", version="latest"))
            assert (found.installation, found.fresh) == (one, False)
        assert [path.name for path in (greenroom.home / "backends" / "toy").iterdir()] == [one.id]
        with pytest.raises(Refused, match="has no other version to go back to"):
            ask(greenroom, Activate(backend="toy"))
        assert ensure(greenroom, "latest", repair=True).id != one.id


def test_one_flipped_byte_is_found_by_verify_and_healed_for_good(make_greenroom: Any) -> None:
    with make_greenroom() as greenroom:
        one = ensure(greenroom)
        assert ask(greenroom, VerifyBackend(backend="toy")) == Verified(
            backend="toy", checked=(one.id,), damaged={}
        )
        file = module(greenroom, one)
        # In place: the cache and every later environment share these bytes.
        with file.open("r+b") as handle:
            handle.write(b"W")
        found = ask(greenroom, VerifyBackend(backend="toy"))
        (sentence,) = found.damaged[one.id]
        assert sentence.endswith("toy/__init__.py has changed")
        assert status(greenroom).state == "broken"
        healed = ensure(greenroom)
        assert healed.id != one.id
        assert module(greenroom, healed).read_bytes() == b"VALUE = 1\n"
        assert not ask(greenroom, VerifyBackend(backend="toy")).damaged
        later = ensure(greenroom, repair=True)
        assert module(greenroom, later).read_bytes() == b"VALUE = 1\n"


def test_a_version_that_does_not_exist_is_refused_and_the_old_one_stays_in_use(make_greenroom: Any) -> None:
    with make_greenroom() as greenroom:
        old = ensure(greenroom)
        with pytest.raises(Refused) as caught:
            ensure(greenroom, "9.9")
        assert caught.value.refusal.kind in ("not_found", "not_ready")
        assert status(greenroom).current == old


def exported(home: Path, file: Path) -> Path:
    """An archive of the toy, made by the command."""
    assert command_line.run(["--home", str(home), "backends", "export", "toy", "-o", str(file)]) == 0
    return file


@pytest.fixture
def archived(make_greenroom: Any, wheels: Path, tmp_path: Path) -> Path:
    """Version 2.0 as an archive, and no place any more where packages could come from."""
    with make_greenroom("there") as greenroom:
        toy.make_wheel(wheels, "2.0")
        ensure(greenroom, "latest")
    shutil.rmtree(wheels)
    return exported(tmp_path / "there", tmp_path / "toy.tar")


def test_an_archive_is_installed_where_there_is_no_network(
    archived: Path, make_greenroom: Any, tmp_path: Path
) -> None:
    with make_greenroom() as greenroom:
        with pytest.raises(Refused):
            ensure(greenroom, "2.0")
        with archived.open("rb") as file:
            manifest = archive.read(greenroom.home, file)
        assert (manifest.backend, manifest.version) == ("toy", "2.0")
        one = ensure(greenroom, manifest.version)
        assert module(greenroom, one).read_bytes() == b"VALUE = 1\n"
        again = exported(greenroom.home, tmp_path / "again.tar")
    assert again.read_bytes() == archived.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "strange", "empty", "elsewhere", "slipped"])
def test_an_archive_that_is_not_whole_brings_nothing(archived: Path, tmp_path: Path, damage: str) -> None:
    whole = archived.read_bytes()
    match damage:
        case "cut":
            whole = whole[: whole.index(b"VALUE")]
        case "flipped":
            at = whole.index(b"VALUE")
            whole = whole[:at] + b"W" + whole[at + 1 :]
        case "strange":
            whole = b"\x00\x01strange" * 1000
        case "empty":
            whole = b""
        case "elsewhere":
            whole = whole.replace(archive.here().encode(), archive.here().encode()[::-1])
        case "slipped":
            whole = _slipped(archived)
    with pytest.raises(JobFailed) as caught:
        archive.read(tmp_path / "new", io.BytesIO(whole))
    expected = "unsupported_platform" if damage == "elsewhere" else "bad_archive"
    assert caught.value.failure.code == expected, caught.value.failure
    assert not [one for one in tmp_path.glob("new/cache/**/*") if one.is_file()]
    assert not (tmp_path / "evil").exists()


def _slipped(archived: Path) -> bytes:
    """The archive with a member that would lie outside."""
    out = io.BytesIO()
    with tarfile.open(archived) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            if member.name.startswith("wheels/"):
                member.name = f"../../../{'evil'}"
            new.addfile(member, old.extractfile(member))
    return out.getvalue()


def test_what_is_not_in_the_cache_any_more_cannot_be_exported(
    make_greenroom: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_greenroom() as greenroom:
        ensure(greenroom)
    shutil.rmtree(tmp_path / "home" / "cache")
    target = tmp_path / "toy.tar"
    code = command_line.run(
        ["--home", str(tmp_path / "home"), "backends", "export", "toy", "-o", str(target)]
    )
    assert code == 1
    assert "greenroom reinstall-runner --backend toy" in capsys.readouterr().err
    assert not list(tmp_path.glob("toy.tar*"))
    assert command_line.run(["--home", str(tmp_path / "home"), "backends", "export", "mlx", "-o", "x"]) == 1
    assert "mlx is not installed in" in capsys.readouterr().err
