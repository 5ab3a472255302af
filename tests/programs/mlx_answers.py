"""Tries, in mlx's own environment, what holds answers there; prints the sentences that hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LAUNCHERS = Path(__file__).parents[2] / "runner/greenroom/runner/engines/launchers"
sys.path.insert(0, str(LAUNCHERS))

import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
from answer_plan import AnswerPlan  # type: ignore[import-not-found]  # noqa: E402
from held_answer import Elsewhere, Strayed, holding  # type: ignore[import-not-found]  # noqa: E402

HOLD: list[str] = []


class Held:
    """Stands in for an answer: says what a test wants."""

    ends = frozenset((0, 99))
    over = False
    instead: frozenset[int] = frozenset()

    def __init__(self, *masks: Any) -> None:
        self.masks, self.tokens, self.thinks = list(masks), [], None  # type: ignore[var-annotated]

    def saw(self, token: int) -> None:
        self.tokens.append(token)

    def allowed(self) -> Any:
        mask = self.masks.pop(0)
        if isinstance(mask, BaseException):
            raise mask
        return mask


def likely(process: Any, logits: Any, *tokens: int) -> list[int]:
    out = process(mx.array(tokens), logits)
    return [one for one, logit in enumerate(out[0].tolist()) if logit > -1e8]


def masks() -> None:
    held = Held(b"\0\xc8\xc8\0", b"\0\xc8", b"\0\0\xc8\0\xc8\xc8")
    process = holding(held, print)
    wide = mx.zeros((1, 5), dtype=mx.float16)
    assert likely(process, wide, 7, 7, 7) == [1, 2]
    assert held.tokens == [], "the prompt is no part of the answer"
    assert likely(process, wide, 7, 7, 7, 2) == [1]
    assert likely(process, mx.zeros((1, 5)), 7, 7, 7, 2, 1) == [2, 4]
    assert held.tokens == [2, 1]
    assert process.__closure__ is not None
    HOLD.append("only tokens that may follow are likely, in any width and in 16 bits")
    assert likely(holding(Held(None), print), wide, 1) == [1, 2, 3, 4]
    HOLD.append("before the answer only an end is unlikely")
    failures: list[Exception] = []
    process = holding(Held(KeyboardInterrupt("a panic")), failures.append)
    for _ in range(2):
        assert likely(process, wide, 1) == [0, 1, 2, 3, 4]
    assert [type(one) for one in failures] == [Strayed]
    HOLD.append("what fails fails once, and no other answer")


class Detokenizer:
    """Tokens are texts here."""

    last_segment = ""

    def add_token(self, token: str) -> None:
        self.last_segment = token


TOKENIZER = SimpleNamespace(
    has_thinking=True,
    think_start="<think>",
    think_end="</think>",
    has_tool_calling=True,
    tool_call_start="<tool_call>",
    tool_call_end="</tool_call>",
    structural_markers=[],
    response_transitions={},
    detokenizer=Detokenizer(),
)


def read(plan: Any, initial: str, *pieces: str) -> tuple[dict[str, str], Any]:
    """What mlx-lm's server makes of these pieces of text: what it found in each state."""
    plan.arranged(TOKENIZER, ["STOP"], initial)
    context = SimpleNamespace(tool_parser=None)
    plan.given_to(context)
    state = context.text_sm.make_state(context.initial_state)
    found: dict[str, str] = {}
    for piece in pieces:
        state, parts = context.text_sm.split(state, piece)
        for name, text in parts:
            found[name] = found.get(name, "") + text
    return {name: text for name, text in found.items() if text}, context


def texts() -> None:
    tricky = '{"a": "<think></think><tool_call> </tool_call>"}'
    assert read(AnswerPlan(Held(), is_call=False), "normal", tricky)[0] == {"normal": tricky}
    HOLD.append("an answer may hold what elsewhere begins a thought or a call")
    held = Held()
    found, _ = read(
        AnswerPlan(held, is_call=False), "reasoning", "hm <tool", "</thin", "k>\n", tricky, "STOP"
    )
    assert found == {"reasoning": "hm <tool", "normal": "\n" + tricky}
    thinks: Any = held.thinks
    assert [thinks(one) for one in ("a<tool_call>", "b</thin", "k>\n{")] == [None, None, "\n{"]
    HOLD.append("a thought is no part of the answer, and a stop word ends it")
    call = '{"name": "w", "arguments": {"x": "</tool_call>"}}'
    for initial, before in (("normal", ""), ("reasoning", "hm</think>")):
        found, context = read(AnswerPlan(Held(), is_call=True), initial, before + call)
        assert found["tool"] == call
        assert context.tool_parser(call, None) == {"name": "w", "arguments": {"x": "</tool_call>"}}
    HOLD.append("a call is read as one")
    held = Held()
    held.instead = frozenset((5,))
    found, _ = read(AnswerPlan(held, is_call=False), "reasoning", "hm</think><tool_call>{}</tool_call>")
    assert found == {"reasoning": "hm", "tool": "{}"}
    thinks = held.thinks
    assert thinks("hm") is None
    try:
        thinks("<tool_call>")
    except Elsewhere:
        HOLD.append("a tool may be called instead")
    found, context = read(AnswerPlan(None, is_call=False), "normal", "a<think>b</think><tool_call>{}")
    assert found == {"normal": "a{}", "reasoning": "b"}
    HOLD.append("an answer without calls shows what would be one")


masks()
texts()
sys.stdout.write(json.dumps(HOLD))
