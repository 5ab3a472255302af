"""OpenAI's Responses API.

- `routes`: making a response, and what can be done with those that are kept
- `response`: one request and its answer, over chat completions
- `fields`, `input`: what a request may hold; its input as messages
- `output`: the answer's items and events
- `jobs`, `job`, `response_events`: responses that are made in the background, one of them, and its events
- `store`: the responses that are kept
"""
