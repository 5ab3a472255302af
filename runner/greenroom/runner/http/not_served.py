"""Routes of OpenAI's and Docker's clients that nothing here serves: what would, in the form of their errors.

With 404, since SDKs send a request three times that is answered with 501.
"""

from __future__ import annotations

from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import AnyResponse, Handler, Request

_SOUND = "No backend of Greenroom's transcribes or makes speech."
_IMAGES = "No backend of Greenroom's makes images."
_HEARD = "whisper.cpp's server or LocalAI serve this route; some models take sound in a chat"

NOT_SERVED = {
    "/v1/audio/transcriptions": (_SOUND, _HEARD),
    "/v1/audio/translations": (_SOUND, _HEARD),
    "/v1/audio/speech": (_SOUND, "Kokoro-FastAPI or LocalAI serve this route"),
    "/v1/images/generations": (_IMAGES, "stable-diffusion.cpp's server or LocalAI serve this route"),
    "/v1/images/edits": (_IMAGES, "stable-diffusion.cpp's server or LocalAI serve this route"),
    "/v1/images/variations": (_IMAGES, "LocalAI serves this route"),
    "/v1/moderations": (
        "Greenroom has no moderation.",
        "a model made for it, such as llama-guard, judges texts over /v1/chat/completions",
    ),
}


def not_served(path: str) -> Handler:
    sentence, instead = NOT_SERVED[path]

    async def serve(request: Request) -> AnyResponse:  # noqa: ARG001 - a handler
        raise HttpRefusal(404, "not_offered", sentence, advice=f"{instead[:1].upper()}{instead[1:]}.")

    return serve


async def requests(request: Request) -> AnyResponse:  # noqa: ARG001 - a handler
    """Docker Model Runner's record of requests."""
    raise HttpRefusal(
        404,
        "not_recorded",
        "Greenroom does not record what clients send and what they are answered.",
        advice="The log tells of each request without its content: greenroom logs, or GET /logs.",
    )
