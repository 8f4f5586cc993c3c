"""Run the tests of the SQS endpoint on each engine, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import handler
from settings import Settings
from storage.store import Engine
from tests.sqs.aws import Raw, boto_client
from tests.support.engines import ENGINES, FakeClock
from tests.support.wsgi import Client
from web.native.application import Application


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Engine]:
    store = ENGINES[request.param](tmp_path, clock)
    yield store
    store.close()


@pytest.fixture
def app(store: Engine) -> Application:
    return handler.make_app(Settings(), store)


@pytest.fixture(scope="session")
def shared() -> tuple[Any, list[Application]]:
    """Return one boto3 client for all tests, since creating one takes long, and the application that it calls."""
    apps: list[Application] = []
    return boto_client(lambda environ, start_response: apps[-1](environ, start_response)), apps


@pytest.fixture
def sqs(app: Application, shared: tuple[Any, list[Application]]) -> Any:
    client, apps = shared
    apps[:] = [app]
    return client


@pytest.fixture
def raw(app: Application) -> Raw:
    return Raw(app)


@pytest.fixture
def native(app: Application) -> Client:
    return Client(app)


@pytest.fixture
def make(sqs: Any) -> Callable[..., str]:
    """Return a function that creates a queue with these attributes and returns its URL."""

    def make(name: str = "q", **attributes: str) -> str:
        if name.endswith(".fifo"):
            attributes = {"FifoQueue": "true"} | attributes
        url: str = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        return url

    return make
