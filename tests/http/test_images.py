"""Images in requests of every family: refused before anything is loaded, with the field, or passed on."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.library.messages import Pull
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.http.engine_requests import check_now
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.fields import CHAT
from greenroom.runner.http.pictures import size_of
from greenroom.runner.testing import tiny_gguf
from tiny_vision import base64_png, png, projector

Ask = Callable[[str], tuple[str, dict[str, Any]]]


def chat(image: str) -> tuple[str, dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": image}}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}


def responses(image: str) -> tuple[str, dict[str, Any]]:
    part = {"type": "input_image", "image_url": image}
    return "/v1/responses", {"input": [{"role": "user", "content": [part]}], "store": False}


def anthropic(image: str) -> tuple[str, dict[str, Any]]:
    source = {"type": "url", "url": image}
    if image.startswith("data:"):
        source = {"type": "base64", "media_type": "image/png", "data": image.partition(",")[2]}
    messages = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    return "/v1/messages", {"messages": messages, "max_tokens": 5}


def ollama(image: str) -> tuple[str, dict[str, Any]]:
    message = {"role": "user", "content": "what?", "images": [image.removeprefix("data:image/png;base64,")]}
    return "/api/chat", {"messages": [message], "stream": False}


def generate(image: str) -> tuple[str, dict[str, Any]]:
    body = {"prompt": "what?", "images": [image.removeprefix("data:image/png;base64,")], "stream": False}
    return "/api/generate", body


FAMILIES: dict[str, tuple[Ask, str]] = {
    "chat": (chat, "messages[0].content[0].image_url.url"),
    "responses": (responses, "input[0].content[0].image_url"),
    "messages": (anthropic, "messages[0].content[0].source"),
    "ollama's chat": (ollama, "messages[0].images[0]"),
    "ollama's generate": (generate, "images[0]"),
}


async def refused(server: Any, asked: tuple[str, dict[str, Any]], model: str = "tiny") -> tuple[int, str]:
    """Status and sentence."""
    path, body = asked
    async with server.post(path, {"model": model, **body}) as response:
        error = (await response.json())["error"]
        return response.status, error if isinstance(error, str) else error["message"]


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_model_of_text_refuses_images_before_it_is_loaded(open_server: Any, family: str) -> None:
    server = await open_server("--load-forever")
    status, said = await refused(server, FAMILIES[family][0](data_url(png())))
    sentence = 'The model "tiny" cannot read images: it has no projector.'
    assert (status, said.startswith(sentence)) == (400, True), said
    assert server.greenroom.engines() == ()


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_address_of_an_image_and_what_is_no_image_are_refused_with_the_field(
    open_server: Any, family: str
) -> None:
    server = await open_server("--load-forever")
    ask, field = FAMILIES[family]
    for address in ("http://127.0.0.1/a.png", "HTTPS://example.org/a.png"):
        status, said = await refused(server, ask(address))
        assert (status, said.startswith(f"{field} is a URL, and Greenroom fetches nothing")) == (400, True), (
            said
        )
    for wrong in ("", "AAAA", "no base64!", base64.b64encode(b"<svg/>").decode(), base64_png()[:16]):
        status, said = await refused(server, ask(f"data:image/png;base64,{wrong}"))
        assert (status, said.startswith(field)) == (400, True), said
    assert server.greenroom.engines() == ()


@pytest.fixture
def seeing_folder(short_path: Path) -> Path:
    """A model that reads images."""
    folder = short_path / "seeing"
    folder.mkdir()
    tiny_gguf(folder / "seeing.gguf")
    (folder / "mmproj-f16.gguf").write_bytes(projector())
    return folder


@pytest.fixture
async def seeing(open_server: Any, seeing_folder: Path) -> tuple[Any, str]:
    """A server with a model that reads images, and its name."""
    server = await open_server("--load-forever")
    pulled = await server.greenroom.system.ask(Pull(reference=f"file:{seeing_folder}"))
    assert pulled.model.reads == ("image",)
    return server, pulled.model.id


@pytest.mark.parametrize("family", FAMILIES)
async def test_images_that_become_too_large_are_refused_before_anything_is_loaded(
    seeing: tuple[Any, str], family: str
) -> None:
    server, model = seeing
    bomb = png(1, 1).replace(struct.pack(">II", 1, 1), struct.pack(">II", 20_000, 20_000))
    status, said = await refused(server, FAMILIES[family][0](data_url(bomb)), model)
    assert (status, "more than 100 million pixels" in said) == (400, True), said
    assert server.greenroom.engines() == ()


async def test_sound_for_a_model_that_reads_images_alone_is_refused(seeing: tuple[Any, str]) -> None:
    server, model = seeing
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    status, said = await refused(server, ("/v1/chat/completions", body), model)
    assert (status, "cannot read sound" in said) == (400, True), said


async def test_a_backend_that_reads_text_alone_says_which_would_serve(
    open_server: Any, seeing_folder: Path
) -> None:
    server = await open_server("--load-forever", backend={"dialect": Mlx.dialect})
    pulled = await server.greenroom.system.ask(Pull(reference=f"file:{seeing_folder}"))
    path, body = chat(data_url(png()))
    status, error = await server.error(server.post(path, {"model": pulled.model.id, **body}))
    assert (status, error["code"], error["param"]) == (400, "unsupported_input", "messages")
    assert "It reads only text. Use a GGUF version" in error["message"]
    assert server.greenroom.engines() == ()


def test_line_breaks_and_short_forms_are_put_right_for_the_engine() -> None:
    text = base64_png()
    broken = f"{text[:20]}\r\n{text[20:]}\n"
    parts = [
        {"type": "image_url", "image_url": f"DATA:image/PNG;base64,{broken}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}", "detail": "low"}},
    ]
    body = msgspec.json.encode({"messages": [{"role": "user", "content": parts}]})
    (message,) = check_now(body, CHAT).fields["messages"]
    url = f"data:image/png;base64,{text}"
    assert [part["image_url"] for part in message["content"]] == [{"url": url}, {"url": url, "detail": "low"}]


def test_sound_and_videos_are_not_fetched_either() -> None:
    for kind in ("audio_url", "video_url"):
        part = {"type": kind, kind: {"url": "http://127.0.0.1/x"}}
        body = msgspec.json.encode({"messages": [{"role": "user", "content": [part]}]})
        with pytest.raises(HttpRefusal) as caught:
            check_now(body, CHAT)
        assert caught.value.param == f"messages[0].content[0].{kind}.url"
        assert caught.value.refusal.code == "unsupported_value"


JPEG = b"\xff\xd8\xff\xe1\x00\x08Exif\x00\x00\xff\xff\xc2\x00\x11\x08" + struct.pack(">HH", 30, 40)
WEBP = b"RIFF\0\0\0\0WEBP"


@pytest.mark.parametrize(
    "image",
    [
        png(40, 30),
        JPEG,
        b"GIF89a" + struct.pack("<HH", 40, 30),
        b"BM" + b"\0" * 16 + struct.pack("<ii", 40, -30),
        WEBP + b"VP8 " + b"\0" * 10 + struct.pack("<HH", 40, 30),
        WEBP + b"VP8L" + b"\0" * 5 + struct.pack("<I", 39 | 29 << 14),
        WEBP + b"VP8X" + b"\0" * 8 + struct.pack("<HBHB", 39, 0, 29, 0),
    ],
)
def test_the_size_of_an_image_is_in_its_header(image: bytes) -> None:
    assert size_of(image) == (40, 30)
    for end in range(len(image) if len(image) < 40 else 24):
        with pytest.raises(ValueError, match=r"it is"):
            size_of(image[:end])
