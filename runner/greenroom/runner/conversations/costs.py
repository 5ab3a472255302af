"""The cost of saving, restoring and reading again, from speeds measured on this machine."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.base import Backend
from greenroom.runner.conversations.prompt_hashes import PromptChain
from greenroom.runner.conversations.store import ConversationStore
from greenroom.runner.engines.folders import EngineFolder

_log = logging.getLogger(__name__)

LOSS_BOUND = 1.0
"""Seconds that a request waits at most for what its slot held before to be saved."""
AT_ONCE = 0.25
"""Seconds of reading that nothing is kept for."""
_GUESSED = 64
"""Tokens of what is new, where only that is known."""
CHARACTERS = 4.0
"""Bytes of JSON that are a token, until measured."""
_READS = 300.0
"""Tokens a second that an engine reads, until measured."""
_DISK = 200e6
"""Bytes a second that the disk writes and reads, until measured."""
_TELLING = 1_000_000
"""Bytes from which a file shows the disk's speed."""
_PAYS = {"idle": 4.0, "overwritten": 4.0}
"""How many times as long as the file reading again must take: an idle engine may never end, and a
conversation that another has followed may not go on."""
_REPEATED = 60.0
"""Seconds between two warnings that something is not saved."""
_FUTILE = 3
"""Restores in a row without effect after which no more are tried with such engines."""
IN_VAIN = "the engine does not continue from what it restores"


class Trials:
    """Whether engines of one kind continue from what they restore."""

    def __init__(self) -> None:
        self._futile = 0
        self._has_worked = False

    @property
    def are_in_vain(self) -> bool:
        return self._futile >= _FUTILE and not self._has_worked

    def have_become_vain(self, *, worked: bool) -> bool:
        """Note whether an engine has gone on from what it restored; True when no more are to be tried."""
        self._futile = 0 if worked else self._futile + 1
        self._has_worked = self._has_worked or worked
        return self._futile == _FUTILE and self.are_in_vain


class EngineSpeeds:
    """Of one kind of engine, and of its files."""

    def __init__(self) -> None:
        self.reads = 0.0
        """Tokens a second; 0 until measured."""
        self.per_token = 0.0
        """Bytes of a file for each token; 0 until measured."""
        self.characters = CHARACTERS
        self.kind: tuple[str, str] = ("", "")
        """Id of the model, and of the installation."""
        self.wholes = Trials()
        """Restores of all that a file holds."""
        self.parts = Trials()
        """Restores of its beginning, which recurrent models and sliding windows cannot go back to."""


class Costs:
    """Of one data directory."""

    def __init__(self, engines_dir: Path, backends: Mapping[str, Backend], store: ConversationStore) -> None:
        self._engines_dir = engines_dir
        self._backends = backends
        self._store = store
        self._speeds: dict[str, EngineSpeeds] = {}
        self._of_engines: dict[str, EngineSpeeds] = {}
        self._refused_at = -_REPEATED
        self.disk = _DISK
        """Bytes a second that it writes and reads."""

    def compat(self, spec: EngineSpec) -> str:
        """What engines must have in common to go on from each other's files."""
        return compat_of(spec, self._backends[spec.backend].slot_layout(spec))

    def of(self, compat: str) -> EngineSpeeds:
        return self._speeds.setdefault(compat, EngineSpeeds())

    def reads(self, spec: EngineSpec, speeds: EngineSpeeds) -> float:
        """Tokens a second that an engine reads."""
        folder = EngineFolder(self._engines_dir / spec.engine_id)
        speeds.reads = self._backends[spec.backend].prompt_speed(folder.read_log()) or speeds.reads
        return speeds.reads or _READS

    def reads_at_once(self, engine_id: str, size: int, find: Callable[[str], Engine | None]) -> bool:
        """Whether an engine reads so many bytes of a request so fast that nothing need be kept."""
        speeds = self._of_engines.get(engine_id)
        if speeds is None:
            if (engine := find(engine_id)) is None:
                return True
            speeds = self._of_engines[engine_id] = self.of(self.compat(engine.spec))
        return size / speeds.characters / (speeds.reads or _READS) < AT_ONCE

    def keep(self, engine_ids: Collection[str]) -> None:
        """Forget all engines but these."""
        for known in [one for one in list(self._of_engines) if one not in engine_ids]:
            self._of_engines.pop(known, None)

    def learn_disk(self, size: int, seconds: float) -> None:
        if size >= _TELLING and seconds > 0:
            self.disk = 0.5 * self.disk + 0.5 * size / seconds

    def in_vain(self, model_id: str, installation_id: str) -> str:
        """Why no more is saved of a model's engines since the start; empty if they go on, as far as known."""
        kind = (model_id, installation_id)
        is_so = any(one.wholes.are_in_vain for one in list(self._speeds.values()) if one.kind == kind)
        return IN_VAIN if is_so else ""

    def pays(self, spec: EngineSpec, chain: PromptChain, owner: str, reason: str, stays: int = 0) -> bool:
        """Whether reading a slot's content again would take longer than writing and reading a file.

        `reason` is why the slot loses it, and `stays` the parts that the slot will hold in any case.
        """
        compat = self.compat(spec)
        speeds = self.of(compat)
        entry, known = self._store.best(compat, owner, chain.hashes) or (None, 0)
        known = max(known, stays)
        if entry is not None and entry.ends:
            speeds.characters, speeds.per_token = entry.ends[-1] / entry.tokens, entry.size / entry.tokens
        # What an earlier daemon knew of is only known to be new or not.
        is_new = known < len(chain.hashes)
        tokens, size = float(_GUESSED * is_new), 0
        if chain.ends:
            before = chain.ends[known - 1] if known else 0
            tokens = (chain.ends[-1] - before) / speeds.characters
            size = int(chain.ends[-1] / speeds.characters * speeds.per_token)
        seconds = tokens / self.reads(spec, speeds)
        if reason == "overwritten" and size / self.disk > LOSS_BOUND:
            return False
        costs = max(AT_ONCE if chain.ends else 0.0, _PAYS.get(reason, 1.0) * 2 * size / self.disk)
        if not tokens or seconds < costs:
            return False
        if refused := self._store.may_write(size):
            if (now := time.monotonic()) - self._refused_at < _REPEATED:
                return False
            self._refused_at = now
            _log.info("a conversation with %s is not saved: %s", spec.model_ref, refused)
            return False
        return True


def compat_of(spec: EngineSpec, layout: str) -> str:
    """What engines must have in common to go on from each other's files; `layout`: `Backend.slot_layout`."""
    same = (spec.model_id, spec.backend, spec.installation_id, spec.mode, layout)
    return hashlib.blake2b(msgspec.json.encode(same), digest_size=16).hexdigest()
