"""Images in requests, as far as they are read here: whether they are some, and how large they become.

Engines decode an image into memory, three bytes a pixel, whatever its file weighs: a few kilobytes can stand
for gigabytes. So its size is read from its header before any engine gets it.
"""

from __future__ import annotations

import binascii
import struct

PIXELS = 100_000_000
"""Of all images of one request together."""
_HEAD = 4 * 175_000
"""Characters of base64 in which a header must end. A camera's thumbnail and colours may come first."""


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, JPEG, GIF, BMP or WebP, of which the beginning is enough.

    Raises ValueError for anything else.
    """
    size = None
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            size = struct.unpack_from(">II", data, 16)
        elif data.startswith(b"\xff\xd8\xff"):
            size = _jpeg(data)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            size = struct.unpack_from("<HH", data, 6)
        elif data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", data, 18)
            size = abs(width), abs(height)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            size = _webp(data)
    except struct.error as error:
        raise ValueError("it is cut off in its header") from error
    if size is None or not all(size):
        raise ValueError("it is not an image")
    return size


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while data[at : at + 1] == b"\xff":
        (marker,) = struct.unpack_from("B", data, at + 1)
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:  # padding, and marks without content
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + length
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8X":
        low, high, low2, high2 = struct.unpack_from("<HBHB", data, 24)
        return low + (high << 16) + 1, low2 + (high2 << 16) + 1
    return None


def checked(text: str) -> str:
    """The base64 of an image without line breaks. Raises ValueError: it is not base64, or no image."""
    if not text.isascii() or "\n" in text or "\r" in text:
        text = "".join(text.split())
    binascii.a2b_base64(text, strict_mode=True)
    pixels_of(text)
    return text


def pixels_of(text: str) -> int:
    """The pixels of an image in base64. Raises ValueError: it is none."""
    width, height = size_of(binascii.a2b_base64(text[:_HEAD]))
    return width * height
