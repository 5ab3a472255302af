"""`greenroom adopt`: models that other programs keep on this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.main import settings_of, uncollected
from greenroom.runner.cli.output import announce, style, table, terminal_width
from greenroom.runner.cli.problem import Problem, exit_code_of
from greenroom.runner.client.errors import GreenroomError
from greenroom.runner.units import format_size

if TYPE_CHECKING:
    from greenroom.runner.models.elsewhere.scan import FoundModel
    from greenroom.runner.models.store import ModelStore


@dataclass(frozen=True)
class Candidate:
    """A model that was found, and what the user should know before adopting it."""

    name: str
    place: str
    path: Path
    size: int = 0
    format: str = ""
    state: str = "new"
    """`new`, `adopted`, `taken` (another model has its name) or `unusable`."""
    adopted_as: str = ""
    """Its name here, if it is in the store already."""
    problem: str = ""
    """Why it cannot be adopted, in one sentence."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


@click.command("adopt")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-n", "--dry-run", is_flag=True, help="List the models without adopting them.")
@click.option("--from", "folder", type=click.Path(path_type=Path, file_okay=False), help="Look only there.")
@click.option("--as", "called", metavar="NAME", help="Name to adopt the model under (one model only).")
@click.option("--copy", is_flag=True, help="Copy files that cannot be shared, such as those on another disk.")
@click.option("--json", "as_json", is_flag=True, help="Print the models and what became of each as JSON.")
@click.pass_context
def adopt_command(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    dry_run: bool,
    folder: Path | None,
    called: str | None,
    copy: bool,
    as_json: bool,
) -> int:
    """Adopt the models that Ollama, LM Studio, llama.cpp and Hugging Face's tools keep here; or only NAMES.

    Their files are verified and shared with Greenroom's store, so they take no space again. They are never
    moved or changed, and what is adopted stays when the other program removes it.
    """
    settings = settings_of(ctx)
    if settings.host:
        _check_is_here(settings.host)
    found = _candidates(settings.home / "models", folder)
    chosen = _chosen(found, names)
    if called is not None:
        chosen = [_renamed(chosen, called, settings.home / "models")]
    if not chosen and not as_json:
        announce(_nothing(folder))
        return exit_codes.OK
    if dry_run:
        _list(chosen, as_json=as_json)
        return exit_codes.OK
    if not any(one.state == "new" for one in chosen):
        _list(chosen, as_json=as_json)
        return exit_codes.FAILED if names and any(one.problem for one in chosen) else exit_codes.OK
    return _adopt(settings, chosen, copy=copy, as_json=as_json)


def _check_is_here(host: str) -> None:
    from greenroom.runner.client.daemons import is_on_this_machine

    if not is_on_this_machine(host):
        raise Problem(
            f"The daemon at {host} runs on another machine and cannot read the files of this one.",
            "Run this command there.",
            code=exit_codes.USAGE,
        )


def _adopt(settings: Any, chosen: Sequence[Candidate], *, copy: bool, as_json: bool) -> int:
    from greenroom.runner.cli.jobs import adopt
    from greenroom.runner.client.daemons import ensure_daemon

    client = ensure_daemon(settings, announce)
    outcomes = []
    for one in chosen:
        outcome = {**one.as_json(), "adopted": False}
        outcomes.append(outcome)
        if one.state != "new":
            if one.problem and not as_json:
                announce(f"Skipped {one.name}: {one.problem}")
            continue
        try:
            adopt(client, one.name, str(one.path), copy=copy)
        except GreenroomError as problem:
            if exit_code_of(problem) == exit_codes.NOT_RUNNING:
                raise
            outcome |= {"state": "failed", "problem": str(problem)}
            announce(f"{style('Error:', fg='red')} {problem}")
        else:
            outcome |= {"state": "adopted", "adopted": True}
            if not as_json:
                how = "copied where they cannot be shared" if copy else f"shared with {one.place}"
                click.echo(f"Adopted {one.name}: its files ({format_size(one.size)}) are {how}.")
    if as_json:
        click.echo(json.dumps(outcomes, indent=4, ensure_ascii=False))
    return exit_codes.FAILED if any(one["state"] == "failed" for one in outcomes) else exit_codes.OK


def _list(found: Sequence[Candidate], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([one.as_json() for one in found], indent=4, ensure_ascii=False))
        return
    rows = [(one.name, format_size(one.size) if one.size else "", one.place, _state(one)) for one in found]
    click.echo(table(("NAME", "SIZE", "FROM", "STATE"), rows, spare=("FROM",), width=terminal_width()))
    for one in found:
        if one.problem:
            announce(f"{one.name}: {one.problem}")
    new = [one for one in found if one.state == "new"]
    if new:
        total = format_size(sum(one.size for one in new))
        announce(f"\nAdopt {'it' if len(new) == 1 else f'all {len(new)}'} ({total}): greenroom adopt")


def _state(one: Candidate) -> str:
    if one.state == "adopted" and one.adopted_as != one.name:
        return f"adopted as {one.adopted_as}"
    return {"new": "", "taken": "name taken"}.get(one.state, one.state)


@uncollected()
def _candidates(root: Path, folder: Path | None) -> list[Candidate]:
    from greenroom.runner.models.elsewhere.places import place_at, places
    from greenroom.runner.models.store import ModelStore
    from greenroom.runner.threads import Cancel

    if folder is not None and not folder.is_dir():
        raise Problem(f"There is no folder {folder}.", code=exit_codes.USAGE)
    store = ModelStore(root)
    cancel = Cancel()
    looked_in = [place_at(folder.resolve())] if folder is not None else places(os.environ)
    models = (one for place in looked_in for one in place.models(cancel))
    return list(_distinct(_looked_at(models, store)))


def _looked_at(models: Iterable[FoundModel], store: ModelStore) -> Iterator[Candidate]:
    for count, one in enumerate(models, 1):
        if sys.stderr.isatty() and count % 50 == 0:
            announce(f"Checked {count} models…")
        yield _look_at(one, store)


def _look_at(found: FoundModel, store: ModelStore) -> Candidate:
    """Reads the headers of its files, as the daemon will."""
    from greenroom.runner.errors import JobFailed
    from greenroom.runner.models.references import BadReference, Reference, familiar
    from greenroom.runner.models.sources.path import PathSource
    from greenroom.runner.threads import Cancel

    try:
        reference = Reference.parse(f"file:{found.path}")
        offer = PathSource(store.root, sharing=True).describe(reference, Cancel())
    except (JobFailed, BadReference) as error:
        problem = error.failure.message if isinstance(error, JobFailed) else str(error)
        return Candidate(found.name, found.place, found.path, state="unusable", problem=problem)
    one = Candidate(found.name, found.place, found.path, offer.size, offer.format)
    known = store.known(offer.fingerprint)
    if known is not None:
        name = familiar(known.tags[0]) if known.tags else known.id[7:19]
        return replace(one, state="adopted", adopted_as=name)
    taken = _taken(found.name, store)
    return replace(one, state="taken", problem=taken) if taken else one


def _taken(name: str, store: ModelStore) -> str:
    from greenroom.runner.models.references import Reference

    tag = Reference.parse(name).stored_tag
    if any(tag in model.tags for model in store.models()):
        return (
            f"Another model in the store is named {name}. To adopt this one: greenroom adopt {name} --as NAME"
        )
    return ""


def _distinct(found: Iterable[Candidate]) -> Iterator[Candidate]:
    """Of new models with the same name, the first; the others are adopted under names of their own."""
    names: dict[str, Candidate] = {}
    for one in found:
        first = names.setdefault(one.name, one) if one.state == "new" else one
        if first is one:
            yield one
        else:
            problem = (
                f"{first.place} has a model of that name too. "
                f"To adopt this one: greenroom adopt --from {one.path.parent} --as NAME"
            )
            yield replace(one, state="taken", problem=problem)


def _chosen(found: Sequence[Candidate], names: Sequence[str]) -> list[Candidate]:
    from greenroom.runner.models.references import BadReference, Reference, familiar

    if not names:
        return list(found)
    chosen = []
    for name in names:
        try:
            wanted = familiar(Reference.parse(name).stored_tag)
        except BadReference as error:
            raise Problem(str(error), code=exit_codes.USAGE) from error
        fitting = [one for one in found if wanted in (one.name, one.name.partition(":")[0])]
        if not fitting:
            raise Problem(
                f"No other program here has a model {name}.", "To list them: greenroom adopt --dry-run"
            )
        chosen += [one for one in fitting if one not in chosen]
    return chosen


def _renamed(chosen: Sequence[Candidate], name: str, root: Path) -> Candidate:
    from greenroom.runner.cli.models import split
    from greenroom.runner.models.references import familiar
    from greenroom.runner.models.store import ModelStore

    usable = [one for one in chosen if one.state in ("new", "taken")]
    if len(usable) != 1:
        raise click.UsageError("--as takes one model at a time: name the one to adopt.")
    repository, tag = split(name)
    name = familiar(f"{repository}:{tag}")
    taken = _taken(name, ModelStore(root))
    return replace(usable[0], name=name, state="taken" if taken else "new", problem=taken)


def _nothing(folder: Path | None) -> str:
    if folder is not None:
        return f"There are no models in {folder}."
    return (
        "Found no models of Ollama, LM Studio, llama.cpp or Hugging Face on this machine. "
        "To look in another folder: greenroom adopt --from DIR"
    )
