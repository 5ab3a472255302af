"""Conversations over an engine's life: saved before it ends and while it is idle, restored for a request.

What is saved is what reading it again would cost more than writing and reading the file, by speeds measured
here. Whatever fails costs only what could have been gained: the engine reads the prompt as it always does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from greenroom.actors.conversation_log import CONVERSATIONS
from greenroom.actors.gates import GateBoard
from greenroom.actors.kernel.core import Address, Command
from greenroom.actors.slot_choice import SlotChoice, SlotContent
from greenroom.actors.values import Engine
from greenroom.runner.backends.base import Backend
from greenroom.runner.conversations.chain import PromptChain, chain_of
from greenroom.runner.conversations.costs import IN_VAIN, LOSS_BOUND, Costs
from greenroom.runner.conversations.entry import SavedConversation
from greenroom.runner.conversations.index import shared
from greenroom.runner.conversations.restoration import EndReason, Restoration
from greenroom.runner.conversations.store import ConversationStore
from greenroom.runner.conversations.sums import RestoredTotals
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.slots import SlotFailure, SlotFiles, slot_files
from greenroom.runner.threads import NoThread, Thread

_log = logging.getLogger(__name__)

END_BOUND = 5.0
"""Seconds that the end of an engine waits at most for what it has read to be saved."""
_IDLE = 5.0
"""Seconds without a request after which an engine's slots are saved."""
_NOTED = 1.0
"""The same for a note of what they hold, which another daemon may need."""
_LOOK_EVERY = 1.0
_IDLE_BOUND = 30.0
_RESTORE_BOUND = 2.0
"""Seconds that a request waits for a restore, beside what reading the file takes."""
_SLACK = 8
"""Tokens by which the engine's counts of an answer and of a file may differ."""
_NOTES = "notes.json"
"""Beside the files of an engine's slots, and removed with them."""


FindFiles = Callable[[EngineFolder, Path, int], SlotFiles | None]
"""An engine's folder, its socket and its pid → its slots; None where they cannot be saved."""


class _Every:
    """All models, until it is known which."""

    def __contains__(self, model_id: object) -> bool:
        return True


class _Note(msgspec.Struct, frozen=True):
    """What a slot holds, without its text."""

    chain: tuple[bytes, ...]
    key: str
    owner: str
    kept: bool
    saved: bool


class ConversationSaver:
    """Of one data directory. Thread-safe; `before_end` and `restore` wait, within their bounds."""

    def __init__(
        self,
        home: Path,
        store: ConversationStore,
        gates: GateBoard,
        backends: Mapping[str, Backend],
        engine: Callable[[str], Engine | None],
        evicted: Callable[[str], tuple[str, str] | None],
        no_restore: Callable[[str, str], str | None],
        *,
        idle: float = _IDLE,
        clock: Callable[[], float] = time.monotonic,
        find_files: FindFiles = slot_files,
    ) -> None:
        """`engine` finds one by its id, `evicted` says why it was evicted and for which model, `no_restore`
        why a backend's installation cannot go on with what is saved. `clock` is the gates' own. `find_files`
        finds what saves and restores an engine's slots.
        """
        self.store = store
        self.saves = not store.off
        self.models: Container[str] = _Every()
        """Ids of models of which something may be on the disk: a request for any other need not look."""
        self._engines_dir = home / "engines"
        self._gates = gates
        self._backends = backends
        self._engine = engine
        self._evicted = evicted
        self._no_restore = no_restore
        self._idle = idle
        self._find_files = find_files
        self._clock = clock
        self.costs = Costs(self._engines_dir, backends, store)
        self._done: dict[tuple[str, int], int] = {}
        """Of a slot, the serial of the content that has been saved, or that is not worth it."""
        self._found: set[str] = set()
        """Engines of an earlier daemon that have a note."""
        self._noted: dict[str, dict[int, tuple[int, bool]]] = {}
        """Of an engine, the contents and whether they were saved, as they were last noted in its folder."""
        self._slot_files: dict[str, SlotFiles] = {}
        """By engine: each remembers the files that it could not remove yet."""
        self._cannot = set[str]()
        """Engines that cannot save slots."""
        self._restored_by: dict[str, RestoredTotals] = {}
        self.restored = RestoredTotals()
        """Since the start."""
        self._ahead = threading.Lock()
        """Held while a file is checked that may be needed."""
        self._saving = threading.Lock()
        self._over = threading.Event()
        self._thread: Thread | None = None

    # its life

    def start(self, tell: Callable[[Address, Command[Any]], None] = lambda *_: None) -> None:
        """Begin to look for idle engines; the store is opened meanwhile. `tell` reaches an actor."""
        self.store.sums.send = lambda one: tell(CONVERSATIONS, one)
        if not self.saves:
            return
        files = list(self._engines_dir.glob("*/slots/*"))
        self._found = {path.parent.parent.name for path in files if path.name == _NOTES}
        for path in files:
            if path.name != _NOTES:  # a daemon that was killed was saving or restoring it
                with contextlib.suppress(OSError):
                    path.unlink()
        self._gates.on_open = self._opened if self._found else None
        thread = Thread(self._watch, "conversations")
        try:
            thread.start()
        except NoThread as error:
            _log.warning("what engines have read is saved only when they end: %s", error)
        else:
            self._thread = thread

    def close(self) -> None:
        """End, within a bound, and leave a note of what running engines hold."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(END_BOUND)
            self.store.sums.flush_all()
            for engine_id in self._gates.readings():
                self._note(engine_id)

    def _opened(self, engine_id: str) -> None:
        """An engine takes requests. If an earlier daemon started it, learn what its slots hold."""
        if engine_id not in self._found:
            return
        self._found.remove(engine_id)
        try:
            notes = msgspec.json.decode(self._notes(engine_id).read_bytes(), type=dict[int, _Note])
        except (OSError, msgspec.MsgspecError) as error:
            _log.info("engine %s: what its slots hold is not known: %s", engine_id, error)
            return
        self._noted[engine_id] = {}
        learnt = {
            number: SlotContent(one.chain, one.key, one.owner, one.kept, hashed=True)
            for number, one in notes.items()
        }
        self._gates.learn(engine_id, learnt)
        for number, content in self._gates.contents(engine_id).items():
            if content.hashed and notes[number].saved:
                self._done[engine_id, number] = content.serial

    # saving

    def before_end(self, engine_id: str) -> None:
        """Save what the slots hold, before the engine is stopped. Returns within `END_BOUND`."""
        engine = self._engine(engine_id) if self.saves else None
        if engine is None or engine.failure is not None or engine.fault:
            return
        until = time.monotonic() + END_BOUND
        if not self._saving.acquire(timeout=END_BOUND):
            return
        try:
            why = EndReason(*(self._evicted(engine_id) or ()))
            if why.reason == "idle":
                why = EndReason("keep_alive")  # `idle` is what was saved while it ran
            contents = self._gates.contents(engine_id).items()
            # The largest part of the time saved comes first: the bound may end it.
            for number, content in sorted(contents, key=lambda one: len(one[1].parts), reverse=True):
                if (left := until - time.monotonic()) > 0:
                    self._save(engine, number, content, why, within=left)
        finally:
            self._saving.release()
            self.store.sums.flush_all(engine_id)

    def before_loss(self, choice: SlotChoice, request_id: str) -> None:
        """Save what a request's slot has held, before the request is sent; returns within `LOSS_BOUND`.

        Only of an engine that has no other request, and only what has gone on after its first answer: single
        questions rarely come back.
        """
        lost, engine = choice.lost, self._engine(choice.engine_id)
        if lost is None or engine is None or not _has_gone_on(lost):
            return
        until = time.monotonic() + LOSS_BOUND
        if self._gates.inside(choice.engine_id) != {request_id} or not self._saving.acquire(
            timeout=LOSS_BOUND
        ):
            return
        try:
            if (left := until - time.monotonic()) > 0:
                why = EndReason("overwritten")
                self._save(engine, choice.number, lost, why, within=left, stays=choice.held, waits=request_id)
        finally:
            self._saving.release()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY):
            if not self.store.opened.is_set():
                continue
            try:
                self.models = frozenset(one.model_id for one in self.store.entries())
                self._look()
                if self.store.sums.is_waiting:
                    self.store.sums.flush(time.monotonic())
            except Exception:  # noqa: BLE001 - it must not end for one engine
                _log.exception("idle engines could not be looked at")

    def _look(self) -> None:
        now, readings = self._clock(), self._gates.readings()
        for engine_id, reading in readings.items():
            if reading.inside or now - reading.idle_since < _NOTED:
                continue
            if now - reading.idle_since >= self._idle and reading.open:
                self._save_idle(engine_id)
            self._note(engine_id)
        for known in [one for one in self._noted if one not in readings]:
            del self._noted[known]
        self._done = {key: serial for key, serial in self._done.items() if key[0] in readings}
        for known in [one for one in list(self._slot_files) if one not in readings]:
            self._slot_files.pop(known, None)
        self._cannot &= readings.keys()
        for known in [one for one in list(self._restored_by) if one not in readings]:
            self._restored_by.pop(known, None)

    def _save_idle(self, engine_id: str) -> None:
        engine = self._engine(engine_id)
        for number, content in self._gates.contents(engine_id).items():
            reading = self._gates.readings().get(engine_id)
            if engine is None or reading is None or reading.inside or self._over.is_set():
                return
            with self._saving:
                self._save(engine, number, content, EndReason("idle"), within=_IDLE_BOUND)

    def _save(
        self,
        engine: Engine,
        number: int,
        content: SlotContent,
        why: EndReason,
        *,
        within: float,
        stays: int = 0,
        waits: str = "",
    ) -> SavedConversation | None:
        """Save a slot if that pays, and if nothing else is in it meanwhile.

        `stays`: parts that the slot will hold in any case. `waits`: the request that has the slot and waits.
        """
        spec, key = engine.spec, (engine.spec.engine_id, number)
        files = self._files(engine)
        is_done = self._done.get(key) == content.serial
        if files is None or is_done or not content.kept or not content.owner:
            return None
        compat = self.costs.compat(spec)
        speeds = self.costs.of(compat)
        chain = PromptChain(_hashes(content), ()) if content.hashed else chain_of(content.parts)
        if speeds.are_in_vain or not self.costs.pays(spec, chain, content.owner, why.reason, stays):
            self._done[key] = content.serial
            return None
        began = time.monotonic()
        found = files.save(number, f"s{content.serial}", within)
        if isinstance(found, SlotFailure):
            if found.kind == "unsupported":
                self._cannot.add(spec.engine_id)
            _log.info("engine %s: slot %d was not saved: %s", spec.engine_id, number, found.reason)
            self._done[key] = content.serial
            return None
        self.costs.learn_disk(found.size, time.monotonic() - began)
        if not self._is_undisturbed(spec.engine_id, number, content, waits):
            found.path.unlink(missing_ok=True)  # it may hold another conversation by now
            return None
        if not _fits(found.tokens, content):
            # Such as after a check of the engine's health, which reads a prompt in any slot.
            _log.info("engine %s: slot %d holds something else by now", spec.engine_id, number)
            found.path.unlink(missing_ok=True)
            self._gates.forget_content(spec.engine_id, content.serial)
            return None
        speeds.per_token = found.size / found.tokens
        if chain.ends:
            speeds.characters = max(1.0, chain.ends[-1] / found.tokens)
        entry = self.store.put(
            found.path,
            compat=compat,
            owner=content.owner,
            model_id=spec.model_id,
            model=spec.model_ref,
            backend=spec.backend,
            chain=chain.hashes,
            ends=chain.ends,
            tokens=found.tokens,
            seconds=found.tokens / self.costs.reads(spec, speeds),
            reason=why.reason,
            cause=why.cause,
        )
        self._done[key] = content.serial
        self.models = _Every()
        if entry is not None:
            self.store.sums.add(
                "saved",
                spec.model_id,
                spec.backend,
                tokens=entry.tokens,
                seconds=entry.seconds,
                engine=spec.engine_id,
                size=entry.size,
                reason=why.reason,
            )
        return entry

    def _is_undisturbed(self, engine_id: str, number: int, content: SlotContent, waits: str) -> bool:
        """Whether no other request can have used the slot."""
        if waits:
            taken = self._gates.slots(engine_id)
            return any((one.number, one.request_id) == (number, waits) for one in taken)
        now = self._gates.contents(engine_id).get(number)
        return now is not None and now.serial == content.serial

    def _note(self, engine_id: str) -> None:
        """Leave word in the engine's folder of what its slots hold."""
        contents = self._gates.contents(engine_id)
        is_saved = {
            number: (one.serial, self._done.get((engine_id, number)) == one.serial)
            for number, one in contents.items()
        }
        if is_saved == self._noted.get(engine_id, {}):
            return
        notes = {
            number: _Note(
                _hashes(one) if one.hashed else chain_of(one.parts).hashes,
                one.key,
                one.owner,
                one.kept,
                saved=is_saved[number][1],
            )
            for number, one in contents.items()
        }
        path = self._notes(engine_id)
        try:
            beside = path.with_suffix(".new")
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(notes))
            beside.rename(path)
        except OSError as error:
            _log.debug("engine %s: what its slots hold was not noted: %s", engine_id, error)
        self._noted[engine_id] = is_saved

    # restoring

    def look_ahead(self, model_id: str, parts: Sequence[object], owner: str) -> None:
        """Begin to check the file that a waiting request may need; at once, and for one request at a time.

        Which engine it gets is not known yet: that may need none, or another one.
        """
        if not self.saves or not self._ahead.acquire(blocking=False):
            return

        def check() -> None:
            try:
                mine = [one for one in self.store.entries() if (one.model_id, one.owner) == (model_id, owner)]
                if mine:
                    hashes = chain_of(parts).hashes
                    best = max(mine, key=lambda one: shared(one.chain, hashes))
                    if shared(best.chain, hashes) > 1:  # most prompts have the first part in common
                        self.store.check(best)
            finally:
                self._ahead.release()

        try:
            Thread(check, "conversations").start()
        except NoThread:
            self._ahead.release()  # it is checked when it is needed

    def restore(self, choice: SlotChoice, parts: Sequence[object], owner: str) -> Restoration | None:
        """Give a slot what of this prompt is on the disk. None if that is not worth telling of."""
        engine = self._engine(choice.engine_id) if self.saves else None
        files = self._files(engine) if engine is not None else None
        if engine is None or files is None:
            return None
        began = time.monotonic()
        self.store.opened.wait(_RESTORE_BOUND)
        compat, chain = self.costs.compat(engine.spec), chain_of(parts)
        speeds = self.costs.of(compat)
        speeds.kind = (engine.spec.model_id, engine.spec.installation_id)
        if speeds.are_in_vain:
            return Restoration(why_not=IN_VAIN)
        found = self.store.best(compat, owner, chain.hashes)
        if found is None or found[1] <= choice.held:
            why = self.store.why_not(compat, owner, chain.hashes, model_id=engine.spec.model_id)
            return Restoration(why_not=why) if why else None
        entry, length = found
        tokens = entry.tokens_in(length)
        seconds = (tokens - entry.tokens_in(choice.held)) * entry.seconds / entry.tokens
        if seconds < entry.size / self.costs.disk:
            return Restoration(why_not="reading it again takes less time than the file")
        name = f"r{choice.serial}"
        if not self.store.lend(entry, files.path(name)):
            return Restoration(why_not="its file cannot be used")
        restored = files.restore(choice.number, name, _RESTORE_BOUND + 2 * entry.size / self.costs.disk)
        if isinstance(restored, SlotFailure):
            _log.info("engine %s: %s was not restored: %s", choice.engine_id, entry.id, restored.reason)
            return Restoration(why_not=restored.reason)
        took = time.monotonic() - began
        self.costs.learn_disk(entry.size, took)
        self.store.used(entry)
        self.store.sums.add(
            "restored",
            engine.spec.model_id,
            engine.spec.backend,
            tokens=tokens,
            seconds=seconds,
            engine=choice.engine_id,
        )
        self.restored = self.restored.plus(tokens, seconds)
        self._restored_by[choice.engine_id] = self.restored_by(choice.engine_id).plus(tokens, seconds)
        return Restoration(
            tokens=min(tokens, restored.tokens),
            seconds=seconds,
            took=took,
            saved_at=entry.saved_at,
            reason=entry.reason,
            cause=entry.cause,
            compat=compat,
            whole=length == len(entry.chain),
        )

    def judge(self, restoration: Restoration, cached: int | None) -> None:
        """How many tokens the engine had of a prompt after a restore, by its own account."""
        if cached is None or not restoration.tokens or not restoration.whole:
            return
        speeds = self.costs.of(restoration.compat)
        if speeds.has_become_vain(worked=cached >= restoration.tokens // 2):
            _log.warning("an engine does not go on from what it restores, so nothing is restored for it")

    # what is known

    def in_vain(self, model_id: str, installation_id: str) -> str:
        """Why no more is saved of a model's engines since the start; empty if they go on, as far as known."""
        return self.costs.in_vain(model_id, installation_id)

    def restored_by(self, engine_id: str) -> RestoredTotals:
        """What a running engine has been given back since the start."""
        return self._restored_by.get(engine_id, RestoredTotals())

    def _files(self, engine: Engine) -> SlotFiles | None:
        backend = self._backends.get(engine.spec.backend)
        if backend is None or backend.conversations != "slots" or not engine.endpoint.startswith("/"):
            return None
        spec = engine.spec
        if spec.engine_id in self._cannot or self._no_restore(spec.backend, spec.installation_id):
            return None
        known = self._slot_files.get(engine.spec.engine_id)
        if known is None:
            folder = EngineFolder(self._engines_dir / engine.spec.engine_id)
            known = self._find_files(folder, Path(engine.endpoint), engine.pid)
            if known is not None:
                self._slot_files[engine.spec.engine_id] = known
        return known

    def _notes(self, engine_id: str) -> Path:
        return EngineFolder(self._engines_dir / engine_id).slots / _NOTES


def _has_gone_on(content: SlotContent) -> bool:
    """Whether a conversation has had an answer before its last prompt, as far as its parts tell."""
    return any(isinstance(part, Mapping) and part.get("role") == "assistant" for part in content.parts)


def _fits(tokens: int, content: SlotContent) -> bool:
    """Whether a slot with so many tokens can hold a prompt and its answer, by the engine's counts of them."""
    read, written = content.counted()
    if read is None:
        return True
    return read - _SLACK <= tokens and (written is None or tokens <= read + written + _SLACK)


def _hashes(content: SlotContent) -> tuple[bytes, ...]:
    return tuple(part for part in content.parts if isinstance(part, bytes))
