"""Saves what engines have read: before they end, while they are idle, and before another prompt takes a slot.

Something is saved if reading it again would take longer than writing and reading the file, at the speeds
measured on this machine. A failure costs only the time that could have been saved: the engine then reads the
prompt as usual.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from greenroom.actors.conversation_log import CONVERSATIONS, ConversationsSaved
from greenroom.actors.gates import GateBoard
from greenroom.actors.kernel.core import Address, Command
from greenroom.actors.reports import Happened
from greenroom.actors.slot_choice import SlotChoice, SlotContent
from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.base import Backend
from greenroom.runner.conversations.costs import CHARACTERS, LOSS_BOUND, Costs, EngineSpeeds
from greenroom.runner.conversations.index import shared
from greenroom.runner.conversations.prompt_hashes import PromptChain, chain_of
from greenroom.runner.conversations.restoration import EndReason
from greenroom.runner.conversations.restorer import ConversationRestorer
from greenroom.runner.conversations.saveable import FindFiles, SaveableEngines
from greenroom.runner.conversations.slot_notes import SlotNotes, hashes_of
from greenroom.runner.conversations.store import ConversationStore
from greenroom.runner.engines.slots import Saved, SlotFailure, slot_files
from greenroom.runner.threads import NoThread, Thread, TookTooLong, bounded

_log = logging.getLogger(__name__)

END_BOUND = 5.0
"""Seconds that the end of an engine waits at most for what it has read to be saved."""
_IDLE = 5.0
"""Seconds without a request after which an engine's slots are saved."""
_NOTED = 1.0
"""The same for a note of what they hold, which another daemon may need."""
_LOOK_EVERY = 1.0
_IDLE_BOUND = 30.0
_SLACK = 8
"""Tokens by which the engine's counts of an answer and of a file may differ."""
_SURELY = 0.9
"""Of the bytes that a file's tokens stand for by what was measured, how many they surely stand for."""
_UNSURELY = 0.5
"""The same before anything was measured."""


class _Every:
    """All models, until it is known which."""

    def __contains__(self, model_id: object) -> bool:
        return True


class ConversationSaver:
    """Of one data directory. Thread-safe; `before_end` and `before_loss` wait, within their bounds."""

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
        """`evicted` says why an engine was evicted and for which model; for the others see `SaveableEngines`.
        `clock` is the gates' own.
        """
        self.store = store
        self.saves = not store.off
        self.models: Container[str] = _Every()
        """Ids of models of which something may be on the disk: a request for any other need not look."""
        self._gates = gates
        self.costs = Costs(home / "engines", backends, store)
        self.engines = SaveableEngines(home / "engines", backends, engine, no_restore, find_files)
        self.restorer = ConversationRestorer(store, gates, self.engines, self.costs, works=self.saves)
        self._notes = SlotNotes(home / "engines", gates)
        self._evicted = evicted
        self._idle = idle
        self._clock = clock
        self._done: dict[tuple[str, int], int] = {}
        """Of a slot, the serial of the content that has been saved, or that is not worth it."""
        self._saving = threading.Lock()
        self._ahead = threading.Lock()
        """Held while a file is checked that may be needed."""
        self._over = threading.Event()
        self._thread: Thread | None = None

    # its life

    def start(self, tell: Callable[[Address, Command[Any]], None] = lambda *_: None) -> None:
        """Begin to look for idle engines; the store is opened meanwhile. `tell` reaches an actor."""
        self.store.sums.send = lambda one: tell(CONVERSATIONS, Happened(event=one))
        if not self.saves:
            return
        self._gates.on_open = self._opened if self._notes.find() else None
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
        if self._thread is None:
            return
        until = time.monotonic() + END_BOUND
        self._thread.join(END_BOUND)
        if self._saving.acquire(timeout=max(0.0, until - time.monotonic())):  # of an engine that has ended
            self._saving.release()
        self.store.sums.flush_all()
        for engine_id in self._gates.readings():
            self._notes.write(engine_id, self._is_done)

    def _opened(self, engine_id: str) -> None:
        """An engine takes requests. If an earlier daemon started it, learn what its slots hold."""
        for number, serial in self._notes.take(engine_id).items():
            self._done[engine_id, number] = serial

    def _is_done(self, engine_id: str, number: int, content: SlotContent) -> bool:
        return self._done.get((engine_id, number)) == content.serial

    def reads_at_once(self, engine_id: str, size: int) -> bool:
        """Whether an engine reads so many bytes of a request so fast that nothing need be kept."""
        return self.costs.reads_at_once(engine_id, size, self.engines.get)

    # when

    def before_end(self, engine_id: str) -> None:
        """Save what the slots hold, before the engine is stopped. Returns within `END_BOUND`: what the engine
        has written by then is kept, the rest not.
        """
        engine = self.engines.get(engine_id) if self.saves else None
        if engine is None or engine.failure is not None or engine.fault:
            return
        self._within(END_BOUND, lambda until: self._save_all(engine, until), f"engine {engine_id}")
        self.store.sums.flush_all(engine_id)

    def _save_all(self, engine: Engine, until: float) -> None:
        engine_id = engine.spec.engine_id
        why = EndReason(*(self._evicted(engine_id) or ()))
        if why.reason == "idle":
            why = EndReason("keep_alive")  # `idle` is what was saved while it ran
        contents = self._gates.contents(engine_id).items()
        # The largest part of the time saved comes first: the bound may end it.
        for number, content in sorted(contents, key=lambda one: len(one[1].parts), reverse=True):
            self._save(engine, number, content, why, until=until)

    def loses(self, choice: SlotChoice) -> bool:
        """Whether a request's slot has held what may be worth saving; at once."""
        lost = choice.lost
        return self.saves and lost is not None and bool(lost.owner) and _has_gone_on(lost)

    def before_loss(self, choice: SlotChoice, request_id: str) -> None:
        """Save what a request's slot has held, before the request is sent; returns within `LOSS_BOUND`.

        Only of an engine that has no other request, and only what has gone on after its first answer: single
        questions rarely come back.
        """
        lost, engine = choice.lost, self.engines.get(choice.engine_id)
        if lost is None or engine is None or not _has_gone_on(lost):
            return
        if self._gates.inside(choice.engine_id) != {request_id}:
            return
        why = EndReason("overwritten")
        self._within(
            LOSS_BOUND,
            lambda until: self._save(
                engine, choice.number, lost, why, until=until, stays=choice.held, waits=request_id
            ),
            f"request {request_id}",
        )

    def _within(self, seconds: float, work: Callable[[float], object], who: str) -> None:
        """Save something while someone waits, so many seconds at most; `work` gets the time of their end.

        A file that the engine has written by then is still checked and kept, on a thread of its own.
        """
        until = time.monotonic() + seconds

        def save() -> None:
            if self._saving.acquire(timeout=seconds):
                try:
                    work(until)
                finally:
                    self._saving.release()

        try:
            bounded(save, name="conversations", seconds=seconds)
        except (TookTooLong, NoThread) as error:
            reason = str(error) or f"it took longer than {seconds:g} s"
            _log.info("%s did not wait until all was saved: %s", who, reason)

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
            self._notes.write(engine_id, self._is_done)
        self._done = {key: serial for key, serial in self._done.items() if key[0] in readings}
        for known in (self._notes, self.engines, self.costs):
            known.keep(readings.keys())

    def _save_idle(self, engine_id: str) -> None:
        engine = self.engines.get(engine_id)
        for number, content in self._gates.contents(engine_id).items():
            reading = self._gates.readings().get(engine_id)
            if engine is None or reading is None or reading.inside or self._over.is_set():
                return
            with self._saving:
                until = time.monotonic() + _IDLE_BOUND
                self._save(engine, number, content, EndReason("idle"), until=until)

    # how

    def _save(
        self,
        engine: Engine,
        number: int,
        content: SlotContent,
        why: EndReason,
        *,
        until: float,
        stays: int = 0,
        waits: str = "",
    ) -> None:
        """Save a slot if that pays, and if nothing else is in it meanwhile.

        `until`: when the engine must have written it. `stays`: parts that the slot will hold in any case.
        `waits`: the request that has the slot and waits.
        """
        spec, key = engine.spec, (engine.spec.engine_id, number)
        files, within = self.engines.files(engine), until - time.monotonic()
        if (
            files is None
            or within <= 0
            or self._is_done(*key, content)
            or not (content.kept and content.owner)
        ):
            return
        compat = self.costs.compat(spec)
        speeds = self.costs.of(compat)
        chain = PromptChain(hashes_of(content), ()) if content.hashed else chain_of(content.parts)
        if speeds.wholes.are_in_vain or not self.costs.pays(spec, chain, content.owner, why.reason, stays):
            self._done[key] = content.serial
            return
        began, name = time.monotonic(), f"s{content.serial}"
        found = files.save(number, name, within)
        took = time.monotonic() - began
        if isinstance(found, SlotFailure):
            if found.kind == "unsupported":
                self.engines.cannot(spec.engine_id)
            if found.kind == "timeout":
                self.costs.learn_disk(files.size(name), took)
            _log.info("engine %s: slot %d was not saved: %s", spec.engine_id, number, found.reason)
            self._done[key] = content.serial
            return
        self.costs.learn_disk(found.size, took)
        # Else it may hold another conversation by now.
        is_late = bool(waits) and time.monotonic() >= until
        if is_late or not self._is_undisturbed(spec.engine_id, number, content, waits):
            found.path.unlink(missing_ok=True)
            return
        chain = self._read(spec, number, content, found, chain, speeds)
        self._done[key] = content.serial
        if not chain.hashes:
            found.path.unlink(missing_ok=True)
            return
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
        self.models = _Every()
        if entry is not None:
            self.store.sums.add(
                ConversationsSaved(
                    model_id=spec.model_id,
                    backend=spec.backend,
                    engine=spec.engine_id,
                    count=1,
                    tokens=entry.tokens,
                    bytes=entry.size,
                    seconds=entry.seconds,
                    reason=why.reason,
                )
            )

    def _read(
        self,
        spec: EngineSpec,
        number: int,
        content: SlotContent,
        found: Saved,
        chain: PromptChain,
        speeds: EngineSpeeds,
    ) -> PromptChain:
        """What of a prompt is in a file; of one that was not read to its end, what surely is."""
        read, written = content.counted()
        if read is None:
            # Its client left, or the engine does not count.
            share = _SURELY * speeds.characters if speeds.per_token else _UNSURELY * CHARACTERS
            parts = sum(end <= found.tokens * share for end in chain.ends)
            known = self.store.best(self.costs.compat(spec), content.owner, chain.hashes) or (None, 1)
            return PromptChain(chain.hashes[:parts], chain.ends[:parts]) if parts > known[1] else _NOTHING
        if (
            not read - _SLACK
            <= found.tokens
            <= read + (found.tokens if written is None else written) + _SLACK
        ):
            # Such as after a check of the engine's health, which reads a prompt in any slot.
            _log.info("engine %s: slot %d holds something else by now", spec.engine_id, number)
            self._gates.forget_content(spec.engine_id, content.serial)
            return _NOTHING
        speeds.per_token = found.size / found.tokens
        if chain.ends:
            speeds.characters = max(1.0, chain.ends[-1] / found.tokens)
        return chain

    def _is_undisturbed(self, engine_id: str, number: int, content: SlotContent, waits: str) -> bool:
        """Whether no other request can have used the slot."""
        if waits:
            taken = self._gates.slots(engine_id)
            return any((one.number, one.request_id) == (number, waits) for one in taken)
        now = self._gates.contents(engine_id).get(number)
        return now is not None and now.serial == content.serial


_NOTHING = PromptChain((), ())


def _has_gone_on(content: SlotContent) -> bool:
    """Whether a conversation has had an answer before its last prompt, as far as its parts tell."""
    return any(isinstance(part, Mapping) and part.get("role") == "assistant" for part in content.parts)
