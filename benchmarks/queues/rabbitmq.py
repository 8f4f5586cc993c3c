"""RabbitMQ: a durable queue, persistent messages, confirms by the batch, prefetch; py-amqp, the library of Celery."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import amqp

from benchmarks.queues.peer import BATCH, TIMEOUT, Peer, Server, in_batches, program, versions
from benchmarks.queues.process import free_port, running

QUEUE = "bench"
PAUSE = 0.005  # seconds without a delivery that end a batch
# Debian's command in /usr/sbin changes the user and the home.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/usr/local/sbin")


def _version() -> str:
    found = Path(_program()).resolve().parent.parent.name  # rabbitmq_server-3.10.8
    return f"RabbitMQ {found.rpartition('-')[2]}, {versions('amqp')}"


def _program() -> str:
    private = Path(FOLDERS[0], "rabbitmq-server")
    return str(private) if private.exists() else program("rabbitmq-server", "rabbitmq-server", *FOLDERS)


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    port, mapper_port, distribution_port = free_port(), free_port(), free_port()
    settings = {
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper_port),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    # Run the port mapper as our child, because the one that Erlang starts would continue after the benchmark.
    mapper = [program("epmd", "erlang-base"), "-address", "127.0.0.1", "-port", str(mapper_port)]
    with (
        running(mapper, folder, mapper_port),
        running([_program()], folder, port, environment=settings) as pid,
    ):
        yield Server(str(port), pid)


class _Client:
    def __init__(self, address: str) -> None:
        self._connection = amqp.Connection(f"127.0.0.1:{address}", read_timeout=TIMEOUT)
        self._connection.connect()
        self._channel = self._connection.channel()
        self._channel.queue_declare(QUEUE, durable=True, auto_delete=False)
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._confirm)
        self._sent = self._confirmed = 0
        self._unconfirmed: set[int] = set()
        self._deliveries: deque[amqp.Message] = deque()
        self._last: int | None = None  # the last delivery that was taken but not acked
        self._is_reading = False

    def send(self, text: str) -> None:
        self.send_all([[text]])

    def take(self) -> str:
        self._ack()
        return self._next(1)[0]  # a larger prefetch would keep messages from other clients

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            for text in batch:
                self._sent += 1
                self._unconfirmed.add(self._sent)
                self._channel.basic_publish(amqp.Message(text, delivery_mode=2), routing_key=QUEUE)
            while len(self._unconfirmed) > BATCH:  # send the next batch while one is confirmed
                self._connection.drain_events(TIMEOUT)
        while self._unconfirmed:
            self._connection.drain_events(TIMEOUT)

    def take_all(self, count: int) -> Iterator[list[str]]:
        for texts in in_batches(lambda most: self._next(2 * BATCH, most), count):
            yield texts
            self._ack()

    def close(self) -> None:
        self._ack()
        self._connection.close()

    def _next(self, prefetch: int, most: int = 1) -> list[str]:
        if not self._is_reading:
            self._is_reading = True
            self._channel.basic_qos(0, prefetch, False)
            self._channel.basic_consume(QUEUE, callback=self._deliveries.append)
        while not self._deliveries:
            self._connection.drain_events(TIMEOUT)
        with suppress(TimeoutError):  # the messages so far are the batch
            while len(self._deliveries) < most:
                self._connection.drain_events(PAUSE)
        texts: list[str] = []
        while self._deliveries and len(texts) < most:
            message = self._deliveries.popleft()
            self._last = message.delivery_tag
            texts.append(message.body)
        return texts

    def _ack(self) -> None:
        if self._last is not None:
            self._channel.basic_ack(self._last, multiple=True)
            self._last = None

    def _confirm(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed -= set(range(self._confirmed + 1, tag + 1))
            self._confirmed = tag
        else:
            self._unconfirmed.discard(tag)


PEER = Peer(
    name="RabbitMQ",
    version=_version,
    serve=_serve,
    connect=_Client,
    note="acks are not confirmed",
)
