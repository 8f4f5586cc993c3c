"""HTML pages: each is one file, and only its own style and script may run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from bottle import Bottle, HTTPResponse, request

from web.native import responses
from web.native.request import wants_html
from web.pages import reference

_SCRIPT = ("format", "service", "plots", "list", "queue", "messages", "dialogs", "polling")  # polling starts the page


def mount(app: Bottle) -> None:
    @app.get("/")
    def index() -> HTTPResponse:
        """Return the page that shows the queues; for other clients than browsers return a guide."""
        if wants_html(request.environ):
            return _page(_index())
        return responses.value(_guide(request.environ.get("HTTP_HOST", "localhost")), {"Vary": "Accept"})

    @app.get("/docs")
    def docs() -> HTTPResponse:
        """Return the OpenAPI document as a page."""
        return _page(_reference())


def _guide(host: str) -> dict[str, str]:
    """Return first commands for curl users."""
    return {
        "service": "queue_service",
        "send": f"""curl -d '{{"text": "hello"}}' {host}/messages""",
        "receive": f"curl {host}/messages",
        "queues": f"curl {host}/queues",
        "reference": "/docs",
        "openapi": "/openapi.json",
    }


@lru_cache(maxsize=1)
def _reference() -> str:
    return reference.render(_file("reference.html"))


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


@lru_cache(maxsize=1)
def _index() -> str:
    """The page with its style and its script in it."""
    html = _file("page.html").replace("<style></style>", f"<style>\n{_file('page.css')}</style>")
    script = "".join(_file(f"script/{part}.js") for part in _SCRIPT)
    return html.replace("<script></script>", f"<script>\n{script}</script>")


def _page(html: str) -> responses.Response:
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",
        "Content-Security-Policy": _policy(html),
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    return responses.Response(html.encode(), 200, headers)


@lru_cache(maxsize=2)
def _policy(html: str) -> str:
    """Return a policy that allows only the page's own style and script, this service, and no framing."""
    style, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {_hashes(style)}; script-src {_hashes(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(parts: list[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
