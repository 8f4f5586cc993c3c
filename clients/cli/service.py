"""`queue-service`: run the service, and maintain its database."""

from __future__ import annotations

import os
import runpy
import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# Each flag of `serve` sets the environment variable that docs/operations.md lists.
FLAGS = {
    "--host": ("QUEUE_HOST", "address to listen on (default 127.0.0.1)"),
    "--port": ("PORT", "port to listen on (default 5000)"),
    "--database": (
        "QUEUE_DATABASE_URL",
        "sqlite:///file or postgresql://user@host/database (default sqlite:///queue.db)",
    ),
    "--workers": ("WEB_CONCURRENCY", "number of processes (default 3)"),
    "--tokens-file": ("QUEUE_TOKENS_FILE", "file of the tokens that clients need"),
    "--access-log": ("QUEUE_ACCESS_LOG", "json or plain: print a line for each request"),
    "--log": ("QUEUE_LOG", "json: write the service's own log as JSON"),
}
TOOLS = {
    "info": "show what a database holds, and its size",
    "check": "read all of a database, and report whether it is sound",
    "backup": "write a consistent copy of a database, also while the service runs",
    "vacuum": "return the space of deleted messages to the disk",
    "migrate": "move everything to another database",
    "reopen": "give up a migration: accept writes again",
}
TOKEN = "create a token: NAME RIGHTS QUEUES"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = service_folder()
    if folder is None or any(find_spec(name) is None for name in ("apsw", "bottle", "gunicorn")):
        print(
            "queue-service: only the client is installed; install the package with the extra 'server', "
            "as in: pip install '.[server]'",
            file=sys.stderr,
        )
        return 1
    sys.path.insert(0, str(folder))
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    code: int
    if command in TOOLS:  # their own modules parse the rest
        code = import_module("storage.__main__").main(arguments, "queue-service")
    elif command == "token":
        code = import_module("web.access.tokens").main(rest, "queue-service token")
    else:
        code = _run(_parser(), arguments, folder)
    return code


def service_folder() -> Path | None:
    """Return the folder of handler.py: in this package where it is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next((folder for folder in (package / "server", package.parent) if (folder / "handler.py").is_file()), None)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="queue-service", description="Run a queue_service, and maintain its database.")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    serve = commands.add_parser(
        "serve",
        help="run the service",
        description="Run the service. A flag takes precedence over its environment variable.",
    )
    for flag, (variable, meaning) in FLAGS.items():
        serve.add_argument(flag, dest=variable, metavar=flag[2:].upper(), help=f"{meaning}; {variable}")
    for name, meaning in {**TOOLS, "token": TOKEN}.items():
        commands.add_parser(name, help=meaning)
    return parser


def _run(parser: ArgumentParser, arguments: list[str], folder: Path) -> int:
    options = parser.parse_args(arguments)
    if options.version:
        print(f"queue-service {import_module('settings').VERSION}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    return _serve(options, folder)


def _serve(options: Namespace, folder: Path) -> int:
    for variable, _ in FLAGS.values():
        if (value := getattr(options, variable)) is not None:
            os.environ[variable] = value
    settings = import_module("settings")
    try:
        settings.Settings.from_env()
    except settings.BadSetting as fault:  # gunicorn reads WEB_CONCURRENCY too, and would fail with a traceback
        print(f"queue-service: {fault}", file=sys.stderr)
        return 1
    # Otherwise gunicorn puts the working directory first, and a user's settings.py there would replace ours.
    sys.path.append(import_module("gunicorn.util").getcwd())
    sys.argv = ["queue-service", "--config", str(folder / "gunicorn.conf.py"), "handler:app"]
    runpy.run_module("gunicorn", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
