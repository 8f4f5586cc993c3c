"""Run a command for each message of a queue."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress

from ..client import QueueClient
from ..messages import LeasedMessage
from .command_line import add_queue_option, add_reader_options, add_service_options, client_for, within

REJECTED = 100  # the exit code of a command that cannot ever handle this message
STOPS_WITHIN = 2.0  # seconds from SIGTERM to SIGKILL

WORK = """Run the command once for each message, with the message's text on its stdin.

    %(prog)s --queue thumbnails -c 8 -- ./handle.sh

Exit code 0 acks the message, 100 moves it to the dead letters. After any other it is redelivered in 1 s, then 2 s, 4 s
and so on. SIGTERM and SIGINT let the commands that run end, and release the other messages; a second one stops them.
The environment has MESSAGE_ID, MESSAGE_QUEUE, MESSAGE_RECEIVE_COUNT, MESSAGE_KEY, and MESSAGE_ATTRIBUTE_NAME for each
attribute, its name in capitals with _ for what is neither letter nor digit.
"""


def add_work(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=_work)
    parser.add_argument("program", metavar="COMMAND", nargs="+", help="the program to run, and its arguments")
    parser.add_argument(
        "-c",
        "--concurrency",
        type=within(int, 1, 1000),
        default=8,
        metavar="N",
        help="commands that run at once (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tries",
        type=within(int, 1),
        default=5,
        metavar="N",
        help="failures after which a message is moved to the dead letters (default: %(default)s)",
    )
    parser.add_argument(
        "--idle", type=within(float, 0), metavar="S", help="end after S seconds without a message (default: never)"
    )
    add_reader_options(parser)
    add_queue_option(parser)
    add_service_options(parser)


def _work(options: argparse.Namespace) -> int:
    if shutil.which(options.program[0]) is None:
        raise ValueError(f"{options.program[0]} is not a program that can be run")
    with client_for(options, options.queue) as client:
        commands = _Commands(options.program)
        try:
            client.work(
                commands.handle,
                concurrency=options.concurrency,
                max_tries=options.max_tries,
                idle=options.idle,
                lease=options.lease,
                recipient=options.recipient,
            )
        except KeyboardInterrupt:
            commands.stop(client)
            raise
    return 0


class CommandFailed(Exception):
    """The command ended with an exit code other than 0 and 100, or by a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}" if code >= 0 else signal.Signals(-code).name)


class _Commands:
    """The commands that run now, each with its message."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._running: dict[subprocess.Popen[bytes], LeasedMessage] = {}
        self._changed = threading.Lock()
        self._is_stopped = False

    def handle(self, message: LeasedMessage) -> None:
        """Run the command for the message. Raises CommandFailed, OSError."""
        with self._changed:
            if self._is_stopped:
                return message.release(counted=False)
            # In a process group of its own, so that Ctrl-C at a terminal does not reach it.
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, env=os.environ | _environment(message), process_group=0
            )
            self._running[process] = message
        process.communicate(message.text.encode())
        with self._changed:
            del self._running[process]
        if process.returncode == REJECTED:
            message.reject(f"exit code {REJECTED}")
        elif process.returncode:
            raise CommandFailed(process.returncode)
        return None

    def stop(self, client: QueueClient) -> None:
        """Terminate the commands, within about 2 seconds, and release their messages, uncounted."""
        with self._changed:
            self._is_stopped = True
            running = dict(self._running)
        client._leased.stop_renewing(running.values())  # and so it is not their failure
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            until = time.monotonic() + STOPS_WITHIN
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
        client._run(client._leased.release_all(running.values(), counted=False))


def _environment(message: LeasedMessage) -> dict[str, str]:
    attributes = {
        "MESSAGE_ATTRIBUTE_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in name.upper()): value
        for name, value in message.attributes.items()
    }
    fields = {
        "MESSAGE_ID": message.id,
        "MESSAGE_QUEUE": message.queue,
        "MESSAGE_RECEIVE_COUNT": message.receive_count,
        "MESSAGE_KEY": message.key or "",
        **attributes,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
