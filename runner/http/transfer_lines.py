"""The contract's progress lines of pulls and pushes: one JSON object a line.

Raw for clients that ask for JSON, HTML-escaped for all others, as Docker's own CLI expects. Beside the
contract's fields each line has the job's phase and rate, for clients that show them.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec
from greenroom.actors.facts import Progress
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.messages import Pulled, Pushed
from greenroom.runner.http.errors import JSON
from greenroom.runner.http.progress_stream import megabytes
from greenroom.runner.models.failures import size_text

TransferMode = Literal["pull", "push", "verify"]

_VERBS = {"pull": "Downloaded", "push": "Uploaded", "verify": "Verified"}
_MOVING = {"pull": "downloading", "push": "uploading", "verify": "verifying"}
_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;"))

_encode = msgspec.json.Encoder().encode


class TransferLines:
    """The lines of one transfer, in order: the number of bytes never goes back and ends at the total."""

    def __init__(self, job: str, mode: TransferMode, *, raw: bool) -> None:
        self.content_type = JSON if raw else "text/plain"
        self._raw = raw
        self._mode = mode
        # Clients tell layers apart by characters 7 to 19 of this.
        self._layer = f"sha256:{hashlib.sha256(job.encode()).hexdigest()}"
        self._done = 0
        self._total = 0

    def progress(self, progress: Progress) -> bytes:
        """Bytes when there are any; otherwise what is going on, if there is something to say."""
        more: dict[str, Any] = {"phase": progress.phase}
        if progress.rate:
            more["rate"] = progress.rate
        if progress.phase != _MOVING[self._mode]:
            if progress.total:
                more |= {"done": progress.done, "of": progress.total}
            return self._line("progress", progress.message, **more) if progress.message else b""
        self._total = max(progress.total, progress.done)
        self._done = max(self._done, progress.done)
        return self._moved(**more) if self._done else b""

    def heartbeat(self) -> bytes:
        """An empty line, which clients skip."""
        return b"\n"

    def success(self, result: Pulled | Pushed | str) -> bytes:
        """The last line; before it, the end of a transfer whose last steps nobody has seen."""
        rest = b""
        if self._done < self._total:
            self._done = self._total
            rest = self._moved(phase=_MOVING[self._mode])
        if isinstance(result, Pushed):
            message = "Model pushed successfully"
        elif isinstance(result, Pulled):
            cached = f"Using cached model: {size_text(result.model.size)}"
            message = "Model pulled successfully" if result.fresh else cached
        else:
            message = result
        return rest + self._line("success", message)

    def error(self, refusal: Refusal) -> bytes:
        """The last line of a transfer that failed."""
        return self._line("error", f"Error: {refusal.sentence()}", code=refusal.code)

    def _moved(self, **more: Any) -> bytes:
        layer = {"id": self._layer, "size": self._total, "current": self._done}
        return self._line("progress", f"{_VERBS[self._mode]}: {megabytes(self._done)}", layer=layer, **more)

    def _line(self, kind: str, message: str, *, layer: dict[str, Any] | None = None, **more: Any) -> bytes:
        line = {
            "type": kind,
            "message": message,
            "total": self._total if layer else 0,
            "layer": layer or {"size": 0, "current": 0},
            "mode": self._mode,
            **more,
        }
        data = _encode(line)
        if not self._raw:
            text = data.decode()
            for plain, escaped in _ESCAPES:
                text = text.replace(plain, escaped)
            data = text.encode()
        return data + b"\n"
