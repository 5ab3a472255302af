"""A shell in tmux, whose screen is what a person sees: cursor movements and redrawing are carried out."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest

from waiting import until

PROMPT = "$ "


class Tmux:
    def __init__(self, env: Mapping[str, str], *, columns: int, lines: int = 40) -> None:
        """Skips the test where there is no tmux. The prompt of the shell is `$ `."""
        program = shutil.which("tmux")
        if program is None:
            pytest.skip("apt-get install tmux")
        self._folder = Path(tempfile.mkdtemp(prefix="gr-"))
        self._tmux = [program, "-S", str(self._folder / "tmux"), "-f", "/dev/null"]
        self._env = {**env, "TERM": "screen", "LC_ALL": "C.UTF-8"}
        for name in ("COLUMNS", "LINES", "TMUX", "ENV"):
            self._env.pop(name, None)
        self.width = columns
        self._run("new-session", "-d", "-x", str(columns), "-y", str(lines), "sh")
        # A shell of root's ignores the variable that it is started with.
        self.type(f"PS1='{PROMPT}'; clear")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run("kill-server")
        shutil.rmtree(self._folder, ignore_errors=True)

    def type(self, text: str) -> None:
        """Type a text as it is, and Enter."""
        self._run("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names, such as `C-c`."""
        self._run("send-keys", *keys)

    def screen(self) -> str:
        """The lines on the screen, without those below the last text."""
        return self._run("capture-pane", "-p").rstrip() + "\n"

    def shows(self, text: str) -> str:
        """Wait until a text is on the screen; the screen."""
        try:
            until(lambda: text in self.screen())
        except AssertionError as error:
            raise AssertionError(f"{text!r} is not on the screen:\n{self.screen()}") from error
        return self.screen()

    def waits_at(self, prompt: str) -> str:
        """Wait until nothing but a prompt is on the last line; the screen."""
        try:
            until(lambda: self.screen().splitlines()[-1:] == [prompt.rstrip()])
        except AssertionError as error:
            raise AssertionError(f"There is no prompt {prompt!r}:\n{self.screen()}") from error
        return self.screen()

    def is_done(self) -> str:
        """Wait until the shell waits for the next command; the screen."""
        return self.waits_at(PROMPT)

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], env=self._env, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout
