"""A distribution with a program, for tests that install one."""

from __future__ import annotations

from package_index import Index


def add_hello(index: Index, version: str = "1.0", requires: tuple[str, ...] = ("friend",)) -> None:
    """A distribution with a program that says its version."""
    index.add(
        "hello",
        version,
        {
            "hello.py": f"def main(): print('hello {version}')\n".encode(),
            f"hello-{version}.dist-info/entry_points.txt": b"[console_scripts]\nhello = hello:main\n",
        },
        requires=requires,
    )
