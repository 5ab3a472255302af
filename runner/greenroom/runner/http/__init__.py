"""The front door: one module an API family.

- `routes`: the table of all routes
- `app`: what happens to every request, and the application
- `port`: what handlers see of a request
- `aiohttp_adapter`: the server behind it
- `server`: the daemon's main loop: bind, start, wait, stop
- `accepting`: clients are accepted while there are descriptors
- `context`: what all routes share: the runner, its models by name, clients, connections to engines
- `clients`: who clients are, whether they are connected, and whether they read
- `bodies`: reads bodies and parameters
- `abilities`, `suspects`: requests that no engine could serve, or that may have crashed one
- `admission`: what a request passes before it is inside an engine; while it is queued, the scheduler has it
- `inference`, `event_stream`: one inference request, from its arrival to its last byte; a streamed answer
- `fields`: what the requests of OpenAI's API may hold
- `upstream`: connections to engines
- `translation`: how an engine's answer is changed
- `engine_errors`: the errors of engines in our words
- `errors`: refusals as HTTP statuses
- `responses`: OpenAI's Responses API
- `anthropic`: Anthropic's Messages API
- `ollama`: Ollama's API
- `go_duration`: times as Docker and Ollama write them
- `models`, `transfers`, `archives`: the store; pull, push and export; models as files
- `backends`, `engines`, `configuring`: installing; what runs, and unloading; how models are loaded
- `health`: alive, ready, status, why, stop
- `openapi`: the description of all this, for programs and for people
- `idempotency`: `Idempotency-Key`
- `progress_stream`: the progress that a waiting client is sent
"""
