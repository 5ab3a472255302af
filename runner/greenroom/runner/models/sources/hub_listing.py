"""Lists or searches repositories of a Hugging Face hub: a program with JSON input and output.

`huggingface_hub` knows the hub's API, tokens, settings (`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`) and
cache; its 35 MiB of modules are loaded in this process only, not in the daemon. It ends with its parent,
whose end of standard input it watches.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

_MEMORY = 4 * 2**30
"""Bytes of address space, far more than it uses."""
_FILES = 50_000


def describe(repository: str, token: str) -> dict[str, Any]:
    """The newest commit of a repository, its files, and their paths in the user's cache."""
    from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache

    found = token or get_token()
    info = HfApi(token=found or False, library_name="greenroom").model_info(
        repository, files_metadata=True, timeout=30.0
    )
    files = []
    for sibling in (info.siblings or ())[:_FILES]:
        cached = try_to_load_from_cache(repository, sibling.rfilename, revision=info.sha)
        files.append(
            {
                "name": sibling.rfilename,
                "size": sibling.size or 0,
                "sha256": sibling.lfs.sha256 if sibling.lfs else "",
                "oid": sibling.blob_id or "",
                "cached": cached if isinstance(cached, str) else "",
            }
        )
    return {
        "endpoint": constants.ENDPOINT,
        "repository": info.id,
        "commit": info.sha,
        "token": found or "",
        "files": files,
    }


def search(query: str, limit: int, token: str) -> dict[str, Any]:
    """Repositories that match a query and hold weights without code, the most downloaded first."""
    from huggingface_hub import HfApi, get_token

    found = []
    api = HfApi(token=token or get_token() or False, library_name="greenroom")
    # Some are filtered out, so ask for more.
    for info in api.list_models(search=query, sort="downloads", limit=limit * 3):
        tags = info.tags or []
        formats = [name for name in ("gguf", "mlx", "safetensors") if name in tags]
        if formats:
            found.append(
                {
                    "name": info.id,
                    "downloads": info.downloads or 0,
                    "likes": info.likes or 0,
                    "formats": formats,
                }
            )
    return {"models": found[:limit]}


def failure(error: Exception) -> dict[str, str]:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.GatedRepoError):
        kind = "gated"
    elif isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        kind = "not_found"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        kind = "offline"
    elif status in (401, 403):
        kind = "unauthorized"
    elif status == 429:
        kind = "rate_limited"
    elif status and status < 500:
        kind = "refused"
    elif status:
        return {"error": "in_trouble", "status": str(status), "detail": str(error)[:2_000]}
    elif isinstance(error, ValueError):  # huggingface_hub's validation errors, before it sends a request
        kind = "bad_name"
    else:
        kind = "unreachable"
    return {"error": kind, "detail": f"{type(error).__name__}: {error}"[:2_000]}


def main() -> None:
    _bound_memory()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        if "search" in request:
            answer = search(request["search"], request["limit"], request["token"])
        else:
            answer = describe(request["repository"], request["token"])
    except Exception as error:  # noqa: BLE001 - all of them are answers
        answer = failure(error)
    print(json.dumps(answer), flush=True)
    os._exit(0)  # the thread that watches standard input would delay a normal exit


def _bound_memory() -> None:
    """An endless response must end this process, not exhaust the machine."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (ValueError, OSError):
        return  # not supported on every system


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
