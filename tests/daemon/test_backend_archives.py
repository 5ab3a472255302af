"""A backend is carried to a machine without a network in one file, by real daemons and the command line."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations import archive
from greenroom.runner.testing import tiny_gguf
from workshop import Workshop

NO_INDEX = "http://127.0.0.1:9/simple/"
"""An index that refuses connections."""


@pytest.fixture(scope="module")
def carried(
    workshop: Workshop, make_home_daemon: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`carried` as a file, exported beside the daemon that has installed it."""
    workshop.add("carried", 20_000, companion=10_000)
    home = tmp_path_factory.mktemp("there") / "home"
    home.mkdir()
    workshop.furnish(home)
    there = make_home_daemon(home, **workshop.environment(home.parent)).start()
    assert there.run("install-runner", "--backend", "carried").returncode == 0
    file = home.parent / "carried.tar"
    with file.open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "greenroom.runner.cli", "backends", "export", "carried"],
            env={**there.env, "GREENROOM_HOST": there.url},
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "Exported carried 1.0: 2 packages.\n")
    there.stop()
    return file


def fetched(home: Path) -> list[str]:
    """What an import may leave."""
    places = ("cache/wheels", "cache/locks", "backends/carried")
    return [str(one.relative_to(home)) for place in places for one in (home / place).rglob("*")]


def test_where_no_source_answers_it_is_installed_from_the_file_and_serves(
    carried: Path, workshop: Workshop, make_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    here = make_daemon(**workshop.environment(tmp_path) | {"PIP_INDEX_URL": NO_INDEX})
    workshop.furnish(here.home)
    here.start()
    asked = len(workshop.index.requests)
    whole = carried.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.rindex(b"carried_companion.bin") - 2000] ^= 1
    for damaged, reason in (
        (whole[: len(whole) // 2], "This is not a complete backend archive: "),
        (bytes(flipped), "does not match its hash"),
    ):
        (tmp_path / "damaged.tar").write_bytes(damaged)
        refused = here.run("backends", "import", str(tmp_path / "damaged.tar"))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("Error: This is not a complete backend archive: ")
        assert reason in refused.stderr
        assert "Export it again: greenroom backends export NAME > NAME.tar" in refused.stderr
        assert fetched(here.home) == []
        assert here.get("/engines/carried").json["state"] == "absent"

    done = here.run("backends", "import", str(carried))

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "carried backend installed successfully"
    here.pull(str(tiny_gguf(tmp_path / "tiny.gguf")))
    answer = here.chat(f"file:{tmp_path}/tiny.gguf")
    assert answer.status == 200, answer.body
    (engine,) = here.engines()
    assert engine["backend_name"] == "carried"
    assert here.run("backends", "import", str(carried)).stdout.splitlines()[-1] == (
        "carried backend is already installed (version 1.0)"
    )
    assert len(workshop.index.requests) == asked


def test_whichever_bit_is_flipped_the_file_is_refused_or_brings_the_same(
    carried: Path, tmp_path: Path
) -> None:
    whole = carried.read_bytes()
    archive.read(tmp_path / "sound", io.BytesIO(whole))
    sound = {name: (tmp_path / "sound" / name).read_bytes() for name in files_of(tmp_path / "sound")}
    assert len(sound) == 3
    draw = random.Random(1)
    refused = 0
    for number in range(300):
        # What is not a wheel is small, and as likely to be hit.
        at = draw.randrange(len(whole)) if number % 2 else draw.randrange(4000)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draw.randrange(8)
        home = tmp_path / str(number)
        try:
            archive.read(home, io.BytesIO(damaged))
        except JobFailed:
            refused += 1
            assert files_of(home) == []
        else:
            assert {name: (home / name).read_bytes() for name in files_of(home)} == sound, at
    assert refused > 100


def files_of(home: Path) -> list[str]:
    return sorted(str(one.relative_to(home)) for one in home.rglob("*") if one.is_file())
