"""The user's home directory, if there is one: containers, services and bare user ids have none."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

NO_HOME = Path("/nonexistent")
"""What systems enter for users without one: an empty folder."""


def user_home(environment: Mapping[str, str] | None = None) -> Path:
    """`HOME`, else the home in the system's list of users, else `NO_HOME`. An empty `HOME` counts as
    unset.
    """
    named = (os.environ if environment is None else environment).get("HOME", "").strip()
    if named:
        return Path(named)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir or NO_HOME)
    except KeyError:
        return NO_HOME


def expanded(text: str | os.PathLike[str]) -> Path:
    """A path with a leading `~` expanded; unchanged if there is no such home."""
    first, _, rest = os.fspath(text).partition("/")
    if first == "~":
        return user_home() / rest
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
