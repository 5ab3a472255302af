"""Makes grammars of JSON schemas, with llguidance."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from answer_schema import narrowed  # type: ignore[import-not-found,unused-ignore]
from check_grammar import CPU_SECONDS, limits  # type: ignore[import-not-found,unused-ignore]
from held_answer import HeldAnswer  # type: ignore[import-not-found,unused-ignore]

sys.path.pop(0)

# The front door knows these words.
MISSING = "llguidance is not installed"
TOO_COMPLEX = "the JSON schema is too complex"
UNUSABLE = "the JSON schema cannot be used"
NOT_ENFORCED = "the JSON schema cannot be enforced: {}"
STRAYED = "the JSON schema is too complex to follow"
_REMEMBERED = 256
_SPACE = r"(?: |\n{1,2}[ \t]{0,20})"
"""Between the parts of an answer, once: a model that likes spaces would write nothing else."""
_KEYWORD = re.compile(r'Unimplemented keys: \["([A-Za-z]+)"')
_PARTLY = {"oneOf constraints are not supported": "oneOf", "min/maxProperties only": "minProperties"}
_TOO_MUCH = re.compile(
    r"too (?:large|long|big|complex|many)|recursion limit|limit for this grammar", re.IGNORECASE
)


class NoGrammar(ValueError):
    """An answer cannot be held to a schema."""


class Grammars:
    """What answers can be held to, for the tokenizer of one model."""

    def __init__(self, make_tokenizer: Callable[[Any, Any], Any] | None = None) -> None:
        """`make_tokenizer` makes the library's tokenizer of mlx-lm's: once, for it takes up to a second."""
        self._make_tokenizer = make_tokenizer or _tokenizer_of
        self._tokenizer: Any = None
        self._verdicts: dict[bytes, str] = {}
        self._makes, self._checks = threading.Lock(), threading.Lock()

    def held(self, schema: Any, tokenizer: Any) -> HeldAnswer:
        """An answer to be held to a schema. Takes milliseconds; for a new schema a tenth of a second.

        `tokenizer` is mlx-lm's.

        Raises:
            NoGrammar: No answer can be held to this schema.
        """
        try:
            import llguidance  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise NoGrammar(MISSING) from None
        options: Any = {"whitespace_pattern": _SPACE}
        try:
            text = json.dumps(narrowed(schema))
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options)
        except RecursionError:
            raise NoGrammar(TOO_COMPLEX) from None
        except ValueError as error:
            raise NoGrammar(_in_our_words(str(error))) from None
        if verdict := self._verdict_on(grammar):
            raise NoGrammar(verdict)
        with self._makes:
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer(tokenizer, llguidance)
        made = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits(llguidance))
        if made.is_error():
            raise NoGrammar(_in_our_words(made.get_error()))
        return HeldAnswer(made, self._tokenizer.tokenize_str, tokenizer.eos_token_ids)

    def _verdict_on(self, grammar: str) -> str:
        key = hashlib.sha256(grammar.encode()).digest()
        verdict = self._verdicts.get(key)
        if verdict is None:
            with self._checks:  # one at a time: each may take a gigabyte
                if len(self._verdicts) >= _REMEMBERED:
                    self._verdicts.clear()
                verdict = self._verdicts.get(key)
                verdict = self._verdicts[key] = _checked(grammar) if verdict is None else verdict
        return verdict


def _checked(grammar: str) -> str:
    """What is wrong with a grammar, in our words; empty if nothing is.

    Raises:
        NoGrammar: It cannot be said today: this machine is too busy.
    """
    argv = [sys.executable, "-I", str(Path(__file__).with_name("check_grammar.py"))]
    bound = 20 * CPU_SECONDS
    try:
        done = subprocess.run(argv, input=grammar.encode(), capture_output=True, timeout=bound, check=False)
    except subprocess.TimeoutExpired:
        raise NoGrammar(TOO_COMPLEX) from None
    if done.returncode != 0:
        return TOO_COMPLEX
    return _in_our_words(done.stdout.decode(errors="replace")) if done.stdout else ""


def _in_our_words(said: str) -> str:
    if found := _KEYWORD.match(said):
        return NOT_ENFORCED.format(found[1])
    for words, keyword in _PARTLY.items():
        if said.startswith(words):
            return NOT_ENFORCED.format(keyword)
    return TOO_COMPLEX if _TOO_MUCH.search(said) else UNUSABLE


def _tokenizer_of(wrapped: Any, library: Any) -> Any:
    """The library's tokenizer, of mlx-lm's.

    Raises:
        NoGrammar: It is of a kind that the library cannot read.
    """
    backend = getattr(wrapped, "backend_tokenizer", None)
    if backend is None:
        raise NoGrammar("JSON schemas need a tokenizer.json, which this model has not")
    # A copy that neither pads nor cuts what it is given.
    fields = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return library.LLTokenizer(json.dumps(fields), eos_token=sorted(wrapped.eos_token_ids))
