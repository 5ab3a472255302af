"""What `why` keeps of a journal makes it quicker and changes no answer, whatever became of either."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.actors.journal.port import Entry, Record
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.library.events import ModelTagged, PullFailed, PullRequested
from greenroom.actors.values import Failure
from greenroom.runner.diagnosis import checkpoint
from greenroom.runner.diagnosis.explain import UnknownName, answer
from greenroom.runner.diagnosis.history import History

MODELS = ("smollm2", "poet", "qwen3")


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """A file is written however little was read."""
    with mock.patch.object(checkpoint, "WORTH", 1):
        yield


def act(script: Any, choice: random.Random, running: list[str]) -> None:
    """One thing of many that happen to a Greenroom."""
    name = choice.choice(MODELS)
    engine = choice.choice(running) if running else ""
    failure = Failure(kind="permanent", code="engine_failed", message="It broke.")
    match choice.randrange(13):
        case 0:
            script.model(name)
        case 1 | 2 | 3:
            mode = choice.choice(("completion", "embedding"))
            running.append(script.load(name, mode=mode, request=script.request()))
        case 4 | 5 if engine:
            running.remove(engine)
            script.evict(engine, "idle", idle_seconds=300.0, cause=script.request())
        case 6 if engine:
            running.remove(engine)
            script.die(engine, "It was killed.", was_ready=choice.random() < 0.5)
        case 7:
            script.refuse(name, "no_backend", "No backend serves it.", backends=("mlx",))
        case 8:
            script.install(choice.choice(("llama.cpp", "mlx")), cause=script.request())
        case 9:
            script.daemon(pid=choice.randrange(100, 105))
        case 10:
            job, tag = script.job("pull"), f"docker.io/ai/{name}:latest"
            script.add(PullRequested(job=job, reference=tag), cause=script.request())
            script.add(PullFailed(job=job, failure=failure))
        case 11:
            model_id = f"sha256:{name.encode().hex():0<64.64}"
            tags = (f"docker.io/ai/{choice.choice(MODELS)}:{choice.choice('ab')}",)
            script.add(ModelTagged(model_id=model_id, tags=tags))
        case _:
            script.raw("scheduler", "of_a_newer_version", '{"model_id":"sha256:1"}')
    script.wait(choice.uniform(0, 1000))


def store(path: Path, records: list[Record]) -> None:
    """Append them to the journal there."""
    journal = SqliteJournal(path)
    journal.append(
        [Entry(**{name: getattr(one, name) for name in Entry.__struct_fields__}) for one in records]
    )
    journal.close()


def questions(records: list[Record]) -> list[str]:
    """About everything there is, and some that there is not."""
    asked = [
        "",
        "daemon",
        "memory",
        "queue",
        *MODELS,
        "ai/poet:a",
        "llama.cpp",
        "mlx",
        "101",
        "unheard",
        "4711",
    ]
    for one in (records[0], records[len(records) // 2], records[-1]):
        fields = msgspec.json.decode(one.data)
        asked += [one.id, one.cause, fields.get("engine_id", ""), fields.get("job", "")]
    return [
        *dict.fromkeys(asked),
        "18bd0f5a2c0-1",
        "18bd",
        "r-0a1b2c3d-1",
        "scheduler/9999999999999999999999",
    ]


def said(history: History, question: str, now: float) -> bytes:
    try:
        return msgspec.json.encode(answer(history, question, now, backends={"mlx": "", "llama.cpp": ""}))
    except UnknownName as error:
        return f"{error} {error.near} {error.advice}".encode()


def from_all(path: Path, question: str, now: float) -> bytes:
    """The answer from the whole journal."""
    with JournalReader(path, strict=False) as reader:
        return said(History(question, reader).read(reader.read()), question, now)


def kept(path: Path, question: str, now: float) -> bytes:
    """The answer with whatever is kept."""
    with JournalReader(path, strict=False) as reader:
        return checkpoint.told(reader, question, lambda history: said(history, question, now))


def everything(history: History) -> dict[str, Any]:
    """All that it remembers, in the order in which it was learned."""
    plain = ("recent_engines", "caused", "pids", "versions", "modes", "notices", "is_sound")
    index, subjects = history.index, history.subjects
    return {
        **{name: getattr(history, name) for name in plain},
        "index": [(one, index.about(one), index.type_of(one)) for one in range(1, len(index) + 1)],
        "subjects": [list(one.items()) for one in (subjects.names, subjects.engines, subjects.pulls)],
        "state": history.snapshot,
    }


def file_of(path: Path) -> Path:
    return path.with_name(path.name + checkpoint.SUFFIX)


def is_used(path: Path) -> bool:
    with JournalReader(path, strict=False) as reader:
        return checkpoint.resumed(reader, "") is not None


def a_script(scripts: Any, acts: int, seed: int) -> Any:
    script, choice, running = scripts(), random.Random(seed), list[str]()
    script.daemon()
    for _ in range(acts):
        act(script, choice, running)
    return script


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), acts=st.integers(3, 40), cuts=st.lists(st.floats(0, 1), max_size=2))
def test_answers_from_what_is_kept_are_those_of_the_whole_journal(
    scripts: Any, seed: int, acts: int, cuts: list[float]
) -> None:
    script = a_script(scripts, acts, seed)
    records = script.records
    with TemporaryDirectory() as folder:
        path, begin = Path(folder) / "journal.db", 0
        for end in sorted({*(1 + int(cut * (len(records) - 1)) for cut in cuts), len(records)}):
            store(path, records[begin:end])
            begin = end
            kept(path, "", script.now)
            assert is_used(path)
        with JournalReader(path) as reader:
            resumed = checkpoint.resumed(reader, "")
            assert resumed is not None
            assert everything(resumed) == everything(History("", reader).read(reader.read()))
        for question in questions(records):
            # As if no one had asked since the first part: what came then is read now.
            assert kept(path, question, script.now) == from_all(path, question, script.now), question


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), where=st.floats(0, 1), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_not_used(scripts: Any, seed: int, where: float, flip: int, cut: bool) -> None:
    script = a_script(scripts, 10, seed)
    with TemporaryDirectory() as folder:
        path = script.write(Path(folder) / "journal.db")
        kept(path, "", script.now)
        content = bytearray(file_of(path).read_bytes())
        at = min(int(where * len(content)), len(content) - 1)
        if cut:
            del content[at:]
        else:
            content[at] ^= flip
        file_of(path).write_bytes(content)
        for question in ("", "poet", "scheduler/1"):
            assert kept(path, question, script.now) == from_all(path, question, script.now)


def test_the_file_of_a_journal_that_was_cut_off_or_went_on_otherwise_is_not_used(
    scripts: Any, tmp_path: Path
) -> None:
    script = a_script(scripts, 20, 1)
    half = len(script.records) // 2
    path = tmp_path / "journal.db"
    store(path, script.records[:half])
    older = tmp_path / "older"
    older.mkdir()
    for name in ("journal.db", "journal.db-tail"):
        shutil.copy(tmp_path / name, older / name)
    store(path, script.records[half:])
    kept(path, "", script.now)
    assert is_used(path)
    shutil.copy(file_of(path), older)

    assert not is_used(older / "journal.db")
    assert kept(older / "journal.db", "", script.now) == from_all(older / "journal.db", "", script.now)

    shutil.copy(file_of(path), older)
    others = [msgspec.structs.replace(one, at=one.at + 1) for one in script.records[half:]]
    store(older / "journal.db", others)
    assert not is_used(older / "journal.db")
    assert kept(older / "journal.db", "", script.now) == from_all(older / "journal.db", "", script.now)


def test_the_file_of_another_journal_or_of_other_code_is_not_used(scripts: Any, tmp_path: Path) -> None:
    script = a_script(scripts, 10, 2)
    one, other = (script.write(tmp_path / name) for name in ("one.db", "other.db"))
    kept(one, "", script.now)
    shutil.copy(file_of(one), file_of(other))
    assert is_used(one)
    assert not is_used(other)
    with mock.patch.object(checkpoint, "__version__", "another"):
        assert not is_used(one)


def test_an_event_that_changed_after_it_was_read_is_found_out_when_it_is_needed(
    scripts: Any, tmp_path: Path
) -> None:
    script = scripts()
    script.daemon()
    script.load("poet")
    script.load("smollm2")
    path = script.write(tmp_path / "journal.db")
    kept(path, "", script.now)
    changed = next(one for one in script.records if one.type == "engine_ready")
    database = sqlite3.connect(path)
    database.execute("UPDATE events SET data = replace(data, '0.8', '0.9') WHERE seq = ?", (changed.seq,))
    database.commit()
    database.close()
    assert is_used(path)

    def damage(history: History) -> Any:
        said(history, "poet", script.now)
        return history.events_of(f"sha256:{b'poet'.hex():0<64.64}") and history.damage

    with JournalReader(path, strict=False) as reader:
        found = checkpoint.told(reader, "poet", damage)
    assert found is not None
    assert found.seq == changed.seq


def test_only_new_events_are_read_again(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = a_script(scripts, 30, 3)
    path = tmp_path / "journal.db"
    store(path, script.records[:-3])
    kept(path, "", script.now)
    store(path, script.records[-3:])
    begun, read = list[int](), JournalReader.read

    def noted(reader: JournalReader, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        begun.append(after)
        return read(reader, after=after, stream=stream)

    monkeypatch.setattr(JournalReader, "read", noted)
    kept(path, "poet", script.now)
    kept(path, "smollm2", script.now)
    assert begun == [len(script.records) - 3, len(script.records)]


def test_a_folder_that_cannot_be_written_to_costs_time_only(scripts: Any, tmp_path: Path) -> None:
    script = a_script(scripts, 10, 4)
    path = script.write(tmp_path / "journal.db")
    file_of(path).mkdir()
    assert kept(path, "", script.now) == from_all(path, "", script.now)
    assert not is_used(path)


def test_nothing_is_written_for_a_short_journal(scripts: Any, tmp_path: Path) -> None:
    script = a_script(scripts, 10, 5)
    path = script.write(tmp_path / "journal.db")
    with mock.patch.object(checkpoint, "WORTH", 10_000):
        kept(path, "", script.now)
    assert not file_of(path).exists()
