"""`python -m storage VERB URL`: looks after a database, also while the service runs.

info URL           what is in it, and how large it is
check URL          reads all of it and says whether it is sound; exits 1 if not
backup URL FILE    a consistent copy as of one moment, while the service goes on
vacuum URL         gives back to the disk what deleted messages left free
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from storage import path_of
from storage.errors import StoreError


def main(arguments: list[str] | None = None) -> int:
    """The exit code; what there is to say is on stdout, what is wrong on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m storage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["info", "check", "backup", "vacuum"])
    parser.add_argument("url", help="sqlite:///relative/file or sqlite:////absolute/file")
    parser.add_argument("file", type=Path, nargs="?", help="of a backup; must not be there yet")
    given = parser.parse_args(arguments)
    if (given.verb == "backup") != (given.file is not None):
        parser.error("backup, and only backup, takes a FILE")
    from storage import sqlite_care as care  # an engine is loaded when a URL asks for it

    try:
        path = path_of(given.url)
        if given.verb == "backup":
            print(care.backup(path, given.file))
        else:
            print({"info": care.info, "check": care.check, "vacuum": care.vacuum}[given.verb](path))
    except StoreError as fault:
        print(f"storage: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
