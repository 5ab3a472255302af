"""The journal's format over time: the shape of everything stored, and journals of every version.

    make golden                    take up new event types, and changed ones that have a new SCHEMA
    make golden CHANGED="a b"      take up these although they have none, which only what was never
                                   released may do
    make golden VERSION=0.2        record the journals of a version that is about to be released

`schema.json` holds the shapes; `digests.txt` the journals, which never change again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from greenroom.actors.conversation_log import ConversationLog
from greenroom.actors.daemon_log import DaemonLog, DaemonStarted
from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.idempotency import Idempotency
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.journal.maintenance import export
from greenroom.actors.journal.port import Entry, Record
from greenroom.actors.journal.reader import read_journal
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.core import Core, Event
from greenroom.actors.kernel.event_store import Codec
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.core import Library
from greenroom.actors.remote_log import RemoteLog
from greenroom.actors.scheduler.core import Scheduler

GOLDEN = Path(__file__).parents[1] / "journal" / "golden"
SCHEMA = GOLDEN / "schema.json"
DIGESTS = GOLDEN / "digests.txt"
AT = 1_800_000_000.0
"""When golden journals begin."""

CORES: tuple[Core[Any, Any], ...] = (
    DaemonLog(DaemonStarted(pid=1, version="", platform="")),
    Idempotency(),
    ConversationLog(),
    RemoteLog(),
    InstallerCore(()),
    Library(),
    Runner("mlx"),
    Scheduler(()),
)


def event_types() -> dict[str, type[Event]]:
    """Everything that Greenroom stores, by tag."""
    found: dict[str, type[Event]] = {CommandParked.TAG: CommandParked}
    for core in CORES:
        found |= {kind.TAG: kind for kind in core.event_types}
    return found


# shapes


def shapes(kinds: Mapping[str, type[Event]]) -> dict[str, Any]:
    """Schema version and fields of every event type, and of the structs inside them."""
    structs: dict[str, Any] = {}
    events = {
        tag: {"schema": kind.SCHEMA, "fields": fields_of(kind, structs)}
        for tag, kind in sorted(kinds.items())
    }
    return {"events": events, "structs": dict(sorted(structs.items()))}


def fields_of(kind: type[msgspec.Struct], structs: dict[str, Any]) -> dict[str, str]:
    hints = typing.get_type_hints(kind)
    found = {}
    for field in msgspec.structs.fields(kind):
        text = spelled(hints[field.name], structs)
        if field.default is not msgspec.NODEFAULT:
            text += f" = {field.default!r}"
        elif field.default_factory is not msgspec.NODEFAULT:
            text += f" = {field.default_factory()!r}"
        found[field.encode_name] = text
    return found


def spelled(hint: Any, structs: dict[str, Any]) -> str:
    """A type as text; structs by their names, and noted."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        if hint.__name__ not in structs:
            structs[hint.__name__] = {}
            structs[hint.__name__] = fields_of(hint, structs)
        return hint.__name__
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in (types.UnionType, typing.Union):
        return " | ".join(spelled(one, structs) for one in arguments)
    if origin is not None:
        inside = ", ".join("..." if one is ... else spelled(one, structs) for one in arguments)
        return f"{origin.__name__}[{inside}]"
    return "None" if hint is type(None) else str(hint.__name__)


def whole(tag: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an event, and of every struct it reaches."""
    fields = shape["events"][tag]["fields"]
    found, left = {"": fields}, [fields]
    while left:
        for text in left.pop().values():
            for name in re.findall(r"\b[A-Z]\w+", text.partition(" = ")[0]):
                if name in shape["structs"] and name not in found:
                    found[name] = shape["structs"][name]
                    left.append(found[name])
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Tags that are new, that changed with a new SCHEMA, and that changed or went without one."""
    added = [tag for tag in new["events"] if tag not in old["events"]]
    moved, silent = [], [f"{tag} (gone)" for tag in old["events"] if tag not in new["events"]]
    for tag, event in old["events"].items():
        if tag not in new["events"]:
            continue
        if new["events"][tag]["schema"] > event["schema"]:
            moved.append(tag)
        elif whole(tag, old) != whole(tag, new) or new["events"][tag]["schema"] < event["schema"]:
            silent.append(tag)
    return added, moved, silent


# golden journals


def sample(hint: Any, name: str, default: Any = None) -> Any:
    """A value of a type that is not its default, the same every time."""
    if hint is bool:
        # A field without a default has a mark in its place.
        return default is not True
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        hints = typing.get_type_hints(hint)
        return hint(**{one.name: sample(hints[one.name], one.name, one.default) for one in _fields(hint)})
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Literal:
        return arguments[-1]
    if origin in (types.UnionType, typing.Union):
        return sample(next(one for one in arguments if one is not type(None)), name)
    if origin is tuple:
        return tuple(sample(one, name) for one in arguments if one is not ...)
    if origin is not None:
        return {sample(arguments[0], "key"): sample(arguments[1], name)}
    plain = {str: "mlx" if name == "backend" else f"{name}-1", int: 7, float: 1.5}
    return plain[hint]


def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def every_type() -> Iterator[Entry]:
    """One event of each type with every field filled in, each in its own actor's stream."""
    codec = Codec()
    versions: dict[str, int] = {}
    for core in CORES:
        codec.register(core.event_types)
        for kind in core.event_types:
            event: Event = sample(kind, "")
            stream = core.stream_of(event)
            versions[stream] = versions.get(stream, 0) + 1
            entry, _ = codec.entry(event, stream=stream, version=versions[stream], cause="r-1-1", at=AT)
            yield entry


def cleaned(records: Iterator[Record], home: Path) -> Iterator[Entry]:
    """A life without what is of this machine only."""
    first = 0.0
    folder = str(home.parent)
    for record in records:
        first = first or record.at
        data = record.data.replace(str(home), "/home/user/greenroom").replace(folder, "/home/user")
        data = re.sub(r'"platform":"[^"]*"', '"platform":"Linux-6.12-x86_64-with-glibc2.41"', data)
        data = re.sub(r'"boot_id":"[^"]*"', '"boot_id":"00000000-0000-4000-8000-000000000000"', data)
        cause = record.cause.replace(folder, "/home/user")
        at = round(AT + record.at - first, 6)
        yield Entry(
            stream=record.stream,
            version=record.version,
            type=record.type,
            schema=record.schema,
            cause=cause,
            data=data,
            at=at,
        )


def write(path: Path, entries: Iterator[Entry]) -> None:
    """One file that is whole by itself."""
    journal = SqliteJournal(path, clock=lambda: AT, reserve=0)
    for entry in entries:
        journal.append([entry])
    journal.close()
    remove_side_files(path)


def remove_side_files(path: Path) -> None:
    """Leave nothing beside the database."""
    for beside in path.parent.glob(f"{path.name}-*"):
        beside.unlink()


def live_once(folder: Path) -> Path:
    """The scripted life of the crash tests, undisturbed; its data directory."""
    from crashing import Life, write_models
    from toy import make_wheel

    make_wheel(folder / "wheels")
    write_models(folder / "m")
    Life(folder, "home").live()
    return folder / "home"


def record(version: str) -> list[Path]:
    """The golden journals of a version: a scripted life, and one event of each type."""
    import tempfile

    made = [GOLDEN / f"{version}-life.db", GOLDEN / f"{version}-every-type.db"]
    for path in made:
        if path.exists():
            sys.exit(f"{path.name} is there already, and golden journals never change")
    with tempfile.TemporaryDirectory(prefix="gr-") as place:
        home = live_once(Path(place))
        write(made[0], cleaned(read_journal(home / "journal.db"), home))
    write(made[1], every_type())
    for path in list(made):
        lines = path.with_suffix(".jsonl")
        with lines.open("wb") as out:
            export(path, out)
        # Reading, too, leaves SQLite's files beside it.
        remove_side_files(path)
        made.append(lines)
    with DIGESTS.open("a") as digests:
        for path in made:
            digests.write(f"{digest(path)}  {path.name}\n")
    return made


def digest(path: Path) -> str:
    """SHA-256, as `sha256sum -c digests.txt` checks it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def update(changed: list[str]) -> int:
    """Take up what may be taken up; refuse what changed silently."""
    old = json.loads(SCHEMA.read_text()) if SCHEMA.exists() else {"events": {}, "structs": {}}
    new = shapes(event_types())
    added, moved, silent = differences(old, new)
    refused = [tag for tag in silent if tag.removesuffix(" (gone)") not in changed]
    if refused:
        print(
            f"These have changed without a new SCHEMA: {', '.join(refused)}.\n"
            "Give each a new SCHEMA and an upcaster from the one before (see actors/kernel/core.py, Event), "
            'or, if no release has ever stored it so, name it: make golden CHANGED="…".',
            file=sys.stderr,
        )
        return 1
    SCHEMA.write_text(json.dumps(new, indent=1) + "\n")
    for word, tags in (("new", added), ("new schema", moved), ("changed", silent)):
        if tags:
            print(f"{word}: {', '.join(tags)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--changed", default="", help="tags, separated by spaces")
    parser.add_argument("--version", default="", help="record the journals of this version")
    given = parser.parse_args()
    code = update(given.changed.split())
    if code == 0 and given.version:
        for path in record(given.version):
            print(f"wrote {path.name}")
    return code


if __name__ == "__main__":
    sys.exit(main())
