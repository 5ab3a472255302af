"""What `why` has read of a journal, kept beside it: the next question reads only what was stored since.

It is a cache. It counts only for the journal, the last event (with its CRC, which stands for all before it)
and the code that it was made from, and only if it is whole; otherwise the journal is read from its
beginning, and the cache is made again where it can be.
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

import greenroom.actors
from greenroom import __version__
from greenroom.actors.journal.port import JournalDamaged
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.values import Mode
from greenroom.runner.diagnosis.event_index import EventIndex, Topic
from greenroom.runner.diagnosis.history import History

T = TypeVar("T")

SUFFIX = "-why"
"""Of the file, after the journal's name."""
WORTH = 2_000
"""Events that are read in the time that writing the file takes; fewer are read again."""
_SPARE = 256 * 2**20
"""Bytes that must stay free on the disk: the journal needs them more."""
_HEADER = 4_096
"""Bytes of the longest first line."""


class _Header(msgspec.Struct, frozen=True):
    """The first line of the file, as JSON."""

    journal: str
    """Id of the journal."""
    seq: int
    """The last event that it holds, and the CRC of that."""
    crc: int
    code: str
    """Fingerprint of the code: other code may make something else of the same events."""
    length: int
    """Of what follows, in bytes, and the CRC-32 of that."""
    check: int


class _Kept(msgspec.Struct, frozen=True):
    """A history, as MessagePack. Bytes hold unsigned 32-bit numbers."""

    topics: list[Topic]
    engines: list[str]
    topic_of: bytes
    engine_of: bytes
    names: dict[str, str]
    pairs: list[tuple[str, str]]
    """Model and backend."""
    known: bytes
    """Of the engines whose model is known the numbers, and in `pair_of` those of their pairs."""
    pair_of: bytes
    pulls: dict[str, str]
    recent: list[str]
    caused: dict[str, list[int]]
    pids: dict[int, str]
    versions: dict[str, int]
    modes: dict[str, Mode]
    notices: list[str]
    is_sound: bool
    states: dict[str, bytes]
    dormant: dict[str, int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


def told(reader: JournalReader, question: str, tell: Callable[[History], T]) -> T:
    """What `tell` makes of a journal's history, which is read for one question.

    Events before a checkpoint are not read again but for those that `tell` looks at. Raises what reading a
    journal raises but JournalDamaged, which is `History.damage`; and what `tell` raises.
    """
    history = resumed(reader, question)
    if history is not None:
        begun = history.count
        history.read(reader.read(after=begun))
        _keep(reader, history, begun)
        with contextlib.suppress(JournalDamaged):
            return tell(history)
        # An event before the checkpoint has changed since: the reading will say which.
    return tell(_anew(reader, question))


def refresh(reader: JournalReader) -> None:
    """Bring the file up to date, if much was stored since. Raises as `told`."""
    history = resumed(reader, "")
    if history is None:
        _anew(reader, "")
    else:
        begun = history.count
        _keep(reader, history.read(reader.read(after=begun)), begun)


def _anew(reader: JournalReader, question: str) -> History:
    history = History(question, reader).read(reader.read())
    _keep(reader, history, 0)
    return history


def resumed(reader: JournalReader, question: str) -> History | None:
    """The history as it was kept; None if nothing was, or not of this journal as it is."""
    try:
        with _path(reader).open("rb") as file:
            header = msgspec.json.decode(file.readline(_HEADER), type=_Header)
            if (header.journal, header.code) != (reader.id, _code()):
                return None
            # A journal that was cut off has no such event, and one that went on otherwise not this CRC.
            if header.seq < 1 or header.crc != reader.crc_at(header.seq):
                return None
            body = file.read(header.length)
        if len(body) != header.length or zlib.crc32(body) != header.check:
            return None
        return _thawed(_decode(body), header.seq, History(question, reader), reader)
    except (OSError, ValueError, LookupError, JournalDamaged):
        return None


def _thawed(kept: _Kept, seq: int, history: History, reader: JournalReader) -> History:
    history.index = EventIndex(kept.topics, kept.engines, kept.topic_of, kept.engine_of)
    if history.count != seq:
        raise ValueError(seq)
    subjects, names = history.subjects, kept.engines
    subjects.names = kept.names
    subjects.pulls = OrderedDict(kept.pulls)
    known, pair_of = array("I", kept.known), array("I", kept.pair_of)
    subjects.engines = OrderedDict(
        (names[engine], kept.pairs[pair]) for engine, pair in zip(known, pair_of, strict=True)
    )
    history.recent_engines = OrderedDict.fromkeys(kept.recent)
    history.caused = OrderedDict(kept.caused)
    history.pids = OrderedDict(kept.pids)
    history.versions = kept.versions
    history.modes = OrderedDict(kept.modes)
    history.notices = kept.notices
    history.is_sound = kept.is_sound
    history.replay.thaw(kept.states, kept.dormant, reader.pick([seq])[0])
    return history


def _keep(reader: JournalReader, history: History, begun: int) -> None:
    """Write it down, if much was read after event `begun` and all of it was understood."""
    if history.count - begun < WORTH or history.damage is not None or history.replay.has_left_out:
        return
    crc, code = reader.crc_at(history.count), _code()
    if crc is None or not code:
        return
    body = _encode(_frozen(history))
    header = _Header(reader.id, history.count, crc, code, len(body), zlib.crc32(body))
    # Without the file all works as well: the folder may be read-only, or another process writes it now.
    with contextlib.suppress(OSError):
        _write(_path(reader), msgspec.json.encode(header) + b"\n" + body)


def _frozen(history: History) -> _Kept:
    index, subjects = history.index, history.subjects
    numbers = {name: number for number, name in enumerate(index.engines)}
    pairs = {pair: number for number, pair in enumerate(dict.fromkeys(subjects.engines.values()))}
    return _Kept(
        topics=index.topics,
        engines=index.engines,
        topic_of=index.topic_of.tobytes(),
        engine_of=index.engine_of.tobytes(),
        names=subjects.names,
        pairs=list(pairs),
        known=array("I", map(numbers.__getitem__, subjects.engines)).tobytes(),
        pair_of=array("I", map(pairs.__getitem__, subjects.engines.values())).tobytes(),
        pulls=subjects.pulls,
        recent=list(history.recent_engines),
        caused=history.caused,
        pids=history.pids,
        versions=history.versions,
        modes=history.modes,
        notices=history.notices,
        is_sound=history.is_sound,
        states=history.replay.frozen(),
        dormant=dict(history.replay.snapshot.dormant),
    )


def _write(path: Path, content: bytes) -> None:
    disk = os.statvfs(path.parent)
    if disk.f_bavail * disk.f_frsize < len(content) + _SPARE:
        return
    draft = path.with_name(f"{path.name}-new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _path(reader: JournalReader) -> Path:
    db = reader.files.db
    return db.with_name(db.name + SUFFIX)


def _code() -> str:
    """Tells this code from any other; empty where it is not in files."""
    roots = (Path(greenroom.actors.__file__).parent, Path(__file__).parent)
    try:
        files = sorted(one for root in roots for one in _sources(str(root)))
    except OSError:
        return ""
    return f"{__version__} {sys.byteorder} {zlib.crc32(repr(files).encode()):08x}"


def _sources(folder: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                stat = entry.stat()
                yield entry.name, stat.st_size, stat.st_mtime_ns
            elif entry.is_dir() and entry.name != "__pycache__":
                yield from _sources(entry.path)
