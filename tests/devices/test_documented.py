"""Every problem has its row in docs/devices.md."""

from __future__ import annotations

import re
from pathlib import Path

from greenroom.runner.devices import problems

DOCS = Path(__file__).parents[2] / "docs" / "devices.md"


def test_every_problem_is_documented_with_what_to_do_and_no_other() -> None:
    source = Path(problems.__file__).read_text("utf-8")
    codes = set(re.findall(r'(?:_problem\(\s*|code=)"([a-z_]+)"', source))
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", DOCS.read_text("utf-8"), re.MULTILINE)
    told = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    assert len(codes) > 15
    assert told == codes
