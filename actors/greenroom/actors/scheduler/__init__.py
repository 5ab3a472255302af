"""The actor that decides which engine serves a request, what is loaded where, and what is evicted."""
