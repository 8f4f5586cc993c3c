"""Test the SQS endpoint on a running service: waiting readers, the access log and the metrics."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config

from tests.support.live import LiveServer


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def service(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    environment = {"QUEUE_ACCESS_LOG": "json", "WEB_CONCURRENCY": "2"}
    if request.param == "postgres":
        environment["QUEUE_DATABASE_URL"] = request.getfixturevalue("postgres").create_database("sqs")
    with LiveServer(environment) as live:
        yield live


@pytest.fixture(scope="module")
def sqs(service: LiveServer) -> Any:
    return boto3.client(
        "sqs", endpoint_url=service.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b",
        config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip


def native(service: LiveServer, method: str, path: str, body: bytes | None = None, kind: str = "text/plain") -> Any:
    with urlopen(Request(service.url + path, body, {"Content-Type": kind}, method=method)) as reply:
        return json.loads(reply.read() or b"null")


def test_waiting_readers_of_both_apis_wake_each_other(service: LiveServer, sqs: Any, queue: str) -> None:
    url = sqs.create_queue(QueueName=queue, Attributes={"ReceiveMessageWaitTimeSeconds": "20"})["QueueUrl"]
    path = f"/queues/{queue}/messages"
    found: list[str] = []

    def receive_by_sqs() -> None:
        found.extend(one["Body"] for one in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20)["Messages"])

    def receive_as_the_queue_says() -> None:
        found.extend(one["Body"] for one in sqs.receive_message(QueueUrl=url)["Messages"])

    def receive_by_http() -> None:
        found.append(native(service, "GET", f"{path}?wait=20")["text"])

    def send_by_sqs() -> None:
        sqs.send_message(QueueUrl=url, MessageBody="from sqs")

    def send_by_http() -> None:
        native(service, "POST", path, b"from http")

    for receive, send, text in (
        (receive_by_sqs, send_by_http, "from http"),
        (receive_by_http, send_by_sqs, "from sqs"),
        (receive_by_sqs, send_by_sqs, "from sqs"),
        (receive_as_the_queue_says, send_by_http, "from http"),
    ):
        reader = threading.Thread(target=receive)
        reader.start()
        time.sleep(0.5)
        began = time.monotonic()
        send()
        reader.join(10)
        assert (found, time.monotonic() - began < 5) == ([text], True)
        found.clear()


def test_a_waiting_reader_holds_no_thread() -> None:
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_THREADS": "2"}) as service:
        native(service, "PUT", "/queues/q", b"{}", "application/json")
        body = {"QueueUrl": "q", "WaitTimeSeconds": 20}
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "AmazonSQS.ReceiveMessage"}
        readers = [HTTPConnection("127.0.0.1", service.port, timeout=30) for _ in range(8)]
        for reader in readers:
            reader.request("POST", "/", json.dumps(body), headers)
        time.sleep(0.5)
        began = time.monotonic()
        assert native(service, "GET", "/queues")["queues"]  # a thread serves this
        assert time.monotonic() - began < 5
        for _ in readers:
            native(service, "POST", "/queues/q/messages", b"x")
        for reader in readers:
            assert "Messages" in json.loads(reader.getresponse().read())
            reader.close()


def test_the_access_log_names_action_and_queue(service: LiveServer, sqs: Any, queue: str) -> None:
    url = sqs.create_queue(QueueName=queue)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="secret words")
    with pytest.raises(sqs.exceptions.ReceiptHandleIsInvalid):
        sqs.delete_message(QueueUrl=url, ReceiptHandle="garbage")
    urlopen(f"{service.url}/?Action=ListQueues").close()
    lines = [json.loads(line) for line in service.log().splitlines() if f'"queue": "{queue}"' in line]
    assert [(line["method"], line["route"], line["status"], line["token"]) for line in lines] == [
        ("POST", "AmazonSQS.CreateQueue", 200, "-"),
        ("POST", "AmazonSQS.SendMessage", 200, "-"),
        ("POST", "AmazonSQS.DeleteMessage", 404, "-"),
    ]
    assert '"method": "GET", "route": "AmazonSQS.ListQueues", "queue": "-"' in service.log()
    assert "secret words" not in service.log()


def test_actions_are_counted(service: LiveServer, sqs: Any, queue: str) -> None:
    def count(route: str, status: int) -> float:
        with urlopen(f"{service.url}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        labels = f'{{method="POST",route="{route}",status="{status}"}}'
        return sum(float(line.split(" ")[1]) for line in lines if line.startswith(f"queue_http_requests_total{labels}"))

    names = [("AmazonSQS.GetQueueUrl", 400), ("AmazonSQS.CreateQueue", 200), ("AmazonSQS", 404)]
    before = [count(*name) for name in names]
    with pytest.raises(sqs.exceptions.QueueDoesNotExist):
        sqs.get_queue_url(QueueName=queue)
    sqs.create_queue(QueueName=queue)
    with pytest.raises(HTTPError, match="404") as refused:
        urlopen(f"{service.url}/000000000000/{queue}")
    refused.value.close()
    assert [count(*name) for name in names] == [one + 1 for one in before]
