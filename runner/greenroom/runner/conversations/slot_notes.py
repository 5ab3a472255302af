"""Notes of what engines' slots hold, in the engines' folders: the next daemon may take the engines over."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from greenroom.actors.gates import GateBoard
from greenroom.actors.slot_choice import Counted, SlotContent
from greenroom.runner.conversations.prompt_hashes import chain_of
from greenroom.runner.engines.folders import EngineFolder

_log = logging.getLogger(__name__)

_NAME = "notes.json"
"""Beside the files of an engine's slots, and removed with them."""


class _Note(msgspec.Struct, frozen=True):
    """What a slot holds, without its text."""

    chain: tuple[bytes, ...]
    key: str
    owner: str
    kept: bool
    saved: bool
    read: int | None = None
    """Tokens of the prompt; None if it may not have been read to its end."""
    written: int | None = None


class SlotNotes:
    """Of one data directory."""

    def __init__(self, engines_dir: Path, gates: GateBoard) -> None:
        self._dir = engines_dir
        self._gates = gates
        self._found: set[str] = set()
        """Engines of an earlier daemon that have a note."""
        self._last: dict[str, dict[int, tuple[int, bool]]] = {}
        """Of an engine, the contents and whether they were saved, as they were last noted."""

    def find(self) -> bool:
        """Look for what an earlier daemon has left, and remove what it was saving or restoring when it was
        killed; whether there are notes.
        """
        for path in self._dir.glob("*/slots/*"):
            if path.name == _NAME:
                self._found.add(path.parent.parent.name)
            else:
                try:
                    path.unlink()
                except OSError as error:
                    _log.info("%s was left by an earlier daemon: %s", path, error)
        return bool(self._found)

    def take(self, engine_id: str) -> dict[int, int]:
        """Read, once, what an earlier daemon's engine holds; returns by slot the serial of what is saved."""
        if engine_id not in self._found:
            return {}
        self._found.remove(engine_id)
        try:
            notes = msgspec.json.decode(self._path(engine_id).read_bytes(), type=dict[int, _Note])
        except (OSError, msgspec.MsgspecError) as error:
            _log.info("engine %s: what its slots hold is not known: %s", engine_id, error)
            return {}
        self._last[engine_id] = {}
        learnt = {
            number: SlotContent(
                one.chain, one.key, one.owner, one.kept, hashed=True, counted=_counted(one.read, one.written)
            )
            for number, one in notes.items()
        }
        self._gates.learn(engine_id, learnt)
        contents = self._gates.contents(engine_id).items()
        return {
            number: content.serial
            for number, content in contents
            if content.hashed and number in notes and notes[number].saved
        }

    def write(self, engine_id: str, is_saved: Callable[[str, int, SlotContent], bool]) -> None:
        """Leave word of what an engine's slots hold, unless that was noted before."""
        contents = self._gates.contents(engine_id)
        saved = {number: (one.serial, is_saved(engine_id, number, one)) for number, one in contents.items()}
        if saved == self._last.get(engine_id, {}):
            return
        notes = {
            number: _Note(hashes_of(one), one.key, one.owner, one.kept, saved[number][1], *one.counted())
            for number, one in contents.items()
        }
        path = self._path(engine_id)
        try:
            beside = path.with_suffix(".new")
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(notes))
            beside.rename(path)
        except OSError as error:
            _log.debug("engine %s: what its slots hold was not noted: %s", engine_id, error)
        self._last[engine_id] = saved

    def keep(self, engine_ids: Collection[str]) -> None:
        """Forget all engines but these."""
        self._last = {one: noted for one, noted in self._last.items() if one in engine_ids}

    def _path(self, engine_id: str) -> Path:
        return EngineFolder(self._dir / engine_id).slots / _NAME


def hashes_of(content: SlotContent) -> tuple[bytes, ...]:
    """The chain of hashes of what a slot has read."""
    if content.hashed:
        return tuple(part for part in content.parts if isinstance(part, bytes))
    return chain_of(content.parts).hashes


def _counted(read: int | None, written: int | None) -> Counted:
    return lambda: (read, written)
