"""Holds an answer to a grammar while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

_NEVER = -1e9
"""The logit of a token that must not follow. Finite, so that JSON can list it among the likeliest."""


class Strayed(Exception):
    """The answer cannot go on: its grammar has become too complex to follow."""


class Elsewhere(Exception):
    """Instead of answering, the model does something else that it may, such as calling a tool."""


class HeldAnswer:
    """Notes each token, and says which may be next."""

    def __init__(self, matcher: Any, tokens_of: Callable[[str], list[int]], ends: Collection[int]) -> None:
        """`matcher` is llguidance's; `ends` are the tokens that end an answer."""
        self.ends = frozenset(ends)
        self.instead: frozenset[int] = frozenset()
        """Tokens that may stand in place of the answer's first one; then it is not held. Nowhere in it."""
        self.thinks: Callable[[int], str | None] | None = None
        """Receives each token before the answer; returns what there is of the answer, or None. May raise
        Elsewhere."""
        self.over = False
        """Anything may follow."""
        self._begun = False
        self._matcher = matcher
        self._tokens_of = tokens_of

    def saw(self, token: int) -> None:
        """Note a token. Raises Strayed for one that must not be there."""
        if self.over:
            return
        if self.thinks is not None:
            self._saw_before(self.thinks, token)
            return
        self.over = token in self.ends or (token in self.instead and not self._begun)
        self._begun = True
        if not self.over and not self._matcher.consume_token(token):
            raise Strayed

    def _saw_before(self, thinks: Callable[[int], str | None], token: int) -> None:
        try:
            said = thinks(token)
        except Elsewhere:
            self.over = True
            return
        if said is None:
            return
        self.thinks = None
        if begun := said.lstrip():
            self._begun = True
            if not self._matcher.consume_tokens(self._tokens_of(begun)):
                raise Strayed

    def allowed(self) -> bytes | None:
        """A byte for each token, not 0 where it may be next; None before the answer, when all may be but an
        end. Raises Strayed.
        """
        if self.thinks is not None:
            return None
        mask: bytes = self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise Strayed
        if not self.instead:
            return mask
        changed = bytearray(mask)
        for token in self.instead:
            changed[token] = not self._begun
        return bytes(changed)


class BeforeAnswer:
    """What a model writes before its answer, such as its thoughts."""

    def __init__(self, detokenizer: Any, machine: Any, state: str, answer: str, elsewhere: str = "") -> None:
        """`machine` is mlx-lm's: in `state` now, in `answer` when the answer begins, in `elsewhere` for what
        may come instead."""
        self._detokenizer = detokenizer
        self._machine = machine
        self._state = machine.make_state(state)
        self._answer, self._elsewhere = answer, elsewhere

    def __call__(self, token: int) -> str | None:
        self._detokenizer.add_token(token)
        self._state, parts = self._machine.split(self._state, self._detokenizer.last_segment)
        if self._state[0] == self._elsewhere:
            raise Elsewhere
        if self._state[0] != self._answer:
            return None
        return "".join(text for state, text in parts if state == self._answer)


def holding(held: HeldAnswer, fail: Callable[[Exception], None]) -> Callable[[Any, Any], Any]:
    """A logits processor for mlx-lm. It never raises, which would end the other answers of its batch.

    Args:
        held: The answer.
        fail: Called if it cannot go on; then it is no longer held.
    """
    import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]
    import numpy as np  # type: ignore[import-not-found,unused-ignore]

    begun = failed = False

    def process(tokens: Any, logits: Any) -> Any:
        nonlocal begun, failed
        if failed:
            return logits
        # They are computed while the grammar is looked at.
        mx.async_eval(logits)
        try:
            if begun:
                held.saw(int(tokens[-1].item()))
            begun = True
            if held.over:
                return logits
            mask = held.allowed()
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
            failed = True
            fail(error if isinstance(error, Strayed) else Strayed(repr(error)))
            return logits
        may = np.full(logits.shape[-1], mask is None)
        if mask is None:
            may[[one for one in held.ends if one < len(may)]] = False
        else:
            # A model may have more logits than its tokenizer has tokens, or fewer.
            width = min(len(mask), len(may))
            may[:width] = np.frombuffer(mask, dtype=np.uint8)[:width] != 0
        # In 16 bits a low temperature would make all of them infinite.
        return mx.where(mx.array(may), logits.astype(mx.float32), _NEVER)

    return process
