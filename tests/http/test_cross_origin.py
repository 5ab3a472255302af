"""No web page from elsewhere, and no name that was made to point here, gets in."""

from __future__ import annotations

from typing import Any

OURS = ["localhost", "localhost:12400", "127.0.0.1:1", "127.1.2.3", "[::1]:80", "a.localhost", "LOCALHOST."]
NOT_OURS = ["evil.example", "evil.example:12400", "localhost.evil.example", "192.168.1.5", "", "[", "@a@x"]


async def test_loopback_names_are_ours(open_server: Any) -> None:
    server = await open_server()
    for host in OURS:
        async with server.get("/livez", headers={"Host": host}) as response:
            assert response.status == 200, host


async def test_other_names_are_refused_on_every_route(open_server: Any) -> None:
    server = await open_server()
    for host in NOT_OURS:
        for path in ("/livez", "/v1/models", "/engines/ps", "/models"):
            async with server.get(path, headers={"Host": host}) as response:
                assert response.status == 403, (host, path)
                assert "Host not allowed" in await response.text()


async def test_a_host_can_be_allowed(open_server: Any) -> None:
    server = await open_server(door={"allowed_hosts": ["runner.example"]})
    async with server.get("/livez", headers={"Host": "runner.example:80"}) as response:
        assert response.status == 200
    async with server.get("/livez", headers={"Host": "other.example"}) as response:
        assert response.status == 403


async def test_pages_from_this_machine_may_call(open_server: Any) -> None:
    server = await open_server()
    for origin in ("http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080"):
        async with server.get("/v1/models", headers={"Origin": origin}) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == origin
            assert response.headers["Vary"] == "Origin"
        asked = {"Origin": origin, "Access-Control-Request-Headers": "x-a"}
        async with server.session.options(f"{server.base}/v1/chat/completions", headers=asked) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Methods"] == "GET, POST, DELETE"
            assert response.headers["Access-Control-Allow-Headers"] == "x-a"


async def test_pages_from_elsewhere_may_not_whatever_the_method(open_server: Any) -> None:
    server = await open_server()
    url = f"{server.base}/models/tiny"
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "file://"):
        for method in ("GET", "POST", "OPTIONS", "DELETE"):
            async with server.session.request(method, url, headers={"Origin": origin}) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers
    assert server.greenroom.models()


async def test_a_streamed_answer_has_the_headers_too(open_server: Any) -> None:
    server = await open_server()
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    origin = {"Origin": "http://localhost:1"}
    async with server.post("/v1/chat/completions", body, headers=origin) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:1"


async def test_an_origin_can_be_allowed(open_server: Any) -> None:
    server = await open_server(door={"allowed_origins": ["https://app.example"]})
    async with server.get("/v1/models", headers={"Origin": "https://app.example"}) as response:
        assert response.status == 200
