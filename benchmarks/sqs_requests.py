"""the SQS endpoint against moto and ministack, which keep messages in memory only, and against the native API.

SendMessage, ReceiveMessage and DeleteMessage, of one message and in batches of ten: by raw HTTP over 16 connections
(moto: 1), and by one client with boto3. In turns, each with a new queue.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from benchmarks.load import request, run
from benchmarks.processes import TICK, cpu_of_tree
from benchmarks.queues.peer import NotInstalled, Server, load
from benchmarks.report import Figure, Result, compare, ours_to_other, per_second, us
from benchmarks.server import service

PEERS = {"moto": "sqs", "ministack": "ministack"}  # modules of benchmarks.queues
ROUNDS = 3
# moto is no faster with more, and not safe: its threads deliver a message twice, or fail.
CONNECTIONS = {"ours": 16, "moto": 1, "ministack": 16}  # of raw HTTP
SIZES = (1, 10)  # messages in a request
# Requests of each action in a round, by server and size. moto is slower with more messages, so it gets few.
RAW = {"ours": {1: 4_000, 10: 3_000}, "moto": {1: 100, 10: 16}, "ministack": {1: 400, 10: 200}}
BOTO3 = {"ours": {1: 200, 10: 200}, "moto": {1: 50, 10: 16}, "ministack": {1: 200, 10: 100}}
LEAST_RATE = 10.0  # times moto's, by raw HTTP: boto3 itself takes more than a tenth of moto's time
MOST_CPU = 1.3  # times that of the native request
TEXT = "x" * 60
LEASE = 600  # seconds
ACTIONS = ("SendMessage", "ReceiveMessage", "DeleteMessage")
COUNTS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
HEAD = (
    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.{}\r\n"
    "X-Amz-Date: 20260101T000000Z\r\nAuthorization: AWS4-HMAC-SHA256 "
    "Credential=any/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=00\r\n"
    "Content-Length: {}\r\n\r\n"
)


class Sample(NamedTuple):
    rate: float  # requests a second
    cpu: float  # seconds of the server's CPU per request


class Calls(NamedTuple):
    """The requests of one API to one queue, with a number of messages in each, and how to run a list of them."""

    send: Any
    receive: Any
    delete: Callable[[list[str]], Any]
    receipts: Callable[[Any], list[str]]  # of a reply to `receive`
    run: Callable[[list[Any]], list[Any]]  # to the replies


Round = dict[tuple[str, int, str], Sample]  # by API, size and action


class Side:
    """A server, and a client of its SQS."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self._pid = server.pid or 0
        self._port = int(server.address.rpartition(":")[2])
        self._client = boto3.client(
            "sqs",
            endpoint_url=server.address,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )

    def round(self) -> Round:
        """Measure each API of this server."""
        apis = {"raw HTTP": (self._raw, RAW), "boto3": (self._boto3, BOTO3)}
        if self.name == "ours":
            apis["native"] = (self._native, RAW)
        return {
            (api, size, action): sample
            for size in SIZES
            for api, (calls, counts) in apis.items()
            for action, sample in self._work(calls, size, counts[self.name][size]).items()
        }

    def _work(self, calls_of: Callable[[str, int], Calls], size: int, count: int) -> dict[str, Sample]:
        """Send, receive and delete messages by `count` requests each.

        Raises RuntimeError unless all messages are received and none is left.
        """
        url = self._client.create_queue(QueueName="bench")["QueueUrl"]
        calls, found = calls_of(url, size), dict[str, Sample]()

        def measure(action: str, requests: list[Any]) -> list[Any]:
            cpu, start = cpu_of_tree(self._pid), time.perf_counter()
            replies = calls.run(requests)
            taken = time.perf_counter() - start
            found[action] = Sample(count / taken, max(TICK, cpu_of_tree(self._pid) - cpu) / count)
            return replies

        measure("SendMessage", [calls.send] * count)
        taken = [calls.receipts(reply) for reply in measure("ReceiveMessage", [calls.receive] * count)]
        measure("DeleteMessage", [calls.delete(receipts) for receipts in taken])
        received = len({receipt for receipts in taken for receipt in receipts})
        counts = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=COUNTS)["Attributes"]
        left = sum(map(int, counts.values()))
        if received != count * size or left:
            raise RuntimeError(f"{self.name}: {received} of {count * size} messages came out, {left} are left")
        self._client.delete_queue(QueueUrl=url)
        return found

    def _raw(self, url: str, size: int) -> Calls:
        send, receive, delete = _actions(url, size)
        return Calls(
            _bytes(*send), _bytes(*receive), lambda r: _bytes(*delete(r)),
            lambda reply: _handles(json.loads(reply)), self._exchange,
        )  # fmt: skip

    def _boto3(self, url: str, size: int) -> Calls:
        methods = {
            f"{action}{batch}": getattr(self._client, f"{method}_message{ending}")
            for action, method in zip(ACTIONS, ("send", "receive", "delete"), strict=True)
            for batch, ending in (("", ""), ("Batch", "_batch"))
            if (action, batch) != ("ReceiveMessage", "Batch")
        }
        send, receive, delete = _actions(url, size)
        return Calls(
            send, receive, delete, _handles, lambda calls: [methods[action](**fields) for action, fields in calls]
        )

    def _native(self, url: str, size: int) -> Calls:
        """Return the same in the native API: one message alone, several as an array."""
        path = f"/queues/{url.rpartition('/')[2]}/messages"
        if size == 1:
            return Calls(
                request("POST", path, _encode({"text": TEXT})),
                request("GET", f"{path}?lease={LEASE}"),
                lambda receipts: request("DELETE", f"/messages/{receipts[0]}"),
                lambda reply: [json.loads(reply)["receipt"]],
                self._exchange,
            )
        return Calls(
            request("POST", path, _encode([{"text": TEXT}] * size)),
            request("GET", f"{path}?lease={LEASE}&limit={size}"),
            lambda receipts: request("POST", "/messages/ack", _encode({"receipts": receipts})),
            lambda reply: [message["receipt"] for message in json.loads(reply)],
            self._exchange,
        )

    def _exchange(self, requests: list[bytes]) -> list[bytes]:
        """Send the requests over the connections and return the bodies. Raises RuntimeError if one was refused."""
        remaining, replies = iter(requests), list[bytes]()

        def following(reply: bytes) -> bytes:
            replies.append(reply)
            return next(remaining, b"")

        done = run(self._port, following, CONNECTIONS[self.name], math.inf)
        if done.failed:
            raise RuntimeError(f"{self.name} refused {done.failed} of {len(requests)} requests")
        return [reply for reply in replies if reply]


def sqs_requests() -> list[Result]:
    with _sides() as (sides, notes):
        rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
        for number in range(ROUNDS + 1):
            for side in sides:
                found = side.round()
                if number:  # the first is to warm up
                    rounds[side.name].append(found)
    ours = rounds.pop("ours")
    return [
        *_against_peers(ours, rounds),
        Result("SQS", "native", _against_native(ours, "rate"), "rate of the native requests, over raw HTTP"),
        Result(
            "SQS", "native", _against_native(ours, "cpu"), "CPU of the service, a request", notes,
            plot="SQS, a request: CPU relative to the native request's (less is better)",
        ),
    ]  # fmt: skip


@contextmanager
def _sides() -> Iterator[tuple[list[Side], list[str]]]:
    """Start the servers. The notes have their versions, and why one is not measured."""
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder, ExitStack() as stack:
        server = stack.enter_context(service(workers=1))  # of two, one has all connections in some rounds
        sides, notes = [Side("ours", Server(server.url, server.pid))], list[str]()
        for name, module in PEERS.items():
            try:
                peer = load(module)
                notes.append(f"{peer.name}: {peer.version()}; {peer.note}")
            except NotInstalled as reason:
                notes.append(f"{name} was not measured: {reason}")
                continue
            private = Path(folder, name)
            private.mkdir()
            sides.append(Side(name, stack.enter_context(peer.serve(private))))
        yield sides, notes


def _against_peers(ours: list[Round], peers: dict[str, list[Round]]) -> Iterator[Result]:
    for api in ("raw HTTP", "boto3"):
        figures = [
            compare(
                f"{_name(size, action)}: {name}",
                [(a[api, size, action].rate, b[api, size, action].rate) for a, b in zip(ours, others, strict=True)],
                per_second,
                ratio=ours_to_other,
                at_least=LEAST_RATE if name == "moto" and api == "raw HTTP" else None,
            )
            for name, others in peers.items()
            for size in SIZES
            for action in ACTIONS
        ]
        if figures:
            title = f"requests by {'raw HTTP, 16 connections' if api == 'raw HTTP' else 'boto3, 1 client'}"
            yield Result("ours", "the other", figures, title, plot=f"SQS: {title}: our rate relative to the other's")


def _against_native(ours: list[Round], what: str) -> list[Figure]:
    show = per_second if what == "rate" else us
    return [
        compare(
            _name(size, action),
            [
                (getattr(found["raw HTTP", size, action], what), getattr(found["native", size, action], what))
                for found in ours
            ],
            show,
            ratio=ours_to_other,
            at_most=MOST_CPU if what == "cpu" else None,
        )
        for size in SIZES
        for action in ACTIONS
    ]


def _name(size: int, action: str) -> str:
    return action if size == 1 else f"{action}, {size} messages"


def _actions(url: str, size: int) -> tuple[Any, Any, Callable[[list[str]], Any]]:
    """Return the actions and their parameters; of DeleteMessage, as a function of the handles."""
    queue = {"QueueUrl": url}
    receive = ("ReceiveMessage", queue | {"MaxNumberOfMessages": size, "VisibilityTimeout": LEASE})
    if size == 1:
        return (
            ("SendMessage", queue | {"MessageBody": TEXT}),
            receive,
            lambda receipts: ("DeleteMessage", queue | {"ReceiptHandle": receipts[0]}),
        )
    return (
        ("SendMessageBatch", queue | _entries("MessageBody", [TEXT] * size)),
        receive,
        lambda receipts: ("DeleteMessageBatch", queue | _entries("ReceiptHandle", receipts)),
    )


def _entries(field: str, values: Iterable[str]) -> dict[str, Any]:
    return {"Entries": [{"Id": str(number), field: value} for number, value in enumerate(values)]}


def _handles(reply: dict[str, Any]) -> list[str]:
    return [message["ReceiptHandle"] for message in reply.get("Messages", [])]


def _bytes(action: str, fields: dict[str, Any]) -> bytes:
    body = _encode(fields)
    return HEAD.format(action, len(body)).encode() + body


def _encode(value: object) -> bytes:
    return json.dumps(value).encode()
