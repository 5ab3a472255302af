"""Runs mlx-lm's own server:
`launch_mlx.py --socket PATH --context TOKENS --kept BYTES [--slots FOLDER] --model FOLDER …`.

Adds: a unix socket; limits on each request's context and on kept prompts; prompts are read in pieces of about
a second; a request ends when its client leaves, even if it is not streamed, is queued, or is having its
prompt read; answers that follow a JSON schema, call a tool, or call none; `/progress` counts what was
computed; on request a stream counts its tokens in every chunk, as vllm's do; and llama-server's `/tokenize`,
`/detokenize`, `/apply-template` and `/slots/N?action=…`.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from answer_plan import planned  # type: ignore[import-not-found]
from answer_schema import unquoted  # type: ignore[import-not-found]
from end_with_keeper import die_at_once_when_told, end_with_keeper  # type: ignore[import-not-found]
from grammars import STRAYED, Grammars, NoGrammar  # type: ignore[import-not-found]
from held_answer import Strayed  # type: ignore[import-not-found]
from kept_slots import Errand, Slots, asked  # type: ignore[import-not-found]
from prompt_pace import Pace  # type: ignore[import-not-found]
from replies import Replies  # type: ignore[import-not-found]
from token_routes import ANSWERS, answered  # type: ignore[import-not-found]

sys.path.pop(0)


_COLD = 1e-3
"""A temperature below which the likeliest token is always chosen."""


class _Answer(threading.local):
    """What this thread answers."""

    connection: Any = None
    context: Any = None
    """Of its generation."""
    made = 0
    """Tokens so far."""
    plan: Any = None
    """What was asked of it; None if it is free."""
    slot: Any = None
    """The slot that was asked for; None for no one."""


_of_this_thread = _Answer()


def main() -> None:
    """Remove our own options from the arguments and leave the rest to mlx-lm."""
    end_with_keeper()
    die_at_once_when_told()
    path, context, kept = taken("--socket"), int(taken("--context")), int(taken("--kept"))
    alone = sys.argv[sys.argv.index("--decode-concurrency") + 1] == "1"
    slots = Slots(taken("--slots") if "--slots" in sys.argv else "", alone=alone)

    from mlx_lm import server  # type: ignore[import-not-found,unused-ignore]

    pace = Pace()
    # mlx-lm's own option limits kept prompts only when the next request joins others, and only in total.
    server.LRUPromptCache = functools.partial(noting(server.LRUPromptCache), max_bytes=kept)
    server.BatchGenerator = paced(server.BatchGenerator, pace, slots)
    server.ResponseGenerator = attentive(server.ResponseGenerator, pace, context, slots)
    # mlx-lm has no public way to add a processor. This name exists since 0.32.0, the oldest version we run.
    usual = server._make_logits_processors  # noqa: SLF001
    server._make_logits_processors = lambda args: [*usual(args), *getattr(args, "processors", ())]  # noqa: SLF001
    grammars = Grammars()

    class Handler(server.APIHandler):  # type: ignore[misc,unused-ignore]
        def handle_completion(self, request: Any, *args: Any) -> None:
            _of_this_thread.connection, _of_this_thread.context = self.connection, None
            _of_this_thread.slot = self.body.get("id_slot")
            tokenizer = self.response_generator.model_provider.tokenizer
            try:
                _of_this_thread.plan = planned(self.body, tokenizer, grammars)
                if self.body.get("tool_choice") == "none":
                    request.tools = None
                super().handle_completion(request, *args)
            except NoGrammar as error:
                self._refuse(str(error))
            except Strayed as error:
                sys.stderr.write(f"an answer could not be held to its schema: {error}\n")
                self._refuse(STRAYED)

        def _refuse(self, message: str) -> None:
            if self.stream and _of_this_thread.context is not None:
                event = {"error": {"message": message, "code": 400}}
                self.wfile.write(b"data: %s\n\n" % json.dumps(event).encode())
                return
            self._headers_buffer: list[bytes] = []  # of the answer that was begun
            data = json.dumps({"error": message}).encode()
            self._set_completion_headers(400)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def generate_response(self, *args: Any, **more: Any) -> Any:
            if more.get("tool_calls"):
                more["tool_calls"] = [unquoted(call) for call in more["tool_calls"]]
            response = super().generate_response(*args, **more)
            if self.stream and (self.stream_options or {}).get("continuous_usage_stats"):
                context, made = _of_this_thread.context, _of_this_thread.made
                counted = len(context.prompt), made, context.prompt_cache_count
                response["usage"] = self.completion_usage_response(*counted)["usage"]
            return response

        def do_POST(self) -> None:  # noqa: N802 - the name http.server calls
            answer = ANSWERS.get(self.path)
            is_slot = self.path.startswith("/slots/")
            if answer is None and not is_slot:
                super().do_POST()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if answer is None:
                status, data = self.response_generator.kept(self.path, body)
            else:
                provider = self.response_generator.model_provider
                status, data = answered(answer, provider, server.process_message_content, body)
            self._set_completion_headers(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:  # noqa: N802 - the name http.server calls
            if self.path != "/progress":
                super().do_GET()
                return
            self._set_completion_headers(200)
            self.end_headers()
            self.wfile.write(b'{"items": %d}' % Replies.items)

    class UnixHTTPServer(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

        def __init__(self, _address: object, handler: Any) -> None:
            self.address_family = socket.AF_UNIX
            super().__init__(path, handler)  # type: ignore[arg-type]

        def server_bind(self) -> None:
            self.socket.bind(path)
            self.server_name, self.server_port = "localhost", 0

        def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
            # The handlers log a host and a port; a unix socket's peer has neither.
            return self.socket.accept()[0], ("local", 0)

        def handle_error(self, request: Any, client_address: Any) -> None:
            if isinstance(sys.exc_info()[1], ConnectionError):
                sys.stderr.write("the client has left; its request ends\n")
            else:
                super().handle_error(request, client_address)

    # mlx-lm has no public way to use another kind of socket. These two names exist since 0.32.0, the
    # oldest version we run.
    serve = server._run_http_server  # noqa: SLF001

    def serve_on_socket(host: str, port: int, generator: Any) -> None:
        generation = generator._generation_thread  # noqa: SLF001
        # When a load or a generation dies, the server would answer 503 from then on.
        threading.Thread(target=_exit_after, args=(generation,), daemon=True).start()
        serve(host, port, generator, server_class=UnixHTTPServer, handler_class=Handler)

    server._run_http_server = serve_on_socket  # noqa: SLF001
    server.main()


def taken(option: str) -> str:
    """Remove an option from the arguments and return its value."""
    place = sys.argv.index(option)
    value = sys.argv[place + 1]
    del sys.argv[place : place + 2]
    return value


def attentive(base: Any, pace: Pace, context: int, slots: Slots) -> Any:
    """A `ResponseGenerator` whose requests end when their clients leave, or their context is full; it saves
    and restores slots.
    """

    class AttentiveGenerator(base):  # type: ignore[misc]
        def generate(self, request: Any, args: Any, progress_callback: Any = None) -> tuple[Any, Any]:
            if not self.generation_available():
                raise RuntimeError("generation thread died")
            replies, plan = Replies(_of_this_thread.connection), _of_this_thread.plan
            if plan is not None:
                args.plan, args.processors = plan, plan.processors(replies.put)
            args.slot = _of_this_thread.slot
            self.requests.put((replies, request, args))
            said = replies.follow(self.generation_available)
            context = next(said)
            if isinstance(context, Exception):
                raise context
            if plan is not None:
                plan.given_to(context)
            _of_this_thread.context, _of_this_thread.made = context, 0
            return context, tokens(said, progress_callback)

        def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> Any:
            found = super()._tokenize(tokenizer, request, args)
            tokens = len(found[0])
            if tokens >= context:
                raise ValueError(
                    f"the request ({tokens} tokens) exceeds the available context size ({context} tokens)"
                )
            args.max_tokens = min(args.max_tokens, context - tokens)
            keep_in_vocabulary(args, tokenizer.vocab_size + len(tokenizer.get_added_vocab()))
            if (plan := getattr(args, "plan", None)) is not None:
                plan.arranged(tokenizer, args.stop_words, found[3])
            slots.begins(getattr(args, "slot", None), found[0])
            return found

        def _next_request(self, timeout: float | None = None) -> Any:
            found = super()._next_request(timeout)
            if found is not None and isinstance(found[0], Errand):
                found[0].run()
                return None
            return None if found is not None and getattr(found[0], "left", False) else found

        def _serve_single(self, request: Any, stream: Any) -> None:
            request[0].piece = pace.took
            self.cli_args.prefill_step_size = pace.step
            self.prompt_cache.latest = None
            super()._serve_single(request, stream)
            slots.ended_alone(self.prompt_cache.latest)

        def kept(self, path: str, body: bytes) -> tuple[int, bytes]:
            """Status and body of what a client asked of a slot. Waits for the generating thread."""
            try:
                slot, action, name = asked(path, body)
            except ValueError:
                return 400, b'{"error": {"message": "it makes no sense"}}'
            if not slots.can:
                return 501, b'{"error": {"message": "it was started without --slots"}}'
            errand = Errand(lambda: slots.done(self, slot, action, name))
            self.requests.put((errand, None, None))
            status, said = errand.answer(self.generation_available)
            return status, json.dumps(said).encode()

    return AttentiveGenerator


def noting(base: Any) -> Any:
    """An `LRUPromptCache` that knows what it was given last."""

    class NotingCache(base):  # type: ignore[misc]
        latest: Any = None

        def insert_cache(self, model: Any, tokens: Any, *args: Any, **options: Any) -> None:
            self.latest = tokens
            super().insert_cache(model, tokens, *args, **options)

    return NotingCache


def keep_in_vocabulary(args: Any, vocabulary: int) -> None:
    """Tokens that the model does not have would end the whole server.

    Raises:
        ValueError: There is a bias for such a token.
    """
    if args.sampling.top_k >= vocabulary:
        args.sampling.top_k = 0  # all of them, as requested
    if args.sampling.temperature < _COLD:
        args.sampling.temperature = 0  # dividing by it would make all tokens equally unlikely
    if any(not 0 <= token < vocabulary for token in args.logits.logit_bias or ()):
        raise ValueError("logit_bias must be for tokens that the model has")


def tokens(said: Iterator[Any], progress: Any) -> Iterator[Any]:
    for item in said:
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        if not isinstance(item, tuple):
            _of_this_thread.made += 1
            yield item
        elif progress is not None:
            progress(*item)


def paced(base: Any, pace: Pace, slots: Slots) -> Any:
    """A `BatchGenerator` that reads prompts in pieces sized for this machine, and says what slots hold."""

    class PacedGenerator(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._prompts_read: dict[int, int] = {}

        def next(self) -> Any:
            self.prefill_step_size = self._prompt_batch.prefill_step_size = pace.step
            begun = time.monotonic()
            prompts, tokens = super().next()
            took = time.monotonic() - begun
            longest = 0
            is_alone = len(prompts) == 1 and all(one.uid == prompts[0].uid for one in tokens)
            for one in prompts:
                longest = max(longest, one.progress[0] - self._prompts_read.pop(one.uid, 0))
                if is_alone and (line := pace.line_of(one.uid, longest, took, ends=one.end_of_prompt)):
                    sys.stderr.write(line)
                if not one.end_of_prompt:
                    self._prompts_read[one.uid] = one.progress[0]
            pace.took(longest, took)
            for one in tokens:
                if one.finish_reason is not None:
                    slots.ended(one.uid, one.all_tokens)
            return prompts, tokens

        def insert_segments(self, *args: Any, **options: Any) -> Any:
            uids = super().insert_segments(*args, **options)
            for uid in uids:
                slots.joined(uid)
            return uids

        def remove(self, uids: Any, *args: Any, **options: Any) -> Any:
            for uid in uids:
                self._prompts_read.pop(uid, None)
                slots.left(uid)
            return super().remove(uids, *args, **options)

    return PacedGenerator


def _exit_after(generation: threading.Thread) -> None:
    generation.join()
    sys.stderr.write("mlx-lm's generation thread has ended\n")
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
