"""What a request asks of its answer, and how mlx-lm is made to give it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from answer_schema import call_schema, called, must_call, schema_of  # type: ignore[import-not-found,unused-ignore]
from grammars import Grammars  # type: ignore[import-not-found,unused-ignore]
from held_answer import BeforeAnswer, HeldAnswer, holding  # type: ignore[import-not-found,unused-ignore]

sys.path.pop(0)

_TEXT, _CALL = "normal", "tool"
"""States of mlx-lm's text machine: what is written in one is shown, in the other it is a call."""


class AnswerPlan:
    """For one answer: held to a schema, or without calls."""

    def __init__(self, held: HeldAnswer | None, *, is_call: bool) -> None:
        self._held = held
        self._may_call = held is not None and bool(held.instead)
        self._state = _CALL if is_call else _TEXT
        self._machine: Any = None
        self._initial = ""

    def arranged(self, tokenizer: Any, stop_words: list[str], initial: str) -> None:
        """Make the text machine. `initial` is the state in which mlx-lm's would be after the prompt."""
        from mlx_lm.generate import (  # type: ignore[import-not-found,unused-ignore]
            TextStateMachine,
            make_text_state_machine,
        )

        machine, usual = TextStateMachine(), make_text_state_machine(tokenizer, stop_words)
        # mlx-lm has no public way to change one. This name exists since 0.32.0, the oldest version we run.
        for state, (trie, leads) in usual._states.items():  # noqa: SLF001
            # No mark leads to the wrong kind of answer.
            lead = {_TEXT: _CALL} if self._state == _CALL else {_CALL: state} if not self._may_call else {}
            machine._states[state] = trie, [lead.get(one, one) for one in leads]  # noqa: SLF001
        self._machine, self._initial = machine, self._state if initial == _TEXT else initial
        if self._held is None:
            return
        if not self._may_call:
            # What elsewhere begins a thought or a call may stand in this answer.
            alone = TextStateMachine({self._state: [(word, self._state) for word in stop_words]})
            machine._states |= alone._states  # noqa: SLF001
        if self._initial != self._state:
            self._held.thinks = BeforeAnswer(
                tokenizer.detokenizer, machine, self._initial, self._state, _CALL if self._may_call else ""
            )

    def processors(self, fail: Any) -> list[Any]:
        return [] if self._held is None else [holding(self._held, fail)]

    def given_to(self, context: Any) -> None:
        """Have mlx-lm read the answer by this plan: `context` is its own, of the generation."""
        context.text_sm, context.initial_state = self._machine, self._initial
        if self._state == _CALL:
            context.tool_parser = called


def planned(body: Mapping[str, Any], tokenizer: Any, grammars: Grammars) -> AnswerPlan | None:
    """The plan for a request; None if its answer is free.

    Raises:
        NoGrammar: The answer cannot be held to its schema.
    """
    if functions := must_call(body):
        schema = call_schema(functions)
        return AnswerPlan(grammars.held(schema, tokenizer), is_call=True)
    if (schema := schema_of(body)) is not None:
        held = grammars.held(schema, tokenizer)
        if body.get("tools") and body.get("tool_choice", "auto") == "auto":
            held.instead = _call_marks(tokenizer)
        return AnswerPlan(held, is_call=False)
    return AnswerPlan(None, is_call=False) if body.get("tool_choice") == "none" else None


def _call_marks(tokenizer: Any) -> frozenset[int]:
    """The token with which the model begins a call; none if that takes several, or it knows no calls."""
    marks = tokenizer.tool_call_start_tokens if tokenizer.has_tool_calling else ()
    return frozenset(marks if marks and len(marks) == 1 else ())
