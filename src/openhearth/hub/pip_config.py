"""Where packages come from on this machine, read from pip's own configuration without pip.

Order (pip's documentation, "Configuration"): global files, user files, the environment's file,
PIP_CONFIG_FILE, then PIP_* variables; inside files `[global]`, then `[install]`, then `[download]`. When no
index is configured, the default is the one the installed pip, or the copy Python bundles, is built with.

Does not: run or import pip, or read any setting that changes what is installed.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openhearth.config import Config
from openhearth.errors import UsageError
from openhearth.hub.http import Client

_SECTIONS = ("global", "install", "download")
_ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}
_DEFAULT_INDEX = re.compile(r"^PyPI\s*=\s*PackageIndex\(\s*[\"'](https://[^\"']+)[\"']", re.MULTILINE)
_INDEX_MODULE = "pip/_internal/models/index.py"


@dataclass(frozen=True)
class PipConfig:
    """The settings that say where to find a package.

    index_urls: first the main one; empty with `no-index`. find_links: folders, files and addresses.
    Example: ``read_pip_config({"PIP_INDEX_URL": "https://host/simple"}).index_urls == ("https://host/simple",)``.
    """

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...]
    trusted_hosts: tuple[str, ...]
    ca_bundle: str | None
    proxy: str | None
    timeout_s: float

    def client(self, config: Config, *, num_connections: int = 4) -> Client:
        """Return an HTTP client with these certificates, proxy, trusted hosts and timeout."""
        return Client(config, ca_bundle=self.ca_bundle, proxy=self.proxy, trusted_hosts=self.trusted_hosts,
                      timeout_s=self.timeout_s, num_connections=num_connections)


def read_pip_config(env: Mapping[str, str] | None = None) -> PipConfig:
    """Read pip's configuration files and PIP_* variables.

    Raises: UsageError when a file cannot be parsed, the timeout is no number, or nothing names an index.
    """
    env = os.environ if env is None else env
    settings: dict[str, str] = {}
    for section in _read_sections(env):
        settings.update(section)
    try:
        timeout_s = float(settings.get("timeout", "15"))
    except ValueError:
        raise UsageError(f"pip's timeout is `{settings['timeout']}`", why="expected seconds",
                         hint="PIP_TIMEOUT=15") from None
    find_links = tuple(settings.get("find-links", "").split())
    index_urls: tuple[str, ...] = ()
    if settings.get("no-index", "").lower() not in {"1", "true", "yes", "on", "y", "t"}:
        main = settings.get("index-url") or _built_in_index()
        extra = settings.get("extra-index-url", "").split()
        index_urls = tuple(dict.fromkeys([main, *extra] if main else extra))
    if not index_urls and not find_links:
        raise UsageError("pip's configuration names no package index",
                         hint="PIP_INDEX_URL=https://... , or pip config set global.index-url https://...")
    return PipConfig(index_urls, find_links, tuple(settings.get("trusted-host", "").split()),
                     settings.get("cert") or None, settings.get("proxy") or None, timeout_s)


def _read_sections(env: Mapping[str, str]) -> list[dict[str, str]]:
    """Return option dictionaries, weakest first; empty values count as absent, as in pip."""
    layers: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for path in _config_files(env):
        parser = configparser.RawConfigParser()
        try:
            text = path.read_text(encoding="utf-8")
            parser.read_string(text, source=str(path))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise UsageError(f"pip's configuration `{path}` cannot be read", why=str(error).splitlines()[0],
                             hint="PIP_CONFIG_FILE=/dev/null leaves all of these files out") from None
        for name in _SECTIONS:
            if parser.has_section(name):
                layers[name].update(_named(dict(parser.items(name))))
    variables = {key[4:]: value for key, value in env.items() if key.startswith("PIP_")}
    return [*layers.values(), _named(variables)]


def _named(options: Mapping[str, str]) -> dict[str, str]:
    """Return options under pip's long names: `Index_URL` is `index-url`."""
    named = {key.lower().replace("_", "-").removeprefix("--"): value
             for key, value in options.items() if value}
    return {_ALIASES.get(key, key): value for key, value in named.items()}


def _config_files(env: Mapping[str, str]) -> list[Path]:
    """Return the files pip reads, weakest first."""
    own = env.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    home = Path(env.get("HOME") or Path.home())
    user_config = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    if sys.platform == "darwin":
        files = [Path("/Library/Application Support/pip/pip.conf")]
        native = home / "Library" / "Application Support" / "pip"
        user = [home / ".pip" / "pip.conf",
                (native if native.is_dir() else home / ".config" / "pip") / "pip.conf"]
    else:
        folders = (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
        files = [*(Path(folder) / "pip" / "pip.conf" for folder in folders if folder), Path("/etc/pip.conf")]
        user = [home / ".pip" / "pip.conf", user_config / "pip" / "pip.conf"]
    if not (own and Path(own).exists()):
        files += user
    files.append(Path(sys.prefix) / "pip.conf")
    return [*files, Path(own)] if own else files


def _built_in_index() -> str | None:
    """Return the index that pip uses when none is configured, read as text from the pip of this Python."""
    text = ""
    spec = importlib.util.find_spec("pip")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place).parent / _INDEX_MODULE
        text = text or (path.read_text(encoding="utf-8") if path.is_file() else "")
    if not text:
        spec = importlib.util.find_spec("ensurepip")
        folder = Path(spec.origin).parent if spec and spec.origin else Path()
        for wheel in sorted(folder.glob("_bundled/pip-*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                text = archive.read(_INDEX_MODULE).decode()
    match = _DEFAULT_INDEX.search(text)
    return match[1].rstrip("/") + "/simple" if match else None
