"""What goes over the wire to an engine and comes back, however it is cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenroom.runner.http.upstream import Lost, Unreached, Upstreams
from waiting import until_async

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\nT: t\r\n\r\n"
)
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Type: text/plain; q=1\r\n\r\nhello, world"
CLOSED = b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhello, world"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH


class Engine:
    """Answers each request with the next script: pieces of bytes, and whether it closes then."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.scripts: list[tuple[list[bytes], bool]] = []
        self.requests: list[bytes] = []
        self.connections = self.sent = 0
        self.cut = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                pieces, closes = self.scripts.pop(0)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    self.sent += len(piece)
                    await asyncio.sleep(0)
                if closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.cut.set()
        writer.close()


@pytest.fixture
async def engine(short_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(str(short_path / "e.sock"))
    async with await asyncio.start_unix_server(engine.serve, engine.path):
        yield engine


@pytest.fixture
async def upstreams(engine: Engine) -> AsyncIterator[Upstreams]:
    upstreams = Upstreams(lambda: {engine.path})
    yield upstreams
    # From Python 3.12 on, a server that is closed waits for its connections.
    upstreams.close()


async def _ask(upstreams: Upstreams, engine: Engine, body: bytes = b"{}") -> bytes:
    answer = await upstreams.post(engine.path, "/v1/x", body, {"Accept": "a"})
    try:
        return await answer.rest()
    finally:
        answer.close()


@pytest.mark.parametrize(
    "whole", [CHUNKED, LENGTH, CLOSED, EARLY], ids=["chunks", "length", "closed", "hints"]
)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_an_answer_is_read_however_it_is_cut(
    engine: Engine, upstreams: Upstreams, whole: bytes, size: int
) -> None:
    engine.scripts = [([whole[i : i + size] for i in range(0, len(whole), size)], whole is CLOSED)]
    assert await _ask(upstreams, engine) == b"hello, world"


async def test_a_request_says_its_length_and_what_it_was_given(engine: Engine, upstreams: Upstreams) -> None:
    engine.scripts = [([LENGTH], False)]
    await _ask(upstreams, engine, b'{"a": 1}')
    assert engine.requests == [
        b'POST /v1/x HTTP/1.1\r\nHost: localhost\r\nAccept: a\r\nContent-Length: 8\r\n\r\n{"a": 1}'
    ]


async def test_a_connection_is_used_again(engine: Engine, upstreams: Upstreams) -> None:
    engine.scripts = [([CHUNKED], False), ([LENGTH], False), ([EARLY], False)]
    for _ in range(3):
        assert await _ask(upstreams, engine) == b"hello, world"
    assert engine.connections == 1


async def test_a_connection_that_closes_is_not_reused(engine: Engine, upstreams: Upstreams) -> None:
    closing = LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    engine.scripts = [([closing], False), ([CLOSED], True), ([LENGTH], False)]
    for _ in range(3):
        assert await _ask(upstreams, engine) == b"hello, world"
    assert engine.connections == 3


@pytest.mark.parametrize("whole", [CHUNKED, LENGTH], ids=["chunks", "length"])
async def test_an_answer_that_breaks_off_means_a_lost_engine(
    engine: Engine, upstreams: Upstreams, whole: bytes
) -> None:
    for cut in range(len(whole) - 2):
        engine.scripts = [([whole[:cut]], True)]
        with pytest.raises(Lost):
            await _ask(upstreams, engine)


async def test_what_is_not_http_is_lost(engine: Engine, upstreams: Upstreams) -> None:
    for nonsense in (b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\0" * 100):
        engine.scripts = [([nonsense], False)]
        with pytest.raises(Lost):
            await _ask(upstreams, engine)


async def test_letting_go_early_cuts_the_connection(engine: Engine, upstreams: Upstreams) -> None:
    engine.scripts = [([LENGTH[:-3]], False)]
    answer = await upstreams.post(engine.path, "/", b"", {})
    assert await answer.read()
    answer.close()
    await asyncio.wait_for(engine.cut.wait(), 5)


async def test_giving_up_before_the_head_cuts_the_connection(engine: Engine, upstreams: Upstreams) -> None:
    engine.scripts = [([], False)]
    task = asyncio.create_task(upstreams.post(engine.path, "/", b"", {}))
    await until_async(lambda: engine.requests)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(engine.cut.wait(), 5)


async def test_a_server_that_does_not_exist_is_unreached(short_path: Path) -> None:
    path = str(short_path / "absent.sock")
    with pytest.raises(Unreached):
        await Upstreams(lambda: {path}).post(path, "/", b"", {})
    with pytest.raises(Unreached):
        await Upstreams(set).post("http://127.0.0.1:1", "/", b"", {})


async def test_a_crowd_before_an_engine_with_little_room_is_let_in(short_path: Path) -> None:
    engine = Engine(str(short_path / "narrow.sock"))
    engine.scripts = [([LENGTH], True) for _ in range(60)]
    upstreams = Upstreams(lambda: {engine.path})
    # The engine does not accept yet, and the queue is short.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(engine.path)
    listener.listen(1)
    asked = [asyncio.create_task(_ask(upstreams, engine)) for _ in range(60)]
    await asyncio.sleep(0.05)
    async with await asyncio.start_unix_server(engine.serve, sock=listener, backlog=1):
        assert set(await asyncio.gather(*asked)) == {b"hello, world"}


async def test_an_engine_that_does_not_read_makes_the_sender_wait(short_path: Path) -> None:
    engine = Engine(str(short_path / "slow.sock"))
    engine.scripts = [([LENGTH], False)]
    body = bytes(8 * 2**20)
    upstreams = Upstreams(lambda: {engine.path})
    async with await asyncio.start_unix_server(engine.serve, engine.path, limit=2**16):
        assert await _ask(upstreams, engine, body) == b"hello, world"
        upstreams.close()
    assert engine.requests[0].endswith(body)


async def test_an_answer_of_megabytes_is_not_read_ahead_of_its_reader(
    engine: Engine, upstreams: Upstreams
) -> None:
    size = 16 * 2**20
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    engine.scripts = [([head, *[bytes(2**16)] * (size // 2**16)], False)]
    answer = await upstreams.post(engine.path, "/", b"", {})
    await asyncio.sleep(0.1)
    # Beside what it has read ahead, the socket and the engine's own writer hold something.
    assert engine.sent < 2**21
    assert len(await answer.rest()) == size
    answer.close()


async def test_idle_connections_are_let_go_of(
    engine: Engine, upstreams: Upstreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.http.upstream.KEEP_ALIVE", 0.05)
    engine.scripts = [([LENGTH], False)]
    await _ask(upstreams, engine)
    await asyncio.wait_for(engine.cut.wait(), 5)
    upstreams.close()


TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXT, max_size=6), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_lines_come_whole_and_renamed_whatever_is_in_them(texts: list[str], cuts: list[int]) -> None:
    import msgspec

    from greenroom.runner.http.event_stream import WholeLines
    from greenroom.runner.http.translation import Renaming

    events = [{"model": "default_model", "text": text, "deep": '"model": "default_model"'} for text in texts]
    data = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
    lines, rename = WholeLines(), Renaming("default_model", 'a "b" é')
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [rename(lines.feed(data[a:b])) for a, b in pairwise(bounds)]
    assert all(piece == b"" or piece.endswith(b"\n") for piece in pieces)
    whole = b"".join(pieces) + rename(lines.flush())
    back = [msgspec.json.decode(line[6:]) for line in whole.split(b"\n") if line]
    assert back == [{**event, "model": 'a "b" é'} for event in events]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("-1", -1),
        ("-5m", -1),
        ("5m", 300),
        ("1h30m", 5400),
        ("0s", 0),
        ("1.5s", 1.5),
        ("300ms", 0.3),
    ],
)
def test_durations_are_read_as_go_reads_them(text: str, seconds: float) -> None:
    from greenroom.runner.http.go_duration import parse_go_duration

    assert parse_go_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 minutes", "forever", "s", "1h 2m", "--5m"])
def test_other_durations_are_refused(text: str) -> None:
    from greenroom.runner.http.go_duration import parse_go_duration

    with pytest.raises(ValueError, match="not a duration"):
        parse_go_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "-1"), (0, "0s"), (0.5, "500ms"), (30, "30s"), (300, "5m0s"), (5400, "1h30m0s"), (61.5, "1m1.5s")],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    from greenroom.runner.http.go_duration import go_duration

    assert go_duration(seconds) == text


def test_fields_are_dropped_whatever_way_their_names_are_written() -> None:
    import msgspec

    from greenroom.runner.backends.base import Dialect
    from greenroom.runner.http.engine_requests import translate

    dialect = Dialect(model_name="{model_id}", dropped=frozenset({"adapters"}))
    body = b'{"\\u0061dapters": 1, "adapters": 2, "model": "x", "model": "y", "keep": 1.50}'
    name = dialect.spoken("sha256:1")
    assert translate(body, dialect, name) == b'{"model":"sha256:1","keep":1.50}'
    assert translate(body, Dialect(), None) is body
    assert msgspec.json.decode(translate(b'{"model": 1}', dialect, name)) == {"model": "sha256:1"}


@pytest.mark.parametrize("said", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_whatever_content_type_a_client_sends_the_engine_gets_application_json(said: dict[str, str]) -> None:
    from aiohttp.test_utils import make_mocked_request

    from greenroom.runner.http.upstream import forwarded

    assert forwarded(make_mocked_request("POST", "/v1/completions", headers=said)).getall("Content-Type") == [  # type: ignore[arg-type]
        "application/json"
    ]


async def test_an_unsolicited_answer_does_not_join_the_one_before(
    engine: Engine, upstreams: Upstreams
) -> None:
    extra = b"HTTP/1.1 500 X\r\nContent-Length: 5\r\nX-More: 1\r\n\r\nextra"
    engine.scripts = [([LENGTH + extra], False), ([LENGTH], False)]
    for _ in range(2):
        answer = await upstreams.post(engine.path, "/", b"{}", {})
        assert (answer.status, "X-More" in answer.headers) == (200, False)
        assert await answer.rest() == b"hello, world"
        answer.close()
    assert engine.connections == 2


@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=",
    ],
    ids=["headers", "one header", "a trailer", "a chunk's extension"],
)
async def test_an_engine_that_never_ends_its_headers_is_cut_off(
    engine: Engine, upstreams: Upstreams, begin: bytes
) -> None:
    more = b"A: b\r\n" * 1000 if begin.endswith(b"OK\r\n") else b"a" * 6000
    engine.scripts = [([begin, *[more] * 50_000], False)]
    with pytest.raises(Lost, match=r"64\.0 kB"):
        async with asyncio.timeout(10):
            await _ask(upstreams, engine)
    await asyncio.wait_for(engine.cut.wait(), 5)


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("size", [200_000, 5_000_000])
async def test_an_answer_that_comes_before_the_body_is_read_is_the_answer(
    short_path: Path, closes: bool, size: int
) -> None:
    served = 0

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await reader.readuntil(b"\r\n\r\n")
        close = b"Connection: close\r\n" if closes else b""
        writer.write(b"HTTP/1.1 413 Payload Too Large\r\n" + close + b"Content-Length: 3\r\n\r\nbig")
        await writer.drain()
        if closes:
            writer.close()
        else:
            await reader.read()

    path = str(short_path / "early.sock")
    upstreams = Upstreams(lambda: {path})
    async with await asyncio.start_unix_server(early, path, limit=2**16):
        for _ in range(20 if closes or size > 2**18 else 1):
            async with asyncio.timeout(10):
                answer = await upstreams.post(path, "/", bytes(size), {})
                assert (answer.status, await answer.rest()) == (413, b"big")
                answer.close()
        upstreams.close()
    # A connection whose body was not read whole is not used again.
    assert served == (20 if closes or size > 2**18 else 1)


def test_only_headers_on_a_list_pass_in_either_direction() -> None:
    from aiohttp.test_utils import make_mocked_request
    from multidict import CIMultiDict

    from greenroom.runner.http.upstream import forwarded, returned

    secrets = ["Api-Key", "x-goog-api-key", "X-Api-Key", "Authorization", "Cookie", "X-Whatever-Token"]
    asked = {**dict.fromkeys(secrets, "secret"), "Accept": "text/event-stream", "User-Agent": "me"}
    passed = forwarded(make_mocked_request("POST", "/v1/completions", headers=asked))  # type: ignore[arg-type]
    assert dict(passed) == {
        "Accept": "text/event-stream", "User-Agent": "me", "Content-Type": "application/json",
    }  # fmt: skip

    class Told:
        headers = CIMultiDict(
            {
                **dict.fromkeys(
                    "Location Refresh Clear-Site-Data Alt-Svc Set-Cookie Link Server".split(), "x"
                ),
                "Strict-Transport-Security": "max-age=9",
                "Content-Type": "application/json",
                "Cache-Control": "no-\udcffcache",
            }
        )

    assert dict(returned(Told())) == {"Content-Type": "application/json"}  # type: ignore[arg-type]
