"""Several programs, or workers of one, share a daemon: the first that needs it starts it.

python examples/shared.py ~/.myapp smollm2 "Why is the sky blue?" "Why is grass green?"
"""

from __future__ import annotations

import asyncio
import sys

import greenroom


async def main(home: str, model: str, *questions: str) -> None:
    async with greenroom.connect(home) as client:
        await client.pull(model, progress=print)
        answers = await asyncio.gather(*(client.chat(model, one, max_tokens=40) for one in questions))
        for question, answer in zip(questions, answers, strict=True):
            print(f"{question}\n{answer}\n({answer.answer_tokens} tokens in {answer.seconds:.1f} s)\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
