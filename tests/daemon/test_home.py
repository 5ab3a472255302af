"""The data directory is private, and what is wrong with it is said before anything is done."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.runner.config import BadSetting, Settings, load
from greenroom.runner.daemon import Greenroom
from greenroom.runner.home import HomeUnusable, complaint, prepare_home
from greenroom.runner.user_home import NO_HOME, expanded, user_home

AS_A_USER = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner", "--inh-caps", "-all"]
"""Root without the rights that let it pass over modes."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def lax_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lax_umask")
def test_other_users_cannot_write_below_a_data_directory_whatever_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o777)
    prepare_home(home)
    assert mode(home) == 0o755
    assert {mode(one) for one in home.iterdir()} == {0o700}
    prepare_home(tmp_path / "fresh")
    assert mode(tmp_path / "fresh") == 0o700


@pytest.mark.usefixtures("lax_umask")
def test_what_an_embedded_greenroom_writes_beside_its_folders_is_private(tmp_path: Path) -> None:
    with Greenroom(Settings(home=tmp_path / "h", install_policy="never"), backends={}):
        modes = {one.name: mode(one) for one in (tmp_path / "h").iterdir() if one.is_file()}
    assert {"secret", "instance", "daemon.lock", "journal.db"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def a_link_to_nowhere(home: Path) -> None:
    (home / "models").symlink_to(home.parent / "unplugged")


def a_file_for_a_folder(home: Path) -> None:
    (home / "models").write_text("")


def a_folder_for_the_journal(home: Path) -> None:
    (home / "journal.db").mkdir()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (a_link_to_nowhere, "models is a link to {parent}/unplugged, which does not exist"),
        (a_file_for_a_folder, "models is a file and should be a folder"),
        (a_folder_for_the_journal, "journal.db is a folder and should be a file"),
    ],
)
def test_a_file_of_the_wrong_type_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    spoil(home)
    with pytest.raises(HomeUnusable) as caught:
        prepare_home(home)
    assert sentence.format(parent=tmp_path) in caught.value.sentence


def test_a_data_directory_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeUnusable, match="file is a file and should be a folder"):
        prepare_home(tmp_path / "file" / "home")


def serve(home: Path, *as_whom: str) -> subprocess.CompletedProcess[str]:
    argv = [
        *as_whom,
        sys.executable,
        "-m",
        "greenroom.runner.cli",
        "--home",
        str(home),
        "serve",
        "--port",
        "0",
    ]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


needs_two_users = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="gives files to another user (root, setpriv)"
)


@needs_two_users
@pytest.mark.parametrize("name", ["", "models", "models/blobs", "journal.db", "secret", "daemon.log"])
def test_what_belongs_to_another_user_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = home / name
    if name.startswith("models"):
        path.mkdir(parents=True)
    elif name:
        path.write_text("")
    path.chmod(0o700 if path.is_dir() else 0o600)
    os.chown(path, 4321, 4321)
    done = serve(home, *AS_A_USER)
    assert done.returncode == 3, done.stderr
    assert f"{path} belongs to user 4321, and you are root" in done.stderr
    assert f'sudo chown -R 0 "{home}"' in done.stderr
    assert "Traceback" not in done.stderr


@needs_two_users
@pytest.mark.parametrize("name", ["", "models"])
def test_a_mode_that_keeps_its_owner_out_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / name).chmod(0)
    done = serve(home, *AS_A_USER)
    (home / name).chmod(0o700)
    assert done.returncode == 3, done.stderr
    assert f"you may not read and write {home / name}" in done.stderr
    assert "chmod -R u+rwX" in done.stderr


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.ENOSPC, " is full"),
        (errno.EROFS, "is on a file system that is mounted read-only"),
        (errno.EMFILE, "too many files are open"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_system_says_of_a_disk_becomes_a_sentence(tmp_path: Path, number: int, part: str) -> None:
    sentence, advice = complaint(OSError(number, os.strerror(number), str(tmp_path / "x")), tmp_path)
    assert part in sentence
    assert advice


# users without a home directory


@pytest.fixture
def user_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an entry in the list of users, and no HOME."""

    def unknown(_uid: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_DATA_HOME", "GREENROOM_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("user_without_home")
@pytest.mark.parametrize("home", [None, "", " "])
def test_without_a_home_the_error_says_to_name_a_data_directory(
    home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(BadSetting, match=r"HOME is not set, and user \d+ has no home directory"):
        load({})
    assert load({"home": "/srv/greenroom"}).home == Path("/srv/greenroom")
    assert user_home() == NO_HOME
    assert expanded("~/x") == NO_HOME / "x"
    assert expanded("~nosuchuser/x") == Path("~nosuchuser/x")


def test_an_empty_home_is_what_the_list_of_users_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("GREENROOM_HOME", raising=False)
    monkeypatch.setenv("HOME", "")
    assert user_home() != Path("/")
    assert user_home() in load({}).home.parents


@pytest.mark.usefixtures("user_without_home")
def test_every_command_ends_with_a_sentence_for_a_user_without_a_home() -> None:
    from click import Context
    from click.testing import CliRunner

    from greenroom.runner.cli import main as command_line

    for name in command_line.greenroom.list_commands(Context(command_line.greenroom)):
        words = {"why": ["x"], "run": ["x"], "rm": ["x"], "tag": ["x", "y"]}.get(name, [])
        with CliRunner().isolation():
            assert command_line.run([name, *words]) in (0, 2), name
