"""Anthropic's Messages API.

- `messages`: one request and its answer, over chat completions
- `fields`, `input`: what a request may hold; its messages
"""
