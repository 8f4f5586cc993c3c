"""Test row 28 of docs/reliability.md: the most costly request of each route hardly delays others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from storage.model import Message, NewMessage
from storage.validation import MAX_BATCH, MAX_CHAIN, MAX_LIMIT, MAX_TRANSACTION_QUEUES
from tests.limits.bounds import (
    ANSWERED_IN,
    LOCKED_FOR,
    PATIENCE,
    Asking,
    Committing,
    Other,
    Request,
    Scene,
    answer,
    batched,
    encoded,
    fresh,
    ms,
    scene_on,
    seconds_of_a_batch,
)
from tests.support.figures import AddRow
from web.native.request import RUNS

ATTEMPTS = 6
LONG = [pytest.mark.slow, pytest.mark.torture]
BODY = 8 * 1024 * 1024 - 100  # bytes: just below the limit of a body
ANY_STATUS = range(200, 500)

# Each prepares a scene and returns the request; its name is the test's id.

Case = Callable[[Scene], Request]


def a_batch_of_every_field(scene: Scene) -> Request:
    each = [
        {"text": str(n), "key": f"{n}k" * 20, "recipient": f"{n}r" * 20, "dedup_id": f"{n}d" * 20, "priority": n % 10,
         "attributes": {f"a{m}": m for m in range(20)}, "ttl": 1_000_000 + n, "delay": n % 2}
        for n in range(MAX_BATCH)
    ]  # fmt: skip
    return Request("POST", f"/queues/{fresh()}/messages", encoded(each), beside="beside")


def a_message_of_50_000_attributes(scene: Scene) -> Request:
    attributes = {str(n): 0 for n in range(50_000)}
    return Request("POST", "/messages", encoded([{"text": "", "attributes": attributes}]), expected=(400, 413))


def a_run_of_50_000_attributes(scene: Scene) -> Request:
    body = encoded({"texts": [""], "attributes": {str(n): [0] for n in range(50_000)}})
    return Request("POST", "/messages", body, RUNS, expected=ANY_STATUS)


def a_body_of_empty_objects(scene: Scene) -> Request:
    return Request("POST", "/messages", b"[" + b",".join([b"{}"] * (BODY // 3)) + b"]", expected=ANY_STATUS)


def a_body_of_nothing_but_depth(scene: Scene) -> Request:
    return Request("POST", "/messages", b"[" * BODY, expected=ANY_STATUS)


def a_body_of_a_number(scene: Scene) -> Request:
    return Request("POST", "/messages", b'{"text": "", "priority": ' + b"9" * (BODY - 50) + b"}", expected=ANY_STATUS)


def lines_that_are_hardly_json(scene: Scene) -> Request:
    return Request("POST", "/messages", b"{}\n" * (BODY // 3), "application/x-ndjson", expected=ANY_STATUS)


def a_transaction_of_receipts_of_as_many_queues_as_it_may_have(scene: Scene) -> Request:
    names = many_queues(scene)[:MAX_TRANSACTION_QUEUES]
    receipts = [f"{names[n % len(names)]}~{10**9 + n}~abc" for n in range(MAX_BATCH)]
    return Request("POST", "/transactions", encoded({"ack": receipts}), expected=(404, 409))


def a_transaction_of_receipts_of_10_000_queues(scene: Scene) -> Request:
    names = many_queues(scene)
    receipts = [f"{names[n % len(names)]}~{10**9 + n}~abc" for n in range(MAX_BATCH)]
    return Request("POST", "/transactions", encoded({"ack": receipts}), expected=(400, 404, 409))


def a_transaction_of_messages_for_as_many_queues_as_it_may_have(scene: Scene) -> Request:
    names = [f"{fresh()}-{n}" for n in range(MAX_TRANSACTION_QUEUES)]
    sent = [{"queue": names[n % len(names)], "text": "", "key": str(n)} for n in range(MAX_BATCH)]
    return Request("POST", "/transactions", encoded({"send": sent}))


def a_transaction_of_one_receipt_of_each_packed_batch(scene: Scene) -> Request:
    return Request("POST", "/transactions", encoded({"ack": one_of_each_batch(scene)}), expected=(200, 400))


def an_ack_of_one_receipt_of_each_packed_batch(scene: Scene) -> Request:
    return Request("POST", "/messages/ack", encoded({"receipts": one_of_each_batch(scene)}))


def an_extension_of_one_receipt_of_each_packed_batch(scene: Scene) -> Request:
    body = encoded({"receipts": one_of_each_batch(scene), "lease": 60})
    return Request("POST", "/messages/extend", body, expected=(200, 400))


def an_ack_of_as_many_keys_as_receipts(scene: Scene) -> Request:
    scene.fill(queue := fresh(), MAX_BATCH * 2, key=lambda number: f"k{number % MAX_BATCH}")
    receipts = [message.receipt for message in scene.lease(queue, MAX_BATCH)]
    return Request("POST", "/messages/ack", encoded({"receipts": receipts}), beside=queue)


def an_extension_of_as_many_receipts_as_it_may_have(scene: Scene) -> Request:
    scene.fill(queue := fresh(), MAX_BATCH)
    receipts = [message.receipt for message in scene.lease(queue, MAX_BATCH)]
    return Request("POST", "/messages/extend", encoded({"receipts": receipts, "lease": 60}), beside=queue)


def an_extension_of_as_many_keyed_leases_that_have_ended(scene: Scene) -> Request:
    scene.fill(queue := fresh(), MAX_BATCH, key=str)
    receipts = [str(message.receipt) for message in scene.lease(queue, MAX_BATCH)]
    scene.store.extend_many(receipts, 0.1)
    deadline = time.monotonic() + PATIENCE
    while scene.store.queue(queue).stats.leased:
        assert time.monotonic() < deadline, "the leases do not end"
        time.sleep(0.1)
    return Request("POST", "/messages/extend", encoded({"receipts": receipts, "lease": 60}), beside=queue)


def a_purge_of_a_long_queue(scene: Scene) -> Request:
    scene.fill(queue := fresh(), key=lambda number: f"k{number % 1_000}", dedup_id=str)
    return Request("POST", f"/queues/{queue}/purge", beside=queue)


def a_purge_of_a_long_queue_of_packed_batches(scene: Scene) -> Request:
    scene.fill(queue := fresh(), priority=None)
    return Request("POST", f"/queues/{queue}/purge", beside=queue)


def a_deletion_of_a_long_queue(scene: Scene) -> Request:
    scene.fill(queue := fresh(), key=lambda number: f"k{number % 1_000}", dedup_id=str)
    return Request("DELETE", f"/queues/{queue}")


def a_redrive_of_one_of_many_dead_letters(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("POST", f"/queues/{queue}.dead/redrive", encoded({"limit": 1}), beside=queue)


def a_redrive_of_all_of_many_dead_letters(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("POST", f"/queues/{queue}/redrive", beside=queue)


def a_redrive_for_a_reason_that_none_died_of(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("POST", f"/queues/{queue}.dead/redrive", encoded({"reason": "none"}), beside=queue)


def a_redrive_of_10_000_ids(scene: Scene) -> Request:
    queue = dead_letters(scene)
    ids = [str(message.id) for _, message in zip(range(MAX_BATCH), everything(scene, f"{queue}.dead"), strict=False)]
    return Request("POST", f"/queues/{queue}.dead/redrive", encoded({"ids": ids}), beside=queue)


def a_peek_for_a_state_that_none_is_in(scene: Scene) -> Request:
    return Request("GET", f"/queues/{long_queue(scene)}/peek?limit=1000&state=leased", beside=long_queue(scene))


def a_peek_for_a_key_that_none_has(scene: Scene) -> Request:
    return Request("GET", f"/queues/{long_queue(scene)}/peek?limit=1000&key=none", beside=long_queue(scene))


def a_peek_for_a_state_of_a_key_of_a_long_queue(scene: Scene) -> Request:
    path = f"/queues/{long_queue(scene)}/peek?limit=1000&key=k1&state=delayed"
    return Request("GET", path, beside=long_queue(scene))


def a_search_for_a_text_that_none_has(scene: Scene) -> Request:
    return Request("GET", f"/queues/{long_queue(scene)}/peek?text={'none' * 250}", beside=long_queue(scene))


def a_search_in_large_texts_that_nearly_match(scene: Scene) -> Request:
    queue = large_texts(scene)
    return Request("GET", f"/queues/{queue}/peek?text={'a' * 1_000}b", beside=queue)


def a_search_for_a_reason_that_none_died_of(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("GET", f"/queues/{queue}.dead/peek?reason=none", beside=queue)


def a_search_for_a_reason_that_none_from_a_queue_died_of(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("GET", f"/queues/{queue}/peek?state=dead&reason=none&text=none", beside=queue)


def the_reasons_of_many_dead_letters(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("GET", f"/queues/{queue}/reasons", beside=queue)


def a_purge_of_all_of_many_dead_letters_of_a_reason(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("POST", f"/queues/{queue}.dead/purge", encoded({"reason": "expired"}), beside=queue)


def a_purge_for_a_reason_that_none_died_of(scene: Scene) -> Request:
    queue = dead_letters(scene)
    return Request("POST", f"/queues/{queue}.dead/purge", encoded({"reason": "none"}), beside=queue)


def a_purge_of_10_000_ids_of_a_long_queue(scene: Scene) -> Request:
    scene.fill(queue := fresh(), key=lambda number: f"k{number % 1_000}", dedup_id=str)
    ids = [str(message.id) for _, message in zip(range(MAX_BATCH), everything(scene, queue), strict=False)]
    return Request("POST", f"/queues/{queue}/purge", encoded({"ids": ids}), beside=queue)


def a_purge_of_one_id_of_each_packed_batch(scene: Scene) -> Request:
    scene.fill(queue := fresh(), scene.size * 5, priority=None)
    ids = [str(message.id) for message in everything(scene, queue)][::100]
    return Request("POST", f"/queues/{queue}/purge", encoded({"ids": ids}), beside=queue)


def the_status_beside_many_queues(scene: Scene) -> Request:
    many_queues(scene)
    return Request("GET", "/status")


def a_peek_behind_all(scene: Scene) -> Request:
    path = f"/queues/{long_queue(scene)}/peek?limit=1000&before={2**63 - 1}&after={2**63 - 2}"
    return Request("GET", path, beside=long_queue(scene))


def a_listing_of_many_queues(scene: Scene) -> Request:
    many_queues(scene)
    return Request("GET", "/queues?limit=1000")


def a_listing_of_a_prefix_behind_many_queues(scene: Scene) -> Request:
    many_queues(scene)
    return Request("GET", "/queues?limit=1000&prefix=m&after=zzz")


def metrics_of_many_queues(scene: Scene) -> Request:
    many_queues(scene)
    return Request("GET", "/metrics")


def readiness_beside_many_queues(scene: Scene) -> Request:
    many_queues(scene)
    return Request("GET", "/ready")


def a_read_of_many_queues_for_all_recipients(scene: Scene) -> Request:
    query = "&".join(f"queue={name}" for name in many_queues(scene)[:95])  # nearly the limit of fields in a query
    return Request("GET", f"/messages?{query}&recipients=any&limit=1000&lease=60&wait=1")


def a_read_for_all_of_many_recipients(scene: Scene) -> Request:
    scene.fill(queue := fresh(), recipient=lambda number: f"r{number}")
    return Request("GET", f"/queues/{queue}/messages?recipients=any&limit=1000&lease=60", beside=queue)


def a_read_behind_a_long_key_that_is_held(scene: Scene) -> Request:
    scene.fill(queue := fresh(), key="one")
    scene.lease(queue, 1, limit=1)
    return Request("GET", f"/queues/{queue}/messages?limit=1000&lease=60", beside=queue)


def a_read_of_a_thousand_large_keys(scene: Scene) -> Request:
    scene.fill(queue := fresh(), key=lambda number: f"k{number % 1_000}")
    return Request("GET", f"/queues/{queue}/messages?limit=1000&lease=60", beside=queue)


def a_read_of_a_long_queue_that_has_expired(scene: Scene) -> Request:
    scene.fill(queue := fresh(), ttl=0.5, key=lambda number: f"k{number % 1_000}")
    time.sleep(0.6)
    return Request("GET", f"/queues/{queue}/messages?limit=1000&lease=60", beside=queue)


def a_look_at_a_queue_whose_delays_have_all_ended(scene: Scene) -> Request:
    scene.fill(queue := fresh(), delay=0.5)
    time.sleep(0.6)
    return Request("GET", f"/queues/{queue}", beside=queue)


def a_settlement_of_one_of_a_packed_batch(scene: Scene) -> Request:
    scene.fill(queue := fresh(), MAX_BATCH, priority=None)
    receipt = scene.lease(queue, MAX_LIMIT)[MAX_LIMIT // 2].receipt
    return Request("DELETE", f"/messages/{receipt}", beside=queue)


def a_message_of_a_packed_batch_by_its_id(scene: Scene) -> Request:
    scene.fill(queue := fresh(), MAX_BATCH, priority=None)
    middle = scene.store.peek(queue, limit=MAX_LIMIT)[MAX_LIMIT // 2].id
    return Request("PATCH", f"/queues/{queue}/messages/{middle}", encoded({"delay": 60}), beside=queue)


def a_release_of_one_key_of_a_long_queue(scene: Scene) -> Request:
    scene.fill(queue := fresh(), key="one")
    receipt = scene.lease(queue, MAX_LIMIT)[0].receipt
    return Request("PATCH", f"/messages/{receipt}", encoded({"lease": 0}), beside=queue)


def a_change_of_every_setting_of_a_long_queue(scene: Scene) -> Request:
    scene.fill(queue := fresh())
    settings = {"retention": 1, "max_receives": 1, "lease": 1, "delay": 1, "dedup_window": 0, "max_messages": 1,
                "dead_letter_queue": "elsewhere", "dead_letter_expired": True, "expires": 1}  # fmt: skip
    return Request("PUT", f"/queues/{queue}", encoded(settings))


def a_chain_of_dead_letter_queues(scene: Scene) -> Request:
    name = fresh()
    for n in range(MAX_CHAIN - 20, 0, -1):  # the last one's default queues are of the chain too
        scene.store.configure(f"{name}-{n}", {"dead_letter_queue": f"{name}-{n + 1}"})
    return Request("PUT", f"/queues/{name}-0", encoded({"dead_letter_queue": f"{name}-1"}))


CASES: list[Case] = [
    a_batch_of_every_field, a_message_of_50_000_attributes, a_run_of_50_000_attributes, a_body_of_empty_objects,
    a_body_of_nothing_but_depth, a_body_of_a_number, lines_that_are_hardly_json,
    a_transaction_of_receipts_of_as_many_queues_as_it_may_have, a_transaction_of_receipts_of_10_000_queues,
    a_transaction_of_messages_for_as_many_queues_as_it_may_have, a_transaction_of_one_receipt_of_each_packed_batch,
    an_ack_of_one_receipt_of_each_packed_batch, an_extension_of_one_receipt_of_each_packed_batch,
    an_ack_of_as_many_keys_as_receipts, an_extension_of_as_many_receipts_as_it_may_have,
    an_extension_of_as_many_keyed_leases_that_have_ended, a_purge_of_a_long_queue,
    a_purge_of_a_long_queue_of_packed_batches, a_deletion_of_a_long_queue, a_redrive_of_one_of_many_dead_letters,
    a_redrive_of_all_of_many_dead_letters, a_redrive_for_a_reason_that_none_died_of, a_redrive_of_10_000_ids,
    a_peek_for_a_state_that_none_is_in, a_peek_for_a_key_that_none_has, a_peek_for_a_state_of_a_key_of_a_long_queue,
    a_search_for_a_text_that_none_has, a_search_in_large_texts_that_nearly_match,
    a_search_for_a_reason_that_none_died_of, a_search_for_a_reason_that_none_from_a_queue_died_of,
    the_reasons_of_many_dead_letters, a_purge_of_all_of_many_dead_letters_of_a_reason,
    a_purge_for_a_reason_that_none_died_of, a_purge_of_10_000_ids_of_a_long_queue,
    a_purge_of_one_id_of_each_packed_batch, the_status_beside_many_queues,
    a_peek_behind_all, a_listing_of_many_queues, a_listing_of_a_prefix_behind_many_queues, metrics_of_many_queues,
    readiness_beside_many_queues, a_read_of_many_queues_for_all_recipients, a_read_for_all_of_many_recipients,
    a_read_behind_a_long_key_that_is_held, a_read_of_a_thousand_large_keys, a_read_of_a_long_queue_that_has_expired,
    a_look_at_a_queue_whose_delays_have_all_ended, a_settlement_of_one_of_a_packed_batch,
    a_message_of_a_packed_batch_by_its_id, a_release_of_one_key_of_a_long_queue,
    a_change_of_every_setting_of_a_long_queue, a_chain_of_dead_letter_queues,
]  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[12_000, pytest.param(30_000, marks=LONG)])
def scene(engine: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place: Path = tmp_path_factory.mktemp("worst")
    with scene_on(place if engine == "sqlite" else request.getfixturevalue("postgres"), request.param) as scene:
        yield scene


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.replace("_", " "))
def test_the_worst_request_of_a_route_delays_no_other_client__row_28(
    case: Case, scene: Scene, engine: str, add_row: AddRow
) -> None:
    # Other processes of the machine can only add to what is measured: a request that is too slow is so each time.
    for _ in range(ATTEMPTS):
        delays = measure(case(scene), scene)
        if delays.commits < LOCKED_FOR * delays.batch and delays.answers < ANSWERED_IN * delays.batch:
            break
    add_row(
        worst_request=case.__name__.replace("_", " "), engine=engine, messages=scene.size, status=delays.status,
        answered_in=ms(delays.request), others_waited_to_commit=ms(delays.commits),
        others_answered_in=ms(delays.answers), a_batch_takes=ms(delays.batch),
    )  # fmt: skip
    assert delays.commits < LOCKED_FOR * delays.batch
    assert delays.answers < ANSWERED_IN * delays.batch


class Delays(NamedTuple):
    """Seconds of a request, the longest that others waited meanwhile, and seconds of a batch just after."""

    status: int
    request: float
    commits: float
    answers: float
    batch: float


def measure(request: Request, scene: Scene) -> Delays:
    """Send the request while another process commits and another client asks the same worker."""
    workers = scene.server.workers
    with Other(Committing(scene.store, request.beside)) as commits, Other(Asking(scene.server)) as asked:
        time.sleep(0.1)  # they are at work now
        began = time.monotonic()
        while (status := answer(scene.server, request)) == 503 and time.monotonic() < began + PATIENCE:
            pass  # some of it was done beforehand, so it ends sooner
        took = time.monotonic() - began
    assert scene.server.workers == workers, "the worker has died"
    assert "Traceback" not in scene.server.log()
    assert status in request.expected
    return Delays(status, took, commits.longest, asked.longest, seconds_of_a_batch(scene.store))


# Common parts of scenes, created once in each database.


def made_once(make: Callable[[Scene, str], object]) -> Callable[[Scene], str]:
    made: dict[int, str] = {}

    def get(scene: Scene) -> str:
        if id(scene) not in made:
            make(scene, name := fresh())
            made[id(scene)] = name
        return made[id(scene)]

    return get


@made_once
def long_queue(scene: Scene, name: str) -> None:
    scene.fill(name, key=lambda number: f"k{number % 1_000}")


@made_once
def large_texts(scene: Scene, name: str) -> None:
    for _ in range(8):
        scene.store.send(name, [NewMessage("a" * 4_000_000)])


@made_once
def _many_queues(scene: Scene, name: str) -> None:
    for some in batched(_names_of_many(scene, name), MAX_TRANSACTION_QUEUES):
        scene.store.transact([], [(queue, NewMessage("")) for queue in some])


def many_queues(scene: Scene) -> list[str]:
    return _names_of_many(scene, _many_queues(scene))


def _names_of_many(scene: Scene, name: str) -> list[str]:
    return [f"{name}-{number}" for number in range(scene.size // 3)]


def one_of_each_batch(scene: Scene) -> list[str]:
    """Return a receipt of one message of each of many packed batches of ten."""
    batches = min(MAX_BATCH, scene.size // 10)
    queue = fresh()
    for _ in range(batches):
        scene.store.send(queue, [NewMessage("x" * 30)] * 10)
    return [message.receipt or "" for message in scene.lease(queue, 10 * batches)[::10]]


def dead_letters(scene: Scene) -> str:
    """Return the queue that the dead letters came from."""
    scene.store.configure(queue := fresh(), {"dead_letter_expired": True})
    scene.fill(queue, ttl=0.1, key=lambda number: f"k{number % 1_000}")
    deadline = time.monotonic() + PATIENCE
    while scene.store.queue(queue).stats.dead < scene.size:
        assert time.monotonic() < deadline, "they do not die"
        time.sleep(0.1)
    return queue


def everything(scene: Scene, queue: str) -> Iterator[Message]:
    after = 0
    while page := scene.store.peek(queue, limit=MAX_LIMIT, after=after):
        yield from page
        after = page[-1].id
