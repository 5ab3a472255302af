"""Files that clients send under their digests, before a model is created of them."""

from __future__ import annotations

from greenroom.runner.http.archives import Turns, chunks_of
from greenroom.runner.http.bodies import invalid
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import BodyBroken, Request, Response
from greenroom.runner.models.creation import is_here
from greenroom.runner.models.references import BadReference, blob_name
from greenroom.runner.models.uploads import Upload
from greenroom.runner.threads import in_thread
from greenroom.runner.units import format_size

_LARGEST = 2**41
_PIECE = 2**20
"""Bytes that are written at once."""


class Blobs:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._turns = Turns()

    async def has(self, request: Request) -> Response:
        digest = digest_in(request.params["digest"], "digest")
        if not await self._is_here(digest):
            raise HttpRefusal(404, "blob_not_found", f"The blob {digest} is not in the store.")
        return Response()

    async def take(self, request: Request) -> Response:
        """Keep a file that has this digest. One that is there already is not read."""
        digest = digest_in(request.params["digest"], "digest")
        size = request.content_length or 0
        if size > _LARGEST:
            message = f"The file is larger than {format_size(_LARGEST)}."
            raise HttpRefusal(413, "request_too_large", message, advice="Divide the model into shards.")
        if await self._is_here(digest):
            return Response()
        async with self._turns.turn():
            uploads = self._context.greenroom.store.uploads
            upload = await in_thread(lambda: uploads.begin(digest, size))
            try:
                found = await _received(request, upload)
            finally:
                await in_thread(upload.close)
        if found != digest:
            raise HttpRefusal(
                400,
                "digest_mismatch",
                f"digest mismatch: {digest} was announced, and the file has {found}; it was not kept.",
                advice="Send it again.",
                param="digest",
            )
        return Response(status=201)

    async def _is_here(self, digest: str) -> bool:
        return await in_thread(lambda: is_here(self._context.greenroom.store, digest))


def digest_in(text: str, where: str) -> str:
    """A digest that a client has sent; `sha256-…` is one too. Raises HttpRefusal: 400."""
    digest = text.replace("sha256-", "sha256:", 1) if text.startswith("sha256-") else text
    try:
        blob_name(digest)
    except BadReference as error:
        raise invalid(str(error), param=where) from None
    return digest


async def _received(request: Request, upload: Upload) -> str:
    pieces: list[bytes] = []
    size = 0

    async def write() -> None:
        data = b"".join(pieces)
        pieces.clear()
        await in_thread(lambda: upload.write(data))

    try:
        async for chunk in chunks_of(request):
            pieces.append(chunk)
            size += len(chunk)
            if size >= _PIECE:
                size = 0
                await write()
    except BodyBroken:
        raise HttpRefusal(
            400, "bad_body", "The file ended early and was not kept.", advice="Send it again from its start."
        ) from None
    await write()
    return await in_thread(upload.finish)
