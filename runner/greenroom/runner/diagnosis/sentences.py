"""One sentence for each event, so that a journal can be read by somebody who has never seen one.

Many events name a job or an engine only; a narrator that has been told the journal from its beginning
knows which model and backend that is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from greenroom.actors.journal.port import Record
from greenroom.runner.units import format_duration, format_size

Fields = Mapping[str, Any]

_WANTED_BY = {
    "default": "it is a default backend",
    "explicit": "it was requested",
    "request": "a request needs it",
    "repair": "a rebuild was requested",
}
_EVICTED = {
    "idle": "it has been idle for {idle}",
    "room": "{favoured} needs the room ({needed} needed, {free} free, it holds {memory})",
    "unload": "an unload was requested",
    "retiring": "its installation is being removed",
    "removed": "its model is being removed",
    "reconfigured": "its model is configured differently now",
    "shutdown": "Greenroom stops",
}
_TOO_PRECISE = re.compile(r"^(?:docker\.io/)?(?:ai/)?(.*?)(?::latest)?$")


class Narrator:
    """Tells one journal in the order in which it was written."""

    def __init__(self) -> None:
        self._jobs: dict[str, str] = {}
        """What a pull or an installation is about."""
        self._engines: dict[str, Fields] = {}
        """The spec of each engine."""
        self._models: dict[str, str] = {}
        """A name for each model's id."""
        self._running_pid = 0
        """The daemon that has not said that it stopped."""

    def tell(self, record: Record) -> str:
        """The sentence for a record; for one of an unknown type, its raw fields."""
        try:
            fields = json.loads(record.data)
        except ValueError:
            return f"{record.type}: {record.data}"
        self._remember(record.type, fields)
        teller = _TELLERS.get(record.type)
        if teller is None or not isinstance(fields, dict):
            return f"{record.type}: {record.data}"
        try:
            return teller(self, fields)
        except (KeyError, TypeError, ValueError, AttributeError):
            # An older or newer schema than this program's: better raw than not at all.
            return f"{record.type}: {record.data}"

    def _remember(self, kind: str, fields: Any) -> None:
        if not isinstance(fields, dict):
            return
        job = fields.get("job")
        if isinstance(job, str):
            if kind == "pull_requested":
                self._jobs[job] = short(str(fields.get("reference", "")))
            elif kind == "install_requested":
                self._jobs[job] = f"{fields.get('backend', '')} {fields.get('version', '')}".strip()
        spec = fields.get("spec")
        if isinstance(spec, dict) and "engine_id" in spec:
            self._engines[str(spec["engine_id"])] = spec
        if fields.get("model_ref"):
            self._models[str(fields.get("model_id"))] = short(str(fields["model_ref"]))
        model = fields.get("model")
        if isinstance(model, dict):
            tags = model.get("tags") or ()
            self._models[str(model.get("id"))] = short(tags[0]) if tags else str(model.get("id"))[7:19]

    # names

    def _job(self, fields: Fields, otherwise: str) -> str:
        return self._jobs.get(str(fields.get("job")), otherwise)

    def _engine(self, fields: Fields) -> str:
        one = str(fields["engine_id"])
        spec = self._engines.get(one)
        return f"Engine {one} ({_load(spec)})" if spec else f"Engine {one}"

    def _model(self, fields: Fields) -> str:
        reference = fields.get("model_ref")
        one = str(fields.get("model_id", ""))
        return short(str(reference)) if reference else self._models.get(one, f"Model {one[7:19] or one}")

    # installer

    def _install_requested(self, fields: Fields) -> str:
        why = _WANTED_BY.get(str(fields["wanted_by"]), str(fields["wanted_by"]))
        return f"The installation of {_versioned(fields)} begins: {_why(why, fields)}."

    def _install_attempt_failed(self, fields: Fields) -> str:
        return (
            f"Attempt {fields['attempt']} to install {fields['backend']} failed: "
            f"{_failure(fields)} The next one begins at {_clock(fields['retry_at'])}."
        )

    def _install_attempt_begun(self, fields: Fields) -> str:
        return f"Attempt {fields['attempt']} to install {fields['backend']} begins."

    def _installation_committed(self, fields: Fields) -> str:
        seconds = float(fields.get("seconds") or 0)
        took = f" in {format_duration(seconds)}" if seconds else ""
        return f"{_installation(fields['installation'])} is installed and verified{took}."

    def _install_not_needed(self, fields: Fields) -> str:
        return (
            f"{fields['backend']} {fields['version']} is the newest version and is already installed "
            f"({fields['installation_id']}): nothing was built."
        )

    def _install_failed(self, fields: Fields) -> str:
        return f"{self._job(fields, fields['backend'])} could not be installed: {_failure(fields)}"

    def _install_cancelled(self, fields: Fields) -> str:
        subject = self._job(fields, fields["backend"])
        return _ended(f"The installation of {subject} was ended: {fields['reason']}")

    def _installation_found(self, fields: Fields) -> str:
        return f"Found on disk, complete and verified: {_installation(fields['installation'])}."

    def _installation_missing(self, fields: Fields) -> str:
        return _ended(f"{_id(fields)} is not there any more: {fields['reason']}")

    def _installations_unread(self, fields: Fields) -> str:
        return _ended(
            f"The installations of {fields['backend']} cannot be read, so none of them is used: "
            f"{fields['reason']}"
        )

    def _installations_read_again(self, fields: Fields) -> str:
        return f"The installations of {fields['backend']} can be read again."

    def _installation_broken(self, fields: Fields) -> str:
        return _ended(f"{_id(fields)} is broken: {fields['reason']}")

    def _installation_activated(self, fields: Fields) -> str:
        reason = f": {fields['reason']}" if fields.get("reason") else ""
        return f"New engines of {fields['backend']} start from {fields['installation_id']}{reason}."

    def _installation_retiring(self, fields: Fields) -> str:
        stays = " It stays uninstalled until it is requested." if fields.get("unwanted") else ""
        return f"{_id(fields)} will be removed once no engine uses it: {fields['reason']}.{stays}"

    def _installation_removed(self, fields: Fields) -> str:
        freed = int(fields.get("freed") or 0)
        return f"{_id(fields)} is removed{f', {format_size(freed)} are free again' if freed else ''}."

    # runner

    def _engine_start_requested(self, fields: Fields) -> str:
        return f"{self._engine(fields['spec'])} is to be started."

    def _engine_spawned(self, fields: Fields) -> str:
        return f"{self._engine(fields)} runs as process {fields['pid']} and loads its model."

    def _engine_ready(self, fields: Fields) -> str:
        seconds = float(fields.get("seconds") or 0)
        return f"{self._engine(fields)} is ready{f' after {format_duration(seconds)}' if seconds else ''}."

    def _engine_stop_requested(self, fields: Fields) -> str:
        return _ended(f"{self._engine(fields)} was asked to end: {fields['reason']}")

    def _engine_exited(self, fields: Fields) -> str:
        ending: Fields = fields["exit"]
        how = ending.get("signal") or (f"code {ending['code']}" if ending.get("code") is not None else "")
        subject = f"{self._engine(fields)} has ended{f' ({how})' if how else ''}"
        if ending.get("expected"):
            return f"{subject}, as it was asked to."
        summary = str(ending.get("summary") or "")
        return _ended(f"{subject}: {summary}" if summary else f"{subject} of its own accord")

    def _engine_adopted(self, fields: Fields) -> str:
        return f"{self._engine(fields)} has outlived its daemon (process {fields['pid']}) and is ours again."

    def _engine_lost(self, fields: Fields) -> str:
        return _ended(f"{self._engine(fields)} is gone: {fields['reason']}")

    # scheduler

    def _backend_chosen(self, fields: Fields) -> str:
        reasons = "; ".join(str(reason) for reason in fields.get("reasons") or ())
        return _ended(
            f"{fields['backend']} serves {self._model(fields)} ({fields['mode']})"
            + (f": {reasons}" if reasons else "")
        )

    def _load_admitted(self, fields: Fields) -> str:
        spec: Fields = fields["spec"]
        before = int(fields.get("refused_before") or 0)
        slots = int(spec.get("slots") or 0)
        with_slots = f" with {slots} slot{'s' if slots > 1 else ''}" if slots else ""
        return (
            f"{_load(spec)} may be loaded{with_slots}: "
            f"{format_size(spec.get('memory') or 0)} are promised to it, "
            f"{format_size(fields['promised'])} of {format_size(fields['budget'])} in all"
            f"{_refused_before(before)}.{_asked_by(fields)}"
        )

    def _load_refused(self, fields: Fields) -> str:
        count = int(fields.get("count") or 1)
        times = f" ({count} times so far)" if count > 1 else ""
        advice = fields.get("advice") if fields["code"] == "backend_not_installed" else ""
        said = f"{fields['message']} {advice or ''}".strip()
        return _ended(f"Requests for {self._model(fields)} are refused{times}: {said}")

    def _load_failed(self, fields: Fields) -> str:
        load = f"{self._model(fields)} on {fields['backend']}"
        what = "stopped working" if fields.get("was_ready") else "could not be loaded"
        return f"{load} {what}: {_failure(fields)}"

    def _eviction_decided(self, fields: Fields) -> str:
        reason = str(fields["reason"])
        why = _EVICTED.get(reason, reason).format(
            idle=format_duration(float(fields.get("idle_seconds") or 0)),
            favoured=short(str(fields.get("in_favour_of") or "another model")),
            needed=format_size(fields.get("needed") or 0),
            free=format_size(fields.get("free") or 0),
            memory=format_size(fields.get("memory") or 0),
        )
        engine = f"Engine {fields['engine_id']} ({self._model(fields)} on {fields['backend']})"
        return f"{engine} is to end: {why}."

    def _breaker_opened(self, fields: Fields) -> str:
        return _ended(
            f"{self._model(fields)} on {fields['backend']} is left alone until {_clock(fields['until'])}, "
            f"after {fields['failures']} failures: {fields['reason']}"
        )

    def _breaker_closed(self, fields: Fields) -> str:
        return _ended(f"{self._model(fields)} on {fields['backend']} is trusted again: {fields['reason']}")

    def _model_quarantined(self, fields: Fields) -> str:
        backend = fields["backend"]
        return _ended(
            f"{self._model(fields)} is quarantined on {backend} {fields['version']} and goes back to "
            f"{backend} {fields['back_to_version']}, after {fields['failures']} failures in a row: "
            f"{fields['reason']}"
        )

    def _quarantine_lifted(self, fields: Fields) -> str:
        where = f"installation {fields['installation_id']} of {fields['backend']}"
        return _ended(f"{self._model(fields)} may be tried on {where} again: {fields['reason']}")

    def _config_changed(self, fields: Fields) -> str:
        parts = []
        if fields.get("context_size") is not None:
            parts.append(f"context of {fields['context_size']} tokens")
        if fields.get("flags") is not None:
            parts.append(f"flags {' '.join(fields['flags']) or '(none)'}")
        if fields.get("keep_alive") is not None:
            parts.append(f"kept for {format_duration(float(fields['keep_alive']))} after its last request")
        back = [name.replace("_", " ") for name in fields.get("reset") or () if fields.get(name) is None]
        if back:
            parts.append(f"{', '.join(back)} by default")
        return (
            f"{self._model(fields)} ({fields['mode']}) is configured: {', '.join(parts) or 'the defaults'}."
        )

    def _keep_alive_wished(self, fields: Fields) -> str:
        if float(fields["keep_alive"]) < 0:
            return f"{self._model(fields)} stays for ever: a request asked for that."
        return f"{self._model(fields)} no longer stays for ever: a request asked for that."

    # library

    def _pull_requested(self, fields: Fields) -> str:
        why = _WANTED_BY.get(str(fields.get("wanted_by", "explicit")), "")
        return f"Fetching {short(str(fields['reference']))} begins: {_why(why, fields)}."

    def _pull_attempt_failed(self, fields: Fields) -> str:
        return (
            f"Attempt {fields['attempt']} to fetch {self._job(fields, 'a model')} failed: {_failure(fields)} "
            f"What has arrived is kept; the next one begins at {_clock(fields['retry_at'])}."
        )

    def _model_committed(self, fields: Fields) -> str:
        model: Fields = fields["model"]
        facts = [str(model[name]) for name in ("parameters", "quantization", "format") if model.get(name)]
        if model.get("size"):
            facts.append(format_size(model["size"]))
        seconds = float(fields.get("seconds") or 0)
        took = f" after {format_duration(seconds)}" if seconds else ""
        name = self._models[str(model["id"])]
        if not fields.get("fresh", True):
            return f"{name} is here already, as it is where it comes from: nothing had to be fetched."
        return f"{name} is here, whole and verified{took} ({', '.join(facts)})."

    def _model_pushed(self, fields: Fields) -> str:
        sent = int(fields.get("sent") or 0)
        how = f"{format_size(sent)} were sent" if sent else "the registry had all of it"
        return f"{self._model(fields)} is published as {short(str(fields['reference']))} ({how})."

    def _push_failed(self, fields: Fields) -> str:
        name = short(str(fields["reference"]))
        return f"{self._model(fields)} could not be published as {name}: {_failure(fields)}"

    def _pull_failed(self, fields: Fields) -> str:
        return f"{self._job(fields, 'A model')} could not be fetched: {_failure(fields)}"

    def _pull_cancelled(self, fields: Fields) -> str:
        return _ended(f"Fetching {self._job(fields, 'a model')} was ended: {fields['reason']}")

    def _model_tagged(self, fields: Fields) -> str:
        names = ", ".join(short(str(tag)) for tag in fields["tags"])
        return f"Model {str(fields['model_id'])[7:19]} is now called {names or 'nothing but its id'}."

    def _model_removed(self, fields: Fields) -> str:
        freed = int(fields.get("freed") or 0)
        space = f" {format_size(freed)} are free again." if freed else ""
        return f"{self._model(fields)} is gone: {fields['reason']}.{space}"

    # idempotency

    def _command_keyed(self, fields: Fields) -> str:
        return f"{fields['name']} came with an Idempotency-Key ({str(fields['key'])[:12]})."

    def _command_answered(self, fields: Fields) -> str:
        key = str(fields["key"])[:12]
        return f"What came with Idempotency-Key {key} was answered with status {fields['status']}."

    # daemon

    def _daemon_started(self, fields: Fields) -> str:
        killed = self._running_pid
        self._running_pid = int(fields["pid"])
        address = f" at {fields['address']}" if fields.get("address") else ""
        text = (
            f"Greenroom {fields['version']} started{address} (process {fields['pid']}, {fields['platform']})."
        )
        if killed:
            text += f" The one before it (process {killed}) did not stop in order: it was killed, or failed."
        return text

    def _daemon_stopped(self, fields: Fields) -> str:
        self._running_pid = 0
        return _ended(f"Greenroom stopped in order (process {fields['pid']}): {fields['reason']}")

    def _command_parked(self, fields: Fields) -> str:
        last = str(fields.get("traceback") or "").strip().rsplit("\n", 1)[-1]
        count = int(fields.get("count") or 1)
        times = f" for the {count}th time" if count > 1 else ""
        actor, what = str(fields["actor"]), str(fields["command"])
        where = "Greenroom" if actor.partition("/")[0] in OUR_ACTORS else f"the program's own actor {actor}"
        if what.isidentifier() and what != "settle":
            did = f"{actor} failed twice on {what}{times}, and refused it"
        else:
            # Not a command, but what was being done, and of what.
            about = f" ({fields['fields']})" if fields.get("fields") else ""
            did = f"{actor} could not {what}{about}{times}, and skipped it"
        return _ended(f"A bug in {where}: {did}: {last}")


OUR_ACTORS = frozenset({"daemon", "idempotency", "installer", "library", "runner", "scheduler"})
"""Names of our actors, `runner/<backend>` without its backend; any other is a host program's."""


def short(reference: str) -> str:
    """A reference as people write it: `docker.io/ai/smollm2:latest` is `smollm2`."""
    match = _TOO_PRECISE.match(reference)
    return match[1] if match else reference


def _why(why: str, fields: Fields) -> str:
    """The reason of a job; with the process, key or address behind it where that is known."""
    asked_by = _asked_by(fields).removeprefix(" Requested by ").removesuffix(".")
    return f"{asked_by} asked for it" if asked_by and why == _WANTED_BY["explicit"] else why


def _asked_by(fields: Fields) -> str:
    """Which process, key or address asked. An address of this machine says nothing, and Greenroom itself has
    said its reason.
    """
    caller: Fields = fields.get("caller") or {}
    name = str(caller.get("name") or caller.get("id") or "")
    if caller.get("kind") in ("", None, "greenroom") or name in ("127.0.0.1", "::1"):
        return ""
    return f" Requested by {name}."


def _refused_before(count: int) -> str:
    if not count:
        return ""
    return (
        " (one request for it was refused before)"
        if count == 1
        else f" ({count} requests for it were refused before)"
    )


def _load(spec: Fields) -> str:
    return f"{short(str(spec['model_ref']))} on {spec['backend']}"


def _versioned(fields: Fields) -> str:
    return f"{fields['backend']} {fields.get('version') or ''}".strip()


def _installation(fields: Fields) -> str:
    size = int(fields.get("size") or 0)
    where = f", in {fields['root']}" if fields.get("root") else ""
    return (
        f"{_versioned(fields)} (installation {fields['id']}{f', {format_size(size)}' if size else ''}{where})"
    )


def _id(fields: Fields) -> str:
    return f"Installation {fields['installation_id']} of {fields['backend']}"


def _failure(fields: Fields) -> str:
    failure: Fields = fields["failure"]
    return _ended(f"{failure['message']} {failure.get('advice') or ''}".strip())


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _ended(text: str) -> str:
    """With exactly one full stop: reasons come with and without."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


_TELLERS: Mapping[str, Callable[[Narrator, Fields], str]] = {
    name.removeprefix("_"): teller
    for name, teller in vars(Narrator).items()
    if name.startswith("_")
    and not name.startswith("__")
    and name not in ("_remember", "_job", "_engine", "_model")
}
"""By tag: a method `_daemon_started` tells `daemon_started`."""

TOLD = frozenset(_TELLERS)
"""The tags that have a sentence."""
