"""An engine that can be told to go wrong while it runs: by the word in a file, `--wish FILE`.

* `well`, or no file: answers; but a request to `/long` keeps it computing, beside others.
* `hang`: accepts and says nothing. `hollow`: the same, but its health path answers.
* `garble`: answers what is no HTTP. `mumble`: the same, but its health path answers.
* `close`: listens no more.
* `spin`: uses a processor and says nothing.
* `half`: half a stream, then silence.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import threading
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--wish", required=True)
    given = parser.parse_known_args()[0]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(given.socket)
    listener.listen(64)
    threading.Thread(target=end_with_keeper, daemon=True).start()
    threading.Thread(target=close_when_told, args=(listener, given.wish), daemon=True).start()
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            time.sleep(3600)
            continue
        threading.Thread(target=serve, args=(connection, given.wish), daemon=True).start()


def wish(file: str) -> str:
    try:
        with open(file) as opened:
            return opened.read().strip() or "well"
    except OSError:
        return "well"


def compute() -> None:
    """As engines do, without the interpreter's lock: with it, other connections could wait for seconds. A
    fifth of a processor is work enough, and leaves the rest to other tests."""
    began = time.monotonic()
    hashlib.sha256(bytes(10**6))
    time.sleep(4 * (time.monotonic() - began))


def close_when_told(listener: socket.socket, file: str) -> None:
    while wish(file) != "close":
        time.sleep(0.02)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def serve(connection: socket.socket, file: str) -> None:
    with connection:
        asked = b""
        while b"\r\n\r\n" not in asked:
            data = connection.recv(65536)
            if not data:
                return
            asked += data
        is_health = asked.startswith(b"GET /health")
        how = wish(file)
        if how == "hang" or (how == "hollow" and not is_health):
            time.sleep(3600)
        while asked.startswith(b"POST /long ") and wish(file) == "well":
            compute()
        if how == "spin" and not is_health:
            while wish(file) == "spin":
                compute()
        if how == "garble" or (how == "mumble" and not is_health):
            connection.sendall(b"\x00\x01\x02 this is not HTTP at all\r\n\r\n")
            return
        if how == "half" and not is_health:
            event = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                + b"%x\r\n%b\r\n" % (len(event), event)
            )
            time.sleep(3600)
        body = json.dumps({"choices": [{"message": {"content": "well"}, "text": "well"}]}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))


def end_with_keeper() -> None:
    fd = int(os.environ.get("GREENROOM_KEEPER_FD", "-1"))
    if fd >= 0:
        os.read(fd, 1)
        os._exit(1)


if __name__ == "__main__":
    main()
