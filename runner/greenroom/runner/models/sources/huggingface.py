"""Models from Hugging Face, or from any hub that `HF_ENDPOINT` names.

What there is, is asked of `huggingface_hub` (in a process of its own, see `hub_listing`); the bytes are
fetched by `transfer`, pinned to the commit that was listed and checked against the hub's own hashes. What
lies in the user's Hugging Face cache already is linked from there; nothing is put into it, so that no
model is on the disk twice.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any
from urllib.parse import quote

import msgspec

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import NO_ANSWER, not_a_model
from greenroom.runner.models.references import DEFAULT_TAG, BadReference, Reference, is_id, relative_name
from greenroom.runner.models.selection import choose_from_repository, quantisations_of
from greenroom.runner.models.sources.base import Offer, Report, Source, SourceContext
from greenroom.runner.models.sources.transfer import FileToFetch, Transfer
from greenroom.runner.threads import stop_if

_SECONDS = 90.0
_TICK = 0.1
_ANSWER_LIMIT = 64 * 2**20
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,96}(?:/[A-Za-z0-9_.-]{1,96})?")


class _File(msgspec.Struct, frozen=True):
    name: str
    size: int
    sha256: str
    oid: str
    cached: str


class _Listing(msgspec.Struct, frozen=True):
    endpoint: str
    repository: str
    commit: str
    files: list[_File]
    token: str = ""


class HuggingFaceSource(Source):
    """Fetches one quantisation of one repository."""

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._listing: _Listing | None = None

    def describe(self, reference: Reference, cancel: Event) -> Offer:
        listing = self._list(reference, cancel)
        wanted = "" if reference.tag in ("", DEFAULT_TAG, "main") else reference.tag
        names = choose_from_repository([file.name for file in listing.files], wanted, reference.repository)
        self._listing = listing
        chosen = [file for file in listing.files if file.name in names]
        ggufs = [name for name in names if name.lower().endswith(".gguf")]
        weights = ggufs or [name for name in names if name.lower().endswith(".safetensors")]
        sizes = {file.name: file.size for file in listing.files}
        return Offer(
            reference=reference,
            source=f"{listing.endpoint}/{listing.repository}@{listing.commit[:12]}",
            fingerprint=f"hub:{listing.endpoint}/{listing.repository}@{listing.commit}:{','.join(names)}",
            size=sum(file.size for file in chosen),
            writes=sum(file.size for file in chosen if not file.cached),
            files=tuple(names),
            format="gguf" if ggufs else "safetensors",
            weights=sum(sizes[name] for name in weights),
            blobs=tuple((f"sha256:{f.sha256}", f.size) for f in chosen if f.sha256 and not f.cached),
            others=quantisations_of(sizes),
        )

    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:
        from greenroom.runner.installations.sources import PackageSources
        from greenroom.runner.installations.web import Web

        listing = self._listing
        assert listing is not None, "describe comes first"
        wanted = [file for file in listing.files if file.name in offer.files]
        pieces = [_piece(listing, file) for file in wanted if not _from_cache(file, arrival, cancel)]
        web = Web(self._context.packages or PackageSources.discover(), advice=NO_ANSWER, cancel=cancel)
        refused = lambda piece, status: _refused(offer.reference, piece, status)  # noqa: E731
        Transfer(web, arrival, report, cancel, refused).bring(pieces)

    def _list(self, reference: Reference, cancel: Event) -> _Listing:
        request = {"repository": reference.repository, "token": self._context.token}
        answer = ask_hub(request, cancel)
        if "error" in answer:
            raise _failure(reference, answer)
        return _checked(answer)


def _checked(answer: dict[str, Any]) -> _Listing:
    try:
        listing = msgspec.convert(answer, _Listing)
    except msgspec.ValidationError as error:
        raise _nonsense(str(error)) from error
    if not _COMMIT.fullmatch(listing.commit) or not _REPOSITORY.fullmatch(listing.repository):
        raise _nonsense(f"commit {listing.commit[:80]!r} of {listing.repository[:80]!r}")
    files = []
    for file in listing.files:
        known = file.sha256 == "" or is_id(f"sha256:{file.sha256}")
        if not known or not 0 <= file.size < 2**50:
            raise _nonsense(f"{file.name[:80]!r} has {file.size} bytes and the hash {file.sha256[:80]!r}")
        # A name that no disk accepts belongs to no model.
        with suppress(BadReference):
            relative_name(file.name)
            files.append(file)
    return msgspec.structs.replace(listing, files=files)


def _nonsense(detail: str) -> JobFailed:
    return JobFailed.transient(
        "bad_answer", "Hugging Face's answer is invalid.", advice="Try again later.", detail=detail
    )


def _from_cache(file: _File, arrival: Arrival, cancel: Event) -> bool:
    if not file.cached or not file.sha256:
        return False
    try:
        arrival.take(
            Path(file.cached), _flat(file.name), how="link", expected=f"sha256:{file.sha256}", cancel=cancel
        )
    except JobFailed:
        return False  # damaged or missing there: fetch it
    return True


def _piece(listing: _Listing, file: _File) -> FileToFetch:
    headers = {"User-Agent": "greenroom"}
    if listing.token:
        headers["Authorization"] = f"Bearer {listing.token}"
    return FileToFetch(
        url=f"{listing.endpoint}/{listing.repository}/resolve/{listing.commit}/{quote(file.name)}",
        name=_flat(file.name),
        size=file.size,
        digest=f"sha256:{file.sha256}" if file.sha256 else "",
        git_oid=file.oid,
        headers=headers,
    )


def _flat(name: str) -> str:
    """Some repositories have a folder per quantisation; a model's files lie side by side."""
    return PurePosixPath(name).name


def ask_hub(request: dict[str, Any], cancel: Event) -> dict[str, Any]:
    """Run the listing program. The request goes to its standard input, so that the token stays private."""
    # By its path, so that nothing of ours but itself is imported, which takes a third of its time.
    argv = [sys.executable, "-P", str(Path(__file__).with_name("hub_listing.py"))]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    # Detached, since `communicate` would close it: while it is open, the program sees that we are alive.
    lifeline, process.stdin = process.stdin, None
    assert lifeline is not None
    with process, lifeline:
        try:
            lifeline.write(json.dumps(request).encode() + b"\n")
            lifeline.flush()
            deadline = time.monotonic() + _SECONDS
            while True:
                with suppress(subprocess.TimeoutExpired):
                    out, err = process.communicate(timeout=_TICK)
                    break
                stop_if(cancel)
                if time.monotonic() > deadline:
                    raise JobFailed.transient(
                        "unreachable", "Hugging Face did not answer in time.", advice="Check the network."
                    )
        finally:
            process.kill()
    try:
        answer = json.loads(out[:_ANSWER_LIMIT])
    except ValueError as error:
        raise JobFailed.permanent(
            "internal",
            "The helper program for Hugging Face failed.",
            advice="greenroom logs has the details.",
            detail=err.decode("utf-8", "replace"),
        ) from error
    assert isinstance(answer, dict)
    return answer


def _failure(reference: Reference, answer: dict[str, str]) -> JobFailed:
    name = f"hf.co/{reference.repository}"
    page = f"https://huggingface.co/{reference.repository}"
    kind, detail = answer["error"], answer.get("detail", "")
    permanent = partial(JobFailed.permanent, detail=detail)
    transient = partial(JobFailed.transient, detail=detail)
    match kind:
        case "gated":
            message = f"{name} is only available to users who have accepted its terms."
            advice = f"Accept them at {page}, and set HF_TOKEN to your token."
            return permanent("unauthorized", message, advice=advice)
        case "unauthorized":
            message = f"Hugging Face refused the token for {name}."
            return permanent("unauthorized", message, advice="Set HF_TOKEN to a token that may read it.")
        case "not_found" | "bad_name":
            message = f"There is no {name}, or it is private."
            return permanent("not_found", message, advice="Check the name; for a private model set HF_TOKEN.")
        case "rate_limited":
            message = "Hugging Face limits our requests for now."
            return transient("rate_limited", message, advice="Set HF_TOKEN for a higher limit.")
        case "in_trouble":
            message = f"Hugging Face has a problem (HTTP status {answer['status']})."
            return transient("server_error", message, advice="Try again later.")
        case "offline":
            message = "HF_HUB_OFFLINE is set, so Hugging Face is not asked."
            return transient("offline", message, advice="Unset it to pull.")
        case "refused":
            return permanent("refused", f"Hugging Face refused to list {name}.")
    return transient("unreachable", "Hugging Face could not be reached.", advice="Check the network.")


def _refused(reference: Reference, piece: FileToFetch, status: int) -> JobFailed:
    if status in (401, 403):
        return _failure(reference, {"error": "gated" if status == 403 else "unauthorized"})
    if status == 429:
        return _failure(reference, {"error": "rate_limited"})
    if status in (404, 410):
        return not_a_model(f"{piece.name} is listed in hf.co/{reference.repository}, but missing.")
    detail = f"HTTP status {status} for {piece.url}"
    return _failure(reference, {"error": "unreachable" if status >= 500 else "refused", "detail": detail})
