"""What JSON schemas and grammars may not ask for: at least more of something than at most.

llama.cpp counts from the least up to the most. Where the most is smaller it never gets there, and takes all
the memory of the machine on its way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BOUNDS = (("minItems", "maxItems"), ("minLength", "maxLength"), ("minProperties", "maxProperties"))
_INT32 = 2**31 - 1
"""Engines keep a bound in so many bits, and cut off what is more."""
_LEVELS = 256
"""Of nested lists and objects; what works through them calls itself for each."""
_TIMES = re.compile(r"\{\s*0*(\d+)\s*,\s*0*(\d+)\s*\}")
_IN_PATTERN = re.compile(r"\\.|\[(?:[^\]\\]|\\.)*\]", re.DOTALL)
_IN_GRAMMAR = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|#[^\n]*', re.DOTALL)
"""Where braces are characters like others."""


def fault_of_schema(schema: Any) -> str:
    """What is wrong with a JSON schema, wherever in it: what to say after its name. Empty if nothing is."""
    left = [(1, schema)]
    while left:
        level, one = left.pop()
        if level > _LEVELS:
            return f"is nested more than {_LEVELS} levels deep"
        if isinstance(one, list):
            left += [(level + 1, inner) for inner in one]
        elif isinstance(one, dict):
            left += [(level + 1, inner) for inner in one.values()]
            if fault := _fault_of_bounds(one):
                return f"allows no answer: {fault}"
    return ""


def _fault_of_bounds(schema: Mapping[str, Any]) -> str:
    for least, most in _BOUNDS:
        low, high = _number(schema.get(least), 0), _number(schema.get(most), _INT32)
        if max(low, high) > _INT32:
            return f"{least} and {most} can be at most {_INT32}"
        if low > high:
            return f"{least} is above {most}"
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and (fault := _fault_of_times(_IN_PATTERN.sub(".", pattern))):
        return f"a repetition in a pattern {fault}"
    return ""


def fault_of_grammar(grammar: str) -> str:
    """What is wrong with the repetitions in a grammar; empty if nothing is."""
    fault = _fault_of_times(_IN_GRAMMAR.sub(" ", grammar))
    return f"a repetition {fault}" if fault else ""


def _number(value: object, absent: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else absent


def _fault_of_times(text: str) -> str:
    for low, high in _TIMES.findall(text):
        # The lengths first: Python refuses to read a number of thousands of digits.
        if max(len(low), len(high)) > 10 or max(int(low), int(high)) > _INT32:
            return f"can be at most {_INT32} times"
        if int(low) > int(high):
            return "has a minimum above its maximum"
    return ""
