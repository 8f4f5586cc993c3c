"""List, show and change queues."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from ..client import QueueClient
from ..errors import Forbidden
from ..messages import Message, drop_none
from ..queues import QueueStats, Reason, SettingsChanges
from .command_line import NAME, add_service_options, client_for, within
from .tables import age, print_json, table

CLEAR = "\x1b[H\x1b[J"  # on a terminal
MESSAGE_FIELDS = (
    "id", "state", "sent_at", "receive_count", "leased_until", "leased_by", "key", "priority", "recipient",
    "attributes", "text",
)  # fmt: skip

Work = Callable[[QueueClient, argparse.Namespace], None]
AddCommand = Callable[[str, str], argparse.ArgumentParser]


def add_queue_commands(add_command: AddCommand) -> None:
    """Add the commands on queues; `add_command` takes a name and a description."""
    listing = add_command("list", "Show the queues, and how many messages each has.")
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only queues that begin with it")
    listing.add_argument(
        "--watch", metavar="S", nargs="?", type=within(float, 0.1), const=1.0,
        help="show them again every S seconds, 1 without a value (default: once)",
    )  # fmt: skip
    _finish(listing, _list)

    show = add_command("show", "Show a queue's settings and counts, and why its dead letters died.")
    _add_queue(show)
    _finish(show, _show)

    peek = add_command("peek", "Show a queue's messages without receiving them.")
    _add_queue(peek)
    peek.add_argument("--limit", type=within(int, 1, 1000), default=20, metavar="N", help="at most N (default: 20)")
    peek.add_argument(
        "--state", choices=("ready", "leased", "delayed", "blocked", "dead"), help="only these (default: all)"
    )
    peek.add_argument("--key", help="only messages of this key (default: all)")
    peek.add_argument("--text", help="only messages whose text contains it, letter for letter (default: all)")
    peek.add_argument(
        "--reason", help="only dead letters in this queue with this reason, "
        "or, with --state dead, those that came from it (default: all)",
    )  # fmt: skip
    peek.add_argument("--after", metavar="ID", help="begin after this message (default: with the oldest)")
    peek.add_argument("--before", metavar="ID", help="show those before this message, newest first (default: off)")
    _finish(peek, _peek)

    redrive = add_command("redrive", "Move the dead letters of a queue back to it.")
    _add_queue(redrive)
    _add_ids(redrive, "dead letter")
    redrive.add_argument("--limit", type=within(int, 1), metavar="N", help="only the N oldest (default: all)")
    redrive.add_argument("--reason", help="only dead letters with this reason, in this queue or from it (default: all)")
    _finish(redrive, _redrive)

    setting = add_command("set", "Change settings of a queue. Creates it if it does not exist.")
    _add_queue(setting)
    setting.add_argument(
        "settings", metavar="NAME=VALUE", nargs="+", type=_setting,
        help=f"{', '.join(_SETTINGS)}; the VALUE null resets one",
    )  # fmt: skip
    _finish(setting, _set)

    purge = add_command("purge", "Delete all messages of a queue, or some of them.")
    _add_queue(purge)
    _add_ids(purge, "message")
    purge.add_argument("--reason", help="only dead letters in this queue with this reason (default: all)")
    _finish(purge, _purge)

    for name, description, work in (
        ("pause", "Deliver no more messages of a queue; it still accepts new ones.", _pause),
        ("resume", "Deliver the messages of a paused queue again.", _resume),
        ("delete", "Delete a queue with its messages, settings and counts.", _delete),
    ):
        command = add_command(name, description)
        _add_queue(command)
        _set_work(command, work)


def _add_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", metavar="QUEUE", help="name of the queue")


def _add_ids(parser: argparse.ArgumentParser, noun: str) -> None:
    parser.add_argument(
        "--id", type=_id, action="append", dest="ids", metavar="ID",
        help=f"only the {noun} with this id; the option may be repeated (default: all)",
    )  # fmt: skip


def _id(text: str) -> str:
    if not re.fullmatch("[0-9]+", text):
        raise argparse.ArgumentTypeError(f"must be the id of a message, a whole number, not {text!r}")
    return text


def _finish(parser: argparse.ArgumentParser, work: Work) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line (default: for people)")
    _set_work(parser, work)


def _set_work(parser: argparse.ArgumentParser, work: Work) -> None:
    add_service_options(parser)

    def run_work(options: argparse.Namespace) -> int:
        with client_for(options, getattr(options, "queue", "default")) as client:
            work(client, options)
        return 0

    parser.set_defaults(work=run_work)


def _list(client: QueueClient, options: argparse.Namespace) -> None:
    while True:
        queues = client.queues(options.prefix)
        if options.json:
            for name, stats in queues.items():
                print_json({"queue": name, **stats})
        else:
            shown = table(("QUEUE", *_COUNTS, "OLDEST"), [_row(name, stats) for name, stats in queues.items()])
            is_live = options.watch is not None and sys.stdout.isatty()
            print(f"{CLEAR}{shown}" if is_live else shown, flush=True)
        if options.watch is None:
            return
        time.sleep(options.watch)


_COUNTS = ("READY", "LEASED", "DELAYED", "BLOCKED", "DEAD", "SENT", "ACKED")


def _row(name: str, stats: QueueStats) -> list[object]:
    counts: Mapping[str, Any] = stats
    return [name, *(counts[count.lower()] for count in _COUNTS), age(stats["oldest_age"])]


def _show(client: QueueClient, options: argparse.Namespace) -> None:
    settings, _ = client.settings()
    queue: dict[str, Any] = {"queue": options.queue, "settings": settings, "stats": client.stats()}
    reasons: list[Reason] = []
    with suppress(Forbidden):  # a token that may only send can still see the counts
        reasons = client.reasons()["reasons"]
    _print_queue(queue | ({"reasons": reasons} if reasons else {}), options)
    if reasons and not options.json:
        rows = [(one["dead_letters"], one["oldest_at"], one["newest_at"], one["reason"]) for one in reasons]
        print("", table(("DEAD", "OLDEST", "NEWEST", "REASON"), rows), sep="\n")


def _set(client: QueueClient, options: argparse.Namespace) -> None:
    changes: Any = dict(options.settings)
    _print_queue(dict(client.put_settings(changes)), options)


def _print_queue(queue: Mapping[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print_json(queue)
    else:
        rows = [(name, value) for part in ("settings", "stats") for name, value in queue[part].items()]
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {json.dumps(value)}" for name, value in rows))


def _peek(client: QueueClient, options: argparse.Namespace) -> None:
    messages = client.peek(
        limit=options.limit, after=options.after, before=options.before, state=options.state, key=options.key,
        text=options.text, reason=options.reason,
    )  # fmt: skip
    if options.json:
        for message in messages:
            print_json(_document(message))
    elif messages:
        head = ("ID", "STATE", "AGE", "TRIES", "HOLDER", "KEY", "TEXT")
        print(table(head, [_cells(message) for message in messages]))
    if not messages:
        _hint_at_dead_letters(client, options)


def _cells(message: Message) -> list[object]:
    since = datetime.now(UTC) - message.sent_at if message.sent_at else timedelta(0)
    tries = message.receive_count or 0
    shown = [message.leased_by or "", message.key or "", message.text]
    return [message.id, message.state, age(since.total_seconds()), tries, *shown]


def _document(message: Message) -> dict[str, Any]:
    found = drop_none(**{name: getattr(message, name) for name in MESSAGE_FIELDS})
    for name in ("sent_at", "leased_until"):
        if name in found:
            found[name] = found[name].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return found


def _purge(client: QueueClient, options: argparse.Namespace) -> None:
    count = client.purge(ids=options.ids, reason=options.reason)
    _print_count("purged", count, options)
    if not count:
        _hint_at_dead_letters(client, options)


def _hint_at_dead_letters(client: QueueClient, options: argparse.Namespace) -> None:
    """Print where the dead letters with this reason are that came from this queue, if there are any."""
    if options.reason is None:
        return
    with suppress(Forbidden):  # the hint is not worth an error
        for message in client.peek(limit=1, state="dead", reason=options.reason):
            hint = f"the dead letters of {options.queue} with this reason are in {message.queue}"
            print(f"{NAME}: {hint}: {options.command} that queue", file=sys.stderr)


def _redrive(client: QueueClient, options: argparse.Namespace) -> None:
    moved = client.redrive(limit=options.limit, ids=options.ids, reason=options.reason)
    _print_count("redriven", moved, options)


def _print_count(verb: str, count: int, options: argparse.Namespace) -> None:
    if options.json:
        print_json({verb: count})
    else:
        print(f"{verb} {count:,} message{'' if count == 1 else 's'}")


def _pause(client: QueueClient, options: argparse.Namespace) -> None:
    client.put_settings({"paused": True})


def _resume(client: QueueClient, options: argparse.Namespace) -> None:
    client.put_settings({"paused": False})


def _delete(client: QueueClient, options: argparse.Namespace) -> None:
    client.delete_queue()


_SETTINGS = tuple(SettingsChanges.__annotations__)


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or name not in _SETTINGS:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE with one of {', '.join(_SETTINGS)}, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
