"""T11: the install says current but a file is missing (LM Studio: "up to date" without a dependency)."""

from __future__ import annotations

from typing import Any

from toy import make_wheel, sources


async def test_a_damaged_installation_is_named_refused_and_repaired_by_the_next_install(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon(toy=True, start=False)
    make_wheel(daemon.home.parent / "wheels")
    daemon.env |= sources(daemon.home.parent / "wheels")
    await daemon.start()
    assert (await daemon.post("/engines/install-backend", {"backend": "toy"})).status == 200
    await daemon.add("tiny")
    await daemon.stop()
    (file,) = daemon.home.glob("backends/toy/*/env/lib/python*/site-packages/toy/__init__.py")
    file.unlink()
    await daemon.start()
    status = (await daemon.get("/engines/status")).json["toy"]
    assert status.startswith("Error")
    assert "toy/__init__.py" in status
    refused = await daemon.chat("tiny")
    assert refused.status == 412
    assert "greenroom install-runner --backend toy" in refused.error["message"]
    assert (await daemon.post("/engines/install-backend", {"backend": "toy"})).status == 200
    assert (await daemon.chat("tiny")).status == 200
