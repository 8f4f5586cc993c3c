"""Inspect and maintain a database, also while the service runs.

info URL           show its queues and its size
check URL          read all of it and report faults; exit 1 if it has faults
backup URL FILE    copy one snapshot of it, while the service runs
vacuum URL         return the space of deleted messages to the disk
migrate URL URL    move everything to another database; run it again after an interruption to continue
reopen URL         cancel an unfinished move from this database, so that it accepts writes again
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from storage import maintenance_for
from storage.errors import StoreError
from storage.migration import Tally, migrate, reopen


def main(arguments: list[str] | None = None, prog: str = "python -m storage") -> int:
    """Run a command. Print its result on stdout and faults on stderr; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["info", "check", "backup", "vacuum", "migrate", "reopen"])
    parser.add_argument(
        "url", help="sqlite:///relative/file, sqlite:////absolute/file or postgresql://user@host/database"
    )
    parser.add_argument("to", nargs="?", help="for backup a FILE, for migrate a URL; must not exist yet")
    options = parser.parse_args(arguments)
    if (options.command in ("backup", "migrate")) != (options.to is not None):
        parser.error("backup needs a FILE and migrate a second URL; the other commands take neither")
    try:
        print(_do(options.command, options.url, options.to))
    except StoreError as fault:
        print(f"{prog.removeprefix('python -m ')}: {fault}", file=sys.stderr)
        return 1
    return 0


def _do(command: str, url: str, to: str) -> str:
    if command == "migrate":
        return _summary(migrate(url, to))
    if command == "reopen":
        reopen(url)
        return f"{url} accepts writes"
    maintenance, place = maintenance_for(url)
    if command == "backup":
        return str(maintenance.backup(place, Path(to)))
    return str({"info": maintenance.info, "check": maintenance.check, "vacuum": maintenance.vacuum}[command](place))


def _summary(moved: dict[str, Tally]) -> str:
    lines = [f"{tally.messages:>12,}  {tally.digest[:16]}  {name}" for name, tally in sorted(moved.items()) if name]
    total = sum(tally.messages for tally in moved.values())
    return "\n".join([*lines, f"{total:>12,}  messages, equal in both databases; now serve the second"])


if __name__ == "__main__":
    sys.exit(main())
