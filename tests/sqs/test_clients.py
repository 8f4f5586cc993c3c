"""Test real, unmodified clients. `tox -e sqs-clients` installs them; where one is missing its test is skipped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.checker import History, Outcome, judge, read_histories
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.programs import program

TASKS = 200
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def service(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    environment = {"WEB_CONCURRENCY": "2"}
    if request.param == "postgres":
        environment["QUEUE_DATABASE_URL"] = request.getfixturevalue("postgres").create_database("clients")
    with LiveServer(environment) as live:
        yield live


def client(endpoint: str) -> Any:
    return boto3.client(
        "sqs", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )  # fmt: skip


# boto3, while the service is killed.


def test_boto3_loses_no_message_when_the_service_is_killed(tmp_path: Path) -> None:
    with LiveServer({"WEB_CONCURRENCY": "2"}) as server:
        url = client(server.url).create_queue(QueueName="q", Attributes={"VisibilityTimeout": "2"})["QueueUrl"]
        stop_writing, stop = threading.Event(), threading.Event()
        threads = [threading.Thread(target=write, args=[server.url, url, tmp_path, stop_writing])]
        threads += [threading.Thread(target=consume, args=[server.url, url, tmp_path, name, stop]) for name in "ab"]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(1)
            server.restart()
        stop_writing.set()
        stats = client(server.url)
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        await_true(
            lambda: {"0"} == set(stats.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values())
        )
        stop.set()
        for thread in threads:
            thread.join()
    verdict = judge(read_histories(tmp_path))
    assert verdict.acknowledged > 50
    assert (verdict.lost, verdict.unexpected, verdict.duplicated) == ([], [], [])


def write(endpoint: str, url: str, directory: Path, stop: threading.Event) -> None:
    """Send batches of new texts until the end, and record each with its outcome."""
    sqs, history, count = client(endpoint), History(directory / "writer.jsonl"), 0
    while not stop.is_set():
        texts = [f"message {count + place}" for place in range(1, 11)]
        entries = [{"Id": str(place), "MessageBody": text} for place, text in enumerate(texts)]
        history.asking("write", texts)
        try:
            done = sqs.send_message_batch(QueueUrl=url, Entries=entries)
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            assert len(done["Successful"]) == 10
            history.answered(Outcome.ACKNOWLEDGED, list(range(count + 1, count + 11)))
        count += 10
    history.close()


def consume(endpoint: str, url: str, directory: Path, name: str, stop: threading.Event) -> None:
    """Receive and delete messages until the end, and record both."""
    sqs, history = client(endpoint), History(directory / f"reader-{name}.jsonl")
    asked = {"QueueUrl": url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1, "AttributeNames": ["All"]}
    while not stop.is_set():
        history.asking("read", lease=2.0)
        try:
            found = sqs.receive_message(**asked).get("Messages", [])
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
            continue
        messages = [
            {"id": one["MessageId"], "text": one["Body"], "receipt": one["ReceiptHandle"],
             "receive_count": int(one["Attributes"]["ApproximateReceiveCount"])}
            for one in found
        ]  # fmt: skip
        history.answered(Outcome.ACKNOWLEDGED, messages)
        for message in messages:
            history.asking("ack", [message["receipt"]])
            try:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["receipt"])
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
            else:
                # A handle that is stale by now succeeds without effect, so the outcome of a late one is unknown.
                history.answered(Outcome.UNKNOWN)
    history.close()


# The AWS command line.


def test_the_aws_command_line(service: LiveServer, queue: str) -> None:
    pytest.importorskip("awscli")

    def aws(*arguments: str) -> Any:
        command = [sys.executable, "-m", "awscli", "--endpoint-url", service.url, "--output", "json", "sqs", *arguments]
        ran = subprocess.run(command, env=os.environ | CREDENTIALS, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout or "null")

    url = aws("create-queue", "--queue-name", queue, "--attributes", "VisibilityTimeout=20", "--tags", "a=b")[
        "QueueUrl"
    ]
    assert url in aws("list-queues", "--queue-name-prefix", queue)["QueueUrls"]
    attributes = '{"n": {"DataType": "Number", "StringValue": "7"}}'
    aws("send-message", "--queue-url", url, "--message-body", "wörld & <more>", "--message-attributes", attributes)
    (message,) = aws("receive-message", "--queue-url", url, "--message-attribute-names", "All")["Messages"]
    assert (message["Body"], message["MessageAttributes"]) == ("wörld & <more>", json.loads(attributes))
    assert aws("delete-message", "--queue-url", url, "--receipt-handle", message["ReceiptHandle"]) is None
    assert aws("list-queue-tags", "--queue-url", url)["Tags"] == {"a": "b"}
    assert aws("delete-queue", "--queue-url", url) is None


# Celery.


@pytest.mark.slow
def test_celery_does_every_task_though_a_worker_is_killed(service: LiveServer, queue: str, tmp_path: Path) -> None:
    pytest.importorskip("celery")
    environment = os.environ | CREDENTIALS | {"ENDPOINT": service.url, "QUEUE": queue, "TRACES": str(tmp_path)}
    arguments = ["-c", "2", "-l", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    celery = [sys.executable, "-m", "celery", "-A", "tests.sqs.celery_tasks"]

    def start_worker() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*celery, "worker", *arguments], cwd=REPOSITORY, env=environment, start_new_session=True
        )

    def stop_worker(worker: subprocess.Popen[bytes], number: int) -> None:
        os.killpg(worker.pid, number)
        worker.wait(30)

    def await_traces(count: int) -> None:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < count:
            assert time.monotonic() < deadline, f"{len(list(tmp_path.iterdir()))} of {count} tasks are done"
            time.sleep(0.1)

    worker = start_worker()
    try:
        send = (
            "from tests.sqs.celery_tasks import work\n"
            f"for number in range({TASKS}):\n"
            "    work.apply_async((number,), countdown=3 if number % 25 == 7 else None)\n"
        )
        subprocess.run([sys.executable, "-c", send], cwd=REPOSITORY, env=environment, check=True, timeout=60)
        await_traces(TASKS // 3)
        stop_worker(worker, signal.SIGKILL)
        worker = start_worker()
        await_traces(TASKS)
    finally:
        stop_worker(worker, signal.SIGKILL)
    assert {path.name for path in tmp_path.iterdir()} == set(map(str, range(TASKS)))
    assert all((tmp_path / str(number)).read_text().startswith("1\n") for number in range(0, TASKS, 10))


def test_celery_of_compose_does_the_task_that_its_sender_sends(service: LiveServer) -> None:
    pytest.importorskip("celery")
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]

    def start(name: str) -> subprocess.Popen[str]:
        one = services[name]
        (mount,) = one["volumes"]
        source, place, _ = mount.split(":")
        assert place == one["working_dir"]
        broker = one["environment"]["CELERY_BROKER_URL"].removeprefix("${CELERY_BROKER_URL:-").removesuffix("}")
        broker = broker.replace("queue:5000", service.url.removeprefix("http://"))
        return subprocess.Popen(
            [sys.executable, "-m", *one["command"]], cwd=REPOSITORY / source, stderr=subprocess.STDOUT,
            env=os.environ | {"CELERY_BROKER_URL": broker}, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    with start("celery-sender") as sender:
        output, _ = sender.communicate(timeout=60)
    assert sender.returncode == 0, output
    with start("celery-worker") as worker:
        deadline = threading.Timer(60, os.killpg, [worker.pid, signal.SIGKILL])
        deadline.start()
        try:
            assert worker.stdout is not None
            assert any("Hello, world" in line for line in worker.stdout)
        finally:
            deadline.cancel()
            os.killpg(worker.pid, signal.SIGKILL)


# aiobotocore.


def test_aiobotocore(service: LiveServer, queue: str) -> None:
    session = pytest.importorskip("aiobotocore.session")

    async def exchange() -> list[str]:
        connected = session.get_session().create_client(
            "sqs", endpoint_url=service.url, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="x"
        )
        async with connected as sqs:
            url = (await sqs.create_queue(QueueName=queue))["QueueUrl"]
            waiting = asyncio.create_task(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=10))
            await asyncio.sleep(0.3)
            await sqs.send_message(QueueUrl=url, MessageBody="hello")
            messages = (await waiting)["Messages"]
            for message in messages:
                await sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            return [message["Body"] for message in messages]

    assert asyncio.run(exchange()) == ["hello"]


# sqs-consumer, with the SDK for JavaScript.

CONSUMER = """
import { Consumer } from "sqs-consumer";
import { CreateQueueCommand, SendMessageBatchCommand, SQSClient } from "@aws-sdk/client-sqs";

const credentials = { accessKeyId: "any", secretAccessKey: "any" };
const sqs = new SQSClient({ endpoint: process.env.ENDPOINT, region: "us-east-1", credentials });
const { QueueUrl } = await sqs.send(new CreateQueueCommand({ QueueName: process.env.QUEUE }));
const MessageAttributes = {
  n: { DataType: "Number", StringValue: "1.50" },
  b: { DataType: "Binary", BinaryValue: new Uint8Array([0, 255]) },
};
const Entries = [...Array(10).keys()].map((n) => ({ Id: `${n}`, MessageBody: `ä ${n}`, MessageAttributes }));
await sqs.send(new SendMessageBatchCommand({ QueueUrl, Entries }));
const seen = new Set();
let failed = false;
const consumer = Consumer.create({
  queueUrl: QueueUrl, sqs, batchSize: 10, waitTimeSeconds: 1, visibilityTimeout: 3, heartbeatInterval: 1,
  messageAttributeNames: ["All"],
  handleMessage: async (message) => {
    if (!failed) { failed = true; throw new Error("the first message fails once"); }
    seen.add(`${message.Body} ${message.MessageAttributes.n.StringValue} ${message.MessageAttributes.b.BinaryValue}`);
    return message;
  },
});
consumer.on("error", (error) => { console.error(error); process.exit(1); });
consumer.start();
while (seen.size < 10) await new Promise((done) => setTimeout(done, 50));
console.log(JSON.stringify([...seen].sort()));
process.exit(0);
"""


def test_sqs_consumer(service: LiveServer, queue: str, tmp_path: Path) -> None:
    modules = os.environ.get("QUEUE_TEST_NODE_MODULES")
    if modules is None:
        pytest.skip("QUEUE_TEST_NODE_MODULES does not name a folder with sqs-consumer")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "consumer.mjs").write_text(CONSUMER)
    environment = os.environ | {"ENDPOINT": service.url, "QUEUE": queue}
    command = [program("node"), "--no-warnings", "consumer.mjs"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [f"ä {number} 1.50 0,255" for number in range(10)]


# dramatiq.


def test_dramatiq(service: LiveServer, queue: str) -> None:
    dramatiq = pytest.importorskip("dramatiq")
    broker = pytest.importorskip("dramatiq_sqs").SQSBroker(
        namespace=queue, dead_letter=True, endpoint_url=service.url, region_name="us-east-1", aws_access_key_id="any",
        aws_secret_access_key="any",
    )  # fmt: skip
    done: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=2, min_backoff=100)  # type: ignore[untyped-decorator]
    def work(number: int) -> None:
        if number == 3 and number not in done:
            done.append(number)
            raise RuntimeError
        done.append(number)

    worker = dramatiq.Worker(broker, worker_threads=2, worker_timeout=100)
    worker.start()
    try:
        for number in range(10):
            work.send(number)
        await_true(lambda: len(done) == 11)
    finally:
        worker.stop()
    assert sorted(done) == sorted([*range(10), 3])
