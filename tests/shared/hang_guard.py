"""Ends a test process that hangs where pytest-timeout cannot interrupt it.

pytest-timeout interrupts a test once. A cleanup that then waits without a limit, or a call that no signal
breaks off, would hold up the whole run. The process prints what each of its threads is doing and exits; xdist
names the test and goes on without it. (pytest's own `faulthandler_timeout` is off once a test has failed.)
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from typing import Any

import pytest

grace = 60.0
"""Seconds that a test has beyond its time limit, and its cleanup after that."""
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    # Captured output would die with the process.
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.stash[_stderr] = os.dup(2)


def _limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    if marker is None:
        return float(item.config.getini("timeout") or 0.0)
    return float(marker.args[0] if marker.args else marker.kwargs.get("timeout", 0.0))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    if limit := _limit(item):
        faulthandler.dump_traceback_later(limit + grace, file=item.config.stash[_stderr], exit=True)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    if limit := _limit(item):
        faulthandler.dump_traceback_later(limit + grace, file=item.config.stash[_stderr], exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # What is left is to join threads and processes, which may never return.
        faulthandler.dump_traceback_later(grace, file=session.config.stash[_stderr], exit=True)
