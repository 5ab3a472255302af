"""Searches for models: in the catalogue, Docker Hub and Hugging Face. Only on request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import urlencode

from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.errors import failure_of
from greenroom.runner.models.short_names import Catalogue
from greenroom.runner.threads import Cancel, start_thread

DOCKER_HUB = "https://hub.docker.com"
_PAGE = 100
SECONDS = 10.0
"""For all sources: the user waits at a terminal."""
SAY_AFTER = 0.8
"""Seconds after which the user learns what for."""


@dataclass(frozen=True)
class Found:
    name: str
    """The name to pull."""
    source: str
    """`catalogue`, `Docker Hub` or `Hugging Face`."""
    description: str = ""
    formats: tuple[str, ...] = ()
    downloads: int = 0
    likes: int = 0


@dataclass(frozen=True)
class Results:
    """The models found, and the sources that did not answer."""

    models: tuple[Found, ...]
    silent: tuple[str, ...] = ()
    """One sentence each."""


def search(
    query: str,
    *,
    limit: int,
    catalogue: Catalogue,
    docker_hub: str = DOCKER_HUB,
    say: Callable[[str], None] = lambda _: None,
) -> Results:
    """Ask all sources at once; one that does not answer does not delay or hide the others.

    After a moment `say` receives which sources are waited for, and how long at most. Ctrl-C ends the waiting,
    and the answer has what was found by then.
    """
    cancel = Cancel()
    sources: dict[str, Callable[[], list[Found]]] = {
        "The catalogue": lambda: list(_catalogue(query, catalogue)),
        "Docker Hub": lambda: list(_docker_hub(query, limit, docker_hub, cancel)),
        "Hugging Face": lambda: list(_hugging_face(query, limit, cancel)),
    }
    asked = {name: _Question(source) for name, source in sources.items()}
    limits = f"within {SECONDS:.0f}s"
    try:
        _wait(asked, say)
    except KeyboardInterrupt:
        limits = "before Ctrl-C"
    finally:
        cancel.set()
    models: list[Found] = []
    silent: list[str] = []
    for name, question in asked.items():
        if not question.over.is_set():
            silent.append(f"{name} did not answer {limits}.")
        elif question.problem:
            silent.append(question.problem)
        else:
            models += question.found[:limit]
    return Results(tuple(models), tuple(silent))


def _wait(asked: Mapping[str, _Question], say: Callable[[str], None]) -> None:
    """Until all have answered, or their time is over."""
    began = time.monotonic()
    for question in asked.values():
        question.over.wait(max(0.0, began + SAY_AFTER - time.monotonic()))
    waiting = [name for name, question in asked.items() if not question.over.is_set()]
    if waiting:
        names = " and ".join(waiting)
        say(f"Waiting up to {SECONDS:.0f}s for {names}… (Ctrl-C shows what has been found.)")
    for question in asked.values():
        question.over.wait(max(0.0, began + SECONDS - time.monotonic()))


class _Question:
    """A request to one source, on a thread that can be abandoned."""

    def __init__(self, source: Callable[[], list[Found]]) -> None:
        self.found: list[Found] = []
        self.problem = ""
        self.over = Event()
        self._source = source
        start_thread(self._ask, "search")

    def _ask(self) -> None:
        try:
            self.found = self._source()
        except JobFailed as failed:
            self.problem = failed.failure.message
        except JobCancelled:
            self.problem = "The search was cancelled."
        except Exception as error:  # noqa: BLE001 - one source is no reason to show nothing
            self.problem = failure_of(error, "searching").message
        finally:
            self.over.set()


def _catalogue(query: str, catalogue: Catalogue) -> Iterator[Found]:
    for name, entry in catalogue:
        if query.lower() in f"{name} {entry.title}".lower():
            yield Found(name, "catalogue", entry.title)


def _docker_hub(query: str, limit: int, base: str, cancel: Cancel) -> Iterator[Found]:
    from greenroom.runner.installations.sources import PackageSources
    from greenroom.runner.installations.web import Web

    url = f"{base}/v2/namespaces/ai/repositories?{urlencode({'name': query, 'page_size': _PAGE})}"
    page = Web(PackageSources.discover(), cancel=cancel).read(url, accept="application/json")
    try:
        results = json.loads(page[0])["results"] if page is not None else []
        models = [one for one in results if query.lower() in str(one["name"]).lower()]
    except (ValueError, KeyError, TypeError):
        raise JobFailed.transient("bad_answer", "Docker Hub sent an invalid answer.") from None
    models.sort(key=lambda one: -_number(one.get("pull_count")))
    for one in models[:limit]:
        yield Found(
            name=f"ai/{one['name']}",
            source="Docker Hub",
            description=" ".join(str(one.get("description") or "").split()),
            downloads=_number(one.get("pull_count")),
            likes=_number(one.get("star_count")),
        )


def _hugging_face(query: str, limit: int, cancel: Cancel) -> Iterator[Found]:
    from greenroom.runner.models.sources.huggingface import ask_hub

    answer = ask_hub({"search": query, "limit": limit, "token": ""}, cancel)
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
