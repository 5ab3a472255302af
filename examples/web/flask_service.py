"""A Flask service. With `--debug` it is reloaded when the file changes; the daemon keeps its engines.

flask --app flask_service run --debug
curl "localhost:5000/ask?question=Why+is+the+sky+blue?"
"""

from __future__ import annotations

import os

from flask import Flask, Response, request

import greenroom

MODEL = os.environ.get("MODEL", "smollm2")

app = Flask(__name__)
client = greenroom.connect()  # starts nothing yet, so it works before a fork too: gunicorn --preload


@app.get("/ask")
def ask() -> dict[str, str | int]:
    answer = client.chat(MODEL, request.args["question"], max_tokens=60)
    return {"answer": answer.text, "tokens": answer.answer_tokens, "worker": os.getpid()}


@app.get("/tell")
def tell() -> Response:
    """The same, piece by piece. When the caller leaves, the model stops writing."""
    pieces = client.chat(MODEL, request.args["question"], stream=True)
    return Response(pieces.begin(), mimetype="text/plain")  # a refusal is raised here, not in the middle


@app.errorhandler(greenroom.GreenroomError)
def refused(error: greenroom.GreenroomError) -> tuple[dict[str, str], int]:
    return {"error": error.sentence, "code": error.code}, 404 if error.kind == "not_found" else 503


@app.cli.command("prepare")
def prepare() -> None:
    """Fetch the model: flask --app flask_service prepare."""
    client.pull(MODEL, progress=print)
