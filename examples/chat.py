"""A chat with a model inside this program: no daemon, no port.

python examples/chat.py smollm2 "Why is the sky blue?"
"""

from __future__ import annotations

import sys

from greenroom import Greenroom, GreenroomError


def main(model: str, question: str) -> None:
    with Greenroom.open() as greenroom:  # the data directory of the command line
        greenroom.pull(model, progress=print)
        for piece in greenroom.chat(model, question, stream=True):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except GreenroomError as error:
        sys.exit(str(error))
