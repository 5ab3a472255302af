from __future__ import annotations

import platform

import pytest

from greenroom.actors.values import EngineSpec
from greenroom.runner.engines.exit_report import cause_of, engine_exit
from greenroom.runner.systems import packages
from greenroom.runner.systems.packages import family, install_command, missing_library

GOMP = "ImportError: libgomp.so.1: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("release", "of"),
    [
        ({"ID": "debian"}, "debian"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "debian"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "debian"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "fedora"),
        ({"ID": "opensuse-tumbleweed", "ID_LIKE": "opensuse suse"}, "suse"),
        ({"ID": "endeavouros", "ID_LIKE": "arch"}, "arch"),
        ({"ID": "alpine"}, "alpine"),
        ({"ID": "nixos"}, ""),
        ({}, ""),
    ],
)
def test_the_family_of_a_system_is_known_by_its_release_file(
    release: dict[str, str], of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    family.cache_clear()
    try:
        assert family() == of
    finally:
        family.cache_clear()


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    assert missing_library(GOMP, "fedora") == (
        "this system has no libgomp.so.1",
        "Install it: sudo dnf install libgomp",
    )
    assert missing_library(GOMP, "")
    assert missing_library(GOMP.replace("libgomp.so.1", "libodd-2.so.7"), "debian") == (
        "this system has no libodd-2.so.7",
        "Install the package that has libodd-2.so.7.",
    )
    assert missing_library("ImportError: undefined symbol") is None
    assert install_command({"debian": "cmake"}, "arch") == ""


def test_a_system_that_is_too_old_is_told_the_version_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    says = "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.35' not found (required by x.so)"
    lacks = missing_library(says)
    assert lacks is not None
    assert lacks[0] == "it needs glibc 2.35 or newer, and this system has 2.31"


def test_an_engine_that_lacks_a_library_is_not_held_against_its_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "family", lambda: "debian")
    assert cause_of([GOMP]) == "this system has no libgomp.so.1. Install it: sudo apt install libgomp1"
    spec = EngineSpec(engine_id="e-1", backend="llama.cpp", installation_id="1", model_id="m", model_ref="m")
    end = engine_exit({"code": 1, "last_lines": [GOMP]}, spec, expected=False, was_ready=False)
    assert end.failure is not None
    assert (end.failure.code, end.failure.blame) == ("missing_library", "machine")
