"""Runs pure, event-sourced cores as Pykka actors. It knows nothing of what they are for.

- `core`: what a core is: commands, events, effects, decisions
- `executor`: runs one core, message by message
- `steps`: the order of a turn: decide, store, apply, effects, settle, reply
- `answers`: when an ask is answered, and when it is withdrawn
- `actor`: a Pykka actor around an executor
- `system`: addresses, one journal, one clock
- `event_store`: events to text and back; storing and replay
- `supervision`: how often an actor is rebuilt, and commands that are parked
- `checks`: checks the fields of commands
- `clock`: time and timers
- `errors`: refusals and their kinds
"""
