"""What Docker's command line is sent while a backend is installed for its request."""

from __future__ import annotations

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.progress import ProgressBoard, install_job, request_job
from greenroom.actors.values import Progress
from greenroom.runner.http.wait_text import InstallText

JOB = install_job("llama.cpp")
WAITS = Progress(job=request_job("r-1"), phase="installing", message="installing llama.cpp", follows=JOB)
LOADS = Progress(job=request_job("r-1"), phase="loading", message="loading tiny")


def test_lines_of_text_come_while_a_backend_is_installed_and_comments_after() -> None:
    board = ProgressBoard()
    text = InstallText(board)
    assert text.about(None) is None
    assert text.about(WAITS) == b"Installing llama.cpp backend...\n"
    assert text.about(WAITS) == b""
    board.publish(Progress(job=JOB, phase="fetching", message="fetching\nx", done=1, total=4))
    assert text.about(WAITS) == b"fetching x (1 B of 4 B)\n"
    assert text.about(WAITS) == b""
    board.publish(Progress(job=JOB, phase="fetching", message=": an answer?"))
    assert text.about(WAITS) == b""
    assert text.about(LOADS) is None
    assert text.done() == b"llama.cpp backend installed successfully\n"
    assert text.done() == b""
    assert text.failed(Refusal(code="x", message="No.")) == b""


def test_an_installation_that_fails_is_a_line_and_a_load_that_needs_none_is_not() -> None:
    text = InstallText(ProgressBoard())
    assert text.about(LOADS) is None
    assert text.done() == b""
    assert text.about(WAITS) is not None
    refusal = Refusal(code="x", message="There is no network.", advice="Connect it.")
    assert text.failed(refusal) == b"backend installation failed: There is no network. Connect it.\n"
