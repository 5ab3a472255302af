"""The saved conversations of a data directory: one folder, two files each.

`c-….bin` is the engine's own file; `c-….json` its metadata, which is written last: a conversation without it
was never saved. A disk that is full, slow or broken costs only what could have been gained: such errors are
counted and logged at most once a minute, and never reach a request.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from greenroom.actors.conversation_log import ConversationsDropped, ConversationsFailed
from greenroom.actors.journal.fsync import TEMPORARY
from greenroom.runner.config import Settings
from greenroom.runner.conversations import files
from greenroom.runner.conversations.budget import DAILY, Written, cache_budget, off
from greenroom.runner.conversations.checking import FileChecks
from greenroom.runner.conversations.entry import (
    MOST_BYTES,
    MOST_PARTS,
    Damaged,
    Dropped,
    SavedBytes,
    SavedConversation,
    StoreCounts,
    decoded,
    encoded,
    is_id,
    new_id,
)
from greenroom.runner.conversations.index import PrefixIndex
from greenroom.runner.conversations.sums import ConversationSums
from greenroom.runner.conversations.value import least
from greenroom.runner.conversations.why_not import why_not
from greenroom.runner.threads import start_thread
from greenroom.runner.units import format_size

FOLDER = "conversations"
"""In the data directory."""
_WRITTEN = "written.json"
_MOST = 10_000
"""Conversations."""
_LEFT_FREE = 500_000_000
"""Bytes of the disk that saving leaves free."""
_QUIET = 60.0
"""Seconds between two complaints about the disk; meanwhile nothing is saved."""
_SWEEP_EVERY = 600.0
_REMEMBERED = 256
"""Dropped conversations whose reason is remembered."""

_log = logging.getLogger(__name__)


class ConversationStore:
    """Thread-safe. All methods but `best`, `knows` and `why_not` may wait for the disk."""

    def __init__(
        self,
        folder: Path,
        budget: Callable[[], int],
        expiry: float = 86_400.0,
        clock: Callable[[], float] = time.time,
        *,
        daily: Callable[[], int] | None = None,
        off: str = "",
    ) -> None:
        """`budget`: bytes that may be kept. `expiry`: seconds since an entry was last used. `daily`: bytes
        that may be written in 24 hours, by default ten times the budget. `off`: why nothing is to be kept;
        what an earlier life has kept is removed then.
        """
        self._folder = folder
        self._budget = budget
        self._daily = daily or (lambda: DAILY * budget())
        self.expiry = expiry
        self._clock = clock
        self._disk = threading.Lock()
        """Held while the folder's entries change; taken before the other one."""
        self._memory = threading.Lock()
        self._checks = FileChecks()
        self._index = PrefixIndex()
        self._doomed: list[SavedConversation] = []
        """Out of the index, and still on the disk."""
        self._gone: OrderedDict[str, tuple[SavedConversation, str]] = OrderedDict()
        self._bytes = 0
        self._written = Written()
        self._saved = Dropped()
        self._dropped: dict[str, Dropped] = {}
        self._failures = 0
        self._failed_at = 0.0
        """Monotonic time of the last complaint."""
        self.sums = ConversationSums()
        self.off = off
        """Why nothing is saved; empty if it is."""
        self.opened = threading.Event()
        """Set once it is known what the folder holds."""
        self._problem = "the store is not open yet"
        self._closed = threading.Event()

    @classmethod
    def of(cls, settings: Settings) -> ConversationStore:
        """The store of a data directory, as it is configured."""
        writes = settings.conversation_writes
        store: ConversationStore = cls(
            settings.home / FOLDER,
            lambda: cache_budget(settings, store.usage().bytes),
            settings.conversation_expiry,
            daily=None if writes is None else lambda: writes,
            off=off(settings),
        )
        return store

    # its life

    def open(self) -> None:
        """Read the metadata, and remove what was never saved, is incomplete or has expired. Never raises.

        The folder is created with the first conversation.
        """
        with self._disk:
            try:
                names = sorted(os.listdir(self._folder))
                files.make_private(self._folder)
            except FileNotFoundError:
                names = []
            except OSError as error:
                self._problem = f"its folder cannot be used: {error.strerror or error}"
                self.off = self.off or f"the folder {self._folder} cannot be used: {error.strerror or error}"
                self._complain(error)
                return
            with suppress(OSError, msgspec.MsgspecError):
                written = files.read(self._folder / _WRITTEN, MOST_BYTES)
                self._written = msgspec.json.decode(written, type=Written)
            found = {name.removesuffix(".json") for name in names if name.endswith(".json")}
            for entry_id in filter(is_id, found):
                self._take_in(entry_id)
            for name in names:
                stem, _, kind = name.partition(".")
                with self._memory:
                    stray = kind in ("bin", "json") and is_id(stem) and self._index.get(stem) is None
                if stray or name.startswith(TEMPORARY):
                    self._unlink(self._folder / name)
            self._problem = self.off
        if self.off:
            self.drop()
        self.sweep()

    def start(self, models: Callable[[], Collection[str]], every: float = _SWEEP_EVERY) -> None:
        """Open it and sweep every so many seconds, on a thread of its own, until `close`.

        `models`: the ids of those that are stored; if it names none, that says nothing.
        """

        def run() -> None:
            self.open()
            self.opened.set()
            while not self._closed.wait(every):
                self.sweep(models() or None)

        start_thread(run, "conversations")

    def close(self) -> None:
        """Stop sweeping; what is kept stays."""
        self._closed.set()

    def _take_in(self, entry_id: str) -> None:
        try:
            entry = self._metadata(entry_id)
        except (OSError, Damaged) as error:
            _log.warning("the saved conversation %s is dropped: %s", entry_id, error)
            self._count("damaged", 0)
            return
        # The clock may have been ahead when it was written.
        now = self._clock()
        saved_at, used_at = min(entry.saved_at, now), min(entry.used_at, now)
        entry = msgspec.structs.replace(entry, saved_at=saved_at, used_at=used_at)
        with self._memory:
            self._index.put(entry)
            self._bytes += entry.size

    def _metadata(self, entry_id: str) -> SavedConversation:
        """What the disk has of an entry. Raises OSError, Damaged."""
        entry = decoded(files.read(self._meta(entry_id), MOST_BYTES))
        found = self._data(entry_id).lstat()
        if (entry.id, entry.size) != (entry_id, found.st_size):
            raise Damaged("its file is not complete")
        if {found.st_uid, self._meta(entry_id).lstat().st_uid} != {os.geteuid()}:
            raise Damaged("it belongs to another user")
        return entry

    def sweep(self, models: Collection[str] | None = None) -> Dropped:
        """Drop what has expired, is over the budget, or is of a model not among these ids."""
        now = self._clock()
        with self._disk:
            self._drop([one for one in self.entries() if self._has_expired(one, now)], "expired")
            if models is not None:
                self._drop([one for one in self.entries() if one.model_id not in models], "removed")
            try:
                over = self.usage().bytes - self._budget()
            except OSError as error:
                self._complain(error)
                over = 0
            self._drop(least(self.entries(), now, bytes_=over, most=_MOST), "space")
            return self._remove_doomed()

    # finding

    def best(
        self, compat: str, owner: str, chain: Sequence[bytes], *, whole: bool = False
    ) -> tuple[SavedConversation, int] | None:
        """The entry with the longest prefix in common with a chain, and how many parts that is. No I/O.

        `whole`: only entries that are a prefix of the chain as a whole, for engines that cannot use a part.
        """
        now = self._clock()
        with self._memory:
            while (found := self._index.longest(compat, owner, chain, whole=whole)) is not None:
                if not self._has_expired(found[0], now):
                    return found
                self._forget(found[0], "expired")
        return None

    def knows(self, owner: str, prefix: bytes) -> bool:
        """Whether it has, or has had, anything of an owner that begins like this. No I/O."""
        with self._memory:
            gone = any(prefix in one.chain for one, _ in self._gone.values() if one.owner == owner)
            return gone or self._index.has(owner, prefix)

    def why_not(
        self, compat: str, owner: str, chain: Sequence[bytes], *, model_id: str = "", part: str = "message"
    ) -> str:
        """Why nothing, or so little, of a chain can be restored, to follow a colon; "" if that is not known.

        `model_id`: then only entries of this model are a reason. `part`: what the parts after the first are.
        """
        with self._memory:
            known = [*((one, "") for one in self._index), *self._gone.values()]
        fitting = (
            (one, dropped) for one, dropped in known if one.owner == owner and model_id in ("", one.model_id)
        )
        return why_not(fitting, compat, chain, part=part)

    def entries(self) -> list[SavedConversation]:
        """All of them, the one used last first."""
        with self._memory:
            return sorted(self._index, key=lambda one: (-one.used_at, one.id))

    def usage(self) -> SavedBytes:
        with self._memory:
            return SavedBytes(len(self._index), self._bytes, self._written.today(self._clock()))

    def limits(self) -> tuple[int, int]:
        """Bytes that may be kept, and that may be written in 24 hours; 0 where the disk cannot be read."""
        try:
            return self._budget(), self._daily()
        except OSError as error:
            self._complain(error)
            return 0, 0

    def counts(self) -> StoreCounts:
        with self._memory:
            return StoreCounts(self._saved, dict(self._dropped), self._failures)

    # saving and restoring

    def may_write(self, size: int) -> str:
        """Why a file of so many bytes cannot be saved now, to follow a colon; "" if it can."""
        if why := self._problem or self.fails():
            return why
        try:
            budget, daily = self._budget(), self._daily()
            free = shutil.disk_usage(self._folder.parent).free
        except OSError as error:
            self._complain(error)
            return f"the disk cannot be used: {error.strerror or error}"
        if size > budget:
            return f"it needs {format_size(size)}, and conversation_cache is {format_size(budget)}"
        written = self.usage().written_today
        if written + size > daily:
            return f"{format_size(written)} of at most {format_size(daily)} a day have been written"
        if free - size < _LEFT_FREE:
            return f"the disk has only {format_size(free)} free"
        return ""

    def fails(self) -> str:
        """Why the disk is not used for the moment, to follow a colon; "" if it is."""
        if self._failures and time.monotonic() - self._failed_at < _QUIET:
            return "the disk has just failed"
        return ""

    def is_slow(self) -> None:
        """The disk has not given a file in time."""
        self._complain(TimeoutError("it takes longer than reading the prompt again"))

    def put(
        self,
        file: Path,
        *,
        compat: str,
        owner: str,
        model_id: str,
        model: str,
        backend: str,
        chain: tuple[bytes, ...],
        tokens: int,
        seconds: float,
        reason: str,
        cause: str = "",
        ends: tuple[int, ...] = (),
    ) -> SavedConversation | None:
        """Take over a file that an engine has written; see `SavedConversation` for the rest.

        The file is gone afterwards, also where it was not kept: None then.
        """
        entry_id = new_id()
        data = self._data(entry_id)
        if self._problem or not file.exists() or not 0 < len(chain) <= MOST_PARTS or tokens <= 0:
            self._unlink(file)
            return None
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            files.move(file, data)
            size, checksum = files.checksum(data)
            now = self._clock()
            entry = SavedConversation(
                id=entry_id,
                compat=compat,
                owner=owner,
                model_id=model_id,
                model=model,
                backend=backend,
                chain=chain,
                ends=ends,
                tokens=tokens,
                size=size,
                checksum=checksum,
                saved_at=now,
                used_at=now,
                seconds=seconds,
                reason=reason,
                cause=cause,
            )
            return entry if size and self._admit(entry) else None
        except OSError as error:
            if file.parent.is_dir():  # else its engine has ended, and its folder is gone
                self._complain(error)
            return None
        finally:
            self._unlink(file)
            with self._memory:
                is_kept = self._index.get(entry_id) is not None
            if not is_kept:
                self._unlink(data)

    def _admit(self, entry: SavedConversation) -> bool:
        """Write an entry's metadata and make room for it; False if others are worth more. Raises OSError."""
        with self._disk:
            self._note_written(entry)
            with self._memory:
                replaced = self._index.extended_by(entry)
                rest = [one for one in self._index if one not in replaced]
            over = sum(one.size for one in rest) + entry.size - self._budget()
            victims = least([*rest, entry], entry.used_at, bytes_=over, most=_MOST)
            if entry in victims:
                self._count("space", entry.size)
                return False
            files.write(self._meta(entry.id), encoded(entry))
            with self._memory:
                self._index.put(entry)
                self._bytes += entry.size
                self._saved = Dropped(self._saved.count + 1, self._saved.bytes + entry.size)
            self._drop(replaced, "replaced")
            self._drop(victims, "space")
            self._remove_doomed()
            return True

    def lend(self, entry: SavedConversation, into: Path) -> bool:
        """Give an engine an entry's file under a path of its own, once it has been checked.

        The path is another name of the same file where possible: engines must not write to it. False if it is
        gone, damaged (then it is dropped) or cannot be placed there; then there is no file at that path.
        """
        with self._memory:
            current = self._index.get(entry.id)
        if current is None:
            return False
        try:
            files.give(self._data(entry.id), into)
        except OSError as error:
            # Either the file is at fault, or the place where it was to be.
            if not self._data(entry.id).is_file():
                self._damaged(entry, "its file is gone")
            else:
                self._complain(error)
            return False
        if self._is_intact(current, into):
            return True
        self._unlink(into)
        return False

    def check(self, entry: SavedConversation) -> bool:
        """Verify an entry's file ahead of `lend`, which then need not read it. False if it was dropped."""
        return self._is_intact(entry, self._data(entry.id))

    def _is_intact(self, entry: SavedConversation, path: Path) -> bool:
        """Whether this name of an entry's file has what was saved; the entry is dropped otherwise."""
        try:
            if self._checks.is_intact(entry, path):
                return True
            self._damaged(entry, "its file has changed")
        except OSError as error:
            self._complain(error)
            self._damaged(entry, f"its file cannot be read: {error.strerror or error}")
        return False

    def used(self, entry: SavedConversation) -> None:
        """Record that an engine got it back, now."""
        with self._disk:
            with self._memory:
                current = self._index.get(entry.id)
                if current is None:
                    return
                current = msgspec.structs.replace(
                    current, used_at=self._clock(), restored=current.restored + 1
                )
                self._index.put(current)
            try:
                files.write(self._meta(entry.id), encoded(current))
            except OSError as error:
                self._complain(error)

    # dropping

    def drop(
        self, *, owner: str | None = None, model_id: str | None = None, entry_id: str | None = None
    ) -> Dropped:
        """Remove the entries to which all that is given applies: all of them if nothing is.

        Also removes what could not be removed earlier.
        """
        with self._disk:
            fitting = [
                one
                for one in self.entries()
                if owner in (None, one.owner)
                and model_id in (None, one.model_id)
                and entry_id in (None, one.id)
            ]
            self._drop(fitting, "removed")
            return self._remove_doomed()

    def make_room(self, wanted: int, where: Path | None = None) -> int:
        """Drop the least valuable so that so many bytes more are free; returns the bytes dropped.

        Nothing is dropped where all of them would not be enough, or if `where` is on another disk.
        """
        with self._disk:
            entries = self.entries()
            if wanted <= 0 or self.usage().bytes < wanted or not self._is_on_disk_of(where):
                return 0
            victims = least(entries, self._clock(), bytes_=wanted)
            self._drop(victims, "space")
            self._remove_doomed()
        return sum(one.size for one in victims)

    def _is_on_disk_of(self, where: Path | None) -> bool:
        try:
            return where is None or where.stat().st_dev == self._folder.stat().st_dev
        except OSError:
            return False

    def _damaged(self, entry: SavedConversation, why: str) -> None:
        _log.warning("the saved conversation %s is dropped: %s", entry.id, why)
        with self._disk:
            self._drop([entry], "damaged")
            self._remove_doomed()

    def _drop(self, entries: Iterable[SavedConversation], reason: str) -> None:
        with self._memory:
            for entry in entries:
                self._forget(entry, reason)

    def _forget(self, entry: SavedConversation, reason: str) -> None:
        """Out of the index; both locks or the memory's are held."""
        if (removed := self._index.remove(entry.id)) is None:
            return
        self._bytes -= removed.size
        self._doomed.append(removed)
        counted = self._dropped.get(reason, Dropped())
        self._dropped[reason] = Dropped(counted.count + 1, counted.bytes + removed.size)
        if reason != "replaced":
            self._gone[removed.id] = (removed, reason)
            self.sums.add(
                ConversationsDropped(
                    model_id=removed.model_id,
                    backend=removed.backend,
                    count=1,
                    tokens=removed.tokens,
                    bytes=removed.size,
                    seconds=removed.seconds,
                    reason=reason,
                )
            )
            if len(self._gone) > _REMEMBERED:
                self._gone.popitem(last=False)

    def _remove_doomed(self) -> Dropped:
        """Remove the files of what is out of the index; metadata first, so that a crash leaves no half."""
        with self._memory:
            doomed, self._doomed = self._doomed, []
        left = [
            one
            for one in doomed
            if not (self._unlink(self._meta(one.id)) and self._unlink(self._data(one.id)))
        ]
        with self._memory:
            self._doomed += left
        removed = [one for one in doomed if one not in left]
        return Dropped(len(removed), sum(one.size for one in removed), len(left))

    def _count(self, reason: str, size: int) -> None:
        with self._memory:
            counted = self._dropped.get(reason, Dropped())
            self._dropped[reason] = Dropped(counted.count + 1, counted.bytes + size)

    # the disk

    def _meta(self, entry_id: str) -> Path:
        return self._folder / f"{entry_id}.json"

    def _data(self, entry_id: str) -> Path:
        return self._folder / f"{entry_id}.bin"

    def _has_expired(self, entry: SavedConversation, now: float) -> bool:
        return now - entry.used_at > self.expiry

    def _note_written(self, entry: SavedConversation) -> None:
        with self._memory:
            self._written = self._written.plus(entry.size, entry.saved_at)
            data = msgspec.json.encode(self._written)
        files.write(self._folder / _WRITTEN, data)

    def _unlink(self, path: Path) -> bool:
        """False if it is still there."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: OSError) -> None:
        """Count a failure of the disk, and log the first in a minute."""
        now = time.monotonic()
        with self._memory:
            is_first = not self._failures or now - self._failed_at >= _QUIET
            self._failures += 1
            if is_first:
                self._failed_at = now
        reason = error.strerror or str(error)
        self.sums.add(ConversationsFailed(count=1, reason=reason))
        if is_first:
            _log.warning("saved conversations: %s", error)
