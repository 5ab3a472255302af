"""The smallest program that can be an engine: it says back what it was told. For `test_service.py`."""

from __future__ import annotations

import argparse
import json
import socketserver
from http.server import BaseHTTPRequestHandler


class Echo(BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "a unix socket has no address"

    def do_GET(self) -> None:
        self.answer({"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = asked["messages"][-1]["content"] if "messages" in asked else ""
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "text": said, "finish_reason": "stop"}
        self.answer({"id": "1", "object": "chat.completion", "model": asked["model"], "choices": [choice]})

    def answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model", required=True)
    socketserver.ThreadingUnixStreamServer(parser.parse_args().socket, Echo).serve_forever()
