"""A Flask application that opens a Greenroom when it is imported: before `gunicorn --preload` forks."""

from __future__ import annotations

from flask import Flask

from greenroom import Greenroom, GreenroomError

app = Flask(__name__)
opened = Greenroom.open()
known = len(opened.models())


@app.get("/models")
def models() -> dict[str, str | int]:
    try:
        return {"before": known, "models": len(opened.models())}
    except GreenroomError as error:
        return {"before": known, "code": error.code, "error": error.sentence}
