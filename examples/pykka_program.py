"""Pykka actors that use a model: one writes, another shortens. They share a client, as any threads can.

python examples/pykka_program.py smollm2 "the sea"
"""

from __future__ import annotations

import sys

import pykka

from greenroom import Client, Greenroom, GreenroomError


class Editor(pykka.ThreadingActor):
    def __init__(self, client: Client, model: str) -> None:
        super().__init__()
        self._client, self._model = client, model

    def shorten(self, text: str) -> str:
        request = f"Say this in five words: {text}"
        return self._client.chat(self._model, request, max_tokens=20).text


class Writer(pykka.ThreadingActor):
    def __init__(self, client: Client, model: str, editor: pykka.ActorProxy[Editor]) -> None:
        super().__init__()
        self._client, self._model, self._editor = client, model, editor

    def write(self, subject: str) -> tuple[str, str]:
        request = f"Write one sentence about {subject}."
        text = self._client.chat(self._model, request, max_tokens=60).text
        return text, self._editor.shorten(text).get()


def main(model: str, subject: str) -> None:
    with Greenroom.open() as client:
        client.pull(model)
        try:
            editor = Editor.start(client, model).proxy()
            writer = Writer.start(client, model, editor).proxy()
            for line in writer.write(subject).get():  # raises what the actor raised
                print(line)
        finally:
            pykka.ActorRegistry.stop_all()  # yours; Greenroom's actors are not in the registry


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except GreenroomError as error:
        sys.exit(str(error))
