"""Why a backend is installed, or is not: scripted histories, each with the exact cause and numbers."""

from __future__ import annotations

from typing import Any

from explained import commands, hash_mismatch, types
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationBroken,
    InstallationFound,
    InstallationMissing,
    InstallationRetiring,
    InstallationsReadAgain,
    InstallationsUnread,
    InstallAttemptBegun,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallRequested,
    VariantsRanked,
)
from greenroom.actors.values import Failure, Installation
from greenroom.actors.variants import RankedVariant


def test_why_says_that_an_installation_failed_on_a_wrong_hash(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    request = script.request()
    asked = script.add(
        InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="request"), cause=request
    )
    script.add(InstallFailed(job="mlx.1", backend="mlx", failure=hash_mismatch()), cause=asked, after=7.0)
    script.refuse(
        "qwen3",
        "hash_mismatch",
        f"mlx could not be installed: {hash_mismatch().message}",
        request=request,
    )

    backend = script.why("mlx")
    model = script.why("qwen3")

    assert (backend.state, backend.cause) == ("failed", "hash_mismatch")
    assert backend.numbers == {"attempts": 1.0}
    assert "Greenroom does not retry it automatically." in backend.answer
    assert backend.words[0].lines == (
        "error: Hash mismatch",
        "  Expected: sha256:aa",
        "  Computed: sha256:bb",
    )
    assert types(backend) == ["install_requested", "install_failed", "load_refused"]
    assert commands(backend) == ["greenroom install-runner --backend mlx"]
    assert (model.state, model.cause) == ("refused", "hash_mismatch")
    assert model.numbers == {"attempts": 1.0}
    assert model.words == backend.words
    assert {"install_requested", "install_failed"} <= set(types(model))


def test_why_says_how_often_an_installation_was_retried(script: Any) -> None:
    asked = script.add(InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="explicit"))
    for attempt, wait in ((1, 2.0), (2, 60.0)):
        script.add(
            InstallAttemptFailed(
                job="mlx.1",
                backend="mlx",
                attempt=attempt,
                failure=Failure(
                    kind="transient", code="unreachable", message=f"The index did not answer ({attempt})."
                ),
                retry_at=script.now + 3.0 + wait,
            ),
            cause=asked,
            after=3.0,
        )
    script.wait(10.0)

    found = script.why("mlx")

    assert (found.state, found.cause) == ("waiting_to_retry", "unreachable")
    assert found.numbers == {"attempt": 3.0, "failures": 2.0, "elapsed": 16.0, "retry_at": script.now + 50.0}
    assert "2 attempts have failed; retrying at 12:01:13 (in 50s)." in found.answer
    assert found.also[0] == ("Attempt 1 failed (retry at 12:00:12): The index did not answer (1).")
    assert types(found) == ["install_requested", "install_attempt_failed", "install_attempt_failed"]

    script.add(InstallAttemptBegun(job="mlx.1", backend="mlx", attempt=3))
    begun = script.why("mlx")
    assert begun.state == "installing", "although by the clock of this machine it would still be waiting"
    assert begun.answer.endswith("This is attempt 3. The previous one: The index did not answer (2).")
    assert begun.steps[-1].text == "Started attempt 3 to install mlx."


def test_why_says_how_far_an_installation_is(script: Any) -> None:
    script.add(InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="request"))
    script.model("qwen3", kind="safetensors-mlx")
    script.wait(8.0)

    found = script.why("mlx")
    model = script.why("qwen3")

    assert (found.state, found.cause) == ("installing", "request")
    assert found.numbers == {"attempt": 1.0, "failures": 0.0, "elapsed": 10.0}
    assert model.cause == "never_asked"
    assert "mlx, which reads safetensors-mlx, is being installed for a request." in model.also


def test_why_says_what_is_wrong_with_a_broken_installation(script: Any) -> None:
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    script.stopped()
    script.daemon(pid=101)
    script.add(
        InstallationBroken(backend="mlx", installation_id=mlx, reason="env/lib/mlx/core.so is missing")
    )

    found = script.why("mlx")

    assert (found.state, found.cause) == ("broken", "broken")
    assert found.numbers == {"size": 106e6}
    assert "env/lib/mlx/core.so is missing." in found.answer
    assert commands(found) == ["greenroom reinstall-runner --backend mlx"]


def test_why_says_that_an_installation_was_cancelled(script: Any) -> None:
    script.add(InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="explicit"))
    script.add(InstallCancelled(job="mlx.1", backend="mlx", reason="requested by the user", unwanted=True))

    found = script.why("mlx")

    assert (found.state, found.cause) == ("absent", "cancelled")
    assert "Its installation was cancelled at 12:00:07 (just now): requested by the user." in found.answer


def test_why_says_that_an_installation_vanished_from_the_disk(script: Any) -> None:
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    script.add(InstallationMissing(backend="mlx", installation_id=mlx, reason="its folder is gone"))

    assert (script.why("mlx").state, script.why("mlx").cause) == ("absent", "missing")


def test_why_says_that_a_removal_waits_for_engines(script: Any) -> None:
    engine = script.load()
    script.add(
        InstallationRetiring(
            backend="llama.cpp",
            installation_id="1.0-ab12cd34.1",
            reason="uninstalled by the user",
            unwanted=True,
        )
    )

    found = script.why("llama.cpp")

    assert (found.state, found.cause) == ("retiring", "uninstalled")
    assert found.numbers == {"engines": 1.0}
    assert f"Waiting for engine {engine} to stop." in found.answer


def test_an_installed_backend_says_why_it_was_installed_and_what_it_serves(script: Any) -> None:
    engine = script.load()

    found = script.why("llama.cpp")

    assert (found.state, found.cause) == ("installed", "default")
    assert found.numbers == {"size": 106e6, "seconds": 5.0}
    assert "It was installed in 5s because it is a default backend." in found.answer
    assert found.also == (f"It serves smollm2 (engine {engine}).",)


def test_why_says_that_an_installation_is_the_users_own(script: Any) -> None:
    theirs = Installation(id="external", backend="mlx", version="0.31", managed=False, root="/opt/mlx")
    script.add(InstallationFound(backend="mlx", installation=theirs))

    found = script.why("mlx")

    assert (found.state, found.cause) == ("installed", "named_in_the_config")
    assert "/opt/mlx" in found.answer


def test_a_users_own_installation_that_cannot_be_used_is_reported_beside_ours(
    script: Any,
) -> None:
    script.install("mlx", "0.32")
    theirs = Installation(id="external", backend="mlx", version="0.31", managed=False, root="/opt/mlx")
    script.add(InstallationFound(backend="mlx", installation=theirs))
    reason = "it does not start"
    script.add(InstallationBroken(backend="mlx", installation_id="external", reason=reason))

    found = script.why("mlx")

    assert (found.state, found.cause) == ("installed", "configured_broken")
    assert "so Greenroom uses its own 0.32 instead" in found.answer
    assert "greenroom config" in found.remedies[0].command


def test_a_disk_that_cannot_be_read_is_reported_with_the_time_since_when(script: Any) -> None:
    script.install("mlx", "0.32")
    script.add(InstallationsUnread(backend="mlx", reason="Input/output error"))

    found = script.why("mlx")

    assert (found.state, found.cause) == ("broken", "unreadable")
    assert "Input/output error" in found.answer
    assert "they are not used, replaced or removed" in found.answer

    script.add(InstallationsReadAgain(backend="mlx"))
    assert script.why("mlx").state == "installed"


def test_a_rebuilt_installation_is_distinguished_from_the_one_it_replaces(script: Any) -> None:
    old = script.install()
    script.install(version="1.1", wanted_by="repair")
    script.add(InstallationActivated(backend="llama.cpp", installation_id="1.1-ab12cd34.1"))

    found = script.why("llama.cpp")
    assert "It was installed in 5s because the user asked for a rebuild." in found.answer
    assert f"Version 1.0 is also installed (installation {old}, complete)." in found.also

    script.add(InstallationRetiring(backend="llama.cpp", installation_id=old, reason="rebuilt"))
    assert (
        f"Version 1.0 is also installed (installation {old}, being removed)." in script.why("llama.cpp").also
    )


def test_a_failed_attempt_at_another_version_is_reported_beside_the_one_in_use(script: Any) -> None:
    script.install("mlx", "0.32", wanted_by="explicit")
    script.add(InstallRequested(job="mlx.2", backend="mlx", version="0.33", wanted_by="explicit"))
    script.add(InstallFailed(job="mlx.2", backend="mlx", failure=hash_mismatch()))

    found = script.why("mlx")

    assert found.state == "installed"
    (told,) = [one for one in found.also if "failed" in one]
    assert told.startswith("The last attempt to install 0.33 failed at 12:00:")
    assert hash_mismatch().message in told
    assert types(found)[-2:] == ["install_requested", "install_failed"]
    assert found.words

    script.add(InstallRequested(job="mlx.3", backend="mlx", version="0.33", wanted_by="explicit"))
    assert not [one for one in script.why("mlx").also if "failed" in one], "that is being repaired"


def test_a_version_that_was_gone_back_to_says_since_when_and_why(script: Any) -> None:
    old = script.install("mlx", "0.32", wanted_by="explicit")
    script.install("mlx", "0.33", wanted_by="explicit")
    back = InstallationActivated(backend="mlx", installation_id=old, reason="a rollback was requested")
    script.add(back, cause="r-1", after=60.0)

    found = script.why("mlx")
    script.add(InstallationActivated(backend="mlx", installation_id=old))
    assert "in use since" not in script.why("mlx").answer, "an older journal has no reasons"

    assert found.answer.startswith("mlx 0.32 has been installed since 12:00:")
    assert "It has been in use since 12:01:" in found.answer
    assert found.answer.endswith("a rollback was requested.")
    assert found.steps[-1].text == f"New engines of mlx use installation {old}: a rollback was requested."


def test_a_variant_that_does_not_work_here_is_named_beside_the_one_that_serves(script: Any) -> None:
    script.install("llama.cpp", "1.0")
    ranked = [
        RankedVariant(name=name, usable=True, reason=f"It runs on the {on}.")
        for name, on in (("cu128", "card"), ("cpu", "processor"))
    ]
    script.add(VariantsRanked(backend="llama.cpp", devices=("a card",), variants=tuple(ranked)))
    script.add(
        InstallRequested(
            job="llama.cpp.2",
            backend="llama.cpp",
            variant="cu128",
            version="",
            wanted_by="explicit",
            best=True,
        )
    )
    failure = Failure(kind="permanent", code="no_kernel", message="It has no code for it.", advice="Compile.")
    script.add(InstallFailed(job="llama.cpp.2", backend="llama.cpp", failure=failure))
    also = script.why("llama.cpp").also
    assert "The variant cu128 could not be installed: It has no code for it. Compile." in also


def test_a_variant_that_a_new_card_makes_better_is_named_with_its_command(script: Any) -> None:
    script.install("llama.cpp", "1.0")
    processor = RankedVariant(name="cpu", usable=True, reason="It runs on the processor.")
    script.add(VariantsRanked(backend="llama.cpp", variants=(processor,)))
    assert "better" not in " ".join(script.why("llama.cpp").also)
    card = RankedVariant(name="cu128", usable=True, reason="It runs on the card.")
    script.add(VariantsRanked(backend="llama.cpp", devices=("a card",), variants=(card, processor)))
    found = script.why("llama.cpp")
    assert found.also[-1].endswith("cu128 has been the better variant for this machine: It runs on the card.")
    assert commands(found)[0] == "greenroom install-runner --backend llama.cpp --variant cu128"
    assert found.steps[-1].text.startswith("Graphics devices: a card. Variants of llama.cpp")
    script.add(
        InstallRequested(
            job="llama.cpp.2", backend="llama.cpp", variant="cu128", version="", wanted_by="explicit"
        )
    )
    script.add(InstallCancelled(job="llama.cpp.2", backend="llama.cpp", reason="requested by the user"))
    assert "better" not in " ".join(script.why("llama.cpp").also), "it was declined"
