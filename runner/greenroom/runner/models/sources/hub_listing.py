"""Asks a Hugging Face hub what a repository holds, or what there is: a program, JSON in and JSON out.

`huggingface_hub` knows the hub's API, its tokens, its settings (`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`)
and its cache; it also brings some 35 MiB of modules, which leave with this process and never weigh on the
daemon. It ends when its parent does: standard input is held open and watched.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

_MEMORY = 4 * 2**30
"""Bytes of address space, which is far more than what is used of it."""
_FILES = 50_000


def describe(repository: str, token: str) -> dict[str, Any]:
    """The newest commit of a repository, its files, and where the user's cache has them."""
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
    """Repositories that fit a query and hold weights without code, the most downloaded first."""
    from huggingface_hub import HfApi, get_token

    found = []
    api = HfApi(token=token or get_token() or False, library_name="greenroom")
    # Others are among them too, so more are asked for than are wanted.
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
    """The kind of failure, in the words of the source that asked."""
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
    elif isinstance(error, ValueError):  # huggingface_hub's validation errors, before it asks
        kind = "bad_name"
    else:
        kind = "unreachable"
    return {"error": kind, "detail": f"{type(error).__name__}: {error}"[:2_000]}


def main() -> None:
    """Read the request from standard input, and answer on standard output."""
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
    os._exit(0)  # the thread that watches standard input would hold up an orderly end


def _bound_memory() -> None:
    """What a hub sends without end shall end this process, not the machine."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (ValueError, OSError):
        return  # not on every system


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
