"""llama.cpp's own server on a port, with a key: as someone else would run it.

python llama_on_tcp.py MODEL.gguf KEY      prints the port once it listens
"""

from __future__ import annotations

import socket
import sys
import threading


def main() -> None:
    import xllamacpp  # pyright: ignore[reportMissingImports] - of an installation of its own

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 2048, 2, 1
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], port, [sys.argv[2]]
    params.model_alias = {"smol-135m"}
    server = xllamacpp.Server(params)
    print(port, flush=True)
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main()
