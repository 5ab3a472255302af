"""How many tokens of a prompt to read at once: only in between is it noticed that a client has left."""

from __future__ import annotations

SECONDS = 1.0
"""Maximum seconds for one piece of a prompt."""
FIRST, LEAST, MOST = 32, 8, 2048
"""Tokens of a piece: before anything was measured, on the slowest machine, on the fastest."""


class Pace:
    """Sizes the pieces of prompts by how long the last ones took."""

    def __init__(self) -> None:
        self.step = FIRST

    def took(self, tokens: int, seconds: float) -> None:
        """Record how long a piece took. A short piece can only show that the machine is slow."""
        if tokens > 0 and seconds > SECONDS:
            fitting = max(LEAST, int(tokens * SECONDS / seconds))
            self.step = min(self.step, 1 << (fitting.bit_length() - 1))
        elif tokens >= self.step and seconds < SECONDS / 2:
            self.step = min(MOST, self.step * 2)
