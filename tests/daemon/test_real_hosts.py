"""The programs of the cookbook on the real model: as scripts, and in frameworks at their newest versions."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon_process import without_settings
from greenroom import connect
from greenroom.actors.journal.reader import read_journal
from waiting import BOUND, until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
embedding = pytest.mark.embedding

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = ROOT / "tests" / "programs" / "embedding"
GUNICORN = ("-m", "gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:{port}")


class Host:
    """A data directory with llama.cpp and the real model, and the programs that use it."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = str(model)
        self.env = {
            **without_settings(),
            "GREENROOM_HOME": str(home),
            "GREENROOM_PORT": "0",
            "MODEL": self.model,
        }
        self._before = self.starts()

    def starts(self) -> int:
        return [record.type for record in read_journal(self.home / "journal.db")].count("daemon_started")

    def daemons(self) -> int:
        """How many have run on it since the test began."""
        return self.starts() - self._before

    def engines(self) -> list[int | None]:
        """The processes of the engines of its daemon."""
        return [engine.pid for engine in connect(self.home, start=False).ps()]

    def run(self, *command: str | Path, cwd: Path = EXAMPLES) -> str:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def stop(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "greenroom.runner.cli", "stop"],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=BOUND,
        )

    @contextlib.contextmanager
    def serves(self, command: Sequence[object], cwd: Path) -> Iterator[Service]:
        """A server in a process of its own, which listens on the port that `{port}` stands for."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        argv = [str(word).format(port=port) for word in command]
        log = self.home.parent / "service.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                argv, cwd=cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        service = Service(port, log, process)
        try:
            yield service
            process.terminate()
            process.wait(BOUND)
        finally:
            process.kill()
            process.wait()
        assert "Traceback" not in log.read_text(), log.read_text()


class Service:
    """What a test asks of a server."""

    def __init__(self, port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.port, self.log, self.process = port, log, process

    def get(self, path: str, **query: str) -> str:
        """Raises HTTPError; waits for the server to listen."""
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"

        def answer() -> str | None:
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(url, timeout=120) as got:
                    return str(got.read().decode())
            except urllib.error.HTTPError:
                raise
            except OSError:
                return None

        said = until(answer, 2 * BOUND)
        assert isinstance(said, str)
        return said

    def ask(self, question: str = "Name a colour.") -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.get("/ask", question=question))
        assert answer["answer"], answer
        assert answer["tokens"] > 0
        return answer

    def refuses(self) -> None:
        """It answers with Greenroom's sentence, also where it would have answered piece by piece."""
        for path in ("/ask", "/tell"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                self.get(path, question="Why?")
            with refused.value as answer:
                assert answer.status == 404
                assert json.load(answer)["code"] == "model_not_found"

    def ask_each(self, *, workers: int) -> None:
        """So many processes answer: one that has answered is stopped until the others have."""
        seen: list[int] = []
        try:
            for _ in range(workers):
                seen.append(self.ask()["worker"])
                os.kill(seen[-1], signal.SIGSTOP)
        finally:
            for worker in seen:
                os.kill(worker, signal.SIGCONT)
        assert len(set(seen)) == workers


@pytest.fixture
def host(
    furnished_with_llama_cpp: Path, smollm2_gguf: Path, make_daemon: Callable[..., Any]
) -> Iterator[Host]:
    host = Host(make_daemon(furnished_with_llama_cpp).home, smollm2_gguf)
    yield host
    host.stop()


def test_the_script_chats(host: Host) -> None:
    assert len(host.run(sys.executable, "chat.py", host.model, "Name a colour.").split()) > 1


def test_pykka_actors_share_a_client(host: Host) -> None:
    assert host.run(sys.executable, "pykka_program.py", host.model, "the sea").strip()
    assert host.daemons() == 1


def test_programs_that_share_a_daemon_chat_at_the_same_time(host: Host) -> None:
    said = host.run(
        sys.executable, "shared.py", str(host.home), host.model, "Name a colour.", "Name a river."
    )
    assert said.count("tokens in") == 2


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_answer_with_a_client_that_was_sent_to_them(
    host: Host, method: str, tmp_path: Path
) -> None:
    program = (EXAMPLES / "processes.py").read_text().replace('"spawn"', f'"{method}"', 1)
    (tmp_path / "processes.py").write_text(program)
    said = host.run(
        sys.executable, "processes.py", host.model, "Name a colour.", "Name a river.", cwd=tmp_path
    )
    assert len(said.splitlines()) >= 2
    assert host.daemons() == 1


@embedding
def test_workers_of_fastapi_share_a_daemon_and_its_engine(host: Host, embedding_python: Path) -> None:
    command = [embedding_python, "-m", "uvicorn", "fastapi_service:app", "--workers", "2", "--port", "{port}"]
    with host.serves(command, EXAMPLES / "web") as service:
        service.ask_each(workers=2)
        assert service.get("/tell", question="Name a colour.").strip()
        assert (host.daemons(), len(host.engines())) == (1, 1)


@embedding
def test_flask_with_its_reloader_keeps_the_daemon_and_its_engine(
    host: Host, embedding_python: Path, tmp_path: Path
) -> None:
    shutil.copy(EXAMPLES / "web" / "flask_service.py", tmp_path)
    command = [
        embedding_python,
        "-m",
        "flask",
        "--app",
        "flask_service",
        "run",
        "--debug",
        "--port",
        "{port}",
    ]
    with host.serves(command, tmp_path) as service:
        first = service.ask()
        engines = host.engines()
        program = tmp_path / "flask_service.py"
        program.write_text(program.read_text().replace('"/ask"', '"/ask/again"'))

        def reloaded() -> str | None:
            with contextlib.suppress(urllib.error.HTTPError):  # before it has been loaded again
                return service.get("/ask/again", question="Name a river.")
            return None

        assert json.loads(until(reloaded))["worker"] != first["worker"]
        assert service.get("/tell", question="Name a colour.").strip()
        assert (host.daemons(), host.engines()) == (1, engines)


@embedding
def test_preloaded_workers_of_gunicorn_share_a_client(host: Host, embedding_python: Path) -> None:
    with host.serves([embedding_python, *GUNICORN, "flask_service:app"], EXAMPLES / "web") as service:
        service.ask_each(workers=2)
        assert (host.daemons(), len(host.engines())) == (1, 1)


@embedding
def test_a_greenroom_that_gunicorn_preloads_says_what_to_do(host: Host, embedding_python: Path) -> None:
    with host.serves([embedding_python, *GUNICORN, "preloaded:app"], PROGRAMS) as service:
        said = json.loads(service.get("/models"))
        assert (said["before"], said["code"]) == (1, "forked")
        assert f"This Greenroom runs in process {service.process.pid}" in said["error"]
        assert "connect" in said["error"]


@embedding
def test_a_django_site_chats(host: Host, embedding_python: Path) -> None:
    command = [embedding_python, "django_service.py", "runserver", "127.0.0.1:{port}"]
    with host.serves(command, EXAMPLES / "web") as service:
        assert service.ask()["worker"] != os.getpid()
        assert service.get("/tell", question="Name a colour.").strip()


@embedding
@pytest.mark.parametrize(
    "program",
    [
        ("-m", "flask", "--app", "flask_service", "run", "--port", "{port}"),
        ("django_service.py", "runserver", "{port}"),
    ],
)
def test_a_service_passes_on_why_it_is_refused(
    host: Host, embedding_python: Path, program: tuple[str, ...]
) -> None:
    host.env["MODEL"] = "absent"
    with host.serves([embedding_python, *program], EXAMPLES / "web") as service:
        service.refuses()


@embedding
def test_a_notebook_runs_again_in_the_same_and_in_another_kernel(host: Host, embedding_python: Path) -> None:
    said = host.run(embedding_python, PROGRAMS / "run_notebook.py", EXAMPLES / "notebook.ipynb")
    outputs = json.loads(said.splitlines()[-1])
    assert "tokens in" in outputs[2]
    assert "RunningEngine" in outputs[-1]
    assert (host.daemons(), len(host.engines())) == (1, 1)


@embedding
def test_programs_in_frameworks_are_typed(embedding_python: Path, tmp_path: Path) -> None:
    """`make check` does the same for all other programs; these need their frameworks."""
    files = [*map(str, sorted((EXAMPLES / "web").glob("*.py"))), str(PROGRAMS / "preloaded.py")]
    config = {
        "include": files,
        "extraPaths": [str(ROOT / "actors"), str(ROOT / "runner")],
        "typeCheckingMode": "standard",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    for command in (
        ["-m", "mypy", "--strict", "--cache-dir", str(tmp_path), *files],
        ["-m", "pyright", "--pythonpath", str(embedding_python), "--project", str(tmp_path)],
    ):
        done = subprocess.run(
            [embedding_python, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
