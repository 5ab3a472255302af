"""Routes of OpenAI's and Docker's clients that nothing here serves: what would, in the form of their errors.

With 404, since SDKs send a request three times that is answered with 501.
"""

from __future__ import annotations

from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import AnyResponse, Handler, Request

_SOUND = "Greenroom has no backend for speech."
_IMAGES = "Greenroom has no backend that generates images."
_HEARD = "whisper.cpp's server and LocalAI serve this route; some models accept audio in a chat"

NOT_SERVED = {
    "/v1/audio/transcriptions": (_SOUND, _HEARD),
    "/v1/audio/translations": (_SOUND, _HEARD),
    "/v1/audio/speech": (_SOUND, "Kokoro-FastAPI and LocalAI serve this route"),
    "/v1/images/generations": (_IMAGES, "stable-diffusion.cpp's server and LocalAI serve this route"),
    "/v1/images/edits": (_IMAGES, "stable-diffusion.cpp's server and LocalAI serve this route"),
    "/v1/images/variations": (_IMAGES, "LocalAI serves this route"),
    "/v1/moderations": (
        "Greenroom has no moderation backend.",
        "to classify texts, send them to a moderation model, such as llama-guard, at /v1/chat/completions",
    ),
}


def not_served(path: str) -> Handler:
    sentence, instead = NOT_SERVED[path]

    async def serve(request: Request) -> AnyResponse:  # noqa: ARG001 - a handler
        raise HttpRefusal(404, "not_offered", sentence, advice=f"{instead[:1].upper()}{instead[1:]}.")

    return serve
