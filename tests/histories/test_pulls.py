"""What became of a pull: the first line of `why MODEL` in each of these histories.

44. never fetched
45. fetched, and never requested
46. removed by a request; a pull has failed since
47. found damaged; a pull has failed since
48. a pull failed for terms that were not accepted
49. the hub answers 503, and the next attempt is due
50. the hub answers 429, and the next attempt is due
51. the attempt after a failed one is running
52. a request cancelled a pull
53. a request had a model fetched
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from greenroom.runner.testing import tiny_gguf
from histories import Told, reads, request_of, sent
from hub import LocalHub
from waiting import until_async
from wedge import Answer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREATE = "POST /models/create"
PRIVATE = "There is no {name}, or it is private. Check the name; for a private model set HF_TOKEN."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(make_told: Any, folder: Path) -> AsyncIterator[tuple[Told, LocalHub]]:
    """A daemon with a hub of its own."""
    hub = LocalHub()
    daemon = await make_told(start=False, install_policy="never")
    daemon.env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}
    await daemon.start()
    yield daemon, hub
    hub.close()


def publish(daemon: Told, hub: LocalHub, name: str, padding: int = 0) -> None:
    data = tiny_gguf(daemon.home.parent / f"{name}.gguf", name).read_bytes()
    hub.repositories[f"org/{name}"] = {f"{name}-Q4_1.gguf": data + b"\0" * padding}


async def pull(daemon: Told, name: str) -> Answer:
    return await daemon.post("/models/create", {"from": f"hf.co/org/{name}"})


async def failed_attempt(daemon: Told, times: int = 1) -> None:
    await until_async(lambda: len(daemon.events("pull_attempt_failed")) >= times)


async def test_it_was_never_fetched(place: tuple[Told, LocalHub]) -> None:
    daemon, _ = place
    answer = await daemon.get("/why/hf.co/org/unheard")
    assert answer.status == 404
    reads(
        answer.body.decode().strip(),
        "huggingface.co/org/unheard is not in the store, and was never pulled. To pull it: greenroom "
        "pull huggingface.co/org/unheard",
    )


async def test_it_was_fetched_removed_and_could_not_be_fetched_again(place: tuple[Told, LocalHub]) -> None:
    daemon, hub = place
    publish(daemon, hub, "kept")
    fetched = await pull(daemon, "kept")
    reads(
        await daemon.first_line("hf.co/org/kept"),
        "hf.co/org/kept is not loaded: it has been in the store since {at} (192 B, gguf), but was never "
        "requested.",
    )
    name = request_of(fetched)
    reads(
        await daemon.first_line(name),
        f"Request {name} (POST /models/create, from {{me}}) was carried out at {{at}}, in {{took}}. It made "
        "Greenroom pull huggingface.co/org/kept, which succeeded.",
    )
    removed = await daemon.ask("DELETE", "/models/hf.co/org/kept")
    del hub.repositories["org/kept"]
    failed = await pull(daemon, "kept")
    reads(
        await daemon.first_line("hf.co/org/kept"),
        "hf.co/org/kept is not in the store: its last pull, for {failed}, failed at {at}. "
        f"{PRIVATE.format(name='hf.co/org/kept')} "
        "It was in the store until {at}, when {removed} removed it.",
        failed=sent(failed, CREATE),
        removed=sent(removed, "DELETE /models/hf.co/org/kept"),
    )


@pytest.mark.slow
async def test_it_was_found_damaged_and_could_not_be_fetched_again(place: tuple[Told, LocalHub]) -> None:
    daemon, hub = place
    publish(daemon, hub, "frail")
    await pull(daemon, "frail")
    data = hub.repositories.pop("org/frail")["frail-Q4_1.gguf"]
    (blob,) = [
        one for one in daemon.home.glob("models/blobs/**/*") if one.is_file() and one.read_bytes() == data
    ]
    blob.chmod(0o644)
    blob.write_bytes(data[:-1] + b"x")
    verified = await daemon.post("/models/hf.co/org/frail/verify", {})
    failed = await pull(daemon, "frail")
    reads(
        await daemon.first_line("hf.co/org/frail"),
        "hf.co/org/frail is not in the store: its last pull, for {failed}, failed at {at}. "
        f"{PRIVATE.format(name='hf.co/org/frail')} "
        "It was in the store until {at}, when {verified} found it damaged: "
        "frail-Q4_1.gguf has changed since it arrived.",
        failed=sent(failed, CREATE),
        verified=sent(verified, "POST /models/hf.co/org/frail/verify"),
    )


@pytest.mark.slow
async def test_its_terms_were_not_accepted(place: tuple[Told, LocalHub]) -> None:
    daemon, hub = place
    publish(daemon, hub, "gated")
    hub.gated = True
    failed = await pull(daemon, "gated")
    hub.gated = False
    reads(
        await daemon.first_line("hf.co/org/gated"),
        "hf.co/org/gated is not in the store: its last pull, for {failed}, failed at {at}. "
        "hf.co/org/gated is only available to users who have accepted its terms. Accept them at "
        "https://huggingface.co/org/gated, and set HF_TOKEN to your token.",
        failed=sent(failed, CREATE),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (503, "Hugging Face has a problem (HTTP status 503). Try again later."),
        (429, "Hugging Face limits our requests for now. Set HF_TOKEN for a higher limit."),
    ],
)
async def test_the_hub_answers_that_now_is_a_bad_moment(
    place: tuple[Told, LocalHub], status: int, said: str
) -> None:
    daemon, hub = place
    name = f"busy{status}"
    publish(daemon, hub, name)
    before = len(daemon.events("pull_attempt_failed"))
    hub.status = status
    asking = asyncio.create_task(pull(daemon, name))
    await failed_attempt(daemon, before + 1)
    found = await daemon.why(f"hf.co/org/{name}")
    hub.status = 0
    assert (await asking).status == 200
    reads(
        found["answer"],
        f"hf.co/org/{name} is not in the store yet: one attempt to pull it has failed; retrying at "
        f"{{at}}. The last error: {said}",
    )


async def test_it_is_being_fetched_and_then_a_request_cancels_that(place: tuple[Told, LocalHub]) -> None:
    daemon, hub = place
    publish(daemon, hub, "large", 3_000_000)
    hub.cut_after = 1_000_000
    asking = asyncio.create_task(pull(daemon, "large"))
    await until_async(lambda: daemon.events("pull_requested"))
    await failed_attempt(daemon, len(daemon.events("pull_attempt_failed")) + 1)
    hub.cut_after, hub.hold_after = None, 2_000_000
    await until_async(hub.holding.is_set)
    running = await daemon.why("hf.co/org/large")
    cancelled = await daemon.post("/models/cancel", {"from": "hf.co/org/large"})
    await asking
    hub.release.set()
    reads(
        running["answer"],
        "hf.co/org/large is not in the store yet: attempt 2 to pull it has been running since {at}. The "
        "one before it failed: The connection to 127.0.0.1 was interrupted. Check the name and the "
        "network; proxies are taken from pip's and uv's settings.",
    )
    assert [line for line in running["also"] if line.startswith("Its pull: ")]
    reads(
        await daemon.first_line("hf.co/org/large"),
        "hf.co/org/large is not in the store: its pull was cancelled at {at} by {cancelled}.",
        cancelled=sent(cancelled, "POST /models/cancel"),
    )
