"""Clients of threads and of asyncio, over plain HTTP and over TLS: the tests of their behaviour run with each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from clients import QueueClient
from tests.support.awaited import awaited

ClientClass = Callable[..., QueueClient]

# Marks of tests that use the fixture `client_class`, or one that depends on it and on `tls`.
both_classes = pytest.mark.parametrize("client_class", [QueueClient, awaited], ids=["threads", "asyncio"])
both_clients = pytest.mark.parametrize(
    ("client_class", "tls"),
    [(QueueClient, "plain"), (QueueClient, "tls"), (awaited, "plain")],
    indirect=["tls"],
    ids=["threads", "threads-tls", "asyncio"],
)


@dataclass(frozen=True)
class Connect:
    """Connects clients of a class to the service at `url`, or at another one with the same certificate."""

    client_class: ClientClass
    url: str
    verify: bool | str = True

    def __call__(self, url: str | None = None, **options: Any) -> QueueClient:
        return self.client_class(url or self.url, verify=self.verify, **options)
