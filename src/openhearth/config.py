"""Settings that come from the environment, read in one place.

Everything else is an argument. Nothing here is read at import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openhearth.errors import UsageError

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True)
class Config:
    """Environment settings of one process.

    home: the store's folder. hf_cache: the Hugging Face hub cache that is read in place (never
    written). hf_token: None when there is none. isa: the kernels to use, None for the best. Example:
    ``Config.from_env({}).hf_endpoint == "https://huggingface.co"``.
    """

    home: Path
    is_offline: bool
    hf_endpoint: str
    hf_token: str | None
    hf_cache: Path
    isa: str | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Config:
        """Read HEARTH_HOME, HEARTH_OFFLINE, HEARTH_ISA, HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_CACHE.

        Raises: UsageError when a switch is neither true nor false, or the endpoint is no URL.
        """
        env = os.environ if env is None else env
        user = Path(env.get("HOME") or Path.home())
        home = Path(env["HEARTH_HOME"]) if env.get("HEARTH_HOME") else (
            Path(env.get("XDG_DATA_HOME") or user / ".local" / "share") / "openhearth")
        hf_home = Path(env["HF_HOME"]) if env.get("HF_HOME") else (
            Path(env.get("XDG_CACHE_HOME") or user / ".cache") / "huggingface")
        hf_cache = Path(env.get("HF_HUB_CACHE") or hf_home / "hub")
        endpoint = (env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        if not endpoint.startswith(("http://", "https://")):
            raise UsageError(f"HF_ENDPOINT is `{endpoint}`", why="expected an http or https address",
                             hint="HF_ENDPOINT=https://huggingface.co")
        token = env.get("HF_TOKEN") or _token_file(Path(env.get("HF_TOKEN_PATH") or hf_home / "token"))
        return cls(home=home.expanduser().absolute(),
                   is_offline=_switch(env, "HEARTH_OFFLINE") or _switch(env, "HF_HUB_OFFLINE"),
                   hf_endpoint=endpoint, hf_token=token or None, hf_cache=hf_cache.expanduser().absolute(),
                   isa=env.get("HEARTH_ISA") or None)


def _switch(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f"{name} is `{env[name]}`", why="expected 1 or 0", hint=f"{name}=1")


def _token_file(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
