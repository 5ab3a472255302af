"""How an engine's answer is changed on its way to the client."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import HttpRefusal

_DATA = b"data:"
_DONE = b"[DONE]"

_decode = msgspec.json.Decoder().decode


class Renaming:
    """Gives the model in an answer the name the client knows it by."""

    def __init__(self, spoken: str, asked: str) -> None:
        self._pattern = re.compile(rb'"model"(\s*:\s*)' + re.escape(msgspec.json.encode(spoken)))
        self._name = msgspec.json.encode(asked)

    def __call__(self, body: bytes) -> bytes:
        """Whole lines, or a whole body."""
        return self._pattern.sub(lambda match: b'"model"' + match.group(1) + self._name, body)


class Translation(ABC):
    """One request of another family of clients: as a chat for an engine, and the engine's answer in its form.

    The engine gets an OpenAI chat completion, and answers with one: `whole`, or `begin`, any number of
    `event`s and `end`. `error` ends a stream that failed, at any time.
    """

    content_type: str
    """Of a streamed answer."""
    answers = "choices"
    """The field that a whole answer of the engine has."""
    names: ClassVar[Mapping[str, str]] = {}
    """What fields of a chat are called in this family, for refusals."""
    _begun = False
    gathers = False
    """Its client does not want a stream, though the engine may send one."""

    @property
    @abstractmethod
    def chat(self) -> dict[str, Any]:
        """The fields of the chat completion, `model` and `stream` among them."""

    @property
    def stops(self) -> Sequence[str]:
        """Sequences that end the answer, where the client wants to know which of them did."""
        return ()

    @property
    def context_size(self) -> int:
        """Tokens that the request may fill at least, whatever is configured; 0 leaves that open."""
        return 0

    @property
    def cuts(self) -> bool:
        """Inputs of embeddings that are too long are cut, not refused."""
        return False

    @property
    def settled(self) -> Collection[str]:
        """Fields that the chat leaves out on purpose: no default of the model stands in for them."""
        return ()

    @property
    def done(self) -> bool:
        """The answer is whole, and nothing more of the engine's stream is wanted."""
        return False

    @property
    def ignored(self) -> Sequence[str]:
        """Names in the request that have no meaning here."""
        return ()

    def entered(self) -> None:
        """An engine was found, and gets the request now; called again if it has to be sent to another."""
        return

    @abstractmethod
    def begin(self) -> bytes:
        """The first bytes of a stream."""

    def opening(self) -> bytes:
        """The first bytes of a stream, where they have not been sent yet."""
        if self._begun:
            return b""
        self._begun = True
        return self.begin()

    @abstractmethod
    def event(self, chunk: Mapping[str, Any]) -> bytes:
        """What a `chat.completion.chunk` becomes; may be empty."""

    @abstractmethod
    def end(self) -> bytes:
        """The last bytes of a stream whose answer is whole."""

    @abstractmethod
    def whole(self, completion: Mapping[str, Any]) -> bytes:
        """The body of an answer without a stream, from a `chat.completion`."""

    @abstractmethod
    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        """The last bytes of a stream that failed, whether or not it has begun."""

    def named(self, name: str) -> str:
        """What the client calls a field of the chat."""
        return self.names.get(name, name)

    def renamed(self, error: HttpRefusal) -> HttpRefusal:
        """A refusal of the chat, about the field that the client knows."""
        return error.renamed(self.names)

    def __call__(self, lines: bytes) -> bytes:
        """The bytes for the client that some whole lines of the engine's stream become."""
        pieces = [self.opening()]
        for line in lines.splitlines():
            data = line[len(_DATA) :].strip() if line.startswith(_DATA) else b""
            if data == _DONE:
                pieces.append(self.end())
            elif data:
                pieces.append(self.event(_decode(data)))
                if self.done:
                    pieces.append(self.end())
                    break
        return b"".join(pieces)
