"""Restores what has been read of a request's prompt, from a file on the disk or from another slot.

A failure costs only the time that could have been saved: the engine then reads the prompt as usual.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from greenroom.actors.conversation_log import ConversationsRestored
from greenroom.actors.gates import GateBoard
from greenroom.actors.slot_choice import SlotChoice, SlotSource
from greenroom.actors.values import Engine
from greenroom.runner.conversations.costs import AT_ONCE, IN_VAIN, Costs, EngineSpeeds
from greenroom.runner.conversations.entry import SavedConversation
from greenroom.runner.conversations.prompt_hashes import chain_of
from greenroom.runner.conversations.restoration import Restoration
from greenroom.runner.conversations.saveable import SaveableEngines
from greenroom.runner.conversations.store import ConversationStore
from greenroom.runner.conversations.sums import RestoredTotals
from greenroom.runner.engines.slots import Saved, SlotFailure, SlotFiles
from greenroom.runner.threads import NoThread, TookTooLong, bounded

_log = logging.getLogger(__name__)

_RESTORE_BOUND = 2.0
"""Seconds that a request waits for a restore, beside what reading the file takes."""
_COPY_BOUNDS = 1.0, 5.0
"""Seconds that a request waits at least and at most for another slot to be saved, which happens between two
batches of another prompt."""
_COPY_SHARE = 0.25
"""Between them, of the time that reading would take."""
_COPY_PAYS = 4.0
"""How many times as long as the file reading again must take: other answers of the engine wait for it."""


class ConversationRestorer:
    """Of one data directory. Thread-safe; `restore` waits, within its bounds."""

    def __init__(
        self,
        store: ConversationStore,
        gates: GateBoard,
        engines: SaveableEngines,
        costs: Costs,
        *,
        works: bool = True,
    ) -> None:
        """Unless it `works`, it restores nothing."""
        self._store = store
        self._gates = gates
        self._engines = engines
        self._costs = costs
        self._works = works
        self.totals = RestoredTotals()
        """Since the start."""

    def is_new(self, choice: SlotChoice, parts: Sequence[Any], owner: str) -> bool:
        """Whether nothing is known that begins as a prompt does, at once; False also if it is not sure."""
        if choice.source is not None or not self._store.opened.is_set():
            return False
        # Without tools most prompts have the first part in common.
        beginning = parts[: 1 if parts and parts[0] else 2]
        return not beginning or not self._store.knows(owner, chain_of(beginning).hashes[-1])

    def restore(self, choice: SlotChoice, parts: Sequence[object], owner: str) -> Restoration | None:
        """Give a slot what another slot or the disk has of a prompt. None if that is not worth telling of."""
        engine = self._engines.get(choice.engine_id) if self._works else None
        files = self._engines.files(engine) if engine is not None else None
        if engine is None or files is None:
            return None
        self._store.opened.wait(_RESTORE_BOUND)
        compat, chain = self._costs.compat(engine.spec), chain_of(parts)
        speeds = self._costs.of(compat)
        speeds.kind = (engine.spec.model_id, engine.spec.installation_id)
        if speeds.wholes.are_in_vain:
            return Restoration(why_not=IN_VAIN)
        found = self._store.best(compat, owner, chain.hashes, whole=speeds.parts.are_in_vain)
        source = choice.source
        if source is not None and source.content.owner == owner and source.held > (found[1] if found else 0):
            copied = self._copy(engine, files, choice, source, speeds)
            if copied is not None:
                return self._told(engine, copied)
        if found is None or found[1] <= choice.held:
            why = self._store.why_not(compat, owner, chain.hashes, model_id=engine.spec.model_id)
            return Restoration(why_not=why) if why else None
        return self._told(engine, self._from_disk(files, choice, *found))

    def _from_disk(
        self, files: SlotFiles, choice: SlotChoice, entry: SavedConversation, length: int
    ) -> Restoration:
        """Give a slot a file, of which so many parts are the prompt's."""
        began = time.monotonic()
        tokens = entry.tokens_in(length)
        seconds = (tokens - entry.tokens_in(choice.held)) * entry.seconds / entry.tokens
        if seconds < entry.size / self._costs.disk:
            return Restoration(why_not="reading it again takes less time than the file")
        if why := self._store.fails():
            return Restoration(why_not=why)
        name = f"r{choice.serial}"
        path = files.path(name)
        try:
            is_lent = bounded(
                lambda: self._store.lend(entry, path),
                name="conversations",
                seconds=seconds,
                drop=lambda _: path.unlink(missing_ok=True),
            )
        except TookTooLong:
            self._costs.learn_disk(entry.size, 2 * seconds)
            self._store.is_slow()
            return Restoration(why_not="the disk takes longer than reading it again")
        except NoThread as error:
            return Restoration(why_not=str(error))
        if not is_lent:
            return Restoration(why_not="its file cannot be used")
        restored = files.restore(choice.number, name, _RESTORE_BOUND + 2 * entry.size / self._costs.disk)
        if isinstance(restored, SlotFailure):
            _log.info("engine %s: %s was not restored: %s", choice.engine_id, entry.id, restored.reason)
            return Restoration(why_not=restored.reason)
        took = time.monotonic() - began
        self._costs.learn_disk(entry.size, took)
        self._store.used(entry)
        return Restoration(
            tokens=min(tokens, restored.tokens),
            seconds=seconds,
            took=took,
            saved_at=entry.saved_at,
            reason=entry.reason,
            cause=entry.cause,
            compat=entry.compat,
            whole=length == len(entry.chain),
        )

    def _copy(
        self, engine: Engine, files: SlotFiles, choice: SlotChoice, source: SlotSource, speeds: EngineSpeeds
    ) -> Restoration | None:
        """Give a slot what another one has read. None if that does not pay, or cannot be done."""
        spec, content = engine.spec, source.content
        if speeds.parts.are_in_vain or self._engines.finds_any(spec) or not content.kept:
            return None
        read, written = content.counted()
        ends = () if content.hashed else chain_of(content.parts).ends
        if read is None or (ends and not ends[-1]):
            return None  # it may not have read all of that

        def tokens_in(parts: int) -> int:
            share = ends[parts - 1] / ends[-1] if ends and parts else parts / len(content.parts)
            return int((read or 0) * share)

        tokens = tokens_in(source.held)
        gained = tokens - tokens_in(choice.held)
        seconds = gained / self._costs.reads(spec, speeds)
        size = int((read + (written or 0)) * speeds.per_token)
        if seconds < AT_ONCE or seconds < _COPY_PAYS * 2 * size / self._costs.disk:
            return None
        if self._store.may_write(size):
            return None
        began, name = time.monotonic(), f"r{choice.serial}"
        least, most = _COPY_BOUNDS
        found = files.save(source.number, name, max(least, min(most, _COPY_SHARE * seconds)))
        if not isinstance(found, Saved):
            return None
        now = self._gates.contents(spec.engine_id).get(source.number)
        if now is None or now.serial != content.serial:
            found.path.unlink(missing_ok=True)  # it may hold another conversation by now
            return None
        restored = files.restore(choice.number, name, _RESTORE_BOUND)
        if isinstance(restored, SlotFailure):
            return None
        took = time.monotonic() - began
        self._costs.learn_disk(found.size, took / 2)
        speeds.per_token = found.size / found.tokens
        return Restoration(
            tokens=min(tokens, restored.tokens),
            seconds=seconds,
            took=took,
            saved_at=time.time(),
            reason="another_slot",
            compat=self._costs.compat(spec),
            whole=source.held == len(content.parts),
        )

    def _told(self, engine: Engine, restoration: Restoration) -> Restoration:
        """The same, counted."""
        if tokens := restoration.tokens:
            spec, seconds = engine.spec, restoration.seconds
            self._store.sums.add(
                ConversationsRestored(
                    model_id=spec.model_id,
                    backend=spec.backend,
                    engine=spec.engine_id,
                    count=1,
                    tokens=tokens,
                    seconds=seconds,
                )
            )
            self.totals = self.totals.plus(tokens, seconds)
            self._engines.restored(spec.engine_id, tokens, seconds)
        return restoration

    def judge(self, restoration: Restoration, cached: int | None) -> None:
        """How many tokens the engine had of a prompt after a restore, by its own account."""
        if cached is None or not restoration.tokens:
            return
        speeds = self._costs.of(restoration.compat)
        trials = speeds.wholes if restoration.whole else speeds.parts
        if trials.have_become_vain(worked=cached >= restoration.tokens // 2):
            of = "what it restores" if restoration.whole else "a part of what it restores"
            _log.warning("an engine does not continue from %s, so that is no longer restored", of)
