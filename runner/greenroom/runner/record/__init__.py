"""The record of requests: who asked for what, when, and how it ended. Never what was said, unless asked for.

- `row`: one request of the record, and `Note`, from which it is made
- `counts`: tokens and speed, from the last bytes of an engine's answer
- `recorder`: takes notes from the front door and writes them, on one thread
- `table`: the SQLite file
- `bodies`: what was said, for requests whose bodies the user has asked for
"""
