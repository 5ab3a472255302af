"""`greenroom create`: what is sent for flags and for a Modelfile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.cli.modelfile import read
from greenroom.runner.cli.problem import Problem

CREATE = "POST /api/create"

MODELFILE = '''
# A pirate.
from smollm2
PARAMETER temperature 0.5
PARAMETER stop "<|im_end|>"
PARAMETER stop User:
PARAMETER num_ctx 4096
system """You are "a pirate".
Say arr."""
MESSAGE user Who are you?
MESSAGE assistant """A pirate,
of course."""
LICENSE "MIT"
'''
FIELDS = {
    "parameters": {"temperature": 0.5, "stop": ["<|im_end|>", "User:"], "num_ctx": 4096},
    "system": 'You are "a pirate".\nSay arr.',
    "messages": [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A pirate,\nof course."},
    ],
    "license": ["MIT"],
}


def test_a_modelfile_becomes_fields() -> None:
    wanted = read(MODELFILE)
    assert (wanted.sources, wanted.fields) == (["smollm2"], FIELDS)
    assert read('FROM a\nSYSTEM """one line"""').fields == {"system": "one line"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM a\nADAPTER ./x.gguf", "Line 2 of the Modelfile: ADAPTER is not supported"),
        ("FROM a\nRENDERER x", "RENDERER is not supported"),
        ("FROM a\n\nRUN x", "Line 3 of the Modelfile: there is no instruction RUN"),
        ('FROM a\nSYSTEM """x', "Line 2 of the Modelfile: the text of SYSTEM has no end"),
        ("FROM a\nSYSTEM", "SYSTEM has no value"),
        ("FROM a\nPARAMETER stop", "PARAMETER has no value"),
        ("FROM a\nMESSAGE robot x", "MESSAGE must be of system, user, assistant, not robot"),
        ("SYSTEM x", "The Modelfile has no FROM"),
    ],
)
def test_a_modelfile_that_is_wrong_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(Problem, match=said):
        read(text)


@pytest.fixture
def creating(our_daemon: Any) -> Any:
    our_daemon.routes[CREATE] = {"status": "success"}
    return our_daemon


def test_flags_are_sent_and_replace_what_the_modelfile_says(
    greenroom: Any, creating: Any, tmp_path: Path
) -> None:
    file, template = tmp_path / "Modelfile", tmp_path / "t.jinja"
    file.write_text(MODELFILE)
    template.write_text("{{ messages }}")
    assert greenroom("create", "pirate", "-f", str(file)).out == "Created pirate.\n"
    flags = ["--from", "qwen3", "--system", "Be brief.", "--template", str(template)]
    flags += ["--parameter", "temperature=0", "--parameter", "stop=a=b"]
    assert greenroom("create", "pirate", "-f", str(file), *flags).code == 0
    assert greenroom("create", "x", "--from", "smollm2", "--parameter", "stop=1").code == 0
    first, second, third = creating.bodies("/api/create")
    common = {"model": "pirate", "stream": False}
    assert first == {**common, "from": "smollm2", **FIELDS}
    parameters = {"temperature": 0, "stop": ["a=b"], "num_ctx": 4096}
    own = {"from": "qwen3", "system": "Be brief.", "template": "{{ messages }}", "parameters": parameters}
    assert second == {**common, **FIELDS, **own}
    assert third["parameters"] == {"stop": ["1"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x"], "Name the model to start from"),
        (["x", "--from", "a", "--parameter", "seed"], "--parameter needs NAME=VALUE"),
        (["x", "--from", "./none.gguf"], "There is no file"),
    ],
)
def test_what_cannot_be_created_is_said(
    greenroom: Any, creating: Any, arguments: list[str], said: str
) -> None:
    done = greenroom("create", *arguments)
    assert (done.code, said in done.err) == (2, True), done.err
    assert creating.bodies("/api/create") == []


def test_inspect_shows_the_defaults(greenroom: Any, our_daemon: Any) -> None:
    defaults = {
        "system": "You are a pirate.",
        "parameters": {"seed": 1, "stop": ["a"]},
        "messages": [{"role": "user", "content": "hi"}],
    }
    our_daemon.routes["GET /models/pirate"] = {"id": "sha256:ab", "defaults": defaults}
    lines = greenroom("inspect", "pirate").out.splitlines()
    assert "System prompt: You are a pirate." in lines
    assert 'Parameters:    seed 1, stop ["a"]' in lines
    assert "Message:       user: hi" in lines


def test_a_refusal_in_ollamas_form_is_shown_as_a_sentence(greenroom: Any, creating: Any) -> None:
    creating.routes[CREATE] = (400, {"error": "parameters.x cannot be stored with a model here."})
    done = greenroom("create", "x", "--from", "a", "--parameter", "x=1")
    assert done.code == 1
    assert done.err.strip().endswith("parameters.x cannot be stored with a model here.")
