"""Plain English: words that the text does without, each with the number of uses that are still allowed.

`make words` lowers the numbers in words.toml to what is left. Nothing raises them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "words.toml"
FOLDERS = ("actors", "runner", "bench", "docs", "examples", "tests", ".ci", ".github")
SUFFIXES = {".md", ".py", ".sh", ".yml", ""}
OUTSIDE = {Path(__file__).resolve(), LIST, ROOT / "LICENSE"}

Words = dict[str, dict[str, str | int]]


def words() -> Words:
    return tomllib.loads(LIST.read_text("utf-8"))


def texts() -> dict[Path, str]:
    """Every file that people write and read."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob(".*.yaml"), ROOT / "Makefile"]
    for folder in FOLDERS:
        files += (path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)
    return {path: path.read_text("utf-8") for path in files if path.is_file() and path not in OUTSIDE}


def uses() -> dict[str, list[str]]:
    """Where each word occurs, as FILE:LINE."""
    read = [(path, text, text.lower()) for path, text in sorted(texts().items())]
    return {
        name: [
            f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            for path, text, lower in read
            if "pattern" in entry or name.split()[0].lower() in lower  # quicker than a pattern
            for match in pattern(name, entry).finditer(text)
        ]
        for name, entry in words().items()
    }


def pattern(name: str, entry: dict[str, str | int]) -> re.Pattern[str]:
    # A sentence may break anywhere between two words.
    spelled = str(entry.get("pattern", name)).replace(" ", r"\s+")
    return re.compile(rf"(?<!\w)(?:{spelled})(?!\w)", re.IGNORECASE)


def test_no_word_of_the_list_is_used_more_often_than_it_still_may_be() -> None:
    listed = words()
    too_many = [
        f"{name!r} {len(found)} times ({entry['allowed']} allowed); write: {entry['instead']}\n  "
        + "\n  ".join(found)
        for (name, entry), found in zip(listed.items(), uses().values(), strict=True)
        if len(found) > int(entry["allowed"])
    ]
    assert not too_many, "\n".join(too_many)


def tighten() -> None:
    """Write how often each word occurs where that is less than what is allowed."""
    text = LIST.read_text("utf-8")
    for name, found in uses().items():
        allowed = int(words()[name]["allowed"])
        if len(found) < allowed:
            key = name if name.isidentifier() else f'"{name}"'
            head = re.compile(rf"(^\[{re.escape(key)}\]\n(?:(?!^\[).*\n)*?allowed = )\d+", re.MULTILINE)
            text = head.sub(rf"\g<1>{len(found)}", text, count=1)
            print(f"{name}: {allowed} → {len(found)}")
    LIST.write_text(text, "utf-8")


if __name__ == "__main__":
    tighten()
