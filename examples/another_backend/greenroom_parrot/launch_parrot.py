"""The engine: runs in the installation's Python, which has bottle and knows nothing of Greenroom."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import socketserver
import time
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import bottle  # type: ignore[import-not-found,unused-ignore]

parrot = bottle.Bottle()


@parrot.get("/health")  # type: ignore[untyped-decorator]
def health() -> str:
    return "{}"


@parrot.post("/v1/chat/completions")  # type: ignore[untyped-decorator]
def complete() -> str:
    asked = bottle.request.json
    said = asked["messages"][-1]["content"]
    said = said.upper() if OPTIONS.shout else said
    about = {"id": "parrot", "created": int(time.time()), "model": OPTIONS.name}
    if not asked.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return json.dumps({**about, "object": "chat.completion", "choices": [choice]})
    bottle.response.content_type = "text/event-stream"
    deltas = [{"role": "assistant", "content": said}, {}]
    chunks = [
        {
            **about,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": one, "finish_reason": end}],
        }
        for one, end in zip(deltas, (None, "stop"), strict=True)
    ]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """wsgiref's server, on a unix socket."""

    daemon_threads = True
    address_family = socketserver.socket.AF_UNIX  # type: ignore[attr-defined]

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()


class Quiet(WSGIRequestHandler):
    """A unix socket's peer has no address."""

    def address_string(self) -> str:
        return "-"

    def get_environ(self) -> dict[str, str]:
        self.client_address = ("", 0)
        return super().get_environ()  # type: ignore[no-any-return,unused-ignore]


if __name__ == "__main__":
    # An engine ends when its keeper does; this is what Greenroom's own launchers do first of all.
    runpy.run_path(os.environ["PARROT_KEEPER_WATCH"])["end_with_keeper"]()
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--shout", action="store_true")
    OPTIONS = parser.parse_args()
    server = Server(OPTIONS.socket, Quiet)
    server.set_app(parrot)
    server.serve_forever()
