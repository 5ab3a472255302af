"""The actor of one backend, which owns its engines.

- `core`: what it is asked, and the life of an engine: starting, ready, stopping, gone
- `messages`: commands, replies, and the host's reports
- `events`: what is stored
- `effects`: what the engine host is to do
"""
