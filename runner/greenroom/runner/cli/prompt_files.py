"""Files in a prompt: `@letter.txt` becomes its text, `@photo.png` and `--image` become images."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from greenroom.runner import exit_codes
from greenroom.runner.cli.problem import Problem
from greenroom.runner.units import format_size
from greenroom.runner.user_home import expanded

Content = str | list[dict[str, Any]]
"""A message's content in OpenAI's form: text, or text and images."""

_REFERENCE = re.compile(r'(?<!\S)@(?:"(?P<quoted>[^"\n]+)"|(?P<plain>[^\s"]+))')
_AFTER = ".,;:!?)]}'"
"""Punctuation that may follow a file's name in a sentence."""
_MOST = 5_000_000
"""Bytes of one file: more than the context of any model, and with base64 within what the daemon takes."""
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


def content_of(prompt: str) -> Content:
    """The content of a message, with the files that it names. Raises Problem for one that cannot be sent."""
    text, parts = with_files(prompt)
    return [{"type": "text", "text": text}, *parts] if parts else text


def with_files(prompt: str, images: Iterable[str] = ()) -> tuple[str, list[dict[str, Any]]]:
    """The prompt with the texts of the files that it names with `@`, and all images as parts of a message.

    What follows an `@` and is no file stays as it is. Raises Problem for a file that cannot be sent.
    """
    parts: list[dict[str, Any]] = [_image(_read(expanded(one)), one) for one in images]

    def put(found: re.Match[str]) -> str:
        name, rest = found["quoted"] or found["plain"], ""
        path = expanded(name)
        while found["plain"] and not _is_file(path) and name[-1:] in tuple(_AFTER):
            name, rest = name[:-1], name[-1] + rest
            path = expanded(name)
        if not name or not _is_file(path):
            return found[0]
        data = _read(path)
        if _kind(data):
            parts.append(_image(data, name))
            return f"{path.name}{rest}"
        return f"{path.name}{rest}\n\n--- {path.name} ---\n{_text(data, name).rstrip()}\n---\n"

    return _REFERENCE.sub(put, prompt), parts


def schema_of(wanted: str) -> dict[str, Any]:
    """`response_format` for `json` or a file with a JSON schema. Raises Problem."""
    if wanted == "json":
        return {"type": "json_object"}
    path = expanded(wanted)
    try:
        schema = json.loads(_text(_read(path), wanted))
    except ValueError as error:
        raise _unusable(f"{wanted} is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise _unusable(f"{wanted} holds no JSON schema: a schema is an object.")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False  # such as a name that is too long for one


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MOST:
            raise _unusable(f"{path} has {format_size(size)}; at most {format_size(_MOST)} can be sent.")
        return path.read_bytes()
    except OSError as error:
        raise _unusable(f"{path} cannot be read: {error.strerror}.") from error


def _kind(data: bytes) -> str:
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for begin, kind in _KINDS if data.startswith(begin)), "")


def _image(data: bytes, name: str) -> dict[str, Any]:
    kind = _kind(data)
    if not kind:
        raise _unusable(f"{name} is not an image: PNG, JPEG, GIF, BMP and WebP can be sent.")
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _text(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise _unusable(f"{name} is neither text in UTF-8 nor an image.")
    return text


def _unusable(sentence: str) -> Problem:
    return Problem(sentence, code=exit_codes.USAGE)
