"""The service as an AWS Lambda function, behind API Gateway (payloads 1.0 and 2.0) or a function URL.

A function keeps no disk between requests, so its messages are in PostgreSQL. docs/deploy.md has the recipe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from settings import BadSetting, Settings
from web.native.request import JSON, NDJSON, RUNS

Event = dict[str, Any]
Handler = Callable[[Event, Any], dict[str, Any]]

# Replies of these types are UTF-8; Lambda needs all others as base64.
_TEXT = ("text/", "application/problem+json", JSON, NDJSON, RUNS)


class App(Protocol):
    """A WSGI application that knows its settings."""

    @property
    def settings(self) -> Settings: ...

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Any: ...


class LambdaHandler:
    """Run Lambda's events through a WSGI application. Raises BadSetting at every event if the settings are unsafe."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._handler: Handler | None = None
        self._making = threading.Lock()

    def __call__(self, event: Event, context: object) -> dict[str, Any]:
        if self._handler is None:
            with self._making:
                self._handler = self._handler or _make(self._app)
        return self._handler(_without_prefix(event), context)


def _make(app: App) -> Handler:
    _refuse_unsafe(app.settings)
    from apig_wsgi import make_lambda_handler  # in the extra `lambda`: only a Lambda function needs it

    return make_lambda_handler(app, binary_support=True, non_binary_content_type_prefixes=_TEXT)


def _refuse_unsafe(settings: Settings) -> None:
    if settings.database_url.startswith("sqlite:"):
        raise BadSetting(
            "QUEUE_DATABASE_URL names a SQLite file, but a Lambda function loses its disk when it ends; "
            "name a PostgreSQL database"
        )
    if not (settings.has_tokens or settings.allow_anonymous):
        raise BadSetting(
            "anyone who can call this function could read and write; set QUEUE_TOKENS, "
            "or set QUEUE_ALLOW_ANONYMOUS=yes if AWS asks for credentials before it"
        )


def _without_prefix(event: Event) -> Event:
    """Return the event with the service's own path: without the stage, or the base path of a custom domain."""
    name = "rawPath" if "rawPath" in event else "path"
    return event | {name: _own_path(event, event[name])}


def _own_path(event: Event, path: str) -> str:
    proxy: str | None = (event.get("pathParameters") or {}).get("proxy")
    if proxy is not None:  # the route is /{proxy+}: its match is the whole path
        return "/" + "/".join(path.split("/")[-proxy.count("/") - 1 :])
    stage = "/" + event.get("requestContext", {}).get("stage", "$default")
    return path.removeprefix(stage) if path.startswith(stage + "/") else path
