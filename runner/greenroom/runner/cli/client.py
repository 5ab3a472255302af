"""Talks to one daemon: JSON, and lines of JSON or of events as they come."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.exchange import BrokenOff, Exchange, NobodyThere, NotHttp, NotProven
from greenroom.runner.cli.problem import Problem

_TIMEOUT = 30.0
"""Seconds for answers that need no waiting; what may take long is asked with a longer one, or none."""


class Refused(Problem):
    """The daemon said no. `fields` is its error object, for whoever can do something about it."""

    def __init__(self, status: int, fields: Mapping[str, Any], message: str, advice: str = "") -> None:
        code = str(fields.get("code") or "")
        super().__init__(
            message,
            advice,
            code=exit_codes.NOT_INSTALLED if code == "backend_not_installed" else exit_codes.FAILED,
        )
        self.status = status
        self.code = code
        self.fields = fields


class Gone(Problem):
    """There is no daemon at the address any more, or it broke off."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"The Greenroom daemon at {url} {reason}.",
            "See what it wrote last: greenroom logs",
            code=exit_codes.NOT_RUNNING,
        )


class Answer:
    """An answer that is still being read."""

    def __init__(self, url: str, exchange: Exchange) -> None:
        self.status = exchange.status
        self.headers = exchange.headers
        """By lower-case name."""
        self._url = url
        self._exchange = exchange

    def lines(self) -> Iterator[str]:
        """Each line as it comes, without its end, empty ones too."""
        while True:
            try:
                line = self._exchange.readline()
            except (BrokenOff, OSError) as error:
                raise Gone(self._url, f"broke off in the middle of its answer ({error})") from error
            if not line:
                return
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def objects(self) -> Iterator[dict[str, Any]]:
        """Each line that is a JSON object."""
        for line in self.lines():
            if line.strip():
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value

    def read(self, limit: int = 2**28) -> bytes:
        """The rest, but not more than so many bytes; nothing at the end."""
        try:
            return self._exchange.read(limit)
        except (BrokenOff, OSError) as error:
            raise Gone(self._url, f"broke off in the middle of its answer ({error})") from error


class Client:
    """One daemon's address. Each request has a connection of its own, so threads may share a client."""

    def __init__(self, url: str, secret: bytes = b"") -> None:
        """With the secret of a data directory, only the daemon that knows it is ever sent anything."""
        self.url = url
        self._secret = secret

    def get(self, path: str, *, timeout: float | None = _TIMEOUT) -> Any:
        """The JSON at a path. Raises Refused or Gone."""
        with self.open("GET", path, timeout=timeout) as answer:
            return self._json(path, answer)

    def post(self, path: str, body: Any = None, *, timeout: float | None = _TIMEOUT) -> Any:
        """Send JSON; the JSON that comes back, None when nothing does. Raises Refused or Gone."""
        with self.open("POST", path, body, timeout=timeout) as answer:
            return self._json(path, answer)

    def delete(self, path: str, *, timeout: float | None = _TIMEOUT) -> Any:
        """Remove something; the JSON that comes back, None when nothing does. Raises Refused or Gone."""
        with self.open("DELETE", path, timeout=timeout) as answer:
            return self._json(path, answer)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: Iterable[bytes] = (),
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[Answer]:
        """Ask, and read the answer as it comes; leaving ends the connection, and with it the request.

        Args:
            method: the HTTP method.
            path: with a leading slash, quoted where needed.
            body: sent as JSON, unless None.
            content: sent as it is, with a `Content-Length` and `Content-Type` in `headers`.
            accept: the kind of answer that is wanted.
            headers: further ones.
            timeout: seconds of silence that are borne; None bears any.

        Raises:
            Refused: the status is none of 2xx.
            Gone: nobody answers, or the answer broke off.
        """
        sent = {"Accept": accept, "User-Agent": "greenroom-cli", **(headers or {})}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            exchange = Exchange(
                self.url,
                method,
                path,
                headers=sent,
                body=payload,
                content=content,
                timeout=timeout,
                secret=self._secret,
            )
        except NotProven as error:
            raise Gone(self.url, "is gone, and something else answers there; nothing was sent") from error
        except TimeoutError as error:
            raise Gone(self.url, f"has not answered {method} {path} within {timeout:g} seconds") from error
        except (NobodyThere, NotHttp, BrokenOff, OSError) as error:
            raise Gone(self.url, f"does not answer ({error})") from error
        with contextlib.closing(exchange):
            answer = Answer(self.url, exchange)
            if not 200 <= exchange.status < 300:
                raise _refused(exchange, answer.read())
            yield answer

    def _json(self, path: str, answer: Answer) -> Any:
        content = answer.read()
        if not content.strip():
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise Gone(self.url, f"answered {path} with something that is not JSON") from error


def path_of(*parts: str) -> str:
    """A path out of segments; slashes inside model names stay, as the routes want them."""
    return "/" + "/".join(quote(part, safe="/:@") for part in parts)


def _refused(exchange: Exchange, content: bytes) -> Refused:
    status = exchange.status
    text = content.decode("utf-8", "replace").strip()
    try:
        fields = json.loads(text)["error"]
        message = str(fields["message"])
        return Refused(status, fields, message, str(fields.get("advice") or ""))
    except (ValueError, TypeError, KeyError):
        # The verbs under /engines and /models answer in plain text, as the contract has it.
        return Refused(status, {}, text or f"The daemon answered {status} {exchange.reason}.")
