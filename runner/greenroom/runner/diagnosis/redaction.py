"""Takes secrets and prompts out of what leaves this machine.

Three nets, since each alone has holes: the very values that this machine's settings hold, whatever stands
where secrets stand (URLs, headers, `NAME_TOKEN=`), and whatever is shaped like a known kind of token. What
may be part of a prompt goes too. Too much is taken rather than too little. Logs have lines
of any length, so no pattern may try its luck twice at the same place.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

GONE = "***"
NO_PROMPT = "[taken out: it may be part of a prompt]"

_SHORTEST = 4
"""Characters of a known secret that is looked for; shorter ones would be found in every other word."""

_NAMED = (
    r"(?:tokens?|secrets?|passw(?:or)?ds?|passphrases?|pwd|api[_-]?keys?|access[_-]?keys?|auth[_-]?keys?"
    r"|private[_-]?keys?|credentials?)"
)
"""How the names of secrets end."""
_SECRET_NAME = re.compile(
    rf"(?:.*[_.-])?{_NAMED}|.*[a-z](?:Token|Password|Secret|ApiKey)|.*authorization|.*cookie", re.IGNORECASE
)
_COUNTS = re.compile(
    r"(?:.*[_-])?(?:max|num|n|total|prompt|completion|cached|context|new)[_-]tokens?|.*per[_-]token"
    r"|(?:bos|eos|pad|unk)[_-]token",
    re.IGNORECASE,
)
"""Names that end so and count pieces of text."""
_PROMPT_NAMES = frozenset(
    ("messages prompt prompts content contents input inputs query documents suffix instructions").split()
)
_QUOTED = r"\\?[\"']?"


_URL = re.compile(r"\b([a-z][a-z0-9+.-]{0,20})://([^\s'\"<>]+)", re.IGNORECASE)
_NO_PORT = re.compile(r"[^/@:]+:(?!\d{1,5}$)")
"""What stands before a URL's first slash when a password has that slash in it."""


class _Shape(NamedTuple):
    kind: str
    pattern: re.Pattern[str]
    kept: str
    """What stays of a match, with what stands for the rest."""


def _shape(kind: str, kept: str, *pattern: str, flags: int = re.IGNORECASE) -> _Shape:
    return _Shape(kind, re.compile("".join(pattern), flags), kept)


_SHAPES = (
    _shape(
        "private keys",
        GONE,
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        flags=re.DOTALL,
    ),
    _shape(
        "headers",
        rf"\g<1>\g<2>{GONE}",
        r"((?:proxy-)?authorization|(?:set-)?cookie|x-api-key|api-key|x-[\w-]{0,20}token)",
        rf"({_QUOTED}\s*[:=,]\s*{_QUOTED})(?!\*\*\*)[^\"'\r\n\\]+",
    ),
    _shape(
        "bearer tokens",
        rf"\g<1> {GONE}",
        # Not "basic consistency checks": a word has neither a digit nor a capital within, nor 20 letters.
        r"\b((?i:bearer|basic))\s+(?=[\w.~+/=-]{20}|\w[\w.~+/=-]{0,19}?[A-Z0-9_~+/=])[\w.~+/=-]{8,}",
        flags=re.ASCII,
    ),
    _shape(
        "values named as secrets",
        rf"\g<1>\g<2>{GONE}",
        rf"(?<![a-z0-9])((?:[a-z0-9]{{1,40}}[_.-]){{0,6}}{_NAMED})({_QUOTED}\s*[:=]\s*{_QUOTED})",
        r"(?!\*\*\*)[^\s\"',;&}\\]+",
    ),
    _shape(
        "secrets on command lines",
        rf"\g<1>{GONE}",
        rf"(--?(?:[a-z0-9]{{1,40}}-){{0,6}}{_NAMED}[ =]+)(?!\*\*\*)[^\s\"',]+",
    ),
    _shape(
        "credentials before hosts",
        rf"{GONE}@",
        r"(?<![\w.:/@*-])[\w.+-]{1,64}:[^\s@/:'\"]{1,200}@(?=[\w-]{1,63}(?:\.[\w-]{1,63})*[:/])",
    ),
    _shape(
        "netrc entries",
        rf"\g<1>{GONE}",
        r"(\blogin\s+\S+\s+(?:account\s+\S+\s+)?passw(?:or)?d\s+)(?!\*\*\*)\S+",
    ),
    _shape(
        "tokens by their shape",
        GONE,
        r"\b(?:hf_[A-Za-z0-9]{8,}|api_org_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}",
        r"|glpat-[\w-]{12,}|sk-[\w-]{12,}|pypi-[\w-]{16,}|dckr_[a-z]+_[\w-]{12,}|xox[abprs]-[\w-]{10,}",
        r"|npm_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)",
        flags=0,
    ),
    _shape(
        "possible prompts",
        NO_PROMPT,
        r"(?:\\?[\"'](?:messages|prompts?|contents?|inputs?|query|documents|suffix|instructions)\\?[\"']\s*[:,]",
        r"|\bprompts?\s*[:=]\s*\\?[\"'\[]|\binput_value\s*=|\bmessages\s*=\s*\[).*",
    ),
)


class Redactor:
    """Takes out, and counts what it took."""

    def __init__(self, secrets: Iterable[str] = (), *, home: Path | None = None) -> None:
        """`secrets` are values to be found wherever they are; `home` is shown as `~`."""
        whole = {one for one in secrets if len(one) >= _SHORTEST}
        forms = whole | {quote(one, safe="") for one in whole} | {json.dumps(one)[1:-1] for one in whole}
        self._secrets = sorted(forms, key=len, reverse=True)
        self._home = str(home) if home is not None and len(str(home)) > 1 else ""
        self.taken: Counter[str] = Counter()

    def text(self, text: str) -> str:
        """A text of any length, such as a log."""
        for secret in self._secrets:
            if secret in text:
                self.taken["values from this machine's settings"] += text.count(secret)
                text = text.replace(secret, GONE)
        text = _URL.sub(self._url, text)
        for shape in _SHAPES:
            text = shape.pattern.sub(lambda found, shape=shape: self._without(shape, found), text)  # type: ignore[misc]
        return text.replace(self._home, "~") if self._home else text

    def value(self, value: Any, name: str = "") -> Any:
        """Something JSON has, of any depth, that stands under `name`."""
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(inner, str(key)) for key, inner in value.items()}
        if name in _PROMPT_NAMES and value and not isinstance(value, (int, float)):
            # A number of that name is a size.
            self.taken["possible prompts"] += 1
            return NO_PROMPT
        if isinstance(value, (list, tuple)):
            return [self.value(one, name) for one in value]
        if not isinstance(value, str) or not value:
            return value
        if is_secret_name(name):
            self.taken["values named as secrets"] += value != GONE
            return GONE
        if value[0] in "{[" and value[-1] in "}]":
            # JSON in JSON: what stands in it has names, too.
            with contextlib.suppress(ValueError, RecursionError):
                return json.dumps(self.value(json.loads(value)), ensure_ascii=False)
        return self.text(value)

    def _url(self, found: re.Match[str]) -> str:
        """A URL without credentials and tokens; also one inside another."""
        rest, mark, query = found[2].partition("?")
        parts = []
        for part in rest.split("://"):
            host = part.partition("/")[0]
            if "@" in host or ("@" in part and _NO_PORT.match(host)):
                # Passwords hold `@` and `/` although they should not.
                where = host if "@" in host else part
                self.taken["credentials in URLs"] += 1
                parts.append(f"{GONE}@{part[where.rindex('@') + 1 :]}")
            else:
                parts.append(part)
        if query:
            self.taken["queries of URLs"] += 1
        return f"{found[1]}://{'://'.join(parts)}{mark}{GONE if query else ''}"

    def _without(self, shape: _Shape, found: re.Match[str]) -> str:
        if shape.kind == "values named as secrets" and _counts_text(found):
            return found[0]
        self.taken[shape.kind] += 1
        return found.expand(shape.kept)


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret: `HF_TOKEN`, `apiKey`, `authorization`; not `max_tokens`."""
    # A shell's working directory sounds like one.
    harmless = _COUNTS.fullmatch(name) or name in ("PWD", "OLDPWD")
    return bool(_SECRET_NAME.fullmatch(name)) and not harmless


def _counts_text(found: re.Match[str]) -> bool:
    """`n_tokens = 12` is no secret."""
    value = found[0][found.end(2) - found.start() :]
    is_number = value.replace(".", "").isdigit() and found[1].lower().endswith(("tokens", "_token"))
    return is_number or bool(_COUNTS.fullmatch(found[1]))
