"""`greenroom bench`: tokens per second and the time to the first token, at several streams at once."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from greenroom.runner.cli.chat_session import Conversation, Options, pace
from greenroom.runner.cli.completion import ModelName, OneOf, backend_names
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, table, terminal_width
from greenroom.runner.client.daemons import ensure_daemon, is_on_this_machine
from greenroom.runner.client.errors import GreenroomError
from greenroom.runner.client.http_client import HttpClient, path_of
from greenroom.runner.client.results import TextResult
from greenroom.runner.client.wire import SOCKET
from greenroom.runner.config import Settings

_WORDS = "the river runs past old stone houses where people sit and talk about weather and bread".split()
_MOST = 256
"""Streams at once."""


@dataclass(frozen=True)
class Level:
    """What was measured with so many streams at once. Times are seconds."""

    streams: int
    tokens_per_second: float
    """Of all together, from the first request to the last token."""
    tokens_per_second_each: float
    """The median stream's, from its first token on."""
    first_token: float
    """The median."""
    first_token_slowest: float
    prompt_tokens: int
    """Of one prompt."""
    answer_tokens: int
    """Of all answers."""
    bare: Level | None = None
    """The same asked of the engine itself, without Greenroom in between."""

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.bare is not None:
            del fields["bare"]["bare"]
            fields |= {"throughput_ratio": self.throughput_ratio, "first_token_added": self.first_token_added}
        return fields

    @property
    def throughput_ratio(self) -> float:
        """Tokens per second through Greenroom, of the engine's own."""
        assert self.bare is not None, "it was measured"
        return round(self.tokens_per_second / max(self.bare.tokens_per_second, 1e-6), 3)

    @property
    def first_token_added(self) -> float:
        """Seconds that Greenroom adds to the median first token."""
        assert self.bare is not None, "it was measured"
        return round(self.first_token - self.bare.first_token, 4)


@click.command("bench")
@click.argument("model", type=ModelName(catalogue=True))
@click.option("--streams", default="1,2,4", show_default=True, metavar="N,…", help="How many at once.")
@click.option(
    "--tokens", type=click.IntRange(2, 4096), default=64, show_default=True, help="Length of each answer."
)
@click.option(
    "--prompt-words",
    type=click.IntRange(1, 20_000),
    default=32,
    show_default=True,
    help="Length of each prompt.",
)
@click.option(
    "--backend", default="", type=OneOf(backend_names), metavar="NAME", help="Use only this backend."
)
@click.option("--bare/--no-bare", default=True, help="Also ask the engine itself, to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def bench_command(
    ctx: click.Context,
    model: str,
    streams: str,
    tokens: int,
    prompt_words: int,
    backend: str,
    bare: bool,
    as_json: bool,
) -> None:
    """Measure how fast MODEL answers, with one request and with several at once.

    Every prompt is another one, so that nothing of it is in a cache. One answer comes before, so that loading
    is not measured. What other clients do at the same time is in the figures. The same is asked of the
    engine's own socket, by turns, so that the figures show what Greenroom costs.
    """
    counts = _counts(streams)
    settings = settings_of(ctx)
    client = ensure_daemon(settings, announce)
    conversation = Conversation(
        client, model, say=announce, backend=backend, may_install=settings.install_policy != "never"
    )
    conversation.prepare()
    bench = Bench(client, model, backend=backend, tokens=tokens, words=prompt_words)
    bench.level(1, tokens=2)
    alone = None
    if bare:
        engine = _engine_of(settings, client, model, backend)
        if engine is None:
            announce("The engine itself is not measured: there is not exactly one engine of the model here.")
        else:
            alone = Bench(engine[0], engine[1], tokens=tokens, words=prompt_words)
            alone.level(1, tokens=2)
    levels = []
    for count in counts:
        if sys.stderr.isatty():
            announce(f"Measuring with {count} at once…")
        own = alone.level(count) if alone is not None else None
        levels.append(replace(bench.level(count), bare=own))
    if as_json:
        click.echo(json.dumps({"model": model, "levels": [one.as_json() for one in levels]}, indent=4))
        return
    headings = ["STREAMS", "TOKENS/S", "EACH", "FIRST TOKEN", "SLOWEST", "PROMPT", "ANSWERS"]
    if alone is not None:
        headings[2:2] = ["ENGINE ALONE", "RATIO"]
        headings.insert(headings.index("SLOWEST"), "ADDED")
    rows = [_row(one) for one in levels]
    spare = ("SLOWEST", "EACH", "PROMPT", "ANSWERS", "ENGINE ALONE")
    click.echo(table(headings, rows, spare=spare, width=terminal_width()))


def _row(one: Level) -> list[str]:
    own = one.bare
    return [
        str(one.streams),
        f"{one.tokens_per_second:.1f}",
        *((f"{own.tokens_per_second:.1f}", f"{one.throughput_ratio:.1%}") if own is not None else ()),
        f"{one.tokens_per_second_each:.1f}",
        _time(one.first_token),
        *((_time(one.first_token_added),) if own is not None else ()),
        _time(one.first_token_slowest),
        f"{one.prompt_tokens} tokens",
        f"{one.answer_tokens} tokens",
    ]


def _engine_of(
    settings: Settings, client: HttpClient, model: str, backend: str
) -> tuple[HttpClient, str] | None:
    """The socket of the one engine that serves the model on this machine, and the model's name there."""
    if settings.host and not is_on_this_machine(settings.host):
        return None
    model_id = client.get(path_of("models", model)).get("id")
    found = []
    for row in client.get("/engines/ps") or ():
        claim = settings.home / "engines" / str(row.get("engine_id")) / "claim"
        try:
            fields = json.loads(claim.read_bytes())
            about = fields["about"]
            if about["spec"]["model_id"] == model_id and backend in ("", about["spec"]["backend"]):
                engine = HttpClient(f"{SOCKET}{fields['engine_socket']}")
                found.append((engine, str(about["model_name"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it ends just now, or another user runs it
    return found[0] if len(found) == 1 else None


class Bench:
    def __init__(self, client: HttpClient, model: str, *, backend: str = "", tokens: int, words: int) -> None:
        self._client = client
        self._model = model
        self._backend = backend
        self._tokens = tokens
        self._words = words
        self._asked = 0

    def level(self, streams: int, *, tokens: int | None = None) -> Level:
        """Ask so many at once and wait for all. Raises GreenroomError when one of them fails."""
        answers: list[TextResult] = []
        problems: list[GreenroomError] = []
        threads = [
            threading.Thread(
                target=self._ask,
                args=(self._prompt(), tokens or self._tokens, answers, problems),
                daemon=True,
            )
            for _ in range(streams)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted = time.monotonic() - began
        if problems:
            raise problems[0]
        total = sum(one.answer_tokens for one in answers)
        firsts = [one.first_token_after for one in answers]
        return Level(
            streams=streams,
            tokens_per_second=round(total / max(lasted, 1e-6), 2),
            tokens_per_second_each=round(statistics.median(pace(one) for one in answers), 2),
            first_token=round(statistics.median(firsts), 4),
            first_token_slowest=round(max(firsts), 4),
            prompt_tokens=answers[0].prompt_tokens,
            answer_tokens=total,
        )

    def _prompt(self) -> str:
        """Words in another order each time, from the first one on."""
        self._asked += 1
        step = self._asked
        words = [_WORDS[(step * (place + 1) + place // 7) % len(_WORDS)] for place in range(self._words)]
        return f"Story {step} of {time.time_ns()}. Go on with it: {' '.join(words)}"

    def _ask(
        self, prompt: str, tokens: int, answers: list[TextResult], problems: list[GreenroomError]
    ) -> None:
        conversation = Conversation(
            self._client,
            self._model,
            say=lambda _: None,
            backend=self._backend,
            options=Options(max_tokens=tokens, seed=self._asked),
        )
        try:
            for _ in conversation.ask(prompt):
                pass
            assert conversation.reply is not None, "it was asked"
            answers.append(conversation.reply)
        except GreenroomError as problem:
            problems.append(problem)


def _counts(text: str) -> Sequence[int]:
    counts = [one.strip() for one in text.split(",")]
    if not all(one.isdecimal() and 1 <= int(one) <= _MOST for one in counts):
        raise click.BadParameter(
            f"{text!r} is not a list of numbers from 1 to {_MOST}, such as 1,2,4.", param_hint="--streams"
        )
    return [int(one) for one in counts]


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 10 else f"{seconds:.1f}s"
