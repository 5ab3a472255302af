"""The folders in which other programs keep models, laid out as they lay them out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def ollama(root: Path, name: str, gguf: bytes | Path, **texts: Any) -> Path:
    """A model in a store of Ollama's; `name` is the manifest's path. Further layers by their kind, values
    that are no text as JSON. Returns the manifest.
    """
    kinds = {"model": gguf, **texts}
    layers = []
    for kind, content in kinds.items():
        data = content.read_bytes() if isinstance(content, Path) else _bytes(content)
        media = f"application/vnd.ollama.image.{kind}"
        layers.append({"mediaType": media, "digest": f"sha256:{_blob(root, data)}", "size": len(data)})
    config = f"sha256:{_blob(root, b'{}')}"
    fields = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": config,
            "size": 2,
        },
        "layers": layers,
    }
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps(fields))
    return manifest


def hub_cache(hub: Path, repository: str, files: Mapping[str, bytes], revision: str = "0" * 40) -> Path:
    """A repository in Hugging Face's cache: blobs, and a snapshot of links to them. Returns the snapshot."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "blobs").mkdir(exist_ok=True)
    for name, data in files.items():
        # What git keeps itself has git's hash, of 40 digits; large files have SHA-256.
        large = name.endswith((".gguf", ".safetensors"))
        blob = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
        (folder / "blobs" / blob).write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (2 + name.count("/")), "blobs", blob))
    return snapshot


def _bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


def _blob(root: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    blobs = root / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / f"sha256-{digest}").write_bytes(data)
    return digest
