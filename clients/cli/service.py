"""Run the service, and maintain its database."""

from __future__ import annotations

import os
import runpy
import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .command_line import NAME

# Each flag of `serve` sets the environment variable that docs/operations.md lists.
FLAGS = {
    "--host": ("QUEUE_HOST", "address to listen on (default 127.0.0.1)"),
    "--port": ("PORT", "port to listen on (default 5000)"),
    "--database": (
        "QUEUE_DATABASE_URL",
        "sqlite:///file or postgresql://user@host/database (default sqlite:///queue.db)",
    ),
    "--workers": ("WEB_CONCURRENCY", "number of processes (default 2)"),
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


def run_service(options: Namespace, arguments: list[str]) -> int:
    """Run `serve`, or the tool that the arguments name and that parses the others; return the exit code."""
    folder = add_service_path()
    if folder is None or any(find_spec(name) is None for name in ("apsw", "bottle", "gunicorn")):
        print(
            f"{NAME}: only the client is installed; install the package with the extra 'server', "
            "as in: pip install '.[server]'",
            file=sys.stderr,
        )
        return 1
    code: int
    if options.command == "serve":
        code = _serve(options, folder)
    elif options.command == "token":
        code = import_module("web.access.tokens").main(arguments[1:], f"{NAME} token")
    else:
        code = import_module("storage.__main__").main(arguments, NAME)
    return code


def add_service_path() -> Path | None:
    """Make the service's modules importable, before others of the same names; return their folder."""
    folder = service_folder()
    if folder is not None:
        sys.path.insert(0, str(folder))
    return folder


def service_folder() -> Path | None:
    """Return the folder of handler.py: in this package where it is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next((folder for folder in (package / "server", package.parent) if (folder / "handler.py").is_file()), None)


def add_flags(serve: ArgumentParser) -> None:
    for flag, (variable, meaning) in FLAGS.items():
        serve.add_argument(flag, dest=variable, metavar=flag[2:].upper(), help=f"{meaning}; {variable}")


def _serve(options: Namespace, folder: Path) -> int:
    for variable, _ in FLAGS.values():
        if (value := getattr(options, variable)) is not None:
            os.environ[variable] = value
    settings = import_module("settings")
    try:
        settings.Settings.from_env()
    except settings.BadSetting as fault:  # gunicorn reads WEB_CONCURRENCY too, and would fail with a traceback
        print(f"{NAME}: {fault}", file=sys.stderr)
        return 1
    # Otherwise gunicorn puts the working directory first, and a user's settings.py there would replace ours.
    sys.path.append(import_module("gunicorn.util").getcwd())
    sys.argv = [NAME, "--config", str(folder / "gunicorn.conf.py"), "handler:app"]
    runpy.run_module("gunicorn", run_name="__main__")
    return 0
