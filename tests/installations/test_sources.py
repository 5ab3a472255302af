from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.sources import PackageSources, Setting, redact


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def discover(home: Path, tmp_path: Path) -> Callable[..., PackageSources]:
    """Settings of a machine that has nothing but what the test gives it."""

    def discover(env: Any = None, **kwargs: Any) -> PackageSources:
        base = {"XDG_CONFIG_DIRS": str(tmp_path / "etc"), "XDG_CONFIG_HOME": str(home / ".config")}
        prefix = kwargs.pop("prefix", tmp_path / "prefix")
        return PackageSources.discover({**base, **(env or {})}, home=home, prefix=prefix, **kwargs)

    return discover


def write(path: Path, text: str) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_settings_the_public_index_is_asked(discover: Callable[..., PackageSources]) -> None:
    sources = discover()
    assert sources.index == Setting("https://pypi.org/simple", "default")
    assert [setting.value for setting in sources.indexes] == ["https://pypi.org/simple"]


def test_pips_variables_are_taken_over_and_remember_their_name(
    discover: Callable[..., PackageSources],
) -> None:
    sources = discover(
        {"PIP_INDEX_URL": "https://mirror.example/simple", "PIP_FIND_LINKS": "/a /b", "PIP_NO_INDEX": "0"}
    )
    assert sources.index == Setting("https://mirror.example/simple", "PIP_INDEX_URL")
    assert [s.value for s in sources.find_links] == ["/a", "/b"]
    assert sources.no_index is None


def test_uvs_variables_win_over_pips(discover: Callable[..., PackageSources]) -> None:
    sources = discover(
        {"UV_DEFAULT_INDEX": "work=https://uv.example", "PIP_INDEX_URL": "https://pip.example"}
    )
    assert sources.index == Setting("https://uv.example", "UV_DEFAULT_INDEX")


def test_a_users_pip_file_replaces_the_machines(
    discover: Callable[..., PackageSources], home: Path, tmp_path: Path
) -> None:
    write(tmp_path / "etc" / "pip" / "pip.conf", "[global]\nindex-url = https://machine.example\ncert = /x\n")
    user = write(home / ".config" / "pip" / "pip.conf", "[global]\nindex_url = https://user.example\n")
    assert discover().index == Setting("https://user.example", str(user))


def test_the_section_of_the_command_replaces_the_global_one(
    discover: Callable[..., PackageSources], home: Path
) -> None:
    write(
        home / ".config" / "pip" / "pip.conf",
        "[global]\nextra-index-url = https://a.example\n[install]\nextra-index-url =\n  https://b.example\n"
        "  file:///srv/simple\n",
    )
    assert [s.value for s in discover().extra_indexes] == ["https://b.example", "file:///srv/simple"]


def test_indexes_on_this_machine_are_asked_first_and_the_default_one_last(
    discover: Callable[..., PackageSources],
) -> None:
    sources = discover({"PIP_EXTRA_INDEX_URL": "https://far.example file:///srv/simple"})
    assert [s.value for s in sources.indexes] == [
        "file:///srv/simple",
        "https://far.example",
        "https://pypi.org/simple",
    ]


def test_pips_file_named_dev_null_means_no_files(discover: Callable[..., PackageSources], home: Path) -> None:
    write(home / ".config" / "pip" / "pip.conf", "[global]\nindex-url = https://user.example\n")
    assert discover({"PIP_CONFIG_FILE": "/dev/null"}).index.origin == "default"


def test_a_users_uv_file_gives_its_indexes_but_not_the_explicit_ones(
    discover: Callable[..., PackageSources], home: Path
) -> None:
    write(
        home / ".config" / "uv" / "uv.toml",
        'find-links = ["/wheels"]\nallow-insecure-host = ["inner.example"]\n'
        '[[index]]\nurl = "https://default.example"\ndefault = true\n'
        '[[index]]\nurl = "https://more.example"\n'
        '[[index]]\nurl = "https://torch.example"\nexplicit = true\n',
    )
    sources = discover()
    assert sources.index.value == "https://default.example"
    assert [s.value for s in sources.extra_indexes] == ["https://more.example"]
    assert [s.value for s in sources.trusted_hosts] == ["inner.example"]


def test_a_uv_file_in_the_working_directory_is_not_read(
    discover: Callable[..., PackageSources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "project"
    write(here / "uv.toml", 'index-url = "https://hostile.example"\n')
    write(here / "pip.conf", "[global]\nindex-url = https://hostile.example\n")
    monkeypatch.chdir(here)
    assert discover().index.origin == "default"


def test_settings_that_change_what_is_installed_are_left_behind(
    discover: Callable[..., PackageSources], home: Path
) -> None:
    write(
        home / ".config" / "uv" / "uv.toml",
        'resolution = "lowest"\nlink-mode = "symlink"\n[pip]\nindex-url = "https://in-pip.example"\n',
    )
    sources = discover({"PIP_CONSTRAINT": "/c.txt", "UV_LINK_MODE": "copy", "PIP_NO_BINARY": ":all:"})
    env = sources.uv_environment()
    assert sources.index.value == "https://in-pip.example"
    assert "UV_LINK_MODE" not in env
    assert "UV_CONSTRAINT" not in env
    assert "UV_RESOLUTION" not in env


def test_a_certificate_file_that_does_not_exist_does_not_hide_one_that_does(
    discover: Callable[..., PackageSources], tmp_path: Path
) -> None:
    bundle = write(tmp_path / "ca.pem", "")
    sources = discover({"SSL_CERT_FILE": "/nowhere/ca.pem", "PIP_CERT": str(bundle)})
    assert sources.ca_bundle == Setting(str(bundle), "PIP_CERT")
    assert sources.uv_environment()["SSL_CERT_FILE"] == str(bundle)


def test_a_find_links_folder_that_does_not_exist_is_not_handed_to_uv(
    discover: Callable[..., PackageSources], tmp_path: Path
) -> None:
    sources = discover({"PIP_FIND_LINKS": f"/nowhere/wheels {tmp_path}"})
    assert sources.uv_environment()["UV_FIND_LINKS"] == str(tmp_path)


def test_no_index_leaves_the_folders_only(discover: Callable[..., PackageSources], tmp_path: Path) -> None:
    sources = discover({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)})
    assert sources.indexes == ()
    assert sources.uv_arguments() == ["--no-index"]
    assert "UV_DEFAULT_INDEX" not in sources.uv_environment()


def test_a_settings_file_that_is_damaged_is_named_and_the_rest_goes_on(
    discover: Callable[..., PackageSources], home: Path
) -> None:
    file = write(home / ".config" / "pip" / "pip.conf", "index-url = https://no-section.example\n")
    sources = discover({"PIP_PROXY": "http://proxy.example:3128"})
    assert sources.proxy is not None
    (sentence,) = sources.senseless
    assert sentence.startswith(f"{file} is not a valid pip configuration: File contains no section headers.")


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("pip/pip.conf", b"index-url = https://me:s3cret@mirror.example/simple\n"),
        ("pip/pip.conf", b"[global]\nindex-url = a\n[global]\nindex-url = b\n"),
        ("pip/pip.conf", b"\xff\xfe[global]"),
        ("uv/uv.toml", b"index-url = mirror"),
    ],
)
def test_packages_are_not_fetched_with_invalid_settings(
    discover: Callable[..., PackageSources], home: Path, place: str, content: bytes
) -> None:
    file = home / ".config" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(JobFailed) as caught:
        discover().understood()
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("permanent", "bad_settings")
    assert failure.message.startswith(str(file))
    assert "s3cret" not in failure.sentence()


def test_settings_that_may_not_be_read_are_passed_over_as_pip_does(
    discover: Callable[..., PackageSources], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / ".config" / "pip" / "pip.conf", "[global]\nindex-url = https://mirror.example\n")

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    sources = discover().understood()
    assert any("Permission denied" in one for one in sources.unreadable)


def test_credentials_never_show(discover: Callable[..., PackageSources]) -> None:
    sources = discover(
        {
            "PIP_INDEX_URL": "https://user:s3cret@mirror.example/simple",
            "UV_INDEX_WORK_PASSWORD": "hunter2",
            "HTTPS_PROXY": "http://me:pr0xy@proxy.example:3128",
        }
    )
    shown = f"{sources!r} {sources.describe()} " + sources.redact(
        "GET https://user:s3cret@mirror.example/simple/x failed, hunter2, pr0xy"
    )
    for secret in ("s3cret", "hunter2", "pr0xy"):
        assert secret not in shown
    assert "mirror.example" in shown


def test_a_url_without_credentials_stays_as_it_is() -> None:
    assert (
        redact("see https://example.org/a@b and git@example.org")
        == "see https://example.org/a@b and git@example.org"
    )


def test_the_working_settings_of_pip_reach_uv_as_variables_not_as_arguments(
    discover: Callable[..., PackageSources],
) -> None:
    sources = discover({"PIP_INDEX_URL": "https://user:s3cret@mirror.example/simple"})
    assert "s3cret" in sources.uv_environment()["UV_DEFAULT_INDEX"]
    assert "s3cret" not in " ".join(sources.uv_arguments())
