"""The items that a response is made of, while the model writes them, and the events that tell of them."""

from __future__ import annotations

from typing import Any, ClassVar

from greenroom.runner.http.responses.input import Item, new_id

Event = tuple[str, dict[str, Any]]
"""Its name and its fields."""


class OpenItem:
    """An item that is not complete yet."""

    prefix = ""
    """Of its id."""
    delta = ""
    """The event for each piece of it."""
    empty: ClassVar[Item] = {}

    def __init__(self, index: int, summed: bool = False) -> None:
        """`summed`: the client has asked for a summary of what the model thinks."""
        self._index = {"output_index": index}
        self._at = {"item_id": new_id(self.prefix), **self._index}
        self._summed = summed
        self._pieces: list[str] = []
        self.item: Item = {"id": self._at["item_id"], "status": "in_progress", **self.empty}

    def begin(self) -> list[Event]:
        return [("response.output_item.added", {**self._index, "item": self.item})]

    def add(self, text: str, **more: Any) -> Event:
        """A further piece; `more` are fields of its event."""
        self._pieces.append(text)
        return self.delta, {**self._at, "delta": text, **more}

    def end(self, status: str) -> list[Event]:
        self.item["status"] = status
        return [("response.output_item.done", {**self._index, "item": self.item})]


class OpenMessage(OpenItem):
    prefix = "msg"
    delta = "response.output_text.delta"
    empty: ClassVar = {"type": "message", "role": "assistant", "content": ()}

    def __init__(self, index: int, summed: bool = False) -> None:
        super().__init__(index, summed)
        self._at["content_index"] = 0
        self._logprobs: list[Any] = []

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}

    def begin(self) -> list[Event]:
        return [*super().begin(), ("response.content_part.added", {**self._at, "part": self._part("")})]

    def add(self, text: str, **more: Any) -> Event:
        self._logprobs += more["logprobs"]
        return super().add(text, **more)

    def end(self, status: str) -> list[Event]:
        text = "".join(self._pieces)
        self.item["content"] = [self._part(text)]
        return [
            ("response.output_text.done", {**self._at, "text": text, "logprobs": self._logprobs}),
            ("response.content_part.done", {**self._at, "part": self._part(text)}),
            *super().end(status),
        ]


class OpenReasoning(OpenItem):
    """What a model thinks: as its text, or in place of a summary for a client that asks for one."""

    prefix = "rs"
    empty: ClassVar = {"type": "reasoning", "summary": ()}

    def __init__(self, index: int, summed: bool = False) -> None:
        super().__init__(index, summed)
        self._at["summary_index" if summed else "content_index"] = 0
        self._stem = "response.reasoning_summary" if summed else "response.reasoning"
        self._of_part = f"{self._stem}_part" if summed else "response.content_part"
        self.delta = f"{self._stem}_text.delta"

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "summary_text" if self._summed else "reasoning_text", "text": text}

    def begin(self) -> list[Event]:
        return [*super().begin(), (f"{self._of_part}.added", {**self._at, "part": self._part("")})]

    def end(self, status: str) -> list[Event]:
        text = "".join(self._pieces)
        self.item["summary" if self._summed else "content"] = [self._part(text)]
        return [
            (f"{self._stem}_text.done", {**self._at, "text": text}),
            (f"{self._of_part}.done", {**self._at, "part": self._part(text)}),
            *super().end(status),
        ]


class OpenCall(OpenItem):
    """A call of a function."""

    prefix = "fc"
    delta = "response.function_call_arguments.delta"
    empty: ClassVar = {"type": "function_call", "arguments": "", "call_id": "", "name": ""}

    def end(self, status: str) -> list[Event]:
        arguments = self.item["arguments"] = "".join(self._pieces)
        done = {**self._at, "name": self.item["name"], "arguments": arguments}
        return [("response.function_call_arguments.done", done), *super().end(status)]
