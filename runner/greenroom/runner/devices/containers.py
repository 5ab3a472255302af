"""Whether this is a container, and what Linux below Windows is."""

from __future__ import annotations

from greenroom.runner.devices.host_view import HostView

_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container", "/var/run/secrets/kubernetes.io")


def in_container(view: HostView) -> bool:
    return bool(view.env.get("container")) or any(view.exists(mark) for mark in _MARKS)


def machine_memory(view: HostView) -> int:
    """Bytes of the whole machine; 0 if unknown."""
    for line in view.text("/proc/meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and words[1].isdigit():
            return int(words[1]) * 1024
    return 0
