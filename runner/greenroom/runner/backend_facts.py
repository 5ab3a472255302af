"""What the actors need to know of a backend's declaration, on this machine and with this configuration."""

from __future__ import annotations

from greenroom.actors.values import BackendFacts, VariantFacts
from greenroom.runner.backends.base import Backend, Environment, Image, Platform
from greenroom.runner.backends.source_build import SourceBuild
from greenroom.runner.backends.variants import Variant, usual
from greenroom.runner.installations.lock_file import shipped_version, source_of
from greenroom.runner.setting_values import ExternalBackend


def facts_of(backend: Backend, here: Platform, named: ExternalBackend | None = None) -> BackendFacts:
    """What the actors need to know of a declaration on this machine."""
    return BackendFacts(
        name=backend.name,
        deferred=backend.deferred,
        formats=backend.formats,
        modes=backend.modes,
        preference=backend.preference,
        install_preference=backend.install_preference,
        verdict=backend.verdict(here),
        overhead=backend.overhead_bytes,
        slots=backend.slots,
        shares_cache=backend.shares_cache,
        prompt_cache=backend.keeps_prompts,
        prompt_cache_alone=backend.keeps_prompts_alone,
        one_batch=backend.one_batch,
        device=backend.uses_devices or (named is not None and named.gpu),
        runtimes=_runtimes(backend, here),
        divides=backend.divides,
        device_overhead=backend.device_overhead,
        layer_flags=backend.layer_flags,
        version=_pinned(source_of(backend, here, named), here),
        versions={name: build.version for name, build in backend.builds.items()},
        variants=tuple(_variant_facts(backend, one, here) for one in backend.variants if one.runs_on(here)),
        usual=usual(backend.variants, here),
        variant=named.variant if named is not None else "",
        best_first=backend.best_first,
    )


def _variant_facts(backend: Backend, one: Variant, here: Platform) -> VariantFacts:
    source = one.source or backend.source
    shipped = shipped_version(source, here) if isinstance(source, Environment) else ""
    return VariantFacts(
        name=one.name,
        title=one.title,
        runtime=one.runtime or "",
        is_locked=not isinstance(source, Environment) or bool(shipped),
        version=shipped,
        download_bytes=one.download_bytes,
        slots=backend.built("" if one.source is None else one.name).slots,
    )


def _runtimes(backend: Backend, here: Platform) -> tuple[tuple[str, str], ...]:
    """Variant → what its engines compute through, without those for the processor."""
    found: dict[str, str] = {one.name: one.runtime for one in backend.variants if one.runtime is not None}
    found |= {name: build.sees.lower() for name, build in backend.builds.items() if build.sees}
    if (usually := found.get(usual(backend.variants, here))) is not None:
        found[""] = usually
    return tuple(sorted(found.items()))


def _pinned(source: Environment | Image | SourceBuild, here: Platform) -> str:
    return shipped_version(source, here) if isinstance(source, Environment) else source.version
