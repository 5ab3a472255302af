"""What became of a backend: the first line of `why BACKEND` and `why MODEL` in each of these histories.

54. a model is refused since its backend is not installed
55. the index refuses our credentials
56. the index answers 503, and the next attempt is due
57. a request cancelled the installation
58. a request had it installed
59. the backend of a refused model has been installed since
60. a model is quarantined on the newest version, asked by backend as by model
61. its installation was found damaged
62. installed again because that was damaged
63. a request uninstalled it
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from histories import Told, chatted, reads, request_of, sent
from package_index import Index, Misbehaviour, serving
from toy import make_wheel
from waiting import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

INSTALL = "POST /engines/install-backend"
TOY = {"backend": "toy"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(make_told: Any) -> AsyncIterator[tuple[Told, Index]]:
    """A daemon whose only backend comes from an index of its own."""
    with serving() as index:
        settings = {"install_policy": "never", "test_cool_down": "0.2"}
        daemon = await make_told("--for", "fragile=--die-under,toy==2.0", toy=True, start=False, **settings)
        for version in ("1.0", "2.0"):
            make_wheel(daemon.home.parent / "wheels", version)
        daemon.env |= {"PIP_INDEX_URL": f"{index.url}/simple/", "PIP_CONFIG_FILE": os.devnull}
        offer(daemon, index, "1.0")
        await daemon.start()
        yield daemon, index


def offer(daemon: Told, index: Index, version: str) -> None:
    file = daemon.home.parent / "wheels" / f"toy-{version}-py3-none-any.whl"
    index.wheels.setdefault("toy", {})[file.name] = file.read_bytes()


def misbehave(index: Index, status: int) -> None:
    for name in ("toy", "toy-1.0-py3-none-any.whl"):
        index.wrong[name] = Misbehaviour(status=status)


async def test_a_backend_fails_to_be_installed_is_installed_breaks_and_is_uninstalled(
    place: tuple[Told, Index],
) -> None:
    daemon, index = place
    await daemon.add("robust", "fragile")
    assert (await daemon.chat("robust")).status == 412
    reads(
        await daemon.first_line("robust"),
        'robust is not loaded: requests for it have been refused since {at}: backend "toy" is not installed; '
        "run: greenroom install-runner --backend toy.",
    )

    misbehave(index, 401)
    await daemon.post("/engines/install-backend", TOY)
    reads(
        await daemon.first_line("toy"),
        "toy is not installed: its installation failed at {at}. 127.0.0.1 refused our credentials (HTTP "
        "status 401). Check the user and password of the index in pip's or uv's settings, or in ~/.netrc. "
        "Greenroom does not retry it automatically.",
    )

    misbehave(index, 503)
    asking = asyncio.create_task(daemon.post("/engines/install-backend", TOY))
    await until_async(lambda: daemon.events("install_attempt_failed"))
    reads(
        await daemon.first_line("toy"),
        "toy is not installed yet: one attempt has failed; retrying at {at}. The last error: 127.0.0.1 "
        "has a problem (HTTP status 503). Try again later.",
    )
    cancelled = await daemon.post("/engines/cancel-install", TOY)
    assert (await asking).status == 409
    reads(
        await daemon.first_line("toy"),
        "toy is not installed. Its installation was cancelled at {at} by {cancelled}.",
        cancelled=sent(cancelled, "POST /engines/cancel-install"),
    )
    name = request_of(cancelled)
    reads(
        await daemon.first_line(name),
        f"Request {name} (POST /engines/cancel-install, from {{me}}) was carried out at {{at}}, in "
        f"{{took}}. It cancelled the installation of toy.",
    )

    index.wrong.clear()
    installed = await daemon.post("/engines/install-backend", TOY)
    reads(
        await daemon.first_line("toy"),
        "toy 1.0 has been installed since {at} (installation {installation}). It was installed in {took} "
        "because {installed} asked for it.",
        installed=sent(installed, INSTALL),
    )
    reads(
        await daemon.first_line("robust"),
        "robust is not loaded: toy 1.0 has been installed since {at}, so the next request works. Before "
        "that, "
        'requests for it were refused: backend "toy" is not installed; run: greenroom install-runner '
        "--backend toy.",
    )

    await daemon.chat("fragile")
    offer(daemon, index, "2.0")
    installed = await daemon.post("/engines/install-backend", {**TOY, "version": "2.0"})
    await daemon.unload()
    asked = await daemon.chat("fragile")
    reads(
        await daemon.first_line("toy"),
        "toy 2.0 has been installed since {at} (installation {installation}). It was installed in {took} "
        "because {installed} asked for it. fragile failed once on it and is served by toy 1.0.",
        installed=sent(installed, INSTALL),
    )
    found = await daemon.why("fragile")
    reads(
        found["answer"],
        "fragile is loaded: engine {engine} has served it on toy since {at}, because {asked} needed fragile.",
        asked=chatted(asked, "fragile"),
    )
    assert [line for line in found["also"] if line.startswith("It has been quarantined on toy 2.0 since ")]

    await daemon.unload()
    for file in daemon.home.glob("backends/toy/*/env/lib/python*/site-packages/toy/__init__.py"):
        file.unlink()
    await daemon.post("/engines/verify-backend", TOY)
    reads(
        await daemon.first_line("toy"),
        "toy {number} cannot be used: its installation was found damaged at {at}. {path} is missing.",
    )
    again = await daemon.post("/engines/install-backend", TOY)
    reads(
        await daemon.first_line("toy"),
        "toy {number} has been installed since {at} (installation {installation}). It was installed in "
        "{took} because {again} asked for it and installation {installation} was found damaged at {clock} "
        "({path} is missing).",
        again=sent(again, INSTALL),
    )

    gone = await daemon.post("/engines/uninstall-backend", TOY)
    reads(
        await daemon.first_line("toy"),
        "toy was removed at {at}: {gone} uninstalled it. That freed {size}. It stays uninstalled until it "
        "is requested.",
        gone=sent(gone, "POST /engines/uninstall-backend"),
    )
    name = request_of(gone)
    reads(
        await daemon.first_line(name),
        f"Request {name} (POST /engines/uninstall-backend, from {{me}}) was carried out at {{at}}, in "
        f"{{took}}. It uninstalled toy.",
    )
