"""An engine for tests that needs no model: it answers with the text of a file. Standard library only.

`FakeEngine` in `testing.py` writes `script.json` in its folder, and reads `requests.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

_writing = threading.Lock()


class ScriptedAnswers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def address_string(self) -> str:
        return "a unix socket has no address"

    def do_GET(self) -> None:
        self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with _writing, (self.folder / "requests.jsonl").open("a") as file:
            file.write(json.dumps({"path": self.path, "body": request}) + "\n")
        script = json.loads((self.folder / "script.json").read_text())
        if script["status"] != 200:
            self.answer(script["status"], {"error": {"message": script["text"], "type": "server_error"}})
        elif "embeddings" in self.path:
            self.answer(200, embeddings(request))
        elif request.get("stream"):
            self.stream(request, script["text"])
        else:
            self.answer(200, whole(request, script["text"]))

    def answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, request: dict[str, Any], text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events(request, text):
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")


def words(text: str) -> list[str]:
    """A token each."""
    return [word if place == 0 else f" {word}" for place, word in enumerate(text.split(" "))]


def usage(request: dict[str, Any], text: str) -> dict[str, int]:
    asked = json.dumps(request.get("messages") or request.get("prompt")).split()
    return {
        "prompt_tokens": len(asked),
        "completion_tokens": len(words(text)),
        "total_tokens": len(asked) + len(words(text)),
    }


def head(request: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "1", "created": 0, "model": request["model"], "object": kind}


def whole(request: dict[str, Any], text: str) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if "messages" in request:
        kind, choice["message"] = "chat.completion", {"role": "assistant", "content": text}
    else:
        kind, choice["text"] = "text_completion", text
    return {**head(request, kind), "choices": [choice], "usage": usage(request, text)}


def events(request: dict[str, Any], text: str) -> list[str]:
    is_chat = "messages" in request
    kind = "chat.completion.chunk" if is_chat else "text_completion"

    def chunk(piece: str, finish: str | None) -> str:
        said = {"delta": {"content": piece} if piece else {}} if is_chat else {"text": piece}
        choices = [{"index": 0, **said, "finish_reason": finish}]
        return json.dumps({**head(request, kind), "choices": choices})

    last = {**head(request, kind), "choices": [], "usage": usage(request, text)}
    return [*(chunk(word, None) for word in words(text)), chunk("", "stop"), json.dumps(last), "[DONE]"]


def embeddings(request: dict[str, Any]) -> dict[str, Any]:
    """The same text has the same numbers."""
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    data = [
        {"object": "embedding", "index": place, "embedding": [len(text) % 7 / 7, 0.5, 0.25, 1.0]}
        for place, text in enumerate(map(str, texts))
    ]
    return {
        "object": "list",
        "model": request["model"],
        "data": data,
        "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    ScriptedAnswers.folder = options.folder
    socketserver.ThreadingUnixStreamServer(options.socket, ScriptedAnswers).serve_forever()
