"""Ollama's API.

- `inference`: chat, generate and embeddings, over those of OpenAI's API
- `fields`: what a request may hold
- `models`: the store and what is loaded
- `transfers`: pull, push and create
"""
