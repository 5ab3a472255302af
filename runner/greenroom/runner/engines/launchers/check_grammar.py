"""Tries whether llguidance can use a grammar, in bounded time and memory: `check_grammar.py < GRAMMAR`.

Some schemas of a thousand bytes take it minutes, gigabytes, or all of the stack. So a grammar is first tried
here, where only this process dies of it. Prints what is wrong; nothing if it can be used. The exit code is 0.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from typing import Any

CPU_SECONDS = 2
MEMORY = 1 << 30
"""Bytes of addresses, where the system counts them (macOS does not)."""
_STACK = 4 << 20
"""Less than threads of the engine have."""


def limits(library: Any) -> Any:
    """What one grammar may take: some milliseconds a token, 40 MB for its states."""
    return library.LLParserLimits(
        max_lexer_states=20_000,
        initial_lexer_fuel=500_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def main() -> None:
    import llguidance  # type: ignore[import-not-found,unused-ignore]

    grammar = sys.stdin.buffer.read().decode()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def check() -> None:
        wrong = llguidance.LLMatcher.validate_grammar(grammar, None, limits=limits(llguidance))
        sys.stdout.buffer.write(wrong.encode())
        sys.stdout.flush()

    threading.stack_size(_STACK)
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
