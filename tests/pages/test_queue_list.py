"""Test the list of queues: totals, marks, filters and order, and that ten thousand queues stay fluid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

from clients import QueueClient
from tests.pages.browser import Browser, Tab
from tests.pages.conftest import IS_LIVE
from tests.support.live import LiveServer

pytestmark = pytest.mark.slow
NAMES = "#queues tbody a"


@pytest.fixture
def own() -> Iterator[LiveServer]:
    """Run a service without queues."""
    with LiveServer() as live:
        yield live


@pytest.fixture
def tab(chromium: Browser, own: LiveServer) -> Iterator[Tab]:
    tab = chromium.tab()
    yield tab
    assert tab.faults == []
    tab.close()


def test_without_queues_it_shows_how_to_send_the_first_message(tab: Tab, own: LiveServer) -> None:
    tab.open(own.url)
    tab.await_true("document.getElementById('empty').checkVisibility()")
    assert tab.texts("#curl") == [f"""curl -d '{{"text":"hello"}}' '{own.url}/messages'"""]
    assert not tab.run("document.getElementById('choose').checkVisibility()")


def test_totals_marks_filters_and_order_show_where_to_look(tab: Tab, own: LiveServer) -> None:
    with QueueClient(own.url, queue="orders") as client:
        client.send_many(["x"] * 1_200)
        for message in client.receive(limit=2, lease=600):
            message.reject()
        client.receive(limit=3, lease=600)
        client.send_many(["x"] * 7, queue="mail")
        client.put_settings({"paused": True}, queue="mail")
        client.put_settings({}, queue="empty")
    tab.open(own.url)
    tab.await_true(f"document.querySelectorAll('{NAMES}').length === 4")
    assert tab.texts("#totals dd")[:5] == ["1,204", "3", "0", "0", "2"]
    assert tab.texts("#totals dt")[4:] == ["of these, dead letters", "oldest, in orders"]
    assert tab.texts("#filters button") == ["All 4", "Not empty 3", "With dead letters 1", "Paused 1"]
    assert tab.texts(".name") == ["empty", "mailpaused", "ordersdead letters", "orders.dead"]
    for value, names in {"full": ["mail", "orders", "orders.dead"], "dead": ["orders"], "paused": ["mail"]}.items():
        tab.click(f"#filters [value={value}]")
        assert tab.texts(NAMES) == names
        assert tab.texts("#filters [aria-pressed=true]")[0].startswith(tab.texts(f"#filters [value={value}]")[0])
        assert tab.texts("#found") == [f"{len(names)} of 4 queues"]
    tab.click("#filters [value=all]")
    tab.click("thead [value=ready]")
    assert tab.texts(NAMES) == ["orders", "mail", "orders.dead", "empty"]
    assert tab.run("document.querySelector('[aria-sort]').textContent") == "Ready"
    tab.click("thead [value=ready]")
    assert tab.texts(NAMES) == ["empty", "orders.dead", "mail", "orders"]
    tab.choose("#sort", "dead")
    assert tab.texts(NAMES)[0] == "orders"


# The elements of rows that reach out of their row.
OUTSIDE = """[...document.querySelectorAll("#queues tbody tr:not(.gap)")].flatMap((row) => {
  const {top, bottom} = row.getBoundingClientRect(), reachesOut = (box) => box.top < top || box.bottom > bottom;
  const seen = [...row.querySelectorAll("*")].filter((node) => node.checkVisibility());
  return seen.filter((node) => reachesOut(node.getBoundingClientRect())).map((node) => node.outerHTML);
})"""


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_a_row_shows_all_of_a_queue(chromium: Browser, own: LiveServer, width: int) -> None:
    with QueueClient(own.url, queue="orders.from.abroad.of.last.year") as client:
        client.send_many(["x"] * 3_100)
        for message in client.receive(limit=100, lease=600):
            message.reject()
        client.receive(limit=1_000, lease=600)
        client.send_many([{"text": "x", "delay": 600}] * 1_000)
        client.send_many([{"text": "x", "key": "k"}] * 1_001)
        client.put_settings({}, queue="empty")
        tab = chromium.tab(width=width, height=844)
        tab.open(own.url)
        tab.await_true(f"document.querySelectorAll('{NAMES}').length === 3")
        assert tab.texts("#queues .blocked") == ["0", "1,000", "0"]
        assert tab.run(OUTSIDE) == []
        client.put_settings({"paused": True})
        tab.await_true("document.querySelectorAll('#queues .mark').length === 2")
        assert tab.run(OUTSIDE) == []
        heights = "[...document.querySelectorAll('#queues tbody tr:not(.gap)')].map((row) => row.offsetHeight)"
        assert len(set(tab.run(heights))) == 1  # as the list of those in view needs
    tab.close()


def test_a_row_that_moves_keeps_the_focus(tab: Tab, own: LiveServer) -> None:
    with QueueClient(own.url, queue="a") as client:
        client.send("x")
        client.send_many(["x"] * 2, queue="b")
        client.send_many(["x"] * 3, queue="c")
        tab.open(own.url)
        tab.click("thead [value=ready]")
        tab.await_true(f"document.querySelectorAll('{NAMES}').length === 3")
        tab.tab_to("it.textContent === 'a'")
        client.send_many(["x"] * 9)
        tab.await_true(f"document.querySelector('{NAMES}').textContent === 'a'")
    assert tab.run("document.activeElement.textContent") == "a"


QUEUES = 10_000


def test_ten_thousand_queues_stay_fluid(tab: Tab, own: LiveServer) -> None:
    for first in range(0, QUEUES, 1_000):  # a transaction touches at most 1,000 queues
        sent = [{"queue": f"queue-{number:05}", "text": "x"} for number in range(first, first + 1_000)]
        with urlopen(Request(f"{own.url}/transactions", json.dumps({"send": sent}).encode())) as reply:
            assert reply.status == 200
    tab.open(own.url)
    tab.await_true(f"{IS_LIVE} && listed.length === {QUEUES}")
    assert tab.texts("#filters [value=full]") == ["Not empty 10,000"]
    assert tab.texts("#totals dd")[0] == "10,000"
    # Only rows in view are in the document, wherever the user scrolls.
    for place, seen in ((0, "queue-00000"), (0.5, "queue-05000"), (1, "queue-09999")):
        tab.run(f"scrollTo(0, {place} * (document.documentElement.scrollHeight - innerHeight))")
        tab.await_true(
            f"[...document.querySelectorAll('{NAMES}')].some((node) => node.textContent === '{seen}'"
            " && node.getBoundingClientRect().top >= 0 && node.getBoundingClientRect().bottom <= innerHeight)"
        )
        assert tab.run("document.querySelectorAll('#queues tr').length") < 80
    # Typing is answered.
    tab.run("document.getElementById('find').focus()")
    tab.type("9876")
    tab.await_true(f"document.querySelector('{NAMES}').textContent === 'queue-09876'")
    assert tab.texts("#found") == ["1 of 10,000 queues"]
    # The longest time that a key or a change of order takes is far below that of a page that draws every row.
    longest, naive = tab.run(
        """(() => {
          const timed = (work) => { const begin = performance.now(); work(); document.body.offsetHeight;
            return performance.now() - begin; };
          const best = (work) => Math.min(timed(work), timed(work), timed(work));
          const find = document.getElementById("find"), times = [];
          for (const text of ["q", "queue-0", "9", "99", ""])
            times.push(best(() => { find.value = text; find.dispatchEvent(new Event("input")); }));
          times.push(best(() => sortBy("ready")), best(() => sortBy("sent")));
          const body = document.createElement("tbody");
          const naive = timed(() => {
            for (const queue of stats.keys()) body.append(newRow(queue).row);
            document.getElementById("queues").append(body); });
          body.remove();
          return [Math.max(...times), naive];
        })()"""
    )
    assert longest < naive / 4


SLOW = """(() => {
  const real = fetch;
  window.times = [];
  window.fetch = async (path, options) => {
    if (!path.startsWith("queues?")) return real(path, options);
    const began = performance.now();
    await new Promise((done) => setTimeout(done, 200));
    const reply = await real(path, options);
    times.push([began, performance.now()]);
    return reply;
  };
})()"""


def test_listing_slowly_is_done_seldom(tab: Tab, own: LiveServer) -> None:
    tab.open(own.url)
    tab.await_true(IS_LIVE)
    tab.run(SLOW)
    tab.await_true("times.length === 3")
    (_, first), (began, ended), (again, _) = tab.run("times")
    assert began - first < again - ended  # one slow listing says nothing
    assert again - ended > 19 * (ended - began)
