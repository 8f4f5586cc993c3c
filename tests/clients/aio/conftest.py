"""The client that looks at the results of asynchronous ones."""

from __future__ import annotations

import pytest

from clients import QueueClient


@pytest.fixture
def client(plain_client: QueueClient) -> QueueClient:
    return plain_client
