"""Several processes answer questions with one daemon: the client is sent to each of them.

python examples/processes.py smollm2 "Name a colour." "Name a river."
"""

from __future__ import annotations

import multiprocessing
import sys

import greenroom
from greenroom import Client


def answer(client: Client, model: str, question: str) -> str:
    return client.chat(model, question, max_tokens=20).text


def main(model: str, *questions: str) -> None:
    client = greenroom.connect()
    client.pull(model)
    with multiprocessing.get_context("spawn").Pool(2) as pool:  # "fork" and "forkserver" work too
        for text in pool.starmap(answer, [(client, model, question) for question in questions]):
            print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
