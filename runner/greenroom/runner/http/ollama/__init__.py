"""Ollama's API.

- `inference`: the routes of chat, generate and embeddings
- `generating`, `embedding`: their requests as OpenAI's, and the answers in Ollama's form
- `input`, `answer`: messages; what all answers have in common
- `fields`: what a request may hold
- `models`: the store and what is loaded
- `modelfile`: a model's defaults as Ollama writes them
- `create`, `blobs`: models that are created, and the files that are sent for them
- `transfers`: pull and push
"""
