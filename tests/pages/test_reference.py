"""Test the page at /docs: its examples, its contents on a phone and on a desktop, and its links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

import pytest

import handler
from settings import Settings
from tests.pages.browser import Browser, Tab
from tests.support.live import LiveServer
from tests.support.wsgi import Client, a_store
from web.pages.examples import recorded


@pytest.fixture(scope="module")
def page() -> str:
    with a_store() as store:
        return Client(handler.make_app(Settings(), store)).get("/docs").body.decode()


def test_every_curl_line_stands_at_its_operation_with_the_status_of_its_reply(page: str) -> None:
    for about, curl, status, _ in recorded():
        (section,) = re.findall(rf'<(article|section) id="{about}">(.*?)</\1>', page, re.DOTALL)
        assert f"<code>{escape(curl, quote=False)}</code></pre><pre><b>{status}</b>" in section[1]


def test_its_links_work_under_a_path_of_a_shared_host(page: str) -> None:
    links = set(re.findall(r'href="([^"]+)"', page))
    assert {link for link in links if not link.startswith(("#", "data:"))} == {"./", "openapi.json"}


def test_every_link_within_the_page_has_a_target(page: str) -> None:
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as chromium:
        yield chromium


def visible(tab: Tab, selector: str) -> bool:
    return bool(tab.run(f"document.querySelector('{selector}').checkVisibility()"))


@pytest.mark.slow
def test_on_a_phone_the_contents_open_and_lead_to_an_operation(chromium: Browser, server: LiveServer) -> None:
    tab = chromium.tab(width=390, height=844)
    tab.open(f"{server.url}/docs")
    link = 'header nav a[href="#transact"]'
    assert not visible(tab, "body > nav")
    assert not visible(tab, link)
    tab.tab_to("it.textContent === 'Contents'")
    tab.press("Enter")
    assert visible(tab, link)
    tab.run(f"document.querySelector('{link}').click()")
    tab.await_true("Math.abs(document.getElementById('transact').getBoundingClientRect().top) < 100")
    assert tab.faults == []
    tab.close()


@pytest.mark.slow
def test_on_a_desktop_the_contents_stay_beside_the_text(chromium: Browser, server: LiveServer) -> None:
    tab = chromium.tab()
    tab.open(f"{server.url}/docs#purge")
    tab.await_true("scrollY > 1000")
    assert tab.run("document.querySelector('body > nav').getBoundingClientRect().top") == 0
    assert not visible(tab, "header details")
    tab.close()
