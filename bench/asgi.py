"""What the front door costs as an ASGI application, beside the daemon's own server, in one run. JSON.

    python bench/asgi.py [--requests 400]

One Greenroom with the fake engine, in one process and one loop (uvloop): its front door is served by aiohttp
and by uvicorn (httptools). One lean client asks both, and the bare engine, by turns for one streamed token.
The ratio is that of the quickest tenth of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from front_door import ENGINE, Way, call, first_tokens, tiny_gguf

RATIO = 1.15
"""The first token through the ASGI application takes at most so many times what it takes through aiohttp."""


def serve(home: Path, binary: str) -> None:
    """Serve both in this process, and print where. `binary` is an engine to use in place of the fake one."""
    import uvicorn
    import uvloop
    from aiohttp import web

    from greenroom.actors import Pull, TagModel
    from greenroom.runner import ExternalBackend, Greenroom, Settings, asgi, fake_backend, front_door
    from greenroom.runner.http.aiohttp_adapter import ServerRunner

    name = "llama.cpp" if binary else "fake"
    settings = Settings(home=home, backends={name: ExternalBackend(binary=Path(binary or sys.executable))})
    more: Any = {} if binary else {"backends": {"fake": fake_backend(ENGINE)}}

    async def main() -> None:
        async with Greenroom(settings, **more) as greenroom:
            tiny_gguf(home / "tiny.gguf")
            pulled = await greenroom.system.ask(Pull(reference=f"file:{home / 'tiny.gguf'}"))
            await greenroom.system.ask(TagModel(model_id=pulled.model.id, tag="docker.io/ai/tiny:latest"))
            runner = ServerRunner(front_door(greenroom), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            config = uvicorn.Config(asgi(greenroom), port=0, log_level="warning", access_log=False)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            ports = runner.addresses[0][1], port
            print(json.dumps([f"http://127.0.0.1:{one}" for one in ports]), flush=True)
            await serving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(main())


def measure(folder: Path, requests: int, binary: str) -> dict[str, Any]:
    home = folder / "home"
    home.mkdir()
    argv = [sys.executable, __file__, "--serve", str(home), "--binary", binary]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        aiohttp, asgi = json.loads(process.stdout.readline())
        asked = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
        call(aiohttp, "/v1/chat/completions", asked)
        (engine,) = call(aiohttp, "/engines/ps")
        bare = str(home / "engines" / engine["engine_id"] / "engine.sock")
        ways = [Way("bare", socket=bare), Way("aiohttp", url=aiohttp), Way("asgi", url=asgi)]
        times = asyncio.run(first_tokens(ways, requests))
    finally:
        process.terminate()
        process.wait(60)
    p50 = {name: statistics.median(found) for name, found in times.items()}
    # Whatever else the machine does makes a request slower, never quicker.
    quick = {name: statistics.quantiles(found, n=10)[0] for name, found in times.items()}
    ratio = quick["asgi"] / quick["aiohttp"]
    return {
        "first_token_ms": {name: round(value, 3) for name, value in p50.items()},
        "quickest_tenth_ms": {name: round(value, 3) for name, value in quick.items()},
        "added_ms": {name: round(p50[name] - p50["bare"], 3) for name in ("aiohttp", "asgi")},
        "ratio": round(ratio, 3),
        "budget": RATIO,
        "passed": ratio <= RATIO,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--binary", default="", help="an engine in place of the fake one, as a llama-server")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.binary)
        return 0
    with tempfile.TemporaryDirectory(prefix="gr-bench-") as folder:
        found = measure(Path(folder), options.requests, options.binary)
    print(json.dumps(found, indent=2))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
