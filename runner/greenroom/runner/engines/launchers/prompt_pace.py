"""How many tokens of a prompt to read at once: only in between is it noticed that a client has left."""

from __future__ import annotations

SECONDS = 1.0
"""Maximum seconds for one piece of a prompt."""
FIRST, LEAST, MOST = 32, 8, 2048
"""Tokens of a piece: before anything was measured, on the slowest machine, on the fastest."""
TELLING = 64
"""Tokens of a prompt from which its speed is logged."""


class Pace:
    """Sizes the pieces of prompts by how long the last ones took."""

    def __init__(self) -> None:
        self.step = FIRST
        self._alone = -1, 0, 0.0
        """The prompt that is being read without others: its number, its tokens so far, and seconds."""

    def took(self, tokens: int, seconds: float) -> None:
        """Record how long a piece took. A short piece can only show that the machine is slow."""
        if tokens > 0 and seconds > SECONDS:
            fitting = max(LEAST, int(tokens * SECONDS / seconds))
            self.step = min(self.step, 1 << (fitting.bit_length() - 1))
        elif tokens >= self.step and seconds < SECONDS / 2:
            self.step = min(MOST, self.step * 2)

    def line_of(self, prompt: int, tokens: int, seconds: float, *, ends: bool) -> str:
        """Record a piece of a prompt that was read without others; at its end, a line for the log, or ""."""
        one, read, took = self._alone
        read, took = (read + tokens, took + seconds) if one == prompt else (tokens, seconds)
        self._alone = prompt, read, took
        return f"{read} tokens of a prompt were read in {took:.3f} s\n" if ends and read >= TELLING else ""
