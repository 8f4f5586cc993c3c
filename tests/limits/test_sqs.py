"""Test rows 28 and 29 of docs/reliability.md for SQS: the worst request delays no other, and memory is bounded."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.http.test_bodies import SIZE, besiege, filled, members
from tests.limits.bounds import ANSWERED_IN, LOCKED_FOR, Request, Scene, fresh, ms, new, scene_on
from tests.limits.test_worst_requests import ATTEMPTS, measure
from tests.support.figures import AddRow
from tests.support.live import LiveServer

FORM = "application/x-www-form-urlencoded"
FIELDS = 1_990  # nearly the most that a form may have
LONG = "a" * 4_100
ACTION = "Action=SendMessage&QueueUrl=q&"
JSON_BODIES: dict[str, Callable[[], bytes]] = {
    "depth": lambda: b'{"Entries":' + b"[" * (SIZE - 20),
    "entries": lambda: filled('{"QueueUrl":"q","Entries":[', '{"Id":"a","MessageBody":"b"},', "]}"),
    "attributes": lambda: f'{{"QueueUrl":"q","MessageAttributes":{{{members(SIZE // 13, "1.50")}}}}}'.encode(),
    "entries of attributes": lambda: filled(
        '{"Entries":[', f'{{"MessageAttributes":{{{members(5_000, "{}")}}}}},', "]}"
    ),
    "a wide text": lambda: f'{{"QueueUrl":"q","MessageBody":"\U0001f600{"a" * (SIZE - 60)}"}}'.encode(),
}
FORMS: dict[str, Callable[[], bytes]] = {
    "fields": lambda: filled(ACTION, "a=&", ""),
    "deep fields": lambda: filled(ACTION, "a.1.a.1.a.1=&", ""),
    "long fields": lambda: f"{ACTION}{'&'.join(f'A.{n}.B={LONG}' for n in range(FIELDS))}".encode(),
    "escapes": lambda: filled(f"{ACTION}MessageBody=", "%41", ""),
    "escapes of wide characters": lambda: filled(f"{ACTION}MessageBody=", "%F0%9F%98%80", ""),
    "escapes in text": lambda: filled(f"{ACTION}MessageBody=", "%E2%82%ACab", ""),
    "one wide character": lambda: filled(f"{ACTION}MessageBody=%F0%9F%98%80", "a", ""),
    "escaped names": lambda: filled(ACTION, f"{'%41' * 1_400}=1&", ""),
}
BODIES = JSON_BODIES | FORMS


@pytest.mark.slow
def test_the_memory_of_the_service_has_a_ceiling_whatever_sqs_clients_post_row_29(add_row: AddRow) -> None:
    attack("all of SQS", list(BODIES), add_row)


@pytest.mark.torture
@pytest.mark.parametrize("shape", BODIES)
def test_the_memory_of_the_service_has_a_ceiling_with_each_shape_of_sqs_body_row_29(
    shape: str, add_row: AddRow
) -> None:
    attack(shape, [shape], add_row)


def attack(name: str, shapes: list[str], add_row: AddRow) -> None:
    requests = [(BODIES[shape](), shape in FORMS) for shape in shapes]
    found: Counter[int] = Counter()
    with LiveServer() as server:

        def ask(number: int) -> None:
            post(server.port, *requests[number % len(requests)], found)

        besiege(server, ask, name, found, add_row)


def post(port: int, body: bytes, is_form: bool, found: Counter[int]) -> None:
    headers = {"Content-Type": FORM} if is_form else {"X-Amz-Target": "AmazonSQS.SendMessageBatch"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            connection.request("POST", "/", body, headers)
        try:
            found[connection.getresponse().status] += 1
        except ConnectionResetError:  # the reset discarded the answer
            found[503] += 1


def a_batch_of_ten_large_messages(scene: Scene) -> Request:
    fields = {
        f"SendMessageBatchRequestEntry.{n}.{name}": value
        for n in range(1, 11)
        for name, value in {"Id": f"{n}", "MessageBody": "é" * 40_000, **_attributes()}.items()
    }
    return _form("SendMessageBatch", _queue(scene), fields)


def a_receive_of_ten_large_messages(scene: Scene) -> Request:
    queue = _queue(scene)
    for _ in range(10):
        scene.store.send(queue, [new("é" * 500_000)])
    return _form("ReceiveMessage", queue, {"MaxNumberOfMessages": "10"})


def a_deletion_of_one_message_of_each_of_ten_packed_batches(scene: Scene) -> Request:
    queue = _queue(scene)
    for _ in range(10):
        scene.store.send(queue, [new("x")] * 1_000)
    handles = [message.receipt or "" for message in scene.lease(queue, 10_000)[::1_000]]
    fields = {
        f"DeleteMessageBatchRequestEntry.{n}.{name}": value
        for n, handle in enumerate(handles, 1)
        for name, value in {"Id": f"{n}", "ReceiptHandle": handle}.items()
    }
    return _form("DeleteMessageBatch", queue, fields)


def _attributes() -> dict[str, str]:
    parts = {"Name": "a{}", "Value.DataType": "String", "Value.StringValue": "z" * 2_000}
    return {f"MessageAttribute.{n}.{part}": value.format(n) for n in range(1, 11) for part, value in parts.items()}


def _queue(scene: Scene) -> str:
    scene.store.configure(queue := fresh(), {})
    return queue


def _form(action: str, queue: str, fields: dict[str, str]) -> Request:
    body = urlencode({"Action": action, "QueueUrl": queue, **fields}).encode()
    return Request("POST", "/", body, FORM, beside=queue)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place: Path = tmp_path_factory.mktemp("sqs")
    with scene_on(place if request.param == "sqlite" else request.getfixturevalue("postgres"), 12_000) as scene:
        yield scene


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        a_batch_of_ten_large_messages, a_receive_of_ten_large_messages,
        a_deletion_of_one_message_of_each_of_ten_packed_batches,
    ],
    ids=lambda case: case.__name__.replace("_", " "),
)  # fmt: skip
def test_the_worst_sqs_request_delays_no_other_client__row_28(
    case: Callable[[Scene], Request], scene: Scene, add_row: AddRow
) -> None:
    # Other processes of the machine can only add to what is measured: a request that is too slow is so each time.
    for _ in range(ATTEMPTS):
        delays = measure(case(scene), scene)
        if delays.commits < LOCKED_FOR * delays.batch and delays.answers < ANSWERED_IN * delays.batch:
            break
    add_row(
        worst_request=case.__name__.replace("_", " "), answered_in=ms(delays.request),
        others_waited_to_commit=ms(delays.commits), others_answered_in=ms(delays.answers),
        a_batch_takes=ms(delays.batch),
    )  # fmt: skip
    assert delays.commits < LOCKED_FOR * delays.batch
    assert delays.answers < ANSWERED_IN * delays.batch
