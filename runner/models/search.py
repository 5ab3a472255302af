"""What there is to pull: the catalogue, Docker Hub's models, Hugging Face. Asked only when somebody asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import urlencode

from greenroom.runner.failures import JobFailed
from greenroom.runner.models.catalogue import Catalogue

DOCKER_HUB = "https://hub.docker.com"
_PAGE = 100


@dataclass(frozen=True)
class Found:
    """A model that can be pulled."""

    name: str
    """What to pull."""
    source: str
    """`catalogue`, `Docker Hub` or `Hugging Face`."""
    description: str = ""
    formats: tuple[str, ...] = ()
    downloads: int = 0
    likes: int = 0


@dataclass(frozen=True)
class Results:
    """What was found, and which sources did not answer."""

    models: tuple[Found, ...]
    silent: tuple[str, ...] = ()
    """A sentence for each."""


def search(query: str, *, limit: int, catalogue: Catalogue, docker_hub: str = DOCKER_HUB) -> Results:
    """Ask all sources at once; one that does not answer does not keep the others from being shown."""
    sources: list[Callable[[], list[Found]]] = [
        lambda: list(_catalogue(query, catalogue)),
        lambda: list(_docker_hub(query, limit, docker_hub)),
        lambda: list(_hugging_face(query, limit)),
    ]
    models: list[Found] = []
    silent: list[str] = []
    with ThreadPoolExecutor(len(sources), thread_name_prefix="search") as pool:
        for future in [pool.submit(source) for source in sources]:
            try:
                models += future.result()[:limit]
            except JobFailed as failed:
                silent.append(failed.failure.message)
    return Results(tuple(models), tuple(silent))


def _catalogue(query: str, catalogue: Catalogue) -> Iterator[Found]:
    for name, entry in catalogue:
        if query.lower() in f"{name} {entry.title}".lower():
            yield Found(name, "catalogue", entry.title)


def _docker_hub(query: str, limit: int, base: str) -> Iterator[Found]:
    from greenroom.runner.installations.sources import PackageSources
    from greenroom.runner.installations.web import Web

    url = f"{base}/v2/namespaces/ai/repositories?{urlencode({'name': query, 'page_size': _PAGE})}"
    page = Web(PackageSources.discover()).read(url, accept="application/json")
    try:
        results = json.loads(page[0])["results"] if page is not None else []
        models = [one for one in results if query.lower() in str(one["name"]).lower()]
    except (ValueError, KeyError, TypeError):
        raise JobFailed.transient("bad_answer", "Docker Hub answered with something else.") from None
    models.sort(key=lambda one: -_number(one.get("pull_count")))
    for one in models[:limit]:
        yield Found(
            name=f"ai/{one['name']}",
            source="Docker Hub",
            description=" ".join(str(one.get("description") or "").split()),
            downloads=_number(one.get("pull_count")),
            likes=_number(one.get("star_count")),
        )


def _hugging_face(query: str, limit: int) -> Iterator[Found]:
    from greenroom.runner.models.sources.huggingface import ask_hub

    answer = ask_hub({"search": query, "limit": limit, "token": ""}, Event())
    if "error" in answer:
        raise JobFailed.transient(
            "unreachable", "Hugging Face did not answer.", detail=str(answer.get("detail", ""))
        )
    for one in answer["models"]:
        yield Found(
            name=f"hf.co/{one['name']}",
            source="Hugging Face",
            formats=tuple(one["formats"]),
            downloads=_number(one["downloads"]),
            likes=_number(one["likes"]),
        )


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
