"""Reads a Modelfile, in which Ollama describes a model: where it comes from, and its defaults."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from greenroom.runner import exit_codes
from greenroom.runner.cli.problem import Problem

_KNOWN = ("FROM", "SYSTEM", "TEMPLATE", "PARAMETER", "MESSAGE", "LICENSE")
_NOT_SUPPORTED = {
    "ADAPTER": "Use a model that has the adapter merged.",
    "RENDERER": "The model's chat template makes its prompts.",
    "PARSER": "The engine reads answers as the model's chat template says.",
    "REQUIRES": "Leave the line out: it names a version of Ollama.",
}
_ROLES = ("system", "user", "assistant")
_LINE = re.compile(r"\s*(\S+)\s*(.*)", re.DOTALL)
_FENCE = '"""'


@dataclass
class Modelfile:
    """What a model is to be made of, in the fields of `POST /api/create`."""

    sources: list[str] = field(default_factory=list)
    """A model's name or a path; a second one is its projector."""
    fields: dict[str, Any] = field(default_factory=dict)

    def set_parameter(self, name: str, text: str) -> None:
        """Later values replace earlier ones, but those of `stop` add up."""
        parameters = self.fields.setdefault("parameters", {})
        if name == "stop":
            parameters.setdefault("stop", []).append(text)
        else:
            parameters[name] = _number(text)


def read(text: str) -> Modelfile:
    """Raises Problem with the line that is wrong."""
    wanted = Modelfile()
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        assert found is not None
        word, rest = found[1].upper(), found[2]
        if word in _NOT_SUPPORTED:
            raise _wrong(number, f"{word} is not supported.", _NOT_SUPPORTED[word])
        if word not in _KNOWN:
            raise _wrong(number, f"there is no instruction {found[1]}.", f"Known are {', '.join(_KNOWN)}.")
        head = ""
        if word in ("PARAMETER", "MESSAGE"):
            head, _, rest = rest.strip().partition(" ")
        value = rest.strip()
        if value.startswith(_FENCE):
            value = value[len(_FENCE) :]
            while not value.rstrip().endswith(_FENCE):
                more = next(lines, None)
                if more is None:
                    raise _wrong(number, f"the text of {word} has no end.", f"End it with {_FENCE}.")
                value += f"\n{more[1]}"
            value = value.rstrip().removesuffix(_FENCE)
        elif len(value) > 1 and value[0] == value[-1] == '"':
            value = _unquoted(value)
        if not value:
            raise _wrong(number, f"{word} has no value.")
        _take(wanted, number, word, head, value)
    if not wanted.sources:
        raise Problem("The Modelfile has no FROM.", "Add one: FROM smollm2", code=exit_codes.USAGE)
    return wanted


def _take(wanted: Modelfile, number: int, word: str, head: str, value: str) -> None:
    fields = wanted.fields
    match word:
        case "FROM":
            wanted.sources.append(value)
        case "SYSTEM" | "TEMPLATE":
            fields[word.lower()] = value
        case "LICENSE":
            fields.setdefault("license", []).append(value)
        case "PARAMETER":
            wanted.set_parameter(head, value)
        case _:
            if head not in _ROLES:
                raise _wrong(number, f"MESSAGE must be of {', '.join(_ROLES)}, not {head}.")
            fields.setdefault("messages", []).append({"role": head, "content": value})


def _number(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, int | float) else text


def _unquoted(text: str) -> str:
    """A text in quotes; `\\n` in it is a line end where it is written as JSON, as `show` does."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


def _wrong(number: int, message: str, advice: str = "") -> Problem:
    return Problem(f"Line {number} of the Modelfile: {message}", advice, code=exit_codes.USAGE)
