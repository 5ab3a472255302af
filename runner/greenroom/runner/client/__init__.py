"""Greenroom for other Python programs: one typed client, over HTTP or inside the program itself.

- `client`, `async_client`: the clients, for threads and for asyncio
- `client_requests`: the methods that both clients share
- `calls`: the requests, and how their answers are read
- `results`: what the calls return
- `streams`: answers that arrive in pieces
- `events`: follows the journal
- `engine_slot`: a slot in an engine
- `errors`: everything the client raises
- `access`: how a client reaches a daemon
- `local`: a Greenroom inside the program
- `daemons`: the daemon of a data directory: finds it, proves that it is ours, starts it
- `http_client`, `async_http`: requests to one Greenroom, on a thread and on an event loop
- `wire`: HTTP/1.1 as bytes
"""
