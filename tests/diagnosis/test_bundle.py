"""The bundle: what is in it, and what is nowhere in it."""

from __future__ import annotations

import json
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.installer.events import InstallFailed, InstallRequested
from greenroom.actors.values import Failure
from greenroom.runner.record.bodies import Kept
from greenroom.runner.record.row import Row
from greenroom.runner.record.table import FILE, RecordTable
from saved import kept as kept_conversation
from saved import store_in

SECRETS = {
    "index": "p4ss-of-the-index",
    "hub": "hf_PlantedHubTokenAbCdEf",
    "header": "planted-bearer-value",
    "proxy": "p4ss-of-the-proxy",
    "config": "p4ss-in-the-config",
    "shapeless": "correct horse battery",
    "file": "token-in-the-hub-file",
}
PROMPT = " ".join(["my secret diary entry"] * 8)  # longer than a line


@pytest.fixture
def planted(script: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with a secret or a prompt wherever one could get."""
    monkeypatch.setenv("HF_TOKEN", SECRETS["hub"])
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRETS['proxy']}@proxy.example:3128")
    monkeypatch.setenv("MY_PASSPHRASE", SECRETS["shapeless"])
    monkeypatch.setenv("PIP_INDEX_URL", f"https://me:{SECRETS['index']}@index.example/simple")
    token = home.parent / "person" / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text(SECRETS["file"])
    (home / "config.toml").write_text(
        f'[models]\nmine = "https://me:{SECRETS["config"]}@models.example/m.gguf"\n'
    )
    asked = script.add(InstallRequested(job="mlx.9", backend="mlx", version="", wanted_by="explicit"))
    failure = Failure(
        kind="permanent",
        code="refused",
        message=f"https://me:{SECRETS['index']}@index.example/simple answered 403.",
        detail=f"> Authorization: Bearer {SECRETS['header']}\n< 403\nproxy {SECRETS['proxy']}",
    )
    script.add(InstallFailed(job="mlx.9", backend="mlx", failure=failure), cause=asked)
    engine = script.load()
    said = (
        f"HF_TOKEN={SECRETS['hub']}",
        f"the passphrase was {SECRETS['shapeless']}",
        f"Received request: prompt: '{PROMPT}', params: None",
        f'{{"messages": [{{"role": "user", "content": "{PROMPT}"}}]}}',
    )
    script.die(engine, "It died.", was_ready=True, code=1, last_lines=said)
    script.raw(
        "parked/scheduler",
        "command_parked",
        json.dumps(
            {
                "actor": "scheduler",
                "command": "Serve",
                "fields": json.dumps({"messages": [PROMPT], "token": SECRETS["hub"]}),
                "traceback": f"ValueError: input_value='{PROMPT}' {SECRETS['file']}",
            }
        ),
    )
    script.write(home / "journal.db")
    folder = home / "engines" / engine
    folder.mkdir(parents=True)
    (folder / "capsule.json").write_text(json.dumps({"last_lines": said, "api_key": SECRETS["header"]}))
    (folder / "exit.json").write_text(f"broken {SECRETS['hub']}")
    (folder / "log").write_text("\n".join(said))
    saved = kept_conversation(store_in(home), home.parent, "abc", content=PROMPT.encode())
    (folder / "slots").mkdir()
    (folder / "slots" / saved.id).write_text(PROMPT)
    (home / "backends" / "mlx" / "0.32-ab.1").mkdir(parents=True)
    (home / "backends" / "mlx" / "0.32-ab.1" / "installation.json").write_text(
        json.dumps(
            {"id": "0.32-ab.1", "files": ["a"] * 500, "index": f"https://x:{SECRETS['index']}@i.example"}
        )
    )
    kept = Kept(json.dumps({"messages": [{"role": "user", "content": PROMPT}]}).encode())
    row = Row(
        id="r-0a1b2c3d-1",
        at=time.time(),
        method="POST",
        path="/v1/chat/completions",
        address="203.0.113.9",
        caller="203.0.113.9",
        caller_kind="address",
        user_agent=f"client/1 Bearer {SECRETS['header']}",
        code="invalid_request",
        sentence=f"It was sent with {SECRETS['file']}.",
        recorded=True,
    )
    table = RecordTable(home / FILE, keep_for=86_400.0, rows=10)
    table.append([(row, kept)], time.time())
    table.close()
    (home / "daemon.log").write_text(f"INFO fetched with {SECRETS['file']}\n{said[2]}\n")
    (home / "cli-errors.log").write_text(f"X-Api-Key: {SECRETS['header']}\n")
    return home


def unpacked(file: Path) -> dict[str, str]:
    with tarfile.open(file) as archive:
        files = {one.name.partition("/")[2]: archive.extractfile(one) for one in archive.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_no_secret_and_no_prompt_is_anywhere_in_it(greenroom: Any, planted: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.tar.gz"

    outcome = greenroom("bundle", "-o", str(target))

    assert outcome.code == 0, outcome.err
    parts = unpacked(target)
    for name, text in {**parts, "stdout": outcome.out, "stderr": outcome.err}.items():
        for which, secret in SECRETS.items():
            assert secret not in text, f"{which} is in {name}"
        assert PROMPT not in text, name
        assert "diary" not in text, name
        assert str(tmp_path / "person") not in text, "the home directory has a name"
    recorded = json.loads(parts["requests.jsonl"])
    assert (recorded["id"], recorded["address"], recorded["caller"]) == ("r-0a1b2c3d-1", "***", "***")
    (conversation,) = (planted / "conversations").glob("c-*.json")
    assert not any("conversations/" in name or "slots" in name for name in parts)
    assert not any(conversation.stem in text or "checksum" in text for text in parts.values())
    assert "Removed: " in outcome.out
    assert "possible prompts" in outcome.out


def test_a_bundle_lists_and_holds_what_a_bug_report_needs(
    greenroom: Any, planted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "b.tar.gz"

    outcome = greenroom("bundle", "-o", str(target))

    parts = unpacked(target)
    engine = next(name.split("/")[1] for name in parts if name.startswith("engines/"))
    assert set(parts) == {
        "requests.jsonl",
        "README.txt",
        "versions.json",
        "config.json",
        "devices.json",
        "config.toml",
        "journal.jsonl",
        "log.txt",
        "state.json",
        "why.txt",
        "installations.json",
        f"engines/{engine}/capsule.json",
        f"engines/{engine}/exit.json",
        "daemon.log",
        "cli-errors.log",
    }
    for name in parts:
        assert name == "README.txt" or name in parts["README.txt"]
        assert name.partition("/")[0] in outcome.out
    versions = json.loads(parts["versions.json"])
    assert versions["greenroom"]
    assert versions["libraries"]["msgspec"]
    assert versions["environment"]["HF_TOKEN"] == "***"
    events = [json.loads(line) for line in parts["journal.jsonl"].splitlines()]
    assert [one["seq"] for one in events] == list(range(1, len(events) + 1))
    assert json.loads(parts["state.json"])["seq"] == len(events)
    assert "smollm2 is not loaded: its engine crashed" in parts["why.txt"]
    assert "mlx is not installed: its installation failed" in parts["why.txt"]
    assert json.loads(parts["installations.json"])["mlx/0.32-ab.1"]["files"] == "500 files"
    assert "It died." in parts["log.txt"]
    assert f"Written to {target}" in outcome.out


def test_only_its_owner_can_read_it_and_nothing_is_overwritten(
    greenroom: Any, planted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "b.tar.gz"
    assert greenroom("bundle", "-o", str(target)).code == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    before = target.read_bytes()

    outcome = greenroom("bundle", "-o", str(target))

    assert outcome.code == 1
    assert f"{target} already exists. Choose another file with -o." in outcome.err
    assert target.read_bytes() == before


def test_a_bundle_is_named_after_the_time_by_default(
    greenroom: Any, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert greenroom("bundle").code == 0
    assert greenroom("bundle", "-o", str(planted)).code == 0

    assert len(list(tmp_path.glob("greenroom-bundle-*.tar.gz"))) == 1
    assert len(list(planted.glob("greenroom-bundle-*.tar.gz"))) == 1


def test_a_bundle_in_a_folder_that_cannot_be_written_to_is_refused(greenroom: Any, home: Path) -> None:
    outcome = greenroom("bundle", "-o", str(home / "no" / "b.tar.gz"))

    assert outcome.code == 1
    assert "cannot be written: No such file or directory." in outcome.err


def test_with_nothing_at_all_it_still_says_on_what(greenroom: Any, home: Path, tmp_path: Path) -> None:
    outcome = greenroom("bundle", "-o", str(tmp_path / "b.tar.gz"))

    assert outcome.code == 0
    assert "journal: there is no journal" in outcome.err
    assert set(unpacked(tmp_path / "b.tar.gz")) == {
        "README.txt",
        "versions.json",
        "devices.json",
        "config.json",
    }


def test_a_damaged_journal_is_taken_as_far_as_it_can_be_read(
    greenroom: Any, planted: Path, tmp_path: Path
) -> None:
    path = planted / "journal.db"
    content = bytearray(path.read_bytes())
    content[content.index(b"It died.")] ^= 1
    path.write_bytes(content)

    outcome = greenroom("bundle", "-o", str(tmp_path / "b.tar.gz"))

    parts = unpacked(tmp_path / "b.tar.gz")
    assert outcome.code == 0
    assert "The journal is damaged from event" in outcome.err
    assert "The journal is damaged from event" in parts["README.txt"]
    assert "is ready after 0.8s" in parts["log.txt"]


def test_a_long_journal_is_cut_to_its_end(
    greenroom: Any, script: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.diagnosis.bundle.EVENTS", 50)
    for _ in range(20):
        script.evict(script.load(), "idle")
    script.write(home / "journal.db")

    outcome = greenroom("bundle", "-o", str(tmp_path / "b.tar.gz"))

    parts = unpacked(tmp_path / "b.tar.gz")
    assert f"the last 50 of {len(script.records)} events" in outcome.out
    assert parts["journal.jsonl"].count("\n") == 50
    assert json.loads(parts["state.json"])["seq"] == len(script.records), "the state is that of all events"
