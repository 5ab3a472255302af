"""README, CI and the container agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

LIMIT = ["--max-tokens", "512"]
ROOT = Path(__file__).resolve().parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def commands() -> list[str]:
    """The README's commands, in the order in which it has them."""
    return re.findall(r"^(?:\$ )?(make \w+)$", read("README.md"), re.MULTILINE)


def test_the_readme_has_two_commands_one_to_run_and_one_to_test() -> None:
    assert commands() == ["make run", "make test"]


def test_ci_and_the_container_run_the_readmes_test_command() -> None:
    test = commands()[1]

    assert re.search(rf"^{test}\b", read(".ci/run"), re.MULTILINE)
    assert read("Dockerfile.test").splitlines()[-1] == f"RUN {test}"


def test_the_container_is_a_base_image_two_packages_a_copy_and_the_test_command() -> None:
    lines = read("Dockerfile.test").splitlines()

    assert [line.split()[0] for line in lines] == ["FROM", "RUN", "COPY", "WORKDIR", "RUN"]
    # The slim image has no make, and lacks the one library that llama.cpp's package takes from the system.
    assert lines[1] == "RUN apt-get update && apt-get install --yes --no-install-recommends make libgomp1"


def test_ci_checks_before_it_tests_and_needs_no_terminal() -> None:
    script = read(".ci/run")

    assert script.index("\nmake check\n") < script.index("\nmake test ")
    assert "exec </dev/null" in script
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], ["run", *LIMIT, "smollm2", "--", "Write one sentence about the sea."]),
        (['PROMPT=It\'s $5 "now"', "MODEL=ai/gemma3"], ["run", *LIMIT, "ai/gemma3", "--", 'It\'s $5 "now"']),
        (["PROMPT=--help"], ["run", *LIMIT, "smollm2", "--", "--help"]),
        (["PROMPT="], ["run", "smollm2"]),
    ],
)
def test_make_run_asks_exactly_what_was_typed(tmp_path: Path, arguments: list[str], asked: list[str]) -> None:
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name, text in (
        ("python", "#!/bin/sh\n"),
        ("greenroom", f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n"),
    ):
        (venv / "bin" / name).write_text(text)
        (venv / "bin" / name).chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    made: subprocess.CompletedProcess[str] | None = None
    for _ in range(2):
        made = subprocess.run(
            ["make", "run", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert made.returncode == 0, made.stderr
        assert made.stdout.splitlines()[-1] == str(asked)
    assert made is not None
    assert len(made.stdout.splitlines()) == 1, "the second time nothing is installed"


def test_every_setting_is_documented() -> None:
    from greenroom.runner.config import NAMES

    text = read("docs/configuration.md")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    tables = re.findall(r"^\[(\w+)[.\]]", text, re.MULTILINE)

    assert {*rows, *tables} == set(NAMES)


def test_every_command_and_exit_code_is_documented() -> None:
    from greenroom.runner import exit_codes
    from greenroom.runner.cli.main import COMMANDS

    text = read("docs/cli.md")

    for command in COMMANDS:
        assert re.search(rf"^\| `{command}[` ]", text, re.MULTILINE), command
    codes = {str(value) for value in vars(exit_codes).values() if isinstance(value, int)}
    assert set(re.findall(r"^\| (\d+) \|", text, re.MULTILINE)) == codes


def test_extras_ask_for_the_versions_that_the_tests_use() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    tested = project["dependency-groups"]["test"]
    for extra in ("anthropic", "ollama", "openai"):
        (requirement,) = project["project"]["optional-dependencies"][extra]
        assert requirement in tested
