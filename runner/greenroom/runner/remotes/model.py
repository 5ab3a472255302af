"""The models of a remote backend."""

from __future__ import annotations

from greenroom.actors.values import Model


class RemoteModel(Model, frozen=True, kw_only=True):
    """A model of a remote backend. Never stored."""

    remote: str
    """The backend that has it."""
    own: str
    """What it is called there."""


def remote_model(remote: str, own: str, url: str) -> RemoteModel:
    """Its id and its only tag are its name here: the backend's, a slash, and its own."""
    name = f"{remote}/{own}"
    return RemoteModel(id=name, tags=(name,), source=url, remote=remote, own=own)
