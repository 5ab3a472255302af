"""Servers that never come to an end, and clients that do not wait for it."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations import web as webs
from greenroom.runner.installations.lock_file import FileStore, LockedFile
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.installations.verified_download import Fetcher, Finder, PackageOrigin
from greenroom.runner.installations.web import Web

Say = Callable[[socket.socket, int], None]


@contextmanager
def answering(say: Say) -> Iterator[tuple[str, list[int]]]:
    """A server that answers each connection as told; its URL, and a number for each connection made."""
    asked: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection:
            connection.recv(65536)
            say(connection, number)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            asked.append(len(asked) + 1)
            threading.Thread(target=one, args=(connection, len(asked)), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.close()


def trickle(connection: socket.socket, data: bytes) -> None:
    """A byte of it every 20 ms, round and round."""
    while True:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)


def trickle_header(connection: socket.socket, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    trickle(connection, b"X-A: " + b"a" * 60 + b"\r\n")


def trickle_body(connection: socket.socket, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    trickle(connection, b"<a href='x'>")


def say_nothing(connection: socket.socket, _number: int) -> None:
    connection.recv(1)


def endless(connection: socket.socket, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    while True:
        connection.sendall(b"<a href='x'>x</a>" * 4096)


def bomb(connection: socket.socket, _number: int) -> None:
    body = gzip.compress(bytes(40 * 2**20))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def sources(url: str) -> PackageSources:
    return PackageSources(index=Setting(f"{url}/simple/", "the test"), timeout=Setting("10", "the test"))


@pytest.mark.parametrize("say", [trickle_header, trickle_body])
def test_a_page_that_trickles_is_given_up_after_a_bound(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webs, "PAGE_SECONDS", 0.6)
    with answering(say) as (url, _), pytest.raises(JobFailed, match="did not finish its answer") as told:
        Web(sources(url)).read(f"{url}/simple/x/", accept="*/*")
    assert told.value.failure.kind == "transient"


def test_the_head_of_a_files_answer_is_waited_for_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webs, "ANSWER_SECONDS", 0.6)
    with answering(trickle_header) as (url, _), pytest.raises(JobFailed, match="did not finish its answer"):
        Web(sources(url)).open(f"{url}/file")


@pytest.mark.parametrize("say", [trickle_header, trickle_body, say_nothing])
def test_cancelling_ends_a_call_at_once_and_the_connection_with_it(say: Say) -> None:
    gone = threading.Event()

    def until_gone(connection: socket.socket, number: int) -> None:
        try:
            say(connection, number)
        finally:
            gone.set()

    cancel = threading.Event()
    with answering(until_gone) as (url, _):
        threading.Timer(0.2, cancel.set).start()
        began = time.monotonic()
        with pytest.raises(JobCancelled):
            Web(sources(url), cancel=cancel).read(f"{url}/simple/x/", accept="*/*")
        assert time.monotonic() - began < 5
        assert gone.wait(5)


@pytest.mark.parametrize("say", [endless, bomb])
def test_a_page_without_an_end_is_refused_before_it_fills_the_memory(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webs, "PAGE_BYTES", 2**20)
    monkeypatch.setattr(Web.fetch, "__kwdefaults__", {**(Web.fetch.__kwdefaults__ or {}), "limit": 2**20})
    with answering(say) as (url, _), pytest.raises(JobFailed, match="sent more than 1 MB") as told:
        Web(sources(url)).read(f"{url}/simple/x/", accept="*/*")
    assert told.value.failure.code == "bad_answer"


@pytest.mark.parametrize("text", ["many", "-1", "9" * 30])
def test_a_length_that_is_none_counts_as_unsaid(text: str) -> None:
    def odd(connection: socket.socket, _number: int) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {text}\r\n\r\n".encode())

    with answering(odd) as (url, _):
        assert Web(sources(url)).size(f"{url}/file") == 0


class Straight(Finder):
    """Knows where each file is without asking an index."""

    def __init__(self, url: str) -> None:
        super().__init__(sources(url))
        self.url = url

    def find(self, file: LockedFile) -> str:
        return f"{self.url}/{file.name}"


def wheel(size: int) -> LockedFile:
    return LockedFile(name="a-1.0-py3-none-any.whl", sha256="0" * 64, size=size)


@pytest.mark.parametrize("size", [1_000_000, 0])
def test_a_server_that_breaks_off_each_time_is_not_retried_forever(tmp_path: Path, size: int) -> None:
    def break_off(connection: socket.socket, number: int) -> None:
        length = 1_000_000 if number == 1 else 999_000
        connection.sendall(f"HTTP/1.1 206 Partial\r\nContent-Length: {length}\r\n\r\n".encode())
        if number == 1:
            connection.sendall(b"x" * 1_000)

    with answering(break_off) as (url, asked), pytest.raises(JobFailed) as told:
        Fetcher(FileStore(tmp_path), PackageOrigin(Straight(url))).fetch([wheel(size)])
    assert told.value.failure.code == "unreachable"
    assert len(asked) <= 4


@pytest.mark.parametrize("size", [1_000_000, 0])
def test_a_file_without_an_end_does_not_fill_the_disk(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.installations.verified_download.UNKNOWN_MOST", 2_000_000)
    with answering(endless) as (url, asked), pytest.raises(JobFailed) as told:
        Fetcher(FileStore(tmp_path), PackageOrigin(Straight(url))).fetch([wheel(size)])
    assert told.value.failure.code == "hash_mismatch"
    assert not list(tmp_path.rglob("*.part"))
    assert len(asked) == 1


def test_what_is_kept_free_on_the_disk_is_not_fetched_into(tmp_path: Path) -> None:
    def full() -> None:
        raise JobFailed.permanent("no_space", "The disk is full.")

    with answering(endless) as (url, _), pytest.raises(JobFailed) as told:
        Fetcher(FileStore(tmp_path), PackageOrigin(Straight(url)), room=full).fetch([wheel(10**9)])
    assert told.value.failure.code == "no_space"


def test_a_download_that_trickles_is_given_up_and_what_came_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.installations.verified_download.SILENCE", 0.6)
    with answering(trickle_body) as (url, _), pytest.raises(JobFailed, match="bytes arrived in") as told:
        Fetcher(FileStore(tmp_path), PackageOrigin(Straight(url))).fetch([wheel(10**9)])
    assert told.value.failure.kind == "transient"
    assert list(tmp_path.rglob("*.part"))
