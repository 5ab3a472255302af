"""The home directory of the user, who may have none: in containers, for services, for a bare user id."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

NO_HOME = Path("/nonexistent")
"""What systems enter for users without one: a folder in which nothing is found."""


def user_home(environment: Mapping[str, str] | None = None) -> Path:
    """`HOME`, else what the system's list of users says, else `NO_HOME`. An empty `HOME` is none."""
    named = (os.environ if environment is None else environment).get("HOME", "").strip()
    if named:
        return Path(named)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir or NO_HOME)
    except KeyError:
        return NO_HOME


def expanded(text: str | os.PathLike[str]) -> Path:
    """A path in which a leading `~` stands for a home directory; left alone where nobody has that one."""
    first, _, rest = os.fspath(text).partition("/")
    if first == "~":
        return user_home() / rest
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
