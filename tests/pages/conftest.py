"""Fixtures for tests of pages: a browser, tabs at a real service, and a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clients import QueueClient
from tests.pages.browser import Browser, Tab
from tests.support.live import LiveServer

OpenTab = Callable[..., Tab]
IS_LIVE = "document.getElementById('pulse')?.textContent === 'live'"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as chromium:
        yield chromium


@pytest.fixture
def open_tab(chromium: Browser, server: LiveServer) -> Iterator[OpenTab]:
    """Open tabs at paths of the service; assert at the end that none logged an error or used another host."""
    tabs: list[Tab] = []

    def open_at(path: str, **how: Any) -> Tab:
        tab = chromium.tab(**how)
        tabs.append(tab)
        tab.open(server.url + path)
        if not path.startswith("/docs"):
            tab.await_true(IS_LIVE)
        return tab

    yield open_at
    titles = [tab.run("document.title") for tab in tabs]
    for tab in tabs:
        tab.close()
    assert "owned" not in titles
    assert [fault for tab in tabs for fault in tab.faults] == []
    requests = [url for tab in tabs for url in tab.requests]
    assert [url for url in requests if not url.startswith((f"{server.url}/", "data:"))] == []


@pytest.fixture
def client(server: LiveServer, queue: str) -> Iterator[QueueClient]:
    with QueueClient(server.url, queue=queue) as client:
        yield client
