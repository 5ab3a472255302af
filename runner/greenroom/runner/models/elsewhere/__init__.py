"""Models that other programs on this machine keep. Nothing here writes.

- `places.py`: where those programs keep them, and what is there
- `scan.py`: a bounded walk through folders, and what was found
- `ollama.py`: Ollama's manifests and blobs
- `hub_cache.py`: Hugging Face's cache
- `folders.py`: folders of files, such as LM Studio's and llama.cpp's
- `digests.py`: file names that are the hash of the content
"""
