"""The contract's progress lines of pulls and pushes: one JSON object a line.

Raw for clients that ask for JSON, HTML-escaped for all others, as Docker's own CLI expects. Files come side
by side, each with lines of its own; one that is here already gets none. Beside the contract's fields a line
has the job's phase and rate and how far all of it is, and a layer its name, for clients that show them.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library.messages import Pulled, Pushed
from greenroom.actors.values import Part, Progress
from greenroom.runner.http.errors import JSON
from greenroom.runner.models.errors import size_text

TransferMode = Literal["pull", "push", "verify"]

_VERBS = {"pull": "Downloaded", "push": "Uploaded", "verify": "Verified"}
_MOVING = {"pull": "downloading", "push": "uploading", "verify": "verifying"}
_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;"))

_encode = msgspec.json.Encoder().encode


class TransferLines:
    """The lines of one transfer, in order: the bytes of a layer never go back and end at its size."""

    def __init__(self, job: str, mode: TransferMode, *, raw: bool) -> None:
        self.content_type = JSON if raw else "text/plain"
        self._job = job
        self._raw = raw
        self._mode = mode
        # What has no files of its own to tell of is one layer; clients go by characters 7 to 19 of its id.
        self._whole = f"sha256:{hashlib.sha256(job.encode()).hexdigest()}"
        self._layers: dict[str, Part] = {}
        """As told last."""
        self._done = 0
        self._total = 0

    def again(self) -> TransferLines:
        """The same for another client, who has been told nothing yet."""
        return TransferLines(self._job, self._mode, raw=self._raw)

    def progress(self, progress: Progress) -> bytes:
        """A line for each layer that has moved; otherwise what is going on, if there is something to say."""
        more: dict[str, Any] = {"phase": progress.phase}
        if progress.rate:
            more["rate"] = progress.rate
        if progress.phase != _MOVING[self._mode]:
            if progress.total:
                more |= {"done": progress.done, "of": progress.total}
            return self._line("progress", progress.message, **more) if progress.message else b""
        self._total = max(progress.total, progress.done)
        self._done = max(self._done, progress.done)
        whole = (Part(id=self._whole, name="", size=self._total, done=self._done),)
        moved = b"".join(
            self._moved(part, **more) for part in progress.parts or (whole if self._done else ())
        )
        if moved or not progress.message:
            return moved
        # Nothing moves, and that is worth a line: without it clients go on showing the last rate.
        return self._line("progress", progress.message, done=self._done, of=self._total, **more)

    def heartbeat(self) -> bytes:
        """An empty line, which clients skip."""
        return b"\n"

    def success(self, result: Pulled | Pushed | str) -> bytes:
        """The last line; before it, the end of a transfer whose last steps nobody has seen."""
        rest = b""
        for part in tuple(self._layers.values()):
            self._done = self._total
            rest += self._moved(msgspec.structs.replace(part, done=part.size), phase=_MOVING[self._mode])
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

    def _moved(self, part: Part, **more: Any) -> bytes:
        told = self._layers.get(part.id)
        if told is not None and part.done <= told.done:
            return b""
        self._layers[part.id] = part
        layer: dict[str, Any] = {"id": part.id, "size": part.size, "current": part.done}
        if part.name:
            layer["name"] = part.name
        # Beside the contract's fields: how far the whole of it is, with what needed no moving.
        more |= {"done": self._done, "of": self._total}
        return self._line("progress", f"{_VERBS[self._mode]}: {_megabytes(part.done)}", layer=layer, **more)

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


def _megabytes(size: int) -> str:
    """Bytes for people, as Docker Model Runner writes them."""
    return f"{size / 2**20:.2f} MB"
