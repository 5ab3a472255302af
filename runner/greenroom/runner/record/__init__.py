"""The record of requests: who sent what, when, and how it ended. Bodies only if the user asks for them.

- `row`: `Row`, one recorded request, and `Note`, from which it is made
- `counts`: tokens and speed, from the end of an engine's response
- `recorder`: the thread that writes what the front door noted
- `table`: the SQLite file
- `bodies`: request and response bodies, where the user records them
"""
