"""A server that never gets to an end: it says nothing, or a byte now and then."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

MANIFEST_KIND = "application/vnd.oci.image.manifest.v1+json"

HANGS = {
    "says nothing": b"",
    "trickles its head": b"HTTP/1.1 200 OK\r\nX: ",
    "trickles its body": b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 100000\r\n\r\n"
    % MANIFEST_KIND.encode(),
    "trickles the size of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "asks for a token and trickles it": b"",
}
"""What it says first."""


class Trickle:
    """On a port of its own; one way to hang at a time."""

    def __init__(self, hang: str, interval: float = 0.05) -> None:
        self._hang = hang
        self._interval = interval
        self._over = threading.Event()
        self.asked = threading.Event()
        """A client waits for an answer."""
        self.left = threading.Semaphore(0)
        """Released for each client that has gone."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = connection.recv(65536)
            if self._hang == "asks for a token and trickles it" and b"/token" not in request:
                realm = f'Bearer realm="http://{self.host}/token",service="x"'
                head = f"HTTP/1.1 401 No\r\nWWW-Authenticate: {realm}\r\nContent-Length: 0\r\n"
                connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
                return
            self.asked.set()
            if self._hang == "asks for a token and trickles it":
                connection.sendall(HANGS["trickles its body"])
            else:
                connection.sendall(HANGS[self._hang])
            while not self._over.wait(self._interval):
                if self._hang == "says nothing":
                    connection.settimeout(0.001)
                    with suppress(TimeoutError):
                        if not connection.recv(65536):
                            break
                else:
                    connection.sendall(b"0")
        self.left.release()
