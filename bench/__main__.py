"""Every measurement, one after the other, and a table of the budgets: `make bench`, or `python -m bench`.

    python -m bench [--json] [--only daemon front_door …] [--quick]

Each program of this folder measures one thing and can be run alone. Figures of a machine that does something
else at the same time are worth little, so the load is said with them. Exits 1 when a budget is not held.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PROGRAMS = (
    *("journal", "kernel", "front_door", "asgi", "families", "engines"),
    *("clients", "installer", "daemon", "commands", "why", "conversations"),
)
ALWAYS = {"conversations": ["--brief"]}
QUICK = {
    "journal": ["--seconds", "0.5", "--events", "20000"],
    "kernel": ["--seconds", "0.3"],
    "front_door": ["--requests", "100", "--streams", "16", "--seconds", "2"],
    "asgi": ["--requests", "100"],
    "families": ["--requests", "60", "--streams", "16", "--seconds", "2", "--repeat", "1"],
    "clients": ["--repeat", "1", "--clients", "4", "16", "--tokens", "16", "--context", "256"],
    "installer": ["--repeat", "1"],
    "daemon": ["--events", "20000", "--repeat", "2", "--callers", "200"],
    "commands": ["--repeat", "1"],
    "why": ["--events", "20000", "--repeat", "2"],
    "conversations": ["--tokens", "500", "--requests", "100"],
}
ALWAYS_JSON = ("front_door", "asgi")
BUSY = 0.5
"""Load for each processor above which figures are not to be trusted."""


class Budget(NamedTuple):
    """One line of the table."""

    what: str
    program: str
    measured: Callable[[Any], float]
    limit: float
    unit: str
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a measured value is within it."""
        return value >= self.limit if self.at_least else value <= self.limit


def stream(number: int) -> Callable[[Any], float]:
    return lambda found: float(
        next(one["ratio"] for one in found["throughput"] if one["streams"] == number) * 100
    )


BUDGETS = (
    Budget(
        "first token, added by the front door, p50",
        "front_door",
        lambda found: found["first_token_ms"]["added_p50"],
        0.4,
        "ms",
    ),
    Budget(
        "first token as an ASGI application, beside aiohttp", "asgi", lambda found: found["ratio"], 1.15, "x"
    ),
    Budget(
        "first token, added by the record of requests",
        "front_door",
        lambda found: found["record"]["first_token_added_ms"],
        0.02,
        "ms",
    ),
    Budget(
        "throughput with the record of requests beside without, 256 streams",
        "front_door",
        lambda found: 100 * found["record"]["throughput_ratio"],
        98,
        "%",
        True,
    ),
    Budget("throughput beside the bare engine, 64 streams", "front_door", stream(64), 98, "%", True),
    Budget("throughput beside the bare engine, 256 streams", "front_door", stream(256), 98, "%", True),
    *(
        Budget(
            f"{what} of translated streams beside chat completions, the slowest family",
            "families",
            lambda found, field=field: max(one[field] for one in found["families"]),  # type: ignore[misc]
            2,
            "x",
        )
        for what, field in (("first token", "first_token_ratio"), ("processor a token", "processor_ratio"))
    ),
    Budget(
        "cold request, of the engine's own start", "engines", lambda found: found["cold"]["ratio"], 1.05, "x"
    ),
    Budget(
        "tokens a second of 16 clients on one llama.cpp engine, beside the same by hand",
        "clients",
        lambda found: 100 * next(one["ratio"] for one in found["clients"] if one["clients"] == 16),
        95,
        "%",
        True,
    ),
    Budget(
        "answers lost by clients on one engine",
        "clients",
        lambda found: sum(one["lost"] for one in (*found["clients"], found["long_answers"])),
        0,
        "",
    ),
    Budget(
        "restart to ready, 100,000 events", "daemon", lambda found: found["restart"]["long_ready_s"], 1, "s"
    ),
    Budget(
        "1,000 callers of one absent backend: installations",
        "daemon",
        lambda found: found["joined"]["installations"],
        1,
        "",
    ),
    Budget(
        "`greenroom ps` against a live daemon",
        "daemon",
        lambda found: found["command_line"]["ps_ms"],
        150,
        "ms",
    ),
    Budget(
        "the slowest command that answers at once, but for `why`; processor",
        "commands",
        lambda found: max(one["processor_ms"] for one in found["commands"] if one["limit_ms"] == 100),
        100,
        "ms",
    ),
    Budget(
        "`greenroom why`, 100,000 events, processor",
        "why",
        lambda found: max(found["why"].values()) * 1_000,
        300,
        "ms",
    ),
    Budget(
        "next turn of a chat of 4,000 tokens after its engine has ended, times as soon as without",
        "conversations",
        lambda found: next(one["times"] for one in found["chats"] if one["tokens"] >= 4_000),
        20,
        "x",
        True,
    ),
    Budget(
        "first token, added by saving conversations where nothing is saved",
        "conversations",
        lambda found: max(found["unused"]["in_process_us"].values()) / 1_000,
        0.01,
        "ms",
    ),
    Budget("daemon memory, idle", "daemon", lambda found: found["restart"]["empty_memory_mb"], 84, "MB"),
)


def run(program: str, quick: bool) -> Any:
    """What a program has measured; None when it failed, which it has said itself."""
    argv = [sys.executable, str(HERE / f"{program}.py")]
    argv += [] if program in ALWAYS_JSON else ["--json"]
    argv += ALWAYS.get(program, [])
    argv += QUICK.get(program, []) if quick else []
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False, cwd=HERE.parent)
    # A budget that is not held is an exit code too; what was measured is on standard output all the same.
    try:
        return json.loads(done.stdout)
    except ValueError:
        print(f"{program} measured nothing (exit code {done.returncode}).", file=sys.stderr)
        return None


def judged(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Each budget beside what was measured."""
    found = []
    for budget in BUDGETS:
        value: float | None = None
        if results.get(budget.program) is not None:
            try:
                value = round(float(budget.measured(results[budget.program])), 3)
            except (KeyError, StopIteration):
                value = None  # a quick run measures less
        found.append(
            {
                "what": budget.what,
                "measured": value,
                "budget": budget.limit,
                "unit": budget.unit,
                "held": None if value is None else budget.holds(value),
            }
        )
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """For people."""
    signs = {budget.what: ">=" if budget.at_least else "<=" for budget in BUDGETS}
    rows = [("", "measured", "budget", "")]
    for line in lines:
        value = "not measured" if line["measured"] is None else f"{line['measured']:g} {line['unit']}"
        verdict = {True: "held", False: "NOT HELD", None: ""}[line["held"]]
        rows.append(
            (line["what"], value, f"{signs[line['what']]} {line['budget']:g} {line['unit']}", verdict)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    there = [name for name in PROGRAMS if (HERE / f"{name}.py").exists()]
    parser.add_argument("--json", action="store_true", help="one object with everything measured")
    parser.add_argument("--only", nargs="+", choices=there, default=there, metavar="PROGRAM")
    parser.add_argument("--quick", action="store_true", help="whether all of it works, in a minute or two")
    flags = parser.parse_args()
    before = os.getloadavg()[0]
    results: dict[str, Any] = {}
    for name in flags.only:
        print(f"{name} …", file=sys.stderr)
        results[name] = run(name, flags.quick)
    lines = judged(results)
    machine = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(before, 2),
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "quick": flags.quick,
    }
    if flags.json:
        print(json.dumps({"machine": machine, "budgets": lines, "results": results}, indent=1))
    else:
        print(f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}\n")
        print(table(lines))
        if before > BUSY * (os.cpu_count() or 1):
            print(f"\nThe machine was busy (load {before:.1f}): measure again when it is quiet.")
    failed = any(line["held"] is False for line in lines) or None in results.values()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
