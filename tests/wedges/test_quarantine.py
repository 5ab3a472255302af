"""A new version of a backend breaks a model: it goes back to the version that served it, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from toy import make_wheel, sources


def why(daemon: Any, name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "greenroom.runner.cli", "--home", str(daemon.home), "why", name],
        env={**os.environ, "GREENROOM_HOME": str(daemon.home)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


async def served_by(daemon: Any, name: str) -> str:
    """The version of the backend under which this model runs."""
    engine_id = (await daemon.engine(name))["engine_id"]
    (spec,) = (
        one["spec"]
        for one in daemon.events("engine_start_requested")
        if one["spec"]["engine_id"] == engine_id
    )
    return str(spec["installation_id"].partition("-")[0])


async def test_a_model_is_served_by_the_old_version_until_a_user_retries_it(make_daemon: Any) -> None:
    daemon = await make_daemon("--for", "fragile=--die-under,toy==2.0", toy=True, start=False)
    wheels = daemon.home.parent / "wheels"
    make_wheel(wheels)
    daemon.env |= sources(wheels)
    await daemon.start()
    assert (await daemon.post("/engines/install-backend", {"backend": "toy"})).status == 200
    await daemon.add("fragile", "robust")
    assert (await daemon.chat("fragile")).status == 200
    make_wheel(wheels, "2.0")
    newer = {"backend": "toy", "version": "2.0"}
    assert (await daemon.post("/engines/install-backend", newer)).status == 200
    await daemon.unload()

    # The client whose request reveals it sees no failure.
    assert (await daemon.chat("fragile")).status == 200
    assert await served_by(daemon, "fragile") == "1.0"
    # What runs under the new version stays with it.
    assert (await daemon.chat("robust")).status == 200
    assert await served_by(daemon, "robust") == "2.0"
    told = why(daemon, "fragile")
    assert "it failed once on 2.0" in told
    assert "toy 1.0" in told

    await daemon.stop()
    await daemon.start()
    assert (await daemon.chat("fragile")).status == 200
    assert await served_by(daemon, "fragile") == "1.0"
    assert len(daemon.events("model_quarantined")) == 1

    await daemon.unload()
    assert (await daemon.post("/engines/activate-backend", newer)).status == 200
    assert (await daemon.chat("fragile")).status == 200
    (lifted,) = daemon.events("quarantine_lifted")
    assert lifted["reason"] == "toy was requested again"
    assert len(daemon.events("model_quarantined")) == 2
