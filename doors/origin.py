"""Refuses what a web page of somebody else asks in the browser of one who can reach the service.

A browser lets any page send a plain GET or POST anywhere. It cannot read the reply, but a GET here removes a message
and a POST sends one; and where no tokens are asked for, to reach the service is to be allowed.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from doors.wire import CrossOrigin, Environ, UnknownHost, WireError

HARMLESS = ("/", "/docs", "/openapi.json")  # a link on any page may lead to these


def objection(environ: Environ, *, only_local_names: bool) -> WireError | None:
    """What is wrong with where this request comes from; None for curl, other programs, and our own page.

    `only_local_names`: refuse names of the public internet. A page whose own name was made to point here
    (DNS rebinding) is of the same origin in its browser's eyes; only the Host header shows what it is.
    """
    host = environ.get("HTTP_HOST", "").lower()
    if only_local_names and host and not _is_local(host):
        return UnknownHost("the service listens on loopback and answers to localhost and IP addresses")
    if environ.get("PATH_INFO") in HARMLESS or _is_same_origin(environ, host):
        return None
    return CrossOrigin("a web page of another origin may not use this service")


def _is_same_origin(environ: Environ, host: str) -> bool:
    """As a browser tells; a program that is none tells nothing, and passes."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site in ("same-origin", "none")  # none: typed into the address bar
    origin = environ.get("HTTP_ORIGIN")  # where browsers leave the other out: http to a name that is not loopback
    return origin is None or origin.lower().partition("://")[2] == host


@lru_cache(maxsize=256)
def _is_local(host: str) -> bool:
    """Whether a Host header names what no public name server decides on: an IP address, or a name without a dot."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if ("." not in name and ":" not in name) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
