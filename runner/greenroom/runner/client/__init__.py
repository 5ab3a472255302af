"""Greenroom for other Python programs: one typed client, over HTTP or inside the program itself.

- `client`, `async_client`: what a program asks, for threads and for asyncio
- `client_requests`: what both clients ask in the same words
- `calls`: what can be asked: the requests, and how their answers are read
- `results`: what the calls return
- `streams`: answers that come bit by bit
- `events`: the journal as it grows
- `engine_slot`: a slot in an engine
- `errors`: everything the client raises
- `access`: how a client gets at a daemon
- `local`: a Greenroom inside the program
- `daemons`: the daemon of a data directory: finds it, proves that it is ours, starts it
- `http_client`, `async_http`: requests to one Greenroom, on a thread and on an event loop
- `wire`: HTTP/1.1 as bytes
"""
