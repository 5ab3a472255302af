"""The API reference is what the code says, and says something of each name."""

from __future__ import annotations

import re

import reference_page

PAGE = reference_page.PAGE.read_text("utf-8")


def test_the_reference_is_what_the_code_says() -> None:
    assert reference_page.render() == PAGE, "run `make docs`, and read what has changed"


def test_every_name_and_every_method_has_a_text() -> None:
    silent = re.findall(r"^(#{4,5} .*)\n\n(?:class )?`.*`.*\n+(?=- `|#)", PAGE, re.MULTILINE)
    assert not silent
    assert "class `Client`\n\nAsks a Greenroom" in PAGE


def test_types_of_a_base_are_those_of_the_class_that_fills_them_in() -> None:
    chat = PAGE.partition("##### AsyncClient.chat\n\n")[2].splitlines()[0]
    assert chat.endswith("-> Awaitable[TextResult] | AsyncTextStream`")
    assert "**options: Unpack[ChatOptions]" in chat


def test_every_method_appears_once() -> None:
    methods = re.findall(r"^##### (.*)$", PAGE, re.MULTILINE)
    assert len(methods) == len(set(methods)) > 100
