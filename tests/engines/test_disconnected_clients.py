"""A client that leaves ends its generation: what our launchers add to engines that would go on."""

from __future__ import annotations

import importlib.util
import json
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.engines.folders import prompt_speed
from greenroom.runner.engines.launchers import launcher
from greenroom.runner.engines.launchers.kept_slots import Slots
from greenroom.runner.engines.launchers.prompt_pace import LEAST, MOST, Pace
from greenroom.runner.engines.launchers.replies import ClientLeft, Replies, has_left

TIMING = (
    "2.24.768.474 I slot print_timing: id  2 | task 4 | prompt eval time =  140792.63 ms /  3601 tokens "
    "(   39.10 ms per token,    25.58 tokens per second)\n"
)


class Context:
    stopped = False

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_connection_counts_as_left_only_when_its_other_end_is_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    assert not has_left(ours)
    theirs.send(b"more")
    assert not has_left(ours)
    assert ours.recv(4) == b"more"
    theirs.close()
    assert has_left(ours)


def test_a_generation_whose_client_leaves_is_stopped_although_tokens_keep_coming(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    replies, context = Replies(ours), Context()
    replies.put(context)
    said = replies.follow(lambda: True)
    assert next(said) is context
    theirs.close()

    def go_on() -> None:
        while True:
            replies.put("token")
            next(said)

    with pytest.raises(ClientLeft):
        go_on()
    assert context.stopped


def test_a_request_whose_client_left_in_the_queue_is_stopped_when_its_generation_begins(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    replies, context = Replies(ours), Context()
    theirs.close()
    with pytest.raises(ClientLeft):
        next(replies.follow(lambda: True))
    assert replies.left
    replies.put(context)
    assert context.stopped


def test_a_prompt_whose_client_has_left_is_dropped_between_two_batches() -> None:
    replies = Replies(None)
    pieces = []
    replies.piece = lambda tokens, seconds: pieces.append(tokens)
    replies.put((0, 100))
    replies.put((32, 100))
    replies.leave()
    with pytest.raises(ClientLeft):
        replies.put((64, 100))
    replies.put(ValueError("the reason still gets through"))
    assert pieces == [32]


def test_a_request_whose_engine_died_does_not_wait_forever() -> None:
    with pytest.raises(RuntimeError, match="died"):
        next(Replies(None).follow(lambda: False))


def test_pieces_of_prompts_shrink_on_a_slow_machine_and_grow_on_a_fast_one() -> None:
    pace = Pace()
    pace.took(32, 3.2)
    assert pace.step == 8
    for _ in range(20):
        pace.took(pace.step, 0.1)
    assert pace.step == MOST
    pace.took(MOST, 4.0)
    assert pace.step == 512
    pace.took(3, 0.001)
    assert pace.step == 512, "a short prompt says nothing of how fast long ones are"
    pace.took(1, 500.0)
    assert pace.step == LEAST


def test_the_speed_of_prompts_that_were_read_alone_is_logged() -> None:
    pace = Pace()
    assert not pace.line_of(1, 32, 0.5, ends=False)
    line = pace.line_of(1, 68, 0.5, ends=True)
    assert not pace.line_of(2, 63, 0.1, ends=True)
    again = pace.line_of(3, 300, 1.0, ends=True)
    assert Mlx().prompt_speed(f"it began\n{line}{again}") == 200.0
    assert Mlx().prompt_speed("it began\n") == 0.0


def mlx_launcher() -> Any:
    spec = importlib.util.spec_from_file_location("launch_mlx_under_test", launcher("mlx"))
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mlxs_queue_drops_requests_whose_clients_have_left() -> None:
    class Generator:
        def __init__(self) -> None:
            self.requests: queue.Queue[Any] = queue.Queue()

        def _next_request(self, timeout: Any = None) -> Any:
            return self.requests.get_nowait()

    generator = mlx_launcher().attentive(Generator, Pace(), 100, Slots(""))()
    left, waits = Replies(None), Replies(None)
    left.leave()
    generator.requests.put((left, "a", "b"))
    generator.requests.put((waits, "c", "d"))
    next_request = generator._next_request  # noqa: SLF001 - mlx-lm's own
    assert next_request() is None
    assert next_request() == (waits, "c", "d")


def test_mlxs_batches_take_the_pace_that_was_measured() -> None:
    class Generator:
        def __init__(self) -> None:
            self.prefill_step_size, self._prompt_batch = 2048, SimpleNamespace(prefill_step_size=2048)

        def next(self) -> Any:
            return [SimpleNamespace(uid=1, progress=(self.prefill_step_size, 4000), end_of_prompt=False)], []

    pace = Pace()
    generator = mlx_launcher().paced(Generator, pace, Slots(""))()
    generator.next()
    batch = generator._prompt_batch  # noqa: SLF001 - mlx-lm's own
    assert (generator.prefill_step_size, batch.prefill_step_size) == (32, 32)
    assert pace.step == 64


def test_an_answer_is_read_by_one_thread_while_another_gives_it() -> None:
    replies = Replies(None)
    context = Context()

    def give() -> None:
        for item in (context, (1, 2), "a", "b", None):
            replies.put(item)

    giver = threading.Thread(target=give)
    giver.start()
    said = replies.follow(lambda: True)
    assert next(said) is context
    assert list(mlx_launcher().tokens(said, None)) == ["a", "b"]
    giver.join()


# llama.cpp: the server looks between two batches


def batches(
    speed: float = 0.0,
    *,
    binary: Any = None,
    mode: Any = "completion",
    flags: tuple[str, ...] = (),
    mmproj: Any = None,
    least: int = 0,
) -> Any:
    spec = EngineSpec(
        engine_id="e", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m", mode=mode,
        flags=flags, batch=least,
    )  # fmt: skip
    model = ModelFiles(path=Path("/m.gguf"), format="gguf", name="m", mmproj=mmproj)
    launch = Launch(
        spec=spec, root=Path("/"), python=Path("/py"), model=model, socket=Path("/s"), binary=binary,
        prompt_speed=speed,
    )  # fmt: skip
    argv = LlamaCpp().command(launch).argv
    return {name: argv[argv.index(name) + 1] for name in ("--batch-size", "--ubatch-size") if name in argv}


@pytest.mark.parametrize(
    ("speed", "batch"), [(5, 32), (25.6, 32), (60, 64), (235, 256), (600, 1024), (9e4, 2048)]
)
def test_llama_cpps_batches_last_two_seconds_at_the_speed_that_was_measured(speed: float, batch: int) -> None:
    assert batches(speed) == {"--batch-size": str(batch), "--ubatch-size": str(min(512, batch))}


def test_batches_are_as_long_as_an_input_may_be_where_it_must_fit_into_one() -> None:
    for mode in ("embedding", "reranking"):
        assert batches(60, mode=mode, least=8192) == {"--batch-size": "8192", "--ubatch-size": "8192"}
        assert batches(60, mode=mode) == {}
    assert batches(60, mmproj=Path("/p.gguf")) == {"--batch-size": "512", "--ubatch-size": "512"}


def test_a_users_own_server_begins_with_short_batches_and_a_users_own_flag_wins() -> None:
    assert batches(binary=Path("/b"))["--batch-size"] == "512"
    argv = batches(60, flags=("--batch-size", "7"))
    assert argv["--batch-size"] == "64", "the user's comes later on the command line, and the last one counts"


def llama_cpp_launcher() -> Any:
    spec = importlib.util.spec_from_file_location("launch_llama_cpp_under_test", launcher("llama_cpp"))
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("layers", "context", "words", "is_fit"),
    [
        (999, 8192, [], False),
        (-1, 8192, [], True),
        (999, 0, [], True),
        (999, 8192, ["--fit", "on"], True),
        (999, 8192, ["--fit-target=512"], True),
    ],
)
def test_llama_cpp_looks_what_fits_only_where_it_has_something_to_choose(
    layers: int, context: int, words: list[str], is_fit: bool
) -> None:
    params = SimpleNamespace(n_gpu_layers=layers, n_ctx=context, fit_params=True)
    llama_cpp_launcher().leave_out_fit(params, words)
    assert params.fit_params is is_fit


def test_before_anything_was_measured_batches_follow_from_the_models_size() -> None:
    module = llama_cpp_launcher()
    assert module.guess_batch(98_000_000, 2) == 256
    assert module.guess_batch(4_100_000_000, 8) == 32
    assert module.guess_batch(1000, 64) == 512


def test_a_prompt_that_shared_the_engine_says_nothing_of_its_speed() -> None:
    begin = "I slot launch_slot_: id  0 | task %d | processing task, is_child = 0\n"
    timing = (
        "I slot print_timing: id  0 | task %d | prompt eval time = 9 ms / 100 tokens ( 1 ms per token, %s)\n"
    )
    end = "I slot      release: id  0 | task %d | stop processing: n_tokens = 1, truncated = 0\n"
    alone = begin % 1 + timing % (1, "200.00 tokens per second") + end % 1
    two = begin % 2 + begin % 3 + timing % (2, "9.00 tokens per second") + end % 2
    two += timing % (3, "8.00 tokens per second") + end % 3
    assert (
        LlamaCpp().prompt_speed(alone + two + two.replace("task 2", "task 4").replace("task 3", "task 5"))
        == 200
    )
    assert LlamaCpp().prompt_speed(two) == 0.0


def test_the_speed_is_the_one_the_last_engine_of_the_model_has_logged(tmp_path: Path) -> None:
    spec = EngineSpec(engine_id="e-9", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m")

    def engine(name: str, log: str, **fields: Any) -> None:
        (tmp_path / name).mkdir()
        about = {
            "backend": "llama.cpp",
            "installation_id": "i",
            "model_id": "m",
            "mode": "completion",
            "device": "",
        }
        (tmp_path / name / "claim").write_text(json.dumps({"about": {"spec": {**about, **fields}}}))
        (tmp_path / name / "log").write_text(log)

    assert prompt_speed(tmp_path / "none", spec, LlamaCpp().prompt_speed) == 0.0
    engine("e-1", "prompt eval time = 9 ms / 3 tokens ( 3 ms per token, 999.00 tokens per second)\n")
    engine("e-2", TIMING)
    engine("e-3", TIMING.replace("25.58", "777.00"), model_id="other")
    (tmp_path / "e-4").mkdir()
    (tmp_path / "e-4" / "claim").write_text("[]")
    assert prompt_speed(tmp_path, spec, LlamaCpp().prompt_speed) == 25.58


def test_mlx_is_never_asked_for_tokens_that_its_model_does_not_have() -> None:
    keep = mlx_launcher().keep_in_vocabulary
    args = SimpleNamespace(
        sampling=SimpleNamespace(top_k=100, temperature=1.0), logits=SimpleNamespace(logit_bias={99: 1.0})
    )
    keep(args, 101)
    assert args.sampling.top_k == 100
    keep(args, 100)
    assert args.sampling.top_k == 0, "more than all are all"
    for token in (100, -1):
        args.logits.logit_bias = {token: 1.0}
        with pytest.raises(ValueError, match="logit_bias"):
            keep(args, 100)
    args.logits.logit_bias = None
    keep(args, 100)
