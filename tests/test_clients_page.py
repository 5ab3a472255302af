"""docs/clients.md agrees with the tests of clients."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from real_clients import BEGIN, CLIENTS, END, PROGRAMS, Client, table

PAGE = (Path(__file__).parents[1] / "docs" / "clients.md").read_text("utf-8")


def test_the_table_has_what_the_tests_try_with_the_versions_they_found() -> None:
    made = PAGE.partition(BEGIN)[2].partition(END)[0].strip()
    rows = made.splitlines()[2:]
    versions = [re.sub(r"^\| [^|]+ \| `[^`]+` (\S+) \|.*", r"\1", row) for row in rows]

    assert all(re.fullmatch(r"\d+(\.\d+)+\S*", version) for version in versions)
    assert table(versions) == made


@pytest.mark.parametrize("name", sorted({client.title.partition("'")[0] for client in CLIENTS}))
def test_the_page_has_a_setting_for_each_client(name: str) -> None:
    settings = PAGE.partition("## What is tested")[0]

    assert name in settings


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_program_of_a_client_tries_its_features(client: Client) -> None:
    text = (PROGRAMS / client.program.split()[0]).read_text("utf-8")
    if client.program.split()[0].endswith(".py"):
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        tried = {ast.literal_eval(one.args[0]) for one in calls if ast.unparse(one.func) == "check"}
    else:
        tried = set(re.findall(r"async (\w+)\(\) \{|checks\.(\w+) = async", text))
        tried = {name for pair in tried for name in pair if name}

    assert set(client.features) <= tried
