"""A client over plain HTTP or over TLS: the tests of its behaviour run with both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clients import QueueClient


@dataclass(frozen=True)
class Connect:
    """Connects clients to the service at `url`, or at another one with the same certificate."""

    url: str
    verify: bool | str = True

    def __call__(self, url: str | None = None, **options: Any) -> QueueClient:
        return QueueClient(url or self.url, verify=self.verify, **options)
