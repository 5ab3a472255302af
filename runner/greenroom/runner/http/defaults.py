"""A model's own defaults in requests of every family: a system prompt, first messages, parameters.

They are added to the chat that an engine gets, where the request says nothing of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from greenroom.actors.values import Model
from greenroom.runner.http.engine_requests import Checked
from greenroom.runner.http.sampling import PARAMETERS, chat_fields
from greenroom.runner.http.wrong_fields import Wrong
from greenroom.runner.models.recipe import Defaults
from greenroom.runner.models.store import ModelStore
from greenroom.runner.threads import in_thread

_log = logging.getLogger(__name__)

_REMEMBERED = 1_000
_INSTRUCTIONS = ("system", "developer")
_GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/infill"})
"""Where parameters mean something; other routes only count or show what a chat becomes."""
_SYNONYMS: Sequence[frozenset[str]] = (
    frozenset({"max_tokens", "max_completion_tokens", "n_predict"}),
    frozenset({"repeat_penalty", "repetition_penalty"}),
)

_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ModelDefaults:
    """The defaults of stored models, read once for each: a model's id says what they are."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._known: dict[str, Defaults] = {}

    async def of(self, model: Model) -> Defaults:
        """Raises JobFailed when its configuration cannot be read."""
        if not model.has_defaults:
            return Defaults()
        known = self._known.get(model.id)
        if known is None:
            known = checked(await in_thread(lambda: self._store.defaults(model.id)), model.id)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[model.id] = known
        return known


def checked(defaults: Defaults, model_id: str) -> Defaults:
    """Without parameters that mean nothing here, or have values that no request could have."""
    good: dict[str, Any] = {}
    for name, value in defaults.parameters.items():
        try:
            good[name] = PARAMETERS[name](value, name)
        except (KeyError, Wrong):
            _log.warning("the model %s has a default for %.40r that is not used", model_id[7:19], name)
    return msgspec.structs.replace(defaults, parameters=good)


def with_defaults(right: Checked, defaults: Defaults, path: str, settled: Collection[str] = ()) -> Checked:
    """The request for an engine's `path` with what it does not say itself.

    `settled` are fields that it leaves out on purpose.
    """
    given = _raw_fields.decode(right.body)
    added: dict[str, Any] = {}
    if "messages" in right.fields and (defaults.system or defaults.messages):
        added["messages"] = _begun(right.fields["messages"], defaults)
    if path in _GENERATING:
        said = {*given, *settled}
        said |= {name for names in _SYNONYMS if names & said for name in names}
        added |= {name: value for name, value in chat_fields(defaults.parameters).items() if name not in said}
    raw = given | {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in added.items()}
    return Checked(msgspec.json.encode(raw), {**right.fields, **added}, right.unknown)


def _begun(messages: Sequence[Mapping[str, Any]], defaults: Defaults) -> list[Any]:
    """A chat that begins as the model's chats do, after instructions of its own where it has some."""
    first = [{"role": one.role, "content": one.content} for one in defaults.messages]
    if any(one["role"] in _INSTRUCTIONS for one in messages):
        own = 1 if messages[0]["role"] in _INSTRUCTIONS else 0
        return [*messages[:own], *first, *messages[own:]]
    system = [{"role": "system", "content": defaults.system}] if defaults.system else []
    return [*system, *first, *messages]
