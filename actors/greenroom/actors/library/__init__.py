"""The actor that owns the models in the store, the pulls that bring them, and the pushes of them.

- `core`: what it is asked, and what follows
- `state`: what is stored, and which clients wait
- `pulls`: begin, join and cancel a pull, and what its end leads to
- `store_changes`: tags, removal, configuration, pushes
- `failures`: pulls that failed lately, so that the source is not asked again at once
- `messages`: commands and replies
- `events`: what is stored
- `effects`: what the puller is to do
"""
