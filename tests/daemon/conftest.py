"""A real daemon: `greenroom serve` in a process of its own, on a data directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemon_process import DaemonProcess, without_settings
from greenroom.actors.journal.port import Record
from greenroom.actors.journal.reader import read_journal
from package_index import serving
from process_lock import process_lock
from short_prompt import SHORT_PROMPT
from waiting import BOUND, until
from workshop import Workshop

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Daemon(DaemonProcess):
    """One data directory, and the daemon that runs on it at the moment."""

    env: dict[str, str]
    wrapper: tuple[str, ...] = ()
    """Words before its command line, which make it a process of its own instead of a fork."""
    program: str = "serve_cli"
    """What the fork runs."""
    commands: list[subprocess.Popen[str]] = field(default_factory=list)
    bound: float = BOUND
    """Seconds one request or command may take."""
    copied: int = 0
    """The last event that came with the data directory; engines of before are not this test's."""

    def start(self, **env: str) -> Daemon:
        """Start it and wait until it is ready."""
        if self.wrapper:
            argv = [*self.wrapper, sys.executable, "-m", "greenroom.runner.cli", "serve", "--port", "0"]
            self.launch(argv, {**self.env, **env})
        else:
            self.fork(self.program, "--port", "0", env={**self.env, **env})
        until(lambda: self.listens() and (self.wrapper or self.get("/readyz").status == 200))
        return self

    def stop(self) -> None:
        """End it in order."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(self.bound) == 0

    def kill(self) -> None:
        """End it without a word."""
        self.send_kill().wait(BOUND)

    def restart(self, **env: str) -> Daemon:
        """Stop it in order and start it again."""
        self.stop()
        return self.start(**env)

    def get(self, path: str) -> Answer:
        """GET."""
        return self.ask("GET", path)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        """POST JSON."""
        return self.ask("POST", path, body, **headers)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request over TCP."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.bound) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())  # type: ignore[arg-type]
        except (urllib.error.URLError, ConnectionError) as error:
            return Answer(0, {}, str(error).encode())

    def pull(self, reference: str) -> None:
        """Have a model here."""
        answer = self.post("/models/create", {"from": reference}, Accept="application/json")
        lines = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
        assert lines[-1]["type"] == "success", answer.body

    def configure(self, model: str, **more: Any) -> None:
        """Have a model of llama.cpp compute with one thread, and `more`. As many threads as there are
        processors wait for each other beside other tests, which takes ten times as long.
        """
        body = {"model": model, "runtime-flags": ["--threads", "1"], **more}
        answer = self.post("/engines/_configure", body)
        assert answer.status == 202, answer.body

    def chat(self, model: str, text: str = "Name a colour.", **more: Any) -> Answer:
        """One chat completion."""
        messages = [SHORT_PROMPT, {"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "max_tokens": 16, **more}
        return self.post("/v1/chat/completions", body)

    def engines(self) -> list[Any]:
        """`ps`."""
        found: list[Any] = self.get("/engines/ps").json
        return found

    def events(self, *types: str) -> list[tuple[Record, dict[str, Any]]]:
        """The journal, read beside the daemon."""
        return [
            (record, json.loads(record.data))
            for record in read_journal(self.home / "journal.db")
            if not types or record.type in types
            if record.seq > self.copied or not record.stream.startswith(("runner/", "scheduler"))
        ]

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """The command line, as a user of this data directory."""
        return subprocess.run(
            [sys.executable, "-m", "greenroom.runner.cli", *arguments],
            env={**self.env, "GREENROOM_HOST": self.url, **env},
            capture_output=True,
            text=True,
            timeout=self.bound * 2,
            stdin=subprocess.DEVNULL,
        )

    def begin(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """A command that is not waited for."""
        process = subprocess.Popen(
            [sys.executable, "-m", "greenroom.runner.cli", *arguments],
            env={**self.env, "GREENROOM_HOST": self.url, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.commands.append(process)
        return process


def _environment(home: Path, **more: str) -> dict[str, str]:
    # Any free port: a developer's own daemon may listen on the usual one.
    return {**without_settings(), "GREENROOM_HOME": str(home), "GREENROOM_PORT": "0", **more}


def _end(daemon: Daemon) -> None:
    for command in daemon.commands:
        command.kill()
        command.communicate()
    daemon.end()
    # A killed daemon leaves its engines to the next one; here there is none.
    for claim in daemon.home.glob("engines/*/claim"):
        for pid in {int(word) for word in _pids(claim)}:
            _kill_ours(pid, str(daemon.home))


def _pids(claim: Path) -> list[int]:
    fields = json.loads(claim.read_text())
    return [value["pid"] for value in fields.values() if isinstance(value, dict) and "pid" in value]


def _kill_ours(pid: int, home: str) -> None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return
    if home in command or "keeper" in command:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons on fresh data directories, or on a copy of one; they and their engines end with the test."""
    made: list[Daemon] = []

    def make(
        like: Path | None = None, wrapper: tuple[str, ...] = (), program: str = "serve_cli", **env: str
    ) -> Daemon:
        home = tmp_path / f"home{len(made)}"
        if like is None:
            home.mkdir()
        else:
            copy_home(like, home)
        made.append(Daemon(home, _environment(home, **env), wrapper, program))
        if like is not None:
            made[-1].copied = max(record.seq for record in read_journal(home / "journal.db"))
        return made[-1]

    yield make
    for daemon in made:
        _end(daemon)


@pytest.fixture(scope="module")
def make_home_daemon() -> Iterator[Callable[..., Daemon]]:
    """Daemons on a data directory that several tests copy."""
    made: list[Daemon] = []

    def make(home: Path, **env: str) -> Daemon:
        home.mkdir(parents=True, exist_ok=True)
        made.append(Daemon(home, _environment(home, **env)))
        return made[-1]

    yield make
    for daemon in made:
        _end(daemon)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Backends that are installed from an index which misbehaves on demand."""
    with serving() as index:
        yield Workshop(tmp_path_factory.mktemp("workshop"), index)


def copy_home(source: Path, target: Path) -> None:
    """Copy a data directory. Files that are never written to are linked, so it takes no time."""
    # Only at the top: packages have folders of these names too.
    left = shutil.ignore_patterns("engines", "daemon.*", "cache", "instance")
    shutil.copytree(
        source,
        target,
        symlinks=True,
        ignore=lambda folder, names: left(folder, names) if Path(folder) == source else set(),
        copy_function=lambda a, b: (
            os.link(a, b) if "/backends/" in a or "/blobs/" in a else shutil.copy2(a, b)
        ),
    )


@pytest.fixture
def furnished(request: pytest.FixtureRequest) -> Path:
    """A data directory with llama.cpp and the real model, for slow tests also with mlx and its model.
    Copy it, do not use it.
    """
    is_slow = request.node.get_closest_marker("slow") is not None
    folder: Path = request.getfixturevalue("furnished_with_mlx" if is_slow else "furnished_with_llama_cpp")
    return folder


@pytest.fixture(scope="session")
def furnished_with_llama_cpp(run_folder: Path, smollm2_gguf: Path) -> Path:
    return _furnished(run_folder, "furnished", {"llama.cpp": smollm2_gguf})


@pytest.fixture(scope="session")
def furnished_with_mlx(run_folder: Path, smollm2_gguf: Path, smollm2_mlx: Path) -> Path:
    return _furnished(run_folder, "furnished-mlx", {"llama.cpp": smollm2_gguf, "mlx": smollm2_mlx})


def _furnished(run_folder: Path, name: str, models: Mapping[str, Path]) -> Path:
    """Installs backends and pulls a model for each, once in a test run."""
    folder = run_folder / name
    with process_lock(run_folder, name):
        if not folder.exists():
            folder.mkdir()
            _furnish(folder / "home", models)
            (folder / "whole").touch()
    assert (folder / "whole").exists(), "another test process could not furnish it"
    return folder / "home"


def _furnish(home: Path, models: Mapping[str, Path]) -> None:
    home.mkdir()
    daemon = Daemon(home, _environment(home))
    try:
        daemon.start()
        for backend, model in models.items():
            answer = daemon.post("/engines/install-backend", {"backend": backend})
            assert answer.status == 200, answer.body
            daemon.pull(str(model))
        daemon.configure(str(models["llama.cpp"]))
        daemon.stop()
    finally:
        _end(daemon)


FRAMEWORKS = (
    *"fastapi starlette litestar django flask uvicorn[standard] hypercorn granian gunicorn nbclient".split(),
    *"ipykernel mypy pyright[nodejs] django-stubs types-psutil".split(),
)
"""What `make test-embedding` has Greenroom in, and what checks the types of programs with them."""


@pytest.fixture(scope="session")
def embedding_python(test_cache: Path) -> Path:
    """The interpreter of an environment with Greenroom's sources and the newest versions of all that."""
    from uv import find_uv_bin

    uv, folder = find_uv_bin(), test_cache / "embedding"
    python = folder / "bin" / "python"
    with process_lock(test_cache, "embedding"):
        if not python.exists():
            new = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
            subprocess.run(new, check=True, timeout=120)
        install = [uv, "pip", "install", "--quiet", "--upgrade", "--python", str(python)]
        subprocess.run([*install, "--editable", str(REPOSITORY), *FRAMEWORKS], check=True, timeout=600)
    return python
