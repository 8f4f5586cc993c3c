"""The service's configuration. Only this module reads the environment, once."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

VERSION = "1.0.0"  # of the service and of the client; the build reads it here

CLIENT_VARIABLES = ("QUEUE_TOKEN", "QUEUE_URL")  # of the client, which may run in the same environment


class BadSetting(Exception):
    """An environment variable has an invalid value; `str()` names it and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The operator's settings. docs/operations.md lists the environment variables."""

    database_url: str = "sqlite:///queue.db"  # QUEUE_DATABASE_URL, or else DATABASE_URL
    host: str = "127.0.0.1"  # QUEUE_HOST: an IP address
    port: int = 5000  # PORT
    workers: int = 2  # WEB_CONCURRENCY: processes; while one commits the other continues
    threads: int = 64  # QUEUE_THREADS: in each process, for large requests
    keep_alive: int = 75  # QUEUE_KEEP_ALIVE: seconds; load balancers keep their connections for 60
    max_body: int = 8 * 1024 * 1024  # QUEUE_MAX_BODY: bytes of a request's body
    allow_anonymous: bool = False  # QUEUE_ALLOW_ANONYMOUS=yes: serve other machines without access control
    tokens: str = field(default="", repr=False)  # QUEUE_TOKENS: parsed in web/access/tokens.py
    tokens_file: str = ""  # QUEUE_TOKENS_FILE: path of a file of more tokens
    access_log: str = ""  # QUEUE_ACCESS_LOG: json or plain; empty for none
    log: str = ""  # QUEUE_LOG=json: the service's own log as JSON
    inherits_socket: bool = False  # from systemd, or from the gunicorn that this one replaces

    @property
    def bind(self) -> str:
        """Return the address to listen on, as host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_private(self) -> bool:
        """Return whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def trusts_loopback(self) -> bool:
        """Return whether every client on this machine, and no other, may use the service without a token."""
        return self.is_private and not self.allow_anonymous and not self.has_tokens

    @property
    def has_tokens(self) -> bool:
        """Return whether requests need a token."""
        return bool(self.tokens or self.tokens_file)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from `env` (default: the environment). Raises BadSetting."""
        env = os.environ if env is None else env
        default = cls()
        return cls(
            database_url=env.get("QUEUE_DATABASE_URL") or env.get("DATABASE_URL") or default.database_url,
            host=_host(env, "QUEUE_HOST", default.host),
            port=_number(env, "PORT", default.port, 0, 65_535),
            workers=_number(env, "WEB_CONCURRENCY", default.workers, 1, 256),
            threads=_number(env, "QUEUE_THREADS", default.threads, 2, 1_000),
            keep_alive=_number(env, "QUEUE_KEEP_ALIVE", default.keep_alive, 1, 3_600),
            max_body=_number(env, "QUEUE_MAX_BODY", default.max_body, 1, 256 * 1024 * 1024),
            allow_anonymous=_is_yes(env, "QUEUE_ALLOW_ANONYMOUS"),
            tokens=env.get("QUEUE_TOKENS", "").strip(),
            tokens_file=env.get("QUEUE_TOKENS_FILE", ""),
            access_log=_one_of(env, "QUEUE_ACCESS_LOG", "json", "plain"),
            log=_one_of(env, "QUEUE_LOG", "json", "plain"),
            inherits_socket="LISTEN_FDS" in env or "GUNICORN_FD" in env,
        )


def unknown_variables(env: Mapping[str, str] | None = None) -> list[str]:
    """Return a sentence for each variable whose name begins with QUEUE_ but is no setting: it may be misspelt."""
    env = os.environ if env is None else env
    known = _ReadNames()
    Settings.from_env(known)
    known.names.update(CLIENT_VARIABLES)
    return [
        _unknown(name, known.names) for name in sorted(env) if name.startswith("QUEUE_") and name not in known.names
    ]


class _ReadNames(dict[str, str]):
    """An empty environment that records the names of the variables that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return default


def _unknown(name: str, known: set[str]) -> str:
    by_meaning = {one.removeprefix("QUEUE_"): one for one in sorted(known)} | {"WORKERS": "WEB_CONCURRENCY"}
    nearest = get_close_matches(name.removeprefix("QUEUE_"), by_meaning, 1)
    return f"{name} is not a setting of this service" + (f"; did you mean {by_meaning[nearest[0]]}?" if nearest else "")


@lru_cache(maxsize=8)
def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _number(env: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise BadSetting(f"{name} must be a whole number from {least} to {most}")
    return int(text)


def _host(env: Mapping[str, str], name: str, default: str) -> str:
    text = env.get(name) or default
    try:
        return str(ipaddress.ip_address("127.0.0.1" if text == "localhost" else text.strip("[]")))
    except ValueError:
        raise BadSetting(f"{name} must be an IP address, or localhost") from None


def _is_yes(env: Mapping[str, str], name: str) -> bool:
    return _one_of(env, name, "yes", "no") == "yes"


def _one_of(env: Mapping[str, str], name: str, *words: str) -> str:
    """Return the value, one of `words`, or "" if it is not set. Raises BadSetting."""
    text = env.get(name, "").lower()
    if text and text not in words:
        raise BadSetting(f"{name} must be {' or '.join(words)}")
    return text
