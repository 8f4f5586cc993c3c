"""Test QueueClient.work: concurrency, retries, order, stopping, and workers that are killed."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from clients import Forbidden, LeasedMessage, QueueClient, Unreachable, exponential_backoff
from tests.clients.connect import ClientClass, Connect, both_classes, both_clients
from tests.support.live import REPOSITORY, FaultProxy, LiveServer, await_true


def states(client: QueueClient) -> list[tuple[str, str | None, int | None]]:
    return [(message.text, message.state, message.receive_count) for message in client.peek()]


def dead_letters(client: QueueClient) -> list[tuple[str, object]]:
    """Return the text and the reason of each."""
    found = client.peek(queue=f"{client.queue}.dead")
    return [(message.text, message.attributes["dead_letter_reason"]) for message in found]


def fail(message: LeasedMessage) -> None:
    raise RuntimeError(f"no {message.text}")


@contextmanager
def working(work: Callable[[], object], stop: threading.Event) -> Iterator[None]:
    """Run a worker in another thread until the block ends; then stop it and raise its error."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        try:
            yield
        finally:
            stop.set()
            done.result(20)


# Handlers.


@both_clients
def test_each_message_is_handled_and_acked(client: QueueClient) -> None:
    client.send_many([str(number) for number in range(100)])
    handled: list[str] = []
    client.work(lambda message: handled.append(message.text), idle=0)
    assert sorted(handled, key=int) == [str(number) for number in range(100)]
    assert (client.stats()["acked"], client.stats()["received"]) == (100, 100)


@both_clients
def test_as_many_handlers_run_at_once_as_asked_for_and_no_more_messages_are_leased(client: QueueClient) -> None:
    client.send_many([str(number) for number in range(8)])
    together, leased = threading.Barrier(4, timeout=10), []

    def handle(message: LeasedMessage) -> None:
        together.wait()
        leased.append(client.stats()["leased"])
        together.wait()

    client.work(handle, concurrency=4, idle=0)
    assert len(leased) == 8
    assert max(leased) == 4


@both_clients
def test_a_slow_handler_does_not_hold_up_messages_that_arrive_later(client: QueueClient) -> None:
    client.send("slow")
    others_done, stop = threading.Event(), threading.Event()

    def handle(message: LeasedMessage) -> None:
        if message.text == "slow":
            assert others_done.wait(10)
        elif message.text == "last":
            others_done.set()

    with working(lambda: client.work(handle, concurrency=2, stop=stop), stop):
        await_true(lambda: client.stats()["leased"] == 1)
        client.send_many(["first", "last"])
        await_true(lambda: client.stats()["acked"] == 3)


@both_clients
def test_messages_that_the_handler_settled_are_left_alone(client: QueueClient) -> None:
    client.send_many(["ack", "release", "reject", "complete", "ack and raise"])

    def handle(message: LeasedMessage) -> None:
        if message.text == "release":
            message.release(delay=60)
        elif message.text == "reject":
            message.reject("not wanted")
        elif message.text == "complete":
            message.complete(send=[{"text": "result", "queue": f"{client.queue}.out"}])
        else:
            message.ack()
        if message.text == "ack and raise":
            raise RuntimeError("too late")

    client.work(handle, idle=0)
    assert states(client) == [("release", "delayed", 1)]
    assert dead_letters(client) == [("reject", "not wanted")]
    assert [message.text for message in client.peek(queue=f"{client.queue}.out")] == ["result"]


@both_clients
def test_a_slow_handler_keeps_its_lease_and_all_leases_are_renewed_in_one_request(
    client: QueueClient, proxy: FaultProxy, proxied: QueueClient
) -> None:
    client.send_many([str(number) for number in range(8)])
    extensions = []
    proxy.hangs = lambda request: extensions.append(request) if b"/messages/extend" in request else None
    proxied.work(lambda message: time.sleep(2.5), concurrency=8, lease=2, idle=0)
    assert client.stats()["received"] == 8
    assert len(extensions) <= 4
    assert all(request.count(b"~") == 16 for request in extensions)  # each receipt has two


def test_an_async_handler_is_refused_before_a_message_is_taken(client: QueueClient) -> None:
    async def handle(message: LeasedMessage) -> None:
        pass

    client.send("precious")
    with pytest.raises(TypeError, match="async"):
        client.work(handle)
    with pytest.raises(ValueError, match="concurrency must be 1 or more"):
        client.work(print, concurrency=0)
    with pytest.raises(ValueError, match="max_tries must be 1 or more"):
        client.work(print, max_tries=0)
    assert states(client) == [("precious", "ready", 0)]


# Failures.


@both_clients
def test_a_message_whose_handler_raises_is_retried_and_then_dead_lettered_with_the_reason(
    client: QueueClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.send("luck")
    pauses: list[int] = []

    def backoff(tries: int) -> float:
        pauses.append(tries)
        return 0.05

    client.work(fail, max_tries=3, backoff=backoff, idle=2)
    assert pauses == [1, 2]
    assert client.peek() == []
    assert dead_letters(client) == [("luck", "RuntimeError: no luck")]
    assert ["next try in 0.05 s" in caplog.text, "it was the last one" in caplog.text] == [True, True]


@both_clients
def test_a_reason_of_any_length_and_with_any_characters_is_kept(client: QueueClient) -> None:
    def handle(message: LeasedMessage) -> None:
        raise ValueError("\ud800" + "x" * 5_000)

    client.send("bad")
    client.work(handle, max_tries=1, idle=0)
    ((_, reason),) = dead_letters(client)
    assert str(reason).startswith("ValueError: ?xxx")


@both_clients
def test_a_failed_message_does_not_hold_up_the_others(client: QueueClient) -> None:
    client.send_many(["bad", "good", "better"])

    def handle(message: LeasedMessage) -> None:
        if message.text == "bad":
            fail(message)

    client.work(handle, concurrency=1, backoff=lambda tries: 60, idle=0)
    assert states(client) == [("bad", "delayed", 1)]
    assert client.stats()["acked"] == 2


def test_the_pause_doubles_up_to_the_longest() -> None:
    backoff = exponential_backoff(2, longest=10)
    assert [backoff(tries) for tries in (1, 2, 3, 4, 1_000_000)] == [2, 4, 8, 10, 10]


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_ends_the_program_ends_the_worker(client: QueueClient, raised: type[BaseException]) -> None:
    def handle(message: LeasedMessage) -> None:
        raise raised

    client.send_many(["a", "b"])
    with pytest.raises(raised):
        client.work(handle, concurrency=1, backoff=lambda tries: 60)
    assert states(client) == [("a", "delayed", 1), ("b", "ready", 0)]


def test_a_worker_of_a_service_that_does_not_answer_ends_with_the_reason_and_says_why_it_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Unreachable, match="connection refused"):
        QueueClient("http://127.0.0.1:1", retry_for=0.5).work(print)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == "http://127.0.0.1:1 does not answer: connection refused; retrying for up to 0.5 s"


def test_a_refusal_ends_the_worker() -> None:
    secret = "secret-secret-secret"
    with (
        LiveServer({"QUEUE_TOKENS": f"worker:{secret}:send,receive:jobs"}) as guarded,
        QueueClient(guarded.url, queue="jobs", token=secret) as client,
        pytest.raises(Forbidden, match="may not"),
    ):
        client.work(print, queue="others")


# Keys.


@both_clients
def test_messages_of_a_key_are_handled_in_order_one_at_a_time(client: QueueClient) -> None:
    client.send_many([{"text": str(number), "key": f"key {number % 3}"} for number in range(60)])
    handled: dict[str | None, list[int]] = {}
    running: Counter[str | None] = Counter()
    most: list[int] = []

    def handle(message: LeasedMessage) -> None:
        running[message.key] += 1
        most.append(running[message.key])
        time.sleep(0.002)
        handled.setdefault(message.key, []).append(int(message.text))
        running[message.key] -= 1

    client.work(handle, idle=0)
    assert handled == {f"key {first}": list(range(first, 60, 3)) for first in range(3)}
    assert max(most) == 1


@both_clients
@pytest.mark.parametrize("by_itself", [False, True], ids=["raises", "releases"])
def test_messages_behind_one_that_is_retried_wait_for_it_and_lose_no_try(client: QueueClient, by_itself: bool) -> None:
    client.send_many([{"text": text, "key": "k"} for text in ("1", "2", "3")])
    handled: list[tuple[str, int]] = []

    def handle(message: LeasedMessage) -> None:
        handled.append((message.text, message.receive_count))
        if message.receive_count == 1 and message.text == "1":
            if by_itself:
                message.release(delay=0.1)
            else:
                fail(message)

    client.work(handle, backoff=lambda tries: 0.1, idle=1)
    assert handled == [("1", 1), ("1", 2), ("2", 1), ("3", 1)]


# Stopping.


@both_clients
def test_a_stop_ends_a_waiting_worker_soon_and_leases_nothing_more(client: QueueClient) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(client.work, print, stop=stop)
        time.sleep(0.3)
        stop.set()
        done.result(5)
    client.send("later")
    time.sleep(0.2)
    assert states(client) == [("later", "ready", 0)]


@both_classes
@pytest.mark.slow
@pytest.mark.parametrize("loop", ["work", "consume"])
def test_a_stop_ends_a_loop_behind_a_proxy_within_seconds(
    server: LiveServer,
    plain_client: QueueClient,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    loop: str,
    client_class: ClientClass,
) -> None:
    with FaultProxy(server) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        stop, proxied = threading.Event(), client_class(server.url, queue=queue, trust_env=True)
        run = partial(proxied.work, print, stop=stop) if loop == "work" else lambda: list(proxied.consume(stop=stop))
        with proxied, working(run, stop):
            await_true(lambda: proxy.requests == 1)
            start = time.monotonic()
        assert time.monotonic() - start < 10  # a poll takes up to 20 s where the client can end it
    plain_client.send("later")
    assert states(plain_client) == [("later", "ready", 0)]


@both_clients
@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_stop_finishes_what_runs_and_releases_the_rest_uncounted__row_34(
    connect: Connect, client: QueueClient, queue: str, how: str
) -> None:
    client.send_many([{"text": text, "key": "k"} for text in ("running", "not begun", "not begun either")])
    stop, begun, finish = threading.Event(), threading.Event(), threading.Event()

    def handle(message: LeasedMessage) -> None:
        begun.set()
        assert finish.wait(10)

    with connect(queue=queue) as ending, ThreadPoolExecutor(1) as pool:
        done = pool.submit(ending.work, handle, stop=stop, lease=1)
        assert begun.wait(10)
        stop.set() if how == "stop" else ending.close()
        time.sleep(1.5)  # the lease is renewed until the end
        assert states(client)[0] == ("running", "leased", 1)
        finish.set()
        done.result(10)
    assert states(client) == [("not begun", "ready", 0), ("not begun either", "blocked", 0)]
    assert client.stats()["acked"] == 1


@both_clients
def test_a_busy_worker_that_is_stopped_leaves_no_message_leased_unseen__row_34(client: QueueClient) -> None:
    for number in range(30):
        stop = threading.Event()
        with working(partial(client.work, lambda message: None, stop=stop, lease=600), stop):
            until = time.monotonic() + 0.05 + number / 1000
            while time.monotonic() < until:
                client.send_many(["x"] * 5)
        assert {(message.state, message.receive_count) for message in client.peek(limit=1000)} <= {("ready", 0)}


@both_classes
@pytest.mark.parametrize("dropped", [False, True], ids=["arrives", "a proxy drops it"])
@pytest.mark.parametrize("loop", ["work", "consume"])
def test_a_message_whose_reply_was_on_its_way_at_the_stop_is_released_uncounted__row_34(
    engine: LiveServer, queue: str, loop: str, dropped: bool, client_class: ClientClass
) -> None:
    stop, client = threading.Event(), QueueClient(engine.url, queue=queue)
    with FaultProxy(engine) as proxy, client_class(proxy.url, queue=queue) as proxied:
        proxy.delay, proxy.losing = 1.0, int(dropped)
        run = partial(proxied.work, print, stop=stop) if loop == "work" else lambda: list(proxied.consume(stop=stop))
        with working(run, stop):
            await_true(lambda: proxy.requests == 1)
            client.send("on its way")
            await_true(lambda: client.stats()["leased"] == 1)
    assert states(client) == [("on its way", "ready", 0)]


@pytest.mark.parametrize("how", ["stop", "max_tries"])
def test_a_consume_loop_has_a_stop_and_a_limit_of_tries(client: QueueClient, how: str) -> None:
    client.send_many(["first", "second"])
    stop = threading.Event()
    for message in client.consume(stop=stop, max_tries=2, backoff=lambda tries: 0.0):
        if how == "stop":
            stop.set()
        elif message.receive_count == 2:
            break
        else:
            message.release()
    if how == "stop":
        assert states(client) == [("second", "ready", 0)]
    else:
        assert dead_letters(client) == [("first", "the loop that had this message ended before it was acked")]


def test_a_waiting_consume_loop_ends_soon_after_its_stop(client: QueueClient) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: list(client.consume(stop=stop)))
        time.sleep(0.3)
        stop.set()
        assert done.result(5) == []


# Worker processes.

WORKER = """
import os, signal, sys, time
from clients import QueueClient

client = QueueClient(sys.argv[1], queue=sys.argv[2], retry_for=20)

def handle(message):
    {handler}

client.work(handle, concurrency=4, lease=2, max_tries=3, backoff=lambda tries: 0.1)
print("stopped")
"""
TO_RESULTS = """
    time.sleep(0.02)
    message.complete(send=[{"queue": client.queue + ".out", "text": message.text}])
"""


@contextmanager
def worker_process(server: LiveServer, queue: str, handler: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker in its own process, and kill it at the end."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c"]  # of forks, since Python 3.12
    command += [WORKER.format(handler=handler.strip()), server.url, queue]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_results_are_complete_while_workers_are_killed_and_terminated__row_34(engine: LiveServer, queue: str) -> None:
    count, client = 1_000, QueueClient(engine.url, queue=queue)
    client.send_many([str(number) for number in range(count)])
    with (
        worker_process(engine, queue, TO_RESULTS),
        worker_process(engine, queue, TO_RESULTS) as killed,
        worker_process(engine, queue, TO_RESULTS) as terminated,
    ):
        await_true(lambda: client.stats()["acked"] > 100)
        killed.send_signal(signal.SIGKILL)
        terminated.send_signal(signal.SIGTERM)
        assert terminated.wait(10) == 0
        await_true(lambda: client.stats()["acked"] == count)
    results = [message.text for message in client.receive(queue=f"{queue}.out", limit=count)]
    assert sorted(results, key=int) == [str(number) for number in range(count)]
    assert client.stats()["received"] <= count + 2 * 4  # only what those two had at their end was delivered twice


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_runs_and_releases_the_rest_uncounted__row_34(
    server: LiveServer, plain_client: QueueClient, queue: str, sent: signal.Signals
) -> None:
    plain_client.send_many([{"text": str(number), "key": "k"} for number in range(4)])
    with worker_process(server, queue, 'print("begun", flush=True); time.sleep(1)') as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(sent)
        assert process.communicate(timeout=10) == ("stopped\n", "")
        assert process.returncode == 0
    assert states(plain_client) == [("1", "ready", 0), ("2", "blocked", 0), ("3", "blocked", 0)]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_worker_whose_handler_hangs(
    server: LiveServer, plain_client: QueueClient, queue: str, sent: signal.Signals
) -> None:
    plain_client.send("hangs")
    with worker_process(server, queue, 'print("begun", flush=True); time.sleep(60)') as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(sent)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(sent)
        assert process.wait(5) == -sent


@pytest.mark.slow
def test_a_message_that_kills_its_worker_is_dead_lettered_after_the_last_try(
    server: LiveServer, plain_client: QueueClient, queue: str
) -> None:
    plain_client.send("deadly")
    for _ in range(3):
        with worker_process(server, queue, "os._exit(7)") as process:
            assert process.wait(20) == 7
    with worker_process(server, queue, "os._exit(7)") as process:
        await_true(lambda: plain_client.stats()["dead"] == 1)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10) == ("stopped\n", "")  # no try follows the last one
    assert dead_letters(plain_client) == [("deadly", "none of 3 tries was finished")]


def test_a_handler_that_forks_leaves_the_worker_and_its_signals_to_the_parent__row_34(
    server: LiveServer, plain_client: QueueClient, queue: str
) -> None:
    plain_client.send_many(["a", "b"])
    fork = """
    if os.fork() == 0:
        return  # into the worker's loop
    child = os.fork()
    if child == 0:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM, "the child caught the signal"
    """
    with worker_process(server, queue, fork) as process:
        await_true(lambda: plain_client.stats()["acked"] == 2)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10) == ("stopped\n", "")
    assert (plain_client.stats()["received"], plain_client.stats()["acked"]) == (2, 2)


def test_an_ignored_signal_stays_ignored(client: QueueClient) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        client.send("x")
        client.work(lambda message: os.kill(os.getpid(), signal.SIGINT), idle=0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert client.stats()["acked"] == 1


@both_classes
def test_a_worker_may_wait_for_the_service_for_ever(
    client_class: ClientClass, caplog: pytest.LogCaptureFixture
) -> None:
    service, stop = LiveServer(), threading.Event()
    with client_class(service.url, retry_for=math.inf) as working:
        worker = threading.Thread(target=working.work, args=[lambda message: stop.set()], kwargs={"stop": stop})
        worker.start()
        await_true(lambda: any("retrying until it does" in record.getMessage() for record in caplog.records))
        with service, QueueClient(service.url) as client:
            client.send("after the outage")
            worker.join(20)
            assert client.stats()["acked"] == 1
