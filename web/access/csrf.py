"""Refuse requests of other origins' web pages.

A browser lets any page send a plain GET or POST anywhere. The page cannot read the reply, but here a GET removes a
message and a POST sends one. Without tokens, anyone who can reach the service may use it.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from storage.validation import QUEUE_NAME
from web.native.request import CrossOrigin, Environ, Prefetch, UnknownHost, WireError

HARMLESS = ("/", "/docs", "/openapi.json")  # any page may link to these, and a browser may prefetch them
_PURPOSES = ("HTTP_SEC_PURPOSE", "HTTP_PURPOSE", "HTTP_X_PURPOSE", "HTTP_X_MOZ")
# A request without any of these is not from a browser.
_BROWSERS = {
    *_PURPOSES,
    "HTTP_ACCEPT_LANGUAGE", "HTTP_ORIGIN", "HTTP_SEC_FETCH_MODE", "HTTP_SEC_FETCH_SITE",
    "HTTP_UPGRADE_INSECURE_REQUESTS",
}  # fmt: skip
_READ = re.compile(r"(?:/queues/([^/]+))?/messages")
_QUEUE = re.compile(rf"(?:(?!queue=)[^&]*&)*queue=({QUEUE_NAME.pattern})(?:&.*)?")


def objection(environ: Environ, *, only_local_names: bool, is_action: bool = False) -> WireError | None:
    """Return the error for a request of another origin; None for curl, other programs, and our own page.

    `is_action`: this is an SQS request, which acts whatever its path and method. So it may not be a link either.

    `only_local_names`: refuse public host names. A page whose name points here (DNS rebinding) is same-origin for its
    browser; only the Host header shows the difference.
    """
    host = environ.get("HTTP_HOST", "").lower()
    if only_local_names and host and not _is_local(host):
        return UnknownHost("the service listens on loopback: call it as localhost or by its IP address")
    if _BROWSERS.isdisjoint(environ):
        return None
    if not is_action and environ.get("PATH_INFO") in HARMLESS and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        return None
    if _is_ahead(environ):
        return Prefetch("the service does not accept prefetches by a browser")
    if (is_action and _is_navigation(environ)) or not _is_same_origin(environ, host, is_action=is_action):
        return CrossOrigin(
            "the service does not accept requests of other origins' web pages, nor browsers' reads without an origin"
        )
    return None


def page_instead(environ: Environ) -> str | None:
    """Return the page of a queue to redirect to, for a browser that opens a read; else None.

    It is relative, because a proxy may serve this under a path of its own.
    """
    if environ["REQUEST_METHOD"] != "GET" or not _is_navigation(environ):
        return None
    if (read := _READ.fullmatch(environ.get("PATH_INFO", ""))) is None:
        return None
    named = _QUEUE.fullmatch(environ.get("QUERY_STRING", ""))
    queue = read[1] or (named[1] if named else "default")
    root = "../../" if read[1] else "./"
    return f"{root}#/{queue}" if QUEUE_NAME.fullmatch(queue) else root


def _is_ahead(environ: Environ) -> bool:
    """Return whether a browser marks the request as a prefetch, a prerender or a preview."""
    purposes = " ".join([environ[name].lower() for name in _PURPOSES if name in environ])
    return bool(purposes) and any(word in purposes for word in ("prefetch", "prerender", "preview"))


def _is_navigation(environ: Environ) -> bool:
    """Return whether a browser opens a page. Over plain HTTP to another machine it marks this by another header."""
    mode = environ.get("HTTP_SEC_FETCH_MODE")
    return mode == "navigate" if mode is not None else environ.get("HTTP_UPGRADE_INSECURE_REQUESTS") == "1"


def _is_same_origin(environ: Environ, host: str, *, is_action: bool) -> bool:
    """Return whether a browser marks the request as same-origin. Other programs send no mark, and pass."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site in ("same-origin", "none")  # none: the user typed the address
    # Browsers omit Sec-Fetch-Site over plain HTTP to a name that is not loopback.
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None:
        return bool(host) and origin.lower().partition("://")[2] == host
    # They also omit the Origin for a picture or a script; our own page has neither.
    if is_action:
        return not _is_browser(environ)
    if environ["REQUEST_METHOD"] != "GET" or not _is_browser(environ) or _is_navigation(environ):
        return True
    return _READ.fullmatch(environ.get("PATH_INFO", "")) is None


def _is_browser(environ: Environ) -> bool:
    """Return whether a browser sent this; a program that claims to be Mozilla seldom sends a language."""
    return environ.get("HTTP_USER_AGENT", "").startswith("Mozilla/") and "HTTP_ACCEPT_LANGUAGE" in environ


@lru_cache(maxsize=256)
def _is_local(host: str) -> bool:
    """Return whether public DNS has no say in a Host header: an IP address, or a name without a dot."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if ("." not in name and ":" not in name) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
