"""Runs mlx-lm's own server on a unix socket: `launch_mlx.py --socket PATH --model FOLDER [its options]`."""

from __future__ import annotations

import os
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from keeper_watch import die_at_once_when_told, end_with_keeper  # type: ignore[import-not-found]

sys.path.pop(0)


def main() -> None:
    """Take `--socket` out of the arguments, leave the rest to mlx-lm."""
    end_with_keeper()
    die_at_once_when_told()
    place = sys.argv.index("--socket")
    path = sys.argv[place + 1]
    del sys.argv[place : place + 2]

    from mlx_lm import server  # type: ignore[import-not-found,unused-ignore]

    class UnixHTTPServer(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

        def __init__(self, _address: object, handler: Any) -> None:
            self.address_family = socket.AF_UNIX
            super().__init__(path, handler)  # type: ignore[arg-type]

        def server_bind(self) -> None:
            self.socket.bind(path)
            self.server_name, self.server_port = "localhost", 0

        def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
            # The handlers' log lines want a host and a port; a unix socket's peer has neither.
            return self.socket.accept()[0], ("local", 0)

    # mlx-lm has no public way to another kind of socket. These two names exist since 0.32.0, the oldest
    # version we run.
    serve = server._run_http_server  # noqa: SLF001

    def serve_on_socket(host: str, port: int, generator: Any) -> None:
        generation = generator._generation_thread  # noqa: SLF001
        # When a load or a generation dies, the server would go on answering 503 for ever.
        threading.Thread(target=_exit_after, args=(generation,), daemon=True).start()
        serve(host, port, generator, server_class=UnixHTTPServer)

    server._run_http_server = serve_on_socket  # noqa: SLF001
    server.main()


def _exit_after(generation: threading.Thread) -> None:
    generation.join()
    sys.stderr.write("mlx-lm's generation thread has ended\n")
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
