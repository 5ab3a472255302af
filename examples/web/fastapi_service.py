"""A FastAPI service whose workers share one Greenroom daemon, started by the first to need it.

uvicorn fastapi_service:app --workers 2
curl "localhost:8000/ask?question=Why+is+the+sky+blue?"
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

import greenroom
from greenroom import AsyncClient, GreenroomError

MODEL = os.environ.get("MODEL", "smollm2")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with greenroom.connect() as client:
        await client.pull(MODEL)
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


def the_client(request: Request) -> AsyncClient:
    client: AsyncClient = request.app.state.client
    return client


Client = Annotated[AsyncClient, Depends(the_client)]


@app.get("/ask")
async def ask(question: str, client: Client) -> dict[str, str | int]:
    answer = await client.chat(MODEL, question, max_tokens=60)
    return {"answer": answer.text, "tokens": answer.answer_tokens, "worker": os.getpid()}


@app.get("/tell")
async def tell(question: str, client: Client) -> StreamingResponse:
    """The same, piece by piece. When the caller leaves, the model stops writing."""
    pieces = client.chat(MODEL, question, stream=True)
    return StreamingResponse(await pieces.begin(), media_type="text/plain")  # a refusal is raised here


@app.exception_handler(GreenroomError)
async def refused(_: Request, error: GreenroomError) -> JSONResponse:
    status = 404 if error.kind == "not_found" else 503
    return JSONResponse({"error": error.sentence, "code": error.code}, status)
