"""`greenroom conversations`: what it shows, and what it removes."""

from __future__ import annotations

import json
import time
from typing import Any

ROW = {
    "id": "c-1a2b3c4d5e6f",
    "model": "ai/smollm2",
    "model_id": "sha256:12",
    "backend": "llama.cpp",
    "owner": "user:1000",
    "tokens": 4_279,
    "size": 98_700_000,
    "saved_at": 0.0,
    "used_at": 0.0,
    "expires_at": 0.0,
    "seconds": 43.3,
    "reason": "keep_alive",
    "cause": "",
    "restored": 2,
}
LIMITS = {"bytes": 98_700_000, "limit": 10**10, "written_today": 2 * 10**8, "write_limit": 10**11, "off": ""}


def test_they_are_listed_with_the_budgets(greenroom: Any, our_daemon: Any) -> None:
    now = time.time()
    row = ROW | {"used_at": now - 600, "expires_at": now + 3_600, "reason": "evicted", "cause": "for gemma3"}
    our_daemon.routes["GET /conversations"] = {"conversations": [row], **LIMITS}
    done = greenroom("conversations")
    assert done.code == 0
    for text in ("c-1a2b3c4d5e6f", "4,279", "98.7 MB", "10m ago", "evicted (for gemma3)"):
        assert text in done.out
    assert "98.7 MB of at most 10.0 GB on the disk" in " ".join(done.out.split())


def test_that_none_are_saved_is_said(greenroom: Any, our_daemon: Any) -> None:
    off = 'the setting conversations is "off"'
    our_daemon.routes["GET /conversations"] = {"conversations": [], **LIMITS, "off": off}
    assert off in greenroom("conversations").err
    our_daemon.routes["GET /conversations"] = {"conversations": [], **LIMITS}
    assert "No conversation is saved." in greenroom("conversations").out
    assert json.loads(greenroom("conversations", "--json").out)["conversations"] == []


def test_they_are_removed_by_id_and_by_model(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["DELETE /conversations/c-1a2b3c4d5e6f"] = {"removed": 1, "freed": 10**6, "left": 0}
    our_daemon.routes["DELETE /conversations?model=smollm2"] = {"removed": 2, "freed": 10**6, "left": 0}
    done = greenroom("conversations", "rm", "c-1a2b3c4d5e6f", "smollm2")
    assert (done.code, done.out) == (0, "Removed 3 conversations; freed 2.00 MB.\n")


def test_what_cannot_be_removed_is_said(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["DELETE /conversations"] = {"removed": 0, "freed": 0, "left": 1}
    done = greenroom("conversations", "rm", "--all")
    assert done.code == 1
    assert "could not be removed" in done.err
    our_daemon.routes["DELETE /conversations?model=nope"] = (404, {"error": {"message": "There is none."}})
    done = greenroom("conversations", "rm", "nope")
    assert done.code == 1
    assert "There is none." in done.err
    assert greenroom("conversations", "rm").code == 2
    assert greenroom("conversations", "rm", "--all", "smollm2").code == 2
