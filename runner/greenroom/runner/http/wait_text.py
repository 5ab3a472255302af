"""What a streaming client reads while it waits for an engine: comments, which clients skip.

Docker's command line gets lines of plain text while a backend is being installed. It prints them, up to the
first that begins an event.
"""

from __future__ import annotations

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.progress import ProgressBoard, install_job, request_job
from greenroom.actors.values import Progress
from greenroom.runner.http.errors import DOCKER_CLI
from greenroom.runner.http.port import Request
from greenroom.runner.http.progress_stream import comment, sentence_of


class WaitText:
    """What one client reads."""

    def __init__(self, request: Request, board: ProgressBoard, model: str) -> None:
        """`model` is what the client calls it."""
        self._board = board
        self._model = model
        is_docker = DOCKER_CLI in request.headers.get("User-Agent", "")
        self._install = InstallText(board) if is_docker else None

    def about(self, request_id: str) -> bytes:
        """Where the request is now."""
        progress = self._board.latest(request_job(request_id))
        before = b""
        if self._install is not None:
            if (text := self._install.about(progress)) is not None:
                return text
            before = self._install.done()
        told = f": {sentence_of(progress, self._board)}" if progress is not None else ""
        return before + comment(f"waiting for {self._model}{told}")

    def done(self) -> bytes:
        """Once it waits no longer; may be empty."""
        return self._install.done() if self._install is not None else b""

    def failed(self, refusal: Refusal) -> bytes:
        """When the request is refused; may be empty."""
        return self._install.failed(refusal) if self._install is not None else b""


class InstallText:
    """The lines for Docker's command line."""

    def __init__(self, board: ProgressBoard) -> None:
        self._board = board
        self._backend = ""
        """What is being installed."""
        self._said = ""

    def about(self, progress: Progress | None) -> bytes | None:
        """What to write while a request waits; None if it does not wait for an installation (any more)."""
        if progress is None or progress.phase != "installing":
            return None
        begun = b""
        if not self._backend:
            self._backend = progress.follows.removeprefix(install_job(""))
            begun = f"Installing {self._backend} backend...\n".encode()
        followed = self._board.latest(progress.follows)
        text = " ".join(sentence_of(followed).split()) if followed is not None else ""
        # A line that begins like this would be taken for the answer.
        if not text or text == self._said or text.startswith((":", "{", "data:")):
            return begun
        self._said = text
        return begun + f"{text}\n".encode()

    def done(self) -> bytes:
        """Once it waits no longer; empty if nothing was installed."""
        backend, self._backend = self._backend, ""
        return f"{backend} backend installed successfully\n".encode() if backend else b""

    def failed(self, refusal: Refusal) -> bytes:
        """When the request is refused; empty if that is not about an installation."""
        backend, self._backend = self._backend, ""
        text = " ".join(refusal.sentence().split())
        return f"backend installation failed: {text}\n".encode() if backend else b""
