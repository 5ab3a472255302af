"""Ollama's API.

- `inference`: chat, generate and embeddings, over those of OpenAI's API
- `fields`: what a request may hold
- `models`: the store and what is loaded
- `modelfile`: a model's defaults as Ollama writes them
- `create`, `blobs`: models that are created, and the files that are sent for them
- `transfers`: pull and push
"""
