"""A program that behaves like an engine, and misbehaves on demand. Standard library only.

Speaks OpenAI's chat completions, completions and embeddings on a unix socket, `/health`, `/v1/models`, and
`/stats` for tests. `python fake_engine.py --help` lists the faults it can produce. It has a thread for each
connection: importing asyncio would double the time of a start, and tests start it many hundred times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

COMPLETIONS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"),
    *("/rerank", "/score", "/tokenize", "/detokenize", "/apply-template", "/infill"),
)
OTHERS: dict[str, dict[str, Any]] = {
    "/rerank": {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 3}},
    "/score": {"data": [{"index": 0, "score": 0.5}]},
    "/tokenize": {"tokens": [1, 2]},
    "/detokenize": {"content": "word0"},
    "/apply-template": {"prompt": "user: word0"},
}
METRICS = """# HELP fake:tokens_total Tokens generated.
# TYPE fake:tokens_total counter
fake:tokens_total %(tokens)d
# TYPE fake:seconds histogram
fake:seconds_bucket{le="+Inf",model="own}"} %(requests)d
fake:seconds_sum 0.5
"""
LAST: dict[str, Any] = {}
"""The last request that it was to answer."""
TURN = threading.Lock()
"""Held while a processor is busy: nothing else is served then."""
STATS = {"requests": 0, "active": 0, "aborted": 0, "tokens": 0, "most_at_once": 0}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--load-quietly", action="store_true", help="no output while loading")
    parser.add_argument("--load-burning", action="store_true", help="use the processor while loading")
    parser.add_argument("--load-forever", action="store_true")
    parser.add_argument("--load-until", type=str, default="", metavar="FILE", help="this file is there")
    parser.add_argument("--lie-while-loading", action="store_true", help="health says 200, requests wait")
    parser.add_argument("--die-in-load", type=int, metavar="CODE", default=None)
    parser.add_argument(
        "--die-under", metavar="PACKAGE==VERSION", default="", help="in the load, where that is installed"
    )
    parser.add_argument(
        "--health-503-when-dead", action="store_true", help="the load fails, then 503 on every request"
    )
    parser.add_argument("--die-after-requests", type=int, default=0)
    parser.add_argument("--die-after-tokens", type=int, default=0)
    parser.add_argument("--die-by", default="SIGKILL", help="a signal's name, or an exit code")
    parser.add_argument(
        "--healthy-but-dead", action="store_true", help="healthy, but no completion ever ends"
    )
    parser.add_argument("--freeze-after-requests", type=int, default=0, metavar="N", help="then as above")
    parser.add_argument("--freeze-after-tokens", type=int, default=0, metavar="N")
    parser.add_argument("--burn-before-first-token", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--deaf", action="append", default=[], metavar="SIGNAL", help="ignore this signal")
    parser.add_argument("--deaf-to-sigterm", action="store_true", help="ignore SIGINT and SIGTERM")
    parser.add_argument("--die-of", default="", metavar="WORD", help="die when a request's body has it")
    parser.add_argument(
        "--quote", action="append", default=[], help="before that, print it with {0} the body"
    )
    parser.add_argument("--die-of-after", type=float, default=0.0, metavar="SECONDS", help="so much later")
    parser.add_argument("--grow-of", default="", metavar="WORD", help="take memory when a body has it")
    parser.add_argument("--grow-to", type=int, default=4096, metavar="MIB", help="and stop there")
    parser.add_argument(
        "--answer", nargs=2, default=None, metavar=("STATUS", "BODY"), help="answer completions with this"
    )
    parser.add_argument("--stream", default="", metavar="EVENTS", help="stream this, and end (\\n is a line)")
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--token-delay", type=float, default=0.0)
    parser.add_argument("--first-token-delay", type=float, default=0.0)
    parser.add_argument("--first-token-after", default="", metavar="FILE", help="this file is there")
    parser.add_argument("--hold-after-tokens", type=int, default=0, metavar="N", help="of one answer")
    parser.add_argument("--until", default="", metavar="FILE", help="as long as this file is not there")
    parser.add_argument("--context", type=int, default=0, help="tokens of an input: its words + 2")
    parser.add_argument(
        "--like-vllm", action="store_true", help="say so, and count tokens, as vLLM 0.32 does"
    )
    parser.add_argument("--echo", action="store_true", help="answer with the words of the last message")
    parser.add_argument("--echo-fields", action="store_true", help="answer with the request's fields too")
    parser.add_argument("--say", action="append", default=[], help="a line for standard error at the start")
    parser.add_argument("--flood", type=int, default=0, help="bytes of output at the start")
    parser.add_argument("--child", action="store_true", help="start a child that ignores SIGINT and SIGTERM")
    parser.add_argument("--child-escapes", action="store_true", help="that child makes a session of its own")
    parser.add_argument("--unwell-while", default="", metavar="FILE", help="health is 503 while it is there")
    parser.add_argument("--memory", type=int, default=0, metavar="MIB", help="held while it runs")
    parser.add_argument("--device-memory", type=int, default=0, metavar="MIB", help="held while it runs")
    parser.add_argument("--note", default="", metavar="FILE", help="write down there that it was started")
    parser.add_argument("--ignore-keeper", action="store_true", help="do not watch the keeper's pipe")
    parser.add_argument(
        "--for",
        dest="special",
        action="append",
        default=[],
        metavar="NAME=FLAG[,VALUE]...",
        help="these too, when the model's file has this name in its head",
    )
    given = parser.parse_known_args(argv)[0]
    more = [
        words.split(",")
        for name, _, words in (one.partition("=") for one in given.special)
        if is_in(name, given.model)
    ]
    return parser.parse_known_args([*argv, *(word for words in more for word in words)])[0] if more else given


def is_in(name: str, model: str) -> bool:
    with contextlib.suppress(OSError), open(model, "rb") as file:
        return name.encode() in file.read(1000)
    return False


def hold_device_memory(size: int) -> None:
    """Tell the `nvidia-smi` of tests that this process has so many MiB on the device it was shown."""
    folder, device = os.environ["NVIDIA_FAKE_FOLDER"], os.environ["CUDA_VISIBLE_DEVICES"]
    with open(os.path.join(folder, f"user-{os.getpid()}.json"), "w") as file:
        json.dump({"pid": os.getpid(), "device": device, "size": size}, file)


def is_installed(requirement: str) -> bool:
    import importlib.metadata  # as long to import as all the rest, for one test

    package, _, version = requirement.partition("==")
    return importlib.metadata.version(package) == version


def there(file: str) -> bool:
    return os.path.exists(file)


class Client:
    """A connection of a client. What is read or written raises ConnectionError once the client has gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reading = connection.makefile("rb")

    def line(self) -> bytes:
        """The next line; empty at the end."""
        return self._reading.readline()

    def exactly(self, size: int) -> bytes:
        data = self._reading.read(size)
        if len(data) < size:
            raise ConnectionResetError("the client has gone")
        return data

    def write(self, data: bytes) -> None:
        self._connection.sendall(data)

    def check(self) -> None:
        """Raise if the client has gone."""
        if select.select([self._connection], [], [], 0)[0] and not self._connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError("the client has gone")

    def close(self) -> None:
        self._reading.close()
        self._connection.close()


class Engine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loaded = threading.Event()
        self.memory = b"\1" * (options.memory * 2**20)
        """Of bytes that are not zero: those would take no memory."""
        self.grown: list[bytes] = []
        self.load_failed = False

    def load(self) -> None:
        options = self.options
        end = time.monotonic() + options.load_seconds
        while (
            options.load_forever
            or time.monotonic() < end
            or (options.load_until and not there(options.load_until))
        ):
            if not options.load_quietly and not options.load_burning:
                say("loading ...")
            if options.load_burning:
                busy = time.monotonic() + 0.04
                while time.monotonic() < busy:
                    sum(range(1000))
            time.sleep(0.05)
        if options.die_under and is_installed(options.die_under):
            say(f"error loading model: it does not run under {options.die_under}")
            os._exit(3)
        if options.die_in_load is not None:
            say("error loading model: it was asked to fail")
            os._exit(options.die_in_load)
        if options.health_503_when_dead:
            self.load_failed = True
            return
        if options.device_memory:
            hold_device_memory(options.device_memory)
        say("model loaded")
        self.loaded.set()

    def serve(self, connection: socket.socket) -> None:
        client = Client(connection)
        with contextlib.suppress(ConnectionError):
            while self.one_request(client):
                pass
        with contextlib.suppress(ConnectionError):
            client.close()

    def one_request(self, client: Client) -> bool:
        line = client.line()
        if not line:
            return False
        method, path, _ = line.decode().split(" ", 2)
        headers = {}
        while (line := client.line()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.strip().lower()] = value.strip()
        body = client.exactly(int(headers.get("content-length", 0)))
        with TURN:
            pass
        path = path.partition("?")[0]
        if path == "/stats":
            seen = {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "argv": sys.argv}
            answer(client, 200, {**STATS, **LAST, "pid": os.getpid(), **seen})
        elif path == "/metrics":
            answer(client, 200, METRICS % STATS)
        elif path == "/props":
            props = {"total_slots": 3, "model_path": "/secret/place.gguf", "model_alias": "x"}
            answer(client, 200, props)
        elif path == "/health":
            ok = self.loaded.is_set() or (self.options.lie_while_loading and not self.load_failed)
            ok = ok and not (self.options.unwell_while and there(self.options.unwell_while))
            answer(client, 200 if ok else 503, {"status": "ok" if ok else "loading"})
        elif path == "/v1/models":
            answer(client, 200, {"object": "list", "data": [{"id": self.options.model}]})
        elif method == "POST" and path in COMPLETIONS:
            if self.options.lie_while_loading:
                self.loaded.wait()
            if not self.loaded.is_set():
                answer(client, 503, {"error": {"message": "Loading model"}})
            else:
                self.complete(client, path, json.loads(body or b"{}"))
        else:
            answer(client, 404, {"error": {"message": f"no such path: {path}"}})
        return headers.get("connection", "").lower() != "close"

    def complete(self, client: Client, path: str, request: dict[str, Any]) -> None:
        with TURN:
            STATS["requests"] += 1
            STATS["active"] += 1
            LAST["last"] = request
            STATS["most_at_once"] = max(STATS["most_at_once"], STATS["active"])
        try:
            frozen = self.options.freeze_after_requests
            if self.options.healthy_but_dead or (frozen and STATS["requests"] > frozen):
                wait_forever()
            if self.options.grow_of and self.options.grow_of in json.dumps(request):
                self.grow()
            if self.options.die_of and self.options.die_of in json.dumps(request):
                for line in self.options.quote:
                    say(line.format(json.dumps(request)))
                time.sleep(self.options.die_of_after)
                die(self.options.die_by)
            self.burn(self.options.burn_before_first_token)
            if self.options.answer:
                status, body = self.options.answer
                answer(client, int(status), body)
                return
            if self.options.stream and request.get("stream"):
                stream(client, self.options.stream.replace("\\n", "\n"))
                return
            if self.options.context and path in ("/v1/embeddings", "/tokenize"):
                like_vllm = self.options.like_vllm
                answer(client, *embedded(path, request, self.options.context, like_vllm=like_vllm))
                return
            if path == "/v1/embeddings":
                vector = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2, 0.3]}
                usage = {"prompt_tokens": 1, "total_tokens": 1}
                answer(client, 200, {"object": "list", "data": [vector], "usage": usage})
                return
            if path in OTHERS:
                answer(client, 200, OTHERS[path])
                return
            self.generate(client, path, request)
        except (ConnectionError, BrokenPipeError):
            with TURN:
                STATS["aborted"] += 1
            raise
        finally:
            with TURN:
                STATS["active"] -= 1
            if self.options.die_after_requests and STATS["requests"] >= self.options.die_after_requests:
                die(self.options.die_by)

    def grow(self) -> None:
        """Take memory as fast as the system gives it, like a program that has lost count."""
        while len(self.grown) * 32 < self.options.grow_to:
            self.grown.append(b"\1" * 2**25)

    def burn(self, seconds: float) -> None:
        """A prefill: nothing comes out, and a processor is busy. No other request is served meanwhile."""
        with TURN:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                sum(range(100_000))

    def generate(self, client: Client, path: str, request: dict[str, Any]) -> None:
        chat = path == "/v1/chat/completions"
        words = self.words(request)
        words = words[: request.get("max_tokens") or request.get("max_completion_tokens") or len(words)]
        usage = {
            "prompt_tokens": 3,
            "completion_tokens": len(words),
            "total_tokens": 3 + len(words),
        }
        common = {
            "id": "fake-1",
            "created": int(time.time()),
            "model": request.get("model", self.options.model),
        }
        if not request.get("stream"):
            for _ in words:
                self.token(client)
            text = "".join(words)
            choice = {"index": 0, "finish_reason": "stop"}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            kind = "chat.completion" if chat else "text_completion"
            fields = {"fields": sorted(request)} if self.options.echo_fields else {}
            body = {**common, "object": kind, "choices": [choice], "usage": usage, **fields}
            answer(client, 200, body)
            return
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.write(head.encode())
        time.sleep(self.options.first_token_delay)
        while (file := self.options.first_token_after) and not there(file):
            time.sleep(0.01)
        for index, word in enumerate(words):
            while index and index == self.options.hold_after_tokens and not there(self.options.until):
                client.check()
                time.sleep(0.005)
            self.token(client)
            choice = {"index": 0, "finish_reason": None}
            choice |= (
                {"delta": {"content": word, **({"role": "assistant"} if index == 0 else {})}}
                if chat
                else {"text": word}
            )
            event(client, {**common, "object": kind, "choices": [choice]})
        empty: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        last = {"index": 0, "finish_reason": "stop", **empty}
        event(client, {**common, "object": kind, "choices": [last]})
        if (request.get("stream_options") or {}).get("include_usage"):
            event(client, {**common, "object": kind, "choices": [], "usage": usage})
        event(client, None)
        client.write(b"0\r\n\r\n")

    def token(self, client: Client) -> None:
        client.check()
        if self.options.token_delay:
            time.sleep(self.options.token_delay)
        with TURN:
            STATS["tokens"] += 1
        if self.options.freeze_after_tokens and STATS["tokens"] > self.options.freeze_after_tokens:
            wait_forever()
        if self.options.die_after_tokens and STATS["tokens"] > self.options.die_after_tokens:
            die(self.options.die_by)

    def words(self, request: dict[str, Any]) -> list[str]:
        if not self.options.echo:
            return [f"word{index} " for index in range(self.options.tokens)]
        if "prompt" in request:
            text = str(request["prompt"])
        else:
            text = str((request.get("messages") or [{"content": ""}])[-1]["content"])
        return [f"{word} " for word in text.split()]


def embedded(path: str, request: dict[str, Any], context: int, *, like_vllm: bool) -> tuple[int, Any]:
    """llama-server's answers, or vLLM's, about texts whose words are tokens, between 101 and 102."""

    def tokens(text: Any) -> list[int]:
        return text if isinstance(text, list) else [101, *(1000 + len(word) for word in text.split()), 102]

    if path == "/tokenize":
        if not like_vllm:
            return 200, {"tokens": tokens(request["content"])}
        found = tokens(request["prompt"]) if request["add_special_tokens"] else []
        return 200, {"count": len(found), "max_model_len": context, "tokens": found, "token_strs": None}
    given = request["input"]
    counts = [len(tokens(one)) for one in (given if isinstance(given, list) else [given])]
    if max(counts) > context:
        if like_vllm:
            said = (
                f"You passed {max(counts)} input tokens and requested 0 output tokens. However, the model's "
                f"context length is only {context} tokens, resulting in a maximum input length of {context} "
                f"tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=1)"
            )
            return 400, {"error": {"code": 400, "message": said, "type": "BadRequestError", "param": "x"}}
        said = f"input ({max(counts)} tokens) is too large to process. (current batch size: {context})"
        return 400, {"error": {"code": 400, "message": said, "type": "server_error"}}
    rows = [{"object": "embedding", "index": at, "embedding": [0.1]} for at in range(len(counts))]
    return 200, {"object": "list", "data": rows, "usage": {"prompt_tokens": sum(counts)}}


def stream(client: Client, events: str) -> None:
    """Some bytes of a stream as they are, each event in a chunk of its own, and its end."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.write(head.encode())
    for event in events.split("\n\n"):
        data = event.encode() + (b"" if event == events.split("\n\n")[-1] else b"\n\n")
        if data:
            client.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        time.sleep(0.01)
    client.write(b"0\r\n\r\n")


def answer(client: Client, status: int, body: dict[str, Any] | str) -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    client.write(head.encode() + data)


def event(client: Client, body: dict[str, Any] | None) -> None:
    data = b"data: " + (b"[DONE]" if body is None else json.dumps(body).encode()) + b"\n\n"
    client.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def wait_forever() -> NoReturn:
    while True:
        time.sleep(3600)


def die(by: str) -> None:
    say(f"fatal error: dying by {by}, as asked")
    if by.isdigit():
        os._exit(int(by))
    # Unlike `os.kill`, this does not return before the process has ended.
    signal.raise_signal(getattr(signal, by))


def watch_keeper() -> None:
    """End with the keeper, as our launchers do."""
    fd = int(os.environ.get("GREENROOM_KEEPER_FD", "-1"))
    if fd < 0:
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(fd, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


CHILD = """
import signal, sys, time, os
if sys.argv[1] == "escape": os.setsid()
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
sys.stderr.write(f"child {os.getpid()}\\n"); sys.stderr.flush()
time.sleep(600)
"""


def main(options: argparse.Namespace) -> NoReturn:
    for name in (*options.deaf, *(("SIGINT", "SIGTERM") if options.deaf_to_sigterm else ())):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not options.ignore_keeper:
        watch_keeper()
    for line in options.say:
        say(line)
    for _ in range(options.flood // 100):
        sys.stdout.write("x" * 99 + "\n")
    sys.stdout.flush()
    engine = Engine(options)
    if not options.deaf_to_sigterm:
        for number in (signal.SIGINT, signal.SIGTERM):
            if number.name not in options.deaf:
                signal.signal(number, end)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.socket)
    listener.listen(512)
    threading.Thread(target=accept, args=(listener, engine), daemon=True).start()
    engine.load()
    wait_forever()


def accept(listener: socket.socket, engine: Engine) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=engine.serve, args=(connection,), daemon=True).start()


def end(number: int, frame: object) -> None:
    with TURN:
        os._exit(0)


if __name__ == "__main__":
    given = parse(sys.argv[1:])
    if given.note:
        with open(given.note, "a") as notes:
            notes.write(f"{os.getpid()} {given.socket}\n")
    if given.child:
        import subprocess

        subprocess.Popen([sys.executable, "-I", "-c", CHILD, "escape" if given.child_escapes else "stay"])
    main(given)
