"""Versions of backends on the command line: listed, switched, verified, cancelled; and the disk."""

from __future__ import annotations

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.runner.installations import archive


def installed(version: str, **more: Any) -> dict[str, Any]:
    return {"version": version, "current": False, "retiring": False} | more


def described(name: str, *installations: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "state": "absent",
        "job": None,
        "failure": None,
        "verdict": "",
        "deferred": False,
    }
    fields |= {"formats": ["gguf"], "modes": ["completion"]}
    return {"name": name, "installations": list(installations)} | fields | more


def test_backends_shows_versions_and_the_one_in_use(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /engines"] = [
        described("llama.cpp", installed("1.0"), installed("1.1", current=True), state="installed"),
        described("mlx", state="failed", failure={"message": "The disk is full."}),
    ]
    lines = {line.split()[0]: line for line in greenroom("backends").out.splitlines()[1:]}
    assert "1.0, 1.1*  installed" in lines["llama.cpp"]
    assert lines["mlx"].endswith("failed: The disk is full.")
    busy = described("mlx", installed("1", current=True), state="installed", job={"id": "mlx.2"})
    our_daemon.routes["GET /engines"] = [busy]
    assert "installed; installing another version" in greenroom("backends").out


def test_upgrading_asks_for_the_pinned_version_or_the_named_one(greenroom: Any, our_daemon: Any) -> None:
    done = {"type": "success", "message": "m", "already": False, "installation": {"version": "2"}}
    our_daemon.routes["POST /engines/install-backend"] = [json.dumps(done)]
    outcome = greenroom("upgrade-runner", "--backend", "mlx")
    assert outcome.out.splitlines()[-1] == "mlx 2 is installed and in use"
    our_daemon.routes["POST /engines/install-backend"] = [json.dumps(done | {"already": True})]
    assert greenroom("upgrade-runner", "--backend", "mlx", "--version", "2").out == (
        "mlx 2 is in use; it was already installed\n"
    )
    assert our_daemon.bodies("/engines/install-backend") == [
        {"backend": "mlx", "version": "pinned"},
        {"backend": "mlx", "version": "2"},
    ]


def test_rolling_back_says_what_is_in_use(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/activate-backend"] = {"installation": {"version": "1"}}
    assert greenroom("rollback-runner", "--backend", "mlx").out == "mlx 1 is in use\n"
    assert our_daemon.bodies("/engines/activate-backend") == [
        {"backend": "mlx", "version": "", "variant": ""}
    ]
    our_daemon.routes["POST /engines/activate-backend"] = (409, "mlx has no earlier installation.")
    outcome = greenroom("rollback-runner", "--backend", "mlx")
    assert (outcome.code, outcome.err) == (1, "Error: mlx has no earlier installation.\n")


def test_verifying_names_what_is_damaged_and_how_to_repair_it(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/verify-backend"] = [
        {"backend": "mlx", "checked": ["1-a.1", "2-b.1"], "damaged": {"2-b.1": ["env/a.py has changed"]}}
    ]
    outcome = greenroom("backends", "verify")
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        "mlx 1-a.1: sound",
        "mlx 2-b.1: DAMAGED",
        "  env/a.py has changed",
        "  Repair it: greenroom install-runner --backend mlx",
    ]
    our_daemon.routes["POST /engines/verify-backend"] = (
        200,
        [{"backend": "mlx", "checked": ["1-a.1"], "damaged": {}}],
    )
    for named in (["--backend", "mlx"], ["mlx"], ["mlx", "--backend", "mlx"]):
        outcome = greenroom("backends", "verify", *named)
        assert (outcome.code, outcome.out) == (0, "mlx 1-a.1: sound\n")
    assert our_daemon.bodies("/engines/verify-backend")[1:] == [{"backend": "mlx"}] * 3
    both = greenroom("backends", "verify", "mlx", "--backend", "vllm")
    assert both.code == 2
    assert "Name one backend, mlx or vllm" in both.err


def test_uninstalling_one_version_names_it_and_an_empty_one_is_not_all_of_them(
    greenroom: Any, our_daemon: Any
) -> None:
    our_daemon.routes["POST /engines/uninstall-backend"] = {"freed": 2_000_000, "was_installed": True}
    outcome = greenroom("uninstall-runner", "--backend", "mlx", "--version", "1.0")
    assert (outcome.code, outcome.out) == (0, "Uninstalled mlx 1.0, 2.00 MB freed\n")
    our_daemon.routes["POST /engines/uninstall-backend"] = (400, "invalid request: the version is empty\n")
    assert greenroom("uninstall-runner", "--backend", "mlx", "--version", "").code == 1
    assert our_daemon.bodies("/engines/uninstall-backend") == [
        {"backend": "mlx", "version": "1.0"},
        {"backend": "mlx", "version": ""},
    ]


def test_uninstalling_by_force_says_so_to_the_daemon(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["POST /engines/uninstall-backend"] = {"freed": 0, "was_installed": True}
    assert greenroom("uninstall-runner", "--backend", "mlx", "--force").code == 0
    assert our_daemon.bodies("/engines/uninstall-backend") == [{"backend": "mlx", "force": True}]


@pytest.mark.parametrize(
    ("job", "path", "body"),
    [
        ("mlx", "/engines/cancel-install", {"backend": "mlx"}),
        ("install/mlx", "/engines/cancel-install", {"backend": "mlx"}),
        ("mlx.3", "/engines/cancel-install", {"backend": "mlx", "job": "mlx.3"}),
        ("smollm2", "/models/cancel", {"from": "smollm2"}),
        ("pull/docker.io/ai/smollm2:latest", "/models/cancel", {"from": "docker.io/ai/smollm2:latest"}),
    ],
)
def test_a_job_is_ended_by_any_of_its_names(
    greenroom: Any, our_daemon: Any, job: str, path: str, body: Any
) -> None:
    busy = {"id": "mlx.2", "queue": ["mlx.3"]}
    our_daemon.routes["GET /engines"] = [described("mlx", job=busy)]
    our_daemon.routes[f"POST {path}"] = {"ended": True}
    outcome = greenroom("cancel", job)
    assert (outcome.code, outcome.out) == (0, f"Cancelled: {job}.\n")
    assert our_daemon.bodies(path) == [body]
    our_daemon.routes[f"POST {path}"] = {"ended": False}
    outcome = greenroom("cancel", job)
    assert outcome.code == 1
    assert "List the jobs: greenroom status" in outcome.err


def test_df_shows_what_uses_the_disk(greenroom: Any, our_daemon: Any) -> None:
    used = {"models_disk_usage": 93_000_000, "backends_disk_usage": {"mlx": 5}, "total_disk_usage": 7}
    our_daemon.routes["GET /engines/df"] = used
    assert greenroom("df").out.splitlines()[1:] == [
        "models       93.0 MB",
        "backend mlx  5 B",
        "total        7 B",
    ]
    assert json.loads(greenroom("df", "--json").out) == used


def an_archive(content: bytes = b"a wheel") -> bytes:
    """As `backends export` writes it, of a backend `mlx` with one package."""
    wheel = archive.Wheel(name="a-1-py3-none-any.whl", sha256=sha256(content).hexdigest(), size=len(content))  # type: ignore[attr-defined]
    manifest = archive.ArchiveManifest(
        backend="mlx", distribution="mlx-lm", version="7", machine=archive.here(), wheels=(wheel,)
    )
    first = {"backend.json": msgspec.json.encode(manifest), "lock.txt": b"# a lock\n"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in (
            *first.items(),
            (f"wheels/{wheel.sha256}/{wheel.name}", content),
            ("SHA256SUMS", archive.sums(first)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_importing_lays_the_packages_out_and_asks_for_their_version(
    greenroom: Any, our_daemon: Any, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "mlx.tar").write_bytes(an_archive())
    done = {"type": "success", "message": "mlx backend installed successfully", "already": False}
    our_daemon.routes["POST /engines/install-backend"] = [json.dumps(done)]
    outcome = greenroom("backends", "import", str(tmp_path / "mlx.tar"))
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, done["message"])
    asked = {"backend": "mlx", "version": "7", "variant": "usual"}
    assert our_daemon.bodies("/engines/install-backend") == [asked]
    (wheel,) = home.glob("cache/wheels/*/*.whl")
    assert wheel.read_bytes() == b"a wheel"
    assert (home / "cache" / "locks" / "mlx-lm-7.txt").read_text() == "# a lock\n"


def test_importing_into_the_daemon_of_another_data_directory_is_refused(
    greenroom: Any, our_daemon: Any, tmp_path: Path
) -> None:
    our_daemon.routes["GET /livez"] |= {"home": str(tmp_path / "elsewhere")}
    (tmp_path / "mlx.tar").write_bytes(an_archive())
    outcome = greenroom("backends", "import", str(tmp_path / "mlx.tar"))
    assert outcome.code == 1
    assert "uses another data directory" in outcome.err


def test_importing_what_is_not_an_archive_says_how_to_make_one(
    greenroom: Any, our_daemon: Any, tmp_path: Path
) -> None:
    (tmp_path / "mlx.tar").write_bytes(b"not a tar")
    outcome = greenroom("backends", "import", str(tmp_path / "mlx.tar"))
    assert outcome.code == 1
    assert "greenroom backends export NAME > NAME.tar" in outcome.err
