"""Test both clients on a real service: sending, reading, settling, and lost replies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clients import (
    BadRequest,
    MessageLeased,
    NotFound,
    PreconditionFailed,
    QueueClient,
    QueueFull,
    StaleReceipt,
    Unavailable,
    Unreachable,
)
from clients.messages import Message
from settings import VERSION
from tests.clients.connect import Connect, both_clients
from tests.support.live import FaultProxy, LiveServer

# Sent messages are received.


@both_clients
def test_a_message_comes_back_with_its_id_and_time(client: QueueClient) -> None:
    sent = client.send("hello")
    (message,) = client.receive()
    assert (message.text, message.id, message.queue) == ("hello", sent, client.queue)
    assert message.sent_at is not None
    assert abs(message.sent_at.timestamp() - time.time()) < 60
    assert client.receive() == []


@both_clients
def test_a_message_comes_back_with_its_whole_envelope(client: QueueClient) -> None:
    attributes = {"n": 1, "x": 0.5, "yes": True, "none": None, "s": "é"}
    client.send("t", key="k", priority=7, recipient="me", attributes=attributes, delay=0, ttl=60, dedup_id="d")
    assert client.receive() == []
    (message,) = client.receive(recipient="me", lease=30)
    assert (message.key, message.priority, message.recipient, message.attributes) == ("k", 7, "me", attributes)
    assert (message.delay, message.ttl, message.dedup_id) == (0, 60, "d")
    assert message.receive_count == 1
    assert message.leased_until is not None


@both_clients
@pytest.mark.parametrize(
    "text", ["", "\0", "\r\n\f\x85\u2028\u2029", "\U0001f600 é \uffff", '"\\', "exit", "x" * 300_000]
)
def test_any_text_comes_back_exactly(client: QueueClient, text: str) -> None:
    client.send(text)
    assert [message.text for message in client.receive()] == [text]


@both_clients
def test_a_lone_surrogate_is_refused_before_it_is_sent(client: QueueClient) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        client.send("\ud800")


@both_clients
def test_a_batch_keeps_its_order(client: QueueClient) -> None:
    texts = [str(n) for n in range(1000)]
    ids = client.send_many(texts)
    assert [int(number) for number in ids] == sorted({int(number) for number in ids})
    assert [message.text for message in client.receive(limit=1000)] == texts


@both_clients
def test_a_batch_with_one_bad_message_stores_none_and_names_it(client: QueueClient) -> None:
    with pytest.raises(BadRequest) as refusal:
        client.send_many(["good", {"text": "bad", "priority": 10}])
    assert (refusal.value.status, refusal.value.field, refusal.value.index) == (400, "priority", 1)
    assert refusal.value.document["code"] == refusal.value.code
    assert client.receive() == []


@both_clients
def test_an_empty_batch_sends_no_request(connect: Connect) -> None:
    assert connect("http://127.0.0.1:1").send_many([]) == []


# Ambiguous arguments are refused before any request.


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("receive", {"limit": 2, "laese": 30}),
        ("receive", {"recipent": "me"}),
        ("receive", {"wat": 5}),
        ("receive_runs", {"lease": 30, "foo": 1}),
        ("consume", {"idel": 5}),
        ("ack_and_receive_runs", {"messages": [], "lease": 30, "leese": 30}),
        ("work", {"handler": print, "idel": 5}),
        ("send", {"text": "x", "prority": 5}),
    ],
)
@both_clients
def test_a_misspelt_keyword_is_refused_and_takes_no_message(
    client: QueueClient, call: str, arguments: dict[str, object]
) -> None:
    client.send("precious")
    with pytest.raises(TypeError, match="unexpected keyword"):
        getattr(client, call)(**arguments)
    assert [message.text for message in client.peek()] == ["precious"]


@pytest.mark.parametrize(
    ("call", "arguments", "error"),
    [
        ("receive", {"queue": "a", "queues": ["b"]}, "use either queue or queues"),
        ("receive_runs", {"lease": 30, "queue": "a", "queues": ["b"]}, "use either queue or queues"),
        ("consume", {"queue": "a", "queues": ["b"]}, "use either queue or queues"),
        ("receive", {"queues": []}, "queues is empty"),
        ("receive", {"queue": ""}, "name is empty"),
        ("send", {"text": "x", "queue": ""}, "name is empty"),
    ],
)
@both_clients
def test_an_ambiguous_queue_is_refused(
    client: QueueClient, call: str, arguments: dict[str, object], error: str
) -> None:
    client.send("precious")
    with pytest.raises(ValueError, match=error):
        getattr(client, call)(**arguments)
    assert [message.text for message in client.peek()] == ["precious"]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("send_many", {"messages": "abc"}),
        ("send_many", {"messages": b"abc"}),
        ("send_many", {"messages": {"text": "abc"}}),
        ("transact", {"send": "abc"}),
        ("transact", {"ack": "abc~1~2"}),
        ("ack_many", {"messages": "abc~1~2"}),
        ("receive", {"queues": "abc"}),
    ],
)
@both_clients
def test_one_string_is_not_treated_as_a_list_of_its_letters(
    client: QueueClient, call: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match=r"this must be a list, not \w+: put it in brackets"):
        getattr(client, call)(**arguments)
    assert client.peek() == []


@both_clients
def test_a_waiting_reader_gets_a_message_when_it_is_sent(client: QueueClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.receive, wait=10)
        time.sleep(0.1)
        start = time.monotonic()
        client.send("at last")
        assert [message.text for message in waiting.result()] == ["at last"]
        assert time.monotonic() - start < 2


@both_clients
def test_a_reader_waits_no_longer_than_it_said(client: QueueClient) -> None:
    start = time.monotonic()
    assert client.receive(wait=0.2) == []
    assert 0.2 <= time.monotonic() - start < 2


@both_clients
def test_several_queues_are_read_in_the_order_of_preference(client: QueueClient, queue: str) -> None:
    client.send("later", queue=f"{queue}.low")
    client.send("first", queue=f"{queue}.high")
    read = [client.receive(queues=[f"{queue}.high", f"{queue}.low"], lease=10)[0] for _ in range(2)]
    assert [(message.text, message.queue) for message in read] == [
        ("first", f"{queue}.high"),
        ("later", f"{queue}.low"),
    ]


@both_clients
def test_many_threads_can_share_a_client(client: QueueClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda n: client.send(str(n)), range(200)))
    assert len(set(ids)) == 200
    assert sorted(int(message.text) for message in client.receive(limit=200)) == list(range(200))


# Settling.


@both_clients
def test_an_acked_message_is_deleted_and_cannot_be_acked_again(client: QueueClient) -> None:
    client.send("once")
    (message,) = client.receive(lease=30)
    message.ack()
    with pytest.raises(NotFound):
        message.ack()
    assert client.stats()["acked"] == 1


@both_clients
def test_a_released_message_is_redelivered_at_once(client: QueueClient) -> None:
    client.send("again")
    client.receive(lease=30)[0].release()
    (message,) = client.receive(lease=30)
    assert message.receive_count == 2


@both_clients
def test_a_message_released_with_a_delay_is_redelivered_after_it(client: QueueClient) -> None:
    client.send("later")
    client.receive(lease=30)[0].release(delay=0.3)
    assert client.receive(lease=30) == []
    assert [message.text for message in client.receive(lease=30, wait=5)] == ["later"]


@both_clients
def test_a_late_worker_cannot_ack_a_message_leased_again(client: QueueClient) -> None:
    client.send("mine")
    (late,) = client.receive(lease=1)
    (holder,) = client.receive(lease=30, wait=5)
    with pytest.raises(StaleReceipt):
        late.ack()
    holder.ack()


@both_clients
def test_an_extended_lease_does_not_end_at_its_first_end(client: QueueClient) -> None:
    client.send("long")
    (message,) = client.receive(lease=1)
    message.extend(30)
    assert client.receive(lease=1, wait=1.2) == []


@both_clients
def test_ack_many_reports_stale_and_missing_receipts(client: QueueClient) -> None:
    client.send_many(["stale", "gone", "good"])
    stale, gone, good = client.receive(limit=3, lease=30)
    gone.ack()
    stale.release()
    client.receive(lease=30)
    result = client.ack_many([stale, gone, good])
    assert (result.acked, result.stale, result.missing) == (1, [stale.receipt], [gone.receipt])


@both_clients
def test_a_message_read_without_a_lease_cannot_be_settled(client: QueueClient) -> None:
    client.send("gone")
    with pytest.raises(ValueError, match="without a lease"):
        client.ack_many(client.receive())  # type: ignore[arg-type]


# Runs


@both_clients
def test_runs_are_received_and_acked_in_columns(client: QueueClient) -> None:
    sent = client.send_many([str(number) for number in range(250)])
    client.send("urgent", priority=5, attributes={"n": 1})
    runs = client.receive_runs(limit=230, lease=30)
    assert [text for run in runs for text in run.texts] == ["urgent", *map(str, range(229))]
    assert [len(run) for run in runs] == [1, 100, 100, 29]
    assert [id for run in runs[1:] for id in range(run.id, run.id + len(run))] == list(map(int, sent[:229]))
    assert {(run.queue, run.receive_count) for run in runs} == {(client.queue, 1)}
    assert [run.attributes for run in runs] == [{"n": [1]}, {}, {}, {}]
    result, rest = client.ack_and_receive_runs([run.receipt for run in runs], lease=30)
    assert (result.acked, [text for run in rest for text in run.texts]) == (230, list(map(str, range(229, 250))))
    assert client.ack_many(run.receipt for run in rest).acked == 21
    assert client.stats()["acked"] == 251


@both_clients
def test_a_run_has_a_receipt_for_each_of_its_messages(client: QueueClient) -> None:
    client.send_many(list("abcdefghij"))
    (run,) = client.receive_runs(lease=30)
    assert len(run.receipts) == 10
    client.ack(run.receipts[2])
    client.release(run.receipts[4])
    assert client.receive(lease=30)[0].text == "e"
    result = client.ack_many([run.receipt])
    assert (result.acked, result.stale, result.missing) == (8, [run.receipts[4]], [run.receipts[2]])


@both_clients
def test_a_late_ack_of_a_run_is_reported_and_the_next_run_is_read(client: QueueClient) -> None:
    client.send_many(list("abcdefghij"))
    (run,) = client.receive_runs(lease=30)
    client.ack(run.receipts[0])
    client.send_many(list("klmnopqrst"))
    result, (following,) = client.ack_and_receive_runs([run.receipt], lease=30)
    assert (result.acked, result.stale, result.missing) == (9, [], [run.receipts[0]])
    assert "".join(following.texts) == "klmnopqrst"


@both_clients
def test_receipts_of_many_messages_are_acked_in_requests_of_allowed_size(client: QueueClient) -> None:
    count = 25_000
    for _ in range(0, count, 5_000):
        client.send_many(["x"] * 5_000)
    runs = [run for _ in range(0, count, 1_000) for run in client.receive_runs(lease=60)]
    assert client.ack_many(run.receipt for run in runs).acked == count
    assert client.ack_many(["a~b~c~d", "no receipt", "q~1~-~2"]).acked == 0


@both_clients
def test_runs_of_several_queues_and_of_a_recipient(client: QueueClient) -> None:
    client.send_many([{"text": "for Ada", "recipient": "Ada"}, {"text": "x", "attributes": {"n": 1}}])
    client.send_many(["y"] * 9, queue=f"{client.queue}-2")
    (run,) = client.receive_runs(lease=30, recipient="Ada")
    assert run.texts == ["for Ada"]
    several = client.receive_runs(lease=30, queues=[f"{client.queue}-2", client.queue])
    assert [(run.queue, run.texts) for run in several] == [(f"{client.queue}-2", ["y"] * 9), (client.queue, ["x"])]
    assert client.receive_runs(lease=30, wait=0.1) == []
    client.delete_queue(f"{client.queue}-2")


# consume


@both_clients
def test_consume_acks_each_message_when_the_loop_asks_for_the_next(client: QueueClient) -> None:
    client.send_many(["a", "b", "c"])
    left = [(message.text, client.stats()["acked"]) for message in client.consume(lease=30, idle=0)]
    assert left == [("a", 0), ("b", 1), ("c", 2)]
    assert client.stats()["acked"] == 3


@both_clients
def test_the_body_can_settle_a_message_itself(client: QueueClient) -> None:
    client.send_many(["release", "ack"])
    for message in client.consume(lease=30, idle=0):
        message.release(delay=60) if message.text == "release" else message.ack()
    counts = client.stats()
    assert (counts["acked"], counts["delayed"]) == (1, 1)


@both_clients
def test_slow_work_keeps_its_lease(client: QueueClient) -> None:
    client.send("slow")
    for _ in client.consume(lease=1, idle=0):
        assert client.receive(lease=1, wait=1.8) == []
    assert client.stats()["acked"] == 1


@both_clients
def test_consume_continues_after_it_lost_a_lease(client: QueueClient) -> None:
    client.send_many(["purged", "next"])
    seen = []
    for message in client.consume(lease=30, idle=0):
        seen.append(message.text)
        if message.text == "purged":
            client.purge()
            client.send("after")
    assert seen == ["purged", "after"]


@both_clients
def test_the_last_message_is_acked_before_the_next_one_is_waited_for(client: QueueClient) -> None:
    client.send("only")
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(lambda: [message.text for message in client.consume(lease=30, idle=1.5)])
        time.sleep(0.7)
        assert client.stats()["acked"] == 1
        assert working.result() == ["only"]


# Transactions.


@both_clients
def test_a_transaction_acks_the_input_and_sends_the_output(client: QueueClient, queue: str) -> None:
    client.send("raw")
    for message in client.consume(lease=30, idle=0):
        reply = message.complete(send=[{"text": message.text + " done", "queue": f"{queue}.out"}])
        assert len(reply.ids) == 1
    assert client.stats()["acked"] == 1
    assert [message.text for message in client.receive(queue=f"{queue}.out")] == ["raw done"]


@both_clients
def test_a_late_worker_sends_no_output(client: QueueClient, queue: str) -> None:
    client.send("raw")
    (late,) = client.receive(lease=30)
    late.release()
    (holder,) = client.receive(lease=30)
    with pytest.raises(StaleReceipt):
        late.complete(send=[{"text": "twice", "queue": f"{queue}.out"}])
    holder.complete(send=[{"text": "once", "queue": f"{queue}.out"}])
    assert [message.text for message in client.receive(queue=f"{queue}.out", limit=10)] == ["once"]


@both_clients
def test_a_transaction_can_receive_the_next_messages(client: QueueClient) -> None:
    client.send_many(["first", "second"])
    (first,) = client.receive(lease=30)
    reply = client.transact(ack=[first], send=["third"], receive={"limit": 5, "lease": 30})
    assert [message.text for message in reply.messages] == ["second", "third"]
    assert [message.id for message in reply.messages][1:] == reply.ids


# Queues.


@both_clients
def test_peek_shows_messages_and_changes_nothing(client: QueueClient) -> None:
    client.send_many(["a", "b"])
    client.receive(lease=30)
    shown = client.peek()
    assert [(message.text, message.state) for message in shown] == [("a", "leased"), ("b", "ready")]
    assert client.peek(after=shown[0].id, limit=5) == shown[1:]
    assert [message.text for message in client.peek(state="ready")] == ["b"]
    assert client.stats()["received"] == 1


@both_clients
def test_a_queue_is_counted_purged_and_deleted(client: QueueClient, queue: str) -> None:
    client.send_many(["a", "b"])
    assert client.stats()["ready"] == 2
    assert client.queues()[queue].keys() == client.stats().keys()
    assert client.purge() == 2
    client.delete_queue()
    with pytest.raises(NotFound) as refusal:
        client.stats()
    assert (refusal.value.code, refusal.value.queue) == ("queue_not_found", queue)


@both_clients
def test_settings_are_kept_and_guarded_by_their_etag(client: QueueClient, connect: Connect) -> None:
    client.put_settings({"lease": 5, "max_messages": 1})
    settings, tag = client.settings()
    assert (settings["lease"], settings["max_messages"]) == (5, 1)
    client.put_settings({"lease": 6}, if_match=tag)
    with pytest.raises(PreconditionFailed):
        client.put_settings({"lease": 7}, if_match=tag)
    client.send("fits")
    with pytest.raises(QueueFull) as refusal, connect(queue=client.queue, retry_for=0) as hasty:
        hasty.send("too many")
    assert refusal.value.queue == client.queue


@both_clients
def test_a_rejected_message_is_dead_until_it_is_redriven(client: QueueClient, queue: str) -> None:
    client.send("poison")
    client.receive(lease=30)[0].reject("does not parse")
    assert client.receive(lease=30) == []
    (dead,) = client.peek(queue=f"{queue}.dead")
    assert (dead.text, dead.state) == ("poison", "ready")
    assert "does not parse" in dead.attributes.values()
    assert client.redrive(queue=f"{queue}.dead") == 1
    assert [message.text for message in client.receive(lease=30)] == ["poison"]


@both_clients
def test_a_message_is_shown_moved_and_removed_by_its_id(client: QueueClient, queue: str) -> None:
    first, second, third = client.send_many([{"text": "a", "delay": 600}, {"text": "b"}, {"text": "c"}])
    assert (client.message(first).text, client.message(first).state) == ("a", "delayed")
    client.reschedule(first, 0)
    client.dead_letter(second, reason="not wanted")
    client.delete_message(third)
    assert [(message.text, message.state) for message in client.peek()] == [("a", "ready")]
    (held,) = client.receive(lease=30)
    with pytest.raises(MessageLeased):
        client.delete_message(first)
    held.release()
    with pytest.raises(NotFound):
        client.message(third)
    with pytest.raises(ValueError, match="not the id of a message"):
        client.delete_message(held.receipt)


@both_clients
def test_a_duplicate_is_reported_with_the_first_ones_id(client: QueueClient) -> None:
    first = client.send("a", dedup_id="d")
    again = client.send("another", dedup_id="d")
    assert (again, first.duplicate, again.duplicate) == (first, False, True)
    several = client.send_many([{"text": "b"}, {"text": "c", "dedup_id": "d"}])
    assert (several[1], several.duplicates) == (first, [1])
    assert client.transact(send=[{"text": "d", "dedup_id": "d"}]).duplicates == [0]


@both_clients
def test_a_reader_for_any_recipient_gets_all(client: QueueClient) -> None:
    client.send_many([{"text": "a", "recipient": "Ada"}, {"text": "b"}, {"text": "c", "recipient": "Bob"}])
    with pytest.raises(ValueError, match="not both"):
        client.receive(recipient="Ada", any_recipient=True)
    (first,) = client.receive(lease=30, any_recipient=True)
    _, (second,) = client.ack_and_receive_runs([first], lease=30, limit=1, any_recipient=True)
    last = [message.text for message in client.consume(idle=0, any_recipient=True)]
    assert [first.text, *second.texts, *last] == ["a", "b", "c"]


@both_clients
def test_peek_pages_back_and_shows_one_key(client: QueueClient) -> None:
    ids = client.send_many([{"text": text, "key": text[0]} for text in ("a1", "b1", "a2", "b2")])
    assert [message.text for message in client.peek(before=ids[3], limit=2)] == ["a2", "b1"]
    assert [message.text for message in client.peek(key="b")] == ["b1", "b2"]


@both_clients
def test_a_search_goes_on_until_it_has_found_enough(client: QueueClient) -> None:
    client.send_many(["needle & pin", *["hay"] * 9_999])
    client.send_many([*["hay"] * 5_000, "needle & pin 2", "needle & pin 3"])
    found = client.peek(text="needle & pin", limit=3)
    assert [message.text for message in found] == ["needle & pin", "needle & pin 2", "needle & pin 3"]
    assert client.peek(text="needle & pin", limit=2) == found[:2]
    assert client.peek(text="needle & pin", before=str(2**60), after=found[0].id) == found[:0:-1]
    assert client.peek(text="Needle") == []


@both_clients
def test_reasons_are_counted_and_some_messages_purged(client: QueueClient, queue: str) -> None:
    client.send_many(["a", "b", "c", "d"])
    for message, reason in zip(client.receive(limit=3, lease=60), ("bad", "bad", "worse"), strict=True):
        message.reject(reason)
    found = client.reasons()
    assert [(one["reason"], one["dead_letters"]) for one in found["reasons"]] == [("bad", 2), ("worse", 1)]
    assert (found["complete"], client.reasons(f"{queue}.dead")) == (True, found)
    first, _ = client.peek(queue=f"{queue}.dead", reason="bad")
    assert client.purge(f"{queue}.dead", ids=[first.id or "", "999999999"]) == 1
    assert client.purge(f"{queue}.dead", reason="bad") == 1
    assert [message.text for message in client.peek(queue=f"{queue}.dead")] == ["c"]
    assert client.purge() == 1
    with pytest.raises(TypeError):
        client.purge(ids="17")
    with pytest.raises(NotFound):
        client.reasons("nothing-here")


@both_clients
def test_the_status_counts_what_the_service_did(client: QueueClient) -> None:
    before = client.status()
    client.send("a")
    after = client.status()
    assert (before["version"], before["engine"]) == (VERSION, "sqlite")
    assert after["requests"] > before["requests"]
    assert after["commits"] > before["commits"]
    assert after["started_at"] == before["started_at"]


@both_clients
def test_some_dead_letters_are_redriven_by_id_or_reason(client: QueueClient, queue: str) -> None:
    ids = client.send_many(["a", "b", "c"])
    for id, reason in zip(ids, ["late", "broken", "late"], strict=True):
        client.dead_letter(id, reason=reason)
    dead = f"{queue}.dead"
    assert client.redrive(queue=dead, reason="broken") == 1
    assert client.redrive(queue=dead, ids=[client.peek(queue=dead)[1].id or ""]) == 1
    assert sorted(message.text for message in client.peek()) == ["b", "c"]


@both_clients
def test_queues_are_listed_by_their_prefix(client: QueueClient, queue: str) -> None:
    for name in ("a", "b"):
        client.send("x", queue=f"{queue}-{name}")
    assert list(client.queues(f"{queue}-")) == [f"{queue}-a", f"{queue}-b"]


# Replies that are lost.


@both_clients
def test_a_send_whose_reply_was_lost_stores_once(proxy: FaultProxy, proxied: QueueClient) -> None:
    proxy.losing = 2
    sent = proxied.send("once")
    assert proxy.requests == 3
    assert [message.id for message in proxied.peek()] == [sent]


@both_clients
def test_a_batch_whose_reply_was_lost_is_stored_once(proxy: FaultProxy, proxied: QueueClient) -> None:
    proxy.losing = 1
    ids = proxied.send_many(["a", "b"])
    assert [message.id for message in proxied.peek()] == ids


@both_clients
def test_a_plain_read_whose_reply_was_lost_loses_no_message(proxy: FaultProxy, proxied: QueueClient) -> None:
    proxied.send_many(["first", "second"])
    proxy.losing = 1
    assert [message.text for message in proxied.receive()] == ["first"]
    assert [message.text for message in proxied.receive()] == ["second"]


@both_clients
def test_an_ack_whose_reply_was_lost_is_done(proxy: FaultProxy, proxied: QueueClient) -> None:
    proxied.send_many(["a", "b"])
    first, second = proxied.receive(limit=2, lease=30)
    proxy.losing = 1
    first.ack()
    proxy.losing = 1
    assert proxied.ack_many([second]).missing == []
    assert proxied.stats()["acked"] == 2


@both_clients
def test_a_transaction_whose_reply_was_lost_is_done_once(proxy: FaultProxy, proxied: QueueClient) -> None:
    proxied.send("in")
    (message,) = proxied.receive(lease=30)
    proxy.losing = 1
    reply = message.complete(send=["out"])
    assert [left.id for left in proxied.peek()] == reply.ids


@both_clients
def test_consume_continues_after_a_lost_reply(proxy: FaultProxy, proxied: QueueClient) -> None:
    proxied.send_many([str(n) for n in range(4)])
    seen = set()
    for message in proxied.consume(lease=1, idle=1.1):
        seen.add(message.text)
        proxy.losing = len(seen) % 2
    assert seen == {"0", "1", "2", "3"}
    assert proxied.peek() == []


@both_clients
def test_a_call_that_is_never_answered_ends_with_unreachable(connect: Connect, proxy: FaultProxy) -> None:
    proxy.losing = 1000
    with connect(proxy.url, retry_for=0.3) as client:
        start = time.monotonic()
        with pytest.raises(Unreachable, match=r"does not answer: the connection broke"):
            client.send("?")
    assert time.monotonic() - start < 3
    assert proxy.requests > 2


@both_clients
def test_a_service_that_does_not_run_is_unreachable(connect: Connect) -> None:
    refused = pytest.raises(Unreachable, match="connection refused")
    with connect("http://127.0.0.1:1", retry_for=0.1) as client, refused:
        client.receive()


@both_clients
def test_an_unavailable_service_is_retried_for_all_of_retry_for(connect: Connect) -> None:
    start = time.monotonic()
    with connect("http://127.0.0.1:1", retry_for=0.7) as client, pytest.raises(Unreachable):
        client.send("?")
    assert 0.7 <= time.monotonic() - start < 2


@both_clients
def test_a_send_outlives_a_restart_of_the_service(connect: Connect) -> None:
    with LiveServer() as server, connect(server.url, retry_for=20) as client:
        client.send("before")
        server.kill()
        restarting = threading.Timer(0.5, server.start)
        restarting.start()
        client.send("after")
        restarting.join()
        assert [message.text for message in client.receive(limit=10)] == ["before", "after"]


# Replies with Retry-After, from a stand-in for a busy service.


@contextmanager
def answering(*replies: tuple[int, dict[str, str], object]) -> Iterator[tuple[str, list[tuple[float, str | None]]]]:
    """Serve these replies in turn. Yield the URL, and the times and Idempotency-Keys of the requests."""
    asked: list[tuple[float, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, document = replies[min(len(asked), len(replies) - 1)]
            asked.append((time.monotonic(), self.headers["Idempotency-Key"]))
            body = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as stand_in:
        threading.Thread(target=stand_in.serve_forever, args=[0.01]).start()
        try:
            yield f"http://127.0.0.1:{stand_in.server_port}", asked
        finally:
            stand_in.shutdown()


BUSY = (503, {"Retry-After": "0.3"}, {"title": "The service is busy", "code": "busy"})
FULL = (429, {"Retry-After": "30"}, {"title": "The queue is full", "detail": "no more", "code": "queue_full"})


@both_clients
def test_a_call_to_a_busy_service_is_retried_after_retry_after_with_the_same_key(connect: Connect) -> None:
    with answering(BUSY, (200, {}, {"id": "1"})) as (url, asked), connect(url) as client:
        assert client.send("patience") == "1"
    (first, key), (second, key_again) = asked
    assert second - first >= 0.3
    assert key == key_again is not None


@both_clients
def test_queues_are_listed_to_the_last_page(connect: Connect) -> None:
    pages: list[object] = [{"queues": [{"queue": name, "stats": {}}], "next": name} for name in ("a", "b")]
    replies: list[tuple[int, dict[str, str], object]] = [(200, {}, page) for page in [*pages, {"queues": []}]]
    with answering(*replies) as (url, asked), connect(url) as client:
        assert list(client.queues()) == ["a", "b"]
    assert len(asked) == 3


@both_clients
@pytest.mark.parametrize("status", [502, 503, 504])
def test_an_ack_with_a_lost_reply_that_finds_no_message_on_retry_is_done(status: int, connect: Connect) -> None:
    gone: tuple[int, dict[str, str], object] = (404, {}, {"code": "message_not_found"})
    with answering((status, {}, None), gone) as (url, asked), connect(url) as client:
        client.ack("q~1~2")
    assert len(asked) == 2


@both_clients
def test_an_ack_that_was_refused_and_finds_no_message_on_retry_was_not_done(connect: Connect) -> None:
    gone: tuple[int, dict[str, str], object] = (404, {}, {"code": "message_not_found"})
    with answering(BUSY, gone) as (url, _), connect(url) as client, pytest.raises(NotFound):
        client.ack("q~1~2")


@both_clients
def test_a_full_queue_is_an_error_when_there_is_no_time_to_wait(connect: Connect) -> None:
    refused = pytest.raises(QueueFull, match="no more")
    with answering(FULL) as (url, asked), connect(url, retry_for=5) as client, refused as refusal:
        client.send("too much")
    assert (refusal.value.code, refusal.value.retry_after, len(asked)) == ("queue_full", 30, 1)


@both_clients
def test_an_error_without_a_problem_document_is_quoted(connect: Connect) -> None:
    quoted = pytest.raises(Unavailable, match="HTTP 500")
    with answering((500, {}, None)) as (url, _), connect(url) as client, quoted:
        client.stats()


@both_clients
def test_a_reader_that_could_not_wait_retries_after_retry_after(connect: Connect) -> None:
    no_place = (204, {"Retry-After": "0.3"}, None)
    with answering(no_place, (200, {"Message-Id": "5"}, {"text": "hi"})) as (url, asked), connect(url) as client:
        assert client.receive(wait=5) == [Message(text="hi", queue="default", id="5")]
    assert asked[1][0] - asked[0][0] >= 0.3
