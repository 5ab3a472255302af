"""Actors refuse with kinds; the statuses that clients see for them stay what they are."""

from __future__ import annotations

import pytest

from greenroom.actors.installer.errors import failed
from greenroom.actors.kernel.errors import ErrorKind, Refusal
from greenroom.actors.library.pulls import refusal_of
from greenroom.actors.values import Failure
from greenroom.runner.http.errors import status_of


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        ("invalid", "bad_field", 400),
        ("not_found", "model_not_found", 404),
        ("conflict", "in_use", 409),
        ("not_ready", "backend_not_installed", 412),
        ("unavailable", "backend_not_installed", 503),
        ("not_ready", "unsupported_platform", 412),
        ("invalid", "unsupported_model", 422),
        ("conflict", "idempotency_key_reused", 422),
        ("exhausted", "queue_full", 429),
        ("exhausted", "too_many_failures", 429),
        ("internal", "internal_error", 500),
        ("unavailable", "breaker_open", 503),
        ("exhausted", "does_not_fit", 507),
        ("exhausted", "journal_full", 507),
        ("exhausted", "not_storable", 507),
    ],
)
def test_each_refusal_has_the_status_of_its_kind_or_code(kind: ErrorKind, code: str, status: int) -> None:
    assert status_of(Refusal(code=code, message="No.", kind=kind)) == status


def failure(code: str, *, transient: bool = False) -> Failure:
    return Failure(kind="transient" if transient else "permanent", code=code, message="No.")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("no_such_model", 404),
        ("unauthorized", 401),
        ("bad_reference", 400),
        ("not_allowed", 403),
        ("not_a_model", 422),
        ("unsupported_artifact", 422),
        ("unsupported_source", 422),
        ("cannot_run_here", 422),
        ("conflict", 409),
        ("does_not_fit", 507),
        ("read_only", 507),
        ("hash_mismatch", 502),
        ("refused", 502),
        ("unreachable", 503),
        ("internal", 500),
    ],
)
def test_a_pull_that_fails_has_the_status_of_its_failure(code: str, status: int) -> None:
    assert status_of(refusal_of(failure(code))) == status
    assert status_of(refusal_of(failure("too_slow", transient=True))) == 503


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("refused_by_policy", 412),
        ("no_lock", 412),
        ("no_such_version", 404),
        ("no_space", 507),
        ("no_permission", 507),
        ("unreachable", 503),
        ("cancelled", 409),
        ("hash_mismatch", 500),
        ("not_allowed", 500),
    ],
)
def test_an_installation_that_fails_has_the_status_of_its_failure(code: str, status: int) -> None:
    assert status_of(failed(failure(code), "mlx")) == status
    assert status_of(failed(failure("too_slow", transient=True), "mlx")) == 503
