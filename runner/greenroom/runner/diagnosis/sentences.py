"""One sentence for each event, for readers who have never seen a journal.

Many events name only a job or an engine; a narrator that reads the journal from its beginning knows which
model and backend that is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from greenroom.actors.journal.port import Record
from greenroom.runner.conversations.restoration import saved_when
from greenroom.runner.diagnosis.changes import Fields, config_parts, device_change
from greenroom.runner.diagnosis.explanation import counted, full_stop
from greenroom.runner.diagnosis.host_actors import INSTALLED, HostActors
from greenroom.runner.units import format_duration, format_size

_WANTED_BY = {
    "default": "it is a default backend",
    "explicit": "requested",
    "request": "a request needs it",
    "repair": "a rebuild was requested",
}
_EVICTED = {
    "idle": "it has been idle for {idle}",
    "unload": "an unload was requested",
    "retiring": "its installation is being removed",
    "superseded": "another variant of its backend is in use now",
    "moved": "it is loaded again, since more of it fits on graphics devices now",
    "removed": "the model is being removed",
    "reconfigured": "its configuration has changed",
    "larger_context": "a request asked for a larger context",
    "shutdown": "Greenroom is stopping",
}
_DROPPED = {
    "expired": "unused for too long",
    "space": "others are worth more",
    "damaged": "the file was damaged",
    "removed": "removed by request or with the model",
}
_TOO_PRECISE = re.compile(r"^(?:docker\.io/)?(?:ai/)?(.*?)(?::latest)?$")


class Narrator:
    """Words one journal in the order in which it was written."""

    def __init__(self, hosts: HostActors = INSTALLED) -> None:
        """`hosts` supply the sentences of other programs' events."""
        self._hosts = hosts
        self._jobs: dict[str, str] = {}
        """job → what it pulls or installs."""
        self._environments: set[str] = set()
        """Those of programs, which are no backends."""
        self._origins: dict[str, str] = {}
        """job → the path that its model is adopted from."""
        self._engines: dict[str, Fields] = {}
        """engine → its spec."""
        self._models: dict[str, str] = {}
        """id → name."""
        self._running_pid = 0
        """Of the daemon that has not shut down cleanly."""

    def tell(self, record: Record) -> str:
        """The sentence for a record; for one of an unknown type, its raw fields."""
        try:
            fields = json.loads(record.data)
        except ValueError:
            return f"{record.type}: {record.data}"
        self._remember(record.type, fields)
        teller = _TELLERS.get(record.type)
        if teller is None and (sentence := self._hosts.sentence(record)):
            return sentence
        if teller is None or not isinstance(fields, dict):
            return f"{record.type}: {record.data}"
        try:
            return teller(self, fields)
        except (KeyError, TypeError, ValueError, AttributeError):
            # Another schema than this version's: show it as it is.
            return f"{record.type}: {record.data}"

    def _remember(self, kind: str, fields: Any) -> None:
        if not isinstance(fields, dict):
            return
        job = fields.get("job")
        if isinstance(job, str):
            if kind == "pull_requested":
                self._jobs[job] = short(str(fields.get("reference", "")))
                self._origins[job] = str(fields.get("origin") or "")
            elif kind == "install_requested":
                self._jobs[job] = _versioned(fields) if fields.get("backend") else ""
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

    def _origin(self, fields: Fields) -> str:
        return self._origins.get(str(fields.get("job")), "")

    def _engine(self, fields: Fields) -> str:
        one = str(fields["engine_id"])
        spec = self._engines.get(one)
        return f"engine {one} ({_load(spec)})" if spec else f"engine {one}"

    def _model(self, fields: Fields, word: str = "model") -> str:
        reference = fields.get("model_ref")
        one = str(fields.get("model_id", ""))
        return short(str(reference)) if reference else self._models.get(one, f"{word} {one[7:19] or one}")

    # installer

    def _environment_declared(self, fields: Fields) -> str:
        declared: Fields = fields["declared"]
        self._environments.add(str(fields["backend"]))
        python = f" on Python {declared['python']}" if declared.get("python") else ""
        lock = f", with the files of the lock {str(declared['lock'])[:12]}" if declared.get("lock") else ""
        places = f", from {' and '.join(declared['indexes'])}" if declared.get("indexes") else ""
        return f"{fields['backend']} is the environment for {declared['requirement']}{python}{lock}{places}."

    def _install_requested(self, fields: Fields) -> str:
        if fields["backend"] in self._environments:
            return f"Installing {_versioned(fields)} for {_asked_by(fields) or 'a program'}."
        return f"Installing {_versioned(fields)}{_why(fields)}."

    def _install_attempt_failed(self, fields: Fields) -> str:
        return (
            f"Attempt {fields['attempt']} to install {fields['backend']} failed: "
            f"{_failure(fields)} Retrying at {_clock(fields['retry_at'])}."
        )

    def _install_attempt_begun(self, fields: Fields) -> str:
        return f"Started attempt {fields['attempt']} to install {fields['backend']}."

    def _installation_committed(self, fields: Fields) -> str:
        made: Fields = fields["installation"]
        compiled = f" Compiled with {made['built_with']}." if made.get("built_with") else ""
        return (
            f"Installed {_versioned(made)}{_took(fields)} and verified it ({_installation(made)}).{compiled}"
        )

    def _install_not_needed(self, fields: Fields) -> str:
        return (
            f"{fields['backend']} {fields['version']} is the newest version and is already installed "
            f"(installation {fields['installation_id']}); nothing was built."
        )

    def _install_failed(self, fields: Fields) -> str:
        return f"Installing {self._job(fields, fields['backend'])} failed: {_failure(fields)}"

    def _install_cancelled(self, fields: Fields) -> str:
        job = self._job(fields, fields["backend"])
        return full_stop(f"Cancelled the installation of {job}: {fields['reason']}")

    def _installation_found(self, fields: Fields) -> str:
        found: Fields = fields["installation"]
        return f"Found {_versioned(found)} on disk, complete and verified ({_installation(found)})."

    def _installation_missing(self, fields: Fields) -> str:
        return full_stop(f"{_id(fields)} is missing: {fields['reason']}")

    def _installations_unread(self, fields: Fields) -> str:
        name = fields["backend"]
        return full_stop(f"The installations of {name} cannot be read and are not used: {fields['reason']}")

    def _installations_read_again(self, fields: Fields) -> str:
        return f"The installations of {fields['backend']} can be read again."

    def _installation_broken(self, fields: Fields) -> str:
        return full_stop(f"{_id(fields)} is broken: {fields['reason']}")

    def _installation_activated(self, fields: Fields) -> str:
        reason = f": {fields['reason']}" if fields.get("reason") else ""
        return full_stop(
            f"New engines of {fields['backend']} use installation {fields['installation_id']}{reason}"
        )

    def _variants_ranked(self, fields: Fields) -> str:
        name, found = fields["backend"], ", ".join(map(str, fields.get("devices") or ()))
        usable = [one for one in fields["variants"] if one["usable"]]
        order = " ".join(f"{one['name']}: {one['reason']}" for one in usable)
        return (
            f"Graphics devices: {found or 'none'}. Variants of {name} for this machine, best first: {order}"
        )

    def _installation_retiring(self, fields: Fields) -> str:
        name = fields["backend"]
        stays = f" {name} stays uninstalled until it is requested." if fields.get("unwanted") else ""
        return f"{_id(fields)} will be removed when no engine uses it: {full_stop(fields['reason'])}{stays}"

    def _installation_removed(self, fields: Fields) -> str:
        freed = int(fields.get("freed") or 0)
        space = f", freeing {format_size(freed)}" if freed else ""
        return f"Removed installation {fields['installation_id']} of {fields['backend']}{space}."

    # runner

    def _engine_start_requested(self, fields: Fields) -> str:
        return f"Starting {self._engine(fields['spec'])}."

    def _engine_spawned(self, fields: Fields) -> str:
        return _capital(f"{self._engine(fields)} is loading its model as process {fields['pid']}.")

    def _engine_loaded(self, fields: Fields) -> str:
        loaded: Fields = fields["loaded"]
        layers, planned, total = int(loaded["layers"]), int(fields["planned"]), int(loaded.get("total") or 0)
        all_of = f" of {total}" if total else ""
        size = f", in {format_size(loaded['size'])}" if loaded.get("size") else ""
        told = f"{self._engine(fields)} has {layers}{all_of} layers on devices{size}"
        if layers < planned:
            reason = f": {loaded['reason']}" if loaded.get("reason") else ""
            told += f", fewer than the {planned} that were planned{reason}"
        return full_stop(_capital(told))

    def _engine_ready(self, fields: Fields) -> str:
        seconds = float(fields.get("seconds") or 0)
        after = f" after {format_duration(seconds)}" if seconds else ""
        return _capital(f"{self._engine(fields)} is ready{after}.")

    def _engine_stop_requested(self, fields: Fields) -> str:
        return full_stop(f"Stopping {self._engine(fields)}: {fields['reason']}")

    def _engine_exited(self, fields: Fields) -> str:
        end: Fields = fields["exit"]
        how = end.get("signal") or (f"exit code {end['code']}" if end.get("code") is not None else "")
        subject = _capital(self._engine(fields))
        if end.get("expected"):
            return f"{subject} stopped as requested{f' ({how})' if how else ''}."
        subject += f" stopped unexpectedly{f' ({how})' if how else ''}"
        return full_stop(f"{subject}: {end['summary']}" if end.get("summary") else subject)

    def _engine_adopted(self, fields: Fields) -> str:
        engine, pid = self._engine(fields), fields["pid"]
        return f"Re-adopted {engine}, which an earlier daemon had left running as process {pid}."

    def _engine_lost(self, fields: Fields) -> str:
        return full_stop(_capital(f"{self._engine(fields)} is gone: {fields['reason']}"))

    # scheduler

    def _backend_chosen(self, fields: Fields) -> str:
        reasons = "; ".join(str(reason) for reason in fields.get("reasons") or ())
        chose = f"Chose {fields['backend']} for {self._model(fields)} ({fields['mode']})"
        return full_stop(f"{chose}: {reasons}" if reasons else chose)

    def _load_admitted(self, fields: Fields) -> str:
        spec: Fields = fields["spec"]
        before = int(fields.get("refused_before") or 0)
        slots = int(spec.get("slots") or 0)
        by = _asked_by(fields)
        with_slots = f" with {counted(slots, 'slot')}" if slots else ""
        refused = f", after refusing {counted(before, 'request')}" if before else ""
        return (
            f"Loading {_load(spec)}{with_slots}{f' for {by}' if by else ''}; "
            f"{format_size(spec.get('memory') or 0)} reserved "
            f"({format_size(fields['promised'])} of {format_size(fields['budget'])} in total){refused}."
            f"{' ' if fields.get('placed') else ''}{fields.get('placed') or ''}"
        )

    def _load_refused(self, fields: Fields) -> str:
        count = int(fields.get("count") or 1)
        advice = fields.get("advice") if fields["code"] == "backend_not_installed" else ""
        said = f"{fields['message']} {advice or ''}".strip()
        requests = "a request" if count == 1 else counted(count, "request")
        latest = "" if count == 1 else ", the latest because"
        return full_stop(f"Refused {requests} for {self._model(fields)}{latest}: {said}")

    def _load_failed(self, fields: Fields) -> str:
        load = f"{self._model(fields)} on {fields['backend']}"
        what = f"{load} stopped working" if fields.get("was_ready") else f"Loading {load} failed"
        return f"{what}: {_failure(fields)}"

    def _eviction_decided(self, fields: Fields) -> str:
        reason, model = str(fields["reason"]), self._model(fields)
        engine = f"{model} from {fields['backend']} (engine {fields['engine_id']})"
        if reason == "room":
            needed, free, held = (format_size(fields.get(one) or 0) for one in ("needed", "free", "memory"))
            other = short(str(fields.get("in_favour_of") or "another model"))
            numbers = f"{needed} needed, {free} free; {model} holds {held}"
            return f"Evicting {engine} to make room for {other}: {numbers}."
        idle = format_duration(float(fields.get("idle_seconds") or 0))
        return f"Unloading {engine}: {_EVICTED.get(reason, reason).format(idle=idle)}."

    def _breaker_opened(self, fields: Fields) -> str:
        model, times = self._model(fields, "Model"), counted(int(fields["failures"]), "time")
        return full_stop(
            f"{model} failed {times} on {fields['backend']} and will not be retried before "
            f"{_clock(fields['until'])}. The last failure: {fields['reason']}"
        )

    def _breaker_closed(self, fields: Fields) -> str:
        return full_stop(
            f"{self._model(fields, 'Model')} can be loaded on {fields['backend']} again: {fields['reason']}"
        )

    def _model_quarantined(self, fields: Fields) -> str:
        backend, failures = fields["backend"], int(fields["failures"])
        times = "once" if failures == 1 else f"{failures} times in a row"
        return full_stop(
            f"Quarantined {self._model(fields)} on {backend} {fields['version']}, where it failed {times}; "
            f"{backend} {fields['back_to_version']} serves it. The last failure: {fields['reason']}"
        )

    def _quarantine_lifted(self, fields: Fields) -> str:
        where = f"installation {fields['installation_id']} of {fields['backend']}"
        return full_stop(
            f"{self._model(fields, 'Model')} is no longer quarantined on {where}: {fields['reason']}"
        )

    def _config_changed(self, fields: Fields) -> str:
        what = ", ".join(config_parts(fields, {})) or "the defaults"
        return f"Configured {self._model(fields)} ({fields['mode']}) with {what}."

    def _keep_alive_wished(self, fields: Fields) -> str:
        what = "Pinned" if float(fields["keep_alive"]) < 0 else "Unpinned"
        return f"{what} {self._model(fields)}, as requested."

    # library

    def _pull_requested(self, fields: Fields) -> str:
        why = _why({"wanted_by": "explicit", **fields})
        name = short(str(fields["reference"]))
        if fields.get("origin"):
            return f"Adopting {name} from {fields['origin']}{why}."
        return f"Pulling {name}{why}."

    def _pull_attempt_failed(self, fields: Fields) -> str:
        what = "adopt" if self._origin(fields) else "pull"
        return (
            f"Attempt {fields['attempt']} to {what} {self._job(fields, 'a model')} failed: "
            f"{_failure(fields)} Retrying at {_clock(fields['retry_at'])}; downloaded data is kept."
        )

    def _model_committed(self, fields: Fields) -> str:
        model: Fields = fields["model"]
        facts = [str(model[name]) for name in ("parameters", "quantization", "format") if model.get(name)]
        if model.get("size"):
            facts.append(format_size(model["size"]))
        name = self._models[str(model["id"])]
        if not fields.get("fresh", True):
            return f"{name} is already up to date; nothing was downloaded."
        did = "Pulled" if str(fields.get("job")) in self._jobs else "Stored"
        if origin := self._origin(fields):
            did, name = "Adopted", f"{name} from {origin}"
        of_it = f" ({', '.join(facts)})" if facts else ""
        return f"{did} {name}{_took(fields)} and verified it{of_it}."

    def _model_pushed(self, fields: Fields) -> str:
        sent = int(fields.get("sent") or 0)
        how = f"{format_size(sent)} sent" if sent else "the registry already had all of it"
        return f"Pushed {self._model(fields)} as {short(str(fields['reference']))}{_took(fields)} ({how})."

    def _push_failed(self, fields: Fields) -> str:
        name = short(str(fields["reference"]))
        return f"Pushing {self._model(fields)} as {name} failed: {_failure(fields)}"

    def _pull_failed(self, fields: Fields) -> str:
        origin = self._origin(fields)
        if origin:
            return f"Adopting {self._job(fields, 'a model')} from {origin} failed: {_failure(fields)}"
        return f"Pulling {self._job(fields, 'a model')} failed: {_failure(fields)}"

    def _pull_cancelled(self, fields: Fields) -> str:
        what = "adoption" if self._origin(fields) else "pull"
        return full_stop(f"Cancelled the {what} of {self._job(fields, 'a model')}: {fields['reason']}")

    def _model_tagged(self, fields: Fields) -> str:
        names = ", ".join(short(str(tag)) for tag in fields["tags"])
        return f"Model {str(fields['model_id'])[7:19]} is now tagged {names or 'with no name'}."

    def _model_removed(self, fields: Fields) -> str:
        freed = int(fields.get("freed") or 0)
        space = f" That freed {format_size(freed)}." if freed else ""
        damaged = "it was found damaged: " if fields.get("damaged") else ""
        return f"Removed {self._model(fields)}: {damaged}{full_stop(fields['reason'])}{space}"

    # idempotency

    def _command_keyed(self, fields: Fields) -> str:
        return f"Received {fields['name']} with Idempotency-Key {str(fields['key'])[:12]}."

    def _command_answered(self, fields: Fields) -> str:
        key = str(fields["key"])[:12]
        return f"Answered the command with Idempotency-Key {key} with status {fields['status']}."

    # daemon

    def _daemon_started(self, fields: Fields) -> str:
        killed = self._running_pid
        self._running_pid = int(fields["pid"])
        address = f" at {fields['address']}" if fields.get("address") else ""
        text = (
            f"Greenroom {fields['version']} started{address} (process {fields['pid']}, {fields['platform']})."
        )
        if killed:
            text += f" The previous daemon (process {killed}) did not shut down cleanly."
        return text

    def _devices_changed(self, fields: Fields) -> str:
        before = {one["id"]: one for one in fields.get("before", ())}
        after = {one["id"]: one for one in fields.get("after", ())}
        told = [f"{one['name']} is gone." for name, one in before.items() if name not in after]
        told += [device_change(before.get(name), one) for name, one in after.items()]
        told += [f"{one['message']} {one.get('advice', '')}".strip() for one in fields.get("problems", ())]
        return " ".join(("Graphics devices:", *(told or ["all problems are resolved."])))

    def _remote_answered(self, fields: Fields) -> str:
        names, count = [str(one) for one in fields.get("models") or ()][:3], int(fields.get("count") or 0)
        more = ", …" if count > len(names) else ""
        told = f" ({', '.join(names)}{more})" if names else ""
        return f"{fields['backend']} answers at {fields['url']}: {counted(count, 'model')}{told}."

    def _remote_failed(self, fields: Fields) -> str:
        return f"{fields['backend']} cannot be used at {fields['url']}. {_failure(fields)}"

    def _conversations_saved(self, fields: Fields) -> str:
        return (
            f"Saved {_conversations(fields)} with {self._model(fields)} ({format_size(fields['bytes'])}) "
            f"{saved_when(fields['reason'])}."
        )

    def _conversations_restored(self, fields: Fields) -> str:
        saved = format_duration(round(fields["seconds"]))
        return f"Restored {_conversations(fields)} with {self._model(fields)}: {saved} of reading saved."

    def _conversations_dropped(self, fields: Fields) -> str:
        why = _DROPPED.get(fields["reason"], fields["reason"])
        size = format_size(fields["bytes"])
        return f"Dropped {_conversations(fields)} with {self._model(fields)} ({size}): {why}."

    def _conversations_failed(self, fields: Fields) -> str:
        failed = f"failed {counted(fields['count'], 'time')}: {fields['reason']}"
        return f"Reading or writing saved conversations {failed}. Prompts are read as usual."

    def _daemon_stopped(self, fields: Fields) -> str:
        self._running_pid = 0
        return full_stop(f"Greenroom shut down cleanly (process {fields['pid']}): {fields['reason']}")

    def _command_parked(self, fields: Fields) -> str:
        last = str(fields.get("traceback") or "").strip().rsplit("\n", 1)[-1]
        count = int(fields.get("count") or 1)
        times = f" (time {count})" if count > 1 else ""
        actor, what = str(fields["actor"]), str(fields["command"])
        where = "Greenroom" if actor.partition("/")[0] in OUR_ACTORS else f"the host program's actor {actor}"
        if what.isidentifier() and what != "settle":
            did = f"{actor} failed twice on {what}{times} and refused it"
        else:
            # Not a command, but the step that failed, and its subject.
            about = f" ({fields['fields']})" if fields.get("fields") else ""
            did = f"{actor} could not {what}{about}{times} and skipped it"
        return full_stop(f"Bug in {where}: {did}: {last}")


OUR_ACTORS = frozenset(
    {"conversations", "daemon", "idempotency", "installer", "library", "runner", "scheduler"}
)
"""Greenroom's actors, `runner/<backend>` without its backend; any other is the embedding program's."""


def short(reference: str) -> str:
    """A reference as people write it: `docker.io/ai/smollm2:latest` is `smollm2`."""
    match = _TOO_PRECISE.match(reference)
    return match[1] if match else reference


def _why(fields: Fields) -> str:
    """Why a job runs: the process, key or address that requested it, where that is known."""
    why = str(fields["wanted_by"])
    if why == "explicit":
        by = _asked_by(fields)
        return f", requested by {by}" if by else ", as requested"
    return f": {_WANTED_BY.get(why, why)}"


def _asked_by(fields: Fields) -> str:
    """The process, key or address that asked; empty for Greenroom itself and for this machine's address."""
    caller: Fields = fields.get("caller") or {}
    name = str(caller.get("name") or caller.get("id") or "")
    return "" if caller.get("kind") in ("", None, "greenroom") or name in ("127.0.0.1", "::1") else name


def _took(fields: Fields) -> str:
    seconds = float(fields.get("seconds") or 0)
    return f" in {format_duration(seconds)}" if seconds else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _conversations(fields: Fields) -> str:
    return f"{counted(int(fields['count']), 'conversation')} of {int(fields['tokens']):,} tokens"


def _load(spec: Fields) -> str:
    return f"{short(str(spec['model_ref']))} on {spec['backend']}"


def _versioned(fields: Fields) -> str:
    parts = (fields["backend"], fields.get("variant"), fields.get("version"))
    return " ".join(str(part) for part in parts if part)


def _installation(fields: Fields) -> str:
    size = int(fields.get("size") or 0)
    where = f", in {fields['root']}" if fields.get("root") else ""
    return f"installation {fields['id']}{f', {format_size(size)}' if size else ''}{where}"


def _id(fields: Fields) -> str:
    return f"Installation {fields['installation_id']} of {fields['backend']}"


def _failure(fields: Fields) -> str:
    failure: Fields = fields["failure"]
    return full_stop(f"{failure['message']} {failure.get('advice') or ''}".strip())


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


_TELLERS: Mapping[str, Callable[[Narrator, Fields], str]] = {
    name.removeprefix("_"): teller
    for name, teller in vars(Narrator).items()
    if name.startswith("_")
    and not name.startswith("__")
    and name not in ("_remember", "_job", "_origin", "_engine", "_model")
}
"""By tag: a method `_daemon_started` tells `daemon_started`."""

TOLD = frozenset(_TELLERS)
"""The tags that have a sentence."""
