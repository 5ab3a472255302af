"""The actor of one backend, which owns its engines."""
