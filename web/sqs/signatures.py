"""AWS signatures, version 4, in the Authorization header or in the query string."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from calendar import timegm
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

from web.native.request import Environ
from web.sqs.errors import SqsError

ALGORITHM = "AWS4-HMAC-SHA256"
CLOCK_TOLERANCE = 15 * 60  # seconds
_MOST_EXPIRES = 7 * 86_400  # seconds

_SCOPE = r"(?P<name>[^/,\s]+)/(?P<date>[0-9]{8})/(?P<region>[a-z0-9-]{1,40})/(?P<service>[a-z0-9-]{1,40})/aws4_request"
_CREDENTIAL = re.compile(_SCOPE)
_HEADER = re.compile(
    rf"{ALGORITHM}\s+Credential={_SCOPE},\s*SignedHeaders=(?P<headers>[a-z0-9;_-]+),\s*Signature=(?P<signature>[0-9a-f]+)"
)
_TIME = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class Scope(NamedTuple):
    name: str  # the access key id
    date: str
    region: str
    service: str

    @classmethod
    def of(cls, found: re.Match[str]) -> Scope:
        return cls(found["name"], found["date"], found["region"], found["service"])


class Signature(NamedTuple):
    """The parts of a signed request that name who signed it, and how."""

    scope: Scope
    headers: tuple[str, ...]  # the names of the signed headers
    signature: str
    time: str
    session_token: str | None
    expires: int | None = None  # seconds, of a presigned URL

    @classmethod
    def of(cls, environ: Environ) -> Signature | None:
        """Return the signature of a request, or None if it has none in this form."""
        header = environ.get("HTTP_AUTHORIZATION")
        if header is None:
            return cls._presigned(environ) if "X-Amz-Signature=" in environ.get("QUERY_STRING", "") else None
        found = _HEADER.fullmatch(header.strip())
        if found is None:
            return None
        moment, session_token = environ.get("HTTP_X_AMZ_DATE", ""), environ.get("HTTP_X_AMZ_SECURITY_TOKEN")
        return cls(Scope.of(found), tuple(found["headers"].split(";")), found["signature"], moment, session_token)

    @classmethod
    def _presigned(cls, environ: Environ) -> Signature | None:
        query = dict(_query(environ))
        found, expires = _CREDENTIAL.fullmatch(query.get("X-Amz-Credential", "")), query.get("X-Amz-Expires", "")
        if found is None or query.get("X-Amz-Algorithm") != ALGORITHM or not re.fullmatch(r"[0-9]{1,6}", expires):
            return None
        headers = tuple(query.get("X-Amz-SignedHeaders", "").split(";"))
        signature, moment = query.get("X-Amz-Signature", ""), query.get("X-Amz-Date", "")
        return cls(Scope.of(found), headers, signature, moment, query.get("X-Amz-Security-Token"), int(expires))

    def check_time(self, now: float) -> None:
        """Raise SqsError if the signature is too old, or from the future."""
        if not _TIME.fullmatch(self.time) or not self.time.startswith(self.scope.date):
            raise refused("The signature's date is missing, or is not that of its credential scope.")
        try:
            signed = timegm(time.strptime(self.time, "%Y%m%dT%H%M%SZ"))
        except ValueError:
            raise refused("The signature's date is invalid.") from None
        least = signed - CLOCK_TOLERANCE
        most = signed + (CLOCK_TOLERANCE if self.expires is None else min(self.expires, _MOST_EXPIRES))
        if not least <= now <= most:
            raise refused(f"Signature expired: {self.time} is too far from the service's time.")

    def is_valid(self, secret: str, environ: Environ, body: bytes) -> bool:
        """Return whether the holder of this secret has signed this request."""
        _, date, region, service = self.scope
        needed = {"host", "x-amz-target"} if "HTTP_X_AMZ_TARGET" in environ else {"host"}  # the target names the action
        if not needed <= set(self.headers) or service != "sqs":
            return False
        canonical = hashlib.sha256(self._canonical(environ, body).encode("utf-8", "surrogateescape")).hexdigest()
        text = "\n".join((ALGORITHM, self.time, f"{date}/{region}/{service}/aws4_request", canonical))
        key = _signing_key(secret, date, region, service)
        expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected.encode(), self.signature.encode())

    def _canonical(self, environ: Environ, body: bytes) -> str:
        target: str = environ.get("RAW_URI") or environ["PATH_INFO"]
        query = [(quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in _query(environ)]
        lines = [
            environ["REQUEST_METHOD"],
            quote(target.partition("?")[0] or "/", safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in sorted(query) if name != "X-Amz-Signature"),
            *(f"{name}:{_header(environ, name)}" for name in self.headers),
            "",
            ";".join(self.headers),
            hashlib.sha256(body).hexdigest(),
        ]
        return "\n".join(lines)


def refused(why: str) -> SqsError:
    return SqsError("InvalidSignatureException", why)


@lru_cache(maxsize=256)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def _query(environ: Environ) -> list[tuple[str, str]]:
    try:
        return parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True, max_num_fields=2_000)
    except ValueError:
        return []


def _header(environ: Environ, name: str) -> str:
    key = name.upper().replace("-", "_")
    value: str = environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}", "")
    return " ".join(value.split())
