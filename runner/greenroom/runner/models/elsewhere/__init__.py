"""Models that other programs keep on this machine. Nothing here writes.

- `places`: the folders of those programs
- `scan`: a bounded walk through folders, and `FoundModel`
- `ollama`: Ollama's manifests and blobs
- `hub_cache`: Hugging Face's cache
- `folders`: folders of files, such as LM Studio's and llama.cpp's
- `digests`: files named for the hash of their content
"""
