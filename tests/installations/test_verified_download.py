from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations.lock_file import FileStore, LockedFile
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.installations.verified_download import Fetcher
from package_index import Index, Misbehaviour
from waiting import until


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "wheels")


@pytest.fixture
def big(index: Index, noise: Callable[..., bytes]) -> LockedFile:
    """A wheel of a megabyte that does not compress."""
    return index.add("big", "1.0", {"big.bin": noise(1_000_000)})


def fetch(store: FileStore, sources: PackageSources, *files: LockedFile, **kwargs: Any) -> None:
    Fetcher(store, sources).fetch(files, **kwargs)


def test_what_arrives_has_the_locked_bytes(store: FileStore, index: Index, big: LockedFile) -> None:
    fetch(store, index.sources, big)
    assert hashlib.sha256(store.path(big).read_bytes()).hexdigest() == big.sha256
    assert store.missing([big]) == []


def test_the_total_is_known_at_the_first_report_and_the_counts_rise_to_it(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(rate=800_000)
    reports = []
    fetch(store, index.sources, big, on_bytes=lambda done, total: reports.append((done, total)))
    counts = [done for done, _ in reports]
    assert {total for _, total in reports} == {big.size}
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert len(set(counts)) >= 10
    assert counts[-1] == big.size


def test_a_second_fetch_sends_no_request(store: FileStore, index: Index, big: LockedFile) -> None:
    fetch(store, index.sources, big)
    index.requests.clear()
    reports = []
    fetch(store, index.sources, big, on_bytes=lambda done, total: reports.append((done, total)))
    assert index.requests == []
    assert reports == [(big.size, big.size)]


def test_a_connection_cut_in_the_middle_resumes_where_it_broke_off(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(cut_after=400_000, times=1)
    fetch(store, index.sources, big)
    assert store.has(big)
    assert index.sent[big.name] == big.size
    ranges = [headers["Range"] for _, path, headers in index.requests if "Range" in headers]
    assert ranges == ["bytes=400000-"]


def test_a_server_that_cannot_resume_is_asked_from_zero(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(cut_after=400_000, times=1, ranges=False)
    fetch(store, index.sources, big)
    assert store.has(big)


def test_a_later_attempt_goes_on_with_what_an_earlier_one_got(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    # Cut after every 100 kB: more often than one attempt goes on by itself.
    index.wrong[big.name] = misbehave(cut_after=100_000)
    with pytest.raises(JobFailed) as caught:
        fetch(store, index.sources, big)
    assert caught.value.failure.kind == "transient"
    arrived = store.arrived(big)
    assert 0 < arrived < big.size
    index.wrong.clear()
    first = []
    fetch(store, index.sources, big, on_bytes=lambda done, total: first.append(done))
    assert first[0] == arrived
    assert index.sent[big.name] == big.size


def test_a_connection_that_brings_nothing_new_is_not_tried_again_and_again(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(cut_after=0)
    with pytest.raises(JobFailed) as caught:
        fetch(store, index.sources, big)
    assert caught.value.failure.code == "unreachable"
    assert index.paths().count(f"/files/{big.name}") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_with_a_problem_is_worth_another_attempt(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour], status: int
) -> None:
    index.wrong[big.name] = misbehave(status=status)
    with pytest.raises(JobFailed, match=rf"127\.0\.0\.1 has a problem \(HTTP status {status}\)") as caught:
        fetch(store, index.sources, big)
    assert caught.value.failure.kind == "transient"


def test_an_index_page_with_a_problem_is_worth_another_attempt(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong["big"] = misbehave(status=502)
    with pytest.raises(JobFailed) as caught:
        fetch(store, index.sources, big)
    assert caught.value.failure.kind == "transient"


def test_other_bytes_of_the_same_length_never_enter_the_store(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(body=b"x" * big.size)
    with pytest.raises(JobFailed, match="not the file in the lock") as caught:
        fetch(store, index.sources, big)
    assert (caught.value.failure.kind, caught.value.failure.code) == ("permanent", "hash_mismatch")
    assert not store.has(big)
    assert store.arrived(big) == 0


def test_a_file_of_another_length_is_refused_before_it_is_fetched(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(body=b"x" * 50_000_000)
    with pytest.raises(JobFailed) as caught:
        fetch(store, index.sources, big)
    assert caught.value.failure.code == "hash_mismatch"
    assert index.sent[big.name] < 20_000_000


def test_an_index_that_lists_other_bytes_says_so(store: FileStore, index: Index, big: LockedFile) -> None:
    other = dataclasses.replace(big, sha256="0" * 64)
    with pytest.raises(JobFailed, match="but its hash is not the one in the lock") as caught:
        fetch(store, index.sources, other)
    assert caught.value.failure.kind == "permanent"


def test_a_file_that_is_listed_but_gone_is_permanent(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(status=404)
    with pytest.raises(JobFailed, match=r"lists .* but does not have it") as caught:
        fetch(store, index.sources, big)
    assert caught.value.failure.kind == "permanent"


def test_the_error_for_a_missing_file_names_the_sources_that_were_asked(
    store: FileStore, index: Index, big: LockedFile
) -> None:
    lost = dataclasses.replace(big, name="lost-1.0-py3-none-any.whl", sha256="1" * 64)
    with pytest.raises(JobFailed, match="not on any") as caught:
        fetch(store, index.sources, lost)
    assert index.url in caught.value.failure.advice


def test_a_login_page_that_answers_for_the_index_is_not_taken_for_one(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong["big"] = misbehave(body=b"<html><body>Please <a href='/login'>log in</a>")
    with pytest.raises(JobFailed) as caught:
        fetch(store, index.sources, big)
    assert caught.value.failure.code == "not_on_index"


def test_an_unreachable_server_is_reported_within_seconds(store: FileStore, big: LockedFile) -> None:
    nowhere = PackageSources(index=Setting("http://127.0.0.1:9/simple", "test"))
    began = time.monotonic()
    with pytest.raises(JobFailed, match=r"127\.0\.0\.1 could not be reached") as caught:
        fetch(store, nowhere, big)
    assert caught.value.failure.kind == "transient"
    assert time.monotonic() - began < 3


def test_a_server_that_falls_silent_is_given_up(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(hang=threading.Event())
    impatient = dataclasses.replace(index.sources, timeout=Setting("1", "test"))
    with pytest.raises(JobFailed, match="sent nothing for 1s") as caught:
        fetch(store, impatient, big)
    assert caught.value.failure.kind == "transient"


def test_silence_is_reported_again_and_again_so_that_a_stall_can_be_said(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    hang = threading.Event()
    index.wrong[big.name] = misbehave(hang=hang)
    reports = []

    def heard(done: int, total: int) -> None:
        reports.append((done, total))
        if len(reports) == 3:
            hang.set()

    fetch(store, index.sources, big, on_bytes=heard)
    # Without a word in the silence there is no third one before the server goes on by itself.
    assert reports[:3] == [(0, big.size)] * 3


def test_cancelling_is_prompt_even_while_the_server_is_silent(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(hang=threading.Event())
    cancel, ended = threading.Event(), []

    def run() -> None:
        try:
            fetch(store, index.sources, big, cancel=cancel)
        except JobCancelled:
            ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: f"/files/{big.name}" in index.paths())
    asked = time.monotonic()
    cancel.set()
    thread.join(10)
    assert ended
    assert ended[0] - asked < 1.0


def test_cancelling_in_the_middle_keeps_what_has_come(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(rate=500_000)
    cancel = threading.Event()

    def watch(done: int, _total: int) -> None:
        if done > 100_000:
            cancel.set()

    with pytest.raises(JobCancelled):
        fetch(store, index.sources, big, cancel=cancel, on_bytes=watch)
    assert store.part(big).stat().st_size >= 100_000


def test_two_callers_that_want_the_same_file_fetch_it_once(
    store: FileStore, index: Index, big: LockedFile, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[big.name] = misbehave(rate=2_000_000)
    threads = [threading.Thread(target=fetch, args=(store, index.sources, big)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert store.has(big)
    assert index.paths().count(f"/files/{big.name}") == 1


def test_a_folder_of_wheels_needs_no_index(
    store: FileStore, index: Index, big: LockedFile, tmp_path: Path
) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / big.name).write_bytes(index.wheels["big"][big.name])
    only = PackageSources(
        find_links=(Setting(str(folder), "test"),), no_index=Setting("1", "test"), index=Setting("x:", "test")
    )
    fetch(store, only, big)
    assert store.has(big)


def test_an_index_on_this_machine_is_read_and_one_that_lacks_the_name_is_passed_over(
    store: FileStore, index: Index, big: LockedFile, tmp_path: Path
) -> None:
    here = tmp_path / "here" / "simple" / "big"
    here.mkdir(parents=True)
    (here / "big.whl").write_bytes(b"")
    (tmp_path / "here" / "files").mkdir()
    (tmp_path / "here" / "files" / big.name).write_bytes(index.wheels["big"][big.name])
    (here / "index.html").write_text(f'<a href="../../files/{big.name}#sha256={big.sha256}">x</a>')
    extras = tuple(
        Setting(place.as_uri(), "test") for place in (tmp_path / "empty", tmp_path / "here" / "simple")
    )
    fetch(store, dataclasses.replace(index.sources, extra_indexes=extras), big)
    assert store.has(big)
    assert index.requests == []


def test_the_old_html_pages_are_understood_with_and_without_hashes(
    store: FileStore, index: Index, big: LockedFile
) -> None:
    index.html = True
    fetch(store, index.sources, big)
    store.drop(big)
    index.hashes = False
    fetch(store, index.sources, big)
    assert store.has(big)


def test_one_index_that_does_not_answer_does_not_hide_another_that_has_it(
    store: FileStore,
    index: Index,
    make_index: Callable[[], Index],
    big: LockedFile,
    misbehave: type[Misbehaviour],
) -> None:
    broken = make_index()
    broken.wrong["big"] = misbehave(status=503)
    sources = dataclasses.replace(index.sources, extra_indexes=(Setting(f"{broken.url}/simple", "test"),))
    fetch(store, sources, big)
    assert store.has(big)


def test_credentials_of_the_index_are_sent_and_never_shown(
    store: FileStore, index: Index, big: LockedFile
) -> None:
    index.password = "s3cret"
    url = index.url.replace("http://", "http://user:s3cret@") + "/simple"
    fetch(store, PackageSources(index=Setting(url, "test")), big)
    store.drop(big)
    wrong = url.replace("s3cret", "wr0ng")
    with pytest.raises(JobFailed, match="refused our credentials") as caught:
        fetch(store, PackageSources(index=Setting(wrong, "test")), big)
    assert caught.value.failure.kind == "permanent"
    assert "wr0ng" not in str(caught.value.failure)


def test_credentials_from_netrc_are_used(
    store: FileStore, index: Index, big: LockedFile, tmp_path: Path
) -> None:
    index.password = "s3cret"
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login user password s3cret\n")
    file.chmod(0o600)
    fetch(store, dataclasses.replace(index.sources, netrc=Setting(str(file), "test")), big)
    assert store.has(big)


def test_the_proxy_of_the_settings_is_used(
    store: FileStore, index: Index, make_index: Callable[[], Index], big: LockedFile
) -> None:
    # A proxy gets the whole URL; this one is an index that ignores the host in it.
    url = "http://far.invalid/simple"
    sources = PackageSources(index=Setting(url, "test"), proxy=Setting(index.url, "test"))
    with pytest.raises(JobFailed):
        fetch(store, sources, big)
    assert any(path.startswith("http://far.invalid/simple/big") for path in index.paths())


def test_a_file_damaged_in_the_store_is_found_by_reading_it(
    store: FileStore, index: Index, big: LockedFile
) -> None:
    fetch(store, index.sources, big)
    data = bytearray(store.path(big).read_bytes())
    data[len(data) // 2] ^= 1
    store.path(big).write_bytes(data)
    assert store.has(big)
    assert store.check([big]) == [big]
    assert not store.has(big)


def test_unneeded_files_are_removed_after_a_while(store: FileStore, index: Index, big: LockedFile) -> None:
    fetch(store, index.sources, big)
    store.sweep({big.sha256}, time.time() + 1)
    assert store.has(big)
    store.sweep(set(), time.time() - 3600)
    assert store.has(big)
    store.sweep(set(), time.time() + 1)
    assert not store.has(big)
