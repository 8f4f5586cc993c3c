"""Which requests are SQS requests. All others are native."""

from __future__ import annotations

import re

from web.native.request import Environ
from web.sqs.protocols.aws_json import TARGET, JsonProtocol
from web.sqs.protocols.query import QueryProtocol
from web.sqs.protocols.reply import WireProtocol

_QUEUE_PATH = re.compile(r"/[0-9]{12}/[^/]+")
_ACTION = re.compile(r"(?:^|&)Action=")
_FORM = "application/x-www-form-urlencoded"


def recognize(environ: Environ) -> WireProtocol | None:
    """Return the protocol of an SQS request, or None for a native one. A form's body decides whether it is native."""
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
    if method == "POST" and environ.get("HTTP_X_AMZ_TARGET", "").startswith(TARGET):
        return JsonProtocol()
    if method in ("GET", "POST") and _QUEUE_PATH.fullmatch(path):
        return QueryProtocol(path)
    if method in ("GET", "POST") and path in ("", "/"):
        form = method == "POST" and environ.get("CONTENT_TYPE", "").lower().startswith(_FORM)
        if form or _ACTION.search(environ.get("QUERY_STRING", "")):
            return QueryProtocol()
    return None
