"""Test the consume loop when the reader breaks, raises, forks, closes or is terminated."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from clients import Closed, NotFound, QueueClient
from tests.clients.connect import Connect, both_clients
from tests.support.live import REPOSITORY, FaultProxy, LiveServer, await_true


def states(client: QueueClient) -> list[tuple[str, str | None, int | None]]:
    return [(message.text, message.state, message.receive_count) for message in client.peek()]


# Leaving the loop.


@both_clients
def test_messages_the_body_never_saw_are_released_uncounted_after_a_break__row_34(client: QueueClient) -> None:
    client.put_settings({"max_receives": 1})
    client.send_many(["seen", "in hand", "unseen", "unseen too"])
    for message in client.consume(lease=30, batch=4):
        if message.text == "in hand":
            message.release(counted=False)
            break
    assert states(client) == [(text, "ready", 0) for text in ("in hand", "unseen", "unseen too")]
    assert client.stats()["acked"] == 1


@both_clients
@pytest.mark.parametrize("batch", [1, 3])
def test_a_message_whose_work_failed_is_redelivered_later_and_the_ones_behind_it_at_once(
    client: QueueClient, batch: int
) -> None:
    def work() -> None:
        for message in client.consume(lease=30, batch=batch):
            if message.text == "bad":
                raise RuntimeError("the work failed")

    client.send_many(["good", "bad", "unseen"])
    with pytest.raises(RuntimeError, match="the work failed"):
        work()
    assert states(client) == [("bad", "delayed", 1), ("unseen", "ready", 0)]
    assert [message.text for message in client.receive(limit=3)] == ["unseen"]
    assert [message.text for message in client.receive(wait=5)] == ["bad"]


@both_clients
def test_a_poison_message_does_not_keep_a_restarting_worker_from_the_others(client: QueueClient) -> None:
    client.send_many(["poison", "good", "better", "best"])
    met = []
    for _ in range(6):  # restarts
        try:
            for message in client.consume(lease=30, batch=2, idle=0):
                met.append(message.text)
                if message.text == "poison":
                    raise RuntimeError("it always fails")
        except RuntimeError:
            pass
    assert {"good", "better", "best"} <= set(met)
    assert met.count("poison") < 3


@both_clients
def test_each_further_failure_delays_redelivery_longer(client: QueueClient) -> None:
    client.send("poison")
    for longest in (1, 2, 4):
        next(iter(client.consume(lease=30)))  # the loop is left at once
        (message,) = client.peek()
        assert message.state == "delayed"
        start = time.monotonic()
        client.reschedule(message.id or "", 0) if longest > 1 else await_true(lambda: client.peek()[0].state == "ready")
        assert time.monotonic() - start < longest + 1
    assert client.peek()[0].receive_count == 3


@both_clients
@pytest.mark.parametrize("closes", [False, True], ids=["break", "close"])
def test_leases_are_renewed_until_each_messages_release__row_34(
    client: QueueClient, proxy: FaultProxy, proxied: QueueClient, closes: bool
) -> None:
    client.put_settings({"max_receives": 1})
    client.send_many([str(number) for number in range(60)])
    proxy.delay = 0.05  # so that the releases take 3 s in sequence
    for message in proxied.consume(lease=1.5, batch=60):
        message.ack()
        if not closes:
            break
        proxied.close()
    assert [state for _, *state in states(client)] == [["ready", 0]] * 59


@both_clients
@pytest.mark.parametrize("loop", ["consume", "work"])
def test_a_loop_reads_several_queues_in_order_of_preference_and_acks_each_message(
    client: QueueClient, queue: str, loop: str
) -> None:
    names = [f"{queue}.first", f"{queue}.second"]
    for name in names:
        client.send_many(["a", "b"], queue=name)
    client.send("of no interest")
    seen = []
    if loop == "consume":
        seen += [message.queue for message in client.consume(queues=names, idle=0)]
    else:
        client.work(lambda message: seen.append(message.queue), queues=names, concurrency=1, idle=0)
    assert seen == [names[0], names[0], names[1], names[1]]
    assert [client.stats(name)["acked"] for name in names] == [2, 2]
    assert states(client) == [("of no interest", "ready", 0)]


# Renewal of leases.


@both_clients
@pytest.mark.slow
def test_leases_of_a_large_batch_outlast_a_slow_network(
    client: QueueClient, proxy: FaultProxy, proxied: QueueClient
) -> None:
    proxy.delay = 0.05
    client.send_many([str(number) for number in range(300)])
    with ThreadPoolExecutor(1) as pool:
        for _ in proxied.consume(lease=4, batch=300):
            other = pool.submit(client.receive, limit=300, lease=30, wait=6)
            time.sleep(6)
            assert other.result() == []
            proxy.delay = 0
            break


@both_clients
def test_a_lease_from_a_late_reply_is_renewed_in_time(
    client: QueueClient, proxy: FaultProxy, proxied: QueueClient
) -> None:
    client.send("held")
    proxy.delay = 1.5  # so that the lease has half a second left
    for _ in proxied.consume(lease=2):
        proxy.delay = 0
        assert client.receive(lease=30, wait=1.5) == []
        break


@both_clients
def test_a_failed_renewal_is_retried_before_the_lease_ends(
    client: QueueClient, proxy: FaultProxy, proxied: QueueClient
) -> None:
    client.send("held")
    failing_until = time.monotonic() + 1.4  # the first renewal is due after 1
    proxy.hangs = lambda request: 0.0 if b"/extend" in request and time.monotonic() < failing_until else None
    for _ in proxied.consume(lease=2):
        assert client.receive(lease=30, wait=3) == []
        break


@both_clients
@pytest.mark.parametrize("seconds", [0.0, 3.0], ids=["fails", "hangs"])
def test_a_renewal_that_hangs_does_not_delay_the_others(
    client: QueueClient, proxy: FaultProxy, proxied: QueueClient, queue: str, seconds: float
) -> None:
    other = f"{queue}.other"
    for name in (other, queue):
        client.send("held", queue=name)
    proxy.hangs = lambda request: seconds if f"/{other}/messages/extend".encode() in request else None
    failing, held = proxied.consume(lease=2, queue=other), proxied.consume(lease=2)
    next(failing), next(held)
    assert client.receive(lease=30, wait=3) == []
    del failing, held


def test_a_deleted_message_is_dropped_and_the_others_stay_leased(client: QueueClient) -> None:
    client.send_many(["a", "gone", "b"])
    messages = client.receive(limit=3, lease=2)
    keeper = client._leased.keeper
    keeper.renew(messages, 2, time.monotonic())
    messages[1].ack()
    assert client.receive(lease=30, wait=3) == []
    assert [keeper.begin(message) for message in messages] == [True, False, True]
    assert [keeper.stop_renewing(message.receipt) for message in messages] == [True, False, True]


# Forks.

FORK = """
import os, sys, time
from clients import QueueClient

client = QueueClient(sys.argv[1], queue=sys.argv[2], verify=sys.argv[3])
messages = client.consume(lease=1, batch=2, idle=0)
print(next(messages).text)  # the keeper's thread runs now
if os.fork() == 0:
    {child}
else:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    print(*(message.text for message in messages))
"""


def forked(connect: Connect, queue: str, child: str) -> list[str]:
    """Fork while consuming; the child runs the code and exits. Return what both printed."""
    script = FORK.format(child=child.strip().replace("\n", "\n    "))
    run = subprocess.run(
        # Python warns since 3.12 of a fork beside threads; a program that forks accepts that risk.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, connect.url, queue, str(connect.verify)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.stderr == ""
    return run.stdout.splitlines()


def test_a_forked_child_renews_the_leases_of_its_own_work__row_34(
    connect: Connect, client: QueueClient, queue: str
) -> None:
    client.send_many(["a", "b"])
    client.send("child's", queue=f"{queue}.child")
    child = f"""
sys.stdout = open(os.devnull, "w")
for message in client.consume(lease=1, idle=0, queue="{queue}.child"):
    assert client.receive(lease=30, wait=2.5, queue="{queue}.child") == []
"""
    assert forked(connect, queue, child)[-1] == "b"
    assert client.stats(f"{queue}.child")["acked"] == 1


def test_a_forked_child_that_ends_leaves_its_parents_messages_alone(
    connect: Connect, client: QueueClient, queue: str
) -> None:
    client.send_many(["a", "b"])
    child = """
sys.stdout = open(os.devnull, "w")
time.sleep(1.5)
del messages
client.close()
"""
    assert forked(connect, queue, child)[-1] == "b"
    counts = client.stats()
    assert (counts["acked"], counts["received"]) == (2, 2)


def test_a_forked_child_that_continues_its_parents_loop_gets_its_own_messages(
    connect: Connect, client: QueueClient, queue: str
) -> None:
    client.send_many(["a", "b", "c"])
    child = 'print("child", *(message.text for message in messages), flush=True)'
    assert "child c" in forked(connect, queue, child)
    assert client.stats()["acked"] == 3


# Closing a client.


def test_a_loop_ends_when_its_client_is_closed_and_releases_what_it_did_not_begin__row_34(
    connect: Connect, client: QueueClient, queue: str
) -> None:
    client.send_many(["in hand", "unseen", "unseen too"])
    closing = connect(queue=queue)
    seen = []
    for message in closing.consume(lease=30, batch=3):
        seen.append(message.text)
        closing.close()
        assert states(client) == [("in hand", "leased", 1), ("unseen", "ready", 0), ("unseen too", "ready", 0)]
        client.send("later")
    assert seen == ["in hand"]
    assert [text for text, _, _ in states(client)] == ["unseen", "unseen too", "later"]


def test_work_that_is_under_way_when_its_client_is_closed_keeps_its_lease__row_34(
    connect: Connect, client: QueueClient, queue: str
) -> None:
    client.send("in hand")
    closing = connect(queue=queue)
    for _ in closing.consume(lease=1):
        closing.close()
        assert client.receive(lease=30, wait=2) == []
    assert client.stats()["acked"] == 1


def test_a_waiting_loop_ends_at_once_when_its_client_is_closed_and_leases_nothing_more(
    connect: Connect, client: QueueClient, queue: str
) -> None:
    closing = connect(queue=queue)
    client.send("first")
    begun = threading.Event()

    def work() -> list[str]:
        seen = []
        for message in closing.consume(lease=30):
            seen.append(message.text)
            begun.set()
        return seen

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        assert begun.wait(10)
        await_true(lambda: client.stats()["acked"] == 1)  # it waits for the next one
        closing.close()
        client.send("later")
        assert working.result(5) == ["first"]
    assert states(client) == [("later", "ready", 0)]


def test_every_call_of_a_closed_client_is_refused(connect: Connect, client: QueueClient, queue: str) -> None:
    client.send("left")
    (message,) = client.receive(lease=30)
    closed = connect(queue=queue)
    closed.close()
    calls: list[Callable[[], object]] = [
        lambda: closed.send("x"), closed.receive, closed.consume, lambda: closed.ack(message), closed.purge,
        closed.queues, closed.healthy, lambda: closed.transact(ack=[message]), lambda: closed.receive_runs(lease=5),
        lambda: closed.ack_many([message]), lambda: closed.extend(message, 5), lambda: closed.release(message),
        lambda: closed.work(print),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(Closed, match="closed"):
            call()
    message.ack()
    with pytest.raises(NotFound):
        client.ack(message)


# Terminating a command.


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_command_releases_its_messages_uncounted__row_34(
    server: LiveServer, plain_client: QueueClient, queue: str, sent: signal.Signals
) -> None:
    plain_client.send_many(["x" * 100_000] * 3)  # more than a pipe can buffer
    command = [sys.executable, "-m", "clients", "receive", "--url", server.url, "--queue", queue, "--lease", "600"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as receiving:
        await_true(lambda: plain_client.stats()["leased"] == 3)
        receiving.send_signal(sent)
        assert receiving.wait(10) == 128 + sent
        assert receiving.stderr is not None
        assert receiving.stderr.read() == b""
    assert [(message.state, message.receive_count) for message in plain_client.peek()] == [("ready", 0)] * 3


def has_begun_or_ended(client: QueueClient, before: float, process: subprocess.Popen[bytes]) -> bool:
    return client.stats()["acked"] > before or process.poll() is not None


def test_a_busy_terminated_command_leaves_nothing_leased_and_prints_each_line_once(
    server: LiveServer, plain_client: QueueClient, queue: str
) -> None:
    count = 20_000
    for start in range(0, count, 5_000):
        plain_client.send_many([str(number) for number in range(start, start + 5_000)])
    command = [sys.executable, "-m", "clients", "receive", "--url", server.url, "--queue", queue, "--lease", "600"]
    printed = b""
    for _ in range(5):
        before = plain_client.stats()["acked"]
        process = subprocess.Popen([*command, "--batch", "50"], cwd=REPOSITORY, stdout=subprocess.PIPE)
        with process as receiving, ThreadPoolExecutor(1) as pool:
            assert receiving.stdout is not None
            reading = pool.submit(receiving.stdout.read)
            await_true(partial(has_begun_or_ended, plain_client, before, process))
            receiving.send_signal(signal.SIGTERM)
            printed += reading.result(20)
        counts = plain_client.stats()
        assert (counts["leased"], counts["ready"]) == (0, count - counts["acked"])
    assert printed.split() == [b"%d" % number for number in range(len(printed.split()))]
    assert len(printed.split()) == plain_client.stats()["acked"]
