"""Models that other programs on this machine keep. Nothing here writes.

- `places`: where those programs keep them, and what is there
- `scan`: a bounded walk through folders, and what was found
- `ollama`: Ollama's manifests and blobs
- `hub_cache`: Hugging Face's cache
- `folders`: folders of files, such as LM Studio's and llama.cpp's
- `digests`: file names that are the hash of the content
"""
