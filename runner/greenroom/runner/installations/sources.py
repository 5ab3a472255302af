"""Reads package sources and transport settings, and nothing else, from the user's pip and uv configuration.

Settings that decide *what* is installed (constraints, resolution, link modes, build settings) are ignored: an
installation is exactly its lock on every machine. Settings in the working directory are never read; only the
environment, pip's global, user and site files, and uv's system and user files are.

Each value keeps its origin, so that a failed download can name the setting to check. References: pip's
`configuration` and `topics/https-certificates` pages, uv's `reference/settings` and `reference/environment`.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from greenroom.runner.errors import JobFailed
from greenroom.runner.user_home import expanded, user_home

DEFAULT_INDEX = "https://pypi.org/simple"

_CREDENTIALS = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]+@")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy")


def redact(text: str) -> str:
    """Replace the user name and password of every URL in the text with `***`."""
    return _CREDENTIALS.sub(r"\g<scheme>***@", text)


@dataclass(frozen=True)
class Setting:
    """A value and where the user set it."""

    value: str
    origin: str
    """Such as `PIP_INDEX_URL` or `/etc/pip.conf`."""

    def __repr__(self) -> str:
        return f"Setting({redact(self.value)!r}, {self.origin!r})"


@dataclass(frozen=True)
class PackageSources:
    """Indexes, folders, certificates and proxies for fetching packages."""

    index: Setting = Setting(DEFAULT_INDEX, "default")
    first: Setting | None = None
    """The only index that has a variant's build, asked before all other sources."""
    extra_indexes: tuple[Setting, ...] = ()
    find_links: tuple[Setting, ...] = ()
    no_index: Setting | None = None
    """Set when only `find_links` may be used."""
    ca_bundle: Setting | None = None
    """A PEM file, or a folder of certificates."""
    client_certificate: Setting | None = None
    proxy: Setting | None = None
    """One proxy for everything, as in pip's `proxy`."""
    proxies: tuple[Setting, ...] = ()
    """The usual proxy variables; the origin is the variable's name."""
    trusted_hosts: tuple[Setting, ...] = ()
    """`host` or `host:port` whose certificates are not checked."""
    netrc: Setting | None = None
    timeout: Setting | None = None
    """Seconds without a byte before a transfer counts as stalled."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """uv's `UV_INDEX_<NAME>_USERNAME` and `_PASSWORD`, passed on unchanged."""
    unreadable: tuple[str, ...] = ()
    """Settings files without read permission, one sentence each; pip ignores them too."""
    senseless: tuple[str, ...] = ()
    """Settings files that cannot be parsed, one sentence each: see `understood`."""

    @classmethod
    def discover(
        cls,
        env: Mapping[str, str] | None = None,
        *,
        home: Path | None = None,
        system: str = sys.platform,
        prefix: Path | None = None,
    ) -> PackageSources:
        """Read the user's settings; the arguments are for tests, and `prefix` is pip's site scope."""
        env = os.environ if env is None else env
        home = home or user_home(env)
        files = _Files()
        pip_files = _read_pip(env, home, system, prefix or Path(sys.prefix), files)
        uv_files = _read_uv(env, home, files)
        layers = [_uv_environment(env), _pip_environment(env), uv_files, pip_files]
        return cls(
            index=_first(layers, "index") or Setting(DEFAULT_INDEX, "default"),
            extra_indexes=_united(layers, "extra"),
            find_links=_united(layers, "links"),
            no_index=next((s for s in (_first(layers, "no-index"),) if s and _truthy(s.value)), None),
            ca_bundle=_ca_bundle(env, layers),
            client_certificate=_variable(env, "SSL_CLIENT_CERT") or _first(layers, "client-cert"),
            proxy=_first(layers, "proxy"),
            proxies=tuple(Setting(env[name], name) for name in (*_PROXIES, "no_proxy") if env.get(name)),
            trusted_hosts=_united(layers, "trusted"),
            netrc=_netrc(env, home),
            timeout=_variable(env, "UV_HTTP_TIMEOUT") or _first(layers, "timeout"),
            secrets={
                name: value
                for name, value in env.items()
                if name.startswith("UV_INDEX_") and name.endswith(("_USERNAME", "_PASSWORD"))
            },
            unreadable=tuple(files.unreadable),
            senseless=tuple(files.senseless),
        )

    def understood(self) -> PackageSources:
        """Return self if all settings files could be parsed. Like pip and uv, we fetch nothing otherwise: the
        file may name the only index that may be used.

        Raises:
            JobFailed: A file cannot be parsed.
        """
        if self.senseless:
            raise JobFailed.permanent(
                "bad_settings",
                self.senseless[0],
                advice="Nothing was fetched, since the file may name the source to use. Correct it.",
            )
        return self

    def with_indexes(self, urls: Iterable[str], origin: str) -> PackageSources:
        """The same sources with a backend's own indexes after the user's."""
        known = {self.index.value, *(setting.value for setting in self.extra_indexes)}
        further = tuple(Setting(url, origin) for url in urls if url not in known)
        return replace(self, extra_indexes=(*self.extra_indexes, *further)) if further else self

    def with_first(self, url: str, origin: str) -> PackageSources:
        """The same sources after this index: what it has is taken from nowhere else."""
        return replace(self, first=Setting(url, origin))

    def with_only(self, urls: Sequence[str], origin: str) -> PackageSources:
        """These indexes and no other source, asked as the settings say."""
        index, *extra = (Setting(url, origin) for url in urls)
        return replace(
            self,
            index=index,
            first=None,
            extra_indexes=tuple(extra),
            find_links=(),
            no_index=None,
            senseless=(),
        )

    @property
    def indexes(self) -> tuple[Setting, ...]:
        """Every index in the order to ask: local ones first, the default one last."""
        if self.no_index is not None:
            return ()
        local = [setting for setting in self.extra_indexes if is_local(setting.value)]
        remote = [setting for setting in self.extra_indexes if not is_local(setting.value)]
        return (*((self.first,) if self.first is not None else ()), *local, *remote, self.index)

    @property
    def places(self) -> tuple[Setting, ...]:
        """Everywhere a locked file may be, in the order to look: a variant's own index, folders, indexes."""
        if self.first is not None and self.no_index is None:
            return (self.first, *self.find_links, *self.indexes[1:])
        return (*self.find_links, *self.indexes)

    def uv_environment(self) -> dict[str, str]:
        """These settings as variables for uv; other users could read arguments."""
        env = dict(self.secrets)
        if self.no_index is None:
            env["UV_DEFAULT_INDEX"] = self.index.value
            first = (self.first,) if self.first is not None else ()
            if extra := [s.value for s in (*first, *self.extra_indexes) if _reachable(s.value)]:
                env["UV_INDEX"] = " ".join(extra)
        # pip's meaning of several indexes, which the user's settings assume: the best version of all of
        # them. Locked hashes decide what is installed, so this admits no look-alikes.
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match" if self.first is None else "first-index"
        if self.first is not None:
            return self._with_transport(env)
        if links := [s.value for s in self.find_links if _reachable(s.value)]:
            env["UV_FIND_LINKS"] = ",".join(links)
        return self._with_transport(env)

    def _with_transport(self, env: dict[str, str]) -> dict[str, str]:
        if self.trusted_hosts:
            env["UV_INSECURE_HOST"] = " ".join(setting.value for setting in self.trusted_hosts)
        if self.ca_bundle is not None:
            name = "SSL_CERT_DIR" if Path(self.ca_bundle.value).is_dir() else "SSL_CERT_FILE"
            env[name] = self.ca_bundle.value
        if self.client_certificate is not None:
            env["SSL_CLIENT_CERT"] = self.client_certificate.value
        env |= {setting.origin: setting.value for setting in self.proxies}
        if self.proxy is not None:
            env |= {"HTTP_PROXY": self.proxy.value, "HTTPS_PROXY": self.proxy.value}
        if self.netrc is not None:
            env["NETRC"] = self.netrc.value
        if self.timeout is not None:
            env["UV_HTTP_TIMEOUT"] = str(max(1, int(self.timeout_seconds)))
        return env

    def uv_arguments(self) -> list[str]:
        """The settings for which uv has no variable."""
        return ["--no-index"] if self.no_index is not None else []

    @property
    def timeout_seconds(self) -> float:
        """Seconds without a byte before a transfer counts as stalled; 60 by default."""
        try:
            said = float(self.timeout.value) if self.timeout else 0.0
        except ValueError:
            said = 0.0
        return min(max(said, 1.0), 600.0) if said else 60.0

    def redact(self, text: str) -> str:
        """Remove every credential in these settings from a text."""
        for name, value in self.secrets.items():
            if name.endswith("_PASSWORD") and value:
                text = text.replace(value, "***")
        for setting in (self.index, *self.extra_indexes, *self.find_links, *self.proxies):
            password = urlsplit(setting.value).password if "@" in setting.value else None
            if password:
                text = text.replace(password, "***").replace(unquote(password), "***")
        return redact(text)

    def describe(self) -> list[tuple[str, str, str]]:
        """Name, redacted value and origin of each setting in force, for display."""
        rows: list[tuple[str, Setting | None]] = [("index", self.index if not self.no_index else None)]
        rows += [("extra index", setting) for setting in self.extra_indexes if not self.no_index]
        rows += [("find-links", setting) for setting in self.find_links]
        rows += [("no-index", self.no_index), ("CA bundle", self.ca_bundle)]
        rows += [("client certificate", self.client_certificate), ("proxy", self.proxy)]
        rows += [("proxy", setting) for setting in self.proxies]
        rows += [("trusted host", setting) for setting in self.trusted_hosts]
        rows += [("netrc", self.netrc), ("timeout", self.timeout)]
        return [(name, redact(s.value), s.origin) for name, s in rows if s is not None]


def is_local(url: str) -> bool:
    """Whether a source is a folder, given as a path or as a `file:` URL."""
    return url.startswith("file:") or "://" not in url


def local_path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path)) if url.startswith("file:") else expanded(url)


def _reachable(url: str) -> bool:
    """Whether a folder exists: pip ignores a missing one, uv would fail."""
    return not is_local(url) or local_path(url).exists()


def without_credentials(url: str) -> str:
    """The URL without user name and password, for display and comparison."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))


_Layer = dict[str, list[Setting]]


def _first(layers: Iterable[_Layer], name: str) -> Setting | None:
    for layer in layers:
        for setting in layer.get(name, ()):
            return setting
    return None


def _united(layers: Iterable[_Layer], name: str) -> tuple[Setting, ...]:
    """pip's and uv's lists together: a machine may be set up for either."""
    found: dict[str, Setting] = {}
    for layer in layers:
        for setting in layer.get(name, ()):
            found.setdefault(setting.value.rstrip("/"), setting)
    return tuple(found.values())


def _truthy(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on"}


def _variable(env: Mapping[str, str], name: str) -> Setting | None:
    value = env.get(name)
    return Setting(value, name) if value else None


def _ca_bundle(env: Mapping[str, str], layers: list[_Layer]) -> Setting | None:
    """The first that exists: a stale variable must not break what another setting gets right."""
    found = [_variable(env, "SSL_CERT_FILE"), _first(layers, "cert")]
    found += [_variable(env, n) for n in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")]
    return next((s for s in found if s is not None and expanded(s.value).exists()), None)


def _netrc(env: Mapping[str, str], home: Path) -> Setting | None:
    if (named := _variable(env, "NETRC")) is not None:
        return named
    file = home / ".netrc"
    return Setting(str(file), str(file)) if file.is_file() else None


def _split(env: Mapping[str, str], name: str, separators: str = r"\s+") -> list[Setting]:
    return [Setting(part, name) for part in re.split(separators, env.get(name, "").strip()) if part]


def _unnamed(setting: Setting) -> Setting:
    """uv writes a named index as `name=url`; only the URL matters here."""
    name, equals, url = setting.value.partition("=")
    return Setting(url, setting.origin) if equals and re.fullmatch(r"[\w.-]+", name) else setting


def _uv_environment(env: Mapping[str, str]) -> _Layer:
    index = _split(env, "UV_DEFAULT_INDEX") or _split(env, "UV_INDEX_URL")
    return {
        "index": [_unnamed(setting) for setting in index],
        "extra": [_unnamed(s) for s in (*_split(env, "UV_INDEX"), *_split(env, "UV_EXTRA_INDEX_URL"))],
        "links": _split(env, "UV_FIND_LINKS", r","),
        "trusted": _split(env, "UV_INSECURE_HOST"),
    }


_PIP_LISTS = {"extra-index-url": "extra", "find-links": "links", "trusted-host": "trusted"}
_PIP_SCALARS = {
    "index-url": "index",
    "no-index": "no-index",
    "cert": "cert",
    "client-cert": "client-cert",
    "proxy": "proxy",
    "timeout": "timeout",
    "default-timeout": "timeout",
}


def _pip_environment(env: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    for option, name in (_PIP_LISTS | _PIP_SCALARS).items():
        variable = "PIP_" + option.upper().replace("-", "_")
        found = (
            _split(env, variable) if option in _PIP_LISTS else [s for s in [_variable(env, variable)] if s]
        )
        if found:
            layer[name] = found
    return layer


def _pip_files(env: Mapping[str, str], home: Path, system: str, prefix: Path) -> Iterator[Path]:
    """pip's files, least important first; `PIP_CONFIG_FILE=/dev/null` means none."""
    named = env.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return
    config = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    if system == "darwin":
        yield Path("/Library/Application Support/pip/pip.conf")
        yield home / ".pip" / "pip.conf"
        support = home / "Library" / "Application Support" / "pip"
        yield (support if support.is_dir() else config / "pip") / "pip.conf"
    else:
        for folder in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"):
            yield Path(folder) / "pip" / "pip.conf"
        yield Path("/etc/pip.conf")
        yield home / ".pip" / "pip.conf"
        yield config / "pip" / "pip.conf"
    yield prefix / "pip.conf"
    if named:
        yield Path(named)


def _read_pip(env: Mapping[str, str], home: Path, system: str, prefix: Path, files: _Files) -> _Layer:
    layer: _Layer = {}
    for file in _pip_files(env, home, system, prefix):
        text = files.read(file)
        if text is None:
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error as error:
            files.senseless.append(f"{file} is not a valid pip configuration: {_first_line(error, file)}")
            continue
        # A later file, and the command's own section, override earlier values, as in pip.
        for section in ("global", "download", "install"):
            if not parser.has_section(section):
                continue
            for option, value in parser.items(section):
                option = option.replace("_", "-").lower()  # noqa: PLW2901
                if option in _PIP_LISTS:
                    layer[_PIP_LISTS[option]] = [Setting(part, str(file)) for part in value.split()]
                elif option in _PIP_SCALARS and value.strip():
                    layer[_PIP_SCALARS[option]] = [Setting(value.strip(), str(file))]
    return layer


def _read_uv(env: Mapping[str, str], home: Path, files: _Files) -> _Layer:
    """uv's user file before its system file; `UV_CONFIG_FILE` replaces both."""
    if env.get("UV_CONFIG_FILE"):
        places = [Path(env["UV_CONFIG_FILE"])]
    elif _truthy(env.get("UV_NO_CONFIG", "")):
        places = []
    else:
        config = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
        places = [config / "uv" / "uv.toml"]
        places += [Path(d) / "uv" / "uv.toml" for d in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
        places.append(Path("/etc/uv/uv.toml"))
    layer: _Layer = {}
    for file in places:
        text = files.read(file)
        if text is None:
            continue
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            files.senseless.append(f"{file} is not a valid uv configuration: {error}.")
            continue
        for part in (table, table.get("pip", {})):
            for name, settings in _uv_table(part, str(file)).items():
                layer.setdefault(name, []).extend(settings)
    return layer


def _uv_table(table: Mapping[str, Any], origin: str) -> _Layer:
    def listed(name: str) -> list[Setting]:
        value = table.get(name, [])
        return [Setting(str(v), origin) for v in (value if isinstance(value, list) else [value])]

    layer: _Layer = {
        "index": listed("index-url"),
        "extra": listed("extra-index-url"),
        "links": listed("find-links"),
        "trusted": listed("allow-insecure-host"),
        "no-index": [Setting("true", origin)] if table.get("no-index") is True else [],
    }
    for index in table.get("index", []):
        # Explicit indexes serve only packages that a project pins to them, and there is no project here.
        if isinstance(index, dict) and index.get("url") and not index.get("explicit"):
            layer["index" if index.get("default") else "extra"].append(Setting(str(index["url"]), origin))
    return layer


@dataclass
class _Files:
    """Reads settings files and collects what was wrong with them."""

    unreadable: list[str] = field(default_factory=list)
    senseless: list[str] = field(default_factory=list)

    def read(self, file: Path) -> str | None:
        try:
            return file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except UnicodeDecodeError as error:
            self.senseless.append(f"{file} is not text: {error.reason} at byte {error.start}.")
        except OSError as error:
            self.unreadable.append(f"{file} cannot be read: {error.strerror}.")
        return None


def _first_line(error: configparser.Error, file: Path) -> str:
    """The error in one line, with the file's name for `configparser`'s `<string>`."""
    text = str(error).replace("While reading from ", "").replace("'<string>'", file.name)
    return redact(" ".join(text.replace("\\n", "").split()).rstrip(".")) + "."
