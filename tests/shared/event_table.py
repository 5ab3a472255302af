"""The table of events in `docs/journal.md`, made of what their classes say; `make docs` writes it."""

from __future__ import annotations

from collections.abc import Iterator

from greenroom.actors.kernel.core import Event
from greenroom.runner.diagnosis import explain  # noqa: F401 - brings every event along
from pages import ROOT

PAGE = ROOT / "docs" / "journal.md"
BEGIN = "<!-- made by make docs -->"
END = "<!-- end -->"
_STREAMS = {
    "installer": "`install/BACKEND`",
    "engine_runner": "`runner/BACKEND`",
    "scheduler": "`scheduler`",
    "library": "`library`",
    "idempotency": "`idempotency`",
    "daemon_log": "`daemon`",
    "conversation_log": "`conversations`",
    "remote_log": "`remotes`",
    "kernel": "any",
}


def kinds(of: type[Event] = Event) -> Iterator[type[Event]]:
    """Every event that Greenroom stores, in the order of the streams."""
    for kind in of.__subclasses__():
        if kind.__module__.startswith("greenroom.actors.") and kind.__dict__.get("TAG"):
            yield kind
        yield from kinds(kind)


def _stream(kind: type[Event]) -> str:
    return kind.__module__.split(".")[2]


def render() -> str:
    """The table."""
    order = list(_STREAMS)
    rows = [
        f"| `{kind.TAG}` | {_STREAMS[_stream(kind)]} | {(kind.__doc__ or '').splitlines()[0]} |"
        for kind in sorted(kinds(), key=lambda kind: order.index(_stream(kind)))
    ]
    return "\n".join(["| kind | stream | means |", "|---|---|---|", *rows])


def insert(page: str) -> str:
    """The page with the table as it is now."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"the page has no {BEGIN}"
    assert end, f"the page has no {END}"
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{after}"
