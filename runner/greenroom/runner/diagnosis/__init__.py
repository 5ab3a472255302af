"""Diagnosis from the journal: log, replay, why, bundle.

- `sentences`: one sentence for each event (`log`); `changes`: what has changed, in words
- `stored_events`: events as Python objects (`read_events`); `actors`: what decodes them
- `event_log`: the journal as lines; `filters`, `times`: which events, and from when to when
- `host_actors`: actors of other programs: what their events say, and their states
- `problems`: which events say that something went wrong; `summary`: what has happened, counted
- `explain`: answers `why`; `names`: what the question is about; `explanation`: the shape of an answer
- `why_backend`, `why_daemon`, `why_engine`, `why_model`, `why_pull`, `why_request`: one module a subject
- `why_remote`: remote backends and their models
- `why_clients`: requests; `why_event`: events and jobs; `why_memory`: memory and queue
- `why_devices`: graphics devices; `why_overview`: all current problems
- `last_time`: when something last happened to a model, if the question says what
- `settings_changed`: settings of a daemon that are not those of the one before
- `live`, `live_facts`: what only a running daemon knows, and where it stands in an answer
- `recorded_request`: what became of a request, from the record of requests
- `why_refused`: why requests for a model are refused
- `stop_reasons`: why an engine stopped; `lost_devices`: whether its graphics device went away
- `history`, `engine_history`, `model_history`: what the answers are read from
- `subjects`, `event_index`: what each event concerns; `checkpoint`: all of that, kept for the next question
- `freshener`: keeps that up to date beside a daemon
- `aliases`, `configured`: the names of models, and their configurations, over time
- `old_journals`: what earlier versions stored in sentences only
- `replay`, `overview`: the state at any moment of the past (`replay`)
- `bundle`: the file for a bug report
- `redaction`, `known_secrets`: take secrets and prompts out of it
"""
