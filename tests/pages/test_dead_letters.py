"""Test what the page shows of messages that died or are leased, and what it does with some of them."""

from __future__ import annotations

import re

import pytest

from clients import QueueClient
from tests.pages.browser import Tab
from tests.pages.conftest import OpenTab
from tests.support.live import LiveServer

pytestmark = pytest.mark.slow
ARABIC = "سبب غير معروف"


def kill(client: QueueClient, reasons: list[str]) -> None:
    """Make one dead letter for each reason; its text is the reason."""
    client.send_many(reasons)
    for message in client.receive(limit=len(reasons), lease=600):
        message.reject(message.text)


def confirm(tab: Tab, title: str) -> None:
    """Confirm a question of this title by the keyboard, whose focus is on Cancel."""
    tab.await_true("document.getElementById('confirming').open")
    assert tab.texts("#confirming-title") == [title]
    tab.tab_to("it.type === 'submit' && it.closest('#confirming')")
    tab.press("Enter")
    tab.await_true("!document.getElementById('confirming').open")


def reasons(tab: Tab) -> list[str]:
    return tab.texts("#reasons > li > :is(b, .text)")


def await_messages(tab: Tab, number: int) -> None:
    tab.await_true(
        f"document.querySelectorAll('#messages li').length === {number} && !document.querySelector('[aria-busy]')"
    )


def test_the_list_shows_why_and_when_each_died_after_how_many_tries(
    open_tab: OpenTab, client: QueueClient, queue: str
) -> None:
    client.put_settings({"max_receives": 2, "lease": 0})
    client.send("never works")
    for _ in range(3):
        client.receive(lease="default")
    tab = open_tab(f"/#/{queue}.dead")
    await_messages(tab, 1)
    assert tab.texts("#messages .why .dead") == ["max_receives"]
    (died,) = tab.texts("#messages .why span:last-child")
    assert died.startswith("died ")
    assert died.endswith(f" s ago after 2 tries in {queue}")
    tab.await_true("document.querySelector('#reasons li')")
    assert reasons(tab) == ["1", "max_receives"]


def test_earlier_deaths_are_listed(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.put_settings({"dead_letter_queue": f"{queue}.last"}, queue=f"{queue}.dead")
    kill(client, ["first"])
    client.receive(limit=1, lease=600, queue=f"{queue}.dead")[0].reject("second")
    tab = open_tab(f"/#/{queue}.last")
    tab.click("#messages summary")
    tab.await_true("document.querySelector('#messages dl')")
    assert any(text.endswith(f": first, after 1 try in {queue}") for text in tab.texts("#messages dd"))


def test_dead_letters_of_one_reason_are_shown_and_redriven(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    kill(client, ["broken", "broken", ARABIC])
    tab = open_tab(f"/#/{queue}")
    tab.await_true("document.querySelectorAll('#reasons li').length === 2")
    assert reasons(tab) == ["2", "broken", "1", ARABIC]
    tab.click("#reasons li:last-child button")
    tab.await_true("document.querySelector('#messages .text')?.dir === 'auto'")
    await_messages(tab, 1)
    assert tab.texts("#messages summary > .text") == [ARABIC]
    tab.click("#only")
    tab.click("#reasons li:first-child button:nth-child(2)")
    confirm(tab, "Redrive 2 dead letters?")
    tab.await_true("document.getElementById('said').textContent === 'Moved 2 dead letters back.'")
    tab.await_true("document.querySelectorAll('#reasons li').length === 1")
    assert (client.stats()["ready"], client.stats()["dead"]) == (2, 1)


@pytest.mark.parametrize("end", ["", ".dead"], ids=["origin", "dead-letter queue"])
def test_dead_letters_of_one_reason_are_deleted_at_either_end(
    open_tab: OpenTab, client: QueueClient, queue: str, end: str
) -> None:
    kill(client, ["broken", "broken", "other"])
    tab = open_tab(f"/#/{queue}{end}")
    tab.click("#reasons li:first-child .danger")
    confirm(tab, "Delete 2 dead letters?")
    tab.await_true("document.getElementById('said').textContent === 'Deleted 2 messages.'")
    tab.await_true("document.querySelectorAll('#reasons li').length === 1")
    assert [message.text for message in client.peek(queue=f"{queue}.dead")] == ["other"]


def test_deleting_a_queues_dead_letters_keeps_those_of_others_in_the_same_place(
    open_tab: OpenTab, server: LiveServer, client: QueueClient, queue: str
) -> None:
    client.put_settings({"dead_letter_queue": f"{queue}.all"})
    client.put_settings({"dead_letter_queue": f"{queue}.all"}, queue=f"{queue}.other")
    kill(client, ["broken"])
    with QueueClient(server.url, queue=f"{queue}.other") as other:
        kill(other, ["broken", "broken"])
        tab = open_tab(f"/#/{queue}")
        tab.click("#reasons .danger")
        confirm(tab, "Delete 1 dead letter?")
        tab.await_true("document.getElementById('said').textContent === 'Deleted 1 message.'")
        assert (client.stats()["dead"], other.stats()["dead"]) == (0, 2)


def test_the_selected_ones_are_redriven_and_deleted(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    kill(client, ["a", "b", "c", "d"])
    tab = open_tab(f"/#/{queue}.dead")
    await_messages(tab, 4)
    assert not tab.run("document.getElementById('delete-selected').checkVisibility()")
    tab.tab_to("it.ariaLabel?.startsWith('Select ')")  # the newest: d
    tab.press(" ")
    assert tab.run("document.getElementById('every').indeterminate")
    tab.click("#redrive-selected")
    confirm(tab, "Redrive 1 dead letter?")
    await_messages(tab, 3)
    assert [message.text for message in client.peek()] == ["d"]
    tab.click("#every")
    tab.run("boxes()[0].click()")  # all but c
    tab.click("#delete-selected")
    confirm(tab, "Delete 2 messages?")
    await_messages(tab, 1)
    assert [message.text for message in client.peek(queue=f"{queue}.dead")] == ["c"]
    assert tab.run("document.activeElement.id") == "heading"  # and not lost with the button


def test_one_is_redriven_and_one_deleted_after_a_question(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    kill(client, ["a", "b"])
    a, b = [message.id for message in client.peek(queue=f"{queue}.dead")]
    tab = open_tab(f"/#/{queue}.dead")
    await_messages(tab, 2)
    tab.click("#messages summary")
    tab.click(".actions .danger")
    tab.await_true("document.getElementById('confirming').open")
    tab.press("Enter")  # on Cancel
    tab.await_true("!document.getElementById('confirming').open")
    tab.click(".actions .danger")
    confirm(tab, f"Delete message {b} of {queue}.dead?")
    await_messages(tab, 1)
    tab.click("#messages summary")
    tab.click(".actions button")
    confirm(tab, f"Redrive message {a} of {queue}.dead?")
    await_messages(tab, 0)
    assert [message.text for message in client.peek()] == ["a"]


def test_all_dead_letters_are_redriven(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    kill(client, ["x", "y"])
    tab = open_tab(f"/#/{queue}")
    tab.tab_to("it.id === 'redrive'")
    tab.press("Enter")
    confirm(tab, f"Redrive 2 dead letters of {queue}?")
    tab.await_true("document.getElementById('said').textContent === 'Moved 2 dead letters back.'")
    await_messages(tab, 2)
    assert (client.stats()["ready"], client.stats()["dead"]) == (2, 0)


def test_a_leased_message_shows_until_when_and_by_whom(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.send("x")
    client.receive(lease=600)
    tab = open_tab(f"/#/{queue}")
    await_messages(tab, 1)
    (held,) = tab.texts("#messages .why")
    assert re.fullmatch(r"leased until [0-9:]{8} by 127\.0\.0\.1", held)
    tab.click("#messages summary")
    tab.click(".actions .danger")
    tab.click("#confirming [type=submit]")
    tab.await_true("document.querySelector('#confirming .wrong').textContent.includes('Wait until its lease ends')")
    assert client.stats()["leased"] == 1
    tab.faults.clear()  # Chromium's own line for a 409


def test_messages_are_found_by_text_key_and_id_the_newest_first(
    open_tab: OpenTab, client: QueueClient, queue: str
) -> None:
    client.send_many([{"text": "needle 1", "key": "k"}, *["hay"] * 3_000, {"text": "needle 2"}, "hay"])
    tab = open_tab(f"/#/{queue}")
    await_messages(tab, 25)

    def find(by: str, wanted: str) -> list[str]:
        tab.run(f"document.getElementById('by').value = '{by}'; document.getElementById('wanted').focus()")
        tab.run("document.getElementById('wanted').select()")
        tab.type(wanted)
        tab.press("Enter")
        tab.await_true("!document.querySelector('[aria-busy]')")
        return tab.texts("#messages summary > .text")

    assert find("text", "needle") == ["needle 2", "needle 1"]
    assert find("key", "k") == ["needle 1"]
    assert find("text", "Needle") == []
    assert tab.texts("#nothing") == ["No message matches."]
    (newest,) = client.peek(limit=1, before="9223372036854775807")
    assert newest.id is not None
    assert find("id", newest.id) == ["hay"]
    assert tab.texts("#messages .mono:first-child") == [newest.id]
    assert find("id", str(int(newest.id) + 1)) == []
    find("id", "x")
    assert tab.texts("#fault") == ["An id is a whole number."]
    assert find("key", "k") == ["needle 1"]
    assert not tab.run("document.getElementById('failed').checkVisibility()")
    find("id", "x")
    tab.click("#back")
    assert not tab.run("document.getElementById('failed').checkVisibility()")


def test_a_search_stays_in_the_address(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.send_many(["a & b #1", "other", "a & b #2"])
    tab = open_tab(f"/#/{queue}")
    await_messages(tab, 3)
    tab.choose("#order", "after")
    tab.choose("#wanted", "a & b #")
    tab.click("#search button")
    await_messages(tab, 2)
    address = tab.run("location.href")
    tab.command("Page.reload")
    tab.await_true("performance.getEntriesByType('navigation')[0].type === 'reload'")
    await_messages(tab, 2)
    assert tab.texts("#messages summary > .text") == ["a & b #1", "a & b #2"]
    assert tab.run("[document.getElementById('wanted').value, document.getElementById('order').value]") == [
        "a & b #",
        "after",
    ]
    tab.run(f"location.hash = '#/{queue}?state=leased'")  # a link to another search in the same queue
    await_messages(tab, 0)
    assert tab.run("document.getElementById('wanted').value") == ""
    other = open_tab("/")
    other.open(address)
    await_messages(other, 2)


LONG = "the picture cannot be read, since " + "it is no picture, " * 26  # 502 characters


def test_a_long_reason_is_folded_and_its_filter_can_be_left(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    kill(client, [LONG, "other"])
    tab = open_tab(f"/#/{queue}.dead", width=390, height=844)
    tab.await_true("document.querySelectorAll('#reasons li').length === 2")
    tab.run(f"showOnly({LONG!r})")
    await_messages(tab, 1)
    text = f"document.querySelector('#reasons .text[title=\"{LONG}\"]')"
    assert tab.run(f"{text}.clientHeight <= 3.1 * parseFloat(getComputedStyle({text}).lineHeight)")
    assert tab.run("document.documentElement.scrollWidth") == 390
    # The cross that removes the filter is in view.
    assert tab.run("""(() => {
        const button = document.getElementById("only"), range = document.createRange();
        range.selectNode(button.lastChild);
        return button.textContent.endsWith("✕") && range.getBoundingClientRect().width > 0
            && range.getBoundingClientRect().right <= Math.min(innerWidth, button.getBoundingClientRect().right);
    })()""")
    # Once none has this reason any more, the others are shown.
    tab.click("#messages input")
    tab.click("#delete-selected")
    confirm(tab, "Delete 1 message?")
    tab.await_true("document.querySelector('#messages .why .dead')?.textContent === 'other'")
    assert not tab.run("document.getElementById('only').checkVisibility()")


def test_a_redrive_states_how_many_at_either_end(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    kill(client, ["x", "y"])
    tab = open_tab(f"/#/{queue}.dead")
    tab.click("#redrive")
    confirm(tab, f"Redrive 2 dead letters of {queue}.dead?")
    tab.await_true("document.getElementById('said').textContent === 'Moved 2 dead letters back.'")
    tab.click("#redrive")
    tab.await_true("document.getElementById('said').textContent === 'This queue has no dead letters to redrive.'")


def test_next_searches_on_where_a_slow_search_stopped(open_tab: OpenTab, client: QueueClient, queue: str) -> None:
    client.send_many(["needle", *["hay"] * 9_999])
    client.send_many(["hay"] * 5_000)
    tab = open_tab(f"/#/{queue}")
    await_messages(tab, 25)
    tab.run("""(() => { const real = fetch; window.fetch = async (path, options) => {
        if (path.includes("text=")) await new Promise((done) => setTimeout(done, 2 * EVERY));
        return real(path, options);
    }; })()""")
    tab.choose("#wanted", "needle")
    tab.click("#search button")
    tab.await_true("document.getElementById('nothing').textContent === 'Nothing found so far. Next searches on.'")
    tab.click("#after")
    await_messages(tab, 1)
    assert tab.texts("#messages summary > .text") == ["needle"]
