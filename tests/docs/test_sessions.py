"""What the pages show is what happens: sessions, commands to copy, programs, bodies and answers.

A session that fails shows what it prints now; `make docs` writes that into the page.
"""

from __future__ import annotations

import json
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from daemon_process import PROGRAMS
from pages import Block, every_block
from real_clients import install, node_folder
from sandbox import Machine, Sandbox, clone, printed_by, renewed_text, sandbox

TRIED = [block for block in every_block() if not block.notes.keys() & {"not run", "from", "of"}]

AWAITING = str(PROGRAMS / "awaiting.py")


def of_kind(kind: str, *, in_clone: bool = False) -> pytest.MarkDecorator:
    blocks = [one for one in TRIED if one.kind == kind and ("clone" in one.notes) == in_clone]
    blocks = [one for one in blocks if "client" not in one.notes]
    slow = {"marks": [pytest.mark.slow]}
    cases = [pytest.param(one, id=one.place, **(slow if "slow" in one.notes else {})) for one in blocks]
    return pytest.mark.parametrize("block", cases)


def with_note(word: str) -> pytest.MarkDecorator:
    blocks = [one for one in TRIED if word in one.notes]
    return pytest.mark.parametrize("block", blocks, ids=lambda block: block.place)


@pytest.fixture(scope="module")
def machine(smollm2_gguf: Path) -> Iterator[Sandbox]:
    """All blocks share it, in the order of the pages."""
    with sandbox(smollm2_gguf) as made:
        yield made


@pytest.fixture(scope="module")
def fresh_clone() -> Iterator[Machine]:
    with clone() as made:
        yield made


def check(block: Block, printed: list[list[str]]) -> None:
    now = renewed_text(block, printed)
    difference = unified_diff(
        block.text.splitlines(), now.splitlines(), block.place, "printed now", lineterm=""
    )
    assert now == block.text, "\n".join(["`make docs` writes this into the page:", *difference])


@of_kind("console")
def test_a_session_prints_what_the_page_shows(block: Block, machine: Sandbox, smollm2_gguf: Path) -> None:
    check(block, printed_by(block, smollm2_gguf, machine))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(900)
@of_kind("console", in_clone=True)
def test_a_session_in_a_fresh_clone_prints_what_the_page_shows(block: Block, fresh_clone: Machine) -> None:
    check(block, fresh_clone.session(block))


@of_kind("sh")
def test_commands_to_copy_work(block: Block, machine: Sandbox) -> None:
    if "curl " in block.text and shutil.which("curl") is None:
        pytest.skip("needs curl: apt-get install curl")
    done = machine.shell(
        f"set -e\n{block.notes.get('first', '')}\n{block.text}\n{block.notes.get('last', '')}"
    )
    assert done.returncode == 0, done.stdout


@of_kind("python")
def test_a_program_runs(block: Block, machine: Sandbox) -> None:
    done = machine.program(block, sys.executable, AWAITING)
    assert done.returncode == 0, done.stdout


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.timeout(900)
@with_note("client")
def test_a_program_of_a_client_runs(block: Block, machine: Sandbox, test_cache: Path) -> None:
    folder = install(block.notes["client"], test_cache)
    if block.kind == "js":  # modules are looked for beside the program
        done = machine.program(block, str(node_folder() / "node"), folder=folder)
    else:
        done = machine.program(block, str(folder / "bin" / "python"), AWAITING)
    assert done.returncode == 0, done.stdout


@with_note("body")
def test_a_body_is_accepted(block: Block, machine: Sandbox) -> None:
    method, path = block.notes["body"].split()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{machine.url}{path}", block.text.encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status < 300


@with_note("answer")
def test_an_answer_is_as_the_description_says(block: Block, machine: Sandbox) -> None:
    status, method, path = block.notes["answer"].split()
    with urllib.request.urlopen(f"{machine.url}/openapi.json", timeout=60) as answer:
        api: dict[str, Any] = json.load(answer)
    described = api["paths"][path][method.lower()]["responses"][status]
    while "$ref" in described:
        described = api["components"]["responses"][described["$ref"].rpartition("/")[2]]
    # A stream is described by its pieces.
    content = described["content"]
    schema = (
        content.get("application/json", {}).get("schema") or content["application/x-ndjson"]["x-itemSchema"]
    )
    jsonschema.validate(json.loads(block.text), {**schema, "components": api["components"]})


def test_the_list_of_files_has_what_lies_in_a_data_directory(machine: Sandbox) -> None:
    (block,) = [one for one in every_block() if one.notes.get("of") == "the data directory"]
    listed = tuple(line.split()[0] for line in block.text.splitlines())
    found = {f"{path.name}/" if path.is_dir() else path.name for path in machine.home.iterdir()}
    assert {"journal.db", "daemon.json", "models/"} <= found
    assert not {name for name in found if not name.startswith(listed)}
