"""`greenroom search`: look for models to pull."""

from __future__ import annotations

import json

import click

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.table import table

_WIDTH = 60


@click.command("search")
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 100), default=10, show_default=True, help="From each source.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.pass_context
def command(ctx: click.Context, query: str, limit: int, as_json: bool) -> int:
    """Look for QUERY among the short names, on Docker Hub and on Hugging Face. Needs no daemon.

    Of Hugging Face only models are shown that come as GGUF or safetensors. HF_ENDPOINT names another hub.
    """
    from greenroom.runner.models.search import search
    from greenroom.runner.models.short_names import Catalogue

    results = search(query, limit=limit, catalogue=Catalogue.load(settings_of(ctx).models))
    for sentence in results.silent:
        announce(sentence)
    if as_json:
        models = [
            {
                "name": one.name,
                "source": one.source,
                "description": one.description,
                "formats": list(one.formats),
                "downloads": one.downloads,
                "likes": one.likes,
            }
            for one in results.models
        ]
        click.echo(json.dumps(models, indent=4, ensure_ascii=False))
    elif results.models:
        rows = [
            (
                one.name,
                one.source,
                _short(one.description or ", ".join(one.formats)),
                str(one.downloads or ""),
            )
            for one in results.models
        ]
        click.echo(table(("NAME", "SOURCE", "DESCRIPTION", "DOWNLOADS"), rows))
    else:
        announce(f"Nothing was found for {query!r}.")
    return exit_codes.FAILED if results.silent and not results.models else exit_codes.OK


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
