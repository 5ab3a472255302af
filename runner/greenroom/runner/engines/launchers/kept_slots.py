"""What the slots of mlx-lm's server have read, as files: llama-server's `POST /slots/N?action=…` for it.

mlx-lm keeps prompts by their tokens, and knows no slots. A slot here is the `id_slot` of a request, or the
only one of a server that takes one request at a time: it holds the tokens of its last one, prompt and answer,
for as long as mlx-lm keeps them. A file is mlx-lm's own prompt cache with these tokens beside it; restored,
any request finds it that begins with them.

All of it happens on the generating thread, the only one that may compute, between two batches.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_ENDING = ".safetensors"
"""mlx-lm reads and writes no other names."""
_MOST_SLOTS = 1024
_LOOK_SECONDS = 1.0


class CannotDo(Exception):
    """Nothing was done; the text says why."""


class _Held(NamedTuple):
    tokens: list[int]
    prompt: int
    """How many of them are the prompt's."""


class _Request(NamedTuple):
    slot: int
    prompt: int
    """Its length."""
    goes_on: bool
    """It begins with what its slot holds."""


class Slots:
    """The slots of one server, and their files in `folder`; an empty one refuses all.

    `alone`: there is one slot only, whether or not requests name it.
    """

    def __init__(self, folder: str, *, alone: bool = False) -> None:
        self._folder = folder
        self._alone = alone
        self._held: dict[int, _Held] = {}
        self._running: dict[Any, _Request] = {}
        self._next: _Request | None = None
        """The request that begins now."""

    @property
    def can(self) -> bool:
        """Whether there is a folder."""
        return bool(self._folder)

    def begins(self, slot: object, prompt: list[int]) -> None:
        """The generating thread begins with a request."""
        slot = 0 if slot is None and self._alone else slot
        self._next = None
        if self._folder and isinstance(slot, int) and 0 <= slot < _MOST_SLOTS:
            held = self._held.get(slot)
            # Of an answer, a template may write less than the model did.
            goes_on = held is not None and prompt[: held.prompt] == held.tokens[: held.prompt]
            self._next = _Request(slot, len(prompt), goes_on)

    def joined(self, uid: Any) -> None:
        """The request that begins now is in a batch, under this id."""
        if self._next is not None:
            self._running[uid], self._next = self._next, None

    def left(self, uid: Any) -> None:
        """It was cancelled: what its slot holds is what it held before, as far as that is of this prompt."""
        if (request := self._running.pop(uid, None)) is not None:
            self._cancelled(request)

    def ended(self, uid: Any, tokens: Any) -> None:
        """It is answered; these are its prompt and its answer, as far as they are computed."""
        if (request := self._running.pop(uid, None)) is not None:
            self._hold(request, tokens)

    def ended_alone(self, tokens: Any) -> None:
        """The same of a request that was in no batch; None for one that was cancelled."""
        request, self._next = self._next, None
        if request is not None and tokens is not None:
            self._hold(request, tokens)
        elif request is not None:
            self._cancelled(request)

    def _hold(self, request: _Request, tokens: Any) -> None:
        self._held[request.slot] = _Held([int(one) for one in tokens], request.prompt)

    def _cancelled(self, request: _Request) -> None:
        if not request.goes_on:
            self._held.pop(request.slot, None)  # else it would be saved as if it were this prompt's

    def done(self, generator: Any, slot: int, action: str, name: str) -> dict[str, int]:
        """Save, restore or erase a slot; llama-server's answer.

        Raises:
            CannotDo: It cannot be done.
            OSError: The disk.
        """
        if action == "erase":
            held = self._held.pop(slot, None)
            return {"id_slot": slot, "n_erased": len(held.tokens) if held else 0}
        if not name or name != os.path.basename(name) or name.startswith("."):
            raise CannotDo("filename must be a name")
        path = Path(self._folder, name)
        if action == "save":
            return self._save(generator, slot, path)
        if action == "restore":
            return self._restore(generator, slot, path)
        raise CannotDo(f"there is no action {action!r}")

    def _save(self, generator: Any, slot: int, path: Path) -> dict[str, int]:
        from mlx_lm.models.cache import save_prompt_cache  # type: ignore[import-not-found,unused-ignore]

        empty = {"id_slot": slot, "n_saved": 0, "n_written": 0}
        held = self._held.get(slot)
        if held is None:
            return empty
        kept, model = generator.prompt_cache, generator.model_provider.model_key
        cache, rest = kept.fetch_nearest_cache(model, held.tokens)
        if cache is None or rest:
            return empty  # mlx-lm has given its memory to others
        # Where a cache cannot be cut, mlx-lm keeps one of the prompt too, and a template that leaves out what
        # the model thought needs that one.
        before, rest = kept.fetch_nearest_cache(model, held.tokens[: held.prompt])
        length = held.prompt - len(rest)
        both = [*cache, *(before or ())] if 0 < length < len(held.tokens) and not _cuts(cache) else cache
        about = {"tokens": json.dumps(held.tokens), "layers": str(len(cache)), "before": str(length)}
        written = path.with_name(path.name + _ENDING)
        save_prompt_cache(str(written), both, about)
        os.replace(written, path)
        return {"id_slot": slot, "n_saved": len(held.tokens), "n_written": path.stat().st_size}

    def _restore(self, generator: Any, slot: int, path: Path) -> dict[str, int]:
        import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]
        from mlx_lm.models.cache import (  # type: ignore[import-not-found,unused-ignore]
            load_prompt_cache,
            make_prompt_cache,
        )

        self._held.pop(slot, None)
        provider, kept = generator.model_provider, generator.prompt_cache
        named = path.with_name(path.name + _ENDING)
        os.replace(path, named)
        try:
            caches, about = load_prompt_cache(str(named), return_metadata=True)
            tokens = [int(one) for one in json.loads(about["tokens"])]
            layers, before = int(about["layers"]), int(about["before"])
            mx.eval([one.state for one in caches])
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise CannotDo("it is not a file of a slot") from error
        finally:
            named.unlink()
        made = [type(one) for one in make_prompt_cache(provider.model)]
        if not tokens or [type(one) for one in caches] not in (made, 2 * made):
            raise CannotDo("it is of another model")
        if len(caches) > layers:
            kept.insert_cache(provider.model_key, tokens[:before], caches[layers:], cache_type="user")
        kept.insert_cache(provider.model_key, tokens, caches[:layers])
        if kept.fetch_nearest_cache(provider.model_key, tokens)[1]:
            raise CannotDo("it does not fit into the memory for prompts")
        self._held[slot] = _Held(tokens, before)
        return {"id_slot": slot, "n_restored": len(tokens), "n_read": 0}


def _cuts(cache: Any) -> bool:
    return all(one.is_trimmable() for one in cache)


class Errand:
    """Something for the generating thread to do between batches, in the place of a request."""

    left = False

    def __init__(self, run: Callable[[], dict[str, int]]) -> None:
        self._run = run
        self._over = threading.Event()
        self._answer: tuple[int, dict[str, Any]] = (500, {"error": {"message": "it was not done"}})

    def run(self) -> None:
        try:
            self._answer = 200, self._run()
        except (CannotDo, OSError) as error:
            self._answer = 400, {"error": {"message": str(error)}}
        finally:
            self._over.set()

    def answer(self, alive: Callable[[], bool]) -> tuple[int, dict[str, Any]]:
        """Waits until it is done, for as long as that thread lives."""
        while not self._over.wait(_LOOK_SECONDS):
            if not alive():
                break
        return self._answer


def asked(path: str, body: bytes) -> tuple[int, str, str]:
    """The slot, the action and the name of the file of a request. Raises ValueError."""
    place, _, query = path.partition("?")
    slot = int(place.removeprefix("/slots/"))
    fields = json.loads(body) if body else {}
    name = fields.get("filename", "") if isinstance(fields, dict) else ""
    return slot, query.removeprefix("action="), name if isinstance(name, str) else ""
