"""Greenroom for other Python programs: one typed client, over HTTP or inside the program itself.

- `errors`: everything the client raises
- `http_client`: requests to one Greenroom, as HTTP/1.1 over a socket
- `daemons`: the daemon of a data directory: finds it, proves that it is ours, starts it
"""
