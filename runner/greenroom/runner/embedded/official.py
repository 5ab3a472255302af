"""The official clients of OpenAI, Anthropic and Ollama, set up to ask a Greenroom.

Of one inside this program nothing has to listen anywhere: their requests go through the same front door, gate
and record as all others. Each package is imported when its client is made.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from greenroom.runner.daemon import Greenroom
from greenroom.runner.embedded.transports import async_transport, transport

if TYPE_CHECKING:
    from anthropic import Anthropic, AsyncAnthropic
    from ollama import AsyncClient as AsyncOllama
    from ollama import Client as Ollama
    from openai import AsyncOpenAI, OpenAI

_HERE = "http://localhost"
"""Of one without an address nothing is resolved or connected; the front door accepts the name."""
_UNIX = "unix:"
_KEY = {"api_key": "none"}
"""Their clients insist on one."""


def openai(greenroom: Greenroom | str, **options: Any) -> OpenAI:
    """An `openai.OpenAI` that asks this Greenroom; `options` are its own (`timeout`, `max_retries`, …).

    Any thread may use it. Closing a stream cancels its request. Raises ModuleNotFoundError.

    Args:
        greenroom: one that runs in this program, or the address of another: `http://…`, `unix:/path`.
    """
    package = _package("openai")
    made: OpenAI = package.OpenAI(**{**_KEY, **_sync(package, greenroom, "/v1"), **options})
    return made


def async_openai(greenroom: Greenroom | str, **options: Any) -> AsyncOpenAI:
    """The same for asyncio: an `openai.AsyncOpenAI`."""
    package = _package("openai")
    made: AsyncOpenAI = package.AsyncOpenAI(**{**_KEY, **_async(package, greenroom, "/v1"), **options})
    return made


def anthropic(greenroom: Greenroom | str, **options: Any) -> Anthropic:
    """An `anthropic.Anthropic`: see `openai`."""
    package = _package("anthropic")
    made: Anthropic = package.Anthropic(**{**_KEY, **_sync(package, greenroom), **options})
    return made


def async_anthropic(greenroom: Greenroom | str, **options: Any) -> AsyncAnthropic:
    """The same for asyncio: an `anthropic.AsyncAnthropic`."""
    package = _package("anthropic")
    made: AsyncAnthropic = package.AsyncAnthropic(**{**_KEY, **_async(package, greenroom), **options})
    return made


def ollama(greenroom: Greenroom | str, **options: Any) -> Ollama:
    """An `ollama.Client`: see `openai`."""
    package, httpx = _package("ollama"), _package("httpx")
    way = {"host": _host(greenroom), "transport": _transport(greenroom, httpx)}
    made: Ollama = package.Client(**{**way, **options})
    return made


def async_ollama(greenroom: Greenroom | str, **options: Any) -> AsyncOllama:
    """The same for asyncio: an `ollama.AsyncClient`."""
    package, httpx = _package("ollama"), _package("httpx")
    way = {"host": _host(greenroom), "transport": _async_transport(greenroom, httpx)}
    made: AsyncOllama = package.AsyncClient(**{**way, **options})
    return made


def _sync(package: Any, greenroom: Greenroom | str, path: str = "") -> dict[str, Any]:
    made = _transport(greenroom, _httpx_of(package))
    return {"base_url": _host(greenroom) + path, "http_client": package.DefaultHttpxClient(transport=made)}


def _async(package: Any, greenroom: Greenroom | str, path: str = "") -> dict[str, Any]:
    made = _async_transport(greenroom, _httpx_of(package))
    client = package.DefaultAsyncHttpxClient(transport=made)
    return {"base_url": _host(greenroom) + path, "http_client": client}


def _host(greenroom: Greenroom | str) -> str:
    is_url = isinstance(greenroom, str) and not greenroom.startswith(_UNIX)
    return str(greenroom).rstrip("/") if is_url else _HERE


def _transport(greenroom: Greenroom | str, httpx: Any) -> Any:
    if isinstance(greenroom, Greenroom):
        return transport(greenroom, httpx)
    # With a transport of its own a client asks no proxy of the environment for what is on this machine.
    return httpx.HTTPTransport(uds=_path(greenroom))


def _async_transport(greenroom: Greenroom | str, httpx: Any) -> Any:
    if isinstance(greenroom, Greenroom):
        return async_transport(greenroom, httpx)
    return httpx.AsyncHTTPTransport(uds=_path(greenroom))


def _path(url: str) -> str | None:
    return url.removeprefix(_UNIX) if url.startswith(_UNIX) else None


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        message = f"The package {name} is not installed: pip install {name}"
        raise ModuleNotFoundError(message, name=name) from error


def _httpx_of(package: Any) -> ModuleType:
    """The httpx that a package is built on: httpx, or httpx2 in newer versions."""
    base = next(one for one in package.DefaultHttpxClient.__mro__ if one.__name__ == "Client")
    return sys.modules[base.__module__.partition(".")[0]]
