"""What people type who know other runners, and what it is called here."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

WORDS = {
    "ask": "run",
    "benchmark": "bench",
    "chat": "run",
    "copy": "cp",
    "daemon": "serve",
    "del": "rm",
    "delete": "rm",
    "disk": "df",
    "doctor": "status",
    "down": "stop",
    "download": "pull",
    "du": "df",
    "eject": "stop",
    "errors": "log --problems",
    "events": "log",
    "explain": "why",
    "fetch": "pull",
    "generate": "run",
    "get": "pull",
    "gpu": "devices",
    "gpus": "devices",
    "history": "log",
    "images": "list",
    "import": "package",
    "info": "inspect",
    "install": "install-runner",
    "kill": "stop",
    "mem": "memory",
    "problems": "log --problems",
    "reload": "restart",
    "restart-runner": "restart",
    "rollback": "rollback-runner",
    "server": "serve",
    "set": "configure",
    "settings": "config",
    "start": "serve",
    "stop-runner": "stop",
    "summary": "log --summary",
    "top": "ps --watch",
    "uninstall": "uninstall-runner",
    "up": "serve",
    "update": "upgrade-runner",
    "upgrade": "upgrade-runner",
    "what": "log --summary",
}
_PROGRAMS = ("docker", "model", "ollama", "lms", "greenroom")
"""Words before a command, as in `docker model run`."""
_IN_TWO_WORDS = {
    ("server", "start"): "serve",
    ("server", "stop"): "stop",
    ("server", "status"): "status",
    ("log", "stream"): "logs -f",
    ("daemon", "up"): "serve",
    ("daemon", "down"): "stop",
}
_OF_LM_STUDIO = {"load": "run -d", "unload": "stop"}
_CLOSE = 0.6


def meant(words: Sequence[str], commands: Collection[str]) -> str:
    """The command that a line with an unknown first word most likely means; empty without a guess."""
    rest = list(words)
    while rest and rest[0] in _PROGRAMS:
        rest.pop(0)
    if not rest:
        return ""
    translated = _of_two(words[0], rest) or _of_one(rest[0], commands)
    if not translated or len(rest) == len(words):
        return translated
    used = 2 if tuple(rest[:2]) in _IN_TWO_WORDS else 1
    return " ".join(("greenroom", translated, *rest[used:]))


def _of_two(program: str, rest: Sequence[str]) -> str:
    if program == "lms" and rest[0] in _OF_LM_STUDIO:
        return _OF_LM_STUDIO[rest[0]]
    return _IN_TWO_WORDS.get((rest[0], rest[1]), "") if len(rest) > 1 else ""


def _of_one(word: str, commands: Collection[str]) -> str:
    if word in commands:
        return word
    known = WORDS.get(word.lower())
    if known is not None and known.split()[0] in commands:
        return known
    near = difflib.get_close_matches(word.lower(), list(commands), n=1, cutoff=_CLOSE)
    return near[0] if near else ""
