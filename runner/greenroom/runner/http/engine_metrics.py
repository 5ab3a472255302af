"""`GET /metrics`: the engines' own numbers, in Prometheus' text form, each with the labels `backend`, `model`
and `mode`, as Docker Model Runner has them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping

from greenroom.actors.values import Engine
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.context import Context
from greenroom.runner.http.port import Request, Response
from greenroom.runner.http.upstream import Lost, Unreached

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WITHIN = 5.0
"""Seconds an engine has to answer: some answer between two batches only."""
_MOST = 4 * 2**20
"""Bytes of one engine's answer that are read."""
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+([-+\w.]+(?:[ \t]+-?\d+)?)[ \t]*")
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*("(?:[^"\\]|\\.)*")')
_ABOUT = re.compile(r"# (HELP|TYPE) ([A-Za-z_:][\w:]*)(.*)")
_SUFFIXES = ("_bucket", "_sum", "_count", "_total", "_created")


class EngineMetrics:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """The numbers of every engine that has some and answers in time."""
        context = self._context
        engines = [one for one in context.greenroom.engines() if one.state == "ready"]
        texts = await asyncio.gather(*(self._read(one) for one in engines))
        told = [(_labels(one), text) for one, text in zip(engines, texts, strict=True) if text is not None]
        silent = [one for one, text in zip(engines, texts, strict=True) if text is None]
        body = "".join(
            f"# {one.spec.backend} {one.spec.engine_id} did not answer in time\n" for one in silent
        )
        body += merged(told) + _conversations(context.greenroom)
        return Response((body or "# No active runners\n").encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _read(self, engine: Engine) -> str | None:
        """What an engine tells, empty if it has no numbers; None if it does not answer in time."""
        try:
            async with asyncio.timeout(_WITHIN):
                answer = await self._context.asides.get(engine.endpoint, "/metrics")
                try:
                    data = await answer.rest(_MOST)
                finally:
                    answer.close()
        except (TimeoutError, Lost, Unreached):
            return None
        return data.decode("utf-8", "replace") if answer.status == 200 else ""


def _conversations(greenroom: Greenroom) -> str:
    """What has been saved of conversations and restored since the start; empty while that is nothing."""
    saved, restored = greenroom.conversations.counts().saved, greenroom.conversation_saver.restorer.totals
    if not saved.count and not restored.times:
        return ""
    numbers = (
        ("saved_total", "Conversations saved", saved.count),
        ("saved_bytes_total", "Bytes of conversations saved", saved.bytes),
        ("restored_total", "Conversations restored", restored.times),
        ("restored_tokens_total", "Tokens of prompts restored", restored.tokens),
        (
            "spared_seconds_total",
            "Seconds that reading these tokens would have taken",
            round(restored.seconds, 3),
        ),
    )
    return "".join(
        f"# HELP greenroom_conversations_{name} {help_}.\n# TYPE greenroom_conversations_{name} counter\n"
        f"greenroom_conversations_{name} {value}\n"
        for name, help_, value in numbers
    )


def _labels(engine: Engine) -> Mapping[str, str]:
    spec = engine.spec
    return {"backend": spec.backend, "model": spec.model_ref, "mode": spec.mode}


def merged(told: Iterable[tuple[Mapping[str, str], str]]) -> str:
    """Several texts as one, in which each family comes once; each text's labels are added to its samples.

    A label of the engine's own of the same name becomes `exported_…`. What is no sample is left out.
    """
    abouts: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for labels, text in told:
        added = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
        for line in text.splitlines():
            if about := _ABOUT.fullmatch(line):
                abouts.setdefault(about[2], {}).setdefault(about[1], line)
                samples.setdefault(about[2], [])
            elif sample := _SAMPLE.fullmatch(line):
                name, own, value = sample.groups()
                kept = [
                    f"{'exported_' if label in labels else ''}{label}={said}"
                    for label, said in _LABEL.findall(own or "")
                ]
                family = _family(name, abouts)
                samples.setdefault(family, []).append(f"{name}{{{','.join([added, *kept])}}} {value}")
    lines = [
        line for family, ones in samples.items() if ones for line in (*abouts.get(family, {}).values(), *ones)
    ]
    return "".join(f"{line}\n" for line in lines)


def _family(name: str, known: Mapping[str, object]) -> str:
    if name in known:
        return name
    stems = (name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix))
    return next((stem for stem in stems if stem in known), name)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
