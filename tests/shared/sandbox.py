"""A user's machine for what the documentation shows: `greenroom` on the path, a data directory, a daemon.

The model `smollm2` is the real one; its engine is the tests' fake, in place of the user's own llama-server.

`make docs` runs the sessions of the pages and writes what they print now into them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import event_table
import reference_page
from daemon_process import PROGRAMS, DaemonProcess, without_settings
from pages import PAGES, ROOT, Block, Command, Page, commands
from shapes import agrees, renewed
from variant_table import devices_shown
from waiting import until

PORT = "12400"
ANSWERED = ("greenroom run ", "make run")
"""Their standard output is what the model says, and each model says something else."""
_GREENROOM = '#!/bin/sh\nexec "{python}" -m greenroom.runner.cli "$@"\n'
_LLAMA_SERVER = '#!/bin/sh\nexec "{python}" -I "{program}" "$@"\n'
_CURL = '#!/bin/sh\nexec "{curl}" --fail-with-body --silent --show-error "$@"\n'


class Machine:
    """Runs what pages show, as a user does."""

    def __init__(self, folder: Path, cwd: Path, **env: str) -> None:
        self.folder = folder
        self.cwd = cwd
        self.port = _free_port()
        self.env = {
            **without_settings("MAKE", "MFLAGS"),
            "HOME": str(folder),
            "GREENROOM_PORT": str(self.port),
            **env,
        }
        self._told = 0

    def here(self, text: str) -> str:
        """A text of a page with the address of this machine's daemon, and its folder for temporary files."""
        here = text.replace(f":{PORT}", f":{self.port}").replace("/tmp/", f"{self.folder}/")
        return here.replace(f"GREENROOM_PORT={int(PORT) + 1}", "GREENROOM_PORT=0")

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script of a page."""
        return self._run("bash", "-c", self.here(script))

    def program(
        self, block: Block, *command: str, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of a page by a command, after a file with it was put into a folder."""
        parts = (block.notes.get("first", ""), block.text, block.notes.get("last", ""))
        file = (folder or self.folder) / f"program.{'mjs' if block.kind == 'js' else 'py'}"
        file.write_text(self.here("\n".join(parts)))
        return self._run(*command, str(file))

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )

    def session(self, block: Block) -> list[list[str]]:
        """Run the commands of a block in one shell; the lines each prints, the model's answer the last."""
        self._told += 1
        told = self.folder / f"told{self._told}"
        script = (
            [f"{{ {self.here(first)}\n}} >/dev/null || exit 1"] if (first := block.notes.get("first")) else []
        )
        asked = commands(block)
        for number, command in enumerate(asked):
            split = f"2>{told}.{number}.err" if command.text.startswith(ANSWERED) else "2>&1"
            script.append(f"{{ {self.here(command.text)}\n}} >{told}.{number} {split}")
        done = self._run("bash", "-c", "\n".join(script))
        assert Path(f"{told}.{len(asked) - 1}").exists(), f"{block.place}: {done.stdout}"
        return [_printed(command, Path(f"{told}.{number}")) for number, command in enumerate(asked)]


def _printed(command: Command, file: Path) -> list[str]:
    if not command.text.startswith(ANSWERED):
        return _lines(file)
    *steps, answer = _lines(file) or [""]
    errors = _lines(Path(f"{file}.err"))
    assert answer, f"{command.text}: {errors}"
    # make announces its steps where the answer goes.
    return [*(line for line in steps if line), *errors, answer]


def _lines(file: Path) -> list[str]:
    """But for pip's warnings of what is special about this machine."""
    lines = (line.rstrip() for line in file.read_text("utf-8").splitlines())
    return [line for line in lines if not line.startswith("WARNING: ")]


class Sandbox(Machine, DaemonProcess):
    """A data directory with a daemon, and `greenroom` on the path."""

    def __init__(self, folder: Path, model: Path, settings: str = "") -> None:
        DaemonProcess.__init__(self, folder / "home")
        (folder / "bin").mkdir()
        path = f"{folder}/bin:{os.environ['PATH']}"
        chosen = {
            f"GREENROOM_{name.upper()}": value
            for name, _, value in (word.partition("=") for word in settings.split())
        }
        config = folder / "config.toml"
        chosen |= {"PATH": path, "GREENROOM_HOME": str(self.home), "GREENROOM_CONFIG": str(config)}
        Machine.__init__(self, folder, folder / "work", **chosen)
        self.cwd.mkdir()
        self.home.mkdir()
        python = sys.executable
        for name, words in (
            ("greenroom", (str(Path(python).with_name("greenroom")),)),
            ("llama-server", (python, "-I", str(PROGRAMS / "llama_server.py"))),
            ("curl", (shutil.which("curl") or "curl", "--fail-with-body", "--silent", "--show-error")),
        ):
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            program.chmod(0o755)
        config.write_text(
            f"models.smollm2 = 'file:{model}'\nbackends.'llama.cpp'.binary = '{folder}/bin/llama-server'\n"
        )

    def start(self) -> Sandbox:
        """Start the daemon, and have it store the model."""
        self.launch([sys.executable, "-m", "greenroom.runner.cli", "serve"], self.env)
        until(self.listens)
        until(self.is_ready)
        pull = urllib.request.Request(f"{self.url}/models/create", b'{"from": "smollm2"}', method="POST")
        with urllib.request.urlopen(pull, timeout=60) as answer:
            assert b"successfully" in answer.read()
        return self

    def is_ready(self) -> bool:
        """Whether every actor has reported."""
        try:
            urllib.request.urlopen(f"{self.url}/readyz", timeout=60).close()
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def sandbox(model: Path, settings: str = "") -> Iterator[Sandbox]:
    """One with a daemon, which ends with it."""
    with _folder() as folder:
        made = Sandbox(folder, model, settings)
        try:
            yield made.start()
        finally:
            made.end()


@contextmanager
def clone() -> Iterator[Machine]:
    """A fresh clone of what git tracks, without anything of this machine's but its package index."""
    with _folder() as folder:
        names = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        for name in names.splitlines():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "clone" / name)
        made = Machine(folder, folder / "clone", GREENROOM_HOME=str(folder / "home"))
        # Packages come from where this user's come from.
        made.env["HOME"] = os.environ["HOME"]
        made.env["PATH"] = f"{made.cwd}/.venv/bin:{os.environ['PATH']}"
        try:
            yield made
        finally:
            made.shell("[ ! -x .venv/bin/greenroom ] || .venv/bin/greenroom stop")


@contextmanager
def _folder() -> Iterator[Path]:
    # Engines' sockets lie in it, and their paths are bounded.
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def printed_by(block: Block, model: Path, shared: Machine) -> list[list[str]]:
    """What the commands of a session print, in `shared` unless the block needs something of its own."""
    if "machine" in block.notes:
        return [devices_shown(block.notes["machine"]).splitlines()]
    if "settings" in block.notes:
        with sandbox(model, block.notes["settings"]) as own:
            return own.session(block)
    return shared.session(block)


def renewed_text(block: Block, printed: Sequence[Sequence[str]]) -> str:
    """The block with what was printed, where that says something else; else the block as it is."""
    pairs = zip(commands(block), printed, strict=True)
    return "".join(f"{line}\n" for pair in pairs for line in _renewed(*pair, "in any order" in block.notes))


def _renewed(command: Command, printed: Sequence[str], any_order: bool) -> Iterator[str]:
    answers = 1 if command.text.startswith(ANSWERED) else 0
    shown, shown_answer = divided(command.shown, len(command.shown) - answers)
    told, answer = divided(printed, len(printed) - answers)
    yield f"$ {command.text}"
    if agrees(shown, told, any_order=any_order):
        yield from shown
    else:
        yield from renewed(shown, told)
        yield from [""] if shown and not shown[-1] else []
    yield from shown_answer or answer


def divided(lines: Sequence[str], place: int) -> tuple[Sequence[str], Sequence[str]]:
    return lines[: max(place, 0)], lines[max(place, 0) :]


def main(arguments: Sequence[str]) -> None:
    """Write what the sessions print now into the pages."""
    event_table.PAGE.write_text(event_table.insert(event_table.PAGE.read_text("utf-8")), "utf-8")
    reference_page.PAGE.write_text(reference_page.render(), "utf-8")
    model = Path(os.environ.get("GREENROOM_TEST_CACHE") or ROOT / ".venv" / "test-cache")
    (model,) = model.glob("smollm2/*.gguf")
    in_clone = "--clone" in arguments
    names = [name for name in arguments if name != "--clone"] or PAGES
    # The README's sessions set the clone up for those of the other pages.
    pages = [Page(name) for name in PAGES if name in names or (in_clone and name == "README.md")]
    with clone() if in_clone else sandbox(model) as shared:
        for page in pages:
            texts = {
                one: renewed_text(one, printed_by(one, model, shared))
                for one in page.blocks
                if one.kind == "console" and "not run" not in one.notes and ("clone" in one.notes) == in_clone
            }
            changed = {one: text for one, text in texts.items() if text != one.text}
            page.replace(changed)
            for one in changed:
                print(f"{one.place} is renewed: read it.")


if __name__ == "__main__":
    main(sys.argv[1:])
