"""Test the pages at / and /docs in a real browser on a real service, and attacks from other pages."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest

import handler
from clients import QueueClient
from settings import Settings
from tests.pages.browser import Browser
from tests.pages.conftest import OpenTab
from tests.support.live import LiveServer
from tests.support.wsgi import a_store

pytestmark = pytest.mark.slow
MARKUP = "<img src=/health onerror=document.title='owned'><script>document.title='owned'</script>"


def figure(queue: str, column: int) -> str:
    """Return the expression for a column of a queue's row in the list."""
    return f"""[...document.querySelectorAll('#queues tbody a')].find((link) => link.textContent === '{queue}')
        ?.closest('tr').cells[{column}].textContent"""


def test_the_list_shows_depths_by_state_as_they_change(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.put_settings({"dead_letter_queue": f"{queue}.dead"})
    client.send_many([{"text": "a", "key": "k"}, {"text": "b", "key": "k"}, "c", {"text": "d", "delay": 3600}])
    tab = open_tab("/")
    tab.choose("#find", queue)  # other tests' queues may fill the view
    tab.await_true(f"{figure(queue, 1)} === '2'")
    assert [tab.run(figure(queue, column)) for column in range(1, 6)] == ["2", "0", "1", "1", "0"]
    client.receive(limit=1, lease=600)[0].reject()
    client.send_many(["more"] * 1998)
    tab.await_true(f"{figure(queue, 1)} === '2,000' && {figure(queue, 5)} === '1'")
    tab.await_true(f"parseFloat({figure(queue, 7)}) > 0")
    assert tab.run("document.querySelectorAll('#queues tbody path').length > 1")


def test_a_message_is_sent_with_the_keyboard_alone(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.put_settings({})
    tab = open_tab("/")
    tab.choose("#find", queue)
    tab.tab_to(f"it.textContent === '{queue}'")
    tab.press("Enter")
    tab.await_true(f"document.getElementById('name').textContent === '{queue}'")
    tab.tab_to("it.textContent === 'Send a message'")
    tab.press("Enter")
    tab.type("two\nlines")
    tab.tab_to("it.textContent === 'More fields'")
    tab.press("Enter")
    tab.tab_to("it.name === 'priority'")
    tab.type("7")
    tab.tab_to("it.name === 'attributes'")
    tab.type('{"source": "page"}')
    tab.press("Enter", ctrl=True)
    tab.await_true("!document.getElementById('sending').open")
    (message,) = client.peek()
    assert (message.text, message.priority, message.attributes) == ("two\nlines", 7, {"source": "page"})
    tab.await_true("document.querySelectorAll('#messages li').length === 1")


def test_a_refused_message_is_reported_and_stays_in_the_form(
    open_tab: OpenTab, client: QueueClient, queue: str
) -> None:
    client.put_settings({"max_messages": 1})
    client.send("there")
    tab = open_tab(f"/#/{queue}")
    tab.run("document.querySelector('#one .send').click()")
    tab.type("too many")
    tab.press("Enter", ctrl=True)
    tab.await_true("document.querySelector('#sending .wrong').textContent !== ''")
    assert "full" in tab.run("document.querySelector('#sending .wrong').textContent")
    assert tab.run("document.querySelector('#sending [name=text]').value") == "too many"
    assert [fault for fault in tab.faults if "429" not in fault] == []
    tab.faults.clear()  # Chromium's own line for a 429


def test_a_purge_asks_for_confirmation_and_escape_cancels_it(
    open_tab: OpenTab, client: QueueClient, queue: str
) -> None:
    client.send_many(["x"] * 1234)
    tab = open_tab(f"/#/{queue}")
    for answer in ("Escape", "Enter"):  # Enter: the focused button keeps them too
        tab.tab_to("it.id === 'purge'")
        tab.press("Enter")
        tab.await_true("document.getElementById('confirming').open")
        assert tab.texts("#confirming-title") == [f"Purge all 1,234 messages of {queue}?"]
        tab.press(answer)
        tab.await_true("!document.getElementById('confirming').open")
        assert client.stats()["ready"] == 1234
    tab.tab_to("it.id === 'purge'")
    tab.press("Enter")
    tab.tab_to("it.textContent === 'Purge' && it.closest('dialog')")
    tab.press("Enter")
    tab.await_true("!document.getElementById('confirming').open")
    assert client.stats()["ready"] == 0
    tab.await_true("!document.getElementById('nothing').hidden")


def test_messages_are_shown_page_by_page_and_by_state(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.send_many([f"number {number}" for number in range(60)])
    client.receive(limit=3, lease=600)
    tab = open_tab(f"/#/{queue}")
    tab.await_true("document.querySelector('#messages .text').textContent === 'number 59'")  # the newest first
    tab.choose("#order", "after")
    tab.await_true("document.querySelector('#messages .text').textContent === 'number 0'")
    seen = []
    for rows in (25, 25, 10):
        tab.await_true(f"document.querySelectorAll('#messages li').length === {rows}")
        page = tab.texts("#messages .text")
        seen += page
        if rows == 25:
            tab.click("#after")
            tab.await_true(f"document.querySelector('#messages .text').textContent !== '{page[0]}'")
    assert seen == [f"number {number}" for number in range(60)]
    assert tab.run("document.getElementById('after').disabled")
    tab.click("#before")
    tab.await_true("document.querySelector('#messages .text').textContent === 'number 25'")
    tab.choose("#state", "leased")
    tab.await_true("document.querySelectorAll('#messages li').length === 3")
    assert client.stats()["received"] == 3


def test_markup_in_a_message_its_attributes_and_the_address_stays_text(
    open_tab: OpenTab, client: QueueClient, queue: str
) -> None:
    client.send(MARKUP, attributes={MARKUP: MARKUP}, key=MARKUP[:128], recipient=MARKUP[:128], dedup_id=MARKUP[:128])
    tab = open_tab(f"/#/{queue}")
    tab.await_true("document.querySelectorAll('#messages li').length === 1")
    tab.click("#messages summary")
    tab.await_true("document.querySelector('#messages pre')")
    assert tab.texts("#messages pre") == [MARKUP]
    assert MARKUP[:128] in tab.texts("#messages dd")
    assert json.dumps({MARKUP: MARKUP}, separators=(",", ":")) in tab.texts("#messages dd")
    tab.run(f"location.hash = '#/' + encodeURIComponent({json.dumps(MARKUP)})")
    tab.await_true(f"document.getElementById('name').textContent === {json.dumps(MARKUP)}")
    assert tab.run("document.querySelectorAll('img, main script').length") == 0
    tab.await_true("document.getElementById('fault').textContent !== ''")
    tab.faults = [fault for fault in tab.faults if not re.search(" 40[04] ", fault)]  # no queue's name


def test_markup_put_into_the_page_would_not_run(open_tab: OpenTab) -> None:
    tab = open_tab("/")
    tab.run(f"document.querySelector('main').insertAdjacentHTML('beforeend', {json.dumps(MARKUP)})")
    tab.await_true("document.querySelector('img').complete")
    assert any("Content Security Policy" in fault for fault in tab.faults)
    tab.faults.clear()


def test_a_hidden_tab_sends_no_requests(open_tab: OpenTab) -> None:
    tab = open_tab("/")
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
    change = "document.dispatchEvent(new Event('visibilitychange'))"
    tab.run(f"{hide % 'true'}; {change}")
    before = len(tab.requests)
    tab.run("new Promise((done) => setTimeout(done, 2 * EVERY + 500))")
    assert len(tab.requests) == before
    tab.run(f"{hide % 'false'}; {change}")
    tab.await_true("document.getElementById('pulse').textContent === 'live'")
    assert len(tab.requests) > before


@pytest.mark.parametrize("path", ["/", "/#/QUEUE", "/docs"])
def test_on_a_phone_nothing_is_wider_than_the_screen(
    open_tab: OpenTab, client: QueueClient, queue: str, path: str
) -> None:
    client.send_many(["x" * 2_000, json.dumps({"a": "b " * 500})])
    client.put_settings({}, queue=f"{queue}." + "long-name." * 6)
    tab = open_tab(path.replace("QUEUE", queue), width=360, height=740)
    if "#" in path:
        tab.await_true("document.querySelectorAll('#messages li').length === 2")
        tab.run("document.querySelectorAll('#messages summary').forEach((one) => one.click())")
    for dialog in tab.run("[...document.querySelectorAll('dialog')].map((one) => one.id)") or [""]:
        if dialog:
            tab.run(f"document.getElementById('{dialog}').showModal()")
        assert tab.run("document.documentElement.scrollWidth") == 360
        if dialog:
            box = tab.run(f"document.getElementById('{dialog}').getBoundingClientRect().toJSON()")
            assert box["left"] >= 0
            assert box["right"] <= 360
            tab.run(f"document.getElementById('{dialog}').close()")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/#/QUEUE", "/docs"])
def test_all_text_has_enough_contrast(
    open_tab: OpenTab, client: QueueClient, queue: str, path: str, dark: bool
) -> None:
    client.send_many(["w", "x", {"text": "y", "delay": 60}])
    client.receive(limit=1, lease=600)[0].reject("bad")
    client.receive(limit=1, lease=600)
    client.put_settings({"paused": True})
    tab = open_tab(path.replace("QUEUE", queue), dark=dark)
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    measured = tab.run(CONTRASTS)
    for button, dialog in {"#settings": "setting", "#purge": "confirming"}.items() if "#" in path else ():
        tab.click(button)
        tab.await_true(f"document.getElementById('{dialog}').open")
        measured += tab.run(CONTRASTS)
        tab.press("Escape")
    assert len(measured) > 20
    assert [text for text in measured if text[1] < 4.5] == []  # WCAG 2.2, AA
    assert (sum(text[2] for text in measured) > len(measured) / 2) == dark


# For each visible text: itself, its contrast, and whether it is light on dark.
CONTRASTS = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")]
    .filter((node) => node.checkVisibility({visibilityProperty: true}) && !node.disabled
      && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
    .map((node) => {
      const text = light(getComputedStyle(node).color), ground = light(behind(node));
      const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
      return [node.textContent.trim().slice(0, 40), contrast, text > ground];
    });
})()"""


# A service that requires a token.


@contextmanager
def guarded(token: str) -> Iterator[str]:
    """Serve the application behind a token check, like a proxy's; yield the URL."""

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Silent(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with a_store() as store:
        app = handler.make_app(Settings(), store)

        def check(environ: dict[str, Any], start_response: Any) -> Any:
            if environ["PATH_INFO"] == "/" or environ.get("HTTP_AUTHORIZATION") == f"Bearer {token}":
                return app(environ, start_response)
            start_response("401 Unauthorized", [("Content-Type", "application/problem+json")])
            return [b'{"title": "No token", "status": 401, "detail": "a token is needed"}']

        with Server(("127.0.0.1", 0), Silent) as server:
            server.set_app(check)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def test_it_asks_for_a_token_once_keeps_it_for_the_tab_and_forgets_it(chromium: Browser) -> None:
    with guarded("s3cret") as url:
        tab = chromium.tab()
        tab.open(url)
        tab.await_true("document.getElementById('signing').open")
        tab.type("wrong")
        tab.press("Enter")
        tab.await_true("document.querySelector('#signing .wrong').textContent !== ''")
        tab.run("document.querySelector('#signing [name=token]').value = ''")
        tab.type("s3cret")
        tab.press("Enter")
        tab.await_true("!document.getElementById('signing').open")
        tab.await_true("document.getElementById('pulse').textContent === 'live'")
        assert tab.run("JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])") == json.dumps(
            [{"token": "s3cret"}, {}, ""], separators=(",", ":")
        )
        tab.open(f"{url}/#again")
        tab.await_true("document.getElementById('pulse').textContent === 'live'")
        tab.run("document.getElementById('sign').click()")
        tab.await_true("document.getElementById('signing').open")
        assert tab.run("sessionStorage.length") == 0
        tab.press("Escape")
        tab.run("new Promise((done) => setTimeout(done, 2 * EVERY))")
        assert not tab.run("document.getElementById('signing').open")  # a user who cancelled is not asked again
        tab.close()


# Pages of other sites.

ATTACK = """<!doctype html><title>working</title>
<img src="{url}/queues/{queue}/messages"><iframe name="nowhere"></iframe>
<form method="post" target="nowhere" enctype="text/plain" action="{url}/queues/{queue}/messages"><input name="x"></form>
<script>
document.forms[0].submit();
const tries = ["GET", "POST"].map((method) =>
  fetch("{url}/queues/{queue}/messages", {{method, mode: "no-cors", body: method === "POST" ? "x" : undefined}}));
tries.push(fetch("{url}/queues/{queue}/purge", {{method: "POST", mode: "no-cors"}}));
Promise.allSettled(tries).then(() => {{ document.title = "done"; }});
</script>"""


@contextmanager
def page_elsewhere(html: str) -> Iterator[int]:
    """Serve this page at every path; yield the port."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "elsewhere.example"])
def test_a_page_of_another_origin_changes_nothing(
    chromium: Browser, server: LiveServer, client: QueueClient, queue: str, host: str
) -> None:
    client.send("there")
    with page_elsewhere(ATTACK.format(url=server.url, queue=queue)) as port:
        tab = chromium.tab()
        tab.open(f"http://{host}:{port}/")
        tab.await_true("document.title === 'done' && document.images[0].complete")
        asked = [url for url in tab.requests if url.startswith(f"{server.url}/queues/{queue}/")]
        assert len(asked) >= 4  # the page did try
        tab.close()
    stats = client.stats()
    assert (stats["ready"], stats["sent"], stats["received"]) == (1, 1, 0)


def test_a_rebound_dns_name_reaches_nothing(
    chromium: Browser, server: LiveServer, client: QueueClient, queue: str
) -> None:
    client.send("there")
    tab = chromium.tab()
    tab.open(f"http://rebound.example:{server.port}/queues/{queue}/messages")
    assert json.loads(tab.run("document.body.innerText"))["code"] == "unknown_host"
    tab.close()
    assert client.stats()["ready"] == 1
