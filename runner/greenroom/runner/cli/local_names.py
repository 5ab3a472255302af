"""Names that were given to models on this machine, and never meant anything elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from greenroom.runner.cli.problem import Problem

_TAGGED, _COMMITTED, _PULLED = "model_tagged", "model_committed", "pull_requested"


def check_not_local(home: Path, name: str) -> None:
    """Raise Problem for a name that models had here, though no pull ever brought one by it: another model
    may have it on Docker Hub. Reads the journal; where there is none, nothing is known.
    """
    from greenroom.actors.journal.reader import read_journal
    from greenroom.runner.models.references import BadReference, Reference

    journal = home / "journal.db"
    try:
        reference = Reference.parse(name)
    except BadReference:
        return
    if reference.scheme != "oci" or reference.explicit_registry or not journal.is_file():
        return
    tag, was_here, jobs = reference.stored_tag, False, set[str]()
    for record in read_journal(journal):
        if record.type not in (_TAGGED, _COMMITTED, _PULLED):
            continue
        fields = json.loads(record.data)
        if record.type == _PULLED:
            if fields["reference"] == tag and not fields.get("origin"):
                jobs.add(fields["job"])
        elif record.type == _COMMITTED and fields.get("job") in jobs:
            return
        else:
            was_here |= tag in (fields.get("tags") or (fields.get("model") or {}).get("tags") or ())
    if was_here:
        raise Problem(
            f"{name} was a name on this machine only, and no model has it any more.",
            f"If you mean the one on Docker Hub: greenroom pull {name}",
        )
