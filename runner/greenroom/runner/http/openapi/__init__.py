"""The description of the API, which is made when it is first asked for.

- `routes`: `/openapi.json` and `/docs`
- `document`: the OpenAPI document, made of the routes and their operations
- `operations`: finds the operation of a route
- `operation`: what the document says of a route
- `inference`, `ollama`, `models`, `conversations`: the entries of these routes, and what answers look like
- `engines`, `backends`, `requests`, `journal`, `daemon`: the same
- `schemas`: types and fields as JSON schemas
"""
